// Package stacktest gives tests what they need of internal/devstack: a fresh migrated database, a nats-server, a Postgres of
// their own. All of it is real, none of it is left behind, and there is nothing to clean up:
//
//	func TestMain(m *testing.M) { stacktest.Main(m) }
//
//	func TestOrderIsCharged(t *testing.T) {
//		t.Parallel()
//		db := stacktest.Postgres(t, migrations.Orders, migrations.Outbox)
//		broker := stacktest.NATS(t)
//
// The databases of one test binary are on one server, which starts with the first of them (1 s; each
// further one takes 50 ms), or on the one that DATABASE_URL names, where the migrated templates stay for the next run.
package stacktest

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/oncebox/oncebox/internal/devstack"
)

// startLimit is how long a server may take to start. A second is usual; on a machine that runs all packages' tests it is more.
const startLimit = time.Minute

// Main is the whole of TestMain: it runs the tests, stops the server that they shared, and exits.
func Main(m *testing.M) {
	devstack.Helper()
	code := m.Run()
	if err := shared.remove(); err != nil {
		fmt.Fprintln(os.Stderr, "stacktest: remove Postgres:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// pollPause is the time between two looks at a condition.
const pollPause = 5 * time.Millisecond

// Eventually waits until cond is true, looking at once and then every 5 ms. The test fails when that does not happen within
// the timeout, with what (a noun phrase or a sentence: "the order is charged") and with cond's last error; an error does not
// end the wait. It must be called from the test's goroutine.
func Eventually(t testing.TB, timeout time.Duration, what string, cond func() (bool, error)) {
	t.Helper()
	deadline := time.Now().Add(timeout)
	for {
		ok, err := cond()
		switch {
		case err == nil && ok:
			return
		case time.Now().Before(deadline):
			time.Sleep(pollPause)
		case err != nil:
			t.Fatalf("not within %s: %s: %v", timeout, what, err)
		default:
			t.Fatalf("not within %s: %s", timeout, what)
		}
	}
}
