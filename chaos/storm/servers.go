package main

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/redis/go-redis/v9"

	"github.com/oncebox/oncebox/events"
	"github.com/oncebox/oncebox/internal/devstack"
)

// The services, by their names. Nothing of theirs is compiled in here: they are seen from outside.
const (
	ordersName  = "orders"
	billingName = "billing"
)

// A direction is a stream and the durable that reads it.
type direction struct{ producer, stream, consumer string }

var directions = []direction{
	{ordersName, events.OrdersStream, billingName},
	{billingName, events.BillingStream, ordersName},
}

func (w *world) startPostgres(ctx context.Context) error {
	var err error
	if w.pg, err = devstack.StartPostgres(ctx, devstack.PostgresConfig{Fsync: true}); err != nil {
		return err
	}
	w.onStop(func(context.Context) error { return w.pg.Remove() })
	if w.super, err = w.pool(ctx, w.pg.URL("postgres")); err != nil {
		return err
	}
	return nil
}

func (w *world) pool(ctx context.Context, url string) (*pgxpool.Pool, error) {
	pool, err := pgxpool.New(ctx, url)
	if err != nil {
		return nil, err
	}
	w.onStop(func(context.Context) error { pool.Close(); return nil })
	return pool, nil
}

// natsReconnect is how often the storm itself tries to come back to the broker, and askLimit how long it waits for an answer.
const (
	natsReconnect = 50 * time.Millisecond
	askLimit      = 2 * time.Second
)

// operator is the user by which the storm itself looks into the broker and breaks it. deploy/nats/nats.conf has no such user.
const operator = "operator"

// startNATS starts the broker on deploy/nats/nats.conf.
func (w *world) startNATS(ctx context.Context) error {
	root, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/oncebox/oncebox").Output()
	if err != nil {
		return fmt.Errorf("find the repository: %w", err)
	}
	conf, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(root)), "deploy/nats/nats.conf"))
	if err != nil {
		return err
	}
	const users = "users = ["
	text := strings.Replace(string(conf), users, fmt.Sprintf("%s { user: %s, password: %q }", users, operator, w.natsPassword(operator)), 1)
	var passwords strings.Builder
	for _, user := range []string{ordersName, billingName, "demo"} {
		fmt.Fprintf(&passwords, "NATS_%s_PASSWORD: %q\n", strings.ToUpper(user), w.natsPassword(user))
	}
	for name, text := range map[string]string{"nats.conf": text, "passwords.conf": passwords.String()} {
		if err := os.WriteFile(w.file(name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	if w.nats, err = devstack.StartNATS(ctx, devstack.NATSConfig{Config: w.file("nats.conf")}); err != nil {
		return err
	}
	w.onStop(func(context.Context) error { return w.nats.Remove() })
	w.nc, err = nats.Connect(w.nats.URL(), nats.UserInfo(operator, w.natsPassword(operator)), nats.MaxReconnects(-1),
		nats.ReconnectWait(natsReconnect), nats.ReconnectJitter(0, 0), nats.Name("storm"))
	if err != nil {
		return fmt.Errorf("connect to NATS: %w", err)
	}
	w.onStop(func(context.Context) error { w.nc.Close(); return nil })
	w.js, err = jetstream.New(w.nc)
	return err
}

// natsPassword is a function of the user and of this run's own secret.
func (w *world) natsPassword(user string) string { return w.apiKey + "-" + user }

func (w *world) startRedis(ctx context.Context) error {
	var err error
	if w.redis, err = devstack.StartRedis(ctx, devstack.RedisConfig{}); err != nil {
		return err
	}
	w.onStop(func(context.Context) error { return w.redis.Remove() })
	o, err := redis.ParseURL(w.redis.URL())
	if err != nil {
		return err
	}
	w.cache = redis.NewClient(o)
	w.onStop(func(context.Context) error { return w.cache.Close() })
	return nil
}

// makeServices makes the databases with three roles each, migrates them, and makes two processes of each service, not started. The
// second ones publish one by one, the first ones in atomic batches, and the second ones' way to Postgres is a link; orders keeps keys
// in Postgres, billing in Redis.
func (w *world) makeServices(ctx context.Context) error {
	for _, service := range []string{ordersName, billingName} {
		owner, err := w.pg.CreateService(ctx, service)
		if err != nil {
			return err
		}
		db, err := w.pool(ctx, w.pg.URL(service))
		if err != nil {
			return err
		}
		if service == ordersName {
			w.ordersDB = db
		} else {
			w.billingDB = db
		}
		u, err := url.Parse(owner)
		if err != nil {
			return err
		}
		password, _ := u.User.Password()
		w.secrets = append(w.secrets, password)
		roles := map[string]*url.URL{}
		for _, role := range []string{"app", "relay"} {
			password := w.secret()
			if _, err := db.Exec(ctx, fmt.Sprintf("CREATE ROLE %[1]s_%[2]s LOGIN PASSWORD '%[3]s'; GRANT CONNECT ON DATABASE %[1]s TO %[1]s_%[2]s",
				service, role, password)); err != nil {
				return fmt.Errorf("make the roles of %s: %w", service, err)
			}
			as := *u
			as.User = url.UserPassword(service+"_"+role, password)
			roles[role] = &as
		}
		prefix := strings.ToUpper(service) + "_"
		migrate := exec.CommandContext(ctx, w.file(service), "migrate")
		migrate.Env = []string{prefix + "DATABASE_URL=" + owner, prefix + "APP_ROLE=" + service + "_app", prefix + "RELAY_ROLE=" + service + "_relay"}
		if out, err := migrate.CombinedOutput(); err != nil {
			return fmt.Errorf("%s migrate: %w\n%s", service, err, out)
		}
		for n := 1; n <= 2; n++ {
			if err := w.makeProgram(service, n, *roles["app"], *roles["relay"]); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *world) makeProgram(service string, n int, app, relay url.URL) error {
	name := fmt.Sprintf("%s-%d", service, n)
	public, err := devstack.FreePort()
	if err != nil {
		return err
	}
	admin, err := devstack.FreePort()
	if err != nil {
		return err
	}
	listen := fmt.Sprintf("127.0.0.1:%d", public)
	way, err := w.newLink("http/"+name, listen)
	if err != nil {
		return err
	}
	broker, err := w.newLink("nats/"+name, strings.TrimPrefix(w.nats.URL(), "nats://"))
	if err != nil {
		return err
	}
	mode, keys := "NATS_SYNC=always", []string{"IDEMPOTENCY_STORE=postgres"}
	if n == 2 {
		mode = "NATS_SYNC=interval"
		db, err := w.newLink("postgres/"+name, app.Host)
		if err != nil {
			return err
		}
		app.Host, relay.Host = db.addr(), db.addr()
	}
	if service == billingName {
		cache, err := w.newLink("redis/"+name, strings.TrimSuffix(strings.TrimPrefix(w.redis.URL(), "redis://"), "/0"))
		if err != nil {
			return err
		}
		keys = []string{"IDEMPOTENCY_STORE=redis", "REDIS_URL=redis://" + cache.addr() + "/0", "IDEMPOTENCY_LEASE=2s"}
	}
	prefix := strings.ToUpper(service) + "_"
	env := append(keys, mode, "NATS_URL=nats://"+service+":"+w.natsPassword(service)+"@"+broker.addr())
	for variable, value := range map[string]string{
		"DATABASE_URL": named(app, name), "RELAY_DATABASE_URL": named(relay, name+"-relay"), "MIGRATE": "false",
		"LISTEN": listen, "ADMIN": fmt.Sprintf("127.0.0.1:%d", admin), "AUTH": "keys", "API_KEYS_FILE": w.file("api-keys"),
		"ADMIN_TOKEN_FILE": w.file("token"), "LEASE": lease.String(), "ACK_WAIT": ackWait.String(), "HEAL_EVERY": healEvery.String(),
	} {
		env = append(env, prefix+variable+"="+value)
	}
	w.programs = append(w.programs, &program{name: name, service: service, path: w.file(service), env: env, way: way, turn: newTurn(),
		admin: fmt.Sprintf("http://127.0.0.1:%d", admin), log: filepath.Join(w.dir, name+".log"), fail: w.fail})
	return nil
}

// named has the sessions of a URL tell whose they are.
func named(u url.URL, application string) string {
	q := u.Query()
	q.Set("application_name", application)
	u.RawQuery = q.Encode()
	return u.String()
}

// consumer is JetStream's own account of a durable.
func (w *world) consumer(ctx context.Context, d direction) (*jetstream.ConsumerInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	c, err := w.js.Consumer(ctx, d.stream, d.consumer)
	if err != nil {
		return nil, err
	}
	return c.CachedInfo(), nil
}
