package billing_test

import (
	"context"
	"log/slog"
	"testing"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"

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
		bad    int // of a hundred
		handle func(*inbox.Inbox, *billing.Service) (message.NoPublishHandlerFunc, error)
	}{
		{"one by one", 0, func(in *inbox.Inbox, s *billing.Service) (message.NoPublishHandlerFunc, error) {
			return in.One(s.Handler()), nil
		}},
		{"each of a group", 0, func(in *inbox.Inbox, s *billing.Service) (message.NoPublishHandlerFunc, error) {
			return in.Group(inbox.Each(s.Handler()), inbox.GroupConfig{})
		}},
		{"a group as a set", 0, asSet},
		{"a group of 500 as a set", 0, func(in *inbox.Inbox, s *billing.Service) (message.NoPublishHandlerFunc, error) {
			return in.Group(s.GroupHandler(), inbox.GroupConfig{Max: 500, Lanes: 2})
		}},
		{"a group as a set, 1 of 100 bad", 1, asSet},
		{"a group as a set, 10 of 100 bad", 10, asSet},
	} {
		b.Run(way.name, func(b *testing.B) { benchmarkCharge(b, server, way.bad, way.handle) })
	}
}

func asSet(in *inbox.Inbox, s *billing.Service) (message.NoPublishHandlerFunc, error) {
	return in.Group(s.GroupHandler(), inbox.GroupConfig{})
}

func benchmarkCharge(b *testing.B, server *devstack.Postgres, bad int, handle func(*inbox.Inbox, *billing.Service) (message.NoPublishHandlerFunc, error)) {
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
	wantDead := fillStream(b, nats, b.N, bad)
	nc := stacktest.Connect(b, nats)

	done := make(chan struct{}, b.N)
	in, err := inbox.New(pool, inbox.Config{Consumer: billing.Name, Logger: slog.New(slog.DiscardHandler)})
	must(b, err)
	h, err := handle(in, s)
	must(b, err)
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
	_, err = pool.Exec(ctx, "CHECKPOINT")
	must(b, err)
	b.ResetTimer()
	go func() { _ = router.Run(ctx) }()
	for range b.N {
		<-done
	}
	b.StopTimer()
	b.ReportMetric(float64(b.N-wantDead)/b.Elapsed().Seconds(), "charges/s")
	b.ReportMetric(0, "ns/op")
	must(b, sub.Close())
	must(b, router.Close())
	var charges, dead int
	must(b, pool.QueryRow(ctx, "SELECT (SELECT count(*) FROM charge), (SELECT count(*) FROM oncebox.dead_letter)").Scan(&charges, &dead))
	if charges != b.N-wantDead || dead != wantDead {
		b.Errorf("%d charges and %d dead letters for %d requests, %d of them bad", charges, dead, b.N, wantDead)
	}
}
