package outbox_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"

	"github.com/oncebox/oncebox/broker"
	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/internal/stacktest"
	"github.com/oncebox/oncebox/migrations"
)

// TestNothingIsLostOrReorderedInAStorm runs writers beside relays that are killed, paused, robbed of their lease, held up on their
// way to the broker, answered twice and stopped, while connections are cut, slots are emptied and get rows meanwhile, tables are
// vacuumed, an event comes that the stream cannot hold, a transaction stays open in another database, a backend dies by SIGKILL,
// the broker is killed, and loses its end, and the database fails over to a standby that lacks its end.
//
// In the stream then stands each committed event once and no other, each key's in the order of its versions; the saved cursor
// has never gone back but with the stream, and no epoch has. A failover leaves committed events in the stream that the database
// has lost: no more than that. Storms in which one of the winds did not blow have failed.
//
// One seed is one storm, in a database and a stream of its own. Some at a time share two servers: what befalls those befalls
// all of them. ONCEBOX_STORMS says how many; ONCEBOX_SEED runs one alone. The first that fails is the last.
func TestNothingIsLostOrReorderedInAStorm(t *testing.T) {
	t.Parallel()
	const stations = 2
	seeds := 2 * len(weathers)
	if soaking() {
		seeds = 400
	}
	if text := os.Getenv("ONCEBOX_STORMS"); text != "" {
		var err error
		seeds, err = strconv.Atoi(text)
		must(t, err)
	}
	atOnce := max(1, min(4, seeds/len(weathers)))
	var total totals
	if text := os.Getenv("ONCEBOX_SEED"); text != "" {
		seed, err := strconv.ParseUint(text, 10, 64)
		must(t, err)
		newStation(t, &total).wave(t, int(seed%uint64(len(weathers))), seed)
		t.Logf("the storm's winds: %v", total.all)
		return
	}
	var blowing sync.WaitGroup
	for range stations {
		blowing.Go(func() {
			t.Run("station", func(t *testing.T) {
				st := newStation(t, &total)
				for !t.Failed() {
					n := total.next()
					if n*atOnce >= seeds {
						return
					}
					kind := n % len(weathers)
					wave := make([]uint64, min(atOnce, seeds-n*atOnce))
					for i := range wave { // the seed tells the wave's weather, too
						wave[i] = rand.Uint64()/uint64(len(weathers))*uint64(len(weathers)) + uint64(kind)
					}
					st.wave(t, kind, wave...)
				}
			})
		})
	}
	blowing.Wait()
	whole := !t.Failed()
	for _, name := range slices.Sorted(maps.Keys(total.all)) {
		t.Logf("%6d %s", total.all[name], name)
		if total.all[name] == 0 && whole {
			t.Errorf("%s: 0", name)
		}
	}
}

// totals are what happened, over all storms.
type totals struct {
	mu    sync.Mutex
	all   map[string]int
	waves int
}

func (c *totals) add(what string, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all == nil {
		c.all = map[string]int{}
	}
	c.all[what] += n
}

// next is the number of the next wave.
func (c *totals) next() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waves++
	return c.waves - 1
}

// A station is a Postgres and a nats-server that several storms share.
type station struct {
	t      *testing.T
	total  *totals
	pg     atomic.Pointer[devstack.Postgres]
	nats   *devstack.NATS
	made   int
	idle   *idleWriter
	spying *answers
}

var stationSettings = map[string]string{"max_connections": "400", "wal_writer_delay": "10s", "autovacuum": "off"}

// template is the database that each storm's is a copy of.
const template = "storm"

func newStation(t *testing.T, total *totals) *station {
	ctx := context.Background()
	st := &station{t: t, total: total, nats: stacktest.NATS(t)}
	pg, err := devstack.StartPostgres(ctx, devstack.PostgresConfig{Settings: stationSettings})
	must(t, err)
	t.Cleanup(func() { must(t, pg.Remove()) })
	st.pg.Store(pg)
	st.exec("CREATE DATABASE " + template)
	pool, err := pgxpool.New(ctx, pg.URL(template))
	must(t, err)
	defer pool.Close()
	must(t, migrations.Up(ctx, pool, migrations.Outbox))
	for _, sql := range stormSQL {
		_, err := pool.Exec(ctx, sql)
		must(t, err)
	}
	st.idle = newIdleWriter(t, pg)
	st.spying = spyOn(t, stacktest.Connect(t, st.nats, nats.NoEcho()))
	return st
}

// A wave is some storms at a time on one station.
type wave struct {
	*station
	*weather
	meeting *meeting
	storms  []*storm
}

func (st *station) wave(t *testing.T, kind int, seeds ...uint64) {
	w := &wave{station: st, weather: &weathers[kind], meeting: newMeeting(len(seeds))}
	for range seeds {
		st.made++
		st.exec(fmt.Sprintf("CREATE DATABASE storm_%d TEMPLATE %s", st.made, template))
		w.storms = append(w.storms, &storm{w: w, number: st.made})
	}
	var blowing sync.WaitGroup
	for i, seed := range seeds {
		blowing.Go(func() {
			t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
				defer w.meeting.leave()
				w.storms[i].start(t, seed)
				w.storms[i].run()
			})
		})
	}
	blowing.Wait()
	for _, s := range w.storms {
		st.exec(fmt.Sprintf("DROP DATABASE storm_%d WITH (FORCE)", s.number))
	}
}

// A weather is what befalls all storms of a wave.
type weather struct {
	blows     []func(*wave, *testing.T)
	sync      broker.Sync
	empties   bool // slots; then the stream's end is not lost: what was emptied cannot be sent again
	remembers bool // the broker, the ids that it has stored, for two minutes
	twice     bool // come the broker's acknowledgements
	loses     bool // the stream its end
	failsOver bool
	processes bool // relays are processes
}

var weathers = []weather{
	{sync: broker.SyncAlways, empties: true, remembers: true, blows: []func(*wave, *testing.T){(*wave).killBackend, (*wave).restartBroker}},
	{sync: broker.SyncInterval, loses: true, blows: []func(*wave, *testing.T){(*wave).killBackend, (*wave).loseEnd}},
	{sync: broker.SyncInterval, empties: true, twice: true, blows: []func(*wave, *testing.T){(*wave).restartBroker, (*wave).killBackend}},
	{sync: broker.SyncAlways, loses: true, blows: []func(*wave, *testing.T){(*wave).loseEnd, (*wave).killBackend}},
	{sync: broker.SyncInterval, empties: true, processes: true, twice: true, blows: []func(*wave, *testing.T){(*wave).restartBroker, (*wave).killBackend}},
	{sync: broker.SyncAlways, failsOver: true, remembers: true, twice: true, blows: []func(*wave, *testing.T){(*wave).restartBroker, (*wave).failOver}},
	{sync: broker.SyncInterval, failsOver: true, blows: []func(*wave, *testing.T){(*wave).failOver, (*wave).restartBroker}},
}

// exec runs a statement as the superuser.
func (st *station) exec(sql string) {
	st.t.Helper()
	conn, err := connectSuper(st.pg.Load(), "postgres")
	must(st.t, err)
	defer conn.Close(context.Background())
	_, err = conn.Exec(context.Background(), sql)
	must(st.t, err)
}
