package heal

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncebox/oncebox"
)

// bucketRows is how many of the producer's rows are a bucket of events: a bucket is seq / bucketRows.
const bucketRows = 1000

// eventHash is the hash of an event: of its id, and of what the inbox remembers of its type and data.
func eventHash(id, digest string) string {
	return `(('x' || encode(substr(uuid_send(` + id + `), 9), 'hex'))::bit(64)::bigint # ` + digest + `)`
}

// Written chooses events of an outbox.
type Written struct {
	// Schema is where the outbox's tables are. Default "oncebox".
	Schema string
	// Cursor names the relay: events that it parked are not expected anywhere.
	Cursor string
	// Topics are the consumer's, as in outbox.RelayConfig. Default: all.
	Topics []string
	// Since is when the first of them was written. Default: no bound.
	Since time.Time

	snapshot string // only what it sees; "" is all
}

// Outbox is the book of a producer's events, without those that are sent once more.
func Outbox(pool *pgxpool.Pool, w Written) Table {
	table := func(name string) string { return pgx.Identifier{schema(w.Schema), name}.Sanitize() }
	rows := fmt.Sprintf(`SELECT seq / %[1]d AS bucket, id, seq, %[2]s AS hash, time AS at FROM %[3]s
		WHERE seq >= $1::bigint * %[1]d AND seq < ($2::bigint + 1) * %[1]d AND ($3::uuid[] IS NULL OR id = ANY ($3))
			AND NOT headers ? '%[4]s'
			AND seq NOT IN (SELECT seq FROM %[5]s WHERE cursor = %[6]s AND outcome <> 'retried')`,
		bucketRows, eventHash("id", HashSQL(`convert_to(topic, 'UTF8') || '\x00'::bytea || payload`)), table("outbox"), oncebox.HeaderReplay,
		table("outbox_parked"), literal(w.Cursor))
	if len(w.Topics) > 0 {
		rows += ` AND topic ~ ` + literal(topicsPattern(w.Topics))
	}
	if !w.Since.IsZero() {
		rows += ` AND time >= ` + literal(w.Since.UTC().Format(time.RFC3339Nano))
	}
	if w.snapshot != "" {
		rows += ` AND pg_visible_in_snapshot(xid, ` + literal(w.snapshot) + `)`
	}
	return Table{Pool: pool, Rows: rows}
}

// Inbox is the book of what a consumer had of a source: handled, dead, or begun outside.
func Inbox(pool *pgxpool.Pool, schemaName, consumer, source string) Table {
	return Table{Pool: pool, Rows: fmt.Sprintf(`SELECT seq / %[1]d AS bucket, id, seq, %[2]s AS hash, NULL::timestamptz AS at FROM %[3]s
		WHERE seq >= $1::bigint * %[1]d AND seq < ($2::bigint + 1) * %[1]d AND ($3::uuid[] IS NULL OR id = ANY ($3))
			AND consumer = %[4]s AND source = %[5]s AND state <> 'started'`,
		bucketRows, eventHash("id", "digest"), pgx.Identifier{schema(schemaName), "inbox"}.Sanitize(), literal(consumer), literal(source))}
}

func schema(name string) string {
	if name == "" {
		return "oncebox"
	}
	return name
}

func literal(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// topicsPattern is a regular expression for subjects with NATS's wildcards.
func topicsPattern(topics []string) string {
	alternatives := make([]string, len(topics))
	for i, t := range topics {
		tokens := strings.Split(t, ".")
		for j, token := range tokens {
			switch token {
			case "*":
				tokens[j] = `[^.]+`
			case ">":
				tokens[j] = `.+`
			default:
				tokens[j] = quoteRegexp(token)
			}
		}
		alternatives[i] = strings.Join(tokens, `\.`)
	}
	return `^(` + strings.Join(alternatives, "|") + `)$`
}

func quoteRegexp(token string) string {
	var b strings.Builder
	for _, c := range token {
		if strings.ContainsRune(`\.+*?()|[]{}^$`, c) {
			b.WriteByte('\\')
		}
		b.WriteRune(c)
	}
	return b.String()
}

// OutboxSpan is the [Offer.Span] of a book of events on the producer's side. It reads the whole outbox where a time is given.
func OutboxSpan(pool *pgxpool.Pool, schemaName string) func(context.Context, time.Time, time.Time) (Span, error) {
	outbox := pgx.Identifier{schema(schemaName), "outbox"}.Sanitize()
	return func(ctx context.Context, since, until time.Time) (Span, error) {
		s := Span{To: LastBucket}
		var first, end *int64
		if err := pool.QueryRow(ctx, `SELECT COALESCE(min(seq), 0) FROM `+outbox).Scan(&s.FirstSeq); err != nil {
			return s, fmt.Errorf("heal: find the outbox's beginning: %w", err)
		}
		if since.IsZero() && until.IsZero() {
			s.From = s.FirstSeq / bucketRows
			return s, nil
		}
		err := pool.QueryRow(ctx, `SELECT min(seq), max(seq) FROM `+outbox+`
			WHERE ($1::timestamptz IS NULL OR time >= $1) AND ($2::timestamptz IS NULL OR time < $2)`, anew, orNull(since), orNull(until)).Scan(&first, &end)
		if err != nil {
			return s, fmt.Errorf("heal: find a time in the outbox: %w", err)
		}
		if first == nil {
			s.From, s.To = 1, 0 // nothing
			return s, nil
		}
		if s.From = *first / bucketRows; !until.IsZero() {
			s.To = *end / bucketRows
		}
		return s, nil
	}
}

func orNull(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
