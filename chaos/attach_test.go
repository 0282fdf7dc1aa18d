package chaos

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/internal/stacktest"
)

// Invariant: the demo's page, beside services that it did not start and with the rights that the compose profile demo gives it, has each
// intent charged once, sees it, and says of what it has no power over why.
func TestThePageBesideDeployedServices(t *testing.T) {
	t.Parallel()
	s := deployed(t)
	s.secret(t, "demo", "it's the page's")
	s.secret(t, "postgres", "irrelevant")
	s.script(t, "demo.sh")
	s.script(t, "demo.sh") // each deployment does it again
	page := s.attach(t)

	page.post(t, "settings", `{"seed":42,"loss":40,"keys":true,"retries":true}`)
	page.post(t, "pay", `{"count":10}`)
	shown := page.until(t, "10 charges", func(p shownPage) bool { return p.Sums.Charges == 10 && p.Sums.Naive == 10 && p.Sums.Paid == 10 })
	if shown.Tries <= 10 || shown.Lost == 0 {
		t.Errorf("%d tries, %d replies lost: the link lost none", shown.Tries, shown.Lost)
	}
	var charges int
	if err := s.billing.db.QueryRow(t.Context(), "SELECT count(*) FROM charge WHERE starts_with(customer_id, $1)", "slayer-"+shown.Run+"-").Scan(&charges); err != nil {
		t.Fatal(err)
	}
	if charges != 10 {
		t.Errorf("%d charges", charges)
	}
	// A naive consumer that cannot write ends nothing but its own attempt.
	naive, err := pgx.Connect(t.Context(), s.url("demo", "demo"))
	if err != nil {
		t.Fatal(err)
	}
	defer naive.Close(context.WithoutCancel(t.Context()))
	alter := func(what string) {
		t.Helper()
		if _, err := naive.Exec(t.Context(), "ALTER TABLE naive_charge "+what); err != nil {
			t.Fatal(err)
		}
	}
	alter("ADD CONSTRAINT not_now CHECK (false) NOT VALID")
	page.post(t, "pay", `{"count":1}`)
	page.until(t, "an 11th charge, and none by the naive consumer", func(p shownPage) bool { return p.Sums.Paid == 11 && p.Sums.Naive == 10 })
	page.said(t, "the naive consumer begins again")
	alter("DROP CONSTRAINT not_now")
	page.until(t, "its charge too, and those again that it had not acknowledged", func(p shownPage) bool { return p.Sums.Naive >= 11 })

	page.post(t, "faults/poison", "")
	page.until(t, "a dead letter", func(p shownPage) bool {
		return p.Letters == 1 && slices.ContainsFunc(p.Outcomes, func(o outcome) bool { return o.Of == "poison" && o.State == "ok" })
	})
	on := map[string]bool{}
	for _, f := range page.until(t, "the faults", func(p shownPage) bool { return len(p.Faults) > 0 }).Faults {
		on[f.ID] = f.Off == ""
		if f.Off == "" {
			continue
		}
		status, text := page.send(t, "faults/"+f.ID, "")
		if status != http.StatusBadRequest || strings.TrimSpace(text) != f.Off {
			t.Errorf("%s is off, and answered %d %s", f.ID, status, text)
		}
	}
	for fault, want := range map[string]bool{"kill-billing": false, "kill-orders": false, "kill-relay": false, "pause-nats": false, "roll-back": false,
		"redeliver": false, "duplicates": false, "killer": false, "cut-postgres": false, "poison": true} {
		if on[fault] != want {
			t.Errorf("%s is on: %t", fault, on[fault])
		}
	}

	s.refused(t, "demo", "orders", "UPDATE orders SET amount = 1", noPrivilege)
	s.refused(t, "demo", "orders", "UPDATE oncebox.outbox SET topic = 'x'", noPrivilege)
	s.refused(t, "demo", "billing", "INSERT INTO charge SELECT FROM charge", noPrivilege)
	s.refused(t, "demo", "billing", "DELETE FROM oncebox.inbox", noPrivilege)
	s.refused(t, "demo", "postgres", "SELECT", noPrivilege)
	s.refused(t, "orders_app", "demo", "SELECT", noPrivilege)
}

// An attachedPage is where the demo's page is served.
type attachedPage struct{ url, log string }

// attach starts the page as docker-compose.yml does.
func (d deployment) attach(t *testing.T) attachedPage {
	t.Helper()
	bin := t.TempDir()
	if err := devstack.Build(t.Context(), bin, "./cmd/demo"); err != nil {
		t.Fatal(err)
	}
	addr := freeAddr(t)
	log, err := os.Create(filepath.Join(bin, "demo.log"))
	if err != nil {
		t.Fatal(err)
	}
	env := []string{"DEMO_LISTEN=" + addr, "DEMO_ORDERS_DATABASE_URL=" + d.url("demo", "orders"), "DEMO_BILLING_DATABASE_URL=" + d.url("demo", "billing"),
		"DEMO_NAIVE_DATABASE_URL=" + d.url("demo", "demo"), "DEMO_DATABASE_PASSWORD_FILE=" + filepath.Join(d.secrets, "demo"),
		"DEMO_ORDERS_URL=http://" + d.orders.addr, "DEMO_ORDERS_ADMIN_URL=http://" + d.orders.admin, "DEMO_BILLING_ADMIN_URL=http://" + d.billing.admin,
		"NATS_URL=" + d.nats.URL(), "NATS_USER=demo", "NATS_PASSWORD_FILE=" + d.secret(t, "nats-demo", natsPassword("demo"))}
	proc, err := devstack.StartProcess(devstack.ProcessConfig{Path: filepath.Join(bin, "demo"), Args: []string{"attach"}, Env: env, Output: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := proc.Stop(context.WithoutCancel(t.Context())); err != nil || proc.Err() != nil {
			t.Errorf("the page ended with %v, %v", err, proc.Err())
		}
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("the page's log:\n%s", text)
		}
		log.Close()
	})
	page := attachedPage{"http://" + addr + "/", log.Name()}
	stacktest.Eventually(t, patience, "the page serves", func() (bool, error) {
		health := exec.CommandContext(t.Context(), filepath.Join(bin, "demo"), "health")
		health.Env = env
		return health.Run() == nil, nil
	})
	return page
}

// ask returns an answer whose body is the caller's to close.
func (p attachedPage) ask(ctx context.Context, t *testing.T, method, path, body string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, method, p.url+"api/"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// said waits until the page's log has text.
func (p attachedPage) said(t *testing.T, text string) {
	t.Helper()
	stacktest.Eventually(t, patience, "the page says: "+text, func() (bool, error) {
		log, err := os.ReadFile(p.log)
		return strings.Contains(string(log), text), err
	})
}

func (p attachedPage) send(t *testing.T, path, body string) (int, string) {
	t.Helper()
	res := p.ask(t.Context(), t, http.MethodPost, path, body)
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(text)
}

func (p attachedPage) post(t *testing.T, path, body string) {
	t.Helper()
	if status, text := p.send(t, path, body); status != http.StatusAccepted {
		t.Fatalf("%s: %d %s", path, status, text)
	}
}

type outcome struct{ Of, State string }

// A shownPage is of what the page shows what is asked here.
type shownPage struct {
	Run      string
	Sums     struct{ Charges, Naive, Paid int }
	Tries    int
	Lost     int
	Letters  int
	Outcomes []outcome
	Faults   []struct{ ID, Off string }
}

// until reads the page's events until they show what is wanted.
func (p attachedPage) until(t *testing.T, what string, so func(shownPage) bool) (shown shownPage) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	res := p.ask(ctx, t, http.MethodGet, "events", "")
	defer res.Body.Close()
	for lines := bufio.NewScanner(res.Body); lines.Scan(); {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		if err := json.Unmarshal([]byte(data), &shown); err != nil {
			t.Fatal(err)
		}
		if so(shown) {
			return shown
		}
	}
	t.Fatalf("never: %s: %+v", what, shown)
	return shown
}
