package heal

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncebox/oncebox/internal/crash"
)

// The sides of a book.
const (
	Left  = "left"
	Right = "right"
)

// Marks are up to where the books of a database were found alike with their other sides.
type Marks struct {
	Pool   *pgxpool.Pool
	Schema string // default "oncebox"
}

func (m Marks) table() string { return pgx.Identifier{schema(m.Schema), "heal_mark"}.Sanitize() }

// Get is the first bucket of a book that was not found alike yet.
func (m Marks) Get(ctx context.Context, book, side string) (bucket int64, err error) {
	err = m.Pool.QueryRow(ctx, "SELECT bucket FROM "+m.table()+" WHERE book = $1 AND side = $2", book, side).Scan(&bucket)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("heal: read the mark of %s: %w", book, err)
	}
	return bucket, nil
}

// Set moves a mark. It goes back as well: a comparison that began further back has found what was wrong there.
func (m Marks) Set(ctx context.Context, book, side string, bucket int64) error {
	if err := crash.Before("heal-mark"); err != nil {
		return err
	}
	_, err := m.Pool.Exec(ctx, "INSERT INTO "+m.table()+` AS m (book, side, bucket) VALUES ($1, $2, $3)
		ON CONFLICT (book, side) DO UPDATE SET bucket = EXCLUDED.bucket, at = clock_timestamp() WHERE m.bucket <> EXCLUDED.bucket`, book, side, bucket)
	if err = crash.After("heal-mark", err); err != nil {
		return fmt.Errorf("heal: move the mark of %s: %w", book, err)
	}
	return nil
}
