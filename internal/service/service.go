// Package service is what orders and billing have in common: settings, listeners, and the order in which the parts of a service
// start and stop.
package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/danielgtaylor/huma/v2"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/oncebox/oncebox/broker"
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
	Routes  func(huma.API)
	Handler inbox.Handler
	// GroupHandler, if set, handles the messages in hand together, in Handler's place.
	GroupHandler inbox.GroupHandler
	// Keys are the policies of the operations that take an Idempotency-Key, by method.
	Keys map[string]idempotency.Policy
	// Forget takes expired keys from the rows that they guard.
	Forget func(context.Context, pgx.Tx, []idempotency.ExpiredKey) error
	// Outside, if set, handles each message by an effect outside the database, in the place of both.
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
	if err := k.validate(); err != nil {
		return err
	}
	identity, err := b.options(def.Name)
	if err != nil {
		return err
	}
	log := newLogger(os.Stderr, o.LogLevel, def.Name)
	traces, err := startTracing(ctx, def.Name, log)
	if err != nil {
		return err
	}
	open := ends{"the last traces": traces.shutdown}
	defer func() { open.close(context.WithoutCancel(ctx), share(o.StopTimeout, closeShare), log) }()
	if o.Migrate {
		if err := o.migrate(ctx, def, log); err != nil {
			return err
		}
	}
	pool, err := connect(ctx, o.DatabaseURL, o.MaxConns, o.timeouts(), log, password(o.PasswordFile), traces.queries, idempotency.TunePool)
	if err != nil {
		return err
	}
	open["requests' connections to Postgres"] = done(pool.Close)
	if err := migrations.Check(ctx, pool, def.lines()...); err != nil {
		return fmt.Errorf("%w: run %s migrate", err, def.Name)
	}
	// The relay has connections of its own: it renews its lease however many requests wait for one.
	relayURL, relayPassword := o.relay()
	relayPool, err := connect(ctx, relayURL, 4, o.timeouts(), log, password(relayPassword))
	if err != nil {
		return err
	}
	open["the relay's connections to Postgres"] = done(relayPool.Close)
	nc, err := broker.Connect(b.NATSURL, def.Name, log, identity...)
	if err != nil {
		return err
	}
	open["the connection to NATS"] = done(nc.Close)

	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	relay, writer, err := newOutbox(o, b, def, relayPool, nc, traces, log, reg)
	if err != nil {
		return err
	}
	ping, err := broker.Wakeups(nc, def.Name, relay.Pinged)
	if err != nil {
		return err
	}
	wake := func() {
		if relay.Leading() {
			relay.Wake()
			return
		}
		ping() // a standby's commits are for the one that leads
	}
	built, err := def.Build(Parts{Pool: pool, Outbox: writer, Wake: wake, Registerer: reg})
	if err != nil {
		return err
	}
	built.Handler = traces.events(def.Name, built.Handler, log)
	if built.GroupHandler != nil {
		built.GroupHandler = traces.groups(def.Name, built.GroupHandler, log)
	}
	if o := built.Outside; o != nil {
		o.Settle = traces.answers(def.Name, o.Settle, log)
	}
	in, err := inbox.New(pool, inbox.Config{Consumer: def.Name, Committed: wake,
		Horizon: broker.Horizon(nc, def.ReadsStream), Retention: inboxRetention, Logger: log, Registerer: reg})
	if err != nil {
		return err
	}
	letters, err := built.letters(in)
	if err != nil {
		return err
	}
	router, sub, err := newRouter(o, def, built, in, nc, log, reg)
	if err != nil {
		return err
	}
	inPostgres, err := idempotency.NewPostgres(pool, idempotency.PostgresConfig{Forget: built.Forget})
	if err != nil {
		return err
	}
	store, askStore, closeStore, err := k.open(ctx, def.Name, inPostgres, log)
	if err != nil {
		return err
	}
	keys, err := Keys(store, built.Keys, wake, log, reg)
	if err != nil {
		return err
	}
	api, err := o.guard(def.Name, logRequests(log, NewAPI(def.Name, version, log, reg, built.Routes, keys)), log, reg)
	if err != nil {
		return err
	}
	healer, err := newHealer(o, def, built, pool, relayPool, relay, in, nc, log, reg)
	if err != nil {
		return err
	}
	h := &health{pool: pool, nc: nc, keys: askStore}
	adminRoutes, err := o.guardAdmin(def.Name, h.routes(reg, relay, letters, store, healer))
	if err != nil {
		return err
	}
	admin, err := listen("admin", o.AdminListen.Admin, adminRoutes, adminLimits, log, reg)
	if err != nil {
		return fmt.Errorf("%s: %w", variable(def.Name, "admin"), err)
	}
	defer admin.server.Close()
	public, err := listen("public", o.Listen, traces.requests(api), publicLimits(o), log, reg)
	if err != nil {
		return fmt.Errorf("%s: %w", variable(def.Name, "listen"), err)
	}
	defer public.server.Close()

	relaying, stopRelay := context.WithCancel(context.WithoutCancel(ctx))
	defer stopRelay()
	relayDone, routerDone := start(func() error { return relay.Run(relaying) }), start(func() error { return router.Run(relaying) })
	chores := []chore{{"handled messages' ids", func(ctx context.Context) error { _, err := in.Prune(ctx); return err }}}
	if built.Purge != nil {
		chores = append(chores, chore{"what was deleted", built.Purge})
	}
	cleanDone := start(func() error { return inPostgres.Run(ctx) }) // what was kept before keys went to Redis, too
	go in.WatchHorizon(ctx)
	go tend(ctx, tendEvery, log, chores...)
	go healer.run(ctx, o.HealEvery)
	h.ready.Store(true)
	log.Info("serving", "listen", public.addr, "admin", admin.addr)

	select {
	case <-ctx.Done():
	case err = <-public.done:
	case err = <-admin.done:
	case err = <-relayDone:
	case err = <-routerDone:
	case err = <-cleanDone:
	}
	log.Info("stopping", "cause", errors.Join(err, context.Cause(ctx)))
	h.ready.Store(false)
	stop(context.WithoutCancel(ctx), log,
		stage{"requests", share(o.StopTimeout, requestsShare), func(end context.Context) error {
			err := public.server.Shutdown(end)
			if err != nil {
				err = errors.Join(err, public.server.Close())
			}
			return errors.Join(err, closeStore(end))
		}},
		stage{"messages in hand", share(o.StopTimeout, messagesShare), func(end context.Context) error {
			healer.stopAnswering()
			return within(end, sub.Close)
		}},
		stage{"the router", share(o.StopTimeout, routerShare), func(end context.Context) error { return within(end, router.Close) }},
		stage{"the relay", share(o.StopTimeout, relayShare), func(end context.Context) error {
			stopRelay()
			return within(end, func() error { return <-relayDone })
		}})
	log.Info("stopped", "error", err)
	return err
}

// slotSlack is how much longer than its retention an event may stay in the outbox, until its slot is emptied.
const slotSlack = 3 * 24 * time.Hour

// inboxRetention is longer than the outbox keeps an event that it may send again: 13 days at most, and slotSlack.
const inboxRetention = 21 * 24 * time.Hour

// version is what the API says of itself.
const version = "1.0.0"

func newOutbox(o Options, b Broker, def Definition, pool *pgxpool.Pool, nc *nats.Conn, traces *tracing, log *slog.Logger, reg prometheus.Registerer) (*outbox.Relay, *outbox.Writer, error) {
	stream := broker.WithHorizon(broker.Stream(def.Stream, def.Subjects), o.OutboxRetention+slotSlack)
	sink, err := broker.NewSink(nc, stream, broker.SinkConfig{
		Sync: broker.Sync(b.NATSSync), MonitorURLs: b.NATSMonitor})
	if err != nil {
		return nil, nil, err
	}
	relay, err := outbox.NewRelay(pool, traces.publishes(sink), outbox.RelayConfig{
		Name: def.Name, Lease: o.Lease, DrainTimeout: share(o.StopTimeout, drainShare), Retention: o.OutboxRetention, Parked: outbox.KeyPolicy(o.ParkedKeys),
		AfterRestore: outbox.AfterRestore(o.AfterRestore), RequireDurable: b.RequireDurable, Logger: log, Registerer: reg})
	if err != nil {
		return nil, nil, err
	}
	writer, err := outbox.NewWriter(outbox.WriterConfig{Source: def.Name})
	return relay, writer, err
}

const (
	// minInHand is enough for each lane to have its next messages at hand.
	minInHand = 256
	// maxInHand is enough for each lane's group to be full while the next one gathers.
	maxInHand = 1000
	// groupLanes is how many groups run at once: more only wait for the same disk.
	groupLanes = 4
)

// letters are the dead letters of messages that newRouter has handled, to be retried in the same way.
func (b Built) letters(in *inbox.Inbox) (*inbox.DeadLetters, error) {
	switch {
	case b.Outside != nil:
		return in.DeadOutside(*b.Outside)
	case b.GroupHandler != nil:
		return in.Dead(b.GroupHandler), nil
	}
	return in.Dead(inbox.Each(b.Handler)), nil
}

func newRouter(o Options, def Definition, built Built, in *inbox.Inbox, nc *nats.Conn, log *slog.Logger, reg prometheus.Registerer) (*message.Router, *broker.Subscriber, error) {
	cfg := broker.SubscriberConfig{
		Stream: def.ReadsStream, Group: def.Name, AckWait: o.AckWait, Lanes: o.Lanes, Logger: log, Registerer: reg}
	handle, err := in.One(built.Handler), error(nil)
	cfg.MaxAckPending = max(o.Lanes, minInHand)
	switch {
	case built.Outside != nil:
		handle, err = in.External(*built.Outside)
	case built.GroupHandler != nil:
		cfg.MaxAckPending = max(o.Lanes, maxInHand)
		handle, err = in.Group(built.GroupHandler, inbox.GroupConfig{Lanes: min(o.Lanes, groupLanes)})
	}
	if err != nil {
		return nil, nil, err
	}
	sub, err := broker.NewSubscriber(nc, cfg)
	if err != nil {
		return nil, nil, err
	}
	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: share(o.StopTimeout, routerShare)},
		// What the router calls an error is a message that comes again, or its own end.
		watermill.NewSlogLoggerWithLevelMapping(log, map[slog.Level]slog.Level{slog.LevelInfo: slog.LevelDebug, slog.LevelError: slog.LevelWarn}))
	if err != nil {
		return nil, nil, fmt.Errorf("make the router: %w", err)
	}
	router.AddConsumerHandler(def.Name, def.ReadsSubjects, sub, handle)
	return router, sub, nil
}
