package main

import (
	"math/rand/v2"
	"slices"
	"strings"
)

// The kinds of fault.
const (
	killProcess   = "kill"            // SIGKILL of one process of a service
	killNATS      = "kill-nats"       // SIGKILL
	killRedis     = "kill-redis"      // SIGKILL
	killAll       = "kill-all"        // all of them within 10 ms, and Postgres with them, by an immediate stop
	pauseProcess  = "pause"           // SIGSTOP, for longer than lease and AckWait, and SIGCONT
	termProcess   = "term"            // SIGTERM, and started again
	stopPostgres  = "postgres-stop"   // immediate: it recovers from its log
	killBackend   = "backend-kill"    // SIGKILL of a backend: Postgres throws all sessions out and recovers
	endBackend    = "backend-end"     // one session is ended
	wipeNATS      = "nats-wipe"       // SIGKILL, and its store is gone
	copyNATS      = "nats-copy"       // no fault: the store is copied while the server stands still
	rollbackNATS  = "nats-rollback"   // SIGKILL, and the copy is put back
	deleteStream  = "stream-deleted"  // by an administrator
	deleteDurable = "durable-deleted" // by an administrator
	flushRedis    = "redis-flush"     // FLUSHALL
	disturb       = "weather"         // on a link
	calm          = "calm"            // no fault
)

const (
	// killsOfAll are two processes of each service, NATS and Redis.
	killsOfAll = 6
	// faultsOfACycle is how many come before a calm.
	faultsOfACycle = 12
	// shortest is that of a pause in ms, longer than ackWait, and spread how much longer one may be.
	shortest, spread = 2500, 1500
	// states are those of a process, see the sights.
	states = "request in-hand transaction unsent"
)

// A fault is one entry of the schedule.
type fault struct {
	N       int    `json:"n"`
	Kind    string `json:"kind"`
	Target  string `json:"target,omitempty"`  // a process, a link, a stream
	State   string `json:"state,omitempty"`   // what is to be seen before it comes
	Weather string `json:"weather,omitempty"` // of a link
	Millis  int    `json:"ms,omitempty"`      // how long it lasts

	tries int // in vain
}

// later puts a fault that found no work behind some of the next ones. One of a process comes to the service's other process then.
func (f fault) later(next schedule) schedule {
	switch f.Kind {
	case killProcess, pauseProcess, termProcess:
		service, number, _ := strings.Cut(f.Target, "-")
		f.Target = service + map[string]string{"1": "-2", "2": "-1"}[number]
	}
	return slices.Insert(slices.Clone(next), min(laterBy, len(next)), f)
}

// laterBy is how many faults come before one that is tried again.
const laterBy = 3

// name is what it is counted as.
func (f fault) name() string {
	switch f.Kind {
	case disturb:
		return f.Weather
	case killProcess, pauseProcess, termProcess:
		service, _, _ := strings.Cut(f.Target, "-")
		return f.Kind + "-" + service
	}
	return f.Kind
}

// kills is how many SIGKILLs of whole processes it is.
func (f fault) kills() int {
	switch f.Kind {
	case killProcess, killNATS, killRedis, wipeNATS, rollbackNATS:
		return 1
	case killAll:
		return killsOfAll
	}
	return 0
}

type schedule []fault

func (s schedule) kills() (n int) {
	for _, f := range s {
		n += f.kills()
	}
	return n
}

// newSchedule draws one from the seed: as many SIGKILLs as asked for, and for each 50 of them, or for fewer, each other fault once at
// least.
func newSchedule(o options) schedule {
	d := drawer{rand.New(rand.NewPCG(o.Seed, 0))}
	var all schedule
	left := o.Kills
	for range (o.Kills + 49) / 50 {
		round := d.others()
		if o.Kills >= 3*killsOfAll {
			round = append(round, fault{Kind: killAll, State: d.of("in-hand", "request")})
		}
		left -= round.kills()
		all = append(all, round...)
	}
	for n := range max(left, 0) {
		switch {
		case n%10 == 3:
			all = append(all, fault{Kind: killNATS, State: d.of("in-hand", "unsent"), Millis: d.IntN(400)})
		case n%20 == 7:
			all = append(all, fault{Kind: killRedis, Millis: d.IntN(200)})
		default:
			target := []string{"orders-1", "billing-1", "orders-2", "billing-2"}[n%4]
			all = append(all, fault{Kind: killProcess, Target: target, State: d.stateOf(target), Millis: d.IntN(200)})
		}
	}
	d.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return d.arrange(all)
}

// arrange puts a copy some places before each rollback, and a calm after each so many faults.
func (d drawer) arrange(all schedule) schedule {
	var out schedule
	for i, f := range all {
		if f.Kind == rollbackNATS {
			at := max(0, len(out)-1-d.IntN(25))
			out = append(out[:at:at], append(schedule{{Kind: copyNATS}}, out[at:]...)...)
		}
		out = append(out, f)
		if (i+1)%faultsOfACycle == 0 || i == len(all)-1 {
			out = append(out, fault{Kind: calm})
		}
	}
	for n := range out {
		out[n].N = n + 1
	}
	return out
}

type drawer struct{ *rand.Rand }

func (d drawer) of(choice ...string) string { return choice[d.IntN(len(choice))] }

// stateOf is one in which a process can be hit.
func (d drawer) stateOf(process string) string {
	if strings.HasPrefix(process, "billing") {
		return d.of("in-hand", "in-hand", "transaction", "unsent") // few ask it for anything
	}
	return d.of(strings.Fields(states)...)
}

// others is each fault once that is not a plain SIGKILL, and some twice.
func (d drawer) others() schedule {
	s := schedule{
		{Kind: stopPostgres, Millis: d.IntN(300)}, {Kind: killBackend}, {Kind: endBackend, Target: d.of("orders", "billing")},
		{Kind: wipeNATS, State: "in-hand", Millis: d.IntN(300)}, {Kind: rollbackNATS, Millis: d.IntN(300)},
		{Kind: deleteStream, Target: d.of("orders", "billing"), State: "in-hand"}, {Kind: deleteDurable, Target: d.of("orders", "billing"), State: "in-hand"},
		{Kind: flushRedis},
	}
	for _, service := range []string{"orders", "billing"} {
		for _, kind := range []string{pauseProcess, termProcess} {
			target := service + d.of("-1", "-2")
			s = append(s, fault{Kind: kind, Target: target, State: d.stateOf(target), Millis: shortest + d.IntN(spread)})
		}
	}
	for _, w := range weathers {
		s = append(s, fault{Kind: disturb, Weather: w.name, Target: d.linkFor(w), Millis: 300 + d.IntN(1500)})
	}
	return s
}

// linkFor is one that has such weather.
func (d drawer) linkFor(w weather) string {
	kind := w.only
	if kind == "" {
		kind = d.of("http", "http", "nats", "nats", "postgres", "redis")
	}
	switch kind {
	case "postgres":
		return kind + "/" + d.of("orders-2", "billing-2")
	case "redis":
		return kind + "/" + d.of("billing-1", "billing-2")
	}
	return kind + "/" + d.of("orders-1", "orders-2", "billing-1", "billing-2")
}
