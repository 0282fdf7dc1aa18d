package chaos

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/oncebox/oncebox/internal/devstack"
)

// containers are the system as docker compose runs it, in a project of the test's own: with names, ports, volumes and passwords that
// nobody else has, and removed at its end.
type containers struct {
	*system
	project  string
	env      []string // of docker compose
	key      string   // of the API
	postgres string   // the superuser's way in, without a database
	nats     string
	cluster  bool // NATS is three servers
}

// startContainers builds and starts what the compose files say, and returns when all of it is healthy. What the judge has to look into,
// Postgres and NATS, is published on 127.0.0.1, and NATS knows one more user.
func startContainers(t *testing.T, files ...string) *containers {
	t.Helper()
	if os.Getenv("ONCEBOX_DOCKER") == "" {
		t.Skip("make test-docker runs it: it takes a Docker Engine, and builds images")
	}
	dir := t.TempDir()
	makefile, root := absolute(t, "Makefile"), absolute(t, ".")
	if out, err := exec.CommandContext(t.Context(), "make", "-C", dir, "-f", makefile, "env").CombinedOutput(); err != nil {
		t.Fatalf("make env: %v\n%s", err, out)
	}
	secret := func(name string) string {
		b, err := os.ReadFile(filepath.Join(dir, "secrets", name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	orders, billing, postgres, broker := freePort(t), freePort(t), freePort(t), freePort(t)
	override := fmt.Sprintf(`
services:
  postgres: { ports: ["127.0.0.1:%d:5432"] }
  nats: { ports: ["127.0.0.1:%d:4222"] }
  orders: { environment: { ORDERS_ACK_WAIT: 2s, ORDERS_LEASE: 2s } }
  billing: { environment: { BILLING_ACK_WAIT: 2s, BILLING_LEASE: 2s } }
configs:
  nats: { file: %q }
`, postgres, broker, filepath.Join(dir, "nats.conf"))
	for name, text := range map[string]string{"nats.conf": natsConf(t, tester), "override.yml": override} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil { // the containers' users are strangers
			t.Fatal(err)
		}
	}
	var paths []string
	for _, f := range files {
		paths = append(paths, filepath.Join(root, f))
	}
	paths = append(paths, filepath.Join(dir, "override.yml"))
	c := &containers{
		project: fmt.Sprintf("oncebox-chaos-%d-%d", os.Getpid(), orders), key: secret("api-key"),
		postgres: fmt.Sprintf("postgres://postgres:%s@127.0.0.1:%d/", secret("postgres"), postgres),
		nats:     fmt.Sprintf("nats://127.0.0.1:%d", broker),
		cluster:  len(files) > 1,
		system: &system{
			orders:  &service{name: "orders", addr: fmt.Sprintf("127.0.0.1:%d", orders)},
			billing: &service{name: "billing", addr: fmt.Sprintf("127.0.0.1:%d", billing)}},
	}
	// The shell's variables win over those of a .env that somebody has in the repository.
	c.env = append(os.Environ(), "COMPOSE_PROJECT_NAME="+c.project, "COMPOSE_FILE="+strings.Join(paths, string(os.PathListSeparator)),
		"COMPOSE_PROFILES=", "IDEMPOTENCY_STORE=postgres", "ONCEBOX_SECRETS="+filepath.Join(dir, "secrets"),
		fmt.Sprint("ORDERS_PORT=", orders), fmt.Sprint("BILLING_PORT=", billing))
	t.Cleanup(func() {
		if t.Failed() {
			logs, err := c.run(context.Background(), "compose", "logs", "--no-color", "--tail", "40")
			t.Logf("the ends of the logs: %v\n%s", err, logs)
		}
		if out, err := c.run(context.Background(), "compose", "down", "--volumes", "--remove-orphans", "--rmi", "local"); err != nil {
			t.Errorf("remove the containers: %v\n%s", err, out)
		}
	})
	c.docker(t, "compose", "up", "--detach", "--build", "--wait", "--wait-timeout", "300")
	c.look(t)
	return c
}

// look opens connections for the judge, anew: those of before a fault may lead nowhere.
func (c *containers) look(t testing.TB) {
	t.Helper()
	for _, s := range []*service{c.orders, c.billing} {
		db, err := pgxpool.New(t.Context(), c.postgres+s.name)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(db.Close)
		s.db = db
	}
	nc, err := nats.Connect(c.nats, append(as(tester), nats.MaxReconnects(-1), nats.PingInterval(time.Second), nats.IgnoreDiscoveredServers())...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	if c.js, err = jetstream.New(nc); err != nil {
		t.Fatal(err)
	}
}

// docker runs the command, which has to succeed, and returns what it wrote.
func (c *containers) docker(t testing.TB, args ...string) string {
	t.Helper()
	out, err := c.run(t.Context(), args...)
	if err != nil {
		t.Fatalf("docker %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (c *containers) run(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Minute) // the first build of all dependencies
	defer cancel()
	cmd := exec.CommandContext(ctx, "docker", args...)
	cmd.Env = c.env
	var complaints strings.Builder
	cmd.Stderr = &complaints
	out, err := cmd.Output()
	if err != nil {
		return string(out) + complaints.String(), err
	}
	return strings.TrimSpace(string(out)), nil
}

func absolute(t testing.TB, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join(repository, name))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func freePort(t testing.TB) int {
	t.Helper()
	port, err := devstack.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	return port
}
