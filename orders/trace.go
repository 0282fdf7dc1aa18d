package orders

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/oncebox/oncebox/heal"
)

// Trace is what orders itself knows of orders by these names: their ids, or the idempotency keys that they were made with.
func (s *Service) Trace(ctx context.Context, names []string) ([]heal.Step, error) {
	rows, err := s.pool.Query(ctx, `SELECT CASE WHEN version = 1 THEN created_at ELSE updated_at END, 'orders', status,
			concat_ws(', ', 'version ' || version, amount || ' ' || currency, 'charge ' || charge_id, decline_reason, 'deleted ' || deleted_at), '', '', id::text
		FROM orders WHERE id::text = ANY ($1) OR idem_key = ANY (SELECT sha256(convert_to(n, 'UTF8')) FROM unnest($1::text[]) AS n)`, names)
	if err != nil {
		return nil, fmt.Errorf("trace orders: %w", err)
	}
	steps, err := pgx.CollectRows(rows, pgx.RowToStructByPos[heal.Step])
	if err != nil {
		return nil, fmt.Errorf("trace orders: %w", err)
	}
	return steps, nil
}
