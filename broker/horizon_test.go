package broker_test

import (
	"context"
	"testing"
	"time"

	"github.com/oncebox/oncebox/broker"
)

// A consumer remembers what may still come: what the stream holds, and what its owner says that it may send again.
func TestTheHorizonIsTheOldestThatMayCome(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	r := newRig(t)
	horizon := broker.Horizon(r.nc, "TEST")
	if _, err := horizon(ctx); err == nil {
		t.Error("there is a horizon without a stream")
	}
	cfg := broker.Stream("TEST", "test.>")
	_, err := r.js.CreateStream(ctx, cfg)
	must(t, err)
	near := func(what string, want time.Time) {
		t.Helper()
		got, err := horizon(ctx)
		must(t, err)
		if got.Sub(want).Abs() > 30*time.Second {
			t.Errorf("%s: the horizon is %s, want %s", what, got, want)
		}
	}
	near("an empty stream", time.Now())
	r.publish(event("k", 1).Message())
	s, err := r.js.Stream(ctx, "TEST")
	must(t, err)
	first, err := s.GetMsg(ctx, 1)
	must(t, err)
	if got, err := horizon(ctx); err != nil || !got.Equal(first.Time) {
		t.Errorf("the horizon is %s, want that of the oldest message, %s: %v", got, first.Time, err)
	}
	says := func(value string) {
		t.Helper()
		said := cfg
		said.Metadata = map[string]string{broker.MetadataHorizon: value}
		_, err := r.js.UpdateStream(ctx, said)
		must(t, err)
	}
	says("240h")
	near("a window", time.Now().Add(-240*time.Hour))
	day := time.Date(2020, 2, 3, 4, 5, 6, 0, time.UTC)
	says(day.Format(time.RFC3339))
	near("a time", day)
	says(time.Now().Add(time.Hour).Format(time.RFC3339)) // the stream's own message may come all the same
	near("a time to come", first.Time)
	says("a while")
	if _, err := horizon(ctx); err == nil {
		t.Error("a horizon that cannot be read was passed over")
	}
}

// The owner writes its horizon when it makes its stream; one that was made without is taken as it is.
func TestTheOwnerWritesItsHorizon(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	for name, made := range map[string]bool{"a new stream": false, "a stream made before": true} {
		r := newRig(t)
		if made {
			_, _, err := r.sink().Open(ctx, 0)
			must(t, err)
		}
		for range 2 {
			sink, err := broker.NewSink(r.nc, broker.WithHorizon(broker.Stream("TEST", "test.>"), 240*time.Hour), broker.SinkConfig{})
			must(t, err)
			_, _, err = sink.Open(ctx, 0)
			must(t, err)
		}
		got, err := broker.Horizon(r.nc, "TEST")(ctx)
		must(t, err)
		if far := time.Since(got) > 239*time.Hour; far == made {
			t.Errorf("%s: the horizon is %s", name, got)
		}
	}
}
