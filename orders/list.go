package orders

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/oncebox/oncebox/internal/service"
)

// A page is what of a tenant's orders to list: the newest first, from below an id.
type page struct {
	below   uuid.UUID
	status  string // "": any
	deleted bool   // the deleted ones too
	limit   int
}

// list reads one page in the order of an index: of the primary key, or of orders_status. Each condition is there or not, never
// "$3 = ” OR …", which a generic plan could not look up.
func (s *Service) list(ctx context.Context, p page) (orders []Order, more bool, err error) {
	sql, args := `SELECT `+columns+` FROM orders WHERE tenant_id = $1 AND id < $2`, []any{service.Tenant(ctx), p.below, p.limit + 1}
	if p.status != "" {
		sql, args = sql+` AND status = $4`, append(args, p.status)
	}
	if !p.deleted {
		sql += ` AND deleted_at IS NULL`
	}
	rows, err := s.pool.Query(ctx, sql+` ORDER BY id DESC LIMIT $3`, args...)
	if err != nil {
		return nil, false, fmt.Errorf("list orders: %w", err)
	}
	orders, err = pgx.CollectRows(rows, func(from pgx.CollectableRow) (Order, error) {
		r, err := scan(from)
		return r.Order, err
	})
	if err != nil {
		return nil, false, fmt.Errorf("list orders: %w", err)
	}
	if len(orders) > p.limit {
		return orders[:p.limit], true, nil
	}
	return orders, false, nil
}
