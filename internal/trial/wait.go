package trial

import (
	"context"
	"fmt"
	"time"
)

// Until waits for cond, which is asked at once and then every so often, for limit at most. What is a sentence: "billing is ready".
func Until(ctx context.Context, every, limit time.Duration, what string, cond func() (bool, error)) error {
	late := time.Now().Add(limit)
	for {
		ok, err := cond()
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil || ok:
			return err
		case time.Now().After(late):
			return fmt.Errorf("not within %s: %s", limit, what)
		}
		if err := Pause(ctx, every); err != nil {
			return err
		}
	}
}

// Pause waits for d or the end of ctx, whose cause it returns.
func Pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}
