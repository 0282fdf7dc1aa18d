package devstack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/jackc/pgx/v5"
)

// StartStandby copies a running server (pg_basebackup) and starts the copy beside it, on a port of its own, as its standby: what
// is committed there comes here some time later. See [Postgres.Promote].
func StartStandby(ctx context.Context, primary *Postgres, cfg PostgresConfig) (*Postgres, error) {
	dir, err := openFolder(cfg.Dir, "postgres")
	if err != nil {
		return nil, fmt.Errorf("start a standby: %w", err)
	}
	if err := copyCluster(ctx, primary, dir); err != nil {
		return nil, errors.Join(fmt.Errorf("start a standby: %w", err), dir.abandon())
	}
	return startPostgres(ctx, cfg, dir)
}

func copyCluster(ctx context.Context, primary *Postgres, to *folder) error {
	user, err := unprivileged()
	if err != nil {
		return err
	}
	data := to.newData()
	if err := os.Mkdir(data, 0o700); err != nil {
		return err
	}
	defer os.RemoveAll(data)
	if user != nil {
		if err := os.Chown(data, int(user.Uid), int(user.Gid)); err != nil {
			return err
		}
	}
	if _, err := PostgresProgram(ctx, data, "pg_basebackup", "--pgdata", data, "--dbname", primary.URL("postgres"),
		"--wal-method", "stream", "--checkpoint", "fast", "--write-recovery-conf", "--no-sync"); err != nil {
		return err
	}
	return os.Rename(data, to.data())
}

// CutOff ends the stream of changes to a standby: what the primary commits from now on never comes.
func (p *Postgres) CutOff(ctx context.Context) error {
	return p.admin(ctx, "ALTER SYSTEM SET primary_conninfo = ''", "SELECT pg_reload_conf()",
		"DO $$ BEGIN WHILE EXISTS (SELECT FROM pg_stat_wal_receiver) LOOP PERFORM pg_sleep(0.01); END LOOP; END $$")
}

// Promote makes a standby a primary and returns when it takes writes.
func (p *Postgres) Promote(ctx context.Context) error { return p.admin(ctx, "SELECT pg_promote()") }

func (p *Postgres) admin(ctx context.Context, statements ...string) error {
	conn, err := pgx.Connect(ctx, p.URL("postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	for _, sql := range statements {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("%s: %w", sql, err)
		}
	}
	return nil
}

// PostgresProgram runs one of the programs that come with the servers, such as pg_dump, as the user that they run as, and returns
// what it said. dir is where it runs; "" is where we are.
func PostgresProgram(ctx context.Context, dir, name string, args ...string) (string, error) {
	bin, err := postgresBinaries(debianBinaries)
	if err != nil {
		return "", err
	}
	user, err := unprivileged()
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(bin, name), args...)
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: user}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s: %w: %s", name, err, lastLines(string(out), 5))
	}
	return string(out), nil
}

// DataPath is the folder with the cluster's files, and empty of a server that is not ours.
func (p *Postgres) DataPath() string {
	if p.External() {
		return ""
	}
	return p.srv.folder.data()
}
