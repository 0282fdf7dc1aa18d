package billing

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/oncebox/oncebox/heal"
)

// Trace is what billing itself knows of orders with these ids, and of charges.
func (s *Service) Trace(ctx context.Context, names []string) ([]heal.Step, error) {
	rows, err := s.pool.Query(ctx, `WITH c AS (SELECT * FROM charge WHERE id::text = ANY ($1) OR order_id::text = ANY ($1))
		SELECT created_at, 'charge', status, concat_ws(', ', id::text, amount || ' ' || currency, NULLIF(reason, '')), '', '', order_id::text FROM c
		UNION ALL
		SELECT l.created_at, 'ledger', l.kind, concat_ws(' ', l.account, l.amount, l.currency), '', '', c.order_id::text
			FROM ledger AS l JOIN c ON l.tenant_id = c.tenant_id AND l.charge_id = c.id`, names)
	if err != nil {
		return nil, fmt.Errorf("trace charges: %w", err)
	}
	steps, err := pgx.CollectRows(rows, pgx.RowToStructByPos[heal.Step])
	if err != nil {
		return nil, fmt.Errorf("trace charges: %w", err)
	}
	return steps, nil
}
