package page

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"
)

// A run is everything since the last reset. Its customers' names keep it apart from what was before.
type run struct {
	id       string
	settings Settings
	intents  []*intent
	poisons  int
	tries    int // as the link counts them
	lost     int

	published map[string]bool // ids of its events that stand in the stream
	copies    int             // messages there whose id came before

	cancel context.CancelFunc
	ctx    context.Context
	seen   sight
}

// An intent is one press of Pay: somebody who wants to pay once.
type intent struct {
	Number   int     `json:"n"`
	Key      string  `json:"key"` // the last try's
	Keyed    bool    `json:"keyed"`
	Tries    []Try   `json:"tries"`
	Done     bool    `json:"done"`     // no try will follow
	Answered bool    `json:"answered"` // else, when done, the client does not know
	Account  account `json:"account"`

	version uint64
}

// An account is what the databases hold of an intent.
type account struct {
	Orders  int   `json:"orders"`
	Paid    int   `json:"paid"`
	Charges int   `json:"charges"`
	Money   int64 `json:"money"`
	Naive   int   `json:"naive"`

	NaiveMoney int64 `json:"-"`
}

func newRun(s Settings) *run {
	r := &run{id: uuid.NewString()[:8], settings: s, published: map[string]bool{}}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r
}

// customers is what the names of this run's customers begin with, as SQL is asked for them.
func (r *run) customers() string { return Customers + r.id + "-" }

// number is which intent a customer is, 0 if it is none of this run.
func (r *run) number(customer string) int {
	n, err := strconv.Atoi(strings.TrimPrefix(customer, r.customers()))
	if err != nil || n > len(r.intents) {
		return 0
	}
	return n
}

// errFull refuses what would be too much to show.
var errFull = fmt.Errorf("a run has at most %d intents: reset first", maxIntents)

// Pay adds n intents, which are tried in the background.
func (p *Page) Pay(n int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.run
	if len(r.intents)+n > maxIntents {
		return errFull
	}
	for range n {
		in := &intent{Number: len(r.intents) + 1, Keyed: r.settings.Keys, Tries: []Try{}, version: p.version + 1}
		r.intents = append(r.intents, in)
		go p.pay(r, in, r.settings)
	}
	p.touch()
	return nil
}

func (p *Page) pay(r *run, in *intent, s Settings) {
	select {
	case p.slots <- struct{}{}:
	case <-r.ctx.Done():
		return
	}
	err := p.Buy(r.ctx, r.id, s, in.Number)
	<-p.slots
	p.mu.Lock()
	defer p.mu.Unlock()
	in.Done, in.Answered = true, err == nil
	in.version = p.version + 1
	p.touch()
}

// Observe hears of the tries at the link.
func (p *Page) Observe(t Try) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.run
	if t.Client != Customers || t.Run != r.id || t.Intent < 1 || t.Intent > len(r.intents) {
		return // of another run, or a stranger's
	}
	in := r.intents[t.Intent-1]
	i := slices.IndexFunc(in.Tries, func(o Try) bool { return o.Attempt == t.Attempt })
	if i < 0 {
		r.tries++
		in.Tries = append(in.Tries, t)
	} else {
		in.Tries[i] = t
	}
	if t.Lost {
		r.lost++
	}
	in.Key = t.Key
	in.version = p.version + 1
	p.touch()
}

// Set changes the settings of the intents to come.
func (p *Page) Set(s Settings) error {
	if s.Loss < 0 || s.Loss > 90 {
		return errors.New("loss must be from 0 to 90")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.set(s)
	return nil
}

func (p *Page) set(s Settings) {
	p.run.settings = s
	p.SetFate(s)
	p.touch()
}

// Reset ends the run and begins an empty one with the same settings.
func (p *Page) Reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reset(p.run.settings)
}

func (p *Page) reset(s Settings) {
	p.run.cancel()
	before := p.run.seen
	p.run = newRun(s)
	p.run.seen.NATSAnswers, p.run.seen.DatabasesAnswer = before.NATSAnswers, before.DatabasesAnswer
	p.set(s)
}
