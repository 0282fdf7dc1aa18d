package orders_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/events"
	"github.com/oncebox/oncebox/orders"
)

func (r *rig) get(id string) (o orders.Order) {
	r.t.Helper()
	must(r.t, json.Unmarshal([]byte(r.do("GET", "/v1/orders/"+id, "").body), &o))
	return o
}

// topics are the types and versions of the events in the outbox, in their order.
func (r *rig) topics() string {
	r.t.Helper()
	rows, err := r.pool.Query(context.Background(), "SELECT topic || ' ' || version FROM oncebox.outbox ORDER BY seq")
	must(r.t, err)
	topics, err := pgx.CollectRows(rows, pgx.RowTo[string])
	must(r.t, err)
	return strings.Join(topics, ", ")
}

// paid is an order that billing has charged.
func (r *rig) paid(key string) orders.Order {
	r.t.Helper()
	_, o := r.post(key)
	must(r.t, r.settle(answerTo(1, events.ChargeSucceeded{OrderID: o.ID, ChargeID: uuid.NewString(), Amount: 10000, Currency: "USD"})))
	return r.get(o.ID)
}

func answerTo(version int64, p events.Payload) oncebox.Event {
	e := answer(p)
	e.Version = version
	return e
}

const changed = `{"customer_id":"customer-2","description":"three tickets"}`

func TestPutChangesWhatTheConditionNames(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	made, o := r.post("key-1")
	if tag := made.header.Get("ETag"); tag != `"1"` {
		t.Errorf("the order is made with the ETag %s", tag)
	}
	path := "/v1/orders/" + o.ID
	put := r.do("PUT", path, changed, "If-Match", `"7", "1"`)
	want := o
	want.CustomerID, want.Description, want.Version = "customer-2", "three tickets", 2
	now := r.get(o.ID)
	want.UpdatedAt = now.UpdatedAt
	if now != want || put.status != http.StatusOK || put.header.Get("ETag") != `"2"` || !now.UpdatedAt.After(o.UpdatedAt) {
		t.Errorf("PUT answered %d %s; the order is %+v, want %+v", put.status, put.body, now, want)
	}
	// The same again, as a client does that lost the answer: it is done, and nothing happens.
	for _, condition := range []string{`"1"`, `"2"`, `*`} {
		again := r.do("PUT", path, changed, "If-Match", condition)
		if again.status != http.StatusOK || again.body != put.body || again.header.Get("ETag") != `"2"` {
			t.Errorf("again with %s: %d %s", condition, again.status, again.body)
		}
	}
	// Another change that was meant for what is no more.
	for _, headers := range [][]string{
		{"If-Match", `"1"`}, {"If-Match", `W/"2"`}, {"If-Match", `"1"`, "If-Match", `"3"`}, {"If-Match", `"2"`, "If-None-Match", `*`},
		{"If-None-Match", `*`}, {"If-None-Match", `W/"2"`},
	} {
		r.wantProblem(r.do("PUT", path, strings.Replace(changed, "three", "four", 1), headers...), http.StatusPreconditionFailed, "precondition-failed")
	}
	r.wantProblem(r.do("PUT", path, changed), http.StatusPreconditionRequired, "precondition-required")
	r.wantProblem(r.do("PUT", path, changed, "If-None-Match", `"1"`), http.StatusPreconditionRequired, "precondition-required")
	r.wantProblem(r.do("PUT", "/v1/orders/"+uuid.NewString(), changed, "If-Match", "*"), http.StatusNotFound, "not-found")
	for _, condition := range []string{"2", `"2`, `"2" "3"`, `"2",x`, `*, "2"`, `W/2`, strings.Repeat(`"1",`, 51) + `"2"`} {
		r.wantProblem(r.do("PUT", path, changed, "If-Match", condition), http.StatusUnprocessableEntity, "invalid")
	}
	if o := r.get(o.ID); o != now {
		t.Errorf("after what was refused the order is %+v, was %+v", o, now)
	}
	r.wantRows(1, 1)
	// And a retry of the POST is still answered as the first time.
	if again, _ := r.post("key-1"); again.body != made.body || again.header.Get("ETag") != `"1"` {
		t.Errorf("the retry of the POST got %s, the first %s", again.body, made.body)
	}
}

// The row's lock decides between changes at once: one is done, the others were meant for what is no more.
func TestOfPutsAtOnceOneIsDone(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	_, o := r.post("key-1")
	var wg sync.WaitGroup
	status := make([]int, 20)
	for i := range status {
		wg.Go(func() {
			body := fmt.Sprintf(`{"customer_id":"customer-%d","description":"two tickets"}`, i+10)
			status[i] = r.do("PUT", "/v1/orders/"+o.ID, body, "If-Match", `"1"`).status
		})
	}
	wg.Wait()
	times := map[int]int{}
	for _, s := range status {
		times[s]++
	}
	if times[http.StatusOK] != 1 || times[http.StatusPreconditionFailed] != len(status)-1 || r.get(o.ID).Version != 2 {
		t.Errorf("statuses %v, version %d", times, r.get(o.ID).Version)
	}
}

func TestGetIsConditional(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	_, o := r.post("key-1")
	for condition, want := range map[string]int{`"1"`: 304, `W/"1"`: 304, `"0", "1"`: 304, `*`: 304, `"2"`: 200} {
		got := r.do("GET", "/v1/orders/"+o.ID, "", "If-None-Match", condition)
		if got.status != want || got.header.Get("ETag") != `"1"` || (got.body == "") != (want == 304) {
			t.Errorf("If-None-Match %s: %d, ETag %s, %q", condition, got.status, got.header.Get("ETag"), got.body)
		}
	}
	r.wantProblem(r.do("GET", "/v1/orders/"+o.ID, "", "If-Match", `"2"`), http.StatusPreconditionFailed, "precondition-failed")
}

func TestDeletingCancelsOnceAndIsAnsweredTheSameEachTime(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, deletedAs, after, topics string
		make                           func(*rig) orders.Order
	}{
		{"pending", orders.StatusCancelled, orders.StatusCancelled, "orders.charge.requested.v1 1, orders.order.cancelled.v1 2",
			func(r *rig) orders.Order { _, o := r.post("key-1"); return o }},
		{"paid", orders.StatusPaid, orders.StatusRefunded, "orders.charge.requested.v1 1, orders.order.cancelled.v1 3",
			func(r *rig) orders.Order { return r.paid("key-1") }},
		{"declined", orders.StatusDeclined, orders.StatusDeclined, "orders.charge.requested.v1 1", func(r *rig) orders.Order {
			_, o := r.post("key-1")
			must(r.t, r.settle(answerTo(1, events.ChargeDeclined{OrderID: o.ID, ChargeID: uuid.NewString(), Amount: 10000, Currency: "USD", Reason: "no"})))
			return r.get(o.ID)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			o := c.make(r)
			path := "/v1/orders/" + o.ID
			r.wantProblem(r.do("DELETE", path, "", "If-Match", `"99"`), http.StatusPreconditionFailed, "precondition-failed")
			etag := fmt.Sprintf(`"%d"`, o.Version)
			first := r.do("DELETE", path, "", "If-Match", etag)
			var deleted orders.Order
			must(t, json.Unmarshal([]byte(first.body), &deleted))
			if first.status != http.StatusOK || deleted.Status != c.deletedAs || deleted.Version != o.Version+1 || deleted.DeletedAt == nil ||
				deleted.PurgeAt.Sub(*deleted.DeletedAt) != keepDeleted || !deleted.UpdatedAt.Equal(*deleted.DeletedAt) {
				t.Fatalf("DELETE answered %d %s", first.status, first.body)
			}
			same := func(when string, headers ...string) {
				t.Helper()
				again := r.do("DELETE", path, "", headers...)
				if again.status != first.status || again.body != first.body || again.header.Get("ETag") != first.header.Get("ETag") {
					t.Errorf("%s DELETE answers %d %s, the first time %s", when, again.status, again.body, first.body)
				}
			}
			same("again")
			same("with the ETag from before, again", "If-Match", etag)
			if got := r.do("GET", path, ""); got.body != first.body {
				t.Errorf("GET shows %s, DELETE answered %s", got.body, first.body)
			}
			r.wantProblem(r.do("PUT", path, changed, "If-Match", "*"), http.StatusConflict, "deleted")

			// Billing's answer to the cancellation, which comes for a declined one not at all.
			if c.deletedAs != orders.StatusDeclined {
				must(t, r.settle(answerTo(deleted.Version, events.ChargeRefunded{OrderID: o.ID, ChargeID: uuid.NewString(), Amount: 10000, Currency: "USD"})))
			}
			same("after the refund")
			if now := r.get(o.ID); now.Status != c.after || !now.DeletedAt.Equal(*deleted.DeletedAt) || !now.PurgeAt.Equal(*deleted.PurgeAt) {
				t.Errorf("in the end the order is %+v, want it %s", now, c.after)
			}
			if topics := r.topics(); topics != c.topics {
				t.Errorf("the events are %s, want %s", topics, c.topics)
			}
		})
	}
}

func TestDeletesAtOnceAreOne(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	o := r.paid("key-1")
	var wg sync.WaitGroup
	bodies := make([]string, 20)
	for i := range bodies {
		wg.Go(func() {
			got := r.do("DELETE", "/v1/orders/"+o.ID, "")
			bodies[i] = fmt.Sprint(got.status, got.body)
		})
	}
	wg.Wait()
	for _, b := range bodies {
		if b != bodies[0] || !strings.HasPrefix(b, "200") {
			t.Errorf("got %s and %s", b, bodies[0])
		}
	}
	r.wantRows(1, 2)
}

func TestDeletingWhatNeverWasIs404(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.wantProblem(r.do("DELETE", "/v1/orders/"+uuid.NewString(), ""), http.StatusNotFound, "not-found")
	r.wantRows(0, 0)
}

func TestPurgeTakesWhatIsDeletedAndSettled(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	_, kept := r.post("key-1")
	_, gone := r.post("key-2")
	waits := r.paid("key-3")
	r.do("DELETE", "/v1/orders/"+gone.ID, "")
	r.do("DELETE", "/v1/orders/"+waits.ID, "")
	purge := func(left int) {
		t.Helper()
		must(t, r.service.Purge(t.Context()))
		var n int
		must(t, r.pool.QueryRow(t.Context(), "SELECT count(*) FROM orders").Scan(&n))
		if n != left {
			t.Errorf("%d orders are left, want %d", n, left)
		}
	}
	purge(3)
	_, err := r.pool.Exec(t.Context(), "UPDATE orders SET purge_at = clock_timestamp() WHERE purge_at IS NOT NULL")
	must(t, err)
	purge(2)
	r.wantProblem(r.do("DELETE", "/v1/orders/"+gone.ID, ""), http.StatusNotFound, "not-found")
	must(t, r.settle(answerTo(3, events.ChargeRefunded{OrderID: waits.ID, ChargeID: uuid.NewString(), Amount: 10000, Currency: "USD"})))
	purge(1)
	if r.get(kept.ID).ID != kept.ID {
		t.Error("the other order is gone")
	}
}
