package main

import "fmt"

// failures are the checks that a run did not pass, one line each. Two kinds: what Oncebox promises, and that the faults which
// could have broken it really came.
func (t tally) failures(o options) []string {
	var failed []string
	check := func(ok bool, format string, args ...any) {
		if !ok {
			failed = append(failed, fmt.Sprintf(format, args...))
		}
	}
	check(t.lost == 0, "%d of %d accepted orders are not charged", t.lost, t.accepted)
	check(t.duplicates == 0, "%d charges are beyond one for each order", t.duplicates)
	check(t.phantoms == 0, "%d charges are of no accepted order", t.phantoms)
	check(t.orders == t.intents, "the client with keys wanted %d orders and %d were accepted", t.intents, t.orders)
	check(t.charged == t.orders, "of its %d orders there are %d charges", t.orders, t.charged)
	check(t.unpaid == 0, "%d of %d orders are not paid", t.unpaid, t.accepted)
	check(t.acceptedMoney == t.chargedMoney, "orders took orders for %s and billing charged %s", dollars(t.acceptedMoney), dollars(t.chargedMoney))
	check(t.unbalanced == 0, "the ledger rows of %d charges are not in balance", t.unbalanced)
	check(t.ledger == 0, "the ledger sums to %s", dollars(t.ledger))
	check(t.guardOrder == 0, "the last guard, one charge for each order, stopped %d charges that the inbox let through", t.guardOrder)
	check(t.deadLetters == 0, "there are %d dead letters", t.deadLetters)

	check(t.kills == o.kills, "billing was killed %d times, not %d", t.kills, o.kills)
	check(t.redelivered >= t.kills, "after %d kills only %d messages were redelivered", t.kills, t.redelivered)
	check(t.killsAfterCommit == 0 || t.guardInbox > 0,
		"%d kills came between a charge's commit and its acknowledgement, and the inbox stopped nothing that came again", t.killsAfterCommit)
	if o.loss > 0 {
		check(t.repliesLost > 0, "no reply was lost")
		check(t.naiveCharged > t.orders, "the naive charges, %d, are not above the orders, %d: the faults did not bite", t.naiveCharged, t.orders)
	}
	return failed
}

// line is the result as one line for programs to read.
func (t tally) line() string {
	return fmt.Sprintf("orders=%d charged=%d duplicates=%d lost=%d naive_charged=%d attempts=%d replies_lost=%d kills=%d redelivered=%d guard_inbox=%d guard_order=%d",
		t.orders, t.charged, t.duplicates, t.lost, t.naiveCharged, t.attempts, t.repliesLost, t.kills, t.redelivered, t.guardInbox, t.guardOrder)
}
