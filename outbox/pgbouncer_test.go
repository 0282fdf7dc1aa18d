package outbox_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/internal/stacktest"
	"github.com/oncebox/oncebox/outbox"
)

// pgBouncer runs one in transaction mode before the database of a pool, with two connections to it for everybody, and returns the
// way to it.
func pgBouncer(t *testing.T, pool *pgxpool.Pool) string {
	t.Helper()
	path, err := exec.LookPath("pgbouncer")
	if err != nil {
		if path, err = exec.LookPath("/usr/sbin/pgbouncer"); err != nil {
			t.Skip("pgbouncer is not installed: .ci/install does it")
		}
	}
	port, err := devstack.FreePort()
	must(t, err)
	db := pool.Config().ConnConfig
	config := filepath.Join(openFolder(t), "pgbouncer.ini")
	must(t, os.WriteFile(config, fmt.Appendf(nil, `[databases]
%s = host=%s port=%d user=%s password=%s
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 2
ignore_startup_parameters = extra_float_digits
`, db.Database, db.Host, db.Port, db.User, db.Password, port), 0o644))
	args := []string{config}
	if os.Geteuid() == 0 { // it refuses to run as root
		args = []string{"-u", "nobody", config}
	}
	var log procLog
	p, err := devstack.StartProcess(devstack.ProcessConfig{Path: path, Args: args, Output: &log})
	must(t, err)
	t.Cleanup(func() {
		must(t, p.Kill())
		if t.Failed() {
			t.Logf("pgbouncer said:\n%s", log.String())
		}
	})
	stacktest.Eventually(t, 30*time.Second, "pgbouncer listens", func() (bool, error) {
		c, err := net.Dial("tcp", fmt.Sprint("127.0.0.1:", port))
		if err == nil {
			c.Close()
		}
		return err == nil, err
	})
	// Prepared statements have names and belong to a connection: older ones than 1.21 do not pass them on.
	return fmt.Sprintf("postgres://%s@127.0.0.1:%d/%s?sslmode=disable&default_query_exec_mode=cache_describe", db.User, port, db.Database)
}

// Neither a transaction nor a setting nor a lock of the relay's outlasts a statement: two connections do for two relays and a writer.
func TestTheRelayWorksBehindPgBouncerInTransactionMode(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	direct := r.pool
	pool, err := pgxpool.New(context.Background(), pgBouncer(t, direct))
	must(t, err)
	t.Cleanup(pool.Close)
	r.pool = pool
	old := r.slot(-9)
	tx := r.begin()
	aged := event("old", 1)
	r.age(tx, old, 9, aged)
	must(t, tx.Commit(context.Background()))
	first := r.relay(often)
	second := r.relay(often)
	want := []oncebox.Event{aged}
	for i := range int64(50) {
		want = append(want, event("k", i+1))
		r.commit(want[len(want)-1])
	}
	r.eventuallyLogged(want...)
	stacktest.Eventually(t, 30*time.Second, "the old slot is emptied", func() (bool, error) { return r.rows(old) == 0, nil })
	first.stop() // one of them led: now the other does
	for i := range int64(50) {
		want = append(want, event("k", 51+i))
		r.commit(want[len(want)-1])
	}
	r.eventuallyLogged(want...)
	var status outbox.Status
	status, err = second.Status(context.Background())
	must(t, err)
	if status.Holder == "" || !status.Leading {
		t.Errorf("the second relay does not lead: %+v", status)
	}
}
