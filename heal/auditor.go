package heal

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/oncebox/oncebox/outbox"
)

// Config configures an [Auditor].
type Config struct {
	// Source is the producer, and Cursor its relay's name. Required.
	Source, Cursor string
	// Consumers are those whose inboxes are compared with the outbox. Each has to respond: see [Respond]. Required.
	Consumers []string
	// Schema is where the outbox's tables are. Default "oncebox".
	Schema string
	// Every is how often the books are compared. Default 1 minute.
	Every time.Duration
	// Rate is how many events a second are sent again at most. Default 1000.
	Rate int
	// Timeout bounds the wait for each answer of a consumer. Default 30 s.
	Timeout time.Duration
	// Logger hears of what is wrong. Default slog.Default().
	Logger *slog.Logger
	// Registerer gets the auditor's metrics. Default: none does.
	Registerer prometheus.Registerer
}

// An Auditor compares a producer's outbox with the inboxes of its consumers and has the relay send again what they lost. It is
// safe for concurrent use; of a producer's processes, the one whose relay leads audits.
type Auditor struct {
	relay   *outbox.Relay
	pool    *pgxpool.Pool
	nc      *nats.Conn
	cfg     Config
	marks   Marks
	metrics *auditMetrics

	mu      sync.Mutex // one audit at a time
	reports map[string]Report
	drawn   []drawn
}

// NewAuditor returns an Auditor, or an error that names the option that is wrong. Pool needs the rights of the relay.
func NewAuditor(relay *outbox.Relay, pool *pgxpool.Pool, nc *nats.Conn, cfg Config) (*Auditor, error) {
	cfg.Every, cfg.Rate, cfg.Timeout = cmp.Or(cfg.Every, time.Minute), cmp.Or(cfg.Rate, 1000), cmp.Or(cfg.Timeout, 30*time.Second)
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	switch {
	case cfg.Source == "" || cfg.Cursor == "" || len(cfg.Consumers) == 0:
		return nil, errors.New("heal: Config.Source, Cursor and Consumers are required")
	case cfg.Every < 0 || cfg.Timeout < 0 || cfg.Rate < 0:
		return nil, fmt.Errorf("heal: Config.Every is %s, Timeout %s, Rate %d: none may be below 0", cfg.Every, cfg.Timeout, cfg.Rate)
	}
	return &Auditor{relay: relay, pool: pool, nc: nc, cfg: cfg, marks: Marks{pool, cfg.Schema},
		metrics: newAuditMetrics(cfg.Registerer), reports: map[string]Report{}}, nil
}

// A Report is what an audit found between a producer and one of its consumers.
type Report struct {
	Consumer string    `json:"consumer"`
	At       time.Time `json:"at"`
	// Compared is how many events were compared, FromBucket where they began: what is before was found alike earlier.
	Compared   int64 `json:"compared"`
	FromBucket int64 `json:"from_bucket"`
	// Missing events were acknowledged, and the consumer does not have them. Resent is how many of them were given to the relay
	// to be sent again, OnWay how many had been by an earlier audit, TooOld how many are from before the time since when the
	// inbox is complete: they may have been handled and forgotten, and are never sent again.
	Missing int `json:"missing"`
	Resent  int `json:"resent"`
	OnWay   int `json:"on_way"`
	TooOld  int `json:"too_old"`
	// Unknown are events that the consumer had and the outbox does not have: the producer's database lost its end.
	Unknown int `json:"unknown"`
	// Conflicts are events that the consumer had with other content under the same id.
	Conflicts int `json:"conflicts"`
	// Dead letters of the consumer count as had.
	Dead int64 `json:"dead"`
	// MissingIDs, UnknownIDs and ConflictIDs are the first hundred of each.
	MissingIDs  []string `json:"missing_ids,omitempty"`
	UnknownIDs  []string `json:"unknown_ids,omitempty"`
	ConflictIDs []string `json:"conflict_ids,omitempty"`
	Error       string   `json:"error,omitempty"`
}

// Alike says that nothing is wrong.
func (r Report) Alike() bool {
	return r.Missing == 0 && r.Unknown == 0 && r.Conflicts == 0 && r.Error == ""
}

// Run audits until ctx is done, while the relay of this process leads.
func (a *Auditor) Run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(a.cfg.Every):
		}
		if !a.relay.Leading() {
			continue
		}
		for _, r := range a.Heal(ctx, Options{}) {
			a.log(ctx, r)
		}
	}
}

func (a *Auditor) log(ctx context.Context, r Report) {
	log := a.cfg.Logger.With("consumer", r.Consumer)
	switch {
	case ctx.Err() != nil:
	case r.Error != "":
		log.Warn("heal: not compared", "error", r.Error)
	case r.Alike():
		log.Debug("heal: alike", "compared", r.Compared, "from_bucket", r.FromBucket)
	default:
		log.Error("heal: outbox and inbox differ", "missing", r.Missing, "resent", r.Resent, "on_way", r.OnWay, "too_old", r.TooOld,
			"unknown", r.Unknown, "conflicts", r.Conflicts, "missing_ids", r.MissingIDs[:min(len(r.MissingIDs), 5)],
			"unknown_ids", r.UnknownIDs[:min(len(r.UnknownIDs), 5)], "conflict_ids", r.ConflictIDs[:min(len(r.ConflictIDs), 5)])
	}
}

// Reports are the last ones, by consumer.
func (a *Auditor) Reports() []Report {
	a.mu.Lock()
	defer a.mu.Unlock()
	reports := make([]Report, 0, len(a.cfg.Consumers))
	for _, c := range a.cfg.Consumers {
		if r, there := a.reports[c]; there {
			reports = append(reports, r)
		}
	}
	return reports
}

// Options change what [Auditor.Heal] does.
type Options struct {
	// DryRun only compares.
	DryRun bool
	// Full compares from the outbox's beginning, also what was found alike before and may have been changed by hand since.
	Full bool
}

// Heal compares now and has what is missing sent again. It works in a process whose relay does not lead too: what is sent again is
// sent by the one that does. Errors are the reports'.
func (a *Auditor) Heal(ctx context.Context, o Options) []Report {
	a.mu.Lock()
	defer a.mu.Unlock()
	reports := make([]Report, len(a.cfg.Consumers))
	for i, c := range a.cfg.Consumers {
		r, err := a.audit(ctx, c, o)
		r.Consumer, r.At = c, time.Now().UTC()
		if err != nil {
			r.Error = err.Error()
		}
		reports[i], a.reports[c] = r, r
		a.metrics.observe(r)
	}
	return reports
}
