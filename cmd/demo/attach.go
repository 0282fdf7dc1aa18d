package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/oncebox/oncebox/billing"
	"github.com/oncebox/oncebox/cmd/demo/page"
	"github.com/oncebox/oncebox/internal/trial"
	"github.com/oncebox/oncebox/orders"
)

const (
	// attachCommand serves the page beside services that run already.
	attachCommand = "attach"
	// healthCommand asks such a page whether it serves.
	healthCommand = "health"
)

// attachment is where the services are that the page is to show, as docker-compose.yml has them. The databases' role is one and the
// same: it reads what both services hold, and owns the database of the naive ledger.
type attachment struct {
	Listen           string `env:"DEMO_LISTEN" default:"127.0.0.1:8070" help:"Address of the page."`
	Address          string `env:"DEMO_ADDRESS" help:"Host and port by which browsers name it; requests by another name are refused. Default: as it listens."`
	OrdersDatabase   string `name:"orders-database-url" env:"DEMO_ORDERS_DATABASE_URL" required:"" help:"The database of orders."`
	BillingDatabase  string `name:"billing-database-url" env:"DEMO_BILLING_DATABASE_URL" required:"" help:"The database of billing."`
	NaiveDatabase    string `name:"naive-database-url" env:"DEMO_NAIVE_DATABASE_URL" required:"" help:"A database for the naive ledger."`
	DatabasePassword string `name:"database-password-file" env:"DEMO_DATABASE_PASSWORD_FILE" help:"File with the role's password."`
	NATSURL          string `name:"nats-url" env:"NATS_URL" required:"" help:"The NATS server."`
	NATSUser         string `name:"nats-user" env:"NATS_USER" help:"The page's user."`
	NATSPassword     string `name:"nats-password-file" env:"NATS_PASSWORD_FILE" help:"File with its password."`
	OrdersURL        string `name:"orders-url" env:"DEMO_ORDERS_URL" required:"" help:"The API of orders."`
	OrdersAdmin      string `name:"orders-admin-url" env:"DEMO_ORDERS_ADMIN_URL" required:"" help:"The admin listener of orders."`
	BillingAdmin     string `name:"billing-admin-url" env:"DEMO_BILLING_ADMIN_URL" required:"" help:"The admin listener of billing."`
	AdminToken       string `name:"admin-token-file" env:"DEMO_ADMIN_TOKEN_FILE" help:"File with the token that retries and drops need."`
	APIKey           string `name:"api-key-file" env:"DEMO_API_KEY_FILE" help:"File with a key for the API of orders."`
}

// attachMain runs one of the two commands.
func attachMain(run func(args []string) error) int {
	if err := run(os.Args[2:]); err != nil {
		fmt.Fprintf(os.Stderr, "demo %s: %v\n", os.Args[1], err)
		return 1
	}
	return 0
}

func (a *attachment) parse(args []string) error {
	parser, err := kong.New(a, kong.Name("demo "+attachCommand), kong.Description("Serves the Duplicate Slayer beside services that run already."))
	if err != nil {
		return err
	}
	if _, err := parser.Parse(args); err != nil {
		return err
	}
	if a.Address == "" {
		a.Address = a.Listen
	}
	return nil
}

// attach serves the page until a signal. It starts the naive consumer and the link, and has power over nothing else.
func attach(args []string) error {
	var a attachment
	if err := a.parse(args); err != nil {
		return err
	}
	signals, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, fail := context.WithCancelCause(signals)
	defer fail(nil)
	s := &stack{fail: fail}
	err := trial.Guarded(func() error { return a.serve(ctx, s) })()
	end, done := context.WithTimeout(context.Background(), stopLimit)
	defer done()
	return errors.Join(err, s.stop(end))
}

func (a *attachment) serve(ctx context.Context, s *stack) error {
	var err error
	if s.dir, err = os.MkdirTemp("", "oncebox-demo-"); err != nil {
		return err
	}
	s.onStop(func(context.Context) error { return os.RemoveAll(s.dir) })
	for _, db := range []struct {
		url  string
		pool **pgxpool.Pool
	}{{a.OrdersDatabase, &s.ordersDB}, {a.BillingDatabase, &s.billingDB}, {a.NaiveDatabase, &s.naives}} {
		if *db.pool, err = a.open(ctx, db.url); err != nil {
			return err
		}
		s.onStop(func(context.Context) error { (*db.pool).Close(); return nil })
	}
	if _, err := s.naives.Exec(ctx, strings.Replace(naiveTable, "CREATE TABLE", "CREATE TABLE IF NOT EXISTS", 1)); err != nil {
		return fmt.Errorf("the naive ledger: %w", err)
	}
	if s.js, err = a.connect(s); err != nil {
		return err
	}
	token, err := contents(a.AdminToken)
	key, err2 := contents(a.APIKey)
	if err := errors.Join(err, err2); err != nil {
		return err
	}
	s.ordersURL = a.OrdersURL
	lab := page.Lab{
		Orders: s.ordersDB, Billing: s.billingDB, Naive: s.naives, JetStream: s.js, Containers: true, NaiveDurable: naiveGroup, APIKey: key,
		Admins: []page.Admin{{Name: orders.Name, URL: a.OrdersAdmin, Token: token}, {Name: billing.Name, URL: a.BillingAdmin, Token: token}},
	}
	if _, err := naiveConsumer(ctx, s.js); err != nil {
		return err
	}
	if err := s.consumersThere(ctx); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", a.Listen)
	if err != nil {
		return fmt.Errorf("start the page: %w", err)
	}
	if err := s.servePage(ctx, listener, a.Address, lab, 42); err != nil {
		return errors.Join(err, listener.Close())
	}
	fmt.Printf("Break it yourself: http://%s/\n", a.Address)
	// Where a fault ends the naive consumer, it begins again, as its process does in make demo, and the page stays.
	for ctx.Err() == nil {
		err := trial.Guarded(func() error { return chargeStream(ctx, s.naives, s.js) })()
		if err != nil && ctx.Err() == nil {
			fmt.Fprintln(os.Stderr, "demo attach: the naive consumer begins again in a second:", err)
			_ = trial.Pause(ctx, time.Second) // the loop looks at ctx
		}
	}
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

// open connects as the page's role.
func (a *attachment) open(ctx context.Context, url string) (*pgxpool.Pool, error) {
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, err
	}
	cfg.ConnConfig.RuntimeParams["application_name"] = page.Application
	if a.DatabasePassword != "" {
		cfg.BeforeConnect = func(_ context.Context, c *pgx.ConnConfig) error {
			password, err := contents(a.DatabasePassword)
			c.Password = password
			return err
		}
	}
	return pgxpool.NewWithConfig(ctx, cfg)
}

// connect has replies come to an inbox of the user's own, which is all that it may listen to.
func (a *attachment) connect(s *stack) (jetstream.JetStream, error) {
	opts := []nats.Option{nats.Name("demo"), nats.MaxReconnects(-1), nats.RetryOnFailedConnect(true)}
	if a.NATSUser != "" {
		password, err := contents(a.NATSPassword)
		if err != nil {
			return nil, err
		}
		opts = append(opts, nats.UserInfo(a.NATSUser, password), nats.CustomInboxPrefix("_INBOX_"+a.NATSUser))
	}
	nc, err := nats.Connect(a.NATSURL, opts...)
	if err != nil {
		return nil, fmt.Errorf("connect to NATS: %w", err)
	}
	s.onStop(func(context.Context) error { nc.Close(); return nil })
	return jetstream.New(nc)
}

// contents are a secret's, "" of no file.
func contents(file string) (string, error) {
	if file == "" {
		return "", nil
	}
	b, err := os.ReadFile(file)
	return strings.TrimSpace(string(b)), err
}

// health asks the page on this machine, as its container's health check.
func health(args []string) error {
	var a attachment
	if err := a.parse(args); err != nil {
		return err
	}
	_, port, err := net.SplitHostPort(a.Listen)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:"+port+"/", nil)
	if err != nil {
		return err
	}
	req.Host = a.Address
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return errors.New(res.Status)
	}
	return nil
}
