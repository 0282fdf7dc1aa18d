package service

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// What of a stop's time is whose. The relay needs a second of its share, after it has drained, to hand its lease on.
const (
	requestsShare, messagesShare, routerShare, relayShare, closeShare = 6, 4, 1, 5, 2

	shares     = requestsShare + messagesShare + routerShare + relayShare + closeShare
	drainShare = relayShare - 2
)

// share is n of the shares of the time that a stop may take.
func share(stop time.Duration, n int) time.Duration { return stop * time.Duration(n) / shares }

// A stage is one part of a stop, and how long it may take.
type stage struct {
	name string
	time time.Duration
	do   func(context.Context) error
}

// stop runs the stages one after the other. One that hangs takes none of the next one's time.
//
// The subscriber is closed before the router, which waits until each message in hand is handled and acknowledged: the router's own
// Close ends the messages' contexts first, and with them the transactions of their handlers.
func stop(ctx context.Context, log *slog.Logger, stages ...stage) {
	for _, s := range stages {
		end, cancel := context.WithTimeout(ctx, s.time)
		if err := s.do(end); err != nil {
			log.Warn("not all was finished", "of", s.name, "error", err)
		}
		cancel()
	}
}

// ends are what is closed last, by its name.
type ends map[string]func(context.Context) error

// close closes all at once, and leaves what has not closed in time: a connection that Postgres does not answer on is never given
// back to its pool.
func (e ends) close(ctx context.Context, limit time.Duration, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var wg sync.WaitGroup
	for name, end := range e {
		wg.Go(func() {
			if err := within(ctx, func() error { return end(ctx) }); err != nil {
				log.Warn("not all was closed", "of", name, "error", err)
			}
		})
	}
	wg.Wait()
}

// done is f, which cannot fail, as one of the ends.
func done(f func()) func(context.Context) error {
	return func(context.Context) error {
		f()
		return nil
	}
}

// within runs f, and leaves it when ctx is done.
func within(ctx context.Context, f func() error) error {
	select {
	case err := <-start(f):
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// start runs f beside the caller. Its result comes on the channel, once; who asks again gets nil.
func start(f func() error) <-chan error {
	done := make(chan error, 1)
	go func() {
		defer close(done)
		done <- f()
	}()
	return done
}
