package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/broker"
	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/internal/stacktest"
	"github.com/oncebox/oncebox/migrations"
	"github.com/oncebox/oncebox/outbox"
)

// restored is the database of r as pg_dump and pg_restore bring it into a new cluster, which has come to lower transaction ids.
func (r *rig) restored() *rig {
	t, ctx := r.t, context.Background()
	t.Helper()
	server := stacktest.OwnPostgres(t, devstack.PostgresConfig{})
	dump := filepath.Join(openFolder(t), "dump")
	_, err := devstack.PostgresProgram(ctx, "/", "pg_dump", "--format=custom", "--file", dump, "--dbname", r.pool.Config().ConnString())
	must(t, err)
	_, err = devstack.PostgresProgram(ctx, "/", "pg_restore", "--no-owner", "--no-privileges", "--exit-on-error", "--dbname", server.URL("postgres"), dump)
	must(t, err)
	pool, err := pgxpool.New(ctx, server.URL("postgres"))
	must(t, err)
	t.Cleanup(pool.Close)
	copied := *r
	copied.pool = pool
	return &copied
}

// openFolder is one that the user whom Postgres runs as can write to.
func openFolder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "oncebox-test-")
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	must(t, os.Chmod(dir, 0o777))
	return dir
}

// burn moves the transaction ids of r's cluster on.
func (r *rig) burn() {
	r.t.Helper()
	_, err := r.pool.Exec(context.Background(), `DO $$ BEGIN FOR i IN 1..3000 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$`)
	must(r.t, err)
}

func (r *rig) runs(policy outbox.AfterRestore) error {
	r.t.Helper()
	sink, err := broker.NewSink(r.nc, r.declared, broker.SinkConfig{})
	must(r.t, err)
	relay, err := outbox.NewRelay(r.pool, sink, outbox.RelayConfig{Name: "test", AfterRestore: policy})
	must(r.t, err)
	return relay.Run(context.Background())
}

func TestAfterARestoreWhatTheStreamDoesNotHoldIsSent(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.burn()
	relay := r.relay()
	var want []oncebox.Event
	for i := range int64(20) {
		want = append(want, event("k", i+1))
		r.commit(want[i])
	}
	r.eventuallyLogged(want...)
	relay.stop()
	unsent := []oncebox.Event{event("k", 21), event("k", 22)}
	r.commit(unsent...)
	after := r.restored()

	if err := after.runs(outbox.Refuse); err == nil || !strings.Contains(err.Error(), "AfterRestore") {
		t.Errorf("Run without a policy says %v", err)
	}
	if err := after.runs(outbox.Resume); err == nil || !strings.Contains(err.Error(), "has not come to") {
		t.Errorf("Run that resumes says %v", err)
	}
	later := event("k", 23)
	after.commit(later)
	relay = after.relay(func(c *outbox.RelayConfig) { c.AfterRestore = outbox.Resend })
	want = append(append(want, unsent...), later)
	r.eventuallyLogged(want...)
	if n := relay.metric(t, "skipped_total"); n != 20 {
		t.Errorf("%v events were skipped, want 20", n)
	}
	relay.stop()
	next := event("k", 24)
	after.commit(next)
	after.relay() // of this cluster now
	r.eventuallyLogged(append(want, next)...)
}

// TestAfterPgUpgradeTheRelayGoesOnWhereItStood upgrades a cluster, to its own version where there is no newer one: that too makes a
// cluster with another identity, in which transaction ids go on.
func TestAfterPgUpgradeTheRelayGoesOnWhereItStood(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	was := stacktest.OwnPostgres(t, devstack.PostgresConfig{})
	is := stacktest.OwnPostgres(t, devstack.PostgresConfig{})
	pool, err := pgxpool.New(ctx, was.URL("postgres"))
	must(t, err)
	defer pool.Close()
	must(t, migrations.Up(ctx, pool, migrations.Outbox))
	r := rigOn(t, pool, stacktest.NATS(t))
	r.burn()
	relay := r.relay()
	var want []oncebox.Event
	for i := range int64(20) {
		want = append(want, event("k", i+1))
		r.commit(want[i])
	}
	r.eventuallyLogged(want...)
	relay.stop()
	unsent := []oncebox.Event{event("k", 21), event("k", 22)}
	r.commit(unsent...)
	bin, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", was.Pid()))
	if err != nil {
		t.Skip("where Postgres is installed is read from /proc")
	}
	pool.Close()
	must(t, errors.Join(was.Stop(ctx), is.Stop(ctx)))
	free := func() string {
		port, err := devstack.FreePort()
		must(t, err)
		return fmt.Sprint(port)
	}
	_, err = devstack.PostgresProgram(ctx, openFolder(t), "pg_upgrade", "-b", filepath.Dir(bin), "-B", filepath.Dir(bin), "-d", was.DataPath(), "-D", is.DataPath(),
		"-p", free(), "-P", free(), "-U", "postgres")
	must(t, err)
	must(t, is.Restart(ctx))
	after := *r
	after.pool, err = pgxpool.New(ctx, is.URL("postgres"))
	must(t, err)
	t.Cleanup(after.pool.Close)

	if err := after.runs(outbox.Refuse); err == nil || !strings.Contains(err.Error(), "AfterRestore") {
		t.Errorf("Run without a policy says %v", err)
	}
	relay = after.relay(func(c *outbox.RelayConfig) { c.AfterRestore = outbox.Resume })
	later := event("k", 23)
	after.commit(later)
	want = append(append(want, unsent...), later)
	r.eventuallyLogged(want...)
	if n := relay.metric(t, "skipped_total"); n != 0 {
		t.Errorf("%v events were skipped, want none: the cursor goes on", n)
	}
}
