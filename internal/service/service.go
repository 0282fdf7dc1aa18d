// Package service is what orders and billing have in common: settings, listeners, and the order in which the parts of a service
// start and stop.
package service

import (
	"context"
	"os"

	"github.com/danielgtaylor/huma/v2"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/oncebox/oncebox/heal"
	"github.com/oncebox/oncebox/idempotency"
	"github.com/oncebox/oncebox/inbox"
	"github.com/oncebox/oncebox/migrations"
	"github.com/oncebox/oncebox/outbox"
)

// A Definition is what one service is, apart from another.
type Definition struct {
	// Name is the service's: the source of its events, its relay's cursor and its consumer group.
	Name string
	// Line are the migrations of its own tables; the outbox's, the inbox's and the idempotency keys' come with them.
	Line migrations.Line
	// Stream and Subjects are what it publishes to, as the stream's owner and only writer.
	Stream, Subjects string
	// Consumers are the services that consume it: what they lose is sent again.
	Consumers []string
	// ReadsStream and ReadsSubjects are what it consumes, and Reads the service that publishes it.
	ReadsStream, ReadsSubjects, Reads string
	// Build makes the service on its parts.
	Build func(Parts) (Built, error)
}

// Parts are what a service is built on.
type Parts struct {
	Pool       *pgxpool.Pool
	Outbox     *outbox.Writer
	Wake       func() // tells the relay of a commit
	Registerer prometheus.Registerer
}

// Built is a service's own work.
type Built struct {
	Routes func(huma.API)
	// Handler handles the messages in hand together.
	Handler inbox.GroupHandler
	// Keys are the policies of the operations that take an Idempotency-Key, by method.
	Keys map[string]idempotency.Policy
	// Forget takes expired keys from the rows that they guard.
	Forget func(context.Context, pgx.Tx, []idempotency.ExpiredKey) error
	// Outside, if set, handles each message by an effect outside the database, in Handler's place.
	Outside *inbox.Outside
	// Purge, if set, deletes for good what has been deleted long enough. It is called once an hour.
	Purge func(context.Context) error
	// Books, if set, are the service's own sides of what can be compared. They read its outbox by the pool that is passed.
	Books func(outbox *pgxpool.Pool) []heal.Offer
	// Trace, if set, is what the service itself knows of events and aggregates by their names.
	Trace func(ctx context.Context, names []string) ([]heal.Step, error)
}

// Run migrates, starts every part of the service and serves until ctx is done or a part fails for good. Then it stops them in
// the order in which work flows: ready off, no new requests, those begun are answered, no new messages, those in hand are
// acknowledged, the relay sends what is committed. That takes StopTimeout at most: what hangs is left, and logged. It is no error,
// since whoever comes next finds all of it as after a crash.
func Run(ctx context.Context, o Options, b Broker, k KeyStore, def Definition) error {
	if err := o.validate(def.Name); err != nil {
		return err
	}
	if err := b.validate(); err != nil {
		return err
	}
	if err := k.validate(); err != nil {
		return err
	}
	log := newLogger(os.Stderr, o.LogLevel, def.Name)
	traces, err := startTracing(ctx, def.Name, log)
	if err != nil {
		return err
	}
	a := &assembly{Options: o, def: def, log: log, traces: traces, open: ends{"the last traces": traces.shutdown}, reg: prometheus.NewRegistry()}
	a.reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	defer func() { a.open.close(context.WithoutCancel(ctx), share(o.StopTimeout, closeShare), log) }()
	for _, step := range []func() error{
		func() error { return a.connect(ctx, b) },
		func() error { return a.makeOutbox(b) },
		a.build,
		a.makeInbox,
		func() error { return a.makeKeys(ctx, k) },
		a.listen,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return a.serve(ctx)
}
