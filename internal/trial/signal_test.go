package trial

import (
	"os"
	"syscall"
	"testing"
)

// A browser that leaves raises SIGPIPE, as a broken output does; only the second is a reason to end.
func TestABrokenConnectionDoesNotEndTheRun(t *testing.T) {
	t.Parallel()
	signals := make(chan os.Signal, 2)
	signals <- syscall.SIGPIPE
	signals <- os.Interrupt
	if got := asked(signals); got != os.Interrupt {
		t.Errorf("it ends by %v", got)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if unread(w) {
		t.Error("a pipe that is read counts as broken")
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if !unread(w) {
		t.Error("a pipe that nobody reads counts as read")
	}
}
