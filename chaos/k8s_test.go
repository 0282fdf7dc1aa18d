package chaos

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"
)

// These tests read deploy/k8s where no cluster is. A field that is not in k8s_types_test.go is a mistake, as it is to kubectl.

// decodeYAML reads each document of text into a T. Names are as in the file, whatever their case in T.
func decodeYAML[T any](text string) (values []T, err error) {
	d := yaml.NewDecoder(strings.NewReader(text))
	for {
		var doc map[string]any
		if err := d.Decode(&doc); errors.Is(err, io.EOF) {
			return values, nil
		} else if err != nil {
			return values, err
		}
		b, err := json.Marshal(doc)
		if err != nil {
			return values, err
		}
		strict := json.NewDecoder(bytes.NewReader(b))
		strict.DisallowUnknownFields()
		var v T
		if err := strict.Decode(&v); err != nil {
			return values, err
		}
		values = append(values, v)
	}
}

// manifestFaults lists what is wrong in deploy/k8s, read with old replaced by spoilt.
func manifestFaults(t *testing.T, old, spoilt string) (faults []string) {
	t.Helper()
	const dir = "deploy/k8s/"
	found := old == ""
	read := func(name string) string {
		text := readRepositoryFile(t, dir+name)
		if old != "" {
			found = found || strings.Contains(text, old)
			text = strings.ReplaceAll(text, old, spoilt)
		}
		return text
	}
	type kustomization struct {
		APIVersion, Kind, Namespace string
		Resources                   []string
		Images                      []struct{ Name, NewTag string }
	}
	k, err := decodeYAML[kustomization](read("kustomization.yaml"))
	if err != nil || len(k) != 1 {
		t.Fatal(err)
	}
	m := manifests{readme: readRepositoryFile(t, dir+"README.md"), tags: map[string]string{}, fault: func(format string, args ...any) {
		faults = append(faults, fmt.Sprintf(format, args...))
	}}
	for _, image := range k[0].Images {
		m.tags[image.Name] = image.NewTag
	}
	files, err := filepath.Glob(filepath.Join(repository, dir, "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if name := filepath.Base(f); name != "kustomization.yaml" && !slices.Contains(k[0].Resources, name) {
			m.fault("%s is not in kustomization.yaml", name)
		}
	}
	for _, name := range k[0].Resources {
		objects, err := decodeYAML[k8sObject](read(name))
		if err != nil {
			m.fault("%s: %v", name, err)
		}
		m.objects = append(m.objects, objects...)
	}
	if !found {
		t.Fatalf("deploy/k8s has no %q to spoil", old)
	}
	m.check(t)
	return faults
}

type manifests struct {
	objects []k8sObject
	tags    map[string]string // of images
	readme  string
	fault   faultFunc
}

func (m manifests) find(kind, name string) (k8sObject, bool) {
	i := slices.IndexFunc(m.objects, func(o k8sObject) bool { return o.Kind == kind && o.Metadata.Name == name })
	if i < 0 {
		m.fault("no %s %s", kind, name)
		return k8sObject{}, false
	}
	return m.objects[i], true
}

func (m manifests) check(t *testing.T) {
	t.Helper()
	for _, name := range []string{"orders", "billing"} {
		bin, _ := shared.get(t)
		help, err := exec.CommandContext(t.Context(), filepath.Join(bin, name), "--help").CombinedOutput()
		if err != nil {
			t.Fatalf("%s --help: %v\n%s", name, err, help)
		}
		if d, ok := m.find("Deployment", name); ok {
			m.checkDeployment(name, d.Spec, string(help))
		}
		if j, ok := m.find("Job", name+"-migrate"); ok {
			m.checkPod(name+"-migrate", j.Spec.Template.Spec, string(help))
			c := j.Spec.Template.Spec.Containers[0]
			if !slices.Equal(c.Args, []string{"migrate"}) || j.Spec.Template.Spec.RestartPolicy != "OnFailure" {
				m.fault("%s-migrate does not migrate until it is done", name)
			}
		}
	}
	known := []string{"postgres", "nats"}
	for _, o := range m.objects {
		if app := o.Spec.Template.Metadata.Labels["app"]; app != "" {
			known = append(known, app)
		}
	}
	denied := false
	for _, o := range m.objects {
		if o.Kind != "NetworkPolicy" {
			continue
		}
		s := o.Spec
		all := len(s.PodSelector.apps()) == 0 && len(s.PodSelector.MatchLabels) == 0
		denied = denied || all && len(s.Ingress) == 0 && len(s.Egress) == 0 && slices.Equal(s.PolicyTypes, []string{"Ingress", "Egress"})
		apps := s.PodSelector.apps()
		for _, rule := range slices.Concat(s.Ingress, s.Egress) {
			for _, peer := range slices.Concat(rule.From, rule.To) {
				if peer.PodSelector != nil {
					apps = append(apps, peer.PodSelector.apps()...)
				}
			}
			if len(rule.Ports) == 0 || len(rule.From)+len(rule.To) == 0 {
				m.fault("NetworkPolicy %s opens every port, or to everybody", o.Metadata.Name)
			}
		}
		for _, app := range apps {
			if !slices.Contains(known, app) {
				m.fault("NetworkPolicy %s is about %s, which is nothing here", o.Metadata.Name, app)
			}
		}
	}
	if !denied {
		m.fault("no NetworkPolicy closes what the others do not open")
	}
}

func (m manifests) checkDeployment(name string, s k8sSpec, help string) {
	pod := s.Template.Spec
	m.checkPod(name, pod, help)
	c := pod.Containers[0]
	budget, _ := m.find("PodDisruptionBudget", name)
	service, _ := m.find("Service", name)
	m.find("ServiceAccount", pod.ServiceAccountName)
	for what, apps := range map[string][]string{"Deployment": s.Selector.apps(), "PodDisruptionBudget": budget.Spec.Selector.apps(),
		"Service": service.Spec.Selector.apps()} {
		if !slices.Equal(apps, []string{s.Template.Metadata.Labels["app"]}) {
			m.fault("%s's %s selects %v", name, what, apps)
		}
	}
	if s.Replicas < 2 || budget.Spec.MinAvailable < 1 || budget.Spec.MinAvailable >= s.Replicas {
		m.fault("%s has %d replicas, of which %d must stay: one has to be able to go", name, s.Replicas, budget.Spec.MinAvailable)
	}
	ports := map[string]bool{}
	for _, p := range c.Ports {
		ports[p.Name] = true
	}
	for _, p := range service.Spec.Ports {
		if !ports[p.TargetPort] || p.TargetPort == "admin" {
			m.fault("%s's Service leads to the port %s", name, p.TargetPort)
		}
	}
	for what, p := range map[string]struct {
		probe k8sProbe
		path  string
	}{"startup": {c.StartupProbe, "/healthz"}, "liveness": {c.LivenessProbe, "/healthz"}, "readiness": {c.ReadinessProbe, "/readyz"}} {
		// Postgres being away is no reason to kill a process.
		if p.probe.HTTPGet.Path != p.path || p.probe.HTTPGet.Port != "admin" {
			m.fault("%s's %s probe asks %s of %q", name, what, p.probe.HTTPGet.Path, p.probe.HTTPGet.Port)
		}
	}
	if needs := c.Lifecycle.PreStop.Sleep.Seconds + int(gracefulStop.Seconds()); c.Lifecycle.PreStop.Sleep.Seconds < 1 || pod.TerminationGracePeriodSeconds <= needs {
		m.fault("%s is killed after %d s, and may take %d s to stop", name, pod.TerminationGracePeriodSeconds, needs)
	}
	if !slices.ContainsFunc(c.Env, func(e struct {
		Name, Value string
		ValueFrom   struct{ SecretKeyRef struct{ Name, Key string } }
	}) bool {
		return e.Name == strings.ToUpper(name)+"_MIGRATE" && e.Value == "false"
	}) {
		m.fault("%s migrates by itself", name)
	}
}

// checkPod holds what each pod promises: no rights, no secret in the file, only settings that the binary knows.
func (m manifests) checkPod(name string, pod k8sPod, help string) {
	if len(pod.Containers) != 1 {
		m.fault("%s has %d containers", name, len(pod.Containers))
		return
	}
	c := pod.Containers[0]
	sc := c.SecurityContext
	if !pod.SecurityContext.RunAsNonRoot || pod.SecurityContext.SeccompProfile.Type != "RuntimeDefault" || !sc.ReadOnlyRootFilesystem ||
		sc.AllowPrivilegeEscalation == nil || *sc.AllowPrivilegeEscalation || !slices.Equal(sc.Capabilities.Drop, []string{"ALL"}) {
		m.fault("%s has rights that it does not need", name)
	}
	if pod.AutomountServiceAccountToken == nil || *pod.AutomountServiceAccountToken {
		m.fault("%s is given a token of the cluster", name)
	}
	if c.Resources.Limits["memory"] == "" || c.Resources.Requests["cpu"] == "" {
		m.fault("%s says nothing of its resources", name)
	}
	if tag := m.tags[c.Image]; tag == "" || tag == "latest" {
		m.fault("%s's image %s has no version", name, c.Image)
	}
	secrets := map[string]bool{}
	for _, e := range c.Env {
		if !strings.Contains(help, "$"+e.Name) {
			m.fault("%s sets %s, which the binary does not know", name, e.Name)
		}
		if strings.HasSuffix(e.Name, "DATABASE_URL") && e.ValueFrom.SecretKeyRef.Name == "" {
			m.fault("%s has %s in the file", name, e.Name)
		}
		secrets[e.ValueFrom.SecretKeyRef.Name] = true
		if key := e.ValueFrom.SecretKeyRef.Key; key == "owner" && !strings.HasSuffix(name, "-migrate") {
			m.fault("%s serves with the owner's rights", name)
		}
	}
	volumes := map[string]bool{}
	for _, v := range pod.Volumes {
		volumes[v.Name], secrets[v.Secret.SecretName] = true, true
	}
	for _, v := range c.VolumeMounts {
		if !volumes[v.Name] || !v.ReadOnly {
			m.fault("%s mounts %s, which is no volume, or to write", name, v.Name)
		}
	}
	delete(secrets, "")
	for s := range secrets {
		if !strings.Contains(m.readme, "`"+s+"`") {
			m.fault("%s needs the Secret %s, of which README.md says nothing", name, s)
		}
	}
}

func TestManifestsKeepTheirPromises(t *testing.T) {
	t.Parallel()
	for _, fault := range manifestFaults(t, "", "") {
		t.Error(fault)
	}
}

// Each of these mistakes must be seen, by the fault that names it.
func TestMistakesInTheManifestsAreFound(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, old, new, want string }{
		{"unknown field", "replicas: 2", "replica: 2", "unknown field"},
		{"one replica", "replicas: 2", "replicas: 1", "orders has 1 replicas"},
		{"a budget that lets nobody go", "minAvailable: 1", "minAvailable: 2", "of which 2 must stay"},
		{"no such port", "targetPort: http", "targetPort: web", "billing's Service leads to the port web"},
		{"admin behind the Service", "targetPort: http", "targetPort: admin", "orders's Service leads to the port admin"},
		{"alive only with Postgres", "livenessProbe:\n            httpGet: { path: /healthz", "livenessProbe:\n            httpGet: { path: /readyz", "orders's liveness probe"},
		{"killed while it stops", "terminationGracePeriodSeconds: 30", "terminationGracePeriodSeconds: 15", "orders is killed after 15 s"},
		{"writable root", "readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false", "billing-migrate has rights"},
		{"token", "automountServiceAccountToken: false", "automountServiceAccountToken: true", "orders is given a token"},
		{"unknown setting", "ORDERS_API_KEYS_FILE", "ORDERS_KEYS", "orders sets ORDERS_KEYS"},
		{"owner", "{ name: orders-database, key: app }", "{ name: orders-database-owner, key: owner }", "orders serves with the owner's rights"},
		{"password in the file", "valueFrom: { secretKeyRef: { name: billing-database, key: app } }", "value: postgres://billing:secret@postgres/billing", "billing has BILLING_DATABASE_URL in the file"},
		{"migrates itself", `BILLING_MIGRATE, value: "false"`, `BILLING_MIGRATE, value: "true"`, "billing migrates by itself"},
		{"any version", `oncebox/orders, newTag: "1.0.0"`, "oncebox/orders, newTag: latest", "orders's image"},
		{"undocumented secret", "secretName: api-keys", "secretName: keys", "orders needs the Secret keys"},
		{"open", "podSelector: {}\n  policyTypes: [Ingress, Egress]", "podSelector: {}\n  policyTypes: [Egress]", "no NetworkPolicy closes"},
		{"about nobody", "matchLabels: { app: nats }", "matchLabels: { app: jetstream }", "NetworkPolicy stores is about jetstream"},
		{"forgotten file", "  - network.yaml\n", "", "network.yaml is not in kustomization.yaml"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			faults := manifestFaults(t, c.old, c.new)
			if !slices.ContainsFunc(faults, func(f string) bool { return strings.Contains(f, c.want) }) {
				t.Errorf("found %q, and not %q", faults, c.want)
			}
		})
	}
}
