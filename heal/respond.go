package heal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/oncebox/oncebox/inbox"
)

// ResponderConfig configures [Respond].
type ResponderConfig struct {
	// Consumer is the inbox's. Required.
	Consumer string
	// Stream and Durable are what it reads, and its durable consumer there. Required.
	Stream, Durable string
	// Schema is where the inbox's tables are. Default "oncebox".
	Schema string
	// Topics are the events that the consumer reads, by type, with the wildcards of NATS. Default: all.
	Topics []string
	// ExpectsFrom is when the first event was written that the consumer is to have. One that comes later than its producer
	// sets it. Default: no bound.
	ExpectsFrom time.Time
	// Timeout bounds the work for one answer. Default 30 s.
	Timeout time.Duration
	// Logger hears of questions that could not be answered. Default slog.Default().
	Logger *slog.Logger
}

// Respond answers auditors about what a consumer had, until the connection is closed or stop is called. Any number of the
// consumer's processes may respond; one of them answers each question.
func Respond(nc *nats.Conn, pool *pgxpool.Pool, in *inbox.Inbox, cfg ResponderConfig) (stop func(), err error) {
	if cfg.Consumer == "" || cfg.Stream == "" || cfg.Durable == "" {
		return nil, errors.New("heal: ResponderConfig.Consumer, Stream and Durable are required")
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 30 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, fmt.Errorf("heal: %w", err)
	}
	r := &responder{cfg: cfg, js: js, pool: pool, in: in, marks: Marks{pool, cfg.Schema}}
	ctx, cancel := context.WithCancel(context.Background())
	sub, err := nc.QueueSubscribe(Subject(cfg.Consumer), "heal", func(m *nats.Msg) { r.answer(ctx, m) })
	if err != nil {
		cancel()
		return nil, fmt.Errorf("heal: subscribe to %s: %w", Subject(cfg.Consumer), err)
	}
	return func() {
		_ = sub.Unsubscribe() // fails only where the connection is gone, and the subscription with it
		cancel()
	}, nil
}

type responder struct {
	cfg   ResponderConfig
	js    jetstream.JetStream
	pool  *pgxpool.Pool
	in    *inbox.Inbox
	marks Marks
}

// answer runs in the subscription's goroutine: one question at a time.
func (r *responder) answer(ctx context.Context, m *nats.Msg) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	var (
		q question
		a answer
	)
	err := json.Unmarshal(m.Data, &q)
	if err == nil {
		a, err = r.work(ctx, q)
	}
	if err != nil {
		r.cfg.Logger.Warn("heal: a question could not be answered", "op", q.Op, "source", q.Source, "error", err)
		a = answer{Error: err.Error()}
	}
	body, err := json.Marshal(a)
	if err == nil {
		err = m.Respond(body)
	}
	if err != nil {
		r.cfg.Logger.Warn("heal: an answer could not be sent", "op", q.Op, "error", err)
	}
}

func (r *responder) work(ctx context.Context, q question) (a answer, err error) {
	if q.Source == "" || q.From < 0 || q.To > LastBucket || len(q.IDs) > idsAtOnce {
		return a, errors.New("heal: a question out of bounds")
	}
	book := Inbox(r.pool, r.cfg.Schema, r.cfg.Consumer, q.Source)
	switch q.Op {
	case "state":
		a.State, err = r.state(ctx, q.Source)
	case "digests":
		a.Digests, err = book.Digests(ctx, q.From, q.To)
		a.Digests = a.Digests[:min(len(a.Digests), digestsAtOnce)] // the peer asks for what is behind them
	case "entries":
		a.Entries, err = book.Entries(ctx, q.From)
	case "find":
		a.Entries, err = book.Find(ctx, q.IDs)
	case "mark":
		err = r.marks.Set(ctx, EventsBook(q.Source, r.cfg.Consumer), Right, q.From)
	default:
		err = fmt.Errorf("heal: nothing is known of %.20q", q.Op)
	}
	return a, err
}

// EventsBook names the book of the events of source that consumer reads.
func EventsBook(source, consumer string) string { return "events-" + source + "-to-" + consumer }

// state is read before any row is: what is acknowledged then, was committed before.
func (r *responder) state(ctx context.Context, source string) (*state, error) {
	c, err := r.js.Consumer(ctx, r.cfg.Stream, r.cfg.Durable)
	if err != nil {
		return nil, fmt.Errorf("look at the durable: %w", err)
	}
	s := &state{Acknowledged: c.CachedInfo().AckFloor.Stream, Topics: r.cfg.Topics, ExpectsFrom: r.cfg.ExpectsFrom}
	if s.CompleteSince, err = r.in.CompleteSince(ctx); err != nil {
		return nil, err
	}
	if s.Mark, err = r.marks.Get(ctx, EventsBook(source, r.cfg.Consumer), Right); err != nil {
		return nil, err
	}
	err = r.pool.QueryRow(ctx, "SELECT count(*) FROM "+pgx.Identifier{schema(r.cfg.Schema), "dead_letter"}.Sanitize()+
		" WHERE consumer = $1 AND source = $2 AND state = 'dead'", r.cfg.Consumer, source).Scan(&s.Dead)
	if err != nil {
		return nil, fmt.Errorf("count dead letters: %w", err)
	}
	return s, nil
}
