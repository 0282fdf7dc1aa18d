// Command psp is a payment provider for trying out what billing does with one that loses replies, is slow and crashes:
//
//	psp --lose 4 --slow 5 --crash 20 &
//	BILLING_PSP_URL=http://127.0.0.1:8082 billing
package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/alecthomas/kong"

	"github.com/oncebox/oncebox/internal/psp"
)

type config struct {
	Listen       string        `default:"127.0.0.1:8082" help:"Address."`
	File         string        `default:"psp.jsonl" help:"What it remembers: keys, charges and refunds, a line each."`
	Lose         int           `help:"Lose the reply to every n-th charge or refund, behind its effect."`
	Slow         int           `help:"Be slow with every n-th."`
	Delay        time.Duration `default:"5s" help:"How slow."`
	Crash        int           `help:"Die behind every n-th, before the reply. Start it again on the same file."`
	DeclineAbove int64         `help:"Decline cards for greater amounts, in minor units. Default: none."`
}

func main() {
	var c config
	kong.Parse(&c, kong.Name("psp"), kong.Description("A payment provider in Stripe's form, unkind on request. For tests."))
	if err := run(c); err != nil {
		fmt.Fprintln(os.Stderr, "psp: error:", err)
		os.Exit(1)
	}
}

func run(c config) error {
	crash := func() { os.Exit(3) }
	p, err := psp.Open(c.File, psp.Faults{Lose: c.Lose, Slow: c.Slow, Crash: c.Crash, Delay: c.Delay, DeclineAbove: c.DeclineAbove}, crash)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "psp: listening on", l.Addr())
	s := &http.Server{Handler: p, ReadHeaderTimeout: 5 * time.Second}
	return s.Serve(l)
}
