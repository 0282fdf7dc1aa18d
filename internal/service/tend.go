package service

import (
	"context"
	"log/slog"
	"time"
)

// A chore clears something away that is over.
type chore struct {
	name string
	do   func(context.Context) error
}

// tend does the chores every so often until ctx is done, at first soon after the start: others start too, and a process may not
// live for long. Two processes may do them at once. One that fails is logged, and tried again the next time.
func tend(ctx context.Context, every time.Duration, log *slog.Logger, chores ...chore) {
	for wait := every / 60; ; wait = every {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		for _, c := range chores {
			if err := c.do(ctx); err != nil && ctx.Err() == nil {
				log.Warn("not cleared away", "what", c.name, "error", err)
			}
		}
	}
}
