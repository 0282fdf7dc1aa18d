// Package outboxtest helps to test code that writes events to an outbox.
package outboxtest

import (
	"context"
	"encoding/json"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/oncebox/oncebox"
)

// Inserted returns the one event of type typ that tx has added to the outbox in the schema "oncebox". The test fails when
// there is none, or more than one. It must be called in the transaction that added it, before the commit.
func Inserted(t testing.TB, tx pgx.Tx, typ string) oncebox.Event {
	t.Helper()
	rows, err := tx.Query(context.Background(), `SELECT seq, id::text, source, topic, key, version, tenant_id, time, headers::text, payload
		FROM oncebox.outbox WHERE xid = pg_current_xact_id() AND topic = $1 ORDER BY seq`, typ)
	if err != nil {
		t.Fatalf("read the outbox: %v", err)
	}
	events, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (e oncebox.Event, err error) {
		var headers []byte
		if err := row.Scan(&e.Seq, &e.ID, &e.Source, &e.Type, &e.Key, &e.Version, &e.TenantID, &e.Time, &headers, &e.Data); err != nil {
			return e, err
		}
		if err := json.Unmarshal(headers, &e.Headers); err != nil {
			return e, err
		}
		for name, to := range map[string]*string{
			oncebox.HeaderCorrelationID: &e.CorrelationID, oncebox.HeaderCausationID: &e.CausationID, oncebox.HeaderTraceParent: &e.TraceParent,
		} {
			*to = e.Headers[name]
			delete(e.Headers, name)
		}
		return e, nil
	})
	if err != nil {
		t.Fatalf("read the outbox: %v", err)
	}
	if len(events) != 1 {
		t.Fatalf("the transaction added %d events of type %s, want 1", len(events), typ)
	}
	return events[0]
}
