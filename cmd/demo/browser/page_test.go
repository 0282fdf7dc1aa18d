// Package browser looks at the demo's page as its visitor does, with a real browser, and compares what it shows with SQL on
// connections of its own. It is a module of its own: who imports Oncebox inherits no browser.
package browser

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/accessibility"
	"github.com/chromedp/chromedp"
	"github.com/jackc/pgx/v5"
)

const (
	chargesSQL = "SELECT count(*) FROM charge WHERE starts_with(customer_id, $1)"
	centsSQL   = "SELECT COALESCE(sum(amount), 0)::bigint FROM charge WHERE starts_with(customer_id, $1)"
	ordersSQL  = "SELECT count(*) FROM orders WHERE starts_with(customer_id, $1)"
	paidSQL    = "SELECT count(*) FROM orders WHERE starts_with(customer_id, $1) AND status = 'paid'"
	naiveSQL   = "SELECT count(*) FROM naive_charge WHERE starts_with(customer_id, $1)"
	outboxSQL  = "SELECT count(*) FROM oncebox.outbox WHERE position(convert_to($1, 'UTF8') IN payload) > 0"

	// What was charged beyond once, for each customer.
	twiceSQL      = "SELECT count(*) - count(DISTINCT customer_id) FROM charge WHERE starts_with(customer_id, $1)"
	naiveTwiceSQL = "SELECT count(*) - count(DISTINCT customer_id) FROM naive_charge WHERE starts_with(customer_id, $1)"
)

// station is a number of the way by its place.
func station(n int) string {
	return fmt.Sprintf("Number(document.querySelectorAll('#way .count')[%d].textContent.replaceAll(',', ''))", n)
}

const clients, link, orders, outbox, jetStream, inbox, billing, paid = 0, 1, 2, 3, 4, 5, 6, 7

// within is the number that a text holds before a word, 0 if it does not.
func within(text, word string) string {
	return fmt.Sprintf("Number((%s.match(/([\\d,]+) %s/)?.[1] ?? '0').replaceAll(',', ''))", text, word)
}

// saysOf is what a station says under its number.
func saysOf(n int) string {
	return fmt.Sprintf("document.querySelectorAll('#way .what')[%d].textContent", n)
}

// settled waits until every intent has its order charged and paid, as the page shows it.
func (v *visitor) settled(intents int) {
	v.t.Helper()
	v.until(fmt.Sprintf("%s === %d && !document.querySelector('#way .what').textContent.includes('asking') && %s >= %d && %s === %s && %s === %s",
		station(clients), intents, station(orders), intents, station(orders), station(billing), station(orders), station(paid)))
}

const clientsSQL = "SELECT count(DISTINCT customer_id) FROM orders WHERE starts_with(customer_id, $1)"

// numbers are those of the page that come from a database, each with the SQL that finds it.
var numbers = []struct {
	what, shown, db, sql string
	money                bool
}{
	{"who ordered", station(clients), "orders", clientsSQL, false},
	{"orders", station(orders), "orders", ordersSQL, false},
	{"events in the outbox", station(outbox), "orders", outboxSQL, false},
	{"events in the stream", station(jetStream) + " - " + within(saysOf(jetStream), "of them copies"), "orders", outboxSQL, false},
	{"charges", station(billing), "billing", chargesSQL, false},
	{"paid", station(paid), "orders", paidSQL, false},
	{"meant", text("meant"), "orders", "SELECT count(DISTINCT customer_id) * 10000 FROM orders WHERE starts_with(customer_id, $1)", true},
	{"charged", text("charged"), "billing", centsSQL, true},
	{"the naive consumer", text("naive"), "naive", "SELECT COALESCE(sum(amount), 0)::bigint FROM naive_charge WHERE starts_with(customer_id, $1)", true},
}

func text(id string) string { return fmt.Sprintf("document.getElementById(%q).textContent", id) }

// agrees compares what the page shows with the databases: its sums, and each row. All has come to rest.
func (v *visitor) agrees() {
	v.t.Helper()
	for _, n := range numbers {
		want := fmt.Sprint(v.int(n.db, n.sql))
		if n.money {
			want = fmt.Sprintf("%q", dollars(v.int(n.db, n.sql)))
		}
		v.until(fmt.Sprintf("%s === %s", n.shown, want))
	}
	for id, want := range map[string]string{
		"meant-sub":    many(v.int("orders", clientsSQL), "intent"),
		"charged-sub":  many(v.int("billing", chargesSQL), "charge") + " for " + many(v.int("orders", ordersSQL), "order"),
		"naive-sub":    many(v.int("naive", naiveSQL), "charge") + " from the same stream",
		"excess":       excess(v.int("billing", twiceSQL)),
		"naive-excess": excess(v.int("naive", naiveTwiceSQL)),
	} {
		v.until(fmt.Sprintf("%s === %q", text(id), want))
	}
	// The link and the inbox are in no table: the link's tries are those of the rows, and billing itself counts what its inbox stopped.
	shown, tries, lost := v.rows(), 0, 0
	for _, r := range shown {
		tries += len(r.Tries)
		lost += r.Lost
	}
	v.until(fmt.Sprintf("%s === %d && %s === %d", station(link), tries, within(saysOf(link), "repl"), lost))
	v.until(fmt.Sprintf("%s === %d", station(inbox), v.metric(demo.billingMetrics, "oncebox_inbox_noops_total", "")))
	prefix := "slayer-" + v.text("run") + "-"
	made, charged := v.each("orders", ordersOfEach, prefix), v.each("billing", chargesOfEach, prefix)
	for _, r := range shown {
		customer := prefix + fmt.Sprint(r.Intent)
		n, many := charged[customer], made[customer]
		want := "charged once: $100.00"
		switch {
		case n > 1:
			want = fmt.Sprintf("%d orders, charged %d×: %s", many, n, dollars(n*10000))
		case many != n:
			want = fmt.Sprintf("%d orders and %d charges", many, n)
		}
		if r.Result != want || r.Good != (n == 1) {
			v.t.Errorf("row %d says %q, want %q", r.Intent, r.Result, want)
		}
	}
	if len(shown) != len(made) {
		v.t.Errorf("%d rows for %d customers", len(shown), len(made))
	}
}

const (
	ordersOfEach  = "SELECT customer_id, count(*) FROM orders WHERE starts_with(customer_id, $1) GROUP BY 1"
	chargesOfEach = "SELECT customer_id, count(*) FROM charge WHERE starts_with(customer_id, $1) GROUP BY 1"
)

// each are a query's counts by customer.
func (v *visitor) each(db, sql, prefix string) map[string]int {
	v.t.Helper()
	rows, err := v.db[db].Query(v.ctx, sql, prefix) //nolint:rowserrcheck // ForEachRow checks it
	if err != nil {
		v.t.Fatal(err)
	}
	counts, customer, n := map[string]int{}, "", 0
	if _, err := pgx.ForEachRow(rows, []any{&customer, &n}, func() error { counts[customer] = n; return nil }); err != nil {
		v.t.Fatal(err)
	}
	return counts
}

func dollars(cents int) string { return fmt.Sprintf("$%s.%02d", whole(cents/100), cents%100) }

// whole is a number with a comma before each three digits.
func whole(n int) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func many(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return whole(n) + " " + one + "s"
}

// excess is what a ledger says of so many charges beyond the first.
func excess(twice int) string {
	if twice == 0 {
		return "nobody twice"
	}
	return fmt.Sprintf("%s too much: %s too many", dollars(twice*10000), many(twice, "charge"))
}

func TestWithKeysEachIntentIsChargedOnce(t *testing.T) {
	v := visit(t)
	v.fresh(true)
	asked := v.metric(demo.ordersMetrics, "http_requests_total", `method="post"`)
	v.click("[data-pay='100']")
	v.settled(100)
	v.agrees()
	v.until(fmt.Sprintf("%s === %d", station(link), v.metric(demo.ordersMetrics, "http_requests_total", `method="post"`)-asked)) // one try is one request
	if got := v.text("charged"); got != "$10,000.00" {
		t.Fatalf("%s charged", got)
	}
	v.until("!document.getElementById('ledger').classList.contains('twice')")
	if n := v.int("billing", chargesSQL); n != 100 {
		t.Errorf("%d charges", n)
	}
	v.until(within(saysOf(link), "repl") + " > 0") // the loss was one

	charged, rows := v.text("charged"), v.rows()
	v.do(chromedp.Reload())
	v.settled(100)
	v.until("document.querySelectorAll('#rows tr').length > 0")
	if again := v.rows(); v.text("charged") != charged || !reflect.DeepEqual(rows, again) {
		t.Errorf("a reload shows something else: %+v, and before %+v", again, rows)
	}
}

func TestWithoutKeysThePageIsRed(t *testing.T) {
	v := visit(t)
	v.fresh(false)
	v.click("[data-pay='100']")
	v.settled(100)
	v.agrees()
	n := v.int("billing", chargesSQL)
	if n <= 100 {
		t.Fatalf("%d charges: the loss did not bite", n)
	}
	v.until("getComputedStyle(document.getElementById('charged')).color === getComputedStyle(document.getElementById('excess')).color")
	v.until("getComputedStyle(document.getElementById('charged')).color.startsWith('rgb(179, 19')")
	v.until("document.querySelectorAll('#rows tr.twice-row').length > 0")
}

// The run of a link loses the replies that it lost before.
func TestALinkIsARun(t *testing.T) {
	v := visit(t)
	v.fresh(true)
	v.click("[data-pay='10']")
	v.settled(10)
	v.until("location.hash.includes('pay=10')")
	hash, err := chromedp.Run(v.ctx, chromedp.Evaluate[string]("location.hash"))
	if err != nil {
		t.Fatal(err)
	}
	chips := "[...document.querySelectorAll('#rows tr')].map((r) => r.cells[0].textContent + r.cells[3].textContent).join()"
	before, err := chromedp.Run(v.ctx, chromedp.Evaluate[string](chips))
	if err != nil {
		t.Fatal(err)
	}
	v.fresh(false)
	run := v.text("run")
	v.do(chromedp.Navigate("about:blank"), chromedp.Navigate(demo.page+hash))
	v.until("document.getElementById('live').dataset.state === 'live' && !document.getElementById('replay').hidden")
	if v.text("run") != run {
		t.Error("opening a link is enough to begin a run")
	}
	v.click("#replay")
	v.settled(10)
	v.until(fmt.Sprintf("%s === %q", chips, before))
}

func TestKillBillingInABurst(t *testing.T) {
	v := visit(t)
	v.fresh(true)
	v.click("[data-pay='1000']")
	v.until(station(billing) + " > 30")
	met := v.happens("kill-billing")
	for _, who := range []string{"billing", "the naive consumer"} {
		if !strings.Contains(met, "Killed "+who+" with a charge committed and its message not acknowledged.") {
			t.Errorf("%s: %s", who, met)
		}
	}
	v.settled(1000)
	v.agrees()
	if n := v.int("billing", chargesSQL); n != 1000 {
		t.Errorf("%d charges", n)
	}
	v.until("document.getElementById('naive-ledger').classList.contains('twice')")
	if got := v.text("excess"); got != "nobody twice" {
		t.Errorf("billing: %s", got)
	}
	v.do(chromedp.EmulateViewport(1440, 1000))
	v.until("document.querySelectorAll('.move').length === 0")
	v.shoot("slayer", chromedp.CaptureScreenshot())
}

func TestEveryChapterHolds(t *testing.T) {
	v := visit(t)
	v.until("document.querySelectorAll('#chapters button').length > 0")
	ids, err := chromedp.Run(v.ctx, chromedp.Evaluate[[]string]("[...document.querySelectorAll('#chapters button')].map((b) => b.id)"))
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		v.click("#" + id)
		of := strings.TrimPrefix(id, "chapters-")
		v.until(fmt.Sprintf("document.querySelector('#log li')?.dataset.of === %q && document.querySelector('#log li').dataset.state !== 'running'", of))
		v.until("document.querySelector('#log li').dataset.state === 'ok'")
	}
}

// Each control that one sees, in both views, is in the accessibility tree with a role and a name, and so are the live regions.
func TestEveryControlHasARoleAndAName(t *testing.T) {
	v := visit(t)
	v.fresh(true)
	v.click("[data-pay='1']")
	v.settled(1)
	v.happens("poison") // for the console to have a letter
	for view, regions := range map[string]map[string]int{
		"lab":     {"log": 1, "status": 1, "table": 1, "columnheader": 5, "row": 2, "cell": 5, "slider": 1, "spinbutton": 1, "switch": 2},
		"console": {"status": 1, "combobox": 2, "searchbox": 1, "image": 3},
	} {
		v.click("#to-" + view)
		v.until("document.querySelectorAll('#faults button').length > 0")
		if view == "console" {
			v.until("document.querySelectorAll('#letters li button').length >= 3 && document.querySelectorAll('.charts svg').length === 3")
		}
		seen, err := chromedp.Run(v.ctx, chromedp.Evaluate[int]("[...document.querySelectorAll('a, button, input, select')].filter((e) => e.checkVisibility()).length"))
		if err != nil {
			t.Fatal(err)
		}
		tree, err := chromedp.Call(v.ctx, accessibility.GetFullAXTree, accessibility.GetFullAXTreeParams{})
		if err != nil {
			t.Fatal(err)
		}
		roles, controls := map[string]int{}, 0
		for _, n := range tree.Nodes {
			if n.Ignored || n.Role == nil {
				continue
			}
			role := strings.Trim(string(n.Role.Value), `"`)
			roles[role]++
			switch role {
			case "button", "switch", "slider", "spinbutton", "link", "checkbox", "textbox", "searchbox", "combobox":
				controls++
				if n.Name == nil || strings.Trim(string(n.Name.Value), `" `) == "" {
					t.Errorf("%s: a %s without a name", view, role)
				}
			}
		}
		if controls != seen {
			t.Errorf("%s: %d of its %d controls have a role: %v", view, controls, seen, roles)
		}
		for role, least := range regions {
			if roles[role] < least {
				t.Errorf("%s: %d of role %s, want %d: %v", view, roles[role], role, least, roles)
			}
		}
	}
}
