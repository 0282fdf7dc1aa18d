package browser

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
)

// With a thousand live rows and hundreds of events a second the page draws 30 frames a second or more, and the server's memory does
// not grow from one such run to the next. It needs the machine for itself.
func TestAThousandLiveRowsAreSmooth(t *testing.T) {
	if os.Getenv("ONCEBOX_SOAK") == "" {
		t.Skip("measures the machine: ONCEBOX_SOAK=1")
	}
	v := visit(t)
	var memory []int
	for range 4 {
		v.fresh(true)
		v.until(`(globalThis.frames = 0, globalThis.begun = performance.now(), globalThis.stop = false, globalThis.tick = () => { frames++; if (!stop) requestAnimationFrame(tick); },
			requestAnimationFrame(tick), true)`)
		v.click("[data-pay='1000']")
		v.settled(1000)
		rate, err := chromedp.Run(v.ctx, chromedp.Evaluate[[]float64](`(() => { stop = true; const s = (performance.now() - begun) / 1000;
			const events = document.querySelectorAll("#rows .try").length * 2; return [frames / s, events / s]; })()`))
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%.0f frames and %.0f events of tries a second, resident %d KiB", rate[0], rate[1], demo.resident(t))
		if rate[0] < 30 {
			t.Errorf("%.1f frames a second", rate[0])
		}
		memory = append(memory, demo.resident(t))
	}
	if grown := memory[3] - memory[1]; grown > memory[1]/5 {
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
