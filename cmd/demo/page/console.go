package page

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/oncebox/oncebox/billing"
	"github.com/oncebox/oncebox/inbox"
	"github.com/oncebox/oncebox/orders"
	"github.com/oncebox/oncebox/outbox"
)

const (
	// deskPause is how often the services are asked for what an operator wants to know.
	deskPause = time.Second
	// shownLetters is how many letters and parked events of a service the console shows; its actions by filter know no limit.
	shownLetters = 50
)

// A desk is what an operator sees of one service, as its admin listener tells.
type desk struct {
	Name      string  `json:"name"`
	Answers   bool    `json:"answers"` // if not, the rest is of before
	Leading   bool    `json:"leading"`
	Epoch     int64   `json:"epoch"`
	Backlog   int64   `json:"backlog"`   // committed events that are not in the stream
	OldestFor float64 `json:"oldestFor"` // seconds since the oldest of them was written
	Pending   int     `json:"pending"`   // messages that it was not handed yet
	Unacked   int     `json:"unacked"`   // handed to it and not acknowledged
	Again     int     `json:"again"`     // redeliveries since its start
	Stopped   int     `json:"stopped"`   // of them stopped by the inbox

	Letters []letter `json:"letters"`
	More    bool     `json:"more"` // there are more letters than are shown
	Parked  []parked `json:"parked"`
}

// A letter is a dead one as it is shown: without headers and payload.
type letter struct {
	N        int64     `json:"n"`
	Event    string    `json:"event"`
	Topic    string    `json:"topic"`
	Key      string    `json:"key"`
	Class    string    `json:"class"`
	Reason   string    `json:"reason"`
	Attempts int       `json:"attempts"`
	At       time.Time `json:"at"`
}

// A parked event is one that the stream can never hold.
type parked struct {
	Seq    int64     `json:"seq"`
	Event  string    `json:"event"`
	Topic  string    `json:"topic"`
	Key    string    `json:"key"`
	Reason string    `json:"reason"`
	Waits  bool      `json:"waits"`
	Asked  bool      `json:"asked"`
	At     time.Time `json:"at"`
}

// watchDesks asks both services, each second, until ctx is done.
func (p *Page) watchDesks(ctx context.Context) {
	t := time.NewTicker(deskPause)
	defer t.Stop()
	for {
		p.lookAtDesks(ctx)
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

func (p *Page) lookAtDesks(ctx context.Context) {
	p.mu.Lock()
	desks := append([]desk{}, p.desks...)
	p.mu.Unlock()
	metrics := make([]Metrics, len(p.lab.Admins))
	var asked sync.WaitGroup
	for i, a := range p.lab.Admins {
		asked.Go(func() {
			desks[i].Name = a.Name
			desks[i].Answers = within(ctx, func(ctx context.Context) (err error) {
				metrics[i], err = desks[i].ask(ctx, a)
				return err
			}) == nil
		})
	}
	asked.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	if seen := p.run.seen; seen.NATSAnswers { // the services ask JetStream less often
		for i := range desks {
			switch desks[i].Name {
			case orders.Name:
				desks[i].Pending, desks[i].Unacked = seen.Answers-seen.AnswersInHand, seen.AnswersInHand
			case billing.Name:
				desks[i].Pending, desks[i].Unacked = seen.Waiting, seen.InHand
			}
		}
	}
	p.desks = desks
	p.history.add(time.Now(), metrics, desks)
	p.touch()
}

// ask changes what it is told.
func (d *desk) ask(ctx context.Context, a Admin) (Metrics, error) {
	m, err := a.Metrics(ctx)
	if err != nil {
		return nil, err
	}
	var status outbox.Status
	if err := a.ask(ctx, http.MethodGet, "/relay", nil, &status); err != nil {
		return nil, err
	}
	var events []outbox.ParkedEvent
	if err := a.ask(ctx, http.MethodGet, "/relay/parked", nil, &events); err != nil {
		return nil, err
	}
	var list struct {
		Letters []inbox.Letter `json:"letters"`
		Next    int64          `json:"next"`
	}
	if err := a.ask(ctx, http.MethodGet, "/dead-letters", url.Values{"limit": {fmt.Sprint(shownLetters)}}, &list); err != nil {
		return nil, err
	}
	d.Leading, d.Epoch, d.Backlog, d.OldestFor = status.Leading, status.Epoch, status.Backlog, 0
	if !status.OldestUnsent.IsZero() {
		d.OldestFor = max(0, time.Since(status.OldestUnsent).Seconds())
	}
	d.Pending, d.Unacked = int(m.Sum("oncebox_subscriber_pending", "", "")), int(m.Sum("oncebox_subscriber_unacked", "", ""))
	d.Again, d.Stopped = int(m.Sum("oncebox_subscriber_redelivered_total", "", "")), int(m.Sum("oncebox_inbox_noops_total", "", ""))
	d.Letters, d.More, d.Parked = []letter{}, list.Next > 0, []parked{}
	for _, l := range list.Letters {
		d.Letters = append(d.Letters, letter{l.N, l.MessageID, l.Topic, l.Key, l.Class, l.Reason, l.Attempts, l.FirstSeen})
	}
	for _, e := range events[:min(len(events), shownLetters)] {
		d.Parked = append(d.Parked, parked{e.Seq, e.ID, e.Type, e.Key, e.Reason, e.Waits, e.Asked, e.ParkedAt})
	}
	return m, nil
}

// An order is what an operator has done with letters or parked events: one, or all that the filter selects.
type order struct {
	Service string `json:"service"`
	Kind    string `json:"kind"` // letter, parked
	Do      string `json:"do"`   // retry, drop
	N       int64  `json:"n"`    // 0: all letters of Class, which may be "" for each
	Class   string `json:"class"`
}

// operate has the service do it, and returns what it said.
func (p *Page) operate(ctx context.Context, o order) (string, error) {
	if o.Do != "retry" && o.Do != "drop" {
		return "", errUnknown
	}
	for _, a := range p.lab.Admins {
		if a.Name != o.Service {
			continue
		}
		text, err := o.send(ctx, a)
		p.lookAtDesks(ctx)
		return text, err
	}
	return "", errUnknown
}

func (o order) send(ctx context.Context, a Admin) (string, error) {
	done := map[string]string{"retry": "retried", "drop": "dropped"}[o.Do]
	switch {
	case o.Kind == "letter" && o.N > 0:
		err := a.ask(ctx, http.MethodPost, fmt.Sprintf("/dead-letters/%d/%s", o.N, o.Do), nil, nil)
		return fmt.Sprintf("Dead letter %d of %s is %s.", o.N, a.Name, done), err
	case o.Kind == "letter":
		q := url.Values{"all": {"true"}}
		if o.Class != "" {
			q = url.Values{"class": {o.Class}}
		}
		var report struct{ Retried, Failed, Dropped int }
		err := a.ask(ctx, http.MethodPost, "/dead-letters/"+o.Do, q, &report)
		return fmt.Sprintf("Dead letters of %s: %d %s, %d failed again.", a.Name, report.Retried+report.Dropped, done, report.Failed), err
	case o.Kind == "parked" && o.N > 0:
		err := a.ask(ctx, http.MethodPost, fmt.Sprintf("/relay/parked/%d/%s", o.N, o.Do), nil, nil)
		return fmt.Sprintf("The relay of %s is asked to %s event %d.", a.Name, o.Do, o.N), err
	}
	return "", errUnknown
}

// operated answers an order with what the service said. That it refused is an answer too, and no error of this page, which a
// browser would report to its console.
func (p *Page) operated(w http.ResponseWriter, r *http.Request) {
	var o order
	if !decode(w, r, &o) {
		return
	}
	text, err := p.operate(r.Context(), o)
	if refused, ok := errors.AsType[*refusal](err); ok {
		text, err = refused.text, nil
	}
	if err != nil {
		answer(w, err)
		return
	}
	_, _ = w.Write([]byte(text))
}
