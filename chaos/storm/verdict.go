package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"text/tabwriter"
	"time"
)

// A verdict is what a run came to: by databases, streams and history. No word of a service counts but for whether its guards had work.
type verdict struct {
	seed                      uint64
	orders, charged           int
	duplicates, lost, orphans int
	kills, faults             int
	redelivered, replays      int
	failovers                 int
	guardInbox, guardOrder    int
	settled                   time.Duration
	linear, unsearched        int // keys whose histories are linearizable, and those that were too long to search
	problems                  []string
	rows                      [][2]string // what is shown
}

func (v *verdict) fail(format string, args ...any) {
	v.problems = append(v.problems, fmt.Sprintf(format, args...))
}

// check fails unless ok.
func (v *verdict) check(ok bool, format string, args ...any) {
	if !ok {
		v.fail(format, args...)
	}
}

// judge compares what the clients were told with what there is, row by row.
func (v *verdict) judge(ctx context.Context, o options, w *world, tries []try) error {
	told := v.judgeAnswers(o, tries)
	if err := v.judgeKeys(ctx, o, w, told); err != nil {
		return err
	}
	books, err := v.judgeOrders(ctx, o, w, told)
	if err != nil {
		return err
	}
	if err := v.judgeLedger(ctx, w, books); err != nil {
		return err
	}
	for _, d := range directions {
		if err := v.judgeEvents(ctx, w, d, books); err != nil {
			return err
		}
	}
	v.judgeLinear(tries, told)
	return v.judgeLogs(w)
}

// atOnce is within what all processes are killed: half a millisecond where we may put ourselves before others, as root may.
const atOnce = 10 * time.Millisecond

// maxUnmet is how many of a hundred faults may come in another state than the schedule names, and someUnmet how many of a few: one that
// does is a fault as well, but the states are what the storm is to cover.
const maxUnmet, someUnmet = 10, 3

// judgeRun asks whether the faults came and the guards had work.
func (v *verdict) judgeRun(r *run) {
	c := r.c
	v.problems = append(v.problems, r.problems...)
	v.problems = append(v.problems, c.failed...)
	v.kills = int(r.kills.Load())
	row := func(name string, n int) { v.rows = append(v.rows, [2]string{name, fmt.Sprint(n)}) }
	for _, name := range sorted(r.fired) {
		if name != copyNATS {
			v.faults += r.fired[name]
			row("fault "+name, r.fired[name])
		}
	}
	for _, name := range sorted(c.saw) {
		row("tries that ended with: "+name, c.saw[name])
	}
	for _, p := range r.w.programs {
		for _, e := range p.exits {
			v.rows = append(v.rows, [2]string{p.name + " ended by itself", fmt.Sprintf("%.300s", e.last)})
			v.check(!e.served, "%s ended by itself after it had served: %.300s", p.name, e.last)
		}
	}
	guards := map[string]string{
		"keys: answer given again": "oncebox_idempotency_requests_total/replayed", "keys: another attempt runs": "oncebox_idempotency_requests_total/conflict",
		"keys: attempt without a word":            "oncebox_idempotency_requests_total/unknown",
		"relay: refused by the expected sequence": "oncebox_relay_refusals_total", "relay: outages and lost leases": "oncebox_relay_failures_total",
		"relay: seen in the stream, not sent again": "oncebox_relay_skipped_total", "inbox: back to the broker": "oncebox_inbox_retried_total",
		"inbox: outages": "oncebox_inbox_outages_total", "healing: sent again": "oncebox_heal_resent_total", "orders: stopped by their own key": "orders_guarded_total",
	}
	for _, name := range slices.Sorted(maps.Keys(guards)) {
		row("at least, "+name, r.w.counted(guards[name]))
	}
	v.redelivered, v.guardInbox = r.w.counted("oncebox_subscriber_redelivered_total"), r.w.counted("oncebox_inbox_noops_total")
	v.replays, v.failovers = int(c.replays.Load()), int(r.failovers.Load())
	if len(r.spreads) > 0 {
		// On a machine that does other things the storm itself may be put aside between two signals.
		least := slices.Min(r.spreads)
		v.rows = append(v.rows, [2]string{"all processes killed within, at best and at worst", fmt.Sprint(least, ", ", slices.Max(r.spreads))})
		v.check(least <= atOnce, "all processes were never killed within %s, but within %s", atOnce, least)
	}
	v.rows = append(v.rows, [2]string{"faults in another state than was wanted", fmt.Sprintf("%d of %d", r.unmet, r.wished)})
	v.check(r.unmet <= max(someUnmet, r.wished*maxUnmet/100), "%d of %d faults came in another state than was wanted, and %d, or %d %%, may",
		r.unmet, r.wished, someUnmet, maxUnmet)
	v.check(v.kills == r.plan.kills(), "%d SIGKILLs came, %d were planned", v.kills, r.plan.kills())
	if v.kills == 0 {
		return
	}
	v.check(v.redelivered > 0, "no message came again: the faults hit nothing")
	v.check(v.guardInbox > 0, "the inbox stopped nothing: no message came again behind its effect")
	v.check(v.replays > 0, "no answer was given a second time")
	v.check(v.failovers > 0, "no relay took over from another")
}

// table shows what came and what it met.
func (v *verdict) table(out io.Writer) {
	tw := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, row := range v.rows {
		fmt.Fprintf(tw, "%s\t%s\n", row[0], row[1])
	}
	fmt.Fprintf(tw, "keys whose histories are linearizable\t%d, and %d too long to search\n", v.linear, v.unsearched)
	_ = tw.Flush() // the terminal's trouble
}

// line is the result as one line for programs to read.
func (v *verdict) line() string {
	return fmt.Sprintf("seed=%d orders=%d charged=%d duplicates=%d lost=%d orphans=%d kills=%d faults=%d redelivered=%d replays=%d failovers=%d "+
		"guard_inbox=%d guard_order=%d settled=%.1fs", v.seed, v.orders, v.charged, v.duplicates, v.lost, v.orphans, v.kills, v.faults, v.redelivered,
		v.replays, v.failovers, v.guardInbox, v.guardOrder, v.settled.Seconds())
}
