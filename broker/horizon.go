package broker

import (
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// MetadataHorizon is the key of a stream's metadata under which its owner says how far back it may send events again: a duration,
// such as "240h", or the time of the oldest in RFC 3339.
const MetadataHorizon = "oncebox-horizon"

// WithHorizon returns the declaration of a stream whose owner may send again what is not older than window. It is written when
// the stream is made: a service needs no right to change its stream. An operator changes it, before the service keeps more.
func WithHorizon(cfg jetstream.StreamConfig, window time.Duration) jetstream.StreamConfig {
	cfg.Metadata = maps.Clone(cfg.Metadata)
	if cfg.Metadata == nil {
		cfg.Metadata = map[string]string{}
	}
	cfg.Metadata[MetadataHorizon] = window.String()
	return cfg
}

// Horizon returns what tells since when messages of a stream may still come: the time of its oldest message, or what its owner
// says in [MetadataHorizon], whichever is earlier. A consumer's inbox must remember all that it handled since then.
func Horizon(nc *nats.Conn, stream string) func(context.Context) (time.Time, error) {
	return func(ctx context.Context) (time.Time, error) {
		js, err := jetstream.New(nc)
		if err != nil {
			return time.Time{}, fmt.Errorf("broker: %w", err)
		}
		s, err := js.Stream(ctx, stream)
		if err != nil {
			return time.Time{}, fmt.Errorf("broker: look at stream %s: %w", stream, err)
		}
		info := s.CachedInfo()
		horizon := time.Now().UTC()
		if info.State.Msgs > 0 {
			horizon = info.State.FirstTime
		}
		if said := info.Config.Metadata[MetadataHorizon]; said != "" {
			t, err := time.Parse(time.RFC3339Nano, said)
			if window, isWindow := time.ParseDuration(said); isWindow == nil {
				t, err = time.Now().UTC().Add(-window), nil
			}
			if err != nil {
				return time.Time{}, fmt.Errorf("broker: stream %s: metadata %s: %w", stream, MetadataHorizon, err)
			}
			if t.Before(horizon) {
				horizon = t
			}
		}
		return horizon, nil
	}
}
