package chaos

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/internal/stacktest"
)

// patience is how long a test waits for what should come within a second or two.
const patience = 30 * time.Second

// A service is orders or billing: one binary on one database, behind a link to NATS. It may be killed and started again.
type service struct {
	name              string
	binary            string
	addr              string // of its API
	admin             string
	link              *link
	role              string            // its owner's and the database's name; <role>_app serves, <role>_relay relays
	db                *pgxpool.Pool     // the superuser's way into the service's database
	owner, app, relay string            // the roles' URLs
	env               map[string]string // without the service's prefix
	process           map[string]string // variables without a prefix, which win over NATS_URL
	log               *os.File
	proc              *devstack.Process
}

// newService makes a service's database, as deploy/postgres/init.sh does, and its link. Settings are variables without the
// service's prefix.
func newService(t testing.TB, name string, pg *devstack.Postgres, nats *devstack.NATS, settings map[string]string) *service {
	t.Helper()
	role := fmt.Sprintf("%s_%d", name, systems.Add(1))
	owner, err := pg.CreateService(t.Context(), role)
	if err != nil {
		t.Fatal(err)
	}
	db, err := pgxpool.New(t.Context(), pg.URL(role))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	s := &service{name: name, role: role, owner: owner, db: db, link: newLink(t, nats)}
	s.app, s.relay = s.newRole(t, role+"_app"), s.newRole(t, role+"_relay")
	newProcess(t, s, settings)
	s.migrate(t)
	return s
}

// newRole makes a role that may connect to the service's database and nothing else yet, and returns its URL.
func (s *service) newRole(t testing.TB, role string) string {
	t.Helper()
	password := rand.Text()
	if _, err := s.db.Exec(t.Context(), fmt.Sprintf("CREATE ROLE %[1]s LOGIN PASSWORD '%[2]s'; GRANT CONNECT ON DATABASE %[3]s TO %[1]s",
		role, password, s.role)); err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(s.owner)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(role, password)
	return u.String()
}

// migrate runs the command, as the owner.
func (s *service) migrate(t testing.TB) {
	t.Helper()
	prefix := strings.ToUpper(s.name) + "_"
	cmd := exec.CommandContext(t.Context(), s.binary, "migrate")
	cmd.Env = []string{prefix + "DATABASE_URL=" + s.owner, prefix + "APP_ROLE=" + s.role + "_app", prefix + "RELAY_ROLE=" + s.role + "_relay"}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s migrate: %v\n%s", s.name, err, out)
	}
}

// twin is a second process of the service, on its database.
func (s *service) twin(t testing.TB, settings map[string]string) *service {
	t.Helper()
	twin := &service{name: s.name, role: s.role, owner: s.owner, app: s.app, relay: s.relay, db: s.db, link: s.link}
	return newProcess(t, twin, settings)
}

func newProcess(t testing.TB, s *service, settings map[string]string) *service {
	t.Helper()
	bin, _ := shared.get(t)
	s.binary, s.addr, s.admin = filepath.Join(bin, s.name), freeAddr(t), freeAddr(t)
	s.env = map[string]string{"DATABASE_URL": s.app, "RELAY_DATABASE_URL": s.relay, "MIGRATE": "false", "LISTEN": s.addr, "ADMIN": s.admin, "AUTH": "off"}
	s.set(settings)
	log, err := os.Create(filepath.Join(t.TempDir(), s.name+".log"))
	if err != nil {
		t.Fatal(err)
	}
	s.log = log
	t.Cleanup(func() {
		if s.proc != nil {
			if err := s.proc.Kill(); err != nil {
				t.Errorf("kill %s: %v", s.name, err)
			}
		}
		if t.Failed() {
			s.showLog(t)
		}
		log.Close()
	})
	return s
}

// set changes settings for the next start.
func (s *service) set(settings map[string]string) {
	maps.Copy(s.env, settings)
}

// environment is the service's for its next start.
func (s *service) environment() []string {
	env := []string{"NATS_URL=" + s.link.url(s.name)}
	for name, value := range s.process {
		env = append(env, name+"="+value)
	}
	for name, value := range s.env {
		env = append(env, strings.ToUpper(s.name)+"_"+name+"="+value)
	}
	return env
}

// run runs the binary to its end, and returns what it wrote.
func (s *service) run(t testing.TB) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), s.binary, "serve")
	cmd.Env = s.environment()
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// start returns when the service is ready.
func (s *service) start(t testing.TB) {
	t.Helper()
	s.launch(t)
	s.awaitReady(t)
}

func (s *service) launch(t testing.TB) {
	t.Helper()
	var err error
	if s.proc, err = devstack.StartProcess(devstack.ProcessConfig{Path: s.binary, Env: s.environment(), Output: s.log}); err != nil {
		t.Fatal(err)
	}
}

func (s *service) awaitReady(t testing.TB) {
	t.Helper()
	stacktest.Eventually(t, patience, s.name+" is ready", func() (bool, error) {
		select {
		case <-s.proc.Done():
			t.Fatalf("%s ended at its start: %v", s.name, s.proc.Err())
		default:
		}
		h, err := s.health(t.Context())
		return h.Ready, err
	})
}

// kill ends the process by SIGKILL.
func (s *service) kill(t testing.TB) {
	t.Helper()
	select {
	case <-s.proc.Done():
		t.Fatalf("%s ended before it was killed: %v", s.name, s.proc.Err())
	default:
	}
	if err := s.proc.Kill(); err != nil {
		t.Fatal(err)
	}
}

// terminate sends SIGTERM and returns a function that waits for the end, which has to come within 10 s of now with exit
// status 0.
func (s *service) terminate(t testing.TB) (wait func()) {
	t.Helper()
	limit := time.After(10 * time.Second)
	if err := s.proc.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		select {
		case <-s.proc.Done():
			if err := s.proc.Err(); err != nil {
				t.Fatalf("%s ended with %v", s.name, err)
			}
		case <-limit:
			t.Fatalf("%s still runs 10 s after SIGTERM", s.name)
		}
	}
}

// isReady says whether the service answers that it is ready.
func (s *service) isReady(t testing.TB) bool {
	t.Helper()
	h, err := s.health(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return h.Ready
}

// connected says whether the service has its connection to NATS.
func (s *service) connected(ctx context.Context) (bool, error) {
	h, err := s.health(ctx)
	return h.Parts.NATS == "ok", err
}

type health struct {
	Ready bool
	Parts struct{ NATS string }
}

func (s *service) health(ctx context.Context) (h health, err error) {
	body, err := s.look(ctx, "/readyz")
	if err != nil {
		return h, err
	}
	return h, json.Unmarshal(body, &h)
}

// metric is the sum of one of the service's metrics since its last start: over all labels, or where a label has a value.
func (s *service) metric(t testing.TB, name string, label ...string) (sum float64) {
	t.Helper()
	for _, m := range s.family(t, name).GetMetric() {
		has := len(label) == 0
		for _, l := range m.GetLabel() {
			has = has || len(label) == 2 && l.GetName() == label[0] && l.GetValue() == label[1]
		}
		if has {
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return sum
}

// exports says whether there is a metric of this name by now: one with labels begins with its first value.
func (s *service) exports(t testing.TB, name string) bool {
	t.Helper()
	body, err := s.look(t.Context(), "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(body), "\n"+name+"{")
}

func (s *service) family(t testing.TB, name string) *dto.MetricFamily {
	t.Helper()
	body, err := s.look(t.Context(), "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(string(body)))
	if err != nil {
		t.Fatal(err)
	}
	f, ok := families[name]
	if !ok {
		t.Fatalf("%s has no metric %s", s.name, name)
	}
	return f
}

func (s *service) look(ctx context.Context, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.admin+path, nil)
	if err != nil {
		return nil, err
	}
	res, err := httpClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	return io.ReadAll(res.Body)
}

// hold begins a transaction of the superuser's with a statement that locks something, until release is called.
func (s *service) hold(t testing.TB, sql string) (release func()) {
	t.Helper()
	tx, err := s.db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	release = func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }
	t.Cleanup(release)
	if _, err := tx.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return release
}

// roles are those that a running service connects as.
func (s *service) roles() []string { return []string{s.role + "_app", s.role + "_relay"} }

// blocked is how many of the service's own database sessions wait for a lock in a statement like this.
func (s *service) blocked(t testing.TB, statement string) int {
	t.Helper()
	return one[int](t, s.db, `SELECT count(*) FROM pg_stat_activity
		WHERE usename = ANY($1) AND wait_event_type = 'Lock' AND query LIKE $2`, s.roles(), statement)
}

// endSessions ends the database sessions that a killed process left behind. One that waits for a lock would go on with its
// statement, and commit it, without noticing that its client is gone.
func (s *service) endSessions(t testing.TB) {
	t.Helper()
	stacktest.Eventually(t, patience, "the killed "+s.name+"'s sessions are over", func() (bool, error) {
		return one[int](t, s.db, `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = ANY($1)`, s.roles()) == 0, nil
	})
}

func (s *service) showLog(t testing.TB) {
	log, err := os.ReadFile(s.log.Name())
	if err != nil {
		t.Errorf("the log of %s: %v", s.name, err)
		return
	}
	const tail = 4 << 10
	t.Logf("the end of %s's log:\n%s", s.name, log[max(0, len(log)-tail):])
}

// one is the only value that a query returns.
func one[T any](t testing.TB, db *pgxpool.Pool, sql string, args ...any) T {
	t.Helper()
	rows, err := db.Query(t.Context(), sql, args...)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	v, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[T])
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}
