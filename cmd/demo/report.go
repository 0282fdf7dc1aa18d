package main

import (
	"fmt"
	"io"
	"strconv"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
)

// table shows what was wanted, and what it came to with and without Oncebox.
func (t tally) table(w io.Writer) {
	wanted := int64(t.intents) * amount
	tw := table.NewWriter()
	tw.SetOutputMirror(w)
	tw.SetStyle(table.StyleRounded)
	tw.Style().Format.Header = text.FormatDefault
	right := func(n int) table.ColumnConfig {
		return table.ColumnConfig{Number: n, Align: text.AlignRight, AlignHeader: text.AlignRight}
	}
	tw.SetColumnConfigs([]table.ColumnConfig{right(2), right(3), right(4), right(5), right(6)})
	tw.AppendHeader(table.Row{"", "orders", "charges", "charged", "too many", "too much"})
	row := func(name string, orders, charges int, money int64) {
		tw.AppendRow(table.Row{name, count(orders), count(charges), dollars(money), count(charges - t.intents), dollars(money - wanted)})
	}
	tw.AppendRow(table.Row{"intents", count(t.intents), count(t.intents), dollars(wanted), "", ""})
	row("naive", t.naiveOrders, t.naiveCharged, t.naiveMoney)
	row("Oncebox", t.orders, t.charged, t.oncebox)
	fmt.Fprintln(w)
	tw.Render()
	fmt.Fprintf(w, `
naive:   %s charges too many by retries, each under a fresh key, of orders whose reply was lost,
         and %s by messages that came again after a kill
Oncebox: %s retries given the answer that was kept under their Idempotency-Key,
         %s messages handed out again, of which the inbox stopped at least %s that were charged before
faults:  %s of %s replies lost, %d kills of billing, %d of them between a charge's commit and its acknowledgement

`, count(t.naiveCharged-t.naiveTwice-t.intents), count(t.naiveTwice), count(t.replays), count(t.redelivered), count(t.guardInbox),
		count(t.repliesLost), count(t.attempts), t.kills, t.killsAfterCommit)
}

// count writes n with a comma for each thousand.
func count(n int) string {
	if n < 0 {
		return "-" + count(-n)
	}
	if n < 1000 {
		return strconv.Itoa(n)
	}
	return fmt.Sprintf("%s,%03d", count(n/1000), n%1000)
}

// dollars writes an amount of cents.
func dollars(cents int64) string {
	if cents < 0 {
		return "-" + dollars(-cents)
	}
	return fmt.Sprintf("$%s.%02d", count(int(cents/100)), cents%100)
}
