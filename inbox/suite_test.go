package inbox_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/inbox"
	"github.com/oncebox/oncebox/internal/stacktest"
)

// play does what the event's data say.
func play(ctx context.Context, tx pgx.Tx, e oncebox.Event) error {
	switch word, _, _ := bytes.Cut(e.Data, []byte(" ")); string(word) {
	case "refused": // before anything is written
		return inbox.Permanent("refused", errors.New("no"))
	case "unknown":
		return inbox.ErrUnknownType
	case "panic":
		panic("at the disco")
	}
	if err := effect(ctx, tx, e); err != nil {
		return err
	}
	switch word, _, _ := bytes.Cut(e.Data, []byte(" ")); string(word) {
	case "regretted": // after its effect
		return inbox.Permanent("regretted", errors.New("no"))
	case "broken": // breaks the transaction
		_, err := tx.Exec(ctx, "SELECT 1/0")
		return err
	case "passing":
		return errors.New("passing")
	}
	return nil
}

// playAll does the same for a group in one statement.
func playAll(ctx context.Context, tx pgx.Tx, es []oncebox.Event) []error {
	errs := make([]error, len(es))
	var ids []string
	var data [][]byte
	broken := false
	for i, e := range es {
		switch word, _, _ := bytes.Cut(e.Data, []byte(" ")); string(word) {
		case "refused":
			errs[i] = inbox.Permanent("refused", errors.New("no"))
			continue
		case "unknown":
			errs[i] = inbox.ErrUnknownType
			continue
		case "panic":
			panic("at the disco")
		case "regretted":
			if len(es) > 1 {
				return slices.Repeat([]error{errors.New("one of them regrets")}, len(es))
			}
			errs[i] = inbox.Permanent("regretted", errors.New("no"))
		case "passing":
			return slices.Repeat([]error{errors.New("passing")}, len(es))
		case "broken":
			broken = true
		}
		ids, data = append(ids, e.ID), append(data, e.Data)
	}
	_, err := tx.Exec(ctx, "INSERT INTO effect SELECT * FROM unnest($1::text[], $2::bytea[])", ids, data)
	if err == nil && broken {
		_, err = tx.Exec(ctx, "SELECT 1/0")
	}
	if err != nil {
		return slices.Repeat([]error{err}, len(es))
	}
	return errs
}

// ways are those in which an inbox handles messages.
var ways = map[string]func(*testing.T, *inbox.Inbox) message.NoPublishHandlerFunc{
	"one": func(_ *testing.T, in *inbox.Inbox) message.NoPublishHandlerFunc { return in.One(play) },
	"each of a group": func(t *testing.T, in *inbox.Inbox) message.NoPublishHandlerFunc {
		h, err := in.Group(inbox.Each(play), inbox.GroupConfig{Max: 40, Lanes: 3})
		must(t, err)
		return h
	},
	"a group as a set": func(t *testing.T, in *inbox.Inbox) message.NoPublishHandlerFunc {
		h, err := in.Group(playAll, inbox.GroupConfig{Max: 40, Lanes: 3})
		must(t, err)
		return h
	},
}

// eachWay runs f for each way of handling.
func eachWay(t *testing.T, f func(r *rig, handle message.NoPublishHandlerFunc)) {
	t.Parallel()
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			f(r, way(t, r.in))
		})
	}
}

// deliver hands messages in at once, and returns their errors.
func deliver(handle message.NoPublishHandlerFunc, messages ...*message.Message) []error {
	errs := make([]error, len(messages))
	var wg sync.WaitGroup
	for i, m := range messages {
		wg.Go(func() { errs[i] = handle(m) })
	}
	wg.Wait()
	return errs
}

func again(e oncebox.Event, delivered int) *message.Message {
	m := e.Message()
	m.SetContext(oncebox.WithDelivered(context.Background(), delivered))
	return m
}

// Good ones, each kind of bad one, twins and conflicts, in any order and any groups: each comes to its own end.
func TestEachMessageComesToItsOwnEnd(t *testing.T) {
	eachWay(t, func(r *rig, handle message.NoPublishHandlerFunc) {
		const goods, bads = 200, 3
		var messages []*message.Message
		var good []oncebox.Event
		for i := range goods {
			e := event(fmt.Sprint("good ", i))
			good = append(good, e)
			messages = append(messages, e.Message())
			if i%20 == 0 {
				messages = append(messages, e.Message()) // its twin
			}
		}
		kinds := []string{"refused", "unknown", "regretted", "broken", "passing", "panic"}
		for _, kind := range kinds {
			for i := range bads {
				messages = append(messages, event(fmt.Sprint(kind, " ", i)).Message())
			}
		}
		for i := range bads {
			messages = append(messages, message.NewMessage(fmt.Sprint("no event ", i), []byte{0, 0xff}))
		}
		rand.Shuffle(len(messages), func(i, j int) { messages[i], messages[j] = messages[j], messages[i] })
		comeAgain := 0
		for i, err := range deliver(handle, messages...) {
			word, _, _ := bytes.Cut(messages[i].Payload, []byte(" "))
			passing := string(word) == "passing" || string(word) == "panic"
			if passing {
				comeAgain++
			}
			if passing != (err != nil) {
				r.t.Errorf("%s: %v", messages[i].Payload, err)
			}
		}
		if comeAgain != 2*bads {
			r.t.Errorf("%d come again, want %d", comeAgain, 2*bads)
		}
		r.wantEffects(goods)
		if n := r.count("(SELECT DISTINCT id FROM effect) AS e"); n != goods {
			r.t.Errorf("%d messages have an effect, want %d", n, goods)
		}
		for class, want := range map[string]int{"refused": bads, "regretted": bads, "bad_data": bads, "undecodable": bads} {
			if n := r.count("oncebox.dead_letter WHERE class = $1", class); n != want {
				r.t.Errorf("%d dead letters of class %s, want %d", n, class, want)
			}
		}
		if n := r.count("oncebox.inbox WHERE state = 'done'"); n != goods+bads {
			r.t.Errorf("%d done, want %d", n, goods+bads)
		}
		// All of it once more, as from a broker that lost its acknowledgements, and twins with other contents.
		conflict := good[0]
		conflict.Data = []byte("good but other")
		messages = append([]*message.Message{again(conflict, 1), again(conflict, 1)}, messages...)
		deliver(handle, messages...)
		r.wantEffects(goods)
		if n := r.count("oncebox.dead_letter WHERE class = 'conflict'"); n != 1 {
			r.t.Errorf("%d conflicts, want 1", n)
		}
		if n := r.count("oncebox.dead_letter"); n != 4*bads+1 {
			r.t.Errorf("%d dead letters, want %d", n, 4*bads+1)
		}
	})
}

func TestAThousandDuplicatesHaveOneEffect(t *testing.T) {
	eachWay(t, func(r *rig, handle message.NoPublishHandlerFunc) {
		e := event("good")
		messages := make([]*message.Message, 1000)
		for i := range messages {
			messages[i] = again(e, 1+i%2)
		}
		for _, err := range deliver(handle, messages...) {
			must(r.t, err)
		}
		r.wantEffects(1)
	})
}

// Two processes hold the same messages, in opposite orders: they wait for each other, and no transaction is lost to a deadlock.
func TestOverlappingGroupsOfTwoProcesses(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	const n = 1000
	failed := &batchErrors{t: t}
	cfg := r.pool.Config()
	cfg.ConnConfig.Tracer = failed
	messages := make([]oncebox.Event, n)
	for i := range messages {
		messages[i] = event("good")
	}
	// A third one holds the message in the middle until both wait: each has come that far by then, from one end or the other.
	ctx := context.Background()
	third, err := r.pool.Begin(ctx)
	must(t, err)
	defer third.Rollback(ctx)
	_, err = third.Exec(ctx, `INSERT INTO oncebox.inbox (consumer, source, id, tenant_id, seq, digest, state)
		SELECT 'consumer', 'test', id, '', 0, 0, 'done' FROM unnest($1::uuid[]) AS m (id) ORDER BY id OFFSET $2 LIMIT 1`,
		eventIDs(messages), n/2)
	must(t, err)
	var wg sync.WaitGroup
	for _, up := range []bool{true, false} {
		pool, err := pgxpool.NewWithConfig(context.Background(), cfg)
		must(t, err)
		t.Cleanup(pool.Close)
		h, err := (&rig{t: t, pool: pool}).inboxWith(inbox.Config{Consumer: "consumer", LockTimeout: time.Minute}).
			Group(playAll, inbox.GroupConfig{Max: n, Linger: time.Minute, Lanes: 1})
		must(t, err)
		ordered := slices.SortedFunc(slices.Values(messages), func(a, b oncebox.Event) int { return cmp.Compare(a.ID, b.ID) })
		if !up {
			slices.Reverse(ordered)
		}
		wg.Go(func() {
			for _, err := range inOrder(h, ordered...) {
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	stacktest.Eventually(t, 20*time.Second, "both wait", func() (bool, error) {
		return r.count("pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'") == 2, nil
	})
	must(t, third.Rollback(ctx))
	wg.Wait()
	r.wantEffects(n)
}

func eventIDs(es []oncebox.Event) []string {
	ids := make([]string, len(es))
	for i, e := range es {
		ids[i] = e.ID
	}
	return ids
}

// batchErrors fails a test when Postgres refuses a batch, also where it is tried again.
type batchErrors struct{ t *testing.T }

func (*batchErrors) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}
func (*batchErrors) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}
func (*batchErrors) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	return ctx
}
func (*batchErrors) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}
func (b *batchErrors) TraceBatchEnd(_ context.Context, _ *pgx.Conn, d pgx.TraceBatchEndData) {
	if d.Err != nil {
		b.t.Errorf("a batch failed: %v", d.Err)
	}
}

// A forgery and a redelivery of the message whose id it bears stand in one group.
func TestAForgeryBesideTheRedeliveryOfItsID(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	h, err := r.in.Group(playAll, inbox.GroupConfig{Max: 4, Linger: time.Minute})
	must(t, err)
	genuine := event("good")
	forged := genuine
	forged.Data = []byte("good but forged")
	must(t, r.in.One(play)(genuine.Message()))
	for _, err := range inOrder(h, forged, genuine, forged, genuine) {
		must(t, err)
	}
	r.wantEffects(1)
	r.wantLetters("conflict")
}

// A key's messages run in the order in which they were handed over, and two groups that share a key never overlap.
func TestKeysRunInSequence(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var (
		mu      sync.Mutex
		running = map[string]int{}
		order   = map[string][]int64{}
		groups  int
	)
	h, err := r.in.Group(func(ctx context.Context, tx pgx.Tx, es []oncebox.Event) []error {
		mu.Lock()
		groups++
		here := map[string]bool{}
		for _, e := range es {
			here[e.Key] = true
			order[e.Key] = append(order[e.Key], e.Version)
		}
		for k := range here {
			if running[k]++; running[k] > 1 {
				t.Errorf("two groups of %s at once", k)
			}
		}
		mu.Unlock()
		defer func() {
			mu.Lock()
			defer mu.Unlock()
			for k := range here {
				running[k]--
			}
		}()
		return playAll(ctx, tx, es)
	}, inbox.GroupConfig{Max: 50, Lanes: 4})
	must(t, err)
	const n, keys = 1000, 5
	// As a subscriber does: a key's next message goes out when the one before has been taken.
	var wg sync.WaitGroup
	for k := range keys {
		wg.Go(func() {
			for v := range n / keys {
				e := event("good")
				e.ID, e.Key, e.Version = uuid.NewString(), fmt.Sprint("key ", k), int64(v)
				m, taken := e.Message(), make(chan struct{})
				m.SetContext(oncebox.WithTaken(context.Background(), func() { close(taken) }))
				wg.Go(func() {
					if err := h(m); err != nil {
						t.Error(err)
					}
				})
				<-taken
			}
		})
	}
	wg.Wait()
	r.wantEffects(n)
	for k, versions := range order {
		if !slices.IsSorted(versions) {
			t.Errorf("%s ran as %v", k, versions)
		}
	}
	if groups > n/5 {
		t.Errorf("%d groups for %d messages of %d keys: they did not gather", groups, n, keys)
	}
}
