package devstack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// RedisConfig says how to start a redis-server of our own.
type RedisConfig struct {
	// Dir is the server's folder, for nothing else: data and log. It is made when it is missing; data found in it is served again.
	// Empty is a new folder in /var/tmp/oncebox-<uid>, which the next start of anything there removes if this process dies
	// without Remove.
	Dir string
	// Settings are set on the server's command line, such as "maxmemory-policy": "allkeys-lru". By default it evicts nothing and
	// appends each write to a file, which it syncs each second.
	Settings map[string]string
}

// A Redis is a redis-server that this process started, or the one that REDIS_URL names. Its methods may be called from any
// goroutine; while it restarts they wait.
type Redis struct {
	url string
	srv *server // nil: named by REDIS_URL
}

// ErrNoRedis says that there is no redis-server, and what to type.
var ErrNoRedis = errors.New("no redis-server in PATH; install it with: sudo apt-get install -y --no-install-recommends redis-server " +
	"(or set REDIS_URL)")

// OpenRedis returns the server that REDIS_URL names, without connecting to it, and otherwise is [StartRedis]. A server that was
// named cannot be killed, paused or restarted, and Remove leaves it alone.
func OpenRedis(ctx context.Context, cfg RedisConfig) (*Redis, error) {
	if given := os.Getenv("REDIS_URL"); given != "" {
		return &Redis{url: given}, nil
	}
	return StartRedis(ctx, cfg)
}

// StartRedis starts a redis-server on a free port of 127.0.0.1 and returns when it answers. ctx bounds the start only; the server
// runs until Stop, Kill or Remove, or until this process ends. It returns [ErrNoRedis] when there is no binary.
func StartRedis(ctx context.Context, cfg RedisConfig) (*Redis, error) {
	binary, err := exec.LookPath("redis-server")
	if err != nil {
		return nil, ErrNoRedis
	}
	dir, err := openFolder(cfg.Dir, "redis")
	if err != nil {
		return nil, fmt.Errorf("start Redis: %w", err)
	}
	if err := os.MkdirAll(dir.data(), 0o700); err != nil {
		return nil, errors.Join(err, dir.abandon())
	}
	l := &redisLauncher{binary: binary, cfg: cfg}
	l.server = &server{folder: dir, launch: l.launch}
	if err := l.server.start(ctx); err != nil {
		return nil, errors.Join(err, dir.abandon())
	}
	return &Redis{srv: l.server, url: fmt.Sprintf("redis://%s:%d/0", loopback, l.server.port)}, nil
}

// URL is where clients connect. It stays the same over a restart.
func (r *Redis) URL() string { return r.url }

// External tells whether REDIS_URL named the server.
func (r *Redis) External() bool { return r.srv == nil }

// Pid is the server's process id, and 0 of a server that is not ours.
func (r *Redis) Pid() int {
	if r.External() {
		return 0
	}
	return r.srv.process().Pid()
}

// Kill ends the server with SIGKILL and returns when it is gone. It can be restarted.
func (r *Redis) Kill() error { return r.own((*Process).Kill) }

// Pause stops the server where it is, its connections open, and returns when it stands still.
func (r *Redis) Pause() error { return r.own((*Process).Pause) }

// Continue lets a paused server go on.
func (r *Redis) Continue() error { return r.own((*Process).Continue) }

func (r *Redis) own(do func(*Process) error) error {
	if r.External() {
		return ErrExternal
	}
	return do(r.srv.process())
}

// Stop ends the server in order and keeps its files. When ctx ends first it is killed, and an error that wraps ctx's is
// returned. A stopped server can be restarted.
func (r *Redis) Stop(ctx context.Context) error {
	if r.External() {
		return nil
	}
	return r.srv.process().Stop(ctx)
}

// Restart stops the server, if it still runs, and starts it on the same port and files.
func (r *Redis) Restart(ctx context.Context) error {
	if r.External() {
		return ErrExternal
	}
	return r.srv.restart(ctx, func(p *Process) error { return p.Stop(ctx) })
}

// Remove kills the server, if it still runs, and deletes its files. Nothing else may be called after it but Remove.
func (r *Redis) Remove() error {
	if r.External() {
		return nil
	}
	return errors.Join(r.Kill(), r.srv.folder.remove())
}

type redisLauncher struct {
	binary string
	cfg    RedisConfig
	server *server
}

func (l *redisLauncher) launch(ctx context.Context, port int) (*Process, error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	log, written, err := l.server.logged()
	if err != nil {
		return nil, err
	}
	defer log.Close()
	proc, err := StartProcess(ProcessConfig{Path: l.binary, Args: l.args(port), Dir: l.server.folder.data(), Output: log})
	if err != nil {
		return nil, err
	}
	for !redisReady(ctx, port, proc.Pid()) {
		select {
		case <-proc.Done():
			return nil, died(ctx, "redis-server", proc, written())
		case <-ctx.Done():
			return nil, errors.Join(died(ctx, "redis-server", proc, written()), proc.Kill())
		case <-time.After(readyPoll):
		}
	}
	return proc, nil
}

func (l *redisLauncher) args(port int) []string {
	settings := map[string]string{
		"bind": loopback, "port": fmt.Sprint(port), "dir": l.server.folder.data(), "save": "",
		"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction",
	}
	maps.Copy(settings, l.cfg.Settings)
	var args []string
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		args = append(args, "--"+name, settings[name])
	}
	return args
}

// redisReady asks the server on that port whether it is the process: it could be another one's.
func redisReady(ctx context.Context, port, pid int) bool {
	d := net.Dialer{Timeout: time.Second}
	conn, err := d.DialContext(ctx, "tcp", fmt.Sprintf("%s:%d", loopback, port))
	if err != nil {
		return false
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return false
	}
	if _, err := io.WriteString(conn, "INFO server\r\nINFO persistence\r\nQUIT\r\n"); err != nil {
		return false
	}
	answer, err := io.ReadAll(conn)
	return err == nil && strings.Contains(string(answer), fmt.Sprintf("process_id:%d\r\n", pid)) && strings.Contains(string(answer), "loading:0\r\n")
}
