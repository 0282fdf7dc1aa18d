package inbox_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/inbox"
	"github.com/oncebox/oncebox/internal/psp"
	"github.com/oncebox/oncebox/internal/stacktest"
)

// provide is a provider's process, on the address and with the memory that its environment names.
func provide() error {
	// In the order in which the test asks: the second loses its reply, the third's comes when the client has given up.
	p, err := psp.Open(os.Getenv("INBOX_TEST_PSP_FILE"), psp.Faults{Lose: 2, Slow: 3, Crash: 4, Delay: time.Minute}, func() { os.Exit(3) })
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", os.Getenv("INBOX_TEST_PSP_LISTEN"))
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(os.Stdout, l.Addr()); err != nil {
		return err
	}
	s := &http.Server{Handler: p, ReadHeaderTimeout: time.Second}
	return s.Serve(l)
}

// A provider is a process that is started again when it has crashed.
type provider struct {
	t    *testing.T
	file string
	addr string
	cmd  *exec.Cmd
}

func newProvider(t *testing.T) *provider {
	t.Helper()
	p := &provider{t: t, file: filepath.Join(t.TempDir(), "charges"), addr: "127.0.0.1:0"}
	p.start()
	t.Cleanup(func() { _ = p.cmd.Process.Kill() })
	return p
}

func (p *provider) start() {
	p.t.Helper()
	p.cmd = exec.Command(os.Args[0])
	p.cmd.Env = append(os.Environ(), "INBOX_TEST_CONSUMER=provider", "INBOX_TEST_PSP_FILE="+p.file, "INBOX_TEST_PSP_LISTEN="+p.addr)
	out, err := p.cmd.StdoutPipe()
	must(p.t, err)
	p.cmd.Stderr = p.t.Output()
	must(p.t, p.cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	must(p.t, err)
	p.addr = strings.TrimSpace(line)
}

func (p *provider) outside() inbox.Outside {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // with them a lost reply is sent for again unseen
	return inbox.Outside{
		Call: func(ctx context.Context, e oncebox.Event, key string) ([]byte, error) {
			form := url.Values{"amount": {"100"}, "currency": {"usd"}, "metadata[reference]": {string(e.Data)}}
			if string(e.Data) == "refused" {
				form.Set("amount", "-1")
			}
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+p.addr+"/v1/charges", strings.NewReader(form.Encode()))
			if err != nil {
				return nil, err
			}
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			req.Header.Set("Idempotency-Key", key)
			res, err := client.Do(req)
			if err != nil {
				return nil, err
			}
			defer res.Body.Close()
			var c psp.Charge
			switch err := json.NewDecoder(res.Body).Decode(&c); {
			case res.StatusCode == http.StatusBadRequest:
				return nil, inbox.Permanent("refused", errors.New(res.Status))
			case res.StatusCode != http.StatusOK:
				return nil, errors.New(res.Status)
			case err != nil:
				return nil, err
			}
			return []byte(c.ID), nil
		},
		Find: func(_ context.Context, e oncebox.Event) ([]byte, bool, error) {
			for _, c := range p.charges(string(e.Data)) {
				return []byte(c.ID), true, nil
			}
			return nil, false, nil
		},
		Settle: func(ctx context.Context, tx pgx.Tx, e oncebox.Event, answer []byte) error {
			_, err := tx.Exec(ctx, "INSERT INTO effect VALUES ($1, $2)", e.ID, answer)
			return err
		},
		Lease: 2 * time.Second,
	}
}

func (p *provider) charges(reference string) []psp.Charge {
	res, err := http.Get("http://" + p.addr + "/v1/charges/search?query=" + url.QueryEscape("metadata['reference']:'"+reference+"'"))
	must(p.t, err)
	defer res.Body.Close()
	var list struct{ Data []psp.Charge }
	must(p.t, json.NewDecoder(res.Body).Decode(&list))
	return list.Data
}

// until delivers e until it is done, starting the provider again whenever it has crashed, and returns how often it failed.
func (p *provider) until(h message.NoPublishHandlerFunc, e oncebox.Event) (failures int) {
	p.t.Helper()
	stacktest.Eventually(p.t, 20*time.Second, string(e.Data)+" is done", func() (bool, error) {
		err := h(again(e, failures+1))
		if err != nil {
			failures++
			if p.cmd.ProcessState == nil && string(e.Data) == "crash" {
				if err := p.cmd.Wait(); err == nil {
					p.t.Error("the provider ended, and did not crash")
				}
				p.start()
			}
		}
		return err == nil, err
	})
	return failures
}

func TestAnEffectOutsideHappensOnceWhateverTheProviderDoes(t *testing.T) {
	t.Parallel()
	r, p := newRig(t), newProvider(t)
	h, err := r.in.External(p.outside())
	must(t, err)
	for _, name := range []string{"good", "lost", "slow", "crash"} {
		e := event(name)
		if failures := p.until(h, e); (failures > 0) != (name != "good") {
			t.Errorf("%s: %d failures: the fault did not fire", name, failures)
		}
		must(t, h(again(e, 9)))
	}
	must(t, h(event("refused").Message()))
	must(t, h(message.NewMessage("x", nil)))
	r.wantEffects(4)
	r.wantLetters("refused", "undecodable")
	for _, name := range []string{"good", "lost", "slow", "crash"} {
		if n := len(p.charges(name)); n != 1 {
			t.Errorf("%s was charged %d times", name, n)
		}
	}
}

// While one calls, the same message in another's hands comes again later.
func TestACallIsNotRunTwiceAtOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	began, end := make(chan struct{}), make(chan struct{})
	var calls atomic.Int32
	o := inbox.Outside{
		Call: func(context.Context, oncebox.Event, string) ([]byte, error) {
			if calls.Add(1) == 1 {
				close(began)
				<-end
			}
			return nil, nil
		},
		Find:   func(context.Context, oncebox.Event) ([]byte, bool, error) { return nil, false, nil },
		Settle: func(ctx context.Context, tx pgx.Tx, e oncebox.Event, _ []byte) error { return effect(ctx, tx, e) },
	}
	h, err := r.in.External(o)
	must(t, err)
	e := event("a")
	first := make(chan error, 1)
	go func() { first <- h(e.Message()) }()
	<-began
	for range 3 {
		if h(again(e, 2)) == nil {
			t.Error("a message that is being called for was taken for done")
		}
	}
	close(end)
	must(t, <-first)
	must(t, h(again(e, 3)))
	if calls.Load() != 1 {
		t.Errorf("%d calls", calls.Load())
	}
	r.wantEffects(1)
}

// The other side may have forgotten the key: it is asked what there is, and never for it again.
func TestPastTheKeyRetentionTheEffectIsLookedFor(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var calls, finds int
	o := inbox.Outside{
		Call: func(context.Context, oncebox.Event, string) ([]byte, error) {
			calls++
			return nil, errors.New("nobody knows")
		},
		Find: func(_ context.Context, e oncebox.Event) ([]byte, bool, error) {
			finds++
			return nil, string(e.Data) == "there", nil
		},
		Settle: func(ctx context.Context, tx pgx.Tx, e oncebox.Event, _ []byte) error { return effect(ctx, tx, e) },
	}
	h, err := r.in.External(o)
	must(t, err)
	for _, name := range []string{"there", "not there"} {
		e := event(name)
		if h(e.Message()) == nil {
			t.Error("an unknown outcome was taken for done")
		}
		_, err := r.pool.Exec(context.Background(), "UPDATE oncebox.inbox SET at = at - interval '2 days' WHERE state = 'intent'")
		must(t, err)
		must(t, h(again(e, 2)))
	}
	if calls != 2 || finds != 2 {
		t.Errorf("%d calls and %d looks, want 2 of each", calls, finds)
	}
	r.wantEffects(1)
	r.wantLetters(inbox.ClassOutcomeUnknown)
}

// An outside that a test watches: Call does what call says.
func watched(call func(e oncebox.Event) error, finds *atomic.Int32, found bool) inbox.Outside {
	return inbox.Outside{
		Call: func(_ context.Context, e oncebox.Event, _ string) ([]byte, error) { return nil, call(e) },
		Find: func(context.Context, oncebox.Event) ([]byte, bool, error) {
			finds.Add(1)
			return nil, found, nil
		},
		Settle: func(ctx context.Context, tx pgx.Tx, e oncebox.Event, _ []byte) error { return effect(ctx, tx, e) },
		Lease:  200 * time.Millisecond,
	}
}

// Each attempt's process dies in the middle of the call: nothing more is heard of it. After MaxCrashes the effect is looked for,
// and never asked for again.
func TestACallWhoseProcessesDieIsNotRunForEver(t *testing.T) {
	t.Parallel()
	for name, found := range map[string]bool{"with its effect": true, "without": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			e, die := event("killer"), make(chan struct{})
			var calls, finds atomic.Int32
			t.Cleanup(func() { close(die) })
			for n := 1; n <= 3; n++ {
				begun := make(chan struct{})
				h, err := r.inbox("consumer").External(watched(func(oncebox.Event) error {
					calls.Add(1)
					close(begun)
					<-die
					return errors.New("never")
				}, &finds, found))
				must(t, err)
				stacktest.Eventually(t, 10*time.Second, "the lease of the attempt before is over", func() (bool, error) {
					return r.count("oncebox.inbox WHERE lease_until > clock_timestamp()") == 0, nil
				})
				go func() { _ = h(again(e, n)) }()
				<-begun
				_, err = r.pool.Exec(context.Background(), "UPDATE oncebox.inbox SET owner = gen_random_uuid()") // so that what the dead say is not heard
				must(t, err)
			}
			h, err := r.inbox("consumer").External(watched(func(oncebox.Event) error {
				calls.Add(1)
				return nil
			}, &finds, found))
			must(t, err)
			stacktest.Eventually(t, 10*time.Second, "it comes to its end", func() (bool, error) {
				err := h(again(e, 4))
				return err == nil, err
			})
			if calls.Load() != 3 || finds.Load() != 1 {
				t.Errorf("%d calls and %d looks, want 3 and 1", calls.Load(), finds.Load())
			}
			if found {
				r.wantEffects(1)
				r.wantLetters()
				return
			}
			r.wantEffects(0)
			r.wantLetters("crashed")
		})
	}
}

// Calls that fail, and a process that comes back to what it could not close in an outage, are no crashes.
func TestCallsThatFailAreNoCrashes(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var (
		calls, finds atomic.Int32
		owner        uuid.UUID
	)
	h, err := r.in.External(watched(func(oncebox.Event) error {
		if calls.Add(1) <= 10 {
			must(t, r.pool.QueryRow(context.Background(), "SELECT owner FROM oncebox.inbox").Scan(&owner))
			return errors.New("passing")
		}
		return nil
	}, &finds, false))
	must(t, err)
	e := event("a")
	for n := 1; n <= 10; n++ {
		if h(again(e, n)) == nil {
			t.Error("a failure was taken for done")
		}
		if n == 5 { // as if the failure could not be written
			_, err := r.pool.Exec(context.Background(), "UPDATE oncebox.inbox SET owner = $1", owner)
			must(t, err)
		}
	}
	must(t, h(again(e, 11)))
	if finds.Load() != 0 || r.count("oncebox.inbox WHERE crashes > 0") != 0 {
		t.Errorf("%d looks, crashes were counted", finds.Load())
	}
	r.wantEffects(1)
}

// A call that does not return is given up, and counted.
func TestACallThatNeverReturnsIsGivenUp(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	end := make(chan struct{})
	t.Cleanup(func() { close(end) })
	var finds atomic.Int32
	h, err := r.in.External(watched(func(oncebox.Event) error {
		<-end
		return nil
	}, &finds, false))
	must(t, err)
	e, failures := event("a"), 0
	stacktest.Eventually(t, 30*time.Second, "the message is given up", func() (bool, error) {
		err := h(again(e, failures+1))
		if err != nil {
			failures++
		}
		return err == nil, err
	})
	if failures != 3 || finds.Load() != 1 {
		t.Errorf("given up after %d attempts and %d looks", failures, finds.Load())
	}
	r.wantEffects(0)
	r.wantLetters("crashed")
}

// What Prepare writes is there before the call; what it refuses is never asked for.
func TestWhatIsPreparedIsCommittedBeforeTheCall(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	_, err := r.pool.Exec(context.Background(), "CREATE TABLE prepared (id text)")
	must(t, err)
	var calls, finds atomic.Int32
	o := watched(func(e oncebox.Event) error {
		calls.Add(1)
		if r.count("prepared WHERE id = $1", e.ID) != 1 {
			t.Errorf("%s was asked for before it was prepared", e.Data)
		}
		return nil
	}, &finds, false)
	o.Prepare = func(ctx context.Context, tx pgx.Tx, e oncebox.Event) (bool, error) {
		if _, err := tx.Exec(ctx, "INSERT INTO prepared VALUES ($1)", e.ID); err != nil {
			return false, err
		}
		switch string(e.Data) {
		case "refused":
			return false, inbox.Permanent("refused", errors.New("no"))
		case "unknown":
			return false, inbox.ErrUnknownType
		case "passing":
			return false, errors.New("passing")
		}
		return string(e.Data) != "nothing to ask", nil
	}
	h, err := r.in.External(o)
	must(t, err)
	for _, data := range []string{"good", "nothing to ask", "refused", "unknown"} {
		must(t, h(event(data).Message()))
	}
	if h(event("passing").Message()) == nil {
		t.Error("a failure was taken for done")
	}
	if calls.Load() != 1 || r.count("prepared") != 2 {
		t.Errorf("%d calls, %d prepared", calls.Load(), r.count("prepared"))
	}
	r.wantEffects(2)
	r.wantLetters("refused")
	if n := r.count("oncebox.inbox WHERE state = 'done'"); n != 3 || r.count("oncebox.inbox") != 4 {
		t.Errorf("%d done of %d", n, r.count("oncebox.inbox"))
	}
}
