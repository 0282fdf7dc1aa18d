package browser

import (
	"fmt"
	"testing"

	"github.com/chromedp/chromedp"
)

// A shownRow is a row of the table as it stands on the page.
type shownRow struct {
	Intent   int      `json:"intent"`
	Index    int      `json:"index"` // among all rows, as a screen reader is told
	Text     string   `json:"text"`  // of all its cells
	Result   string   `json:"result"`
	Good     bool     `json:"good"` // and it is said to be
	Tries    []string `json:"tries"`
	Lost     int      `json:"lost"`
	Overflow string   `json:"overflow"` // what of it does not fit into its height
}

// readRows scrolls through the table, which has only those rows in the document that can be seen, and reads them all.
const readRows = `(async () => {
	const view = document.getElementById("intents"), seen = new Map();
	const frames = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
	const row = (r) => ({ intent: Number(r.id.slice("intent-".length)), index: Number(r.getAttribute("aria-rowindex")), text: r.textContent,
		result: r.cells[4].textContent, good: r.cells[4].className === "good", tries: [...r.querySelectorAll(".try")].map((t) => t.textContent),
		lost: r.querySelectorAll(".try.lost").length,
		overflow: [r, ...r.cells].filter((c) => c.offsetTop + c.scrollHeight > r.clientHeight + (c === r ? c.offsetTop : 0)).map((c) => c.textContent).join("; ") });
	for (let y = 0; ; y += view.clientHeight) {
		view.scrollTop = y;
		await frames();
		for (const r of document.querySelectorAll("#rows tr")) seen.set(r.id, row(r));
		if (y + view.clientHeight >= view.scrollHeight) break;
	}
	view.scrollTop = 0;
	await frames();
	return [...seen.values()];
})()`

// rows are all rows of the table, the newest first. Each has to fit into its place.
func (v *visitor) rows() []shownRow {
	v.t.Helper()
	rows, err := chromedp.Run(v.ctx, chromedp.Evaluate[[]shownRow](readRows, chromedp.EvalAwaitPromise))
	if err != nil {
		v.t.Fatal(err)
	}
	for i, r := range rows {
		if r.Intent != len(rows)-i || r.Index != i+2 { // the head is the first
			v.t.Fatalf("row %d of %d is that of intent %d and has the index %d", i+1, len(rows), r.Intent, r.Index)
		}
		if r.Overflow != "" {
			v.t.Errorf("row of intent %d: no room for %q", r.Intent, r.Overflow)
		}
	}
	v.until(fmt.Sprintf("document.querySelector('#intents table').getAttribute('aria-rowcount') === '%d'", len(rows)+1))
	return rows
}

// The table has a thousand rows and the document a few of them, wherever one scrolls; and what one reads stays where it is while
// rows are added above it.
func TestOnlyRowsThatCanBeSeenAreInTheDocument(t *testing.T) {
	v := visit(t)
	v.fresh(true)
	v.click("[data-pay='100']")
	v.settled(100)
	if rows := v.rows(); len(rows) != 100 {
		t.Fatalf("%d rows of 100 intents", len(rows))
	}
	const inDocument = "document.querySelectorAll('#rows tr')"
	for _, at := range []int{0, 1500, 100_000} {
		v.until(fmt.Sprintf("(document.getElementById('intents').scrollTop = %d, true)", at))
		v.until(fmt.Sprintf(`(({ top, bottom }) => %s.length < 60 && document.elementsFromPoint(400, top + 60).some((e) => e.role === "row") &&
			document.elementsFromPoint(400, bottom - 20).some((e) => e.role === "row"))(
			(document.getElementById("intents").scrollIntoView(), document.getElementById("intents").getBoundingClientRect()))`, inDocument))
	}
	v.until("(document.getElementById('intents').scrollTop = 1500, true)")
	const read = `((top) => [...` + inDocument + `].map((r) => [r.id, r.getBoundingClientRect().top - top]).find(([, y]) => y > 60 && y < 400)?.join(" at "))(
		document.getElementById("intents").getBoundingClientRect().top)`
	v.until(read + " !== undefined && document.getElementById('intents').scrollTop === 1500")
	before, err := chromedp.Run(v.ctx, chromedp.Evaluate[string](read))
	if err != nil {
		t.Fatal(err)
	}
	v.until("(document.querySelector(\"[data-pay='10']\").click(), true)") // a real click would scroll
	v.settled(110)
	v.until("document.querySelector('#intents table').getAttribute('aria-rowcount') === '111'")
	v.until(fmt.Sprintf("%s === %q", read, before))
	if rows := v.rows(); len(rows) != 110 {
		t.Errorf("%d rows of 110 intents", len(rows))
	}
}
