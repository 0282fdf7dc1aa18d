package trial

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

func TestGateHoldsIntentsBackUntilItIsRaised(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGate()
		passed := make(chan error, 1)
		go func() { passed <- g.Wait(t.Context(), 4) }()
		for _, limit := range []int{1, 4, 2} {
			g.Raise(limit)
			synctest.Wait()
			if len(passed) > 0 {
				t.Fatalf("intent 4 passed at limit %d", limit)
			}
		}
		g.Raise(5)
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
	if err := NewGate().Wait(ctx, 0); !errors.Is(err, stopped) {
		t.Errorf("wait: %v", err)
	}
}
