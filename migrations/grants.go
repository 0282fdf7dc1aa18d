package migrations

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

// Roles are the roles of a database whose owner only migrates it. Both must exist.
type Roles struct {
	// App serves: it reads and writes the lines' tables, and adds to the outbox.
	App string
	// Relay reads the outbox and keeps its cursor.
	Relay string
}

// Grant gives the roles what the lines' tables need of them and nothing else: what they had on the tables of the lines' schemas
// is taken away, in the same transaction. The rights are those of grants/<line>.sql, which psql takes too, with the
// variables app and relay. The pool's user must own the tables.
func Grant(ctx context.Context, pool *pgxpool.Pool, r Roles, lines ...Line) error {
	names := strings.NewReplacer(`:"app"`, pgx.Identifier{r.App}.Sanitize(), `:"relay"`, pgx.Identifier{r.Relay}.Sanitize())
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		// Two that grant at once collide in the catalog.
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1)", lock.DefaultLockID); err != nil {
			return err
		}
		for _, l := range lines {
			schema := pgx.Identifier{l.Schema}.Sanitize()
			if _, err := tx.Exec(ctx, names.Replace(`REVOKE ALL ON ALL TABLES IN SCHEMA `+schema+` FROM :"app", :"relay";
				GRANT USAGE ON SCHEMA `+schema+` TO :"app", :"relay"`)); err != nil {
				return fmt.Errorf("%s: %w", l.Name, err)
			}
		}
		for _, l := range lines {
			sql, err := fs.ReadFile(files, path.Join("grants", l.Name+".sql"))
			if err != nil {
				return err
			}
			_, err = tx.Exec(ctx, names.Replace("SET LOCAL search_path = "+pgx.Identifier{l.Schema}.Sanitize()+";\n"+string(sql)+
				"\nGRANT SELECT ON migrations_"+l.Name+` TO :"app"`))
			if err != nil {
				return fmt.Errorf("%s: %w", l.Name, err)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("grant rights to %s and %s: %w", r.App, r.Relay, err)
	}
	return nil
}

// ErrBehind says that a database lacks migrations.
var ErrBehind = errors.New("the database is not migrated")

// Check wraps [ErrBehind] unless the newest migration of each line is applied. A database that is ahead, as while a newer
// release is rolled out, is right: migrations only add what older releases do not miss.
func Check(ctx context.Context, pool *pgxpool.Pool, lines ...Line) error {
	for _, l := range lines {
		newest, err := l.newest()
		if err != nil {
			return fmt.Errorf("check %s: %w", l.Name, err)
		}
		table := pgx.Identifier{l.Schema, "migrations_" + l.Name}.Sanitize()
		var there bool
		var applied int64
		if err = pool.QueryRow(ctx, "SELECT to_regclass($1) IS NOT NULL", table).Scan(&there); err == nil && there {
			err = pool.QueryRow(ctx, "SELECT COALESCE(max(version_id), 0) FROM "+table+" WHERE is_applied").Scan(&applied)
		}
		if err != nil {
			return fmt.Errorf("check %s: %w", l.Name, err)
		}
		if applied < newest {
			return fmt.Errorf("%w: %s is at version %d, and this release needs %d", ErrBehind, l.Name, applied, newest)
		}
	}
	return nil
}

// newest is the version of the line's last file.
func (l Line) newest() (int64, error) {
	dir, err := l.Files()
	if err != nil {
		return 0, err
	}
	entries, err := fs.ReadDir(dir, ".")
	if err != nil {
		return 0, err
	}
	var newest int64
	for _, e := range entries {
		v, err := goose.NumericComponent(e.Name())
		if err != nil {
			return 0, err
		}
		newest = max(newest, v)
	}
	return newest, nil
}
