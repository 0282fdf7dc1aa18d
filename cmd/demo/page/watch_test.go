package page

import (
	"fmt"
	"testing"
	"time"
)

// What is remembered of messages for their journeys is bounded, and it is the oldest that is forgotten.
func TestTheOldestPassagesAreForgotten(t *testing.T) {
	t.Parallel()
	p := newPassages()
	const more = 5
	for n := 1; n <= maxPassed+more; n++ {
		p.note(fmt.Sprint(n), uint64(n), time.Unix(int64(n), 0))
	}
	p.note(fmt.Sprint(maxPassed), maxPassed+more+1, time.Now()) // a copy of one that is remembered
	p.note(fmt.Sprint(maxPassed), maxPassed, time.Now())        // the same message, read again
	if len(p.of) != maxPassed {
		t.Errorf("%d messages are remembered, want %d", len(p.of), maxPassed)
	}
	for n, want := range map[int]passage{
		more:     {},
		more + 1: {first: more + 1, at: time.Unix(more+1, 0)}, maxPassed: {first: maxPassed, at: time.Unix(maxPassed, 0), copies: 1},
		maxPassed + more: {first: maxPassed + more, at: time.Unix(maxPassed+more, 0)},
	} {
		if got := p.of[fmt.Sprint(n)]; got != want {
			t.Errorf("message %d: %+v, want %+v", n, got, want)
		}
	}
}
