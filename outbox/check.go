package outbox

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// setupError is one that trying again cannot mend.
type setupError struct{ error }

func (r *Relay) checkSequence(ctx context.Context) error {
	var cache int64
	err := r.pool.QueryRow(ctx, "SELECT seqcache FROM pg_sequence WHERE seqrelid = pg_get_serial_sequence($1, 'seq')::regclass",
		pgx.Identifier{r.cfg.Schema, "outbox"}.Sanitize()).Scan(&cache)
	if err != nil {
		return fmt.Errorf("read the outbox's sequence (is the migration applied?): %w", err)
	}
	if cache != 1 {
		return &setupError{fmt.Errorf("outbox: the sequence of %s.outbox has CACHE %d, and order within a key needs 1", r.cfg.Schema, cache)}
	}
	return nil
}

// checkDurable says, once for each time that it leads, what the log's word is worth.
func (r *Relay) checkDurable() error {
	log, ok := r.sink.(Reporter)
	if !ok {
		return nil
	}
	durable, why := log.Durable()
	switch {
	case durable:
		r.log.Info("relay: what is stored is durable", "why", why)
	case r.cfg.RequireDurable:
		return &setupError{fmt.Errorf("outbox: what the log calls stored may be lost: %s", why)}
	default:
		r.log.Warn("relay: what is stored may be lost; it would be sent again", "why", why)
	}
	return nil
}
