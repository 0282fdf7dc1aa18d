package chaos

import (
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/dotenv"
	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
	natsserver "github.com/nats-io/nats-server/v2/server"
)

// These tests read docker-compose.yml as docker compose does, where no engine runs.

const repository = ".."

// gracefulStop is how long a service may take to stop; the engine must not kill it before.
const gracefulStop = 10 * time.Second

// composeEnv is what make env writes into .env: without it the file must not load.
var composeEnv = types.Mapping{"ONCEBOX_SECRETS": "./secrets"}

func readRepositoryFile(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(repository, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// loadCompose loads docker-compose.yml, with what overrides it behind it.
func loadCompose(ctx context.Context, env types.Mapping, yaml string, overrides ...string) (*types.Project, error) {
	dir, err := filepath.Abs(repository)
	if err != nil {
		return nil, err
	}
	files := []types.ConfigFile{{Filename: filepath.Join(dir, "docker-compose.yml"), Content: []byte(yaml)}}
	for _, yaml := range overrides {
		files = append(files, types.ConfigFile{Filename: filepath.Join(dir, "override.yml"), Content: []byte(yaml)})
	}
	return loader.LoadWithContext(ctx, types.ConfigDetails{
		WorkingDir:  dir,
		ConfigFiles: files,
		Environment: maps.Clone(env), // the loader adds to it
	}, loader.WithProfiles([]string{"demo", "observability", "operate", "redis"}))
}

func TestComposeFileKeepsItsPromises(t *testing.T) {
	t.Parallel()
	project, err := loadCompose(t.Context(), composeEnv, readRepositoryFile(t, "docker-compose.yml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, fault := range append(composeFaults(project, readRepositoryFile(t, "Dockerfile")),
		checkScraped(project, readRepositoryFile(t, "deploy/prometheus/prometheus.yml"))...) {
		t.Error(fault)
	}
}

// Each of these mistakes must be seen, by the fault that names it.
func TestMistakesInTheComposeFileAreFound(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, old, new, want string }{
		{"port on all addresses", `"127.0.0.1:${ORDERS_PORT:-8080}:8080"`, `"8080:8080"`, "orders: port 8080 is published on every address"},
		{"database published", "tmpfs: [/tmp, /var/run/postgresql]", `ports: ["127.0.0.1:5432:5432"]`, "postgres: is published"},
		{"admin published", "${ORDERS_PORT:-8080}:8080", "${ORDERS_PORT:-8080}:8090", "orders: its admin listener is published"},
		{"metrics on all addresses", `"127.0.0.1:${PROMETHEUS_PORT:-9090}:9090"`, `"9090:9090"`, "prometheus: is published"},
		{"literal password", "POSTGRES_PASSWORD_FILE: /run/secrets/postgres", "POSTGRES_PASSWORD: postgres", "postgres: POSTGRES_PASSWORD is in its environment"},
		{"password of the environment", "POSTGRES_PASSWORD_FILE: /run/secrets/postgres", "POSTGRES_PASSWORD: $ONCEBOX_SECRETS", "postgres: POSTGRES_PASSWORD is in its environment"},
		{"password in a URL", "postgres://orders_app@", "postgres://orders_app:secret@", "orders: ORDERS_DATABASE_URL has a password"},
		{"another's secret", "nats-orders, redis, api-keys", "nats-orders, nats-billing, api-keys", "orders: is given nats-billing, which it does not name"},
		{"a secret that is not given", "secrets: [orders-owner]", "secrets: []", "orders-migrate: is not given /run/secrets/orders-owner"},
		{"root", `user: "65532:65532"`, `user: "0"`, "nats: runs as root"},
		{"no health check", `test: ["CMD", "/billing", "health"]`, "disable: true", "billing: no health check"},
		{"pg_isready over the socket", `"-h", "127.0.0.1", `, "", "postgres: pg_isready without -h"},
		{"started, not healthy", "nats: { condition: service_healthy }", "nats: { condition: service_started }", "orders: does not wait until nats is healthy"},
		{"no migration", "billing-migrate: { condition: service_completed_successfully }", "", "billing: does not wait until billing-migrate is done"},
		{"serves as the owner", "postgres://orders_app@", "postgres://orders_owner@", "orders: serves with the owner's rights"},
		{"relays as the owner", "postgres://billing_relay@", "postgres://billing_owner@", "billing: serves with the owner's rights"},
		{"migrates itself", `ORDERS_MIGRATE: "false"`, `ORDERS_MIGRATE: "true"`, "orders: migrates by itself"},
		{"job for ever", "restart: on-failure\n  command", "restart: unless-stopped\n  command", "orders-migrate: is a job, and restarted"},
		{"no wait", "postgres: { condition: service_healthy }\n      nats:", "nats:", "billing: does not wait until postgres is healthy"},
		{"writable root", "read_only: true", "read_only: false", "nats: its root is writable"},
		{"capabilities", "cap_drop: [ALL]", "cap_drop: [NET_RAW]", "orders: keeps capabilities"},
		{"capabilities given back", "build: { context: ., target: orders }", "build: { context: ., target: orders }\n    cap_add: [NET_ADMIN]", "orders: is given capabilities"},
		{"privileges", `["no-new-privileges:true"]`, "[]", "billing: may gain privileges"},
		{"root's image", "target: orders }", "target: build }", "orders: its image is not one of a user without rights"},
		{"no such stage", "target: billing }", "target: charges }", "billing: Dockerfile has no stage charges"},
		{"anonymous volume", `"postgres:/var/lib/postgresql/data"`, `"/var/lib/postgresql/data"`, "postgres: /var/lib/postgresql/data is on no named volume"},
		{"folder of the host", `"nats:/data"`, `"./data:/data"`, "nats: /data is on no named volume"},
		{"data elsewhere", `"nats:/data"`, `"nats:/jetstream"`, "nats: nothing keeps /data"},
		{"any version", "nats:2.15-alpine", "nats", "nats: its image has no version"},
		{"killed while it stops", "stop_grace_period: 15s # a graceful", "stop_grace_period: 9s # a graceful", "orders: is killed after 9s"},
		{"not restarted", "restart: unless-stopped", `restart: "no"`, "billing: is not restarted"},
		{"no keys", "ORDERS_API_KEYS_FILE: /run/secrets/api-keys", "ORDERS_AUTH: off", "orders: lets in whoever comes"},
		{"other keys", "BILLING_API_KEYS_FILE: /run/secrets/api-keys", "BILLING_API_KEYS_FILE: /etc/keys", "billing: lets in whoever comes"},
		{"page on all addresses", `"127.0.0.1:${DEMO_PORT:-8070}:8070"`, `"8070:8070"`, "demo: port 8070 is published on every address"},
		{"page before the services", "billing: { condition: service_healthy }", "billing: { condition: service_started }", "demo: does not wait until billing is healthy"},
		{"page reads before it may", "demo-migrate: { condition: service_completed_successfully }", "", "demo: does not wait until demo-migrate is done"},
		{"page with the owner's rights", "postgres://demo@postgres:5432/orders", "postgres://orders_owner@postgres:5432/orders", "demo: does not go to orders by its own role"},
		{"no such file", "deploy/nats/nats.conf", "deploy/nats.conf", "config nats:"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			good := readRepositoryFile(t, "docker-compose.yml")
			bad := strings.ReplaceAll(good, c.old, c.new)
			if bad == good {
				t.Fatalf("docker-compose.yml has no %q to spoil", c.old)
			}
			project, err := loadCompose(t.Context(), composeEnv, bad)
			if err != nil {
				t.Fatal(err)
			}
			faults := composeFaults(project, readRepositoryFile(t, "Dockerfile"))
			if !slices.ContainsFunc(faults, func(f string) bool { return strings.HasPrefix(f, c.want) }) {
				t.Errorf("found %q, and not %q", faults, c.want)
			}
		})
	}
}

func TestComposeFileWithoutSecretsSaysWhatToRun(t *testing.T) {
	t.Parallel()
	for what, env := range map[string]types.Mapping{"missing": {}, "empty": {"ONCEBOX_SECRETS": ""}} {
		_, err := loadCompose(t.Context(), env, readRepositoryFile(t, "docker-compose.yml"))
		if err == nil || !strings.Contains(err.Error(), "ONCEBOX_SECRETS") || !strings.Contains(err.Error(), "make env") {
			t.Errorf("%s: got error %v, want one that names it and make env", what, err)
		}
	}
}

func TestMakeEnvWritesNewPasswordsAndKeepsThoseThatAreThere(t *testing.T) {
	t.Parallel()
	makefile, err := filepath.Abs(filepath.Join(repository, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	makeEnv := func(dir string) (string, error) {
		out, err := exec.CommandContext(t.Context(), "make", "-C", dir, "-f", makefile, "env").CombinedOutput()
		return string(out), err
	}
	dir := t.TempDir()
	if out, err := makeEnv(dir); err != nil {
		t.Fatalf("make env: %v\n%s", err, out)
	}
	env, err := dotenv.Read(filepath.Join(dir, ".env"))
	if err != nil {
		t.Fatal(err)
	}
	project, err := loadCompose(t.Context(), env, readRepositoryFile(t, "docker-compose.yml"), readRepositoryFile(t, "docker-compose.cluster.yml"))
	if err != nil {
		t.Fatalf("docker-compose.yml and docker-compose.cluster.yml do not load with what make env wrote: %v", err)
	}
	secrets := filepath.Join(dir, "secrets")
	// Nobody else on the machine comes to the files; the containers' users, who are strangers, are handed them one by one.
	mode(t, secrets, 0o700)
	read := func(name string) string {
		t.Helper()
		mode(t, filepath.Join(secrets, name), 0o644)
		b, err := os.ReadFile(filepath.Join(secrets, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	seen := map[string]string{}
	for name := range project.Secrets {
		value := read(name)
		switch name {
		case "api-keys":
			if want := fmt.Sprintf("default:me:%x\n", sha256.Sum256([]byte(read("api-key")))); value != want {
				t.Errorf("api-keys is %q, want %q", value, want)
			}
			continue
		case "nats-passwords":
			if want := natsPasswords(read("nats-orders"), read("nats-billing"), read("nats-demo")); value != want {
				t.Errorf("nats-passwords is %q, want %q", value, want)
			}
			continue
		case "nats-cluster-routes":
			if want := natsRoutes(read("nats-cluster")); value != want {
				t.Errorf("nats-cluster-routes is %q, want %q", value, want)
			}
			continue
		}
		if !regexp.MustCompile(`^[0-9a-f]{48}$`).MatchString(value) { // 24 bytes
			t.Errorf("%s is %q, want 48 hexadecimal digits", name, value)
		}
		if other, found := seen[value]; found {
			t.Errorf("%s and %s are the same", name, other)
		}
		seen[value] = name
	}

	was := read("postgres")
	out, err := makeEnv(dir)
	if err == nil || !strings.Contains(out, "secrets/ is there") {
		t.Errorf("the second make env: %v, %q, want a refusal", err, out)
	}
	if read("postgres") != was {
		t.Error("the second make env changed a password")
	}
}

func mode(t *testing.T, file string, want os.FileMode) {
	t.Helper()
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != want {
		t.Errorf("%s: %v, %v; want mode %v", file, info, err, want)
	}
}

// natsPasswords are the passwords of the users of nats.conf, as the file that it includes has them.
func natsPasswords(orders, billing, demo string) string {
	return fmt.Sprintf("NATS_ORDERS_PASSWORD: %q\nNATS_BILLING_PASSWORD: %q\nNATS_DEMO_PASSWORD: %q\n", orders, billing, demo)
}

func TestNATSConfigurationSyncsEachMessageAndKnowsItsWriters(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"nats.conf":      readRepositoryFile(t, "deploy/nats/nats.conf"),
		"passwords.conf": natsPasswords("12345", "12345", "12345"), // without its quotes, a number
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	opts, err := natsserver.ProcessConfigFile(filepath.Join(dir, "nats.conf"))
	if err != nil {
		t.Fatal(err)
	}
	if !opts.JetStream || !opts.SyncAlways || opts.StoreDir != "/data" {
		t.Errorf("JetStream %t, sync always %t, store in %q; want it on, always, and in the volume's /data", opts.JetStream, opts.SyncAlways, opts.StoreDir)
	}
	if opts.HTTPHost != "127.0.0.1" || opts.HTTPPort != 8222 {
		t.Errorf("monitoring is on %s:%d, want 127.0.0.1:8222", opts.HTTPHost, opts.HTTPPort)
	}
	own := map[string]string{"orders": "orders.>", "billing": "billing.>"}
	for _, u := range opts.Users {
		if u.Password != "12345" {
			t.Errorf("user %s has password %q, not the one of the file", u.Username, u.Password)
		}
		// What these lists let through and what not, TestNATSUsersHaveNoMoreRightsThanTheirWorkNeeds tries.
		p := u.Permissions
		if u.Username == "demo" { // who looks on
			if p == nil || p.Subscribe == nil || !slices.Equal(p.Subscribe.Allow, []string{"_INBOX_demo.>"}) {
				t.Errorf("user demo is not bound to its own inbox: %+v", p)
			}
			continue
		}
		if p == nil || p.Publish == nil || !slices.Contains(p.Publish.Allow, own[u.Username]) ||
			p.Subscribe == nil || !slices.Equal(p.Subscribe.Allow, []string{"_INBOX_" + u.Username + ".>", "oncebox.wake." + u.Username, "oncebox.heal." + u.Username}) {
			t.Errorf("user %s is not bound to its own subjects and its own inbox: %+v", u.Username, p)
		}
		delete(own, u.Username)
	}
	if len(own) > 0 || opts.NoAuthUser != "" {
		t.Errorf("no user for %v; without a password one is %q", slices.Collect(maps.Keys(own)), opts.NoAuthUser)
	}
}
