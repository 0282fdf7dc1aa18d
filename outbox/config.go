package outbox

import (
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// A KeyPolicy says what becomes of the events of a key behind one that is parked.
type KeyPolicy string

// The values of [KeyPolicy].
const (
	// GoOn sends them: the parked one is missing in the log, as an event that was never written.
	GoOn KeyPolicy = "go on"
	// HoldKey parks them too, in their order, until the first is sent again or dropped and they with it.
	HoldKey KeyPolicy = "hold key"
)

// RelayConfig configures a [Relay].
type RelayConfig struct {
	// Name names the relay's cursor. Relays of one name on one database are one relay and its standbys. Required.
	Name string
	// Topics are the events that this cursor sends, by type; "*" stands for one token of it, ">" for all that follow. Each
	// cursor has a log of its own. A topic that is added later is covered from then on; [Relay.Replay] sends what was before.
	// Default: all.
	Topics []string
	// Schema is where the outbox's tables are. Default "oncebox".
	Schema string
	// Lease is how long a relay that died keeps its standby waiting. Default 5 s.
	Lease time.Duration
	// MinPoll and MaxPoll bound the pause between two looks at an outbox in which nothing is new: the first after work,
	// doubled with each look in vain. [Relay.Wake] cuts it short. Default 5 ms and 1 s.
	MinPoll, MaxPoll time.Duration
	// SaveEvery is how often the cursor is saved while it moves. What was sent since is read back from the log by the next relay, and not
	// sent again, where the log can be read. Default 200 ms.
	SaveEvery time.Duration
	// DrainTimeout bounds how long Run goes on sending what is committed after its context is done. What is not sent by then
	// is the next relay's. Default 5 s.
	DrainTimeout time.Duration
	// Confirm is how long a log has to look as if it had lost its end before that is believed and sent again. Default 2 s,
	// but not more than a third of the lease.
	Confirm time.Duration
	// Page is how many rows are read at once at most. Default 2000.
	Page int
	// PageBytes bounds the bytes of the rows that are read at once, and three times that those held in memory, beside what the
	// sink has on its way. One row may be larger. Default 2 MiB.
	PageBytes int
	// Parked says what becomes of the events of a key behind one that the log can never hold. Default GoOn.
	Parked KeyPolicy
	// Retention is how long rows stay after they were sent, so that they can be sent again; a slot of a day is emptied when
	// all of it is older. At most 13 days: the ring has 16 slots, of which the current and the next are never emptied.
	// Default 7 days.
	Retention time.Duration
	// RetainEvery is how often the active relay looks for slots to empty. Default a minute.
	RetainEvery time.Duration
	// RequireDurable makes Run fail where what the log calls stored might be lost with the power; the sink has to be a
	// [Reporter]. Default: that is logged as a warning.
	RequireDurable bool
	// AfterRestore says what to do where the tables were restored into another cluster. Default Refuse.
	AfterRestore AfterRestore
	// Released is called when this relay has given its lease up, as when it stops: whoever can tells the standbys, by [Relay.Vacant], so that
	// one leads at once. It must not block. Default: they find it within MaxPoll.
	Released func()
	// Logger hears of outages and takeovers. Default slog.Default().
	Logger *slog.Logger
	// Registerer gets the relay's metrics. Default: none does.
	Registerer prometheus.Registerer
}

// maxRetention leaves a slot of the ring a whole day in which it can be emptied.
const maxRetention = 13 * 24 * time.Hour

func (c RelayConfig) withDefaults() RelayConfig {
	if c.Schema == "" {
		c.Schema = defaultSchema
	}
	if c.Parked == "" {
		c.Parked = GoOn
	}
	setDefault(&c.Lease, 5*time.Second)
	setDefault(&c.MinPoll, 5*time.Millisecond)
	setDefault(&c.MaxPoll, time.Second)
	setDefault(&c.SaveEvery, 200*time.Millisecond)
	setDefault(&c.DrainTimeout, 5*time.Second)
	setDefault(&c.Confirm, min(2*time.Second, c.Lease/3))
	setDefault(&c.Page, 2000)
	setDefault(&c.PageBytes, 2<<20)
	setDefault(&c.Retention, 7*24*time.Hour)
	setDefault(&c.RetainEvery, time.Minute)
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c
}

func setDefault[T int | time.Duration](value *T, def T) {
	if *value == 0 {
		*value = def
	}
}

func (c RelayConfig) validate() error {
	if c.Name == "" {
		return errors.New("outbox: RelayConfig.Name is required")
	}
	for name, n := range map[string]int{"Page": c.Page, "PageBytes": c.PageBytes} {
		if n < 1 {
			return fmt.Errorf("outbox: RelayConfig.%s is %d, below 1", name, n)
		}
	}
	for name, d := range map[string]time.Duration{"Lease": c.Lease, "MinPoll": c.MinPoll, "SaveEvery": c.SaveEvery,
		"DrainTimeout": c.DrainTimeout, "Confirm": c.Confirm, "Retention": c.Retention, "RetainEvery": c.RetainEvery} {
		if d < 0 {
			return fmt.Errorf("outbox: RelayConfig.%s is %s, below 0", name, d)
		}
	}
	if c.MaxPoll < c.MinPoll {
		return fmt.Errorf("outbox: RelayConfig.MaxPoll, %s, is below MinPoll, %s", c.MaxPoll, c.MinPoll)
	}
	if c.Retention > maxRetention {
		return fmt.Errorf("outbox: RelayConfig.Retention is %s, above 13 days: the ring has 16 slots of a day", c.Retention)
	}
	if c.Parked != GoOn && c.Parked != HoldKey {
		return fmt.Errorf("outbox: RelayConfig.Parked is %q, neither %q nor %q", c.Parked, GoOn, HoldKey)
	}
	if c.AfterRestore != Refuse && c.AfterRestore != Resend && c.AfterRestore != Resume {
		return fmt.Errorf("outbox: RelayConfig.AfterRestore is %q, neither %q nor %q nor empty", c.AfterRestore, Resend, Resume)
	}
	for _, t := range c.Topics {
		if t == "" || strings.HasPrefix(t, ".") || strings.HasSuffix(t, ".") || strings.Contains(t, "..") {
			return fmt.Errorf("outbox: RelayConfig.Topics has %q, with an empty token", t)
		}
	}
	return nil
}

// topicsPattern is a regular expression for the topics, "" for all of them.
func topicsPattern(topics []string) string {
	var alternatives []string
	for _, topic := range topics {
		tokens := strings.Split(topic, ".")
		for i, token := range tokens {
			switch {
			case token == "*":
				tokens[i] = "[^.]+"
			case token == ">" && i == len(tokens)-1:
				tokens[i] = ".+"
			default:
				tokens[i] = regexp.QuoteMeta(token)
			}
		}
		alternatives = append(alternatives, strings.Join(tokens, `\.`))
	}
	if len(alternatives) == 0 {
		return ""
	}
	return "^(" + strings.Join(alternatives, "|") + ")$"
}
