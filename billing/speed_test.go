package billing_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/oncebox/oncebox/billing"
	"github.com/oncebox/oncebox/broker"
	"github.com/oncebox/oncebox/events"
	"github.com/oncebox/oncebox/inbox"
	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/internal/stacktest"
	"github.com/oncebox/oncebox/migrations"
	"github.com/oncebox/oncebox/outbox"
)

// BenchmarkCharge measures how fast requests for charges leave a full stream, by Watermill's router, for the ways of handling
// them, on a Postgres that syncs. The first is no way of handling: it is a bare loop, one statement for a group on tables
// without guards, and what it does is the machine's limit. Read the figures as ratios of one run:
//
//	go test ./billing -run '^$' -bench Charge -benchtime 20000x -count 3
func BenchmarkCharge(b *testing.B) {
	server := stacktest.OwnPostgres(b, devstack.PostgresConfig{Fsync: true})
	b.Run("bare loop, 500 a statement", func(b *testing.B) { benchmarkBareLoop(b, server) })
	for _, way := range []struct {
		name   string
		handle handling
	}{
		{"one by one", func(in *inbox.Inbox, s *billing.Service) (message.NoPublishHandlerFunc, error) {
			return in.One(s.Handler()), nil
		}},
		{"each of a group", eachOfGroup},
		{"a group as a set", asSet},
		{"a group of 500 as a set", func(in *inbox.Inbox, s *billing.Service) (message.NoPublishHandlerFunc, error) {
			return in.Group(s.GroupHandler(), inbox.GroupConfig{Max: 500, Lanes: 2})
		}},
	} {
		b.Run(way.name, func(b *testing.B) {
			b.ReportMetric(charges(b, server, 0, nil, way.handle, nil), "charges/s")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkKnown measures how fast requests pass that were charged before, as after the loss of a stream: faster than new ones.
//
//	go test ./billing -run '^$' -bench Known -benchtime 40000x
func BenchmarkKnown(b *testing.B) {
	if b.N == 1 { // Go tries with one first
		return
	}
	var known float64
	fresh := charges(b, stacktest.OwnPostgres(b, devstack.PostgresConfig{Fsync: true}), 0, nil, asSet, &known)
	b.ReportMetric(fresh, "charges/s")
	b.ReportMetric(known, "known/s")
	b.ReportMetric(0, "ns/op")
	if known < fresh {
		b.Errorf("%.0f that are known pass in a second, and %.0f new ones", known, fresh)
	}
}

// BenchmarkPoison measures what messages that can never be handled cost the good ones beside them. Each round runs with none, with
// one and with ten of a hundred, one after the other, and the ratios are those of the rounds' medians:
//
//	go test ./billing -run '^$' -bench Poison -benchtime 20000x
func BenchmarkPoison(b *testing.B) {
	const rounds = 5
	server := stacktest.OwnPostgres(b, devstack.PostgresConfig{Fsync: true})
	for _, way := range []struct {
		name   string
		of     poison
		handle handling
	}{
		{"malformed, a group as a set", malformed, asSet},
		{"charged already, a group as a set", chargedAlready, asSet},
		{"malformed, each of a group", malformed, eachOfGroup},
	} {
		b.Run(way.name, func(b *testing.B) {
			if b.N == 1 { // Go tries with one first
				return
			}
			rates := map[int][]float64{}
			for range rounds {
				for _, bad := range []int{0, 1, 10} {
					rates[bad] = append(rates[bad], charges(b, server, bad, way.of, way.handle, nil))
				}
			}
			for bad, of := range rates {
				slices.Sort(of)
				b.Logf("%2d of a hundred bad: %.0f charges/s", bad, of)
			}
			median := func(bad int) float64 { return rates[bad][rounds/2] }
			b.ReportMetric(median(0), "charges/s")
			b.ReportMetric(0, "ns/op")
			for bad, least := range map[int]float64{1: 80, 10: 40} {
				kept := 100 * median(bad) / median(0)
				b.ReportMetric(kept, fmt.Sprintf("%%_kept_at_%d%%", bad))
				if kept < least {
					b.Errorf("with %d of a hundred bad the good ones keep %.0f %% of their rate, and not %.0f %%", bad, kept, least)
				}
			}
		})
	}
}

type handling = func(*inbox.Inbox, *billing.Service) (message.NoPublishHandlerFunc, error)

func eachOfGroup(in *inbox.Inbox, s *billing.Service) (message.NoPublishHandlerFunc, error) {
	return in.Group(inbox.Each(s.Handler()), inbox.GroupConfig{})
}

func asSet(in *inbox.Inbox, s *billing.Service) (message.NoPublishHandlerFunc, error) {
	return in.Group(s.GroupHandler(), inbox.GroupConfig{})
}

// charges handles b.N requests, bad of a hundred poisonous, and returns how many it charges in a second. Where known is not nil, they
// come once more, and it is set to how many pass in a second then.
func charges(b *testing.B, server *devstack.Postgres, bad int, of poison, handle handling, known *float64) float64 {
	b.Helper()
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, server.URL("postgres"))
	must(b, err)
	defer pool.Close()
	_, err = pool.Exec(ctx, "DROP SCHEMA IF EXISTS oncebox CASCADE; DROP SCHEMA public CASCADE; CREATE SCHEMA public")
	must(b, err)
	must(b, migrations.Up(ctx, pool, migrations.Outbox, migrations.Inbox, migrations.Billing))
	w, err := outbox.NewWriter(outbox.WriterConfig{Source: billing.Name})
	must(b, err)
	s, err := billing.New(pool, w, billing.Config{ChargeLimit: limit})
	must(b, err)

	nats := stacktest.NATS(b)
	wantDead := fillStream(b, nats, b.N, bad, of)
	nc := stacktest.Connect(b, nats)

	in, err := inbox.New(pool, inbox.Config{Consumer: billing.Name, Logger: slog.New(slog.DiscardHandler)})
	must(b, err)
	h, err := handle(in, s)
	must(b, err)
	_, err = pool.Exec(ctx, "CHECKPOINT")
	must(b, err)
	took := drain(b, nc, h)
	if known != nil {
		js, err := jetstream.New(nc)
		must(b, err)
		must(b, js.DeleteConsumer(ctx, events.OrdersStream, billing.Name))
		*known = float64(b.N) / drain(b, nc, h).Seconds()
	}
	nc.Close()
	must(b, nats.Stop(ctx))
	var charged, dead int
	must(b, pool.QueryRow(ctx, "SELECT (SELECT count(*) FROM charge), (SELECT count(*) FROM oncebox.dead_letter)").Scan(&charged, &dead))
	if charged != b.N-wantDead || dead != wantDead {
		b.Errorf("%d charges and %d dead letters for %d requests, %d of them bad", charged, dead, b.N, wantDead)
	}
	return float64(charged) / took.Seconds()
}

// drain handles all of the stream, b.N messages, and returns how long that took.
func drain(b *testing.B, nc *nats.Conn, h message.NoPublishHandlerFunc) time.Duration {
	b.Helper()
	done := make(chan struct{}, b.N)
	sub, err := broker.NewSubscriber(nc, broker.SubscriberConfig{Stream: events.OrdersStream, Group: billing.Name, MaxAckPending: 2000, Logger: slog.New(slog.DiscardHandler)})
	must(b, err)
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	must(b, err)
	router.AddConsumerHandler("billing", events.OrdersSubjects, sub, func(m *message.Message) error {
		err := h(m)
		if err == nil {
			done <- struct{}{}
		}
		return err
	})
	began := time.Now()
	go func() { _ = router.Run(context.Background()) }()
	for range b.N {
		<-done
	}
	took := time.Since(began)
	must(b, sub.Close())
	must(b, router.Close())
	return took
}
