package browser

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/heapprofiler"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// With a thousand live rows and 500 events a second the page draws 30 frames a second, and neither the server's memory nor the page's
// grows from one such run to the next. The real services make the events, on the same cores as the browser, which has no graphics card
// here. Half of both rates must be there on any machine; ONCEBOX_SOAK=1 asks for all, of a machine that does nothing else. The events
// are what the page is told of: a try's start and its end, an order, its message, its charge, and its payment.
func TestAThousandLiveRowsAreSmooth(t *testing.T) {
	wantFrames, wantEvents := 15.0, 250.0
	if os.Getenv("ONCEBOX_SOAK") != "" {
		wantFrames, wantEvents = 30, 500
	}
	v := visit(t)
	var server, page []int
	drawn, seconds := 0.0, 0.0
	for range 6 {
		v.fresh(true)
		v.until(`(globalThis.gaps = [], globalThis.stop = false, globalThis.tick = (now) => { gaps.push(now - last); last = now; if (!stop) requestAnimationFrame(tick); },
			globalThis.pressed = performance.now(), true)`)
		v.click("[data-pay='1000']")
		v.until("document.querySelector('#intents table').getAttribute('aria-rowcount') === '1001' && (globalThis.last = performance.now(), requestAnimationFrame(tick), true)")
		v.settled(1000)
		// A frame's length is that of its gap; the longest that 1 % of them take is what one sees as a jerk.
		measured, err := chromedp.Run(v.ctx, chromedp.Evaluate[[]float64](`(() => { stop = true; gaps.sort((a, b) => a - b);
			return [gaps.length, gaps.reduce((a, b) => a + b, 0) / 1000, (performance.now() - pressed) / 1000, gaps[Math.floor(gaps.length * 0.99)]]; })()`))
		if err != nil {
			t.Fatal(err)
		}
		tries, err := chromedp.Run(v.ctx, chromedp.Evaluate[int](station(link)))
		if err != nil {
			t.Fatal(err)
		}
		events := float64(2*tries + v.int("orders", ordersSQL) + v.int("orders", outboxSQL) + v.int("billing", chargesSQL) + v.int("orders", paidSQL))
		frames, rate := measured[0]/measured[1], events/measured[2]
		drawn, seconds = drawn+measured[0], seconds+measured[1]
		server, page = append(server, demo.resident(t)), append(page, v.heap())
		t.Logf("%.1f s, %.1f frames a second, of which 1 %% took %.0f ms or more, %.0f events a second; server %d KiB, page %d KiB",
			measured[1], frames, measured[3], rate, server[len(server)-1], page[len(page)-1])
		if frames < wantFrames || rate < wantEvents {
			t.Errorf("%.1f frames and %.0f events a second, want %v and %v", frames, rate, wantFrames, wantEvents)
		}
	}
	t.Logf("%.0f frames in %.1f s: %.1f a second", drawn, seconds, drawn/seconds)
	if seconds < 10 {
		t.Errorf("looked for %.1f s: too short to tell", seconds)
	}
	for what, kib := range map[string][]int{"server": server, "page": page} {
		if before, after := kib[1], kib[len(kib)-1]; after > before+before/10 { // the first run warms up
			t.Errorf("the memory of the %s went %v KiB", what, kib)
		}
	}
}

// resident is the demo's memory in KiB.
func (r *running) resident(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	n, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// heap is what the page's scripts hold, in KiB.
func (v *visitor) heap() int {
	v.t.Helper()
	if _, err := chromedp.Call(v.ctx, heapprofiler.CollectGarbage, cdp.Empty{}); err != nil {
		v.t.Fatal(err)
	}
	used, err := chromedp.Call(v.ctx, runtime.GetHeapUsage, cdp.Empty{})
	if err != nil {
		v.t.Fatal(err)
	}
	return int(used.UsedSize / 1024)
}
