package inbox

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// queueLetters writes the dead letters of a transaction. One that is there already was counted when it came.
func (in *Inbox) queueLetters(b *pgx.Batch, letters []*delivery) error {
	byRow := make(map[row]*delivery, len(letters))
	var (
		n                                                            = len(letters)
		sources, tenants, messageIDs, topics, keys, classes, reasons = texts(n), texts(n), texts(n), texts(n), texts(n), texts(n), texts(n)
		ids, versions, seqs                                          = make([]uuid.UUID, 0, n), make([]int64, 0, n), make([]int64, 0, n)
		attempts, holds, headers, payloads                           = make([]int32, 0, n), make([]bool, 0, n), texts(n), make([][]byte, 0, n)
	)
	for _, d := range letters {
		r := row{d.event.Source, d.letterID()}
		if byRow[r] != nil {
			d.outcome = noop
			continue
		}
		byRow[r] = d
		h, err := json.Marshal(printable(d.raw.Metadata))
		if err != nil {
			return fmt.Errorf("inbox: headers of %s: %w", d.id, err)
		}
		e := d.event
		sources, ids, tenants = append(sources, e.Source), append(ids, r.id), append(tenants, e.TenantID)
		messageIDs, topics, keys = append(messageIDs, printableText(e.ID)), append(topics, e.Type), append(keys, e.Key)
		versions, seqs = append(versions, e.Version), append(seqs, e.Seq)
		classes, reasons = append(classes, d.why.class), append(reasons, printableText(d.why.Error()))
		attempts, holds = append(attempts, int32(max(1, d.delivered))), append(holds, in.holds(d, d.why))
		headers, payloads = append(headers, string(h)), append(payloads, append([]byte{}, d.raw.Payload...)) // empty, not NULL
	}
	if len(ids) == 0 {
		return nil
	}
	b.Queue(in.sql.bury, in.cfg.Consumer, sources, ids, tenants, messageIDs, topics, keys, versions, seqs, classes, reasons, attempts, holds, headers, payloads).
		Query(func(rows pgx.Rows) error {
			var (
				r     row
				fresh bool
			)
			_, err := pgx.ForEachRow(rows, []any{&r.source, &r.id, &fresh}, func() error {
				if !fresh {
					byRow[r].outcome = noop
				}
				return nil
			})
			return err
		})
	return nil
}

func texts(n int) []string { return make([]string, 0, n) }

// printable are headers as jsonb takes them, whatever bytes came.
func printable(h message.Metadata) map[string]string {
	out := make(map[string]string, len(h))
	for name, value := range h {
		out[printableText(name)] = printableText(value)
	}
	return out
}

func printableText(s string) string {
	if !utf8.ValidString(s) {
		s = strings.ToValidUTF8(s, "\uFFFD")
	}
	return strings.ReplaceAll(s, "\x00", "\uFFFD")
}

func sortedKeys(m map[key]int64) []key {
	return slices.SortedFunc(maps.Keys(m), func(a, b key) int {
		return cmp.Or(cmp.Compare(a.source, b.source), cmp.Compare(a.key, b.key))
	})
}
