package service

import (
	"context"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/oncebox/oncebox/heal"
	"github.com/oncebox/oncebox/inbox"
	"github.com/oncebox/oncebox/outbox"
)

// A healer is a service's part in comparing what services should have alike: it audits its consumers, answers its producers, and
// offers its books to operators.
type healer struct {
	auditor       *heal.Auditor // nil where nobody consumes
	relay         *outbox.Relay
	offers        []heal.Offer
	pool, outbox  *pgxpool.Pool
	trace         func(context.Context, []string) ([]heal.Step, error)
	stopAnswering func()
}

// answerTimeout is how long a consumer may take to answer. One that dies with the question never does, so not much longer than until the
// next one: half a minute where that is in a minute, but no less than it may need.
func answerTimeout(every time.Duration) time.Duration {
	if every == 0 { // asked by hand only
		return 30 * time.Second
	}
	return min(max(every/2, 5*time.Second), 30*time.Second)
}

// newHealer answers from here on.
func newHealer(o Options, def Definition, built Built, pool, relayPool *pgxpool.Pool, relay *outbox.Relay, in *inbox.Inbox, nc *nats.Conn,
	log *slog.Logger, reg prometheus.Registerer,
) (h *healer, err error) {
	h = &healer{relay: relay, pool: pool, outbox: relayPool, trace: built.Trace}
	for _, c := range def.Consumers {
		h.offers = append(h.offers, heal.Offer{Name: heal.EventsBook(def.Name, c), Side: heal.Left,
			Rows: heal.Outbox(relayPool, heal.Written{Cursor: def.Name}), Span: heal.OutboxSpan(relayPool, ""), Marks: heal.Marks{Pool: relayPool}})
	}
	if len(def.Consumers) > 0 {
		h.auditor, err = heal.NewAuditor(relay, relayPool, nc, heal.Config{Source: def.Name, Cursor: def.Name, Consumers: def.Consumers,
			Every: max(o.HealEvery, time.Nanosecond), Timeout: answerTimeout(o.HealEvery), Logger: log, Registerer: reg})
		if err != nil {
			return nil, err
		}
	}
	h.offers = append(h.offers, heal.Offer{Name: heal.EventsBook(def.Reads, def.Name), Side: heal.Right,
		Rows: heal.Inbox(pool, "", def.Name, def.Reads), Marks: heal.Marks{Pool: pool}})
	if built.Books != nil {
		h.offers = append(h.offers, built.Books(relayPool)...)
	}
	h.stopAnswering, err = heal.Respond(nc, pool, in, heal.ResponderConfig{Consumer: def.Name, Stream: def.ReadsStream, Durable: def.Name, Logger: log})
	return h, err
}

// run audits until ctx is done.
func (h *healer) run(ctx context.Context, every time.Duration) {
	if h.auditor != nil && every > 0 {
		h.auditor.Run(ctx)
	}
}

// routes are what an operator compares and repairs by, on the admin listener, beside those of [heal.Routes]:
//
//	GET  /heal                 what was found last: [heal.Report, …]
//	GET  /heal/compare?full    compares now and repairs nothing
//	POST /heal?full            compares now and has sent again what is missing
//	GET  /relay/replay?…       how many events a replay would send again: an outbox.Report
//	POST /relay/replay?…       writes them into the outbox once more; from_seq, to_seq, from, to (RFC 3339), topic, key, rate
//	GET  /trace?name&name      [heal.Step, …] of events and orders by their ids, keys and idempotency keys
func (h *healer) routes(mux *http.ServeMux) {
	heal.Routes(mux, h.offers)
	mux.HandleFunc("GET /heal", func(w http.ResponseWriter, _ *http.Request) {
		reports := []heal.Report{}
		if h.auditor != nil {
			reports = h.auditor.Reports()
		}
		answer(w, reports, nil)
	})
	compare := func(dry bool) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			patiently(w)
			reports := []heal.Report{}
			if h.auditor != nil {
				reports = h.auditor.Heal(r.Context(), heal.Options{DryRun: dry, Full: r.URL.Query().Has("full")})
			}
			answer(w, reports, nil)
		}
	}
	mux.HandleFunc("GET /heal/compare", compare(true))
	mux.HandleFunc("POST /heal", compare(false))
	replay := func(dry bool) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			patiently(w)
			which, rate, err := readRange(r.URL.Query())
			if err != nil {
				answer(w, nil, newProblem(http.StatusUnprocessableEntity, "invalid", err.Error()))
				return
			}
			report, err := h.relay.Replay(r.Context(), which, outbox.ReplayOptions{DryRun: dry, Rate: rate})
			answer(w, report, err)
		}
	}
	mux.HandleFunc("GET /relay/replay", replay(true))
	mux.HandleFunc("POST /relay/replay", replay(false))
	mux.HandleFunc("GET /trace", func(w http.ResponseWriter, r *http.Request) {
		names := r.URL.Query()["name"]
		steps, err := heal.Trace(r.Context(), h.outbox, h.pool, "", names)
		if err == nil && h.trace != nil {
			var own []heal.Step
			own, err = h.trace(r.Context(), names)
			steps = slices.Concat(steps, own)
		}
		answer(w, steps, err)
	})
}

// patiently lets an answer take as long as it takes.
func patiently(w http.ResponseWriter) {
	c := http.NewResponseController(w)
	_, _ = c.SetReadDeadline(time.Time{}), c.SetWriteDeadline(time.Time{})
}

func readRange(q url.Values) (which outbox.Range, rate int, err error) {
	which.Topic, which.Key = q.Get("topic"), q.Get("key")
	for name, to := range map[string]*int64{"from_seq": &which.FromSeq, "to_seq": &which.ToSeq} {
		if q.Has(name) && err == nil {
			*to, err = strconv.ParseInt(q.Get(name), 10, 64)
		}
	}
	for name, to := range map[string]*time.Time{"from": &which.From, "to": &which.To} {
		if q.Has(name) && err == nil {
			*to, err = time.Parse(time.RFC3339Nano, q.Get(name))
		}
	}
	if q.Has("rate") && err == nil {
		rate, err = strconv.Atoi(q.Get("rate"))
	}
	return which, rate, err
}
