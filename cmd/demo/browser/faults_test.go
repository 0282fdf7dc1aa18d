package browser

import (
	"fmt"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
)

// outcome breaks something, does something meanwhile, and waits for what comes of it.
func (v *visitor) outcome(fault string, meanwhile ...func()) (state, text string) {
	v.t.Helper()
	// What came of an earlier one, of the same kind perhaps, stands on top still.
	v.until("(document.querySelectorAll('#log li').forEach((li) => { li.dataset.before = 'yes'; }), true)")
	v.click("#faults-" + fault)
	for _, do := range meanwhile {
		do()
	}
	v.until(fmt.Sprintf("(() => { const li = document.querySelector('#log li'); return li?.dataset.of === %q && !li.dataset.before && li.dataset.state !== 'running'; })()", fault))
	said, err := chromedp.Run(v.ctx, chromedp.Evaluate[[]string]("(({ dataset, textContent }) => [dataset.state, textContent])(document.querySelector('#log li'))"))
	if err != nil {
		v.t.Fatal(err)
	}
	return said[0], said[1]
}

// happens breaks something, which comes to pass and is come out of.
func (v *visitor) happens(fault string, meanwhile ...func()) string {
	v.t.Helper()
	state, text := v.outcome(fault, meanwhile...)
	if state != "ok" || !strings.HasPrefix(text, "✓") {
		v.t.Fatal(text)
	}
	return text
}

// Each fault comes to pass, in the middle of work or upon what was done, says what it met, and leaves each order charged once.
func TestEachFaultFiresAndIsComeOutOf(t *testing.T) {
	v := visit(t)
	for _, f := range []struct {
		id, met    string
		pay        int
		afterwards bool // when all is charged; else while it is being paid
	}{
		{"kill-orders", "Killed orders in the middle of a transaction.", 100, false},
		{"kill-relay", "Killed orders with events published that its relay's cursor did not know of.", 100, false},
		{"pause-nats", "events were committed and waited in the outbox.", 100, false},
		{"cut-postgres", "connections were cut.", 100, false},
		{"redeliver", "messages came again.", 10, true},
		{"duplicates", "1000 copies of the last 100 messages were sent.", 100, true},
		{"roll-back", "The stream lost its tail", 10, true},
	} {
		v.fresh(true)
		pay := func() { v.click(fmt.Sprintf("[data-pay='%d']", f.pay)) }
		var text string
		if f.afterwards {
			pay()
			v.settled(f.pay)
			text = v.happens(f.id)
		} else {
			text = v.happens(f.id, pay)
		}
		if !strings.Contains(text, f.met) {
			t.Errorf("%s says %q", f.id, text)
		}
		intents := f.pay
		if f.id == "roll-back" {
			intents += 20
		}
		v.settled(intents)
		v.agrees()
		if n := v.int("billing", chargesSQL); n != intents {
			t.Errorf("%s: %d charges for %d intents", f.id, n, intents)
		}
		if twice := v.int("naive", naiveTwiceSQL); f.afterwards && f.id != "roll-back" && twice < f.pay {
			t.Errorf("%s: of %d the naive consumer charged only %d twice", f.id, f.pay, twice)
		}
	}
}

// A kill that does not see the moment that it waits for kills nobody, and says so.
func TestAFaultThatDoesNotFireSaysSo(t *testing.T) {
	v := visit(t)
	v.fresh(true)
	before := v.text("processes")
	for fault, says := range map[string]string{
		"kill-billing": "Did not fire at billing: in 5s nobody saw it with a charge committed",
		"kill-relay":   "Did not fire at orders: in 5s nobody saw it with events published",
	} {
		if state, text := v.outcome(fault); state != "missed" || !strings.HasPrefix(text, "○") || !strings.Contains(text, says) {
			t.Errorf("%s is %s: %s", fault, state, text)
		}
	}
	if after := v.text("processes"); after != before {
		t.Errorf("%s became %s", before, after)
	}
}
