package outbox_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"regexp"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/oncebox/oncebox/broker"
	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/outbox"
)

// processEnv holds a relaySpec in the environment of a process that is to be a relay and nothing else.
const processEnv = "ONCEBOX_TEST_RELAY"

type relaySpec struct {
	Database, NATS string
	Stream         jetstream.StreamConfig
	Sync           broker.Sync
	Timeout        time.Duration
	Name           string
	Lease          time.Duration
	SaveEvery      time.Duration
	RetainEvery    time.Duration
	Page           int
	Parked         outbox.KeyPolicy
}

// relayProcess is main of a relay's process: one that can be killed and stopped as a service is.
func relayProcess() bool {
	text, ok := os.LookupEnv(processEnv)
	if !ok {
		return false
	}
	if err := runRelay(text); err != nil {
		fmt.Fprintln(os.Stderr, "relay process:", err)
		os.Exit(1)
	}
	return true
}

func runRelay(text string) error {
	var spec relaySpec
	if err := json.Unmarshal([]byte(text), &spec); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	pool, err := pgxpool.New(ctx, spec.Database)
	if err != nil {
		return err
	}
	nc, err := broker.Connect(spec.NATS, "relay", log, nats.ReconnectWait(10*time.Millisecond), nats.ReconnectJitter(0, 0), inbox(spec.Stream.Name))
	if err != nil {
		return err
	}
	defer nc.Close()
	sink, err := broker.NewSink(nc, spec.Stream, broker.SinkConfig{Sync: spec.Sync, Timeout: spec.Timeout})
	if err != nil {
		return err
	}
	relay, err := outbox.NewRelay(pool, sink, outbox.RelayConfig{Name: spec.Name, Lease: spec.Lease, MinPoll: time.Millisecond,
		MaxPoll: 20 * time.Millisecond, SaveEvery: spec.SaveEvery, RetainEvery: spec.RetainEvery, Page: spec.Page, Parked: spec.Parked, Logger: log})
	if err != nil {
		return err
	}
	return relay.Run(ctx)
}

// A relayProc is a relay in a process of its own.
type relayProc struct {
	*devstack.Process
	log *procLog
}

// procLog is what relays' processes logged.
type procLog struct {
	mu  sync.Mutex
	all bytes.Buffer
}

func (l *procLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.Write(b)
}

// count is how often a pattern is found in the log.
func (l *procLog) count(pattern string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(regexp.MustCompile(pattern).FindAllIndex(l.all.Bytes(), -1))
}

// sum is that of the numbers that a pattern's group finds in the log.
func (l *procLog) sum(pattern string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, found := range regexp.MustCompile(pattern).FindAllSubmatch(l.all.Bytes(), -1) {
		i, err := strconv.Atoi(string(found[1]))
		if err != nil {
			panic(err)
		}
		n += i
	}
	return n
}

func (l *procLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.String()
}

// process starts a relay in a process of its own. log is shared by those that are to be counted together.
func (r *rig) process(log *procLog, change ...func(*relaySpec)) *relayProc {
	r.t.Helper()
	spec := relaySpec{Database: r.pool.Config().ConnString(), NATS: r.nc.Servers()[0], Stream: r.declared, Timeout: time.Second,
		Name: "test", Lease: 250 * time.Millisecond, SaveEvery: 200 * time.Millisecond, RetainEvery: 50 * time.Millisecond, Page: 1000}
	for _, f := range change {
		f(&spec)
	}
	text, err := json.Marshal(spec)
	must(r.t, err)
	self, err := os.Executable()
	must(r.t, err)
	p, err := devstack.StartProcess(devstack.ProcessConfig{Path: self, Output: log,
		Env: []string{processEnv + "=" + string(text), "GORACE=atexit_sleep_ms=0"}}) // the race detector would wait a second at the end
	must(r.t, err)
	r.t.Cleanup(func() {
		_ = p.Kill()
		if r.t.Failed() {
			r.t.Logf("the relays said:\n%s", log)
		}
	})
	return &relayProc{p, log}
}

// leads says whether a relay holds the lease; epoch tells one from the next.
func (r *rig) leads(t testing.TB) (epoch int64) {
	t.Helper()
	err := r.pool.QueryRow(context.Background(), `SELECT COALESCE(max(epoch), 0) FROM oncebox.outbox_cursor WHERE holder <> '' AND lease_until > clock_timestamp()`).Scan(&epoch)
	must(t, err)
	return epoch
}
