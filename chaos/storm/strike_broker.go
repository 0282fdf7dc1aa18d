package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/oncebox/oncebox/internal/trial"
)

// strikeBroker deletes a stream, or its durable.
func (r *run) strikeBroker(ctx context.Context, f fault, state string) (string, error) {
	r.w.natsGate.Lock()
	defer r.w.natsGate.Unlock()
	d := directions[0]
	if f.Target == directions[1].producer {
		d = directions[1]
	}
	ok, err := r.place(ctx, placeLimit, func() (bool, error) {
		ask, cancel := context.WithTimeout(ctx, askLimit)
		defer cancel()
		var err error
		if f.Kind == deleteStream {
			err = r.w.js.DeleteStream(ask, d.stream)
		} else {
			err = r.w.js.DeleteConsumer(ask, d.stream, d.consumer)
		}
		switch {
		case errors.Is(err, jetstream.ErrStreamNotFound), errors.Is(err, jetstream.ErrConsumerNotFound):
			return false, nil // not made again yet
		case err != nil:
			return false, away(ctx, err)
		}
		return true, nil
	})
	if !ok || err != nil {
		return "", err
	}
	return state, nil
}

// natsDown kills the broker, does something to its files, and starts it again.
func (r *run) natsDown(ctx context.Context, f fault, do func(store string) error) error {
	r.w.natsGate.Lock()
	defer r.w.natsGate.Unlock()
	if err := r.w.nats.Kill(); err != nil {
		return err
	}
	if err := do(r.w.nats.StorePath()); err != nil {
		return err
	}
	if err := trial.Pause(ctx, time.Duration(f.Millis)*time.Millisecond); err != nil {
		return err
	}
	return r.w.nats.Restart(ctx)
}

// wipe kills the broker and takes all of its files.
func (r *run) wipe(ctx context.Context, f fault) error { return r.natsDown(ctx, f, os.RemoveAll) }

// A storeCopy is JetStream's folder as it was at one moment, what a machine that lost its power has on its disk.
type storeCopy struct {
	dir  string
	ends map[string]uint64 // of the streams
}

// copyStore copies the store while the server stands still.
func (r *run) copyStore(ctx context.Context) (err error) {
	r.w.natsGate.Lock()
	defer r.w.natsGate.Unlock()
	c := storeCopy{dir: r.w.file("store-copy"), ends: map[string]uint64{}}
	if err := os.RemoveAll(c.dir); err != nil {
		return err
	}
	for _, d := range directions {
		c.ends[d.stream] = r.lastSeq(ctx, d.stream)
	}
	if err := r.w.nats.Pause(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.w.nats.Continue()) }()
	if err := os.CopyFS(c.dir, os.DirFS(r.w.nats.StorePath())); err != nil {
		return fmt.Errorf("copy the store: %w", err)
	}
	r.copied = c
	return nil
}

// lastSeq is where a stream ends, 0 where it cannot be asked.
func (r *run) lastSeq(ctx context.Context, stream string) uint64 {
	ask, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	s, err := r.w.js.Stream(ask, stream)
	if err != nil {
		return 0
	}
	return s.CachedInfo().State.LastSeq
}

// growLimit is how long a stream may take to grow.
const growLimit = 20 * time.Second

// rollBack puts the copy back once a stream has grown beyond it. (Both need not have: a relay that takes over again and again has to
// read its stream back first.)
func (r *run) rollBack(ctx context.Context, f fault, state string) (string, error) {
	ok, err := r.place(ctx, growLimit, func() (bool, error) {
		for _, d := range directions {
			if r.lastSeq(ctx, d.stream) > r.copied.ends[d.stream] {
				return true, nil
			}
		}
		return false, nil
	})
	if !ok || err != nil {
		return "", err
	}
	return state, r.natsDown(ctx, f, func(store string) error {
		if err := os.RemoveAll(store); err != nil {
			return err
		}
		if err := os.CopyFS(store, os.DirFS(r.copied.dir)); err != nil {
			return fmt.Errorf("put the store back: %w", err)
		}
		return nil
	})
}
