package idempotency_test

import (
	"errors"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncebox/oncebox/idempotency"
	"github.com/oncebox/oncebox/internal/stacktest"
	"github.com/oncebox/oncebox/migrations"
)

// A database is one with the tables of the keys and of the effects, and the way to it for another process.
func database(t *testing.T) (pool *pgxpool.Pool, url string) {
	t.Helper()
	pool = stacktest.Postgres(t, migrations.Idempotency)
	effects(t, pool)
	return pool, pool.Config().ConnString()
}

// TestAServerProcessDies kills, stops and pauses real processes at a state that is seen in the database.
func TestAServerProcessDies(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		test func(t *testing.T, pool *pgxpool.Pool, url string)
	}{
		{"kill-9-before-commit", killedBeforeCommit},
		{"kill-9-after-commit-before-first-byte", killedAfterCommit},
		{"app-host-partitioned-in-tx", partitioned},
		{"sigterm-during-request", terminated},
		{"two-real-processes", twoProcesses},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			pool, url := database(t)
			c.test(t, pool, url)
		})
	}
}

func killedBeforeCommit(t *testing.T, pool *pgxpool.Pool, url string) {
	server := startServer(t, url)
	release := hold(t, pool)
	answer := postInTheBackground(server.url + "/gate")
	waitGate(t, pool)
	must(t, server.Kill())
	if got := <-answer; got.err == nil {
		t.Fatalf("the killed server answered %+v", got)
	}
	release()
	wantRows(t, pool, 0, 0)
	server = startServer(t, url)
	var first reply
	stacktest.Eventually(t, patience, "the dead server's backend is gone, and the request executed", func() (bool, error) {
		var err error
		first, err = post(server.url+"/gate", "k")
		return first.status == 201, err
	})
	wantFirst(t, first)
	wantReplay(t, mustPost(t, server.url+"/gate", "k"), first)
	wantRows(t, pool, 1, 1)
}

func killedAfterCommit(t *testing.T, pool *pgxpool.Pool, url string) {
	server := startServer(t, url)
	answer := postInTheBackground(server.url+"/stall", "Stall", "1")
	stacktest.Eventually(t, patience, "the answer is committed", func() (bool, error) {
		return count(t, pool, "oncebox.idempotency_keys") == 1, nil
	})
	select {
	case got := <-answer:
		t.Fatalf("a byte got out: %+v", got)
	default:
	}
	must(t, server.Kill())
	if got := <-answer; got.err == nil {
		t.Fatalf("the killed server answered %+v", got)
	}
	server = startServer(t, url)
	wantReplay(t, mustPost(t, server.url+"/stall", "k"), reply{})
	wantRows(t, pool, 1, 1)
}

// The server's process stands still while its transaction is open, as one does that the network has left.
func partitioned(t *testing.T, pool *pgxpool.Pool, url string) {
	server := startServer(t, url)
	other := here(t, pool, postgres(t, pool, idempotency.PostgresConfig{}), idempotency.Policy{Wait: time.Millisecond, Timeout: 3 * time.Second})
	answer := postInTheBackground(server.url + "/idle")
	idle := func() (n int) {
		return count(t, pool, "pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction' AND pid <> pg_backend_pid()")
	}
	stacktest.Eventually(t, patience, "its transaction is open and idle", func() (bool, error) { return idle() == 1, nil })
	must(t, server.Pause())
	if got := mustPost(t, other+"/idle", "k"); got.status != 409 && idle() == 1 {
		t.Errorf("got %+v while the first one is at it, want 409", got)
	}
	var first reply
	// /idle waits for the end of its request: here only whether the request is given out matters.
	stacktest.Eventually(t, patience, "the server has ended the session that was left", func() (bool, error) { return idle() == 0, nil })
	charges := startServer(t, url)
	first = mustPost(t, charges.url+"/charges", "l")
	wantFirst(t, first)
	again := postInTheBackground(other + "/idle")
	stacktest.Eventually(t, patience, "the key is free, and its request executed again", func() (bool, error) { return idle() == 1, nil })
	must(t, server.Continue())
	must(t, server.Kill())
	<-answer
	_ = again // ends with its server
	wantRows(t, pool, 1, 1)
}

func terminated(t *testing.T, pool *pgxpool.Pool, url string) {
	server := startServer(t, url)
	release := hold(t, pool)
	answer := postInTheBackground(server.url + "/gate")
	waitGate(t, pool)
	must(t, server.Signal(syscall.SIGTERM))
	stacktest.Eventually(t, patience, "it takes no new requests", func() (bool, error) {
		c, err := net.Dial("tcp", strings.TrimPrefix(server.url, "http://")) // not a request: one that is taken would wait for the lock
		if err == nil {
			c.Close()
		}
		return errors.Is(err, syscall.ECONNREFUSED), nil
	})
	release()
	got := <-answer
	must(t, got.err)
	wantFirst(t, got.reply)
	<-server.Done()
	must(t, server.Err())
	wantReplay(t, mustPost(t, startServer(t, url).url+"/gate", "k"), got.reply)
	wantRows(t, pool, 1, 1)
}

// A hundred duplicates come to two processes at once.
func twoProcesses(t *testing.T, pool *pgxpool.Pool, url string) {
	servers := []*process{startServer(t, url), startServer(t, url)}
	release := hold(t, pool)
	owner := postInTheBackground(servers[0].url + "/gate")
	waitGate(t, pool)
	var all []<-chan result
	for i := range 100 {
		all = append(all, postInTheBackground(servers[i%2].url+"/gate"))
	}
	release()
	got := <-owner
	must(t, got.err)
	first := wantFirst(t, got.reply)
	for _, r := range all {
		got := <-r
		must(t, got.err)
		wantReplay(t, got.reply, first)
	}
	wantRows(t, pool, 1, 1)
	if n := count(t, pool, "pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%' AND pid <> pg_backend_pid()"); n != 0 {
		t.Errorf("%d transactions are left open", n)
	}
}
