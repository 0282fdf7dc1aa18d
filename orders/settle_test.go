package orders_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/events"
	"github.com/oncebox/oncebox/inbox"
	"github.com/oncebox/oncebox/orders"
)

// Answers that come together bring each order to where they would have brought it one by one, also two answers to one order, and what
// is wrong with one is told of that one.
func TestAnswersThatComeTogetherSettleTheirOrders(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	succeeded := func(o orders.Order) oncebox.Event {
		return answer(events.ChargeSucceeded{OrderID: o.ID, ChargeID: uuid.NewString(), Amount: 10000, Currency: "USD"})
	}
	_, paid := r.post("paid")
	_, declined := r.post("declined")
	_, cancelled := r.post("cancelled")
	_, untouched := r.post("untouched")
	r.do("DELETE", "/v1/orders/"+cancelled.ID, "")
	_, twice := r.post("answered-twice")
	r.do("PUT", "/v1/orders/"+twice.ID, changed, "If-Match", "*")
	otherAmount := succeeded(untouched)
	otherAmount.Data = []byte(strings.Replace(string(otherAmount.Data), "10000", "10001", 1))
	tooEarly := succeeded(untouched)
	tooEarly.Version = 7
	unknown := succeeded(untouched)
	unknown.Type = events.TypeChargeRequested
	group := []oncebox.Event{
		succeeded(paid),
		answer(events.ChargeSucceeded{OrderID: uuid.NewString(), ChargeID: uuid.NewString(), Amount: 10000, Currency: "USD"}),
		answer(events.ChargeDeclined{OrderID: declined.ID, ChargeID: uuid.NewString(), Amount: 10000, Currency: "USD", Reason: "too much"}),
		otherAmount, unknown,
		succeeded(cancelled),
		succeeded(twice),
		answerTo(2, events.ChargeRefunded{OrderID: twice.ID, ChargeID: uuid.NewString(), Amount: 10000, Currency: "USD"}),
		succeeded(paid), // late: the order is settled
		tooEarly,
	}
	var errs []error
	must(t, pgx.BeginFunc(t.Context(), r.pool, func(tx pgx.Tx) error {
		errs = r.service.GroupHandler()(t.Context(), tx, group)
		return nil
	}))
	for i, want := range []string{"", "no order", "", "another amount", "unknown type", "", "", "", "", "has version 1"} {
		if got := errs[i]; (got == nil) != (want == "") || got != nil && !strings.Contains(got.Error(), want) {
			t.Errorf("event %d: %v, want %q", i, got, want)
		}
	}
	if !errors.Is(errs[4], inbox.ErrUnknownType) {
		t.Errorf("the event of another type: %v", errs[4])
	}
	for id, want := range map[string]struct {
		status  string
		version int64
	}{paid.ID: {orders.StatusPaid, 2}, declined.ID: {orders.StatusDeclined, 2}, cancelled.ID: {orders.StatusCancelled, 2}, twice.ID: {orders.StatusRefunded, 4}, untouched.ID: {orders.StatusPending, 1}} {
		if o := r.get(id); o.Status != want.status || o.Version != want.version {
			t.Errorf("order %s is %s, version %d; want %s, %d", id, o.Status, o.Version, want.status, want.version)
		}
	}
	if o := r.get(declined.ID); o.DeclineReason != "too much" {
		t.Errorf("the declined order is %+v", o)
	}
}
