package heal_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/broker"
	"github.com/oncebox/oncebox/heal"
	"github.com/oncebox/oncebox/inbox"
	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/internal/stacktest"
	"github.com/oncebox/oncebox/migrations"
	"github.com/oncebox/oncebox/outbox"
)

func TestMain(m *testing.M) { stacktest.Main(m) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

const patience = 40 * time.Second

// A node is a service: asker asks, and answerer makes an effect and answers. Each has a database of its own, which may be put back
// to an earlier state, and both are at one nats-server.
type node struct {
	t           testing.TB
	name, reads string
	url         string
	server      *devstack.NATS
	pool        *pgxpool.Pool // of the running node
	nc          *nats.Conn
	relay       *outbox.Relay
	inbox       *inbox.Inbox
	auditor     *heal.Auditor
	writer      *outbox.Writer
	stop        func()
}

// newPair are an asker and an answerer that run.
func newPair(t testing.TB) (asker, answerer *node) {
	t.Helper()
	server := stacktest.NATS(t)
	nodes := make([]*node, 2)
	for i, name := range []string{"asker", "answerer"} {
		n := &node{t: t, name: name, reads: []string{"answerer", "asker"}[i], server: server,
			url: stacktest.PostgresURL(t, migrations.Outbox, migrations.Inbox, migrations.Heal)}
		t.Cleanup(func() {
			if n.stop != nil {
				n.halt()
			}
		})
		n.start()
		_, err := n.pool.Exec(context.Background(), "CREATE TABLE effect (n bigint GENERATED ALWAYS AS IDENTITY, cause uuid)") // nothing is unique: only the inbox guards
		must(t, err)
		nodes[i] = n
	}
	return nodes[0], nodes[1]
}

func (n *node) start() {
	t := n.t
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelError})).With("node", n.name)
	var err error
	n.pool, err = pgxpool.New(ctx, n.url)
	must(t, err)
	n.nc, err = nats.Connect(n.server.URL(), nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond), nats.ReconnectBufSize(-1))
	must(t, err)
	sink, err := broker.NewSink(n.nc, broker.Stream(n.name, n.name+".>"), broker.SinkConfig{})
	must(t, err)
	n.relay, err = outbox.NewRelay(n.pool, sink, outbox.RelayConfig{Name: n.name, Lease: time.Second, Confirm: 100 * time.Millisecond,
		MaxPoll: 50 * time.Millisecond, Logger: log})
	must(t, err)
	n.writer, err = outbox.NewWriter(outbox.WriterConfig{Source: n.name})
	must(t, err)
	n.inbox, err = inbox.New(n.pool, inbox.Config{Consumer: n.name, Logger: log, Retention: time.Nanosecond, Committed: n.relay.Wake})
	must(t, err)
	sub, err := broker.NewSubscriber(n.nc, broker.SubscriberConfig{Stream: n.reads, Group: n.name, AckWait: 2 * time.Second, MaxAckPending: 1000,
		MinRetry: 10 * time.Millisecond, MaxRetry: 100 * time.Millisecond, Logger: log})
	must(t, err)
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	must(t, err)
	handle, err := n.inbox.Group(inbox.Each(n.handle), inbox.GroupConfig{})
	must(t, err)
	router.AddConsumerHandler("handle", n.reads+".>", sub, handle)
	stopResponding, err := heal.Respond(n.nc, n.pool, n.inbox, heal.ResponderConfig{Consumer: n.name, Stream: n.reads, Durable: n.name, Logger: log})
	must(t, err)
	n.auditor, err = heal.NewAuditor(n.relay, n.pool, n.nc, heal.Config{Source: n.name, Cursor: n.name, Consumers: []string{n.reads}, Rate: 100_000, Logger: log})
	must(t, err)
	relayed, routed := make(chan error, 1), make(chan error, 1)
	go func() { relayed <- n.relay.Run(ctx) }()
	go func() { routed <- router.Run(ctx) }()
	n.stop = func() {
		stopResponding()
		if err := sub.Close(); err != nil {
			t.Error(err)
		}
		cancel()
		if err := <-relayed; err != nil {
			t.Error(err)
		}
		if err := <-routed; err != nil {
			t.Error(err)
		}
		n.nc.Close()
		n.pool.Close()
	}
}

func (n *node) halt() {
	n.stop()
	n.stop = nil
}

// handle makes an effect for each event, and answers what is a question.
func (n *node) handle(ctx context.Context, tx pgx.Tx, e oncebox.Event) error {
	if _, err := tx.Exec(ctx, "INSERT INTO effect (cause) VALUES ($1)", e.ID); err != nil {
		return err
	}
	if !strings.HasSuffix(e.Type, ".question") {
		return nil
	}
	const typ = "answerer.answer"
	return n.writer.Add(ctx, tx, oncebox.Event{ID: oncebox.DerivedID(e, n.name, typ, 0), Type: typ, Key: e.Key, Data: e.Data})
}

// ask writes questions, and returns their ids.
func (n *node) ask(count int) (ids []string) {
	t := n.t
	t.Helper()
	events := make([]oncebox.Event, count)
	for i := range events {
		events[i] = oncebox.Event{ID: uuid.Must(uuid.NewV7()).String(), Type: n.name + ".question", Key: fmt.Sprint("k", i), Data: fmt.Appendf(nil, `{"n":%d}`, i)}
		ids = append(ids, events[i].ID)
	}
	must(t, pgx.BeginFunc(t.Context(), n.pool, func(tx pgx.Tx) error { return n.writer.Add(t.Context(), tx, events...) }))
	n.relay.Wake()
	return ids
}

func (n *node) count(sql string) (count int) {
	n.t.Helper()
	must(n.t, n.pool.QueryRow(n.t.Context(), sql).Scan(&count))
	return count
}

// effects waits until the node has made count effects.
func (n *node) effects(count int) {
	n.t.Helper()
	stacktest.Eventually(n.t, patience, fmt.Sprintf("%s makes %d effects", n.name, count), func() (bool, error) {
		return n.count("SELECT count(*) FROM effect") >= count, nil
	})
}

// once fails the test unless each cause had one effect.
func (n *node) once(count int) {
	n.t.Helper()
	if effects, causes := n.count("SELECT count(*) FROM effect"), n.count("SELECT count(DISTINCT cause) FROM effect"); effects != count || causes != count {
		n.t.Errorf("%s made %d effects of %d causes, want %d", n.name, effects, causes, count)
	}
}

// audit compares once.
func (n *node) audit(o heal.Options) heal.Report {
	n.t.Helper()
	r := n.auditor.Heal(n.t.Context(), o)[0]
	if r.Error != "" {
		n.t.Fatalf("%s cannot compare: %s", n.name, r.Error)
	}
	return r
}

// alike audits until outbox and inbox are alike, with count events compared.
func (n *node) alike(count int64) {
	n.t.Helper()
	var r heal.Report
	defer func() { n.t.Logf("%s: %+v", n.name, r) }()
	stacktest.Eventually(n.t, patience, fmt.Sprintf("%s finds %d events alike", n.name, count), func() (bool, error) {
		r = n.audit(heal.Options{})
		return r.Alike() && r.Compared >= count, nil
	})
}

// saved keeps a copy of the database as it is now; the function that it returns puts it back. The node must not run at either.
func (n *node) saved() (restore func()) {
	t := n.t
	t.Helper()
	cfg, err := pgxpool.ParseConfig(n.url)
	must(t, err)
	name, owner := cfg.ConnConfig.Database, cfg.ConnConfig.User
	cfg.ConnConfig.Database = "postgres"
	admin, err := pgxpool.NewWithConfig(t.Context(), cfg)
	must(t, err)
	t.Cleanup(admin.Close)
	super := stacktest.Superuser(t, admin)
	id := func(s string) string { return pgx.Identifier{s}.Sanitize() }
	exec := func(sql string) {
		t.Helper()
		_, err := super.Exec(t.Context(), sql)
		must(t, err)
	}
	exec("CREATE DATABASE " + id(name+"_saved") + " TEMPLATE " + id(name) + " OWNER " + id(owner))
	return func() {
		t.Helper()
		exec("DROP DATABASE " + id(name) + " WITH (FORCE)")
		exec("ALTER DATABASE " + id(name+"_saved") + " RENAME TO " + id(name))
	}
}
