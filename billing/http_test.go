package billing_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/oncebox/oncebox/billing"
	"github.com/oncebox/oncebox/events"
)

// read gets path into a value and returns the status.
func (r *rig) read(path string, into any) int {
	r.t.Helper()
	got := r.send("GET", path, "")
	if err := json.Unmarshal([]byte(got.body), into); err != nil || strings.ContainsAny(got.body, "<>\x1b") {
		r.t.Fatalf("%s: %d %s: %v", path, got.status, got.body, err)
	}
	return got.status
}

type reply struct {
	status int
	header http.Header
	body   string
}

func (r *rig) send(method, path, body string, header ...string) reply {
	r.t.Helper()
	req, err := http.NewRequest(method, r.server.URL+path, strings.NewReader(body))
	must(r.t, err)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	must(r.t, err)
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	must(r.t, err)
	if r.described != nil {
		for _, wrong := range r.described.Check(method, path, res.StatusCode, res.Header, b) {
			r.t.Errorf("%s %s is not as it is described: %s\n%s", method, path, wrong, b)
		}
	}
	return reply{res.StatusCode, res.Header, string(b)}
}

// problem is the slug of the problem at path.
func (r *rig) problem(path string) string {
	r.t.Helper()
	var p struct {
		Type   string
		Status int
	}
	if status := r.read(path, &p); status != p.Status || status < 400 || status >= 500 {
		r.t.Errorf("%s: status %d, in the problem %d", path, status, p.Status)
	}
	return strings.TrimPrefix(p.Type, "urn:oncebox:problem:")
}

func TestTheLedgerIsReadInPages(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var charges []string
	for range 5 {
		asked := request()
		must(t, r.handle(asked))
		charges = append(charges, r.column("SELECT id::text FROM charge WHERE order_id = '" + asked.Key + "'")[0])
	}
	must(t, r.handle(request(func(p *events.ChargeRequested) { p.CustomerID = "customer-2" })))
	slices.Reverse(charges)
	type page struct {
		Entries    []billing.Entry
		NextCursor string `json:"next_cursor"`
	}
	var got []string
	pages := 0
	for cursor := ""; pages == 0 || cursor != ""; pages++ {
		var p page
		query := url.Values{"account": {"customer:customer-1"}, "limit": {"2"}}
		if cursor != "" {
			query.Set("cursor", cursor)
		}
		if status := r.read("/v1/ledger?"+query.Encode(), &p); status != http.StatusOK {
			t.Fatal(status)
		}
		for _, e := range p.Entries {
			if e.Account != "customer:customer-1" || e.Amount != -10000 || e.Currency != "USD" || e.Kind != "charge" {
				t.Errorf("an entry is %+v", e)
			}
			got = append(got, e.ChargeID)
		}
		cursor = p.NextCursor
	}
	if pages != 3 || !slices.Equal(got, charges) {
		t.Errorf("%d pages with %v, want 3 with %v", pages, got, charges)
	}
	var first page
	r.read("/v1/ledger?account=revenue&limit=1", &first)
	if p := r.problem("/v1/ledger?account=customer:customer-1&cursor=" + first.NextCursor); p != "cursor-invalid" {
		t.Errorf("the cursor of another account: %s", p)
	}
}

// Of what is asked wrongly nothing is told but what is wrong; and each answer that the API's description has is given.
func TestBadQuestionsAreProblems(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	asked := request()
	must(t, r.handle(asked))
	id := r.column("SELECT id::text FROM charge")[0]
	var list struct{ Charges []billing.Charge }
	if status := r.read("/v1/charges?order_id="+uuid.NewString(), &list); status != http.StatusOK || list.Charges == nil || len(list.Charges) > 0 {
		t.Errorf("of an order that is not known: %d %+v", status, list)
	}
	var c billing.Charge
	r.read("/v1/charges/"+id, &c)
	r.read("/v1/ledger?account=revenue", &list)
	for path, want := range map[string]string{
		"/v1/charges":                                             "invalid",
		"/v1/charges?order_id=":                                   "invalid",
		"/v1/charges?order_id=17":                                 "invalid",
		"/v1/charges?order_id='%20OR%201=1":                       "invalid",
		"/v1/charges?order_id=%3Cscript%3E":                       "invalid",
		"/v1/charges?order_id=urn:uuid:" + asked.Key:              "invalid",
		"/v1/charges?order_id=" + asked.Key + "&x=1":              "invalid",
		"/v1/charges?order_id=" + asked.Key + "%00":               "malformed",
		"/v1/charges?order_id=%zz":                                "malformed",
		"/v1/charges/" + uuid.NewString():                         "not-found",
		"/v1/charges/urn:uuid:" + id:                              "not-found",
		"/v1/charges/17":                                          "invalid",
		"/v1/charges/..%2f..%2fetc":                               "not-found",
		"/v1/charges/" + id + "%00":                               "malformed",
		"/v1/ledger":                                              "invalid",
		"/v1/ledger?account=":                                     "invalid",
		"/v1/ledger?account=cash":                                 "invalid",
		"/v1/ledger?account=customer:'":                           "invalid",
		"/v1/ledger?account=customer:%3Cscript%3E":                "invalid",
		"/v1/ledger?account=customer:" + strings.Repeat("c", 300): "invalid",
		"/v1/ledger?account=revenue%00":                           "malformed",
		"/v1/ledger?account=revenue&account=revenue":              "malformed",
		"/v1/ledger?account=revenue&limit=1e9":                    "invalid",
		"/v1/ledger?account=revenue&limit=0":                      "invalid",
		"/v1/ledger?account=revenue&limit=201":                    "invalid",
		"/v1/ledger?account=revenue&cursor=garbage":               "cursor-invalid",
		"/v1/ledger?account=revenue&cursor=AAAAAAAAAAAAAAAA":      "cursor-invalid",
		"/v1/nothing":                                             "not-found",
	} {
		if got := r.problem(path); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
	for _, c := range []struct{ body, key, want string }{
		{direct, "", "key-missing"}, {direct, "a b", "key-invalid"}, {"{", "k", "malformed"}, {`{}`, "k", "invalid"},
		{direct + strings.Repeat(" ", 64<<10), "k", "body-too-large"},
		{strings.Replace(direct, "2500", "50001", 1), "k", "declined"}, {direct, "k", "key-reused"},
	} {
		header := []string{"Idempotency-Key", c.key}
		if c.key == "" {
			header = nil
		}
		if got := r.send("POST", "/v1/charges", c.body, header...); !strings.Contains(got.body, `"urn:oncebox:problem:`+c.want+`"`) {
			t.Errorf("POST of %.40s under %q: %s, want %s", c.body, c.key, got.body, c.want)
		}
	}
	r.send("POST", "/v1/charges", direct, "Idempotency-Key", "k", "Content-Type", "text/plain")
	r.send("POST", "/v1/charges", direct, "Idempotency-Key", "k2")
	// What the listener answers, what a database that is away makes of it, a duplicate that waits and a body that does not come
	// have tests elsewhere.
	for _, answer := range r.described.Unseen("internal", "store-unavailable", "key-in-url", "api-key-missing", "api-key-unknown", "headers-too-large",
		"in-progress", "outcome-unknown", "unfinished", "timeout") {
		t.Errorf("never answered: %s", answer)
	}
}

func TestATenantSeesItsOwnMoneyOnly(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	asked := request()
	must(t, r.handle(asked))
	id := r.column("SELECT id::text FROM charge")[0]
	// Of the same order's id, under another tenant: it is not that order.
	theirs := cancellation(asked, 2)
	theirs.TenantID = "globex"
	must(t, r.handle(theirs))
	r.want("charges", "SELECT tenant_id || ' ' || status FROM charge ORDER BY 1", "default succeeded", "globex cancelled")
	r.want("ledger", ledgerSQL, "customer:customer-1 -10000 USD", "revenue 10000 USD")
	r.tenant = "globex"
	if got := r.problem("/v1/charges/" + id); got != "not-found" {
		t.Errorf("another tenant's charge: %s", got)
	}
	var list struct {
		Charges []billing.Charge
		Entries []billing.Entry
	}
	r.read("/v1/charges?order_id="+asked.Key, &list)
	r.read("/v1/ledger?account=revenue", &list)
	if len(list.Charges) != 1 || list.Charges[0].ID == id || len(list.Entries) != 0 {
		t.Errorf("another tenant is shown %+v", list)
	}
}
