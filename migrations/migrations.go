// Package migrations holds the DDL of each room as a line of numbered SQL files and applies it.
//
// A line belongs to one owner and has a version table of its own, so that an importer of outbox applies the outbox's line
// and nothing else:
//
//	err := migrations.Up(ctx, pool, migrations.Outbox)
package migrations

import (
	"context"
	"embed"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

//go:embed outbox inbox idempotency heal orders billing grants
var files embed.FS

// A Line is one owner's migrations.
type Line struct {
	// Name is the folder of the SQL files; goose's version table is named after it.
	Name string
	// Schema is where the line's tables go. It is made when it is missing.
	Schema string
}

// In returns the line with its tables in another schema.
func (l Line) In(schema string) Line {
	l.Schema = schema
	return l
}

// Files returns the line's SQL files, in goose's form. It fails when the line is none of ours.
func (l Line) Files() (fs.FS, error) {
	if _, err := fs.Stat(files, l.Name); err != nil {
		return nil, err
	}
	return fs.Sub(files, l.Name)
}

// SQL returns the line's DDL as plain SQL for another migration tool: one script, which names no schema but the one it begins
// with. It is the whole line as of this version of the module.
func (l Line) SQL() (string, error) {
	dir, err := l.Files()
	if err != nil {
		return "", err
	}
	names, err := fs.Glob(dir, "*.sql")
	if err != nil {
		return "", err
	}
	schema := pgx.Identifier{l.Schema}.Sanitize()
	var b strings.Builder
	fmt.Fprintf(&b, "CREATE SCHEMA IF NOT EXISTS %s;\nSET search_path = %s;\n\n", schema, schema)
	for _, name := range names {
		text, err := fs.ReadFile(dir, name)
		if err != nil {
			return "", err
		}
		for line := range strings.Lines(string(text)) {
			if strings.HasPrefix(line, "-- +goose Down") {
				break
			}
			if !strings.HasPrefix(line, "-- +goose") {
				b.WriteString(line)
			}
		}
	}
	return b.String(), nil
}

// The lines of Oncebox. Outbox, Inbox, Idempotency and Heal are the libraries', Orders and Billing the services'.
var (
	Outbox      = Line{Name: "outbox", Schema: "oncebox"}
	Inbox       = Line{Name: "inbox", Schema: "oncebox"}
	Idempotency = Line{Name: "idempotency", Schema: "oncebox"}
	Heal        = Line{Name: "heal", Schema: "oncebox"}
	Orders      = Line{Name: "orders", Schema: "public"}
	Billing     = Line{Name: "billing", Schema: "public"}
)

// lockWait is how long Up waits for another process that is migrating the same database.
const lockWait = time.Minute

// Up applies what is missing of each line, in the order given, and returns when all of it is committed. Calls at the same
// time, also of other processes, wait for each other by an advisory lock, for a minute at most. A second call does nothing.
// The pool's user must be allowed to create in the lines' schemas.
func Up(ctx context.Context, pool *pgxpool.Pool, lines ...Line) error {
	for _, l := range lines {
		if err := l.up(ctx, pool); err != nil {
			return fmt.Errorf("migrate %s: %w", l.Name, err)
		}
	}
	return nil
}

func (l Line) up(ctx context.Context, pool *pgxpool.Pool) error {
	if err := l.createSchema(ctx, pool); err != nil {
		return err
	}
	// The SQL files name no schema: the connection's search_path does.
	cfg := pool.Config().ConnConfig.Copy()
	cfg.RuntimeParams["search_path"] = pgx.Identifier{l.Schema}.Sanitize()
	db := stdlib.OpenDB(*cfg)
	defer db.Close()

	dir, err := l.Files()
	if err != nil {
		return err
	}
	locker, err := lock.NewPostgresSessionLocker(lock.WithLockTimeout(1, uint64(lockWait/time.Second)))
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(goose.DialectPostgres, db, dir,
		goose.WithTableName("migrations_"+l.Name),
		goose.WithSessionLocker(locker),
		goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return err
	}
	_, err = p.Up(ctx)
	return err
}

// createSchema takes goose's lock, in a transaction of its own: two CREATE SCHEMA IF NOT EXISTS at once can collide.
func (l Line) createSchema(ctx context.Context, pool *pgxpool.Pool) error {
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, fmt.Sprintf("SET LOCAL lock_timeout = %d", lockWait.Milliseconds())); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1)", lock.DefaultLockID); err != nil {
			return fmt.Errorf("wait for whoever is migrating: %w", err)
		}
		var exists bool
		if err := tx.QueryRow(ctx, "SELECT to_regnamespace(quote_ident($1)) IS NOT NULL", l.Schema).Scan(&exists); err != nil || exists {
			return err
		}
		_, err := tx.Exec(ctx, "CREATE SCHEMA "+pgx.Identifier{l.Schema}.Sanitize())
		return err
	})
}
