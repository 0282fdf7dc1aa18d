package outbox_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/broker"
	"github.com/oncebox/oncebox/internal/stacktest"
	"github.com/oncebox/oncebox/outbox"
)

func often(c *outbox.RelayConfig) { c.RetainEvery = time.Millisecond }

// slot is that of today and some days on.
func (r *rig) slot(days int) (slot int) {
	r.t.Helper()
	must(r.t, r.pool.QueryRow(context.Background(), "SELECT (extract(epoch FROM clock_timestamp())::bigint / 86400 + 16 + $1) % 16", days).Scan(&slot))
	return slot
}

const insertOld = `INSERT INTO oncebox.outbox (slot, time, id, source, topic, key, version, tenant_id, headers, payload)
	VALUES ($1, clock_timestamp() - $2::interval, $3, 'test', $4, $5, $6, '', '{}', '')`

// age commits an event as if it had been written some days ago.
func (r *rig) age(tx pgx.Tx, slot int, days int, e oncebox.Event) {
	r.t.Helper()
	_, err := tx.Exec(context.Background(), insertOld, slot, time.Duration(days)*24*time.Hour, e.ID, e.Type, e.Key, e.Version)
	must(r.t, err)
}

func (r *rig) rows(slot int) (n int) {
	r.t.Helper()
	must(r.t, r.pool.QueryRow(context.Background(), fmt.Sprint("SELECT count(*) FROM oncebox.outbox_", slot)).Scan(&n))
	return n
}

func TestASlotIsEmptiedWhenAllOfItIsSentAndOld(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	tx := r.begin()
	sent, young, current, next := event("sent", 1), event("young", 1), event("current", 1), event("next", 1)
	r.age(tx, r.slot(-9), 9, sent)
	r.age(tx, r.slot(-8), 6, young)
	r.age(tx, r.slot(0), 16, current)
	r.age(tx, r.slot(1), 15, next)
	must(t, tx.Commit(context.Background()))
	relay := r.relay(often)
	stacktest.Eventually(t, 10*time.Second, "the old slot is empty", func() (bool, error) { return r.rows(r.slot(-9)) == 0, nil })
	r.eventuallyLogged(sent, young, current, next)
	last := event("k", 1)
	for range 3 { // each round looks once more
		r.commit(last)
		last = event("k", last.Version+1)
		relay.Wake()
	}
	stacktest.Eventually(t, 10*time.Second, "three more rounds", func() (bool, error) { return reached(r.logged(), 7) })
	for what, slot := range map[string]int{"a row is younger than the retention": r.slot(-8), "it is the current one": r.slot(0), "it is the next one": r.slot(1)} {
		if r.rows(slot) == 0 {
			t.Errorf("slot %d was emptied although %s", slot, what)
		}
	}
	if n := relay.metric(t, "slots_truncated_total"); n != 1 {
		t.Errorf("%v slots were emptied, want 1", n)
	}
}

func TestASlotIsKeptForACursorThatHasNotSentIt(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	_, err := r.pool.Exec(context.Background(), `INSERT INTO oncebox.outbox_cursor (name) VALUES ('slow')`)
	must(t, err)
	_, err = r.pool.Exec(context.Background(), `INSERT INTO oncebox.outbox_tick (cursor, n, epoch, snap, stream_seq, slot) VALUES ('slow', 0, 0, '1:1:', 0, 0)`)
	must(t, err)
	tx := r.begin()
	old := event("k", 1)
	r.age(tx, r.slot(-9), 9, old)
	must(t, tx.Commit(context.Background()))
	var log lines
	r.relay(often, log.to)
	r.eventuallyLogged(old)
	stacktest.Eventually(t, 10*time.Second, "the log names the cursor", func() (bool, error) { return log.has("cursor slow"), nil })
	if r.rows(r.slot(-9)) != 1 {
		t.Error("a row was removed that a cursor has not sent")
	}
	_, err = r.pool.Exec(context.Background(), `UPDATE oncebox.outbox_cursor SET topics = '^other$' WHERE name = 'slow'`)
	must(t, err)
	stacktest.Eventually(t, 10*time.Second, "the slot is empty", func() (bool, error) { return r.rows(r.slot(-9)) == 0, nil })
}

func TestARowWhoseTopicNoCursorCoversIsKeptAndReported(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	tx := r.begin()
	r.age(tx, r.slot(-9), 9, elsewhere("k", 1))
	must(t, tx.Commit(context.Background()))
	var log lines
	r.relay(often, log.to, func(c *outbox.RelayConfig) { c.Topics = []string{"test.>"} })
	stacktest.Eventually(t, 10*time.Second, "the log names the topic", func() (bool, error) {
		return log.has("no cursor covers topic elsewhere.happened.v1"), nil
	})
	if r.rows(r.slot(-9)) != 1 {
		t.Error("the row is gone")
	}
}

// A row comes into an old slot between the look at it and the lock: a transaction that was begun long ago, say.
func TestARowThatComesWhileASlotIsLockedIsNotLost(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var want []oncebox.Event
	for range 5 {
		tx := r.begin()
		sent, late := event("sent", 1), event("late", 1)
		r.age(tx, r.slot(-9), 9, sent)
		must(t, tx.Commit(context.Background()))
		first := r.relay()
		r.eventuallyLogged(append(want, sent)...)
		first.stop()
		writer := r.begin()
		r.age(writer, r.slot(-9), 9, late)
		second := r.relay(often)
		stacktest.Eventually(t, 10*time.Second, "retention waits for the slot", func() (waits bool, err error) {
			err = r.pool.QueryRow(context.Background(), `SELECT EXISTS (SELECT FROM pg_locks
				WHERE relation = $1::text::regclass AND mode = 'AccessExclusiveLock' AND NOT granted)`, fmt.Sprint("oncebox.outbox_", r.slot(-9))).Scan(&waits)
			return waits, err
		})
		must(t, writer.Commit(context.Background()))
		want = append(want, sent, late)
		r.eventuallyLogged(want...)
		second.stop()
	}
}

// The outbox is read by a transaction that stays open: retention waits for it and gives up, again and again, and no insert
// waits behind it.
func TestAnInsertDoesNotWaitForRetention(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	tx := r.begin()
	r.age(tx, r.slot(-9), 9, event("old", 1))
	must(t, tx.Commit(context.Background()))
	reader := r.begin()
	var n int
	must(t, reader.QueryRow(context.Background(), "SELECT count(*) FROM oncebox.outbox").Scan(&n))
	r.relay(often, func(c *outbox.RelayConfig) { c.Lease = 5 * time.Second })
	slot := fmt.Sprint("oncebox.outbox_", r.slot(-9))
	waited := 0
	for i := int64(0); waited < 3; i++ {
		if i == 5000 {
			t.Fatal("retention never waited for the slot")
		}
		var waits bool
		must(t, r.pool.QueryRow(context.Background(), `SELECT EXISTS (SELECT FROM pg_locks
			WHERE relation = $1::text::regclass AND mode = 'AccessExclusiveLock' AND NOT granted)`, slot).Scan(&waits))
		if waits {
			waited++
		}
		must(t, pgx.BeginFunc(context.Background(), r.pool, func(tx pgx.Tx) error {
			if _, err := tx.Exec(context.Background(), "SET LOCAL lock_timeout = '100ms'"); err != nil {
				return err
			}
			return r.writer.Add(context.Background(), tx, event("k", i+1))
		}))
	}
	must(t, reader.Rollback(context.Background()))
	stacktest.Eventually(t, 10*time.Second, "the slot is empty", func() (bool, error) { return r.rows(r.slot(-9)) == 0, nil })
}

func TestTicksThatNobodyNeedsAreRemoved(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	a, b := event("k", 1), event("k", 2)
	r.commit(a)
	first := r.relay()
	r.eventuallyLogged(a)
	first.stop()
	exec := func(sql string) {
		t.Helper()
		_, err := r.pool.Exec(context.Background(), sql)
		must(t, err)
	}
	exec(`INSERT INTO oncebox.outbox_tick (cursor, n, epoch, prev, snap, stream_seq, slot)
		SELECT 'test', 65536, 1, snap, pg_current_snapshot(), 1, 1 FROM oncebox.outbox_tick ORDER BY n DESC LIMIT 1`)
	exec(`UPDATE oncebox.outbox_cursor SET n = 65537, seq = 0`)
	exec(`UPDATE oncebox.outbox_tick SET at = clock_timestamp() - interval '2 hours'`)
	r.relay(often)
	r.commit(b)
	r.eventuallyLogged(a, b)
	ticks := func() (old, all int) {
		must(t, r.pool.QueryRow(context.Background(), "SELECT count(*) FILTER (WHERE n < 65536), count(*) FROM oncebox.outbox_tick").Scan(&old, &all))
		return old, all
	}
	stacktest.Eventually(t, 10*time.Second, "the old ticks are gone", func() (bool, error) { old, _ := ticks(); return old == 0, nil })
	if _, all := ticks(); all == 0 {
		t.Error("so are the others")
	}
	// A log that lost its end has no tick to go back to: all there is is sent again.
	must(t, r.js.DeleteStream(context.Background(), stream))
	r.eventuallyLogged(a, b)
}

func TestRelayConfigIsChecked(t *testing.T) {
	t.Parallel()
	for want, change := range map[string]func(*outbox.RelayConfig){
		"Name":         func(c *outbox.RelayConfig) { c.Name = "" },
		"Retention":    func(c *outbox.RelayConfig) { c.Retention = 14 * 24 * time.Hour },
		"PageBytes":    func(c *outbox.RelayConfig) { c.PageBytes = -1 },
		"MinPoll":      func(c *outbox.RelayConfig) { c.MinPoll = time.Hour },
		"Parked":       func(c *outbox.RelayConfig) { c.Parked = "x" },
		"AfterRestore": func(c *outbox.RelayConfig) { c.AfterRestore = "x" },
		"Topics":       func(c *outbox.RelayConfig) { c.Topics = []string{"a..b"} },
		"Confirm":      func(c *outbox.RelayConfig) { c.Confirm = -1 },
		"durable":      func(c *outbox.RelayConfig) { c.RequireDurable = true },
	} {
		cfg := outbox.RelayConfig{Name: "test"}
		change(&cfg)
		if _, err := outbox.NewRelay(nil, outbox.SinkOf(nil), cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("NewRelay says %v, want %q", err, want)
		}
	}
}

func TestALogThatIsNotDurableIsRefusedWhereItHasToBe(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for sync, want := range map[broker.Sync]string{broker.SyncAlways: "", broker.SyncInterval: "loss of power", broker.SyncUnknown: "nobody said"} {
		sink, err := broker.NewSink(r.nc, r.declared, broker.SinkConfig{Sync: sync})
		must(t, err)
		relay, err := outbox.NewRelay(r.pool, sink, outbox.RelayConfig{Name: "test" + string(sync), RequireDurable: true})
		must(t, err)
		ctx, stop := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- relay.Run(ctx) }()
		if want == "" {
			stacktest.Eventually(t, 10*time.Second, "it leads", func() (bool, error) {
				s, err := relay.Status(context.Background())
				return s.Leading && s.Durable, err
			})
			stop()
			must(t, <-done)
			continue
		}
		if err := <-done; err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Run says %v, want %q", err, want)
		}
		stop()
	}
}

func TestStatusTellsWhatIsUnsent(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	relay := r.relay()
	r.commit(event("k", 1))
	r.eventuallyLogged(r.log()...)
	stacktest.Eventually(t, 10*time.Second, "nothing is unsent", func() (bool, error) {
		s, err := relay.Status(context.Background())
		return s.Backlog == 0 && s.OldestUnsent.IsZero() && s.Leading && s.Epoch == 1 && s.StreamSeq == 1, err
	})
	relay.stop()
	for i := range int64(5) {
		r.commit(event("k", i+2))
	}
	s, err := relay.Status(context.Background())
	if err != nil || s.Backlog != 5 || time.Since(s.OldestUnsent) > time.Minute || s.Leading || s.Holder != "" {
		t.Errorf("status is %+v, %v", s, err)
	}
}
