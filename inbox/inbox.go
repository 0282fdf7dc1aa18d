// Package inbox makes a message's effect happen once, however often the message comes: it remembers the message's id in the
// transaction of the effect.
//
// A broker delivers at least once. [Inbox.One] runs a [Handler] for each message in one Postgres transaction, whose first
// statement inserts the message's id under a unique key: a redelivery finds it there and does nothing. The handler writes in
// the same transaction, and what it sends it sends through an outbox in that transaction too. [Inbox.Group] does the same for
// the messages in hand together, which is many times faster.
//
// # What becomes of a message that fails
//
// An error sends it back to the broker, to come again later. What no repetition can mend becomes a dead letter, committed
// together with its inbox row: a message that is no event (class "undecodable"), one that came before with other content under
// the same id ("conflict": the first effect stays), one whose data Postgres refuses ("bad_data": SQLSTATE class 22, NOT NULL
// and CHECK), one whose handler says so by [Permanent], and one that killed its process time and again or whose handler never
// returned ("crashed"). While the database is away, messages stay in hand and are tried again there: an outage sends nothing to
// the dead letters.
package inbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/oncebox/oncebox"
)

// Config configures an [Inbox].
type Config struct {
	// Consumer names who handles the messages. Each consumer handles each message once. Required.
	Consumer string
	// Schema is where the inbox's tables are. Default "oncebox".
	Schema string
	// Committed is called after each commit of a handler's effect, say to wake the relay of its outbox. It must not block.
	Committed func()
	// Timeout bounds a handler: its context ends then. One that has not returned a tenth of it later is given up: its
	// connection is cut, so that nothing of it is ever committed, and the message comes again. Default 1 minute.
	Timeout time.Duration
	// LockTimeout bounds how long a transaction waits for a lock, such as that of the same message in a peer that is paused.
	// Default 1 s.
	LockTimeout time.Duration
	// Patience is how long messages stay in hand while the database is away, before they go back to the broker. Default 30 s.
	Patience time.Duration
	// MaxCrashes is after how many attempts that began and never ended a message is dead: its process died, or its handler
	// did not return. At least 2: the first can be another message's. Default 3.
	MaxCrashes int
	// KeyPolicy is what becomes of the later messages of a dead letter's key. Default [SkipVersioned].
	KeyPolicy KeyPolicy
	// Ordered, if set, handles the events of a key in the order of their versions.
	Ordered *Order
	// Retention is how long the ids of handled messages are remembered, for [Inbox.Prune]; longer where Horizon says so.
	// Default 14 days.
	Retention time.Duration
	// Horizon says what time the oldest message that may still come was published at, for [Inbox.Prune]: see
	// broker.Horizon. Default: nobody knows, and Retention alone counts.
	Horizon func(context.Context) (time.Time, error)
	// HorizonEvery is how often [Inbox.WatchHorizon] asks for it. Default 1 minute.
	HorizonEvery time.Duration
	// Logger hears of dead letters and outages. Default slog.Default().
	Logger *slog.Logger
	// Registerer gets the inbox's metrics. Default: none does.
	Registerer prometheus.Registerer
}

func (c Config) withDefaults() Config {
	if c.Schema == "" {
		c.Schema = "oncebox"
	}
	for _, d := range []struct {
		value *time.Duration
		def   time.Duration
	}{{&c.Timeout, time.Minute}, {&c.LockTimeout, time.Second}, {&c.Patience, 30 * time.Second}, {&c.Retention, 14 * 24 * time.Hour}, {&c.HorizonEvery, time.Minute}} {
		if *d.value == 0 {
			*d.value = d.def
		}
	}
	if c.MaxCrashes == 0 {
		c.MaxCrashes = 3
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c
}

func (c Config) validate() error {
	for name, d := range map[string]time.Duration{
		"Timeout": c.Timeout, "Patience": c.Patience, "Retention": c.Retention, "HorizonEvery": c.HorizonEvery,
	} {
		if d < 0 {
			return fmt.Errorf("inbox: Config.%s is %s, below 0", name, d)
		}
	}
	switch {
	case c.Consumer == "":
		return errors.New("inbox: Config.Consumer is required")
	case c.LockTimeout < time.Millisecond:
		return fmt.Errorf("inbox: Config.LockTimeout is %s, below a millisecond", c.LockTimeout)
	case c.MaxCrashes < 2:
		return fmt.Errorf("inbox: Config.MaxCrashes is %d, below 2", c.MaxCrashes)
	case c.KeyPolicy < SkipVersioned || c.KeyPolicy > HoldKey:
		return fmt.Errorf("inbox: Config.KeyPolicy %d is unknown", c.KeyPolicy)
	}
	if c.Ordered != nil {
		return c.Ordered.validate()
	}
	return nil
}

// An Inbox remembers what a consumer has handled. It is safe for concurrent use, by any number of processes.
type Inbox struct {
	pool    *pgxpool.Pool
	cfg     Config
	sql     statements
	metrics *metrics
	// me tells this process's attempts from those of another, and of one that it was before it crashed.
	me uuid.UUID
	// suspects: a message that has crashed before runs while no other redelivered one does, so that no innocent
	// attempt is open when it crashes again.
	suspects sync.RWMutex
}

// New returns an Inbox, or an error that names the option that is wrong. It does not touch the database.
func New(pool *pgxpool.Pool, cfg Config) (*Inbox, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	return &Inbox{pool: pool, cfg: cfg, sql: newStatements(cfg), metrics: newMetrics(cfg), me: uuid.New()}, nil
}

// One handles each message in a transaction of its own: the inbox row, the handler's effect, and the events that it adds to an
// outbox commit together. It returns nil, and the message may be acknowledged, once that is committed, now or at an earlier
// delivery. Any error means that nothing was committed, or nobody knows, and the message has to come again.
func (in *Inbox) One(h Handler) message.NoPublishHandlerFunc {
	group := Each(h)
	return func(m *message.Message) error {
		d := in.receive(m)
		in.handle(m.Context(), []*delivery{d}, group, new(mood))
		return in.finish(d)
	}
}

// finish counts and logs what became of d, and returns the error with which it goes back to the broker.
func (in *Inbox) finish(d *delivery) error {
	in.metrics.inHand.remove(d)
	switch d.outcome {
	case done:
		in.metrics.handled.Inc()
	case noop:
		in.metrics.noops.Inc()
		oncebox.Repeated(d.raw.Context())
	case unknown:
		in.metrics.unknown.Inc()
	case dead:
		in.metrics.dead.WithLabelValues(d.why.class).Inc()
		in.cfg.Logger.Error("inbox: dead letter", "consumer", in.cfg.Consumer, "source", d.event.Source, "id", d.id,
			"type", d.event.Type, "class", d.why.class) // not the reason, which may quote the message: it is in the letter
	case again:
		in.metrics.retried.Inc()
		return d.err
	}
	return nil
}

// statements are the SQL of an inbox, on the tables of its schema.
type statements struct {
	begin                        pgx.TxOptions
	insert, look, set            string
	keysHeld, positions, advance string
	start, end, hung             string
	bury                         string
}

func newStatements(cfg Config) statements {
	table := func(name string) string { return pgx.Identifier{cfg.Schema, name}.Sanitize() }
	var (
		inbox, letter, position = table("inbox"), table("dead_letter"), table("inbox_position")
		ids                     = `(source, id) IN (SELECT * FROM unnest($2::text[], $3::uuid[]))`
	)
	return statements{
		// READ COMMITTED whatever the database's default: under it an insert waits for another transaction's row of the same
		// id, and then knows whether that one committed.
		begin: pgx.TxOptions{BeginQuery: fmt.Sprintf("BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = %d", cfg.LockTimeout.Milliseconds())},
		// In the arrays' order, which is that of the ids: two groups that hold the same messages wait for each other, and
		// do not lock each other out. A row that was only started is taken over.
		insert: `INSERT INTO ` + inbox + ` AS i (consumer, source, id, tenant_id, seq, digest, state)
			SELECT $1, * FROM unnest($2::text[], $3::uuid[], $4::text[], $5::bigint[], $6::bigint[], $7::text[])
			ON CONFLICT (consumer, source, id) DO UPDATE SET state = EXCLUDED.state, owner = NULL, at = EXCLUDED.at
			WHERE i.state = 'started' AND i.digest = EXCLUDED.digest
			RETURNING source, id, held_since`,
		look: `SELECT source, id, digest, state FROM ` + inbox + ` WHERE consumer = $1 AND ` + ids,
		set: `UPDATE ` + inbox + ` AS i SET state = u.state, held_since = CASE WHEN u.held THEN COALESCE(i.held_since, clock_timestamp()) END
			FROM unnest($2::text[], $3::uuid[], $4::text[], $5::boolean[]) AS u (source, id, state, held)
			WHERE i.consumer = $1 AND i.source = u.source AND i.id = u.id`,
		keysHeld: `SELECT DISTINCT source, key FROM ` + letter + ` WHERE consumer = $1 AND key = ANY ($2) AND holds_key AND state = 'dead'`,
		positions: `SELECT source, key, version FROM ` + position + `
			WHERE consumer = $1 AND (source, key) IN (SELECT * FROM unnest($2::text[], $3::text[]))`,
		advance: `INSERT INTO ` + position + ` AS p (consumer, source, key, version)
			SELECT $1, * FROM unnest($2::text[], $3::text[], $4::bigint[])
			ON CONFLICT (consumer, source, key) DO UPDATE SET version = EXCLUDED.version WHERE p.version < EXCLUDED.version
			RETURNING source`,
		start: `INSERT INTO ` + inbox + ` AS i (consumer, source, id, tenant_id, seq, digest, state, owner)
			VALUES ($1, $2, $3, $4, $5, $6, 'started', $7)
			ON CONFLICT (consumer, source, id) DO UPDATE SET crashes = i.crashes + CASE WHEN i.owner <> $7 THEN 1 ELSE 0 END,
				owner = CASE WHEN $8 OR i.crashes + CASE WHEN i.owner <> $7 THEN 1 ELSE 0 END = 0 THEN $7 END
			WHERE i.state = 'started' AND i.digest = EXCLUDED.digest
			RETURNING crashes`,
		end: `UPDATE ` + inbox + ` SET owner = NULL WHERE consumer = $1 AND source = $2 AND id = $3 AND state = 'started' AND owner = $4`,
		hung: `UPDATE ` + inbox + ` SET owner = NULL, crashes = crashes + 1
			WHERE consumer = $1 AND source = $2 AND id = $3 AND state = 'started' AND owner = $4`,
		bury: `INSERT INTO ` + letter + ` AS l
			(consumer, source, id, tenant_id, message_id, topic, key, version, seq, class, reason, attempts, holds_key, headers, payload)
			SELECT $1, * FROM unnest($2::text[], $3::uuid[], $4::text[], $5::text[], $6::text[], $7::text[], $8::bigint[], $9::bigint[],
				$10::text[], $11::text[], $12::int[], $13::boolean[], $14::jsonb[], $15::bytea[])
			ON CONFLICT (consumer, source, id) DO UPDATE SET last_seen = clock_timestamp(), attempts = l.attempts + 1
			RETURNING source, id, l.xmax = 0`,
	}
}
