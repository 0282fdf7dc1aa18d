// Package inboxtest helps to test a consumer of package inbox: it delivers a message as brokers do, more often than once.
package inboxtest

import (
	"context"
	"sync"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncebox/oncebox"
)

// Deliver hands e to handle as its n-th delivery, from 1, and returns what the broker would be told: nil acknowledges.
func Deliver(handle message.NoPublishHandlerFunc, e oncebox.Event, n int) error {
	m := e.Message()
	m.SetContext(oncebox.WithDelivered(context.Background(), n))
	return handle(m)
}

// OneEffect fails the test unless e has one effect however it comes: eight times at once, and then again to another process,
// since the first died between its commit and its acknowledgement. Consumer makes the handler under test, each time as a
// process that starts would, with an inbox of its own; effects counts the effects of e.
func OneEffect(t testing.TB, consumer func() message.NoPublishHandlerFunc, e oncebox.Event, effects func() int) {
	t.Helper()
	if n := effects(); n != 0 {
		t.Errorf("%d effects before the first delivery", n)
	}
	handle := consumer()
	const atOnce = 8
	errs := make([]error, atOnce)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() { errs[i] = Deliver(handle, e, 1) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			t.Errorf("delivered %d times at once: %v", atOnce, err)
		}
	}
	if n := effects(); n != 1 {
		t.Errorf("%d effects of a message that came %d times at once, want 1", n, atOnce)
	}
	for n := 2; n <= 3; n++ {
		if err := Deliver(consumer(), e, n); err != nil {
			t.Errorf("delivery %d, to another process: %v", n, err)
		}
	}
	if n := effects(); n != 1 {
		t.Errorf("%d effects after a redelivery to another process, want 1", n)
	}
}
