package idempotency

import (
	"sync"
	"time"
)

// flights are the requests that this process is asking its store for. Duplicates wait here, on a channel, and not each on a
// connection of the store's: hundreds of them cost the one that works nothing.
type flights struct {
	mu      sync.Mutex
	flying  map[flightKey]*flight
	waiting int
	limit   int
}

type flightKey struct {
	tenant string
	key    KeyHash
}

type flight struct {
	fingerprint Fingerprint
	executing   bool // the store has given the request to the leader: another fingerprint is another request
	done        chan struct{}
	outcome     Outcome // set before done is closed; zero: nothing is known, ask the store
}

// join returns a flight to lead, or the outcome of the one that another leads, waiting until then at most.
func (fs *flights) join(k flightKey, fp Fingerprint, until time.Time) (lead *flight, out Outcome) {
	for {
		fs.mu.Lock()
		f := fs.flying[k]
		if f == nil {
			f = &flight{fingerprint: fp, done: make(chan struct{})}
			fs.flying[k] = f
			fs.mu.Unlock()
			return f, Outcome{}
		}
		same := f.fingerprint.Equal(fp)
		if !same && f.executing {
			fs.mu.Unlock()
			return nil, Outcome{State: Mismatch}
		}
		left := time.Until(until)
		if left <= 0 || fs.waiting >= fs.limit {
			fs.mu.Unlock()
			return nil, Outcome{State: Busy}
		}
		fs.waiting++
		fs.mu.Unlock()

		timer := time.NewTimer(left)
		select {
		case <-f.done:
		case <-timer.C:
		}
		timer.Stop()
		fs.mu.Lock()
		fs.waiting--
		fs.mu.Unlock()
		select {
		case <-f.done:
			if same && f.outcome.State != 0 {
				return nil, f.outcome
			}
		default:
			return nil, Outcome{State: Busy}
		}
	}
}

// executes tells the followers that the request is the leader's.
func (fs *flights) executes(f *flight) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	f.executing = true
}

// land ends a flight and gives its followers what came of it.
func (fs *flights) land(k flightKey, f *flight, out Outcome) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	delete(fs.flying, k)
	f.outcome = out
	close(f.done)
}
