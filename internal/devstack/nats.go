package devstack

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"
)

// NATSConfig says how to start a nats-server of our own, with JetStream on disk.
type NATSConfig struct {
	// Dir is the server's folder, for nothing else: store and log. It is made when it is missing; streams that are found in
	// it are served again. Empty is a new folder in /var/tmp/oncebox-<uid>, which the next start of anything there removes
	// if this process dies without Remove.
	Dir string
	// SyncAlways makes JetStream sync before each ack (sync_interval: always). Without it, it syncs every 2 minutes: nothing
	// is lost when the server is killed, but acked messages may be when the machine is.
	SyncAlways bool
	// Port on 127.0.0.1; 0 is a free one.
	Port int
	// Config is a configuration file of nats-server's, whose users and limits then hold. Address, store and monitoring stay as
	// they are here, and SyncAlways is the file's. Env are the variables that the file names, as NAME=value.
	Config string
	Env    []string
	// MonitorPort on 127.0.0.1 is where the server tells of itself over HTTP; 0 is nowhere.
	MonitorPort int
	// Name and Routes make the server one of a cluster: Routes are the ports on 127.0.0.1 by which its servers know each other,
	// this one's first. See [StartNATSCluster].
	Name   string
	Routes []int
}

// A NATS is a nats-server that this process started, or the one that NATS_URL names. Its methods may be called from any
// goroutine; while it restarts they wait.
type NATS struct {
	url string
	srv *server // nil: named by NATS_URL
}

// OpenNATS returns the server that NATS_URL names, without connecting to it, and otherwise is [StartNATS]. A server that
// was named cannot be killed, paused or restarted, and Stop and Remove leave it alone.
func OpenNATS(ctx context.Context, cfg NATSConfig) (*NATS, error) {
	if given := os.Getenv("NATS_URL"); given != "" {
		return &NATS{url: given}, nil
	}
	return StartNATS(ctx, cfg)
}

// StartNATS starts a nats-server on 127.0.0.1 and returns when it accepts clients. The server is this executable, run again:
// main or TestMain must have called [Helper] first. ctx bounds the start only; the server runs until Stop, Kill or Remove,
// or until this process ends.
func StartNATS(ctx context.Context, cfg NATSConfig) (*NATS, error) {
	if !helperReady.Load() {
		return nil, errors.New("start NATS: call devstack.Helper first in main or TestMain")
	}
	dir, err := openFolder(cfg.Dir, "nats")
	if err != nil {
		return nil, fmt.Errorf("start NATS: %w", err)
	}
	l := &natsLauncher{cfg: cfg}
	l.server = &server{folder: dir, port: cfg.Port, launch: l.launch}
	if err := l.server.start(ctx); err != nil {
		return nil, errors.Join(err, dir.abandon())
	}
	return &NATS{srv: l.server, url: fmt.Sprintf("nats://%s:%d", loopback, l.server.port)}, nil
}

// StartNATSCluster starts n servers that know each other. On error none runs. They are ready for streams once they have chosen a
// leader, some seconds later.
func StartNATSCluster(ctx context.Context, n int, cfg NATSConfig) ([]*NATS, error) {
	routes := make([]int, n)
	for i := range routes {
		var err error
		if routes[i], err = FreePort(); err != nil {
			return nil, err
		}
	}
	var servers []*NATS
	for i := range n {
		cfg.Name = fmt.Sprint("server-", i+1)
		cfg.Routes = append([]int{routes[i]}, slices.Delete(slices.Clone(routes), i, i+1)...)
		s, err := StartNATS(ctx, cfg)
		if err != nil {
			for _, s := range servers {
				err = errors.Join(err, s.Remove())
			}
			return nil, err
		}
		servers = append(servers, s)
	}
	return servers, nil
}

// URL is where clients connect. It stays the same over a restart.
func (n *NATS) URL() string { return n.url }

// External tells whether NATS_URL named the server.
func (n *NATS) External() bool { return n.srv == nil }

// Pid is the server's process id, and 0 of a server that is not ours.
func (n *NATS) Pid() int {
	if n.External() {
		return 0
	}
	return n.srv.process().Pid()
}

// LogPath is the file with the server's log, and empty of a server that is not ours.
func (n *NATS) LogPath() string {
	if n.External() {
		return ""
	}
	return n.srv.folder.log()
}

// StorePath is the folder with JetStream's files, and empty of a server that is not ours. A test that plays the loss of the
// disk deletes it while the server is down.
func (n *NATS) StorePath() string {
	if n.External() {
		return ""
	}
	return n.srv.folder.data()
}

// Kill ends the server with SIGKILL and returns when it is gone. It can be restarted.
func (n *NATS) Kill() error { return n.own((*Process).Kill) }

// Pause stops the server where it is, its connections open, and returns when it stands still.
func (n *NATS) Pause() error { return n.own((*Process).Pause) }

// Continue lets a paused server go on.
func (n *NATS) Continue() error { return n.own((*Process).Continue) }

func (n *NATS) own(do func(*Process) error) error {
	if n.External() {
		return ErrExternal
	}
	return do(n.srv.process())
}

// Stop ends the server in order and keeps its files. When ctx ends first it is killed, and an error that wraps ctx's is
// returned. A stopped server can be restarted.
func (n *NATS) Stop(ctx context.Context) error {
	if n.External() {
		return nil
	}
	return n.srv.process().Stop(ctx)
}

// Restart stops the server, if it still runs, and starts it on the same port and files. It returns when the server accepts
// clients. Also after a failed Restart it may be tried again.
func (n *NATS) Restart(ctx context.Context) error {
	if n.External() {
		return ErrExternal
	}
	return n.srv.restart(ctx, func(p *Process) error { return p.Stop(ctx) })
}

// Remove kills the server, if it still runs, and deletes its files. Nothing else may be called after it but Remove.
func (n *NATS) Remove() error {
	if n.External() {
		return nil
	}
	return errors.Join(n.Kill(), n.srv.folder.remove())
}

// A natsLauncher starts this executable as a nats-server.
type natsLauncher struct {
	cfg    NATSConfig
	server *server
}

func (l *natsLauncher) launch(ctx context.Context, port int) (*Process, error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	spec, err := json.Marshal(helperSpec{Host: loopback, Port: port, StoreDir: l.server.folder.data(), SyncAlways: l.cfg.SyncAlways,
		MonitorPort: l.cfg.MonitorPort, Name: l.cfg.Name, Routes: l.cfg.Routes, Config: l.cfg.Config})
	if err != nil {
		return nil, err
	}
	log, written, err := l.server.logged()
	if err != nil {
		return nil, err
	}
	defer log.Close()
	ready, tell, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer ready.Close()
	proc, err := StartProcess(ProcessConfig{
		Path:       self,
		Env:        append([]string{helperEnv + "=" + string(spec)}, l.cfg.Env...),
		Output:     log,
		extraFiles: []*os.File{tell},
	})
	tell.Close() // so that the read below ends with the process
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = ready.SetReadDeadline(time.Now()) }) // a pipe has deadlines
	defer stop()
	if _, err := ready.Read(make([]byte, 1)); err != nil {
		kill := proc.Kill()
		return nil, errors.Join(died(ctx, "nats-server", proc, written()), kill)
	}
	return proc, nil
}
