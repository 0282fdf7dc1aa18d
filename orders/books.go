package orders

import (
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncebox/oncebox/events"
	"github.com/oncebox/oncebox/heal"
)

// Books are what orders has that its own outbox or billing should have alike:
//
//   - "requests": each charge that an event asks for is its order's, in amount and currency;
//   - "charges": each order has a charge of its amount;
//   - "held": billing holds the money of the orders that are paid, and of no other.
//
// All are by the order's id. Outbox reads by the relay's rights.
func (s *Service) Books(outbox *pgxpool.Pool) []heal.Offer {
	rows := func(from, id, amount, currency string) string {
		return fmt.Sprintf(`SELECT %s AS bucket, %s AS id, 0::bigint AS seq, %s AS hash, NULL::timestamptz AS at FROM %s AND %s AND ($3::uuid[] IS NULL OR %s = ANY ($3))`,
			heal.TimeBucketSQL(id), id, heal.HashTextSQL("concat_ws('|', tenant_id, "+amount+", "+currency+")"), from, heal.TimeRangeSQL(id), id)
	}
	table := heal.Table{Pool: s.pool, Rows: rows("orders WHERE true", "id", "amount", "currency")}
	held := heal.Table{Pool: s.pool, Rows: rows("orders WHERE true", "id", "CASE status WHEN 'paid' THEN amount ELSE 0 END", "currency")}
	asked := heal.Table{Pool: outbox, Rows: rows(`oncebox.outbox AS o, LATERAL (SELECT o.key::uuid AS order_id, convert_from(o.payload, 'UTF8')::jsonb AS asks) AS r
		WHERE o.topic = '`+events.TypeChargeRequested+`' AND NOT o.headers ? 'oncebox-replay'`, "order_id", "asks->>'amount'", "asks->>'currency'")}
	return []heal.Offer{
		{Name: "requests", Side: heal.Left, Rows: asked, Span: heal.KeptSpan(outbox, ""), Marks: heal.Marks{Pool: s.pool}},
		{Name: "requests", Side: heal.Right, Rows: table, Marks: heal.Marks{Pool: s.pool}},
		{Name: "charges", Side: heal.Left, Rows: table, Span: heal.TimeSpan, Marks: heal.Marks{Pool: s.pool}},
		{Name: "held", Side: heal.Left, Rows: held, Span: heal.TimeSpan, Marks: heal.Marks{Pool: s.pool}},
	}
}
