package service

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/oncebox/oncebox/broker"
	"github.com/oncebox/oncebox/idempotency"
	"github.com/oncebox/oncebox/inbox"
	"github.com/oncebox/oncebox/outbox"
)

// An assembly is a service that is put together, one step after the other, each on what those before it made.
type assembly struct {
	Options
	def    Definition
	log    *slog.Logger
	traces *tracing
	reg    *prometheus.Registry
	open   ends // what the steps opened

	pool, relayPool *pgxpool.Pool
	nc              *nats.Conn

	relay  *outbox.Relay
	writer *outbox.Writer
	wake   func() // tells the relay of a commit

	built  Built
	in     *inbox.Inbox
	router *message.Router
	sub    *broker.Subscriber

	inPostgres *idempotency.Postgres
	store      keyStore
	askStore   func(context.Context) error // whether the store can be asked
	closeStore func(context.Context) error // waits until it has been told all

	healer        *healer
	health        *health
	public, admin listener
}

// connect opens the database, migrated, and the connection to NATS.
func (a *assembly) connect(ctx context.Context, b Broker) error {
	identity, err := b.options(a.def.Name)
	if err != nil {
		return err
	}
	if a.Migrate {
		if err := a.migrate(ctx, a.def, a.log); err != nil {
			return err
		}
	}
	a.pool, err = connect(ctx, a.DatabaseURL, a.MaxConns, a.serving(), a.log, password(a.PasswordFile), a.traces.queries, idempotency.TunePool)
	if err != nil {
		return err
	}
	a.open["requests' connections to Postgres"] = done(a.pool.Close)
	if err := a.def.checkMigrated(ctx, a.pool, a.log); err != nil {
		return err
	}
	// The relay has connections of its own: it renews its lease however many requests wait for one.
	relayURL, relayPassword := a.Options.relay()
	a.relayPool, err = connect(ctx, relayURL, 4, a.timeouts(), a.log, password(relayPassword))
	if err != nil {
		return err
	}
	a.open["the relay's connections to Postgres"] = done(a.relayPool.Close)
	a.nc, err = broker.Connect(b.NATSURL, a.def.Name, a.log, identity...)
	if err != nil {
		return err
	}
	a.open["the connection to NATS"] = done(a.nc.Close)
	return nil
}

// slotSlack is how much longer than its retention an event may stay in the outbox, until its slot is emptied.
const slotSlack = 3 * 24 * time.Hour

// inboxRetention is longer than the outbox keeps an event that it may send again: 13 days at most, and slotSlack.
const inboxRetention = 21 * 24 * time.Hour

func (a *assembly) makeOutbox(b Broker) error {
	stream := broker.WithHorizon(broker.Stream(a.def.Stream, a.def.Subjects), a.OutboxRetention+slotSlack)
	sink, err := broker.NewSink(a.nc, stream, broker.SinkConfig{Sync: broker.Sync(b.NATSSync), MonitorURLs: b.NATSMonitor})
	if err != nil {
		return err
	}
	var tell func(word string)
	a.relay, err = outbox.NewRelay(a.relayPool, a.traces.publishes(sink), outbox.RelayConfig{
		Name: a.def.Name, Lease: a.Lease, DrainTimeout: share(a.StopTimeout, drainShare), Retention: a.OutboxRetention, RetainEvery: a.RetainEvery,
		Parked: outbox.KeyPolicy(a.ParkedKeys), AfterRestore: outbox.AfterRestore(a.AfterRestore), RequireDurable: b.RequireDurable,
		Released: func() { tell(vacant) }, Logger: a.log, Registerer: a.reg})
	if err != nil {
		return err
	}
	if tell, err = broker.Wakeups(a.nc, a.def.Name, a.heard); err != nil {
		return err
	}
	a.wake = func() {
		if a.relay.Leading() {
			a.relay.Wake()
			return
		}
		tell("") // a standby's commits are for the one that leads
	}
	a.writer, err = outbox.NewWriter(outbox.WriterConfig{Source: a.def.Name})
	return err
}

// vacant is what a relay that gave its lease up tells the others. Any other word is that something was committed.
const vacant = "vacant"

func (a *assembly) heard(word string) {
	if word == vacant {
		a.relay.Vacant()
		return
	}
	a.relay.Pinged()
}

// build makes the service's own work, and has it traced.
func (a *assembly) build() (err error) {
	a.built, err = a.def.Build(Parts{Pool: a.pool, Outbox: a.writer, Wake: a.wake, Registerer: a.reg})
	if err != nil {
		return err
	}
	a.built.Handler = a.traces.groups(a.def.Name, a.built.Handler, a.log)
	if o := a.built.Outside; o != nil {
		o.Settle = a.traces.answers(a.def.Name, o.Settle, a.log)
	}
	return nil
}

const (
	// minInHand is enough for each lane to have its next messages at hand.
	minInHand = 256
	// maxInHand is enough for each lane's group to be full while the next one gathers.
	maxInHand = 1000
	// groupLanes is how many groups run at once: more only wait for the same disk.
	groupLanes = 4
)

func (a *assembly) makeInbox() (err error) {
	a.in, err = inbox.New(a.pool, inbox.Config{Consumer: a.def.Name, Committed: a.wake,
		Horizon: broker.Horizon(a.nc, a.def.ReadsStream), Retention: inboxRetention, Logger: a.log, Registerer: a.reg})
	if err != nil {
		return err
	}
	cfg := broker.SubscriberConfig{
		Stream: a.def.ReadsStream, Group: a.def.Name, AckWait: a.AckWait, Lanes: a.Lanes, Logger: a.log, Registerer: a.reg}
	var handle message.NoPublishHandlerFunc
	if a.built.Outside != nil {
		cfg.MaxAckPending = max(a.Lanes, minInHand)
		handle, err = a.in.External(*a.built.Outside)
	} else {
		cfg.MaxAckPending = max(a.Lanes, maxInHand)
		handle, err = a.in.Group(a.built.Handler, inbox.GroupConfig{Lanes: min(a.Lanes, groupLanes)})
	}
	if err != nil {
		return err
	}
	if a.sub, err = broker.NewSubscriber(a.nc, cfg); err != nil {
		return err
	}
	a.router, err = message.NewRouter(message.RouterConfig{CloseTimeout: share(a.StopTimeout, routerShare)},
		// What the router calls an error is a message that comes again, or its own end.
		watermill.NewSlogLoggerWithLevelMapping(a.log, map[slog.Level]slog.Level{slog.LevelInfo: slog.LevelDebug, slog.LevelError: slog.LevelWarn}))
	if err != nil {
		return fmt.Errorf("make the router: %w", err)
	}
	a.router.AddConsumerHandler(a.def.Name, a.def.ReadsSubjects, a.sub, handle)
	return nil
}

// letters are the dead letters, retried as their messages were handled.
func (a *assembly) letters() (*inbox.DeadLetters, error) {
	if a.built.Outside != nil {
		return a.in.DeadOutside(*a.built.Outside)
	}
	return a.in.Dead(a.built.Handler), nil
}

func (a *assembly) makeKeys(ctx context.Context, k KeyStore) (err error) {
	a.inPostgres, err = idempotency.NewPostgres(a.pool, idempotency.PostgresConfig{Forget: a.built.Forget})
	if err != nil {
		return err
	}
	a.store, a.askStore, a.closeStore, err = k.open(ctx, a.def.Name, a.inPostgres, a.log)
	return err
}

// version is what the API says of itself.
const version = "1.0.0"

// listen opens both listeners. Requests are answered from here on, and the service is not ready yet.
func (a *assembly) listen() error {
	keys, err := Keys(a.store, a.built.Keys, a.wake, a.log, a.reg)
	if err != nil {
		return err
	}
	api, err := a.guard(a.def.Name, logRequests(a.log, NewAPI(a.def.Name, version, a.log, a.reg, a.built.Routes, keys)), a.log, a.reg)
	if err != nil {
		return err
	}
	a.healer, err = newHealer(a.Options, a.def, a.built, a.pool, a.relayPool, a.relay, a.in, a.nc, a.log, a.reg)
	if err != nil {
		return err
	}
	letters, err := a.letters()
	if err != nil {
		return err
	}
	a.health = &health{pool: a.pool, nc: a.nc, keys: a.askStore}
	routes, err := a.guardAdmin(a.def.Name, a.health.routes(a.reg, a.relay, letters, a.store, a.healer))
	if err != nil {
		return err
	}
	a.admin, err = listen("admin", a.AdminListen.Admin, routes, adminLimits, a.log, a.reg)
	if err != nil {
		return fmt.Errorf("%s: %w", variable(a.def.Name, "admin"), err)
	}
	a.open["the admin listener"] = func(context.Context) error { return a.admin.server.Close() }
	a.public, err = listen("public", a.Listen, a.traces.requests(api), publicLimits(a.Options), a.log, a.reg)
	if err != nil {
		return fmt.Errorf("%s: %w", variable(a.def.Name, "listen"), err)
	}
	a.open["the public listener"] = func(context.Context) error { return a.public.server.Close() }
	return nil
}
