package outbox_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"

	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/internal/stacktest"
)

// primary is where the database is, whatever address it had before.
func (st *station) primary(string) string { return address(st.pg.Load()) }

func address(pg *devstack.Postgres) string {
	_, rest, _ := strings.Cut(pg.URL("postgres"), "@")
	host, _, _ := strings.Cut(rest, "/")
	return host
}

func (st *station) dialPrimary(ctx context.Context, network, was string) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, network, st.primary(was))
}

// killBackend has Postgres throw its shared memory away and recover, with what it had on disk. A relay has just sent what was
// committed without waiting for that: its own tick has to have taken the commit there.
func (w *wave) killBackend(t *testing.T) {
	ctx := context.Background()
	conn, err := connectSuper(w.pg.Load(), "postgres")
	must(t, err)
	defer conn.Close(ctx)
	for _, s := range w.storms {
		s.eventually("the writers rest", func() (bool, error) { return s.quiet(), nil })
	}
	for _, s := range w.storms[1:] {
		s.lock("BEGIN; SELECT FROM oncebox.outbox_cursor FOR UPDATE")
	}
	w.storms[0].sendUnsaved()
	var pid int
	must(t, conn.QueryRow(ctx, `SELECT pid FROM pg_stat_activity WHERE datname LIKE 'storm_%' ORDER BY state = 'active' DESC, random() LIMIT 1`).Scan(&pid))
	must(t, syscall.Kill(pid, syscall.SIGKILL))
	stacktest.Eventually(t, time.Minute, "every connection is cut", func() (bool, error) { return conn.Ping(ctx) != nil, nil })
	w.idle.again(t, w.pg.Load())
	w.total.add("storms in which a backend was killed", len(w.storms))
}

// lock locks something in the storm's database until that crashes.
func (s *storm) lock(sql string) {
	conn, err := connectSuper(s.w.pg.Load(), fmt.Sprint("storm_", s.number))
	must(s.t, err)
	s.t.Cleanup(func() { _ = conn.Close(context.Background()) })
	_, err = conn.Exec(context.Background(), sql)
	must(s.t, err)
}

// sendUnsaved commits events without waiting for the disk, and has them sent, while the relay cannot save its cursor: that would
// take all that was committed to disk.
func (s *storm) sendUnsaved() {
	s.eventually("all is sent and saved", s.drained)
	before := s.lastSeq()
	s.lock("BEGIN; SET LOCAL synchronous_commit = off; SELECT change('" + s.topic + "', 'late', NULL); COMMIT; SELECT pg_advisory_lock(1)")
	// Not, if the relay came to renew its lease just before it came to the event.
	if s.within(time.Second, func() (bool, error) { return s.lastSeq() > before, nil }) {
		s.w.total.add("crashes behind an event that was sent and not saved", 1)
	}
}

func (w *wave) restartBroker(t *testing.T) {
	must(t, w.nats.Kill())
	must(t, w.nats.Restart(context.Background()))
	w.total.add("storms in which the broker was killed", len(w.storms))
}

// loseEnd lets the broker forget what it stored since the copy of its files.
func (w *wave) loseEnd(t *testing.T) {
	ctx := context.Background()
	must(t, w.nats.Kill())
	saved := filepath.Join(t.TempDir(), "store")
	must(t, os.CopyFS(saved, os.DirFS(w.nats.StorePath())))
	must(t, w.nats.Restart(ctx))
	w.eachSaves()
	must(t, w.nats.Kill())
	must(t, os.RemoveAll(w.nats.StorePath()))
	must(t, os.CopyFS(w.nats.StorePath(), os.DirFS(saved)))
	must(t, w.nats.Restart(ctx))
	w.total.add("storms in which the stream lost its end", len(w.storms))
}

// eachSaves waits until each storm's relay has stored more, and saved so.
func (w *wave) eachSaves() {
	before := map[*storm]uint64{}
	for _, s := range w.storms {
		s.eventually("the broker answers", func() (bool, error) { before[s] = s.lastSeq(); return before[s] > 0, nil })
		s.ask(100)
	}
	for _, s := range w.storms {
		s.eventually("more is stored, and the cursor saved", func() (more bool, err error) {
			err = s.pool.QueryRow(context.Background(), "SELECT stream_seq > $1 FROM oncebox.outbox_cursor", int64(before[s])).Scan(&more)
			return more, err
		})
	}
}

// failOver promotes a standby that lacks what was committed last.
func (w *wave) failOver(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	old := w.pg.Load()
	next, err := devstack.StartStandby(ctx, old, devstack.PostgresConfig{Settings: stationSettings})
	must(t, err)
	w.t.Cleanup(func() { must(w.t, next.Remove()) })
	committed := func(s *storm, pg *devstack.Postgres) map[string]bool {
		conn, err := connectSuper(pg, fmt.Sprint("storm_", s.number))
		must(t, err)
		defer conn.Close(ctx)
		var ids []string
		must(t, conn.QueryRow(ctx, "SELECT array_agg(id::text) FROM truth").Scan(&ids))
		return setOf(ids)
	}
	must(t, next.CutOff(ctx))
	for _, s := range w.storms {
		had := len(s.truth())
		s.ask(100)
		s.eventually("more is committed", func() (more bool, err error) {
			err = s.pool.QueryRow(ctx, "SELECT count(*) > $1 FROM truth", had).Scan(&more)
			return more, err
		})
	}
	w.eachSaves()
	w.eachSaves()
	must(t, old.StopImmediate(ctx))
	must(t, next.Promote(ctx))
	has := map[*storm]map[string]bool{}
	for _, s := range w.storms {
		has[s] = committed(s, next)
	}
	w.pg.Store(next)
	must(t, old.Restart(ctx)) // nobody finds it but us
	for _, s := range w.storms {
		s.lost = committed(s, old)
		maps.DeleteFunc(s.lost, func(id string, _ bool) bool { return has[s][id] })
		if len(s.lost) == 0 {
			t.Errorf("the standby of storm %d lacks nothing", s.number)
		}
	}
	must(t, old.StopImmediate(ctx))
	w.idle.again(t, next)
	w.total.add("storms in which the database failed over", len(w.storms))
}

// An idleWriter is a transaction in another database that has an xid, and stays open.
type idleWriter struct{ conn *pgx.Conn }

func newIdleWriter(t *testing.T, pg *devstack.Postgres) *idleWriter {
	w := &idleWriter{}
	w.again(t, pg)
	t.Cleanup(func() { w.conn.Close(context.Background()) })
	return w
}

func (w *idleWriter) again(t *testing.T, pg *devstack.Postgres) {
	stacktest.Eventually(t, time.Minute, "Postgres is back", func() (bool, error) {
		conn, err := connectSuper(pg, "postgres")
		if err != nil {
			return false, err
		}
		w.conn = conn
		_, err = conn.Exec(context.Background(), "BEGIN; SELECT pg_current_xact_id()")
		return err == nil, err
	})
}

// A meeting lets the last that comes do something while the others wait.
type meeting struct {
	mu            sync.Mutex
	changed       *sync.Cond
	size, here, n int
	broken        bool
}

func newMeeting(size int) *meeting {
	m := &meeting{size: size}
	m.changed = sync.NewCond(&m.mu)
	return m
}

// all returns when all have come and the last has done what it does; false, when one will not come any more.
func (m *meeting) all(do func()) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.here++; m.here == m.size && !m.broken {
		m.mu.Unlock()
		defer func() { m.changed.Broadcast() }()
		func() {
			defer m.mu.Lock()
			do()
		}()
		m.here, m.n = 0, m.n+1
		return true
	}
	meeting := m.n
	for meeting == m.n && !m.broken {
		m.changed.Wait()
	}
	return meeting != m.n
}

// leave is for one that comes to no meeting any more.
func (m *meeting) leave() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.broken = true
	m.changed.Broadcast()
}

// answers are the broker's refusals of what relays published, by stream.
type answers struct {
	mu      sync.Mutex
	codes   map[string]map[int]int
	chained map[string]int // refusals of one chain behind its first
	refused map[string]bool
	echoed  map[string]int // acknowledgements that were said twice, of the streams of which they are
	acked   map[string]*nats.Msg
	nc      *nats.Conn
}

// spyOn listens to what the broker answers to relays, whose inboxes have their stream's name, for as long as the connection is
// there.
func spyOn(t testing.TB, nc *nats.Conn) *answers {
	a := &answers{codes: map[string]map[int]int{}, chained: map[string]int{}, refused: map[string]bool{}, echoed: map[string]int{},
		acked: map[string]*nats.Msg{}, nc: nc}
	_, err := nc.Subscribe("_INBOX.>", func(m *nats.Msg) {
		var said struct {
			Stream string
			Seq    uint64
			Error  *struct {
				Code int `json:"err_code"`
			}
		}
		if json.Unmarshal(m.Data, &said) != nil {
			return
		}
		stream := strings.Split(m.Subject, ".")[1]
		chain := m.Subject[:strings.LastIndex(m.Subject, ".")]
		a.mu.Lock()
		defer a.mu.Unlock()
		if said.Error == nil {
			if said.Stream == stream && said.Seq > 0 {
				a.acked[stream] = m
				a.again(stream)
			}
			return
		}
		if a.codes[stream] == nil {
			a.codes[stream] = map[int]int{}
		}
		a.codes[stream][said.Error.Code]++
		if a.refused[chain] {
			a.chained[stream]++
		}
		a.refused[chain] = true
	})
	must(t, err)
	must(t, nc.Flush())
	return a
}

// inbox is where the relays of a stream get their answers.
func inbox(stream string) nats.Option { return nats.CustomInboxPrefix("_INBOX." + stream) }

// echo has each acknowledgement of a stream come twice, as they do from a cluster's old leader and its new one.
func (a *answers) echo(stream string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.echoed[stream] = 0
}

// again says the last acknowledgement of a stream once more, if its are to come twice. The caller holds a.mu.
func (a *answers) again(stream string) {
	_, twice := a.echoed[stream]
	if m := a.acked[stream]; twice && m != nil && a.nc.Publish(m.Subject, m.Data) == nil {
		a.echoed[stream]++
	}
}

// sayAgain says a stream's last acknowledgement again and again, and returns whether its are to come twice.
func (a *answers) sayAgain(stream string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for range 4 {
		a.again(stream)
	}
	_, twice := a.echoed[stream]
	return twice
}

// echoes is how many came twice.
func (a *answers) echoes(stream string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.echoed[stream]
}

// of is how many refusals a stream's relays had, by code, and how many of them followed another.
func (a *answers) of(stream string) (chained int, codes map[int]int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.chained[stream], maps.Clone(a.codes[stream])
}
