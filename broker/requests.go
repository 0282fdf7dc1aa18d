package broker

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
)

const (
	// pullWait is how long a request for messages stays with the broker, and so how long Close may take when none come.
	pullWait = 500 * time.Millisecond
	// pullGrace is how much later the broker's word that it is over may come.
	pullGrace = 500 * time.Millisecond
	// lateFor is how long messages of a request that the broker has called over may come after all.
	lateFor = 100 * time.Millisecond
	// anyNumber of messages is more than come within pullWait: a request is bounded by bytes, and by what may be unacknowledged.
	anyNumber = 1 << 20
)

// requests are asked for a durable's messages, one after the other and each of a bounded life: a request that has ended leaves nothing on
// the way, and one that a broker forgot ends here too, so that nothing hangs on a sign of life that does not come. All are answered at
// one inbox. A replicated durable hands a message out once most servers know of it, and so later than it calls its request over for
// having no room: then the next request takes it. With an inbox for each it would find nobody listening, and come again after AckWait.
type requests struct {
	nc    *nats.Conn
	sub   *nats.Subscription
	inbox string
	n     int // so far
}

func newRequests(nc *nats.Conn) (*requests, error) {
	r := &requests{nc: nc, inbox: nc.NewInbox()}
	var err error
	if r.sub, err = nc.SubscribeSync(r.inbox + ".*"); err == nil {
		err = r.sub.SetPendingLimits(-1, -1) // what is asked for is bounded
	}
	return r, err
}

// ask asks for messages of at most maxBytes in all, or for a single one of any size where that is 0. It hands each to take, and returns
// their number when the request is over.
func (r *requests) ask(stream, durable string, maxBytes int, take func(*nats.Msg)) (n int, err error) {
	what := struct {
		Expires  time.Duration `json:"expires"`
		Batch    int           `json:"batch"`
		MaxBytes int           `json:"max_bytes,omitempty"`
	}{pullWait, anyNumber, maxBytes}
	if maxBytes == 0 {
		what.Batch = 1
	}
	body, err := json.Marshal(what)
	if err != nil {
		return 0, err
	}
	r.n++
	reply := r.inbox + "." + strconv.Itoa(r.n)
	if err := r.nc.PublishRequest("$JS.API.CONSUMER.MSG.NEXT."+stream+"."+durable, reply, body); err != nil {
		return 0, err
	}
	for end := time.Now().Add(pullWait + pullGrace); ; {
		m, err := r.sub.NextMsg(time.Until(end))
		if errors.Is(err, nats.ErrTimeout) {
			return n, nil
		}
		if err != nil {
			return n, err
		}
		status := m.Header.Get("Status")
		switch {
		case m.Reply != "": // to be acknowledged, and so a message
			take(m)
			if n++; n == what.Batch {
				return n, nil
			}
		case m.Subject != reply || status == "100": // of a request before; a sign of life
		default:
			return n, ended(status, m.Header.Get("Description"))
		}
	}
}

// ended is what became of a request, nil if it ended as it should: by its time, or because the next message does not fit.
func ended(status, description string) error {
	if status == "408" || status == "404" || status == "409" && (description == "Message Size Exceeds MaxBytes" || description == "Batch Completed") {
		return nil
	}
	if status == "503" { // of the broker itself: there is no such durable, or nobody who leads it
		return nats.ErrNoResponders
	}
	return fmt.Errorf("the broker answers %s %s", status, description)
}

// close ends the inbox. What may still be on its way to it is taken.
func (r *requests) close(take func(*nats.Msg)) {
	for end := time.Now().Add(lateFor); ; {
		m, err := r.sub.NextMsg(time.Until(end))
		if err != nil {
			break
		}
		if m.Reply != "" {
			take(m)
		}
	}
	_ = r.sub.Unsubscribe() // fails where the connection is closed
}
