package inbox_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/broker"
	"github.com/oncebox/oncebox/inbox"
	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/internal/stacktest"
)

func TestMain(m *testing.M) {
	if role := os.Getenv("INBOX_TEST_CONSUMER"); role != "" {
		run := consume
		switch role {
		case "provider":
			run = provide
		case "example":
			run = func() error {
				Example()
				return nil
			}
		}
		if err := run(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	stacktest.Main(m)
}

// consume is a process of its own: a consumer in groups, whose "killer" kills it, until it is killed.
func consume() error {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, os.Getenv("INBOX_TEST_DATABASE"))
	if err != nil {
		return err
	}
	nc, err := nats.Connect(os.Getenv("INBOX_TEST_NATS"))
	if err != nil {
		return err
	}
	cfg := inbox.Config{Consumer: "consumer"}
	if os.Getenv("INBOX_TEST_CONSUMER") == "dies behind its commit" {
		cfg.Committed = die
	}
	in, err := inbox.New(pool, cfg)
	if err != nil {
		return err
	}
	h, err := in.Group(inbox.Each(func(ctx context.Context, tx pgx.Tx, e oncebox.Event) error {
		if bytes.Equal(e.Data, []byte("killer")) {
			die()
		}
		if os.Getenv("INBOX_TEST_CONSUMER") == "stops in order" {
			if _, err := tx.Exec(ctx, "SELECT pg_sleep(0.001)"); err != nil { // so that there is something in hand when it is stopped
				return err
			}
		}
		if err := effect(ctx, tx, e); err != nil || !bytes.Equal(e.Data, []byte("stand still")) {
			return err
		}
		// The signal stops the threads one after the other: this one could commit before it is its turn.
		goesOn := make(chan os.Signal, 1)
		signal.Notify(goesOn, syscall.SIGCONT)
		if err := syscall.Kill(os.Getpid(), syscall.SIGSTOP); err != nil {
			return err
		}
		<-goesOn
		return nil
	}), inbox.GroupConfig{})
	if err != nil {
		return err
	}
	router, sub, err := route(nc, h, slog.Default())
	if err != nil {
		return err
	}
	stopped, stop := signal.NotifyContext(ctx, syscall.SIGTERM)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- router.Run(ctx) }()
	select {
	case err := <-ended:
		return err
	case <-stopped.Done():
		return errors.Join(sub.Close(), router.Close())
	}
}

func die() {
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

func route(nc *nats.Conn, h message.NoPublishHandlerFunc, log *slog.Logger) (*message.Router, *broker.Subscriber, error) {
	ackWait := time.Second
	if os.Getenv("INBOX_TEST_CONSUMER") == "stops in order" {
		ackWait = time.Minute // what is not acknowledged is to stay so until it is counted
	}
	sub, err := broker.NewSubscriber(nc, broker.SubscriberConfig{Stream: "TEST", Group: "consumer", AckWait: ackWait,
		MinRetry: 10 * time.Millisecond, MaxRetry: time.Second, MaxAckPending: 1000, Logger: log})
	if err != nil {
		return nil, nil, err
	}
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	if err != nil {
		return nil, nil, err
	}
	router.AddConsumerHandler("consumer", "test.>", sub, h)
	return router, sub, nil
}

// A line is an inbox at a broker.
type line struct {
	*rig
	server *devstack.NATS
	nc     *nats.Conn
	js     jetstream.JetStream
}

func newLine(t *testing.T, pool *pgxpool.Pool) *line {
	t.Helper()
	l := &line{rig: &rig{t: t, pool: pool}, server: stacktest.NATS(t)}
	l.nc = stacktest.Connect(t, l.server)
	var err error
	l.js, err = jetstream.New(l.nc)
	must(t, err)
	_, err = l.js.CreateStream(context.Background(), broker.Stream("TEST", "test.>"))
	must(t, err)
	return l
}

func (l *line) publish(es ...oncebox.Event) {
	l.t.Helper()
	p, err := broker.NewPublisher(l.nc, 10*time.Second)
	must(l.t, err)
	must(l.t, p.Publish("test.happened.v1", toMessages(es)...))
}

// publishAtOnce does not wait for each acknowledgement before the next one.
func (l *line) publishAtOnce(es []oncebox.Event) {
	l.t.Helper()
	for _, e := range es {
		m := nats.NewMsg("test.happened.v1")
		m.Data = e.Data
		e.EachHeader(m.Header.Set)
		_, err := l.js.PublishMsgAsync(m, jetstream.WithMsgID(e.ID), jetstream.WithStallWait(time.Minute))
		must(l.t, err)
	}
	<-l.js.PublishAsyncComplete()
}

// start handles messages in this process until the test's end.
func (l *line) start(h message.NoPublishHandlerFunc) {
	l.t.Helper()
	router, sub, err := route(l.nc, h, slog.New(slog.NewTextHandler(l.t.Output(), nil)))
	must(l.t, err)
	go func() { _ = router.Run(context.Background()) }()
	l.t.Cleanup(func() {
		must(l.t, sub.Close())
		must(l.t, router.Close())
	})
}

// settled says whether everything is acknowledged, and how many deliveries that took.
func (l *line) settled() (deliveries uint64, ok bool, err error) {
	c, err := l.js.Consumer(context.Background(), "TEST", "consumer")
	if err != nil {
		return 0, false, err
	}
	stream, err := l.js.Stream(context.Background(), "TEST")
	if err != nil {
		return 0, false, err
	}
	// Not by what is pending: right after a consumer is made that is 0.
	return c.CachedInfo().Delivered.Consumer, c.CachedInfo().AckFloor.Stream == stream.CachedInfo().State.LastSeq, nil
}

// process starts a consumer of its own and returns what tells when it is dead.
func (l *line) process(how string) <-chan error { return l.command(how).dead }

// A child is a consumer's process.
type child struct {
	cmd  *exec.Cmd
	dead chan error
}

func (c child) pid() string { return strconv.Itoa(c.cmd.Process.Pid) }

func (l *line) command(how string) child {
	l.t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "INBOX_TEST_CONSUMER="+how, "INBOX_TEST_DATABASE="+l.pool.Config().ConnString(), "INBOX_TEST_NATS="+l.server.URL(),
		"DATABASE_URL="+l.pool.Config().ConnString(), "NATS_URL="+l.server.URL())
	cmd.Stderr = l.t.Output()
	must(l.t, cmd.Start())
	dead := make(chan error, 1)
	go func() { dead <- cmd.Wait() }()
	l.t.Cleanup(func() { _ = cmd.Process.Kill() })
	return child{cmd, dead}
}

// processes starts one consumer after the other, each when the one before is dead, until everything is settled, and returns how
// many died.
func (l *line) processes(how string) (deaths int) {
	l.t.Helper()
	dead := l.process(how)
	stacktest.Eventually(l.t, 2*time.Minute, "everything is acknowledged", func() (bool, error) {
		select {
		case err := <-dead:
			if err == nil {
				l.t.Error("a consumer's process ended, and was not killed")
			}
			deaths++
			dead = l.process(how)
		default:
		}
		_, ok, err := l.settled()
		return ok, err
	})
	return deaths
}

func database(t *testing.T) *pgxpool.Pool { return newRig(t).pool }

// One message kills its process whenever it is handled. It dies alone.
func TestAKillerAmongFiveHundredIsOneDeadLetter(t *testing.T) {
	t.Parallel()
	l := newLine(t, database(t))
	const n = 500
	es := make([]oncebox.Event, n)
	for i := range es {
		if es[i] = event("innocent"); i == n/2 {
			es[i] = event("killer")
		}
	}
	l.publish(es...)
	if deaths := l.processes("dies of killers"); deaths < 3 {
		t.Errorf("%d processes died: the killer did not kill", deaths)
	}
	l.wantLetters("crashed")
	l.wantEffects(n - 1)
	if n := l.count("(SELECT DISTINCT id FROM effect) AS e"); n != 499 {
		t.Errorf("%d messages have an effect", n)
	}
	if n := l.count("oncebox.inbox WHERE crashes > 1"); n != 1 {
		t.Errorf("%d messages have crashed more than once, want the killer alone", n)
	}
}

// Each process dies behind the commit of its first group, before it acknowledges.
func TestAProcessThatDiesBetweenCommitAndAcknowledgement(t *testing.T) {
	t.Parallel()
	l := newLine(t, database(t))
	const n = 20
	for range n {
		l.publish(event("a"))
	}
	if deaths := l.processes("dies behind its commit"); deaths < 1 {
		t.Error("no process died")
	}
	l.wantEffects(n)
	l.wantLetters()
}

// Postgres is killed and stays away for a while: nothing dies of it, nothing is handed out over and over, and nobody burns the
// processor.
func TestAnOutageOfPostgresCostsNothing(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	server := stacktest.OwnPostgres(t, devstack.PostgresConfig{})
	pool, err := pgxpool.New(ctx, server.URL("postgres"))
	must(t, err)
	t.Cleanup(pool.Close)
	must(t, migrateInbox(ctx, pool))
	l := newLine(t, pool)
	in := l.inboxWith(inbox.Config{Consumer: "consumer"})
	h, err := in.Group(playAll, inbox.GroupConfig{})
	must(t, err)
	const n = 300
	var es []oncebox.Event
	for range n {
		es = append(es, event("good"))
	}
	l.publish(es[:n/3]...)
	var most atomic.Int64 // deliveries of one message
	l.start(func(m *message.Message) error {
		for d := int64(oncebox.Delivered(m.Context())); ; {
			if seen := most.Load(); d <= seen || most.CompareAndSwap(seen, d) {
				return h(m)
			}
		}
	})
	stacktest.Eventually(t, time.Minute, "the first are handled", func() (bool, error) { return l.count("effect") > 0, nil })
	must(t, server.StopImmediate(ctx))
	before := processorTime()
	l.publish(es[n/3:]...)
	down := time.Now()
	stacktest.Eventually(t, time.Minute, "messages wait in hand for three seconds", func() (bool, error) {
		c, err := l.js.Consumer(ctx, "TEST", "consumer")
		if err != nil {
			return false, err
		}
		return c.CachedInfo().NumAckPending > 0 && time.Since(down) > 3*time.Second, nil
	})
	if busy := processorTime() - before; busy > time.Since(down)/2 {
		t.Errorf("%s of the processor in an outage of %s", busy, time.Since(down))
	}
	must(t, server.Restart(ctx))
	var deliveries uint64
	stacktest.Eventually(t, time.Minute, "everything is acknowledged", func() (ok bool, err error) {
		deliveries, ok, err = l.settled()
		return ok, err
	})
	l.wantEffects(n)
	l.wantLetters()
	if deliveries > 2*n || most.Load() > 6 {
		t.Errorf("%d deliveries of %d messages, %d of one", deliveries, n, most.Load())
	}
}

func processorTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
