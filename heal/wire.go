package heal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
)

// Subject is where a consumer answers auditors.
func Subject(consumer string) string { return "oncebox.heal." + consumer }

// A question to a consumer, of what it had of a source.
type question struct {
	Op     string   `json:"op"` // state, digests, entries, find, mark
	Source string   `json:"source"`
	From   int64    `json:"from,omitempty"` // the bucket, where there is one
	To     int64    `json:"to,omitempty"`
	IDs    []string `json:"ids,omitempty"`
}

type answer struct {
	Error   string   `json:"error,omitempty"`
	State   *state   `json:"state,omitempty"`
	Digests []Digest `json:"digests,omitempty"`
	Entries []Entry  `json:"entries,omitempty"`
}

// A state is how a consumer stands.
type state struct {
	// Acknowledged: what stands in the stream at or below was acknowledged.
	Acknowledged uint64 `json:"acknowledged"`
	// CompleteSince: of what was handled since then there is an inbox row. Zero: of everything.
	CompleteSince time.Time `json:"complete_since,omitzero"`
	// ExpectsFrom: events written before are not the consumer's.
	ExpectsFrom time.Time `json:"expects_from,omitzero"`
	Topics      []string  `json:"topics,omitempty"`
	Mark        int64     `json:"mark"`
	Dead        int64     `json:"dead"` // letters that nobody has retried or dropped
}

const (
	// digestsAtOnce and idsAtOnce keep an answer below a message's size.
	digestsAtOnce = 5000
	idsAtOnce     = 5000
)

// A peer is a consumer's side of a book, asked over NATS.
type peer struct {
	nc               *nats.Conn
	consumer, source string
	timeout          time.Duration
}

func (p peer) ask(ctx context.Context, q question) (answer, error) {
	var a answer
	q.Source = p.source
	body, err := json.Marshal(q)
	if err != nil {
		return a, err
	}
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	m, err := p.nc.RequestWithContext(ctx, Subject(p.consumer), body)
	if err != nil {
		return a, fmt.Errorf("ask %s: %w", p.consumer, err)
	}
	if err := json.Unmarshal(m.Data, &a); err != nil {
		return a, fmt.Errorf("read the answer of %s: %w", p.consumer, err)
	}
	if a.Error != "" {
		return a, fmt.Errorf("%s answers: %s", p.consumer, a.Error)
	}
	return a, nil
}

func (p peer) state(ctx context.Context) (state, error) {
	a, err := p.ask(ctx, question{Op: "state"})
	if err != nil {
		return state{}, err
	}
	if a.State == nil {
		return state{}, errors.New(p.consumer + " did not tell its state")
	}
	return *a.State, nil
}

// Digests implements [Book].
func (p peer) Digests(ctx context.Context, from, to int64) ([]Digest, error) {
	var all []Digest
	for {
		a, err := p.ask(ctx, question{Op: "digests", From: from, To: to})
		if err != nil {
			return nil, err
		}
		all = append(all, a.Digests...)
		if len(a.Digests) < digestsAtOnce {
			return all, nil
		}
		from = all[len(all)-1].Bucket + 1
	}
}

// Entries implements [Book].
func (p peer) Entries(ctx context.Context, bucket int64) ([]Entry, error) {
	a, err := p.ask(ctx, question{Op: "entries", From: bucket})
	return a.Entries, err
}

// Find implements [Book]. It takes idsAtOnce ids at most.
func (p peer) Find(ctx context.Context, ids []string) ([]Entry, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	a, err := p.ask(ctx, question{Op: "find", IDs: ids})
	return a.Entries, err
}

func (p peer) mark(ctx context.Context, bucket int64) error {
	_, err := p.ask(ctx, question{Op: "mark", From: bucket})
	return err
}
