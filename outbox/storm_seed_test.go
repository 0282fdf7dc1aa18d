package outbox_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncebox/oncebox/broker"
	"github.com/oncebox/oncebox/outbox"
)

// stormEvents is how many events each storm commits at least.
const stormEvents = 2000

// stormLease is as short as a machine can keep that does nothing else; see slower.
const stormLease = 250 * time.Millisecond

// A storm is one run with one seed.
type storm struct {
	*rig
	w      *wave
	number int
	seed   uint64
	rng    *rand.Rand // of the goroutine that makes the faults
	topic  string
	// unsendable is a topic of which the stream has no subject until the storm is over.
	unsendable string
	oldSlot    int
	old        atomic.Bool // some of the events go into the old slot
	said       procLog
	relays     []stormRelay
	options    outbox.RelayConfig
	lost       map[string]bool // events that the database lost, committed and perhaps sent

	mu             sync.Mutex
	more           *sync.Cond
	asked, written int
	writing        int // writers
	over           bool
}

// A stormRelay is a wiredRelay or a process.
type stormRelay interface {
	Kill() error
	Pause() error
	Continue() error
	Stop(context.Context) error
}

func (s *storm) start(t *testing.T, seed uint64) {
	db, err := pgxpool.ParseConfig(s.w.pg.Load().URL(fmt.Sprint("storm_", s.number)))
	must(t, err)
	db.MaxConns = 20
	db.ConnConfig.DialFunc = s.w.dialPrimary
	pool, err := pgxpool.NewWithConfig(context.Background(), db)
	must(t, err)
	t.Cleanup(pool.Close)
	s.rig, s.seed, s.rng = rigOn(t, pool, s.w.nats), seed, rand.New(rand.NewPCG(seed, 1<<32))
	s.topic, s.unsendable = fmt.Sprintf("storm%d.happened.v1", s.number), fmt.Sprintf("unsendable%d.happened.v1", s.number)
	s.declared = broker.Stream(fmt.Sprint("STORM", s.number), s.topic)
	if s.w.twice {
		s.w.spying.echo(s.declared.Name)
	}
	if !s.w.remembers {
		s.declared.Duplicates = 100 * time.Millisecond // so that the broker's memory of ids hides nothing
	}
	s.more = sync.NewCond(&s.mu)
	s.oldSlot = s.slot(-9)
	s.old.Store(s.w.empties)
	s.options = outbox.RelayConfig{Name: "test", Lease: stormLease, MinPoll: time.Millisecond, MaxPoll: 20 * time.Millisecond,
		SaveEvery: []time.Duration{time.Millisecond, 10 * time.Millisecond, 200 * time.Millisecond}[s.rng.IntN(3)],
		Page:      []int{7, 50, 1000}[s.rng.IntN(3)], RetainEvery: time.Hour, Confirm: 20 * time.Millisecond, Parked: outbox.HoldKey,
		Logger: slog.New(slog.NewTextHandler(&s.said, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	if s.w.empties {
		s.options.RetainEvery = 200 * time.Millisecond // a look at all slots is a hundred times a look for rows
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%+v, page %d, saved each %s, duplicates %s; the relays said:\n%s", s.w.weather, s.options.Page, s.options.SaveEvery,
				s.declared.Duplicates, s.said.String())
		}
	})
}

func (s *storm) startRelay() stormRelay {
	if s.w.processes {
		return s.process(&s.said, func(spec *relaySpec) {
			spec.Sync, spec.Lease, spec.SaveEvery, spec.Page, spec.RetainEvery = s.w.sync, s.options.Lease, s.options.SaveEvery, s.options.Page, s.options.RetainEvery
			spec.Parked = s.options.Parked
		})
	}
	return s.wired(broker.SinkConfig{Sync: s.w.sync, Timeout: 4 * s.options.Lease}, s.w.primary, s.options)
}

// run has the writers commit some events for each fault, so that each befalls relays that are at work.
func (s *storm) run() {
	t := s.t
	s.relays = []stormRelay{s.startRelay(), s.startRelay()}
	var writing sync.WaitGroup
	for w := range 1 + s.rng.IntN(16) {
		writing.Go(func() { s.write(rand.New(rand.NewPCG(s.seed, uint64(w)))) })
	}
	defer writing.Wait()
	defer s.end()
	faults := []func(){s.kill, s.killSending, s.pause, s.rob, s.stopOne, s.cutOff, s.vacuum, s.parkOne}
	s.rng.Shuffle(len(faults), func(i, j int) { faults[i], faults[j] = faults[j], faults[i] })
	for i := range s.w.blows { // all storms of the wave come to it at about the same time
		faults = slices.Insert(faults, 3*(i+1)-1, func() { s.blow(i) })
	}
	for i, fault := range faults {
		s.underway(max(20, s.left(stormEvents)/(len(faults)-i)))
		fault()
	}
	s.eventually("enough is committed", func() (bool, error) { // a crash takes what was committed without waiting for the disk
		var n int
		err := s.pool.QueryRow(context.Background(), "SELECT count(*) FROM truth").Scan(&n)
		s.ask(max(0, stormEvents-n))
		return n >= stormEvents, err
	})
	s.end()
	writing.Wait()
	for _, p := range s.relays {
		must(t, p.Kill())
	}
	s.judge()
}

// underway has more events committed, and waits until some of them are in the stream.
func (s *storm) underway(events int) {
	s.ask(events)
	enough := s.lastSeq() + uint64(s.rng.IntN(events/2))
	for deadline := time.Now().Add(2 * time.Minute); ; s.slower() {
		if s.within(5*time.Second, func() (bool, error) { return s.lastSeq() > enough, nil }) {
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("the relays do not go on, with a lease of %s", s.options.Lease)
		}
	}
}

// slower gives the relays longer leases, where a machine that does other things too cannot keep to them: they only take turns.
func (s *storm) slower() {
	s.options.Lease = min(2*s.options.Lease, 8*time.Second)
	for i, p := range s.relays {
		must(s.t, p.Kill())
		s.replace(i)
	}
}

// eventually looks less often than stacktest's: there are many storms at a time.
func (s *storm) eventually(what string, cond func() (bool, error)) {
	s.t.Helper()
	var last error
	if !s.within(2*time.Minute, func() (ok bool, err error) { ok, last = cond(); return ok, last }) {
		s.t.Fatalf("not within two minutes: %s: %v", what, last)
	}
}

func (s *storm) within(timeout time.Duration, cond func() (bool, error)) bool {
	late, look := time.After(timeout), time.NewTicker(20*time.Millisecond)
	defer look.Stop()
	for {
		if ok, err := cond(); err == nil && ok {
			return true
		}
		select {
		case <-look.C:
		case <-late:
			return false
		}
	}
}

// lastSeq is the stream's, 0 while it cannot be asked.
func (s *storm) lastSeq() uint64 {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	stream, err := s.js.Stream(ctx, s.declared.Name)
	if err != nil {
		return 0
	}
	return stream.CachedInfo().State.LastSeq
}

// query asks the database, which may just have come back.
func (s *storm) query(what string, into any, sql string, args ...any) {
	s.t.Helper()
	s.eventually(what, func() (bool, error) {
		err := s.pool.QueryRow(context.Background(), sql, args...).Scan(into)
		return err == nil, err
	})
}

// judge waits until the stream holds what was committed, and then looks at all of it.
func (s *storm) judge() {
	t, ctx := s.t, context.Background()
	want := s.truth()
	s.w.total.add("events", len(want))
	s.declared.Subjects = append(s.declared.Subjects, s.unsendable)
	s.eventually("the stream can hold all", func() (bool, error) {
		_, err := s.js.UpdateStream(ctx, s.declared)
		return err == nil, err
	})
	tag, err := s.pool.Exec(ctx, "UPDATE oncebox.outbox_parked SET outcome = 'retry' WHERE outcome = ''")
	must(t, err)
	s.w.total.add("events parked", int(tag.RowsAffected()))
	last := s.startRelay()
	if !s.within(2*time.Minute, func() (bool, error) {
		var parked bool
		err := s.pool.QueryRow(ctx, "SELECT EXISTS (SELECT FROM oncebox.outbox_parked WHERE outcome <> 'retried')").Scan(&parked)
		if err != nil || parked {
			return false, err
		}
		return s.drained()
	}) {
		t.Errorf("not within two minutes: all of %d events are stored, and the cursor says so", len(want))
	}
	must(t, last.Kill())
	at, versions := map[string]int{}, map[string]int64{}
	for i, e := range s.log() {
		if first, twice := at[e.ID]; twice {
			t.Errorf("%s stands at %d and at %d", e.ID, first+1, i+1)
		}
		at[e.ID] = i
		if !want[e.ID] {
			if !s.lost[e.ID] {
				t.Errorf("event %d, %s, version %d, was not committed", i, e.Key, e.Version)
			}
			s.w.total.add("events in the stream that the database has lost", 1)
			continue
		}
		if e.Version != versions[e.Key]+1 {
			t.Errorf("event %d is %s's version %d, behind version %d", i, e.Key, e.Version, versions[e.Key])
		}
		versions[e.Key] = e.Version
	}
	missing := 0
	for id := range want {
		if _, is := at[id]; !is {
			missing++
		}
	}
	if missing > 0 {
		t.Errorf("%d of %d committed events are not in the stream", missing, len(want))
	}
	var back []string
	s.query("the watch on the cursor", &back, "SELECT array_agg(what) FROM went_back WHERE NOT (in_stream AND $1)", s.w.loses)
	if len(back) > 0 {
		t.Errorf("the saved cursor went back: %v", back)
	}
	if n := s.said.count(`the log lost events`); n > 0 && !s.w.loses {
		t.Errorf("the relays found %d times that the stream had lost what it had not", n)
	}
	must(t, s.js.DeleteStream(ctx, s.declared.Name))
	s.count()
}

// drained says that all that is committed is in the stream, or parked, and the cursor says so.
func (s *storm) drained() (is bool, err error) {
	err = s.pool.QueryRow(context.Background(), `SELECT c.stream_seq = $1 AND c.n > t.n AND NOT EXISTS (SELECT FROM oncebox.outbox WHERE NOT pg_visible_in_snapshot(xid, t.snap))
		FROM oncebox.outbox_cursor AS c, (SELECT n, snap FROM oncebox.outbox_tick ORDER BY n DESC LIMIT 1) AS t`, int64(s.lastSeq())).Scan(&is)
	return is, err
}

// truth is the events that are committed.
func (s *storm) truth() map[string]bool {
	var ids []string
	s.query("what was committed", &ids, "SELECT COALESCE(array_agg(id::text), '{}') FROM truth")
	return setOf(ids)
}

func setOf(ids []string) map[string]bool {
	set := make(map[string]bool, len(ids))
	for _, id := range ids {
		set[id] = true
	}
	return set
}

// count notes what has to have happened in some storm for all of them to prove anything.
func (s *storm) count() {
	for what, pattern := range map[string]string{
		"rounds with rows of transactions open at the tick before": `msg="relay: round".* late=[1-9]`,
		"rounds that begin below the round before":                 `msg="relay: round".* below=true`,
		"takeovers within a round":                                 `msg="relay: leading".* seq=[1-9]`,
		"takeovers that read messages back":                        `msg="relay: leading".* read_back=[1-9]`,
		"slots emptied":                                            `emptied a slot.*outbox_[0-9]`,
		"relays fenced":                                            `another relay has taken over`,
		"slots that got rows between the look and the lock":        `a slot is left as it is.*not empty`,
		"losses of the stream's end that a relay saw":              `the log lost events`,
	} {
		s.w.total.add(what, s.said.count(pattern))
	}
	s.w.total.add("messages skipped by reading back", s.said.sum(`msg="relay: round".* skipped=([0-9]+)`))
	chained, codes := s.w.spying.of(s.declared.Name)
	s.w.total.add("acknowledgements that came twice", s.w.spying.echoes(s.declared.Name))
	s.w.total.add("refusals of chained messages behind a refused one", chained)
	s.w.total.add("messages and batches refused for their sequence (10071)", codes[10071])
	s.w.total.add("batches refused for an id that the stream knows (10201)", codes[10201])
}

func connectSuper(pg interface{ URL(string) string }, db string) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return pgx.Connect(ctx, pg.URL(db))
}
