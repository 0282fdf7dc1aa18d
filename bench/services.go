package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/internal/trial"
)

// servers are what this program is when it is run again as one of the servers that it measures.
var servers = map[string]func(context.Context) error{
	"keys":         serveKeys,
	"plain-orders": servePlainOrders,
	"peer-orders":  servePeerOrders,
	"peer-billing": servePeerBilling,
}

// The environment of such a server.
const (
	envListen   = "BENCH_LISTEN"
	envDatabase = "BENCH_DATABASE_URL"
	envNATS     = "BENCH_NATS_URL"
)

// servicePool is how many connections a service has, as Oncebox's services do by default.
const servicePool = 24

// serve runs a server of ours on the address and the database of its environment until ctx is done, with work beside.
func serve(ctx context.Context, routes func(*http.ServeMux, *pgxpool.Pool) error, work ...func(context.Context, *pgxpool.Pool) error) error {
	cfg, err := pgxpool.ParseConfig(os.Getenv(envDatabase))
	if err != nil {
		return err
	}
	cfg.MaxConns = servicePool
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return err
	}
	defer pool.Close()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	if err := routes(mux, pool); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", os.Getenv(envListen))
	if err != nil {
		return err
	}
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	done := make(chan error, len(work)+1)
	go func() { done <- server.Serve(listener) }()
	for _, w := range work {
		go func() { done <- w(ctx, pool) }()
	}
	select {
	case err = <-done:
	case <-ctx.Done():
	}
	return errors.Join(err, server.Close())
}

// A process is a server that runs.
type process struct {
	*devstack.Process
	url, admin string
	log        string
}

// again runs this program as one of servers, on a database.
func (s *stack) again(ctx context.Context, name, database, nats string) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	return s.start(ctx, name, self, []string{name}, addr, addr, envListen+"="+addr, envDatabase+"="+database, envNATS+"="+nats)
}

// service runs one of Oncebox's own binaries, with its defaults but for what env says.
func (s *stack) service(ctx context.Context, name, database, nats string, env ...string) (*process, error) {
	if err := s.build(ctx); err != nil {
		return nil, err
	}
	public, err := freeAddr()
	admin, err2 := freeAddr()
	if err := errors.Join(err, err2); err != nil {
		return nil, err
	}
	prefix := strings.ToUpper(name) + "_"
	return s.start(ctx, name, filepath.Join(s.binaries, name), nil, public, admin, append([]string{
		prefix + "LISTEN=" + public, prefix + "ADMIN=" + admin, prefix + "DATABASE_URL=" + database, prefix + "AUTH=off", "NATS_URL=" + nats}, env...)...)
}

// start returns when the server says that it is ready.
func (s *stack) start(ctx context.Context, name, path string, args []string, public, admin string, env ...string) (*process, error) {
	log, err := os.CreateTemp("", "oncebox-bench-"+name+"-*.log")
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p := &process{url: "http://" + public, admin: "http://" + admin, log: log.Name()}
	if p.Process, err = devstack.StartProcess(devstack.ProcessConfig{Path: path, Args: args, Env: env, Output: log}); err != nil {
		return nil, err
	}
	const limit = time.Minute
	ready, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for !p.ready(ready) {
		select {
		case <-p.Done():
			return nil, fmt.Errorf("%s ended at its start, %w; the end of its log: %s", name, p.Err(), p.lastLines())
		default:
		}
		if err := trial.Pause(ready, 10*time.Millisecond); err != nil {
			return nil, errors.Join(fmt.Errorf("%s is not ready: %w", name, err), p.end(ctx))
		}
	}
	return p, nil
}

func (p *process) ready(ctx context.Context) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.admin+"/readyz", nil)
	if err != nil {
		return false
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	defer res.Body.Close()
	return res.StatusCode == http.StatusOK
}

// end stops the server and removes its log.
func (p *process) end(ctx context.Context) error {
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 15*time.Second)
	defer cancel()
	return errors.Join(p.Stop(end), os.Remove(p.log))
}

func (p *process) lastLines() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	const tail = 1000
	return string(b[max(0, len(b)-tail):])
}

// build makes the services' binaries, once.
func (s *stack) build(ctx context.Context) error {
	if s.binaries != "" {
		return nil
	}
	dir, err := os.MkdirTemp("", "oncebox-bench-")
	if err != nil {
		return err
	}
	// Who runs this need not own the clone, and then git refuses to tell the version that would be stamped.
	if err := devstack.Build(ctx, dir, "-buildvcs=false", "./cmd/orders", "./cmd/billing"); err != nil {
		return errors.Join(err, os.RemoveAll(dir))
	}
	s.binaries = dir
	return nil
}

func (s *stack) removeBinaries() error {
	if s.binaries == "" {
		return nil
	}
	return os.RemoveAll(s.binaries)
}

func freeAddr() (string, error) {
	port, err := devstack.FreePort()
	return fmt.Sprintf("127.0.0.1:%d", port), err
}

// httpClient keeps a connection for each client.
var httpClient = &http.Client{Timeout: time.Minute, Transport: &http.Transport{MaxIdleConnsPerHost: 512}}
