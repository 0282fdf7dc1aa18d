package chaos

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/internal/psp"
	"github.com/oncebox/oncebox/internal/stacktest"
)

// A provider is the payment provider's process. It may be killed, and started again on what it remembers.
type provider struct {
	addr, file string
	args       []string
	log        *os.File
	proc       *devstack.Process
}

func startProvider(t testing.TB, args ...string) *provider {
	t.Helper()
	log, err := os.Create(filepath.Join(t.TempDir(), "psp.log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() })
	p := &provider{addr: freeAddr(t), file: filepath.Join(t.TempDir(), "psp.jsonl"), args: args, log: log}
	p.start(t)
	t.Cleanup(func() {
		if err := p.proc.Kill(); err != nil {
			t.Errorf("kill the provider: %v", err)
		}
	})
	return p
}

func (p *provider) start(t testing.TB) {
	t.Helper()
	bin, _ := shared.get(t)
	var err error
	p.proc, err = devstack.StartProcess(devstack.ProcessConfig{Path: filepath.Join(bin, "psp"), Output: p.log,
		Args: append([]string{"--listen", p.addr, "--file", p.file}, p.args...)})
	if err != nil {
		t.Fatal(err)
	}
	stacktest.Eventually(t, patience, "the provider answers", func() (bool, error) {
		_, err := p.state(t.Context())
		return err == nil, err
	})
}

func (p *provider) get(ctx context.Context, path string, v any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.addr+path, nil)
	if err != nil {
		return err
	}
	res, err := httpClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	return json.NewDecoder(res.Body).Decode(v)
}

func (p *provider) state(ctx context.Context) (s psp.State, err error) {
	return s, p.get(ctx, "/state", &s)
}

// hangs waits until the provider has made a charge and is slow to say so.
func (p *provider) hangs(t testing.TB) psp.State {
	t.Helper()
	var s psp.State
	stacktest.Eventually(t, patience, "the provider is in the middle of a call", func() (ok bool, err error) {
		s, err = p.state(t.Context())
		return s.Slow > 0 && s.InFlight > 1, err // one is this request
	})
	return s
}

// Invariant: each order is charged once, at the provider and in the ledger, and each cancelled one is given back once, however
// many replies the provider loses, however slow it is, and whichever process dies in the middle of a call. Both guards of the
// charge table are gone.
func TestAProviderThatFailsInEveryWayChargesEachOrderOnce(t *testing.T) {
	t.Parallel()
	p := startProvider(t, "--lose", "4", "--slow", "7", "--delay", "1m")
	s := startSystem(t, nil, map[string]string{"PSP_URL": "http://sk_test:@" + p.addr, "PSP_TIMEOUT": "2s", "LANES": "4"})
	s.dropChargeGuards(t)
	const orders = 40
	wait := s.clients(t, "order", orders)

	first := p.hangs(t)
	if err := p.proc.Kill(); err != nil {
		t.Fatal(err)
	}
	p.start(t)
	second := p.hangs(t)
	s.billing.kill(t)
	s.billing.start(t)
	wait()
	s.settle(t)
	s.checkOnce(t, orders)

	last, err := p.state(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if last.Charges != orders {
		t.Errorf("the provider made %d charges for %d orders", last.Charges, orders)
	}
	if first.Lost == 0 || last.Lost == 0 || first.Slow == 0 || second.Slow == 0 {
		t.Errorf("faults did not fire: %+v, then %+v, at last %+v", first, second, last)
	}
	s.atProvider(t, p, "succeeded", orders)
}

// Invariant: a cancelled order's money is given back once, and an order that is cancelled while its charge is asked for is
// charged and given back, or never charged.
func TestCancelledOrdersAreGivenBackAtTheProvider(t *testing.T) {
	t.Parallel()
	p := startProvider(t, "--lose", "3", "--slow", "5", "--delay", "1m", "--decline-above", "5000")
	s := startSystem(t, nil, map[string]string{"PSP_URL": "http://" + p.addr, "PSP_TIMEOUT": "1s"})
	const orders = 12
	for i := range orders {
		a, err := s.orders.post(t.Context(), fmt.Sprint("order-", i), 4200)
		if err != nil || a.status != http.StatusCreated {
			t.Fatalf("POST answered %d: %s, %v", a.status, a.body, err)
		}
		var made struct{ ID string }
		if err := json.Unmarshal(a.body, &made); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 { // at once: its charge is on its way
			a, err = s.orders.ask(t.Context(), http.MethodDelete, "/v1/orders/"+made.ID, "", "Idempotency-Key", fmt.Sprint("cancel-", i), "If-Match", "*")
			if err != nil || a.status >= 300 {
				t.Fatalf("DELETE answered %d: %s, %v", a.status, a.body, err)
			}
		}
	}
	a, err := s.orders.post(t.Context(), "too-much", 5001)
	if err != nil || a.status != http.StatusCreated {
		t.Fatalf("POST answered %d: %s, %v", a.status, a.body, err)
	}
	s.settle(t)
	if n := one[int](t, s.billing.db, "SELECT count(*) FROM charge WHERE status = 'declined' AND reason = 'card_declined'"); n != 1 {
		t.Errorf("%d charges are declined, want 1", n)
	}
	if n := one[int](t, s.billing.db, "SELECT count(*) FROM charge WHERE status IN ('refunded', 'cancelled')"); n != orders/2 {
		t.Errorf("%d orders are cancelled, want %d", n, orders/2)
	}
	back := one[int](t, s.billing.db, "SELECT count(*) FROM charge WHERE status = 'refunded'")
	s.atProvider(t, p, "refunded", back)
	s.atProvider(t, p, "succeeded", orders/2)
	last, err := p.state(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if last.Refunds != back || last.Charges != orders/2+back+1 || last.Lost == 0 || last.Slow == 0 {
		t.Errorf("at the provider %+v, in the ledger %d refunds", last, back)
	}
	if sum := one[int64](t, s.billing.db, "SELECT COALESCE(sum(amount), 0) FROM ledger WHERE account = 'revenue'"); sum != orders/2*4200 {
		t.Errorf("the ledger has %d, want %d", sum, orders/2*4200)
	}
}

// Invariant: a limit that is lowered while the provider is in the middle of a charge strands no money: what was begun is settled.
func TestALimitThatIsLoweredStrandsNoCharge(t *testing.T) {
	t.Parallel()
	p := startProvider(t, "--slow", "2", "--delay", "1m")
	s := startSystem(t, nil, map[string]string{"PSP_URL": "http://" + p.addr, "PSP_TIMEOUT": "10s"})
	const orders = 2
	for i := range orders {
		if a, err := s.orders.post(t.Context(), fmt.Sprint("order-", i), 4200); err != nil || a.status != http.StatusCreated {
			t.Fatalf("POST answered %d: %s, %v", a.status, a.body, err)
		}
	}
	p.hangs(t)
	s.billing.kill(t)
	s.billing.set(map[string]string{"CHARGE_LIMIT": "100"})
	s.billing.start(t)
	s.settle(t)
	if n := one[int](t, s.orders.db, "SELECT count(*) FROM orders WHERE status = 'paid'"); n != orders {
		t.Errorf("%d orders are paid, want %d", n, orders)
	}
	s.atProvider(t, p, "succeeded", orders)
	if a, err := s.orders.post(t.Context(), "later", 4200); err != nil || a.status != http.StatusCreated {
		t.Fatalf("POST answered %d: %s, %v", a.status, a.body, err)
	}
	s.settle(t)
	if n := one[int](t, s.billing.db, "SELECT count(*) FROM charge WHERE status = 'declined'"); n != 1 {
		t.Errorf("%d charges are declined, want the one that came later", n)
	}
}

// Invariant: a charge request that died is asked for at the provider when it is retried, and not written into the ledger alone.
func TestADeadChargeRequestIsAskedForAtTheProviderWhenItIsRetried(t *testing.T) {
	t.Parallel()
	const token = "the-token-of-the-operator"
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := startProvider(t)
	s := startSystem(t, nil, map[string]string{"PSP_URL": "http://" + p.addr, "PSP_TIMEOUT": "2s", "ADMIN_TOKEN_FILE": file})
	letter := s.deadRequest(t)
	s.alterCharge(t, "DROP CONSTRAINT not_today")
	if a := s.billing.operate(t, http.MethodPost, letter+"/retry", token); a.status != http.StatusOK {
		t.Errorf("the retry: %d %s", a.status, a.body)
	}
	if a := s.billing.operate(t, http.MethodPost, letter+"/retry", token); a.status != http.StatusNotFound {
		t.Errorf("another retry: %d %s", a.status, a.body)
	}
	s.settle(t)
	s.atProvider(t, p, "succeeded", 1)
	if last, err := p.state(t.Context()); err != nil || last.Charges != 1 {
		t.Errorf("the provider made %d charges, %v", last.Charges, err)
	}
	for _, problem := range s.brokenOrders(t, 1) {
		t.Error(problem)
	}
}

// atProvider compares the charges of a status, which must be as many as want, with the provider's.
func (s *system) atProvider(t testing.TB, p *provider, status string, want int) {
	t.Helper()
	rows := one[string](t, s.billing.db, `SELECT COALESCE(string_agg(id || ' ' || provider_charge || ' ' || amount, ','), '') FROM charge WHERE status = $1`, status)
	n := 0
	for row := range strings.SplitSeq(rows, ",") {
		f := strings.Fields(row)
		if len(f) != 3 {
			t.Errorf("a charge is %q", row)
			continue
		}
		n++
		var charges struct{ Data []psp.Charge }
		if err := p.get(t.Context(), "/v1/charges/search?query="+url.QueryEscape("metadata['reference']:'"+f[0]+"'"), &charges); err != nil {
			t.Fatal(err)
		}
		if len(charges.Data) != 1 || charges.Data[0].ID != f[1] || strconv.FormatInt(charges.Data[0].Amount, 10) != f[2] {
			t.Errorf("the provider has %+v for the charge %s", charges.Data, row)
		}
	}
	if n != want {
		t.Errorf("%d charges are %s, want %d", n, status, want)
	}
}

// Invariant: a wrong URL is an error at the start, which does not show the key that stands in it.
func TestAWrongProviderURLShowsNoKey(t *testing.T) {
	t.Parallel()
	s := startSystem(t, nil, nil)
	s.billing.terminate(t)()
	for name, value := range map[string]string{"PSP_URL": "ftp://sk_hunter2@stripe", "PSP_TIMEOUT": "0s"} {
		b := *s.billing
		b.env = map[string]string{"PSP_URL": "http://sk_hunter2@127.0.0.1:1"}
		maps.Copy(b.env, s.billing.env)
		b.env[name] = value
		out, err := b.run(t)
		if err == nil || !strings.Contains(out, "BILLING_"+name) || strings.Contains(out, "hunter2") {
			t.Errorf("%s=%s: %v\n%s", name, value, err, out)
		}
	}
}
