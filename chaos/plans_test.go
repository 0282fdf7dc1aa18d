package chaos

import (
	"fmt"
	"net/http"
	"regexp"
	"testing"

	"github.com/oncebox/oncebox/internal/stacktest"
)

var paid = regexp.MustCompile(`"status":\s*"paid"`)

// Invariant: what an order costs does not grow with the tables. Sessions that made their plans while statistics said that there is next
// to nothing read no table as a whole, neither for a key nor for an order nor for the ledger's foreign key.
func TestPlansThatWereMadeOnSmallTablesDoNotReadThemWhole(t *testing.T) {
	t.Parallel()
	s := startSystem(t, nil, nil)
	pays := func(from, to int) {
		t.Helper()
		for i := from; i < to; i++ {
			a, err := s.orders.post(t.Context(), fmt.Sprint("key-", i), 4200)
			if err != nil || a.status != http.StatusCreated {
				t.Fatalf("POST answered %d %s, %v", a.status, a.body, err)
			}
			stacktest.Eventually(t, patience, "it is paid", func() (bool, error) { // by the order's id, as a client would look
				o, err := s.orders.ask(t.Context(), http.MethodGet, a.header.Get("Location"), "")
				return paid.Match(o.body), err
			})
		}
	}
	scans := func(s *service) (n int) {
		t.Helper()
		return one[int](t, s.db, `SELECT COALESCE(sum(seq_scan), 0) FROM pg_stat_user_tables
			WHERE relname IN ('orders', 'charge', 'ledger', 'idempotency_keys', 'inbox', 'dead_letter')`)
	}
	pays(0, 5)
	for _, svc := range []*service{s.orders, s.billing} {
		if _, err := svc.db.Exec(t.Context(), "ANALYZE"); err != nil {
			t.Fatal(err)
		}
	}
	before := map[*service]int{s.orders: scans(s.orders), s.billing: scans(s.billing)}
	pays(5, 40) // from the sixth time on a session keeps its plan
	s.orders.terminate(t)()
	s.billing.terminate(t)() // with which each session's counts are told
	for svc, n := range before {
		if now := scans(svc); now > n {
			t.Errorf("%s read its tables as a whole %d times for 35 orders", svc.name, now-n)
		}
	}
}
