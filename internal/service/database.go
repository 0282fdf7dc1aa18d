package service

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncebox/oncebox/migrations"
)

// lines are the migrations of a service's database.
func (d Definition) lines() []migrations.Line {
	return []migrations.Line{migrations.Outbox, migrations.Inbox, migrations.Idempotency, migrations.Heal, d.Line}
}

// Migrate applies the migrations of def, gives the roles their rights and returns.
func Migrate(ctx context.Context, d Database, def Definition) error {
	if err := d.validate(def.Name); err != nil {
		return err
	}
	return d.migrate(ctx, def, slog.Default())
}

func (d Database) migrate(ctx context.Context, def Definition, log *slog.Logger) error {
	pool, err := connect(ctx, d.DatabaseURL, 2, nil, log, password(d.PasswordFile)) // without the timeouts: a migration takes as long as it takes
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := migrations.Up(ctx, pool, def.lines()...); err != nil {
		return err
	}
	if d.AppRole == "" {
		return nil
	}
	return migrations.Grant(ctx, pool, migrations.Roles{App: d.AppRole, Relay: d.RelayRole}, def.lines()...)
}

// timeouts are what a session of the running service may take.
func (d Database) timeouts() map[string]string {
	params := map[string]string{"idle_in_transaction_session_timeout": "30000"} // of a process that stands still
	for name, t := range map[string]time.Duration{"statement_timeout": d.StatementTimeout, "lock_timeout": d.LockTimeout} {
		if t > 0 {
			params[name] = strconv.FormatInt(t.Milliseconds(), 10)
		}
	}
	return params
}

// serving are the parameters of the sessions that requests and messages are served by: timeouts, and no sequential scans. All that
// they ask is by an index. A session keeps the plan of a statement, and of a foreign key's check, and would choose to read the whole of a
// table that has a page or two; when that has grown it goes on so until autovacuum has been there: 30 ms for a key among 100,000,
// and 550 charges/s of 9,900.
func (d Database) serving() map[string]string {
	params := d.timeouts()
	params["enable_seqscan"] = "off"
	return params
}

// checkMigrated waits for a database that is away just now; one that lacks migrations is an error at once, which says what to do.
func (d Definition) checkMigrated(ctx context.Context, pool *pgxpool.Pool, log *slog.Logger) error {
	err := awaitPostgres(ctx, log, func() error { return migrations.Check(ctx, pool, d.lines()...) })
	if errors.Is(err, migrations.ErrBehind) {
		return fmt.Errorf("%w: run %s migrate", err, d.Name)
	}
	return err
}

// readPassword is the file's, without the white space around it, "" where there is no file.
func readPassword(file string) (string, error) {
	if file == "" {
		return "", nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(b)), nil
}

// password has each connection of a pool made with what the file says then: it may be changed, with the role's, without a restart.
func password(file string) func(*pgxpool.Config) {
	return func(cfg *pgxpool.Config) {
		if file == "" {
			return
		}
		cfg.ConnConfig.Password, _ = readPassword(file) // for whoever connects by the pool's settings, as a migration does
		cfg.BeforeConnect = func(_ context.Context, c *pgx.ConnConfig) error {
			// A file that cannot be read makes an empty password, which Postgres refuses: an outage like any other.
			c.Password, _ = readPassword(file)
			return nil
		}
	}
}

// relay is the database as the relay's role.
func (d Database) relay() (url, passwordFile string) {
	if d.RelayDatabaseURL == "" {
		return d.DatabaseURL, d.PasswordFile
	}
	return d.RelayDatabaseURL, d.RelayPassword
}

// connect waits for a database that is still starting, for half a minute. What waiting does not mend is an error at once: a
// wrong password, a server that nobody vouches for.
func connect(ctx context.Context, url string, maxConns int32, params map[string]string, log *slog.Logger, change ...func(*pgxpool.Config)) (*pgxpool.Pool, error) {
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("the database URL: %w", err)
	}
	cfg.MaxConns = maxConns
	maps.Copy(cfg.ConnConfig.RuntimeParams, params)
	for _, f := range change {
		f(cfg)
	}
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("the database URL: %w", err)
	}
	err = awaitPostgres(ctx, log, func() error { return pool.Ping(ctx) })
	if err != nil {
		pool.Close()
		return nil, fmt.Errorf("connect to Postgres: %w", err)
	}
	return pool, nil
}

// awaitPostgres repeats f for half a minute, unless waiting does not help.
func awaitPostgres(ctx context.Context, log *slog.Logger, f func() error) error {
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		err := f()
		if hopeless(err) {
			err = backoff.Permanent(err)
		}
		return struct{}{}, err
	},
		backoff.WithMaxElapsedTime(30*time.Second),
		backoff.WithNotify(func(err error, in time.Duration) { log.Warn("waiting for Postgres", "error", err, "retry_in", in) }))
	return err
}

func hopeless(err error) bool {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return strings.HasPrefix(pg.Code, "28") || pg.Code == "42501" // the password, or pg_hba.conf; a right that is missing
	}
	_, untrusted := errors.AsType[*tls.CertificateVerificationError](err)
	return untrusted || errors.Is(err, migrations.ErrBehind)
}
