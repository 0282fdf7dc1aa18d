package devstack

import (
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"
)

// helperEnv holds a helperSpec in the environment of a process that is to be a nats-server.
const helperEnv = "ONCEBOX_NATS_SERVER"

// helperSpec is what the parent tells the nats-server.
type helperSpec struct {
	Host       string
	Port       int
	StoreDir   string
	SyncAlways bool
	Config     string

	MonitorPort int
	Name        string
	Routes      []int
}

// options are nats-server's.
func (s helperSpec) options() (*natsserver.Options, error) {
	opts := &natsserver.Options{JetStream: true, SyncAlways: s.SyncAlways}
	if s.Config != "" {
		var err error
		if opts, err = natsserver.ProcessConfigFile(s.Config); err != nil {
			return nil, err
		}
	}
	opts.Host, opts.Port, opts.StoreDir = s.Host, s.Port, s.StoreDir
	opts.HTTPHost, opts.HTTPPort = s.Host, s.MonitorPort
	opts.NoSigs, opts.Logtime, opts.ServerName = true, true, s.Name
	if len(s.Routes) > 0 {
		opts.Cluster = natsserver.ClusterOpts{Name: "oncebox", Host: s.Host, Port: s.Routes[0]}
		for _, port := range s.Routes[1:] {
			opts.Routes = append(opts.Routes, &url.URL{Scheme: "nats", Host: fmt.Sprintf("%s:%d", s.Host, port)})
		}
	}
	return opts, nil
}

// helperPipe is the file descriptor on which the parent waits for one byte.
const helperPipe = 3

// helperReady is set by Helper. Without it a process that was started to be a nats-server would start another one.
var helperReady atomic.Bool

// Helper must be the first call in main or TestMain of a program that starts NATS. In such a program's own run it returns at
// once. In the run that StartNATS starts it is the nats-server: it serves until SIGTERM and does not return.
func Helper() {
	spec, ok := os.LookupEnv(helperEnv)
	if !ok {
		helperReady.Store(true)
		return
	}
	if err := serveNATS(spec); err != nil {
		fmt.Fprintln(os.Stderr, "nats-server:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func serveNATS(spec string) error {
	var s helperSpec
	if err := json.Unmarshal([]byte(spec), &s); err != nil {
		return fmt.Errorf("%s: %w", helperEnv, err)
	}
	terminate := make(chan os.Signal, 1)
	signal.Notify(terminate, syscall.SIGTERM)

	opts, err := s.options()
	if err != nil {
		return err
	}
	srv, err := natsserver.NewServer(opts)
	if err != nil {
		return err
	}
	srv.ConfigureLogger() // on stderr; its Fatalf, as for a port that is taken, ends the process
	srv.Start()
	if !srv.ReadyForConnections(startLimit) {
		return fmt.Errorf("not ready after %s", startLimit.Round(time.Second))
	}
	parent := os.NewFile(helperPipe, "parent")
	if _, err := parent.Write([]byte{1}); err != nil {
		return fmt.Errorf("tell the parent: %w", err)
	}
	parent.Close()
	<-terminate
	srv.Shutdown()
	srv.WaitForShutdown()
	return nil
}
