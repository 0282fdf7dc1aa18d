package chaos

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/oncebox/oncebox/idempotency"
	"github.com/oncebox/oncebox/idempotency/redisstore"
	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/internal/stacktest"
	"github.com/oncebox/oncebox/migrations"
)

const (
	linearOps     = 20_000
	linearKeys    = 500
	linearWorkers = 16
)

// An observation is what one call on a store told about a key.
type observation struct {
	what  string // fresh, replay, complete, maybe, effects
	value string // the answer, or the only effect
}

// onceModel is what a store promises of one key: it has no answer until an attempt completes, and then that one for ever. Where
// effects can be read they are the answer's, no more and no less.
var onceModel = porcupine.NondeterministicModel{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		keys := map[any][]porcupine.Operation{}
		for _, op := range history {
			keys[op.Input] = append(keys[op.Input], op)
		}
		var parts [][]porcupine.Operation
		for _, p := range keys {
			parts = append(parts, p)
		}
		return parts
	},
	Init: func() []any { return []any{""} },
	Step: func(state, _, output any) []any {
		s, o := state.(string), output.(observation)
		switch {
		case o.what == "fresh" && s == "", (o.what == "replay" || o.what == "effects") && s == o.value:
			return []any{s}
		case o.what == "complete" && s == "":
			return []any{o.value}
		case o.what == "maybe" && s == "": // a reply was lost: now, later, or never
			return []any{"", o.value}
		case o.what == "maybe":
			return []any{s}
		}
		return nil
	},
}

// A history is what all workers saw.
type history struct {
	mu    sync.Mutex
	begun time.Time
	ops   []porcupine.Operation
	seen  map[string]int
}

// len is how many operations there are.
func (h *history) len() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.ops)
}

func (h *history) now() int64 { return int64(time.Since(h.begun)) }

func (h *history) add(worker int, key string, call int64, what, value string) {
	end := h.now()
	if what == "maybe" {
		end = math.MaxInt64
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seen[what]++
	h.ops = append(h.ops, porcupine.Operation{ClientId: worker, Input: key, Output: observation{what, value}, Call: call, Return: end})
}

func (h *history) count(what string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seen[what]++
}

// A bench is a store under test with its surroundings.
type bench struct {
	stores []idempotency.Store
	// effect writes the attempt's effect, where the store has a transaction for it; read returns the effects of a key.
	effect func(ctx context.Context, key, value string) error
	read   func(ctx context.Context, key string) (string, error)
	// hold is how long an attempt now and then takes.
	hold time.Duration
}

// work makes operations until there are enough, on keys that move on with them.
func (b *bench) work(ctx context.Context, worker int, h *history, rnd *rand.Rand) {
	for n := 0; n < linearOps; n = h.len() {
		key := fmt.Sprint("key-", min(max(n*linearKeys/linearOps+rnd.IntN(20)-10, 0), linearKeys-1))
		call := h.now()
		if b.read != nil && rnd.IntN(8) == 0 {
			if value, err := b.read(ctx, key); err == nil {
				h.add(worker, key, call, "effects", value)
			}
			continue
		}
		req := idempotency.Request{Tenant: "t", Key: idempotency.HashKey(key), Retention: time.Hour, Guarded: true}
		a, out, err := b.stores[rnd.IntN(len(b.stores))].Begin(ctx, req)
		switch {
		case err != nil:
			h.count("error")
			pause(ctx, 5*time.Millisecond)
		case out.State == idempotency.Replay:
			h.add(worker, key, call, "replay", string(out.Record.Response.Body))
		case out.State == idempotency.Fresh:
			h.add(worker, key, call, "fresh", "")
			b.attempt(worker, h, key, fmt.Sprint(worker, "-", call), a, rnd)
		}
	}
}

// attempt is a handler that does not listen to its context, as one does not that was paused.
func (b *bench) attempt(worker int, h *history, key, value string, a idempotency.Attempt, rnd *rand.Rand) {
	ctx := context.WithoutCancel(a.Context())
	settle, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	err := error(nil)
	if b.effect != nil {
		err = b.effect(ctx, key, value)
	}
	if rnd.IntN(8) == 0 {
		<-time.After(b.hold)
	}
	if err != nil || rnd.IntN(2) == 0 {
		if err := a.Abandon(settle, idempotency.MaybeApplied); err != nil {
			h.count("error")
		}
		return
	}
	call := h.now()
	err = a.Complete(settle, idempotency.Response{Status: http.StatusCreated, Header: http.Header{}, Body: []byte(value)})
	switch {
	case err == nil:
		h.add(worker, key, call, "complete", value)
	case errors.Is(err, idempotency.ErrOutcomeUnknown), errors.Is(err, idempotency.ErrNotYetKept):
		h.add(worker, key, call, "maybe", value)
	case errors.Is(err, idempotency.ErrLeaseLost):
		h.count("lost")
	default:
		h.count("error")
	}
}

// check runs the workers beside the faults, and fails if what they saw is not what one after the other could have seen. What has to
// have happened meanwhile is what it and the workers count.
func (b *bench) check(t *testing.T, disturb func(ctx context.Context, rnd *rand.Rand, h *history), happened ...string) {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	h := &history{begun: time.Now(), seen: map[string]int{}}
	ctx, stop := context.WithCancel(context.Background())
	var workers, faults sync.WaitGroup
	faults.Go(func() { disturb(ctx, rand.New(rand.NewPCG(seed, 0)), h) })
	for i := range linearWorkers {
		workers.Go(func() { b.work(context.Background(), i, h, rand.New(rand.NewPCG(seed, uint64(i+1)))) })
	}
	workers.Wait()
	stop()
	faults.Wait()
	keys := len(onceModel.Partition(h.ops))
	t.Logf("%d operations on %d keys: %v", len(h.ops), keys, h.seen)
	if keys != linearKeys {
		t.Errorf("they are of %d keys, want %d", keys, linearKeys)
	}
	for _, what := range append(happened, "fresh", "replay", "complete") {
		if h.seen[what] == 0 {
			t.Errorf("there was no %s", what)
		}
	}
	if res := porcupine.CheckOperationsTimeout(onceModel.ToModel(), h.ops, time.Minute); res != porcupine.Ok {
		t.Errorf("the history is %s, want Ok", res)
	}
}

// Invariant: the Postgres store is linearizable, and the effects are those of the answers, while backends are killed and stand
// still, and replies get lost.
func TestPostgresKeysAreLinearizable(t *testing.T) {
	t.Parallel()
	_, pg := shared.get(t)
	role := fmt.Sprintf("keys_%d", systems.Add(1))
	url, err := pg.CreateService(t.Context(), role)
	if err != nil {
		t.Fatal(err)
	}
	direct := openPool(t, url)
	if err := migrations.Up(t.Context(), direct, migrations.Idempotency); err != nil {
		t.Fatal(err)
	}
	if _, err := direct.Exec(t.Context(), "CREATE TABLE effect (key text, value text)"); err != nil {
		t.Fatal(err)
	}
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	way := newLinkTo(t, "postgres", fmt.Sprintf("%s:%d", cfg.ConnConfig.Host, cfg.ConnConfig.Port))
	cfg.ConnConfig.Host, cfg.ConnConfig.Port = way.hostPort(t)
	cut, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cut.Close)
	b := &bench{hold: 10 * time.Millisecond,
		effect: func(ctx context.Context, key, value string) error {
			tx, _ := idempotency.Tx(ctx)
			_, err := tx.Exec(ctx, "INSERT INTO effect VALUES ($1, $2)", key, value)
			return err
		},
		read: func(ctx context.Context, key string) (value string, err error) {
			err = direct.QueryRow(ctx, "SELECT COALESCE(string_agg(value, ' and '), '') FROM effect WHERE key = $1", key).Scan(&value)
			return value, err
		}}
	for _, pool := range []*pgxpool.Pool{direct, cut} {
		s, err := idempotency.NewPostgres(pool, idempotency.PostgresConfig{})
		if err != nil {
			t.Fatal(err)
		}
		b.stores = append(b.stores, s)
	}
	super, err := pgx.Connect(t.Context(), pg.URL(role))
	if err != nil {
		t.Fatal(err)
	}
	defer super.Close(context.Background())
	// Backends that work for an attempt: one is killed, another stands still.
	const working = ` FROM pg_stat_activity WHERE usename = $1 AND state = 'idle in transaction' ORDER BY random() LIMIT 1`
	b.check(t, func(ctx context.Context, rnd *rand.Rand, h *history) {
		for ctx.Err() == nil {
			gone, err := super.Exec(context.WithoutCancel(ctx), "SELECT pg_terminate_backend(pid)"+working, role)
			if err != nil {
				t.Error(err)
			}
			if gone.RowsAffected() > 0 {
				h.count("kill")
			}
			pause(ctx, time.Duration(rnd.IntN(40))*time.Millisecond)
			switch rnd.IntN(5) {
			case 0:
				way.cut()
				pause(context.Background(), time.Duration(rnd.IntN(20))*time.Millisecond)
				way.mend(t)
				h.count("cut")
			case 1:
				var pid int
				if super.QueryRow(context.WithoutCancel(ctx), "SELECT pid"+working, role).Scan(&pid) != nil || syscall.Kill(pid, syscall.SIGSTOP) != nil {
					continue // there was none, or it is gone
				}
				pause(context.Background(), time.Duration(rnd.IntN(60))*time.Millisecond)
				if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
					t.Error(err)
				}
				h.count("pause")
			}
		}
	}, "kill", "cut", "pause", "maybe", "error")
}

// Invariant: a guarded Redis store is linearizable while attempts outlive their leases, the server is killed and stands still, and
// replies get lost.
func TestRedisKeysAreLinearizable(t *testing.T) {
	t.Parallel()
	// Written before each reply, where everysec may be late: what was confirmed is there after the kill of a process.
	server := stacktest.Redis(t, func(cfg *devstack.RedisConfig) { cfg.Settings = map[string]string{"appendfsync": "no"} })
	o, err := redis.ParseURL(server.URL())
	if err != nil {
		t.Fatal(err)
	}
	o.ContextTimeoutEnabled = true
	way := newLinkTo(t, "redis", o.Addr)
	far := *o
	far.Addr, far.MaxRetries, far.DialerRetries = way.proxy.Listen, -1, 1
	const lease = 400 * time.Millisecond
	b := &bench{hold: 3 * lease} // an attempt that outlives a cut, in which another took its key
	for _, o := range []*redis.Options{o, &far} {
		client := redis.NewClient(o)
		t.Cleanup(func() { client.Close() })
		s, err := redisstore.New(t.Context(), client, redisstore.Config{Lease: lease, Margin: lease / 5, CommandTimeout: 2 * lease / 3})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			over, cancel := context.WithCancel(context.Background())
			cancel()
			_ = s.Close(over)
		})
		b.stores = append(b.stores, s)
	}
	b.check(t, func(ctx context.Context, rnd *rand.Rand, h *history) {
		for round := 1; ctx.Err() == nil; round++ {
			for next := h.len() + 400 + rnd.IntN(600); h.len() < next && ctx.Err() == nil; { // by the work and no clock: a slow machine gets there too
				pause(ctx, 5*time.Millisecond)
			}
			way.cut() // for longer than a lease
			pause(context.Background(), 3*lease/2)
			way.mend(t)
			h.count("cut")
			switch {
			case round%5 == 0: // rarely: the client stays away for a second
				if err := errors.Join(server.Kill(), server.Restart(context.WithoutCancel(ctx))); err != nil {
					t.Error(err)
				}
				h.count("kill")
			case rnd.IntN(2) == 0: // every lease ends meanwhile
				err := server.Pause()
				pause(context.Background(), 3*lease/2)
				if err := errors.Join(err, server.Continue()); err != nil {
					t.Error(err)
				}
				h.count("pause")
			}
		}
	}, "kill", "cut", "pause", "maybe", "lost", "error")
}

func openPool(t *testing.T, url string) *pgxpool.Pool {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
