package devstack

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// PostgresConfig says how to start a Postgres of our own. The zero value is one for tests.
type PostgresConfig struct {
	// Dir is the server's folder, for nothing else: data and log. It is made when it is missing; a cluster that is found in
	// it is started again. The user postgres must be able to pass through its parents when we are root. Empty is a new
	// folder in /var/tmp/oncebox-<uid>, which the next start of anything there removes if this process dies without
	// Remove.
	Dir string
	// Fsync makes commits durable. Without it nothing is lost when the server is killed, but all may be when the machine is.
	// False is for tests only.
	Fsync bool
	// Settings are set on the server's command line, such as "log_statement": "all".
	Settings map[string]string
}

// A Postgres is a server that this process started, or the one that DATABASE_URL names. Its methods may be called from any
// goroutine; while it restarts they wait.
type Postgres struct {
	base *url.URL // of the superuser, without a database
	srv  *server  // nil: named by DATABASE_URL
}

const (
	superuser = "postgres"
	// maxConnections is enough for two services with their pools and for tests in parallel.
	maxConnections = 300
	// readyPoll is how often the start looks whether the server is ready: it tells nobody.
	readyPoll = 5 * time.Millisecond
	// startLimit bounds a start whose context does not.
	startLimit = time.Minute
)

// OpenPostgres connects to the server that DATABASE_URL names, as the superuser that it names, and otherwise is
// [StartPostgres]. Such a server cannot be restarted, and Stop and Remove leave it alone.
func OpenPostgres(ctx context.Context, cfg PostgresConfig) (*Postgres, error) {
	given := os.Getenv("DATABASE_URL")
	if given == "" {
		return StartPostgres(ctx, cfg)
	}
	base, err := url.Parse(given)
	if err != nil || (base.Scheme != "postgres" && base.Scheme != "postgresql") {
		return nil, errors.New("DATABASE_URL must have the form postgres://user:password@host:port/database")
	}
	conn, err := pgx.Connect(ctx, given)
	if err != nil {
		return nil, fmt.Errorf("DATABASE_URL: %w", err)
	}
	return &Postgres{base: base}, conn.Close(ctx)
}

// StartPostgres starts a server on a free port of 127.0.0.1 and returns when it accepts connections, in less than a second.
// Its superuser is postgres, without a password. When we are root it runs as the user postgres, or nobody. ctx bounds the
// start only; the server runs until Stop or Remove, or until this process ends.
//
// It returns [ErrNoPostgres] when there are no binaries; see [InstallPostgres].
func StartPostgres(ctx context.Context, cfg PostgresConfig) (*Postgres, error) {
	dir, err := openFolder(cfg.Dir, "postgres")
	if err != nil {
		return nil, fmt.Errorf("start Postgres: %w", err)
	}
	return startPostgres(ctx, cfg, dir)
}

func startPostgres(ctx context.Context, cfg PostgresConfig, dir *folder) (*Postgres, error) {
	bin, err := postgresBinaries(debianBinaries)
	if err != nil {
		return nil, errors.Join(err, dir.abandon())
	}
	user, err := unprivileged()
	if err != nil {
		return nil, errors.Join(err, dir.abandon())
	}
	l := &postgresLauncher{bin: bin, user: user, cfg: cfg}
	srv := &server{folder: dir, launch: l.launch}
	l.server = srv
	if err := l.start(ctx); err != nil {
		return nil, errors.Join(err, dir.abandon())
	}
	return &Postgres{srv: srv, base: &url.URL{
		Scheme:   "postgres",
		User:     url.User(superuser),
		Host:     fmt.Sprintf("%s:%d", loopback, srv.port),
		RawQuery: "sslmode=disable",
	}}, nil
}

// URL is the superuser's way to a database. It stays the same over a restart.
func (p *Postgres) URL(db string) string {
	u := *p.base
	u.Path = "/" + db
	return u.String()
}

// External tells whether DATABASE_URL named the server.
func (p *Postgres) External() bool { return p.srv == nil }

// Pid is the process id of the postmaster, and 0 of a server that is not ours.
func (p *Postgres) Pid() int {
	if p.External() {
		return 0
	}
	return p.srv.process().Pid()
}

// LogPath is the file with the server's log, and empty of a server that is not ours.
func (p *Postgres) LogPath() string {
	if p.External() {
		return ""
	}
	return p.srv.folder.log()
}

// Stop ends the server and its connections at once and in order (a "fast" shutdown) and keeps its files. When ctx ends
// first it is killed, and an error that wraps ctx's is returned. A stopped server can be restarted.
func (p *Postgres) Stop(ctx context.Context) error {
	if p.External() {
		return nil
	}
	return stopFast(ctx, p.srv.process())
}

// StopImmediate ends the server without a checkpoint, as a crash does: the next start recovers from the log.
func (p *Postgres) StopImmediate(ctx context.Context) error {
	if p.External() {
		return ErrExternal
	}
	return p.srv.process().end(ctx, syscall.SIGQUIT)
}

// Restart stops the server, if it still runs, and starts it with the same port, data and settings. It returns when the
// server accepts connections. Also after a failed Restart it may be tried again.
func (p *Postgres) Restart(ctx context.Context) error {
	if p.External() {
		return ErrExternal
	}
	return p.srv.restart(ctx, func(proc *Process) error { return stopFast(ctx, proc) })
}

// Remove stops the server, if it still runs, and deletes its files. Nothing else may be called after it but Remove.
func (p *Postgres) Remove() error {
	if p.External() {
		return nil
	}
	// Nothing of the data is needed any more. The postmaster itself kills its children after 5 s.
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return errors.Join(p.StopImmediate(ctx), p.srv.folder.remove())
}

func stopFast(ctx context.Context, proc *Process) error { return proc.end(ctx, syscall.SIGINT) }

// A postgresLauncher makes and starts one cluster.
type postgresLauncher struct {
	bin    string
	user   *syscall.Credential
	cfg    PostgresConfig
	server *server
}

func (l *postgresLauncher) start(ctx context.Context) error {
	if err := l.initdb(ctx); err != nil {
		return err
	}
	return l.server.start(ctx)
}

// initdb makes the cluster, unless the folder has one. It gets its name when it is whole: half of one would be taken for a
// cluster by the next start.
func (l *postgresLauncher) initdb(ctx context.Context) error {
	if _, err := os.Stat(l.server.folder.data()); err == nil {
		return nil
	}
	data := l.server.folder.newData()
	if err := errors.Join(os.RemoveAll(data), os.Mkdir(data, 0o700)); err != nil {
		return err
	}
	defer os.RemoveAll(data)
	if l.user != nil {
		if err := os.Chown(data, int(l.user.Uid), int(l.user.Gid)); err != nil {
			return err
		}
	}
	args := []string{"-D", data, "--username", superuser, "--auth", "trust", "--encoding", "UTF8", "--locale", "C", "--no-instructions"}
	if !l.cfg.Fsync {
		args = append(args, "--no-sync")
	}
	cmd := exec.CommandContext(ctx, filepath.Join(l.bin, "initdb"), args...)
	cmd.Dir = data // the user may not enter ours
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: l.user}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w: %s", err, lastLines(string(out), 5))
	}
	return os.Rename(data, l.server.folder.data())
}

func (l *postgresLauncher) launch(ctx context.Context, port int) (*Process, error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	log, written, err := l.server.logged()
	if err != nil {
		return nil, err
	}
	defer log.Close()
	data := l.server.folder.data()
	proc, err := StartProcess(ProcessConfig{
		Path:        filepath.Join(l.bin, "postgres"),
		Args:        l.args(data, port),
		Env:         []string{"LC_ALL=C"}, // errors are recognised by their English text
		Dir:         data,
		Output:      log,
		DeathSignal: syscall.SIGQUIT, // SIGKILL would leave shared memory and children behind
		credential:  l.user,
	})
	if err != nil {
		return nil, err
	}
	for !postmasterReady(data, proc.Pid()) {
		select {
		case <-proc.Done():
			return nil, died(ctx, "Postgres", proc, written())
		case <-ctx.Done():
			stop, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			return nil, errors.Join(died(ctx, "Postgres", proc, written()), proc.end(stop, syscall.SIGQUIT))
		case <-time.After(readyPoll):
		}
	}
	return proc, nil
}

func (l *postgresLauncher) args(data string, port int) []string {
	settings := map[string]string{
		"listen_addresses": loopback,
		"max_connections":  strconv.Itoa(maxConnections),
		// None: the default, /var/run/postgresql, is not ours, and a socket's path must not be longer than 107 bytes.
		"unix_socket_directories": "",
		"fsync":                   "on",
	}
	if !l.cfg.Fsync {
		settings["fsync"] = "off"
	}
	maps.Copy(settings, l.cfg.Settings)
	args := []string{"-D", data, "-p", strconv.Itoa(port)}
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		args = append(args, "-c", name+"="+settings[name])
	}
	return args
}

// postmasterReady reads what pg_ctl reads: a connection that succeeds could be to another server on that port.
func postmasterReady(data string, pid int) bool {
	b, err := os.ReadFile(filepath.Join(data, "postmaster.pid"))
	if err != nil {
		return false
	}
	lines := strings.Split(string(b), "\n")
	if len(lines) <= 7 || lines[0] != strconv.Itoa(pid) {
		return false
	}
	status := strings.TrimSpace(lines[7])
	return status == "ready" || status == "standby"
}
