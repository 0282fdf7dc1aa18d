package billing

import (
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncebox/oncebox/heal"
)

// Books are what billing has that its own ledger or orders should have alike:
//
//   - "charges": each charge, or tombstone of one, is of an order's amount; by the order's id;
//   - "held": the money that is held for an order; by the order's id;
//   - "ledger": each charge moved its money, and each refund gave it back, once and no more; by the charge's id.
func (s *Service) Books(*pgxpool.Pool) []heal.Offer {
	rows := func(from, id, text, end string) heal.Table {
		return heal.Table{Pool: s.pool, Rows: fmt.Sprintf(`SELECT %s AS bucket, %s AS id, 0::bigint AS seq, %s AS hash, NULL::timestamptz AS at
			FROM %s WHERE %s AND ($3::uuid[] IS NULL OR %s = ANY ($3)) %s`,
			heal.TimeBucketSQL(id), id, heal.HashTextSQL(text), from, heal.TimeRangeSQL(id), id, end)}
	}
	charges := rows("charge", "order_id", "concat_ws('|', tenant_id, amount, currency)", "")
	held := rows("charge", "order_id", "concat_ws('|', tenant_id, CASE status WHEN 'succeeded' THEN amount ELSE 0 END, currency)", "")
	// What the ledger has to hold of a charge, in the order of kind and account.
	moved := rows("charge", "id", `concat_ws(';', tenant_id,
		'charge|customer:' || customer_id || '|' || -amount || '|' || currency, 'charge|revenue|' || amount || '|' || currency,
		CASE status WHEN 'refunded' THEN 'refund|customer:' || customer_id || '|' || amount || '|' || currency END,
		CASE status WHEN 'refunded' THEN 'refund|revenue|' || -amount || '|' || currency END)`, "AND status IN ('succeeded', 'refunded')")
	ledger := rows("ledger", "charge_id", `concat_ws(';', tenant_id,
		string_agg(concat_ws('|', kind, account, amount, currency), ';' ORDER BY kind COLLATE "C", account COLLATE "C"))`, "GROUP BY tenant_id, charge_id")
	marks := heal.Marks{Pool: s.pool}
	return []heal.Offer{
		{Name: "charges", Side: heal.Right, Rows: charges, Marks: marks},
		{Name: "held", Side: heal.Right, Rows: held, Marks: marks},
		{Name: "ledger", Side: heal.Left, Rows: moved, Span: heal.TimeSpan, Marks: marks},
		{Name: "ledger", Side: heal.Right, Rows: ledger, Marks: marks},
	}
}
