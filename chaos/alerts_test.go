package chaos

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"go.yaml.in/yaml/v4"

	"github.com/oncebox/oncebox/events"
	"github.com/oncebox/oncebox/internal/stacktest"
)

type alertRule struct {
	Alert       string
	Expr        string
	Labels      map[string]string
	Annotations map[string]string
}

func alertRules(t *testing.T) []alertRule {
	t.Helper()
	var file struct {
		Groups []struct{ Rules []alertRule }
	}
	if err := yaml.Unmarshal([]byte(readRepositoryFile(t, "deploy/prometheus/alerts.yml")), &file); err != nil {
		t.Fatal(err)
	}
	var rules []alertRule
	for _, g := range file.Groups {
		rules = append(rules, g.Rules...)
	}
	if len(rules) == 0 {
		t.Fatal("no alerts")
	}
	return rules
}

func TestEachAlertHasItsRunbookAndItsTest(t *testing.T) {
	t.Parallel()
	tests := readRepositoryFile(t, "deploy/prometheus/alerts_test.yml")
	books, err := os.ReadDir(filepath.Join(repository, "docs/runbooks"))
	if err != nil {
		t.Fatal(err)
	}
	unused := map[string]bool{}
	for _, b := range books {
		unused["docs/runbooks/"+b.Name()] = true
	}
	for _, r := range alertRules(t) {
		book := "docs/runbooks/" + r.Alert + ".md"
		if r.Annotations["runbook"] != book || !unused[book] {
			t.Errorf("%s names the runbook %q, and %s is there: %t", r.Alert, r.Annotations["runbook"], book, unused[book])
		}
		delete(unused, book)
		if s := r.Labels["severity"]; s != "page" && s != "ticket" {
			t.Errorf("%s has the severity %q", r.Alert, s)
		}
		if !regexp.MustCompile(`alertname: ` + r.Alert + `\n\s+exp_alerts:\n\s+- exp_labels:`).MatchString(tests) {
			t.Errorf("alerts_test.yml does not have %s fire", r.Alert)
		}
	}
	for book := range unused {
		t.Errorf("%s is of no alert", book)
	}
}

// An alert or a panel on a metric that nobody exports would be silent for ever.
func TestAlertsAndDashboardAskForMetricsThatExist(t *testing.T) {
	t.Parallel()
	settings := map[string]string{"AUTH": "keys", "API_KEYS_FILE": keysFile(t, "acme"), "HEAL_EVERY": "100ms"}
	s := startSystem(t, settings, settings)
	// The series of a label's value begin with it: a request, one refused, a dead letter.
	for _, key := range []string{"key-of-acme", "another"} {
		if _, err := s.orders.ask(t.Context(), http.MethodPost, "/v1/orders", anOrder, "Authorization", "Bearer "+key, "Idempotency-Key", "one"); err != nil {
			t.Fatal(err)
		}
	}
	s.settle(t)
	if _, err := s.js.PublishMsg(t.Context(), &nats.Msg{Subject: events.TypeChargeRequested, Data: []byte("no event")}); err != nil {
		t.Fatal(err)
	}
	stacktest.Eventually(t, patience, "billing has a dead letter", func() (bool, error) {
		return one[int](t, s.billing.db, "SELECT count(*) FROM oncebox.dead_letter") == 1, nil
	})
	stacktest.Eventually(t, patience, "outbox and inbox were compared", func() (bool, error) {
		return s.orders.exports(t, "oncebox_heal_different"), nil
	})
	there := map[string]bool{"up": true}
	for _, svc := range []*service{s.orders, s.billing} {
		body, err := svc.look(t.Context(), "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		parser := expfmt.NewTextParser(model.UTF8Validation)
		families, err := parser.TextToMetricFamilies(strings.NewReader(string(body)))
		if err != nil {
			t.Fatal(err)
		}
		for name := range families {
			there[name], there[name+"_bucket"], there[name+"_count"], there[name+"_sum"] = true, true, true, true
		}
	}
	exprs := map[string]string{}
	for _, r := range alertRules(t) {
		exprs[r.Alert] = r.Expr
	}
	maps.Copy(exprs, dashboardExprs(t))
	name := regexp.MustCompile(`\b(up|(oncebox|http|orders|billing|go|process)_[a-z_]+)\b`)
	quoted := regexp.MustCompile(`"[^"]*"`)
	for where, expr := range exprs {
		found := name.FindAllString(quoted.ReplaceAllString(expr, ""), -1)
		if len(found) == 0 {
			t.Errorf("%s asks for no metric of ours: %s", where, expr)
		}
		for _, m := range found {
			if !there[m] {
				t.Errorf("%s asks for %s, which no service exports", where, m)
			}
		}
	}
}

func dashboardExprs(t *testing.T) map[string]string {
	t.Helper()
	var board struct {
		Panels []struct {
			Title   string
			Targets []struct{ RefID, Expr string }
		}
	}
	if err := json.Unmarshal([]byte(readRepositoryFile(t, "grafana/oncebox.json")), &board); err != nil {
		t.Fatal(err)
	}
	exprs := map[string]string{}
	for _, p := range board.Panels {
		for _, target := range p.Targets {
			exprs[p.Title+" "+target.RefID] = target.Expr
		}
	}
	if len(exprs) == 0 {
		t.Fatal("the dashboard has no panels")
	}
	return exprs
}

// The rules and their tests are promtool's to judge: each alert fires when it should, and not before.
func TestAlertsFireWhenTheyShould(t *testing.T) {
	t.Parallel()
	promtool, err := exec.LookPath("promtool")
	if errors.Is(err, exec.ErrNotFound) {
		fmt.Printf("%s: NO PROMTOOL IN PATH: THE ALERT RULES WERE NOT TRIED. .ci/install puts it there, on Debian as root.\n", t.Name())
		return
	}
	for _, args := range [][]string{{"check", "config", "prometheus.yml"}, {"check", "rules", "alerts.yml"}, {"test", "rules", "alerts_test.yml"}} {
		cmd := exec.CommandContext(t.Context(), promtool, args...)
		cmd.Dir = filepath.Join(repository, "deploy/prometheus")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	// The panels are checked as rules, too.
	var rules strings.Builder
	rules.WriteString("groups:\n  - name: panels\n    rules:\n")
	exprs := dashboardExprs(t)
	for _, where := range slices.Sorted(maps.Keys(exprs)) {
		expr, err := json.Marshal(strings.ReplaceAll(exprs[where], "$__rate_interval", "1m"))
		if err != nil {
			t.Fatal(err)
		}
		rules.WriteString("      - { record: panel, expr: " + string(expr) + ", labels: { at: " + `"` + where + `"` + " } }\n")
	}
	file := filepath.Join(t.TempDir(), "panels.yml")
	if err := os.WriteFile(file, []byte(rules.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), promtool, "check", "rules", file).CombinedOutput(); err != nil {
		t.Errorf("the dashboard: %v\n%s", err, out)
	}
}
