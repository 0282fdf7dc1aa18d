// Package outbox writes events in the caller's Postgres transaction and relays them, after the commit, to a log such as a
// JetStream stream: in order within a key, at least once, and never an event of a transaction that rolled back.
//
// A [Writer] inserts; a [Relay], one active for each database, reads what was committed and stores it in a [Sink].
//
// # Order
//
// Events of one key reach the log in the order in which they were committed, under three premises:
//
//   - a writer takes its aggregate's row lock before it adds the event (an UPDATE or SELECT … FOR UPDATE of the row, or the
//     INSERT that makes it), so that two writers of a key cannot overtake each other;
//   - that lock is one which the transaction holds until its end, as row locks are;
//   - the sequence behind the column seq has CACHE 1, as the migration makes it; [Relay.Run] checks it.
package outbox

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/oncebox/oncebox"
)

// ErrTooLarge says that an event would not fit in one message of the broker.
var ErrTooLarge = errors.New("event too large")

const (
	defaultSchema     = "oncebox"
	defaultMaxPayload = 1 << 20
	// maxHeaders is how many bytes of headers JetStream stores with a message.
	maxHeaders = 1<<16 - 1
	// laterBytes is room for what comes to an event behind the writer: its id, time and seq, and the headers by which it is
	// published.
	laterBytes = 512
)

// WriterConfig configures a [Writer].
type WriterConfig struct {
	// Source names the producer. An outbox has one. Required.
	Source string
	// Schema is where the outbox's tables are. Default "oncebox".
	Schema string
	// MaxPayload bounds an event's data and headers together, in bytes. It must not be above the broker's limit.
	// Default 1 MiB, which is NATS's.
	MaxPayload int
}

// A Writer adds events to the outbox in the caller's transaction. It is safe for concurrent use, keeps no state and opens no
// transaction of its own.
type Writer struct {
	cfg       WriterConfig
	one, many string // statements
}

// NewWriter returns a Writer, or an error that names the option that is wrong. It does not touch the database.
func NewWriter(cfg WriterConfig) (*Writer, error) {
	if cfg.Source == "" {
		return nil, errors.New("outbox: WriterConfig.Source is required")
	}
	if cfg.MaxPayload < 0 {
		return nil, fmt.Errorf("outbox: WriterConfig.MaxPayload is %d bytes, below 0", cfg.MaxPayload)
	}
	if cfg.Schema == "" {
		cfg.Schema = defaultSchema
	}
	if cfg.MaxPayload == 0 {
		cfg.MaxPayload = defaultMaxPayload
	}
	into := "INSERT INTO " + pgx.Identifier{cfg.Schema, "outbox"}.Sanitize() + " (id, source, topic, key, version, tenant_id, headers, payload) "
	return &Writer{
		cfg: cfg,
		one: into + "VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
		// The rows' seq follows the arrays' order: unnest hands its rows on as they stand and nothing sorts them.
		many: into + "SELECT * FROM unnest(" + unnested + ")",
	}, nil
}

const unnested = "$1::uuid[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::text[], $7::jsonb[], $8::bytea[]"

// Add inserts events in tx, in this order, in one round trip whatever their number; none is no error. An error that wraps
// [oncebox.ErrInvalid] or [ErrTooLarge] comes before anything is sent and leaves tx usable; any other is the database's.
func (w *Writer) Add(ctx context.Context, tx pgx.Tx, events ...oncebox.Event) error {
	if len(events) == 0 {
		return nil
	}
	insert, args, err := w.statement(events)
	if err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, insert, args...); err != nil {
		return fmt.Errorf("outbox: add %d events: %w", len(events), err)
	}
	return nil
}

// AddSQL is Add for a transaction of database/sql over pgx, whose driver takes the arrays as they are.
func (w *Writer) AddSQL(ctx context.Context, tx *sql.Tx, events ...oncebox.Event) error {
	if len(events) == 0 {
		return nil
	}
	insert, args, err := w.statement(events)
	if err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, insert, args...); err != nil {
		return fmt.Errorf("outbox: add %d events: %w", len(events), err)
	}
	return nil
}

// Queue is Add as one more statement of a batch that the caller sends in its transaction. The database's errors come with
// the batch's results.
func (w *Writer) Queue(b *pgx.Batch, events ...oncebox.Event) error {
	if len(events) == 0 {
		return nil
	}
	insert, args, err := w.statement(events)
	if err != nil {
		return err
	}
	b.Queue(insert, args...)
	return nil
}

// statement inserts events: one by its columns, which spares Postgres the arrays, more by an array for each column.
func (w *Writer) statement(events []oncebox.Event) (insert string, args []any, err error) {
	c, err := w.columns(events)
	if err != nil {
		return "", nil, err
	}
	if len(events) == 1 {
		return w.one, []any{c.ids[0], c.sources[0], c.topics[0], c.keys[0], c.versions[0], c.tenants[0], c.headers[0], c.payloads[0]}, nil
	}
	return w.many, c.arrays(), nil
}

// columns are events by column.
type columns struct {
	ids                                     [][16]byte // as pgx encodes them without a detour by text
	sources, topics, keys, tenants, headers []string
	versions                                []int64
	payloads                                [][]byte
}

func (c *columns) arrays() []any {
	return []any{c.ids, c.sources, c.topics, c.keys, c.versions, c.tenants, c.headers, c.payloads}
}

func (w *Writer) columns(events []oncebox.Event) (*columns, error) {
	n := len(events)
	c := &columns{
		ids: make([][16]byte, n), sources: make([]string, n), topics: make([]string, n), keys: make([]string, n), tenants: make([]string, n),
		headers: make([]string, n), versions: make([]int64, n), payloads: make([][]byte, n),
	}
	for i, e := range events {
		if e.Source == "" {
			e.Source = w.cfg.Source
		}
		if err := e.Validate(); err != nil {
			return nil, fmt.Errorf("outbox: %w", err)
		}
		if e.Source != w.cfg.Source { // ids are unique within a source, and the log knows messages by their ids
			return nil, fmt.Errorf("outbox: %w: its source is %.64q, this outbox's is %q", oncebox.ErrInvalid, e.Source, w.cfg.Source)
		}
		if _, set := e.Headers[oncebox.HeaderReplay]; set {
			return nil, fmt.Errorf("outbox: %w: header %s is the relay's", oncebox.ErrInvalid, oncebox.HeaderReplay)
		}
		h, err := marshalHeaders(e)
		if err != nil {
			return nil, fmt.Errorf("outbox: %w", err)
		}
		size := e.WireSize() + laterBytes
		if headers := size - len(e.Data); headers > maxHeaders {
			return nil, fmt.Errorf("outbox: %w: %s has %d bytes of headers, more than %d", ErrTooLarge, e.Type, headers, maxHeaders)
		}
		if size > w.cfg.MaxPayload {
			return nil, fmt.Errorf("outbox: %w: %s of %d bytes with its headers, more than %d", ErrTooLarge, e.Type, size, w.cfg.MaxPayload)
		}
		if e.ID == "" {
			if c.ids[i], err = uuid.NewV7(); err != nil {
				return nil, fmt.Errorf("outbox: make an id: %w", err)
			}
		} else {
			c.ids[i] = uuid.MustParse(e.ID) // Validate has parsed it
		}
		if c.payloads[i] = e.Data; e.Data == nil {
			c.payloads[i] = []byte{}
		}
		c.sources[i], c.topics[i], c.keys[i], c.versions[i], c.tenants[i], c.headers[i] = e.Source, e.Type, e.Key, e.Version, e.TenantID, string(h)
	}
	return c, nil
}

// The envelope's attributes without a column of their own are kept among the headers, under names that an event's own headers
// cannot have.
var headerAttributes = []struct {
	name  string
	field func(*oncebox.Event) *string
}{
	{oncebox.HeaderCorrelationID, func(e *oncebox.Event) *string { return &e.CorrelationID }},
	{oncebox.HeaderCausationID, func(e *oncebox.Event) *string { return &e.CausationID }},
	{oncebox.HeaderTraceParent, func(e *oncebox.Event) *string { return &e.TraceParent }},
}

func marshalHeaders(e oncebox.Event) ([]byte, error) {
	h := make(map[string]string, len(e.Headers)+len(headerAttributes))
	maps.Copy(h, e.Headers)
	for _, a := range headerAttributes {
		if value := *a.field(&e); value != "" {
			h[a.name] = value
		}
	}
	return json.Marshal(h)
}

func unmarshalHeaders(e *oncebox.Event, b []byte) error {
	if string(b) == "{}" {
		return nil
	}
	if err := json.Unmarshal(b, &e.Headers); err != nil {
		return fmt.Errorf("headers of row %d: %w", e.Seq, err)
	}
	for _, a := range headerAttributes {
		*a.field(e) = e.Headers[a.name]
		delete(e.Headers, a.name)
	}
	return nil
}
