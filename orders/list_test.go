package orders_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/oncebox/oncebox/orders"
)

type listed struct {
	Orders     []orders.Order
	NextCursor string `json:"next_cursor"`
}

func (r *rig) list(query string) listed {
	r.t.Helper()
	got := r.do("GET", "/v1/orders?"+query, "")
	var l listed
	if err := json.Unmarshal([]byte(got.body), &l); err != nil || got.status != http.StatusOK {
		r.t.Fatalf("%s: %d %s", query, got.status, got.body)
	}
	return l
}

// pages are the ids of all pages of a query, and how many pages there were.
func (r *rig) pages(query string) (ids []string, n int) {
	r.t.Helper()
	for cursor := ""; ; n++ {
		l := r.list(query + cursor)
		for _, o := range l.Orders {
			ids = append(ids, o.ID)
		}
		if l.NextCursor == "" {
			return ids, n + 1
		}
		cursor = "&cursor=" + l.NextCursor
	}
}

func TestPagesHaveEachOrderOnceTheNewestFirst(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	if got := r.do("GET", "/v1/orders", ""); got.body != `{"orders":[]}`+"\n" {
		t.Errorf("no orders: %s", got.body)
	}
	var pending, paid []string
	for i := range 7 {
		if i%3 == 1 {
			paid = append(paid, r.paid(fmt.Sprint("key-", i)).ID)
			continue
		}
		_, o := r.post(fmt.Sprint("key-", i))
		pending = append(pending, o.ID)
	}
	all := slices.Concat(pending, paid)
	for _, ids := range [][]string{all, pending, paid} {
		slices.Sort(ids)
		slices.Reverse(ids)
	}
	for query, want := range map[string]struct {
		ids   []string
		pages int
	}{
		"":                        {all, 1},
		"limit=1":                 {all, 7},
		"limit=3":                 {all, 3},
		"limit=7":                 {all, 1},
		"limit=2&status=pending":  {pending, 3},
		"limit=1&status=paid":     {paid, 2},
		"limit=200&status=failed": {nil, 0},
	} {
		if want.pages == 0 {
			r.wantProblem(r.do("GET", "/v1/orders?"+query, ""), http.StatusUnprocessableEntity, "invalid")
			continue
		}
		if ids, n := r.pages(query); !slices.Equal(ids, want.ids) || n != want.pages {
			t.Errorf("%s: %d pages with %v, want %d with %v", query, n, ids, want.pages, want.ids)
		}
	}
	r.do("DELETE", "/v1/orders/"+pending[0], "")
	left := slices.DeleteFunc(slices.Clone(all), func(id string) bool { return id == pending[0] })
	if ids, _ := r.pages("limit=2"); !slices.Equal(ids, left) {
		t.Errorf("a deleted order is listed: %v", ids)
	}
	if ids, _ := r.pages("limit=2&show_deleted=true"); !slices.Equal(ids, all) {
		t.Errorf("a deleted order is missing where it is asked for: %v", ids)
	}
	if ids, _ := r.pages("status=cancelled&show_deleted=true"); !slices.Equal(ids, pending[:1]) {
		t.Errorf("the cancelled orders are %v", ids)
	}
}

func TestACursorIsGoodForItsListOnly(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.post("key-1")
	r.post("key-2")
	cursor := r.list("limit=1").NextCursor
	for _, query := range []string{
		"status=pending&cursor=" + cursor, "show_deleted=true&cursor=" + cursor,
		"cursor=" + cursor[:len(cursor)-1], "cursor=" + cursor + "A", "cursor=" + strings.ToLower(cursor), "cursor=x", "cursor=%2B%2F%3D",
		"cursor=AAAA" + cursor[4:],
	} {
		r.wantProblem(r.do("GET", "/v1/orders?"+query, ""), http.StatusUnprocessableEntity, "cursor-invalid")
	}
}

// A page deep in the list of a large tenant, beside one of few orders: Postgres goes to where the page begins, and reads no more.
func TestAPageIsReadFromAnIndex(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := context.Background()
	_, err := r.pool.Exec(ctx, `INSERT INTO orders (tenant_id, id, customer_id, amount, currency, description, status, version)
		SELECT 'default', uuid_in(lpad(to_hex(n), 32, '0')::cstring), 'c', 1, 'USD', '', CASE n % 100 WHEN 0 THEN 'declined' ELSE 'paid' END, 2
		FROM generate_series(1, 20000) AS n; ANALYZE orders`)
	must(t, err)
	for _, c := range []struct{ condition, index string }{
		{"", "orders_pkey"}, {" AND status = 'declined'", "orders_status"},
	} {
		rows, err := r.pool.Query(ctx, `EXPLAIN (ANALYZE, BUFFERS, COSTS OFF, TIMING OFF) SELECT * FROM orders WHERE tenant_id = 'default'
			AND id < '00000000-0000-0000-0000-000000002710'`+c.condition+` AND deleted_at IS NULL ORDER BY id DESC LIMIT 51`)
		must(t, err)
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		must(t, err)
		plan := strings.Join(lines, "\n")
		if !strings.Contains(plan, "Index Scan Backward using "+c.index) || strings.Contains(plan, "Sort") || strings.Contains(plan, "Rows Removed") {
			t.Errorf("%s\n%s", c.condition, plan)
		}
	}
}
