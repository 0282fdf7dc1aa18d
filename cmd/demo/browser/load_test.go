package browser

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
)

// With a thousand live rows and 500 events a second or more the page draws at least 30 frames a second, and the server's memory does
// not grow from one such run to the next. It needs the machine for itself. The events are what the page is told of: a try's start and
// its end, an order, its message, its charge, and its payment.
func TestAThousandLiveRowsAreSmooth(t *testing.T) {
	if os.Getenv("ONCEBOX_SOAK") == "" {
		t.Skip("measures the machine: ONCEBOX_SOAK=1")
	}
	v := visit(t)
	var memory []int
	for range 6 {
		v.fresh(true)
		v.until(`(globalThis.frames = 0, globalThis.stop = false, globalThis.tick = () => { frames++; if (!stop) requestAnimationFrame(tick); },
			globalThis.pressed = performance.now(), true)`)
		v.click("[data-pay='1000']")
		v.until("document.querySelectorAll('#rows tr').length === 1000 && (globalThis.begun = performance.now(), requestAnimationFrame(tick), true)")
		v.settled(1000)
		measured, err := chromedp.Run(v.ctx, chromedp.Evaluate[[]float64](`(() => { stop = true; const now = performance.now();
			return [frames, (now - begun) / 1000, (now - pressed) / 1000, document.querySelectorAll("#rows .try").length]; })()`))
		if err != nil {
			t.Fatal(err)
		}
		events := 2*measured[3] + float64(v.int("orders", ordersSQL)+v.int("orders", outboxSQL)+v.int("billing", chargesSQL)+v.int("orders", paidSQL))
		frames, rate := measured[0]/measured[1], events/measured[2]
		memory = append(memory, demo.resident(t))
		t.Logf("%.1f s, %.0f frames and %.0f events a second, resident %d KiB", measured[2], frames, rate, memory[len(memory)-1])
		if frames < 30 || rate < 500 {
			t.Errorf("%.1f frames and %.0f events a second", frames, rate)
		}
	}
	if before, after := memory[1], memory[len(memory)-1]; after > before+before/10 {
		t.Errorf("the server's memory went %v KiB", memory)
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
