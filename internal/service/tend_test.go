package service

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"
)

func TestAChoreThatFailsKeepsNobodyWaiting(t *testing.T) {
	t.Parallel()
	ctx, stop := context.WithCancel(t.Context())
	failed, done, ended := 0, make(chan int, 3), make(chan struct{})
	go func() {
		defer close(ended)
		tend(ctx, time.Millisecond, slog.New(slog.DiscardHandler),
			chore{"what fails", func(context.Context) error { failed++; return errors.New("away") }},
			chore{"the next", func(context.Context) error {
				select {
				case done <- failed:
				default:
				}
				return nil
			}})
	}()
	for want := 1; want <= 3; want++ {
		if n := <-done; n != want {
			t.Errorf("the next chore ran after %d failures, want %d", n, want)
		}
	}
	stop()
	<-ended
}
