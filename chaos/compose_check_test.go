package chaos

import (
	"cmp"
	"fmt"
	"maps"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
)

// composeFaults lists what is wrong with a project that was loaded with composeEnv.
func composeFaults(p *types.Project, dockerfile string) []string {
	var faults []string
	stages := dockerStages(dockerfile)
	for _, name := range slices.Sorted(maps.Keys(p.Services)) {
		s := p.Services[name]
		fault := func(format string, args ...any) {
			faults = append(faults, name+": "+fmt.Sprintf(format, args...))
		}
		checkReach(s, fault)
		checkSecrets(s, fault)
		checkHealth(s, fault)
		checkHardening(s, fault)
		checkImage(s, stages, fault)
		checkVolumes(s, p, fault)
		checkCallers(s, fault)
		checkRoles(s, fault)
	}
	for _, name := range slices.Sorted(maps.Keys(p.Configs)) {
		if _, err := os.Stat(p.Configs[name].File); err != nil {
			faults = append(faults, fmt.Sprintf("config %s: %v", name, err))
		}
	}
	for _, name := range []string{"postgres", "nats", "redis", "orders", "billing", "oncebox", "demo", "prometheus"} {
		if _, ok := p.Services[name]; !ok {
			faults = append(faults, name+": is missing")
		}
	}
	return faults
}

type faultFunc func(format string, args ...any)

// job says whether s does one thing and ends.
func job(s types.ServiceConfig) bool { return migrates(s) || s.Name == "nats-volume" || asked(s) }

// asked is the operator's command, which runs when somebody runs it.
func asked(s types.ServiceConfig) bool { return s.Name == "oncebox" }

// isNATS is the broker, or one of the servers of docker-compose.cluster.yml that are.
func isNATS(s types.ServiceConfig) bool { return slices.Contains(natsServers, s.Name) }

func migrates(s types.ServiceConfig) bool { return strings.HasSuffix(s.Name, "-migrate") }

// ours are the two services and the demo's page.
func ours(s types.ServiceConfig) bool { return s.Build != nil && !job(s) }

// looksOn is the page, which serves nobody's callers and migrates nothing.
func looksOn(s types.ServiceConfig) bool { return s.Name == "demo" }

func checkReach(s types.ServiceConfig, fault faultFunc) {
	for _, port := range s.Ports {
		switch {
		case s.Name == "prometheus" && port.HostIP == "127.0.0.1":
			// for who looks at the metrics on this machine
		case !ours(s):
			fault("is published; only the services' APIs are to be reached")
		case port.HostIP != "127.0.0.1":
			fault("port %d is published on every address", port.Target)
		}
	}
	for _, port := range s.Ports {
		if admin := s.Environment[strings.ToUpper(s.Name)+"_ADMIN"]; admin != nil && strings.HasSuffix(*admin, fmt.Sprintf(":%d", port.Target)) {
			fault("its admin listener is published")
		}
	}
	if ours(s) && len(s.Ports) == 0 {
		fault("cannot be reached")
	}
	if s.NetworkMode != "" && s.NetworkMode != "default" {
		fault("is on network %s", s.NetworkMode)
	}
}

var secretName = regexp.MustCompile(`(?i)password|secret|token|credential|keys`)

// checkSecrets wants what is secret in files, each handed to those only who name it.
func checkSecrets(s types.ServiceConfig, fault faultFunc) {
	var named []string
	for name, value := range s.Environment {
		if value == nil {
			continue // of the shell that starts it
		}
		switch {
		case strings.HasSuffix(name, "_FILE"):
			named = append(named, *value)
			if !slices.ContainsFunc(s.Secrets, func(c types.ServiceSecretConfig) bool { return secretPath(c) == *value }) {
				fault("is not given %s", *value)
			}
		case secretName.MatchString(name):
			fault("%s is in its environment", name)
		}
		if u, err := url.Parse(*value); err == nil && u.User != nil {
			if _, ok := u.User.Password(); ok {
				fault("%s has a password", name)
			}
		}
	}
	for _, c := range s.Secrets {
		// Postgres and the demo's job make the roles with theirs, and nats includes its file; redis is started with what its command reads.
		if s.Name != "postgres" && s.Name != "demo-migrate" && !isNATS(s) && !slices.Contains(named, secretPath(c)) && !strings.Contains(strings.Join(s.Command, " "), secretPath(c)) {
			fault("is given %s, which it does not name", c.Source)
		}
	}
}

// secretPath is where a container finds a secret.
func secretPath(c types.ServiceSecretConfig) string {
	return cmp.Or(c.Target, "/run/secrets/"+c.Source)
}

func checkHealth(s types.ServiceConfig, fault faultFunc) {
	if job(s) {
		want := types.RestartPolicyOnFailure
		if asked(s) {
			want = types.RestartPolicyNo
		}
		if s.Restart != want {
			fault("is a job, and restarted: %s", s.Restart)
		}
		if migrates(s) && s.DependsOn["postgres"].Condition != types.ServiceConditionHealthy {
			fault("does not wait until postgres is healthy")
		}
		return
	}
	if h := s.HealthCheck; h == nil || h.Disable || len(h.Test) == 0 {
		fault("no health check")
	} else if slices.Contains(h.Test, "pg_isready") && !slices.Contains(h.Test, "-h") {
		fault("pg_isready without -h finds a server ready that only runs its init scripts")
	}
	for _, on := range []string{"postgres", "nats"} {
		if ours(s) && s.DependsOn[on].Condition != types.ServiceConditionHealthy {
			fault("does not wait until %s is healthy", on)
		}
	}
	if on := s.Name + "-migrate"; ours(s) && s.DependsOn[on].Condition != types.ServiceConditionCompletedSuccessfully {
		fault("does not wait until %s is done", on)
	}
	if s.Restart != types.RestartPolicyUnlessStopped {
		fault("is not restarted")
	}
	grace := gracefulStop // the engine's default
	if s.StopGracePeriod != nil {
		grace = time.Duration(*s.StopGracePeriod)
	}
	if grace <= gracefulStop {
		fault("is killed after %s, and may take %s to stop", grace, gracefulStop)
	}
}

func checkHardening(s types.ServiceConfig, fault faultFunc) {
	if !s.ReadOnly {
		fault("its root is writable")
	}
	if !slices.Contains(s.CapDrop, "ALL") {
		fault("keeps capabilities")
	}
	if ours(s) && len(s.CapAdd) > 0 {
		fault("is given capabilities %v", s.CapAdd)
	}
	if !slices.Contains(s.SecurityOpt, "no-new-privileges:true") {
		fault("may gain privileges")
	}
	if user, _, _ := strings.Cut(s.User, ":"); isNATS(s) && (user == "" || user == "0" || user == "root") {
		fault("runs as root")
	}
	if s.Privileged {
		fault("is privileged")
	}
}

func checkImage(s types.ServiceConfig, stages map[string]string, fault faultFunc) {
	if s.Build == nil {
		if _, tag, _ := strings.Cut(s.Image, ":"); tag == "" || tag == "latest" {
			fault("its image has no version")
		}
		return
	}
	base, ok := stages[s.Build.Target]
	switch {
	case !ok:
		fault("Dockerfile has no stage %s", s.Build.Target)
	case !strings.HasSuffix(base, ":nonroot"):
		fault("its image is not one of a user without rights, but %s", base)
	}
}

// checkScraped wants Prometheus to ask where the services' admin listeners are.
func checkScraped(p *types.Project, prometheus string) (faults []string) {
	for _, name := range []string{"orders", "billing"} {
		admin := p.Services[name].Environment[strings.ToUpper(name)+"_ADMIN"]
		if admin == nil || !strings.Contains(prometheus, `["`+name+*admin+`"]`) {
			faults = append(faults, name+": is not scraped")
		}
	}
	return faults
}

// checkCallers wants the services to let in who has a key.
func checkCallers(s types.ServiceConfig, fault faultFunc) {
	if !ours(s) || looksOn(s) {
		return
	}
	prefix := strings.ToUpper(s.Name)
	file := s.Environment[prefix+"_API_KEYS_FILE"]
	if s.Environment[prefix+"_AUTH"] != nil || file == nil || *file != "/run/secrets/api-keys" {
		fault("lets in whoever comes")
	}
}

// checkRoles wants the owner of a database to migrate it, and nobody else.
func checkRoles(s types.ServiceConfig, fault faultFunc) {
	if !ours(s) {
		return
	}
	if looksOn(s) {
		for _, database := range []string{"ORDERS", "BILLING", "NAIVE"} {
			if v := s.Environment["DEMO_"+database+"_DATABASE_URL"]; v == nil || !strings.HasPrefix(*v, "postgres://demo@") {
				fault("does not go to %s by its own role", strings.ToLower(database))
			}
		}
		for _, on := range []string{"orders", "billing"} {
			if s.DependsOn[on].Condition != types.ServiceConditionHealthy {
				fault("does not wait until %s is healthy", on)
			}
		}
		return
	}
	prefix := strings.ToUpper(s.Name)
	if m := s.Environment[prefix+"_MIGRATE"]; m == nil || *m != "false" {
		fault("migrates by itself")
	}
	for name, role := range map[string]string{"_DATABASE_URL": "_app", "_RELAY_DATABASE_URL": "_relay"} {
		v := s.Environment[prefix+name]
		if v == nil || !strings.HasPrefix(*v, "postgres://"+s.Name+role+"@") {
			fault("serves with the owner's rights: %s is not %s's", prefix+name, s.Name+role)
		}
	}
}

func checkVolumes(s types.ServiceConfig, p *types.Project, fault faultFunc) {
	kept := map[string]bool{}
	for _, v := range s.Volumes {
		if _, named := p.Volumes[v.Source]; v.Type != types.VolumeTypeVolume || !named {
			fault("%s is on no named volume", v.Target)
		}
		kept[v.Target] = true
	}
	for name, target := range map[string]string{"postgres": "/var/lib/postgresql/data", "nats": "/data", "nats-2": "/data", "nats-3": "/data", "redis": "/data", "prometheus": "/prometheus"} {
		if s.Name == name && !kept[target] {
			fault("nothing keeps %s", target)
		}
	}
}

var fromLine = regexp.MustCompile(`(?m)^FROM\s+(\S+)\s+AS\s+(\S+)`)

// dockerStages returns the base image of each stage that has a name.
func dockerStages(dockerfile string) map[string]string {
	stages := map[string]string{}
	for _, m := range fromLine.FindAllStringSubmatch(dockerfile, -1) {
		stages[m[2]] = m[1]
	}
	return stages
}
