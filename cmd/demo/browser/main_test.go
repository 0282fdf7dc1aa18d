package browser

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/jackc/pgx/v5"
)

// demo is the one that all tests look at; each begins with a reset.
var demo *running

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	dir, err := os.MkdirTemp("", "oncebox-browser-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	bin := filepath.Join(dir, "demo")
	build := exec.Command("go", "build", "-buildvcs=false", "-o", bin, "./cmd/demo")
	build.Dir = "../../.."
	if out, err := build.CombinedOutput(); err != nil {
		return 1, fmt.Errorf("build the demo: %w\n%s", err, out)
	}
	if demo, err = start(bin); err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, demo.stop()) }()
	return m.Run(), nil
}

// A running demo, with the addresses that it printed.
type running struct {
	cmd                           *exec.Cmd
	out                           output
	page                          string
	ordersMetrics, billingMetrics string
	orders, billing, naive        string // the databases
}

type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

var printed = regexp.MustCompile(`(?s)Break it yourself: (\S+).*\nmetrics  (\S+)\s+(\S+).*Postgres (\S+)\s+(\S+)\s+(\S+)`)

func start(bin string) (*running, error) {
	r := &running{cmd: exec.Command(bin, "-orders", "2", "-kills", "0", "-seed", "7")}
	r.cmd.Dir = "../../.."
	r.cmd.Stdout, r.cmd.Stderr = &r.out, &r.out
	if err := r.cmd.Start(); err != nil {
		return nil, err
	}
	for late := time.Now().Add(3 * time.Minute); time.Now().Before(late); <-time.After(50 * time.Millisecond) {
		if found := printed.FindStringSubmatch(r.out.String()); found != nil {
			r.page, r.ordersMetrics, r.billingMetrics, r.orders, r.billing, r.naive = found[1], found[2], found[3], found[4], found[5], found[6]
			return r, nil
		}
	}
	return nil, errors.Join(fmt.Errorf("the demo printed no page:\n%s", r.out.String()), r.stop())
}

func (r *running) stop() error {
	if err := r.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	_ = r.cmd.Wait() // without kills and with two orders its own checks may fail: they are not asked here
	return nil
}

// A visitor is a browser's tab on the page.
type visitor struct {
	t   *testing.T
	ctx context.Context
	db  map[string]*pgx.Conn
}

func visit(t *testing.T) *visitor {
	t.Helper()
	opts := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.WindowSize(1280, 900))
	ctx, cancel := chromedp.NewExecAllocator(t.Context(), opts...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	v := &visitor{t: t, ctx: ctx, db: map[string]*pgx.Conn{}}
	messages := chromedp.Console(ctx)
	go func() {
		for m, err := range messages {
			if err != nil {
				return
			}
			if m.IsException() || m.Type == "error" || m.Type == "warning" {
				t.Errorf("console: %s", m.Text)
			}
		}
	}()
	for name, url := range map[string]string{"orders": demo.orders, "billing": demo.billing, "naive": demo.naive} {
		conn, err := pgx.Connect(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close(context.Background()) })
		v.db[name] = conn
	}
	v.do(chromedp.Navigate(demo.page))
	v.until(`document.getElementById("live").dataset.state === "live"`)
	return v
}

func (v *visitor) do(steps ...chromedp.Action[chromedp.Void]) {
	v.t.Helper()
	if err := chromedp.Do(v.ctx, steps...); err != nil {
		v.t.Fatal(err)
	}
}

// until waits for a JavaScript expression to be true.
func (v *visitor) until(expression string) {
	v.t.Helper()
	for late := time.Now().Add(2 * time.Minute); time.Now().Before(late); <-time.After(50 * time.Millisecond) {
		ok, err := chromedp.Run(v.ctx, chromedp.Evaluate[bool](expression))
		if err != nil {
			v.t.Fatalf("%s: %v", expression, err)
		}
		if ok {
			return
		}
	}
	said, _ := chromedp.Run(v.ctx, chromedp.Evaluate[string]("document.querySelector('main').innerText.slice(0, 1500)"))
	v.t.Fatalf("never: %s\n%s", expression, said)
}

func (v *visitor) text(id string) string {
	v.t.Helper()
	s, err := chromedp.Run(v.ctx, chromedp.Evaluate[string](fmt.Sprintf("document.getElementById(%q).textContent", id)))
	if err != nil {
		v.t.Fatal(err)
	}
	return s
}

func (v *visitor) click(selector string) {
	v.t.Helper()
	v.do(chromedp.Click(chromedp.CSS(selector)))
}

// fresh begins a run with these settings, as a visitor would by the controls.
func (v *visitor) fresh(keys bool) {
	v.t.Helper()
	before := v.text("run")
	v.click("#reset")
	v.until(fmt.Sprintf("document.getElementById('run').textContent !== %q", before))
	v.set("keys", keys)
	v.set("retries", true)
	v.do(chromedp.Func(func(ctx context.Context, _ *chromedp.Target) error {
		_, err := chromedp.Run(ctx, chromedp.Evaluate[bool](`(() => { const e = document.getElementById("loss"); e.value = 40;
			e.dispatchEvent(new Event("change")); return true; })()`))
		return err
	}))
	v.until("location.hash.includes('loss=40')")
}

func (v *visitor) set(id string, on bool) {
	v.t.Helper()
	is, err := chromedp.Run(v.ctx, chromedp.Evaluate[bool](fmt.Sprintf("document.getElementById(%q).checked", id)))
	if err != nil {
		v.t.Fatal(err)
	}
	if is != on {
		v.click("#" + id)
		v.until(fmt.Sprintf("location.hash.includes(%q)", id+"="+map[bool]string{true: "on", false: "off"}[on]))
	}
}

func (v *visitor) int(db, sql string) int {
	v.t.Helper()
	var n int
	if err := v.db[db].QueryRow(v.ctx, sql, "slayer-"+v.text("run")+"-").Scan(&n); err != nil {
		v.t.Fatal(err)
	}
	return n
}

// metric is the sum over a service's series of that name which have this label, or all of them for "".
func (v *visitor) metric(url, name, label string) int {
	v.t.Helper()
	req, err := http.NewRequestWithContext(v.ctx, http.MethodGet, url, nil)
	if err != nil {
		v.t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		v.t.Fatal(err)
	}
	defer res.Body.Close()
	sum, lines := 0.0, bufio.NewScanner(res.Body)
	for lines.Scan() {
		series, value, _ := strings.Cut(strings.ReplaceAll(lines.Text(), "} ", "}\t"), "\t")
		if series == lines.Text() {
			series, value, _ = strings.Cut(series, " ")
		}
		if of, labels, _ := strings.Cut(series, "{"); of != name || !strings.Contains(labels, label) {
			continue
		}
		n, err := strconv.ParseFloat(value, 64)
		if err != nil {
			v.t.Fatalf("%s: %v", lines.Text(), err)
		}
		sum += n
	}
	if err := lines.Err(); err != nil {
		v.t.Fatal(err)
	}
	return int(sum)
}
