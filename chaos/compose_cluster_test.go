package chaos

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/types"
	natsserver "github.com/nats-io/nats-server/v2/server"
)

// natsServers are the broker's names with docker-compose.cluster.yml. The first is that of docker-compose.yml alone.
var natsServers = []string{"nats", "nats-2", "nats-3"}

func TestComposeFileOfTheClusterKeepsItsPromises(t *testing.T) {
	t.Parallel()
	project, err := loadCompose(t.Context(), composeEnv, readRepositoryFile(t, "docker-compose.yml"), readRepositoryFile(t, "docker-compose.cluster.yml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, fault := range append(composeFaults(project, readRepositoryFile(t, "Dockerfile")), clusterFaults(project)...) {
		t.Error(fault)
	}
}

// Each of these mistakes must be seen, by the fault that names it.
func TestMistakesInTheComposeFileOfTheClusterAreFound(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, old, new, want string }{
		{"two of one name", "{ NATS_SERVER_NAME: nats-3 }", "{ NATS_SERVER_NAME: nats-2 }", "nats-3: is called nats-2"},
		{"alone", "/etc/nats/cluster.conf\"]", "/etc/nats/nats.conf\"]", "nats: is not told that it is one of a cluster"},
		{"no configuration", "target: /etc/nats/cluster.conf", "target: /etc/nats/else.conf", "nats-2: has no /etc/nats/cluster.conf"},
		{"no routes", "target: /etc/nats/cluster-routes.conf", "target: /etc/nats/else.conf", "nats-3: has no /etc/nats/cluster-routes.conf"},
		{"two on one disk", `"nats-3:/data"]`, `"nats-2:/data"]`, "nats-3: shares the disk of nats-2"},
		{"no disk", `    volumes: ["nats-3:/data"]`, "", "nats-3: shares the disk of nats"},
		{"a disk of root's", "/data-2, /data-3]", "/data-2]", "nats-volume: leaves nats-3 to root"},
		{"published", `volumes: ["nats-2:/data"]`, "volumes: [\"nats-2:/data\"]\n    ports: [\"127.0.0.1:4222:4222\"]", "nats-2: is published"},
		{"one way in", ",nats://nats-2:4222", "", "orders: does not know nats-2"},
		{"page with one way in", "      NATS_URL: nats://nats:4222,nats://nats-2:4222,nats://nats-3:4222", "      NATS_URL: nats://nats:4222", "demo: does not know nats-2"},
		{"one replica", `NATS_REPLICAS: "3"`, `NATS_REPLICAS: "1"`, "billing: has its stream on one server"},
		{"started, not healthy", "nats-3: { condition: service_healthy }", "nats-3: { condition: service_started }", "billing: does not wait until nats-3 is healthy"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			good := readRepositoryFile(t, "docker-compose.cluster.yml")
			bad := strings.ReplaceAll(good, c.old, c.new)
			if bad == good {
				t.Fatalf("docker-compose.cluster.yml has no %q to spoil", c.old)
			}
			project, err := loadCompose(t.Context(), composeEnv, readRepositoryFile(t, "docker-compose.yml"), bad)
			if err != nil {
				t.Fatal(err)
			}
			faults := append(composeFaults(project, readRepositoryFile(t, "Dockerfile")), clusterFaults(project)...)
			if !slices.ContainsFunc(faults, func(f string) bool { return strings.HasPrefix(f, c.want) }) {
				t.Errorf("found %q, and not %q", faults, c.want)
			}
		})
	}
}

// clusterFaults lists what is wrong with the three servers, and with how the services use them.
func clusterFaults(p *types.Project) (faults []string) {
	fault := func(name, format string, args ...any) {
		faults = append(faults, name+": "+fmt.Sprintf(format, args...))
	}
	disks := map[string]string{}
	for _, name := range natsServers {
		s, ok := p.Services[name]
		if !ok {
			fault(name, "is missing")
			continue
		}
		if called := s.Environment["NATS_SERVER_NAME"]; called == nil || *called != name {
			fault(name, "is called %s", value(called))
		}
		if !slices.Equal(s.Command, []string{"--config", "/etc/nats/cluster.conf"}) {
			fault(name, "is not told that it is one of a cluster: %v", s.Command)
		}
		if !slices.ContainsFunc(s.Configs, func(c types.ServiceConfigObjConfig) bool { return c.Target == "/etc/nats/cluster.conf" }) {
			fault(name, "has no /etc/nats/cluster.conf")
		}
		if !slices.ContainsFunc(s.Secrets, func(c types.ServiceSecretConfig) bool { return c.Target == "/etc/nats/cluster-routes.conf" }) {
			fault(name, "has no /etc/nats/cluster-routes.conf")
		}
		for _, v := range s.Volumes {
			if other, taken := disks[v.Source]; taken {
				fault(name, "shares the disk of %s", other)
			}
			disks[v.Source] = name
		}
	}
	prepares := p.Services["nats-volume"]
	for _, v := range prepares.Volumes {
		if !slices.Contains(prepares.Entrypoint, v.Target) {
			fault(prepares.Name, "leaves %s to root", v.Source)
		}
		delete(disks, v.Source)
	}
	for disk, name := range disks {
		fault(prepares.Name, "leaves %s of %s to root", disk, name)
	}
	for _, user := range []string{"orders", "billing", "demo"} {
		s := p.Services[user]
		ways := strings.Split(value(s.Environment["NATS_URL"]), ",")
		for _, name := range natsServers {
			if !slices.Contains(ways, "nats://"+name+":4222") {
				fault(user, "does not know %s", name)
			}
			if s.DependsOn[name].Condition != types.ServiceConditionHealthy {
				fault(user, "does not wait until %s is healthy", name)
			}
		}
		if n := value(s.Environment["NATS_REPLICAS"]); !looksOn(s) && n != fmt.Sprint(len(natsServers)) {
			fault(user, "has its stream on one server, or more than there are: %s", n)
		}
	}
	return faults
}

func value(s *string) string {
	if s == nil {
		return "nothing"
	}
	return *s
}

// natsRoutes are the file that cluster.conf includes.
func natsRoutes(password string) string {
	var routes strings.Builder
	for _, name := range natsServers {
		fmt.Fprintf(&routes, "%q, ", "nats://cluster:"+password+"@"+name+":6222")
	}
	return fmt.Sprintf("authorization { user: cluster, password: %q }\nroutes: [%s]\n", password, &routes)
}

func TestNATSConfigurationOfTheClusterLetsInItsOwnServersOnly(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"cluster.conf":        readRepositoryFile(t, "deploy/nats/cluster.conf"),
		"nats.conf":           readRepositoryFile(t, "deploy/nats/nats.conf"),
		"passwords.conf":      natsPasswords("o", "b", "d"),
		"cluster-routes.conf": natsRoutes("12345"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("NATS_SERVER_NAME", "nats-2")
	opts, err := natsserver.ProcessConfigFile(filepath.Join(dir, "cluster.conf"))
	if err != nil {
		t.Fatal(err)
	}
	if opts.ServerName != "nats-2" || !opts.JetStream || !opts.SyncAlways || opts.StoreDir != "/data" || len(opts.Users) != 3 {
		t.Errorf("it is called %s, JetStream %t, sync always %t, store in %q, %d users; want nats-2 and all else as nats.conf has it",
			opts.ServerName, opts.JetStream, opts.SyncAlways, opts.StoreDir, len(opts.Users))
	}
	if c := opts.Cluster; c.Name == "" || c.Port != 6222 || c.Username != "cluster" || c.Password != "12345" {
		t.Errorf("cluster %q on port %d takes %q with %q as one of it", c.Name, c.Port, c.Username, c.Password)
	}
	routes := map[string]bool{}
	for _, r := range opts.Routes {
		if p, _ := r.User.Password(); r.User.Username() != "cluster" || p != "12345" {
			t.Errorf("the route to %s goes by %s", r.Host, r.User)
		}
		routes[r.Host] = true
	}
	if want := map[string]bool{"nats:6222": true, "nats-2:6222": true, "nats-3:6222": true}; !maps.Equal(routes, want) {
		t.Errorf("routes to %v, want %v", routes, want)
	}
}
