package idempotency_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncebox/oncebox/idempotency"
	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/internal/stacktest"
	"github.com/oncebox/oncebox/migrations"
)

// A link is a way to Postgres that can be cut. It does not carry the request to cancel a statement, by which a client that lost
// its connection would decide what the test wants to.
type link struct {
	net.Listener
	mu    sync.Mutex
	conns []net.Conn
}

// cancelRequest is how a connection begins that asks to cancel another one's statement.
const cancelRequest = 80877102

func newLink(t *testing.T, to string) *link {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	k := &link{Listener: l}
	t.Cleanup(func() { l.Close(); k.cut() })
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", to)
			if err != nil {
				client.Close()
				continue
			}
			k.mu.Lock()
			k.conns = append(k.conns, client)
			k.mu.Unlock()
			go func() { // and the server is not told when the client is cut off
				first := make([]byte, 8)
				if _, err := io.ReadFull(client, first); err != nil || binary.BigEndian.Uint32(first[4:]) == cancelRequest {
					client.Close()
					server.Close()
					return
				}
				_, _ = server.Write(first)
				_, _ = io.Copy(server, client)
			}()
			go func() { _, _ = io.Copy(client, server); client.Close() }()
		}
	}()
	return k
}

// cut ends the connections on the client's side. The server's stay open, as when a cable is pulled.
func (k *link) cut() (n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, c := range k.conns {
		c.Close()
	}
	n = len(k.conns)
	k.conns = nil
	return n
}

// waitAtCommit makes the commit of an effect wait for gateLock: a deferred trigger runs between COMMIT and the commit.
func waitAtCommit(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	_, err := pool.Exec(context.Background(), fmt.Sprintf(`
		CREATE FUNCTION gate() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_xact_lock_shared(%d); RETURN NULL; END $$;
		CREATE CONSTRAINT TRIGGER gate AFTER INSERT ON effect DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION gate()`, gateLock))
	must(t, err)
}

// Invariant: when the connection breaks at COMMIT, the client is told what really happened, or that nobody knows.
func TestABrokenCommitIsResolved(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name      string
		committed bool
	}{{"it was committed", true}, {"it was not", false}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			pool, url := database(t)
			waitAtCommit(t, pool)
			cfg, err := pgxpool.ParseConfig(url)
			must(t, err)
			way := newLink(t, fmt.Sprintf("%s:%d", cfg.ConnConfig.Host, cfg.ConnConfig.Port))
			cfg.ConnConfig.Host, cfg.ConnConfig.Port = "127.0.0.1", uint16(way.Addr().(*net.TCPAddr).Port)
			cut, err := pgxpool.NewWithConfig(t.Context(), cfg)
			must(t, err)
			t.Cleanup(cut.Close)
			server := here(t, cut, postgres(t, cut, idempotency.PostgresConfig{}), idempotency.Policy{})
			release := hold(t, pool)
			answer := postInTheBackground(server)
			waitGate(t, pool) // COMMIT has come, and is at work
			if way.cut() == 0 {
				t.Fatal("nothing was cut")
			}
			if !c.committed {
				if n := count(t, pool, `pg_locks l, pg_terminate_backend(l.pid) WHERE l.locktype = 'advisory' AND l.objid = $1 AND NOT l.granted
					AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())`, gateLock); n != 1 {
					t.Fatalf("%d backends were ended", n)
				}
			}
			release()
			got := <-answer
			must(t, got.err)
			if c.committed {
				wantReplay(t, mustPost(t, server, "k"), wantFirst(t, got.reply))
			} else {
				if got.status != http.StatusServiceUnavailable || got.after == "" {
					t.Errorf("got %+v, want 503", got.reply)
				}
				wantRows(t, pool, 0, 0)
				wantFirst(t, mustPost(t, server, "k"))
			}
			wantRows(t, pool, 1, 1)
		})
	}
}

// Invariant: while clients try until they are answered, each key has one effect, whatever the database goes through.
func TestTheDatabaseRestartsUnderLoad(t *testing.T) {
	t.Parallel()
	t.Run("postgres-restart-mid-load-1000-keys-with-retries", func(t *testing.T) {
		const keys, workers = 1000, 8
		server := stacktest.OwnPostgres(t, devstack.PostgresConfig{Fsync: true})
		cfg, err := pgxpool.ParseConfig(server.URL("postgres"))
		must(t, err)
		cfg.MaxConns = workers + 2
		pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
		must(t, err)
		t.Cleanup(pool.Close)
		must(t, migrations.Up(t.Context(), pool, migrations.Idempotency))
		effects(t, pool)
		url := here(t, pool, postgres(t, pool, idempotency.PostgresConfig{}), idempotency.Policy{})
		work, done := make(chan string), make(chan struct{}, keys)
		var wg sync.WaitGroup
		var mu sync.Mutex
		refused := 0
		for range workers {
			wg.Go(func() {
				for key := range work {
					for {
						got, err := post(url, key)
						if err == nil && got.status == http.StatusCreated {
							break
						}
						mu.Lock()
						refused++
						mu.Unlock()
						if got.status != http.StatusServiceUnavailable && got.status != http.StatusConflict && got.status != http.StatusInternalServerError {
							t.Errorf("got %+v, %v", got, err)
							break
						}
						<-time.After(5 * time.Millisecond)
					}
					done <- struct{}{}
				}
			})
		}
		go func() {
			for i := range keys {
				work <- fmt.Sprint("key-", i)
			}
			close(work)
		}()
		for i := range keys {
			<-done
			if i == keys/4 || i == keys/2 {
				must(t, server.StopImmediate(t.Context()))
				must(t, server.Restart(t.Context()))
			}
		}
		wg.Wait()
		if refused == 0 {
			t.Error("no client noticed that the database was away")
		}
		t.Logf("%d tries were refused", refused)
		wantRows(t, pool, keys, keys)
	})
}

// Invariant: what a replica that was behind does not have, it has neither the key nor the effect of.
func TestALostCommitIsLostWhole(t *testing.T) {
	t.Parallel()
	t.Run("postgres-failover-to-async-replica-losing-the-commit", func(t *testing.T) {
		ctx := t.Context()
		dir, err := os.MkdirTemp("/var/tmp", "oncebox-failover-") // the server's user passes through it
		must(t, err)
		t.Cleanup(func() { os.RemoveAll(dir) })
		must(t, os.Chmod(dir, 0o711))
		server := stacktest.OwnPostgres(t, devstack.PostgresConfig{Dir: filepath.Join(dir, "server")})
		pool, err := pgxpool.New(ctx, server.URL("postgres"))
		must(t, err)
		t.Cleanup(pool.Close)
		must(t, migrations.Up(ctx, pool, migrations.Idempotency))
		effects(t, pool)
		url := here(t, pool, postgres(t, pool, idempotency.PostgresConfig{}), idempotency.Policy{})
		kept := wantFirst(t, mustPost(t, url, "kept"))
		// The replica is what the files are now; then the primary takes one more, and is lost.
		data, replica := filepath.Join(dir, "server", "data"), filepath.Join(dir, "replica")
		must(t, server.Stop(ctx))
		out, err := exec.CommandContext(ctx, "cp", "-a", data, replica).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		must(t, server.Restart(ctx))
		pool.Reset()
		wantFirst(t, mustPost(t, url, "lost"))
		wantRows(t, pool, 2, 2)
		must(t, server.Stop(ctx))
		must(t, os.RemoveAll(data))
		must(t, os.Rename(replica, data))
		must(t, server.Restart(ctx))
		pool.Reset()
		wantRows(t, pool, 1, 1)
		wantReplay(t, mustPost(t, url, "kept"), kept)
		again := wantFirst(t, mustPost(t, url, "lost"))
		wantReplay(t, mustPost(t, url, "lost"), again)
		wantRows(t, pool, 2, 2)
	})
}

// guarded is a store whose effects keep their request's key, until the store forgets it.
func guarded(t *testing.T, pool *pgxpool.Pool, batch int) *idempotency.Postgres {
	t.Helper()
	return postgres(t, pool, idempotency.PostgresConfig{CleanBatch: batch, CleanEvery: 10 * time.Millisecond,
		Forget: func(ctx context.Context, tx pgx.Tx, keys []idempotency.ExpiredKey) error {
			tenants, hashes := make([]string, len(keys)), make([][]byte, len(keys))
			for i, k := range keys {
				tenants[i], hashes[i] = k.Tenant, k.Key
			}
			_, err := tx.Exec(ctx, `UPDATE guarded SET idem_key = NULL FROM unnest($1::text[], $2::bytea[]) AS k (tenant, key)
				WHERE tenant_id = tenant AND idem_key = key`, tenants, hashes)
			return err
		}})
}
