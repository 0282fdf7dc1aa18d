package page

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// errBusy refuses a second fault or chapter: which of the two did it nobody could tell.
var errBusy = errors.New("something is under way: wait for its outcome")

// outcomeLimit ends a fault or chapter whose system does not come to rest.
const outcomeLimit = 3 * time.Minute

// begin does f in the background and notes its outcome.
func (p *Page) begin(kind, id, title string, f func(context.Context) (string, error)) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.busy != "" {
		return errBusy
	}
	p.busy = id
	p.lastOutcome++
	o := Outcome{ID: p.lastOutcome, Kind: kind, Of: id, Title: title, State: "running", At: time.Now()}
	p.outcomes = append(p.outcomes, o)
	if len(p.outcomes) > maxOutcomes {
		p.outcomes = p.outcomes[1:]
	}
	p.touch()
	go func() {
		ctx, cancel := context.WithTimeout(p.ctx, outcomeLimit)
		defer cancel()
		text, err := guarded(ctx, f)
		p.mu.Lock()
		defer p.mu.Unlock()
		p.busy = ""
		for i := range p.outcomes {
			if p.outcomes[i].ID != o.ID {
				continue
			}
			p.outcomes[i].Text, p.outcomes[i].State = text, "ok"
			switch {
			case errors.Is(err, errMissed):
				p.outcomes[i].State = "missed"
			case err != nil:
				p.outcomes[i].Text, p.outcomes[i].State = text+" "+err.Error(), "failed"
			}
		}
		p.touch()
	}()
	return nil
}

func guarded(ctx context.Context, f func(context.Context) (string, error)) (text string, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	return f(ctx)
}
