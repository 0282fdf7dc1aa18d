package browser

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/jackc/pgx/v5"
)

const deadSQL = "SELECT count(*) FROM oncebox.dead_letter WHERE state = 'dead' AND position(convert_to($1, 'UTF8') IN payload) > 0"

// A message that killed billing is a dead letter, and is charged when it is retried from the console, once.
func TestADeadLetterIsRetriedFromTheConsole(t *testing.T) {
	v := visit(t)
	v.fresh(true)
	v.click("[data-pay='10']")
	v.settled(10)
	v.happens("killer")
	if n := v.int("billing", chargesSQL); n != 10 {
		t.Fatalf("%d charges before the retry", n)
	}
	if n := v.int("billing", deadSQL); n != 1 {
		t.Fatalf("%d dead letters", n)
	}
	v.click("#to-console")
	const letter = "#letters li:has(strong)"
	v.until(fmt.Sprintf("[...document.querySelectorAll(%q)].some((l) => l.textContent.includes('crashed'))", letter))
	n, err := chromedp.Run(v.ctx, chromedp.Evaluate[string]("[...document.querySelectorAll('#letters li')].find((l) => l.textContent.includes('crashed')).id"))
	if err != nil {
		t.Fatal(err)
	}
	v.click("#" + n + " button[aria-label^='retry']")
	v.until(fmt.Sprintf("document.getElementById(%q) === null", n))
	if n := v.int("billing", deadSQL); n != 0 {
		t.Errorf("%d dead letters after the retry", n)
	}
	v.click("#to-lab")
	v.settled(11)
	v.agrees()
	if n := v.int("billing", chargesSQL); n != 11 {
		t.Errorf("%d charges after the retry", n)
	}
}

// A letter that can never be handled stays when it is retried, with the reason said, and goes when it is dropped.
func TestAPoisonStaysUntilItIsDropped(t *testing.T) {
	v := visit(t)
	v.fresh(true)
	v.happens("poison")
	v.click("#to-console")
	v.until("document.querySelectorAll('#letters li').length > 0")
	v.do(chromedp.Func(func(ctx context.Context, _ *chromedp.Target) error {
		_, err := chromedp.Run(ctx, chromedp.Evaluate[bool](`(() => { const e = document.getElementById("f-class"); e.value = "malformed";
			e.dispatchEvent(new Event("change")); return true; })()`))
		return err
	}))
	v.click("#letters li:last-child button[aria-label^='retry']")
	v.until("document.getElementById('said').textContent.includes('cannot be retried')")
	if n := v.int("billing", deadSQL); n != 1 {
		t.Errorf("%d dead letters after a retry in vain", n)
	}
	v.click("#drop-all")
	v.until("document.querySelectorAll('#letters li').length === 0")
	if n := v.int("billing", deadSQL); n != 0 {
		t.Errorf("%d dead letters after the drop", n)
	}
	v.until("!document.getElementById('no-letters').hidden")
}

// The journey of an order is the same by each of its names, and tells of both services.
func TestAJourneyIsFollowedByEachName(t *testing.T) {
	v := visit(t)
	v.fresh(true)
	v.click("[data-pay='1']")
	v.settled(1)
	var order, event string
	if err := v.db["orders"].QueryRow(v.ctx, `SELECT o.id::text, e.id::text FROM orders o JOIN oncebox.outbox e ON e.key = o.id::text
		WHERE starts_with(o.customer_id, $1)`, "slayer-"+v.text("run")+"-").Scan(&order, &event); err != nil {
		t.Fatal(err)
	}
	key, err := chromedp.Run(v.ctx, chromedp.Evaluate[string]("document.querySelector('#rows .key').title"))
	if err != nil {
		t.Fatal(err)
	}
	v.click("#to-console")
	journeys := map[string]bool{}
	for _, name := range []string{order, event, key} {
		v.until(`(document.getElementById("journey").replaceChildren(), true)`)
		v.until(fmt.Sprintf(`((document.getElementById("q").value = %q), true)`, name))
		v.click("#follow button")
		v.until("document.querySelectorAll('#journey li').length >= 9")
		journeys[v.text("journey")] = true
	}
	for journey := range journeys {
		for _, station := range []string{"order committed", "outbox of orders", "JetStream", "inbox of billing", "charge succeeded: 100.00 USD", "outbox of billing", "inbox of orders", "order is paid"} {
			if !strings.Contains(journey, station) {
				t.Errorf("%q is not in %s", station, journey)
			}
		}
	}
	if len(journeys) != 1 {
		t.Errorf("%d journeys by three names", len(journeys))
	}
}

// The charts say in words what they show, and take their colours from the page.
func TestChartsAreDrawnAndNamed(t *testing.T) {
	v := visit(t)
	v.click("#to-console")
	v.until("document.querySelectorAll('.charts svg[role=img] title').length === 3 && document.querySelectorAll('.charts svg desc').length === 3")
	v.until("[...document.querySelectorAll('.charts svg desc')].every((d) => d.textContent.includes('Now: '))")
	v.until("document.querySelectorAll('.charts svg [style]').length === 0")
	v.until("[0, 1, 2].every((n) => document.querySelectorAll('.charts svg path.s' + n).length >= 3)")
	stroke := "getComputedStyle(document.querySelector('.charts svg path.s0')).stroke"
	before, err := chromedp.Run(v.ctx, chromedp.Evaluate[string](stroke))
	if err != nil {
		t.Fatal(err)
	}
	v.scheme("dark")
	v.until(fmt.Sprintf("%s !== %q", stroke, before))
}

// What is handed out again was handled long ago, and is no charge that took so long: the latency stays what it was.
func TestARedeliveryIsNoLatency(t *testing.T) {
	v := visit(t)
	v.fresh(true)
	v.click("[data-pay='10']")
	v.settled(10)
	const delays, stopped = "oncebox_subscriber_delay_seconds_count", "oncebox_inbox_noops_total"
	counted, before := v.metric(demo.billingMetrics, delays, ""), v.metric(demo.billingMetrics, stopped, "")
	if counted < 10 {
		t.Fatalf("%d delays of 10 charges", counted)
	}
	v.happens("redeliver")
	if again := v.metric(demo.billingMetrics, stopped, "") - before; again < 10 {
		t.Fatalf("%d messages came again", again)
	}
	if now := v.metric(demo.billingMetrics, delays, ""); now != counted {
		t.Errorf("%d delays are counted of messages that were handled before", now-counted)
	}
}

// One gets everywhere by the keyboard, in the order in which the page reads, and sees where one is.
func TestTheKeyboardReachesEachControlInOrder(t *testing.T) {
	v := visit(t)
	for _, view := range []string{"lab", "console"} {
		v.click("#to-" + view)
		v.until("document.querySelectorAll('#faults button').length > 0")
		v.until(`(document.activeElement.blur(), getSelection().removeAllRanges(), document.body.tabIndex = -1, document.body.focus(), document.body.removeAttribute("tabindex"), true)`)
		const controls = `[...document.querySelectorAll("a, button, input, select, [tabindex='0']")].filter((e) => e.checkVisibility())`
		n, err := chromedp.Run(v.ctx, chromedp.Evaluate[int](controls+".length"))
		if err != nil {
			t.Fatal(err)
		}
		for i := range n {
			v.do(chromedp.KeyEvent("\t"))
			at, err := chromedp.Run(v.ctx, chromedp.Evaluate[int](controls+".indexOf(document.activeElement)"))
			if err != nil {
				t.Fatal(err)
			}
			if at != i {
				t.Fatalf("%s: tab %d comes to control %d", view, i+1, at)
			}
			v.until("getComputedStyle(document.activeElement).outlineStyle !== 'none'")
		}
	}
}

// Who asks for less motion sees numbers change and nothing travel.
func TestReducedMotionMovesNothing(t *testing.T) {
	v := visit(t)
	v.media("prefers-reduced-motion", "reduce")
	v.fresh(true)
	v.until(`(globalThis.moved = 0, new MutationObserver((ms) => { moved += document.querySelectorAll(".move").length; })
		.observe(document.getElementById("way"), { childList: true, subtree: true }), true)`)
	v.click("[data-pay='10']")
	v.settled(10)
	v.until("moved === 0 && document.getAnimations().length === 0")
}

// What the console says of each service is what its database and its metrics hold.
func TestTheConsoleSaysWhatTheServicesHold(t *testing.T) {
	v := visit(t)
	v.fresh(true)
	v.click("[data-pay='100']")
	v.settled(100)
	v.happens("redeliver")
	v.happens("poison")
	v.click("#to-console")
	v.until("document.querySelectorAll('#letters li').length > 0")
	for i, service := range []string{"orders", "billing"} {
		url := map[string]string{"orders": demo.ordersMetrics, "billing": demo.billingMetrics}[service]
		var epoch, dead, parked int
		if err := v.db[service].QueryRow(v.ctx, `SELECT (SELECT epoch FROM oncebox.outbox_cursor), (SELECT count(*) FROM oncebox.dead_letter WHERE state = 'dead'),
			(SELECT count(*) FROM oncebox.outbox_parked WHERE outcome = '')`).Scan(&epoch, &dead, &parked); err != nil {
			t.Fatal(err)
		}
		for of, want := range map[string]string{
			"relay": fmt.Sprintf("leads, epoch %d", epoch), "not published": "0", "oldest of them": "–", "before it": "0", "in flight": "0",
			"dead letters": fmt.Sprint(dead), "parked": fmt.Sprint(parked),
			"redelivered":          whole(v.metric(url, "oncebox_subscriber_redelivered_total", "")),
			"stopped by the inbox": whole(v.metric(url, "oncebox_inbox_noops_total", "")),
		} {
			v.until(fmt.Sprintf("document.querySelectorAll('.desk')[%d].querySelector(\"dd[data-of='%s']\").textContent === %q", i, of, want))
		}
	}
	rows, err := v.db["billing"].Query(v.ctx, "SELECT n, class, reason, attempts, topic, id::text FROM oncebox.dead_letter WHERE state = 'dead'") //nolint:rowserrcheck // ForEachRow checks it
	if err != nil {
		t.Fatal(err)
	}
	var n, attempts int
	var class, reason, topic, event string
	letters := 0
	if _, err := pgx.ForEachRow(rows, []any{&n, &class, &reason, &attempts, &topic, &event}, func() error {
		letters++
		v.until(fmt.Sprintf(`((l) => l.includes(%q) && l.includes(%q) && l.includes(%q) && l.includes(%q))(document.getElementById("letter-billing-%d").textContent)`,
			fmt.Sprintf("%d · %s", n, class), reason, topic+", "+many(attempts, "attempt"), "event "+event, n))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	v.until(fmt.Sprintf("document.querySelectorAll('#letters li').length === %d && %s === %q", letters, text("letters-count"), many(letters, "dead letter")))
}
