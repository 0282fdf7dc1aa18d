package main

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

func TestEachKillHasOrdersOfItsOwn(t *testing.T) {
	for orders := 1; orders <= 60; orders++ {
		for kills := range orders {
			k := killer{orders: orders, kills: kills}
			before := 0
			for n := range kills + 1 {
				if k.released(n) <= before {
					t.Fatalf("%d orders, %d kills: portion %d is empty", orders, kills, n)
				}
				before = k.released(n)
			}
			if before != orders {
				t.Fatalf("%d orders, %d kills: %d are let through", orders, kills, before)
			}
		}
	}
}

func TestGateHoldsIntentsBackUntilItIsRaised(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		passed := make(chan error, 1)
		go func() { passed <- g.wait(t.Context(), 4) }()
		for _, limit := range []int{1, 4, 2} {
			g.raise(limit)
			synctest.Wait()
			if len(passed) > 0 {
				t.Fatalf("intent 4 passed at limit %d", limit)
			}
		}
		g.raise(5)
		synctest.Wait()
		if len(passed) != 1 || <-passed != nil {
			t.Error("intent 4 did not pass at limit 5")
		}
	})
}

func TestGateLetsGoOfAStoppedRun(t *testing.T) {
	stopped := errors.New("stopped")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(stopped)
	if err := newGate().wait(ctx, 0); !errors.Is(err, stopped) {
		t.Errorf("wait: %v", err)
	}
}

func TestPanicIsAnError(t *testing.T) {
	err := guarded(func() error { panic("out of cheese") })()
	if err == nil {
		t.Error("no error")
	}
}
