package page

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// A Chapter is a lesson: it resets, sets the controls, does what its reader could do by hand, waits until all has come to rest
// and tells what was counted. Its error is a lesson that did not hold. To add one is to add it to the list.
type Chapter struct {
	ID     string `json:"id"`
	Title  string `json:"title"`
	Lesson string `json:"lesson"`
	Guess  string `json:"guess"`

	Off string `json:"off,omitempty"` // why it cannot be had here

	set   Settings
	needs power
	tell  func(*Page, context.Context) (string, error)
}

const chapterSeed = 42

var chapters = []Chapter{
	{ID: "lost-reply", Title: "The lost reply", set: Settings{Seed: chapterSeed, Loss: 40},
		Lesson: "A lost reply is not a failure. It is not knowing: the order may stand.",
		Guess:  "20 clients pay once each and never try again. 40 % of the replies are lost. How many are charged?",
		tell: func(p *Page, ctx context.Context) (string, error) {
			s, err := p.payAndSettle(ctx, 20)
			return fmt.Sprintf("%d of 20 heard nothing, and %d of 20 were charged.", s.Unknown, s.Charges),
				errors.Join(err, hold(s.Charges == 20 && s.Unknown > 0))
		}},
	{ID: "exactly-once", Title: "Why “exactly once” is a lie", set: Settings{Seed: chapterSeed, Loss: 40, Retries: true},
		Lesson: "Who may not know has two choices: stop, and perhaps it never happened; or try again, and perhaps it happens twice.",
		Guess:  "50 clients try until they hear. Each try is a new request. How many charges?",
		tell: func(p *Page, ctx context.Context) (string, error) {
			s, err := p.payAndSettle(ctx, 50)
			return fmt.Sprintf("%d charges for 50 intents: %d too many. Expected were 1/(1−0.4) = 1.67 each, seen %.2f.",
				s.Charges, s.Twice, float64(s.Charges)/50), errors.Join(err, hold(s.Twice > 0))
		}},
	{ID: "keys", Title: "Idempotency keys", set: Settings{Seed: chapterSeed, Loss: 40, Keys: true, Retries: true},
		Lesson: "The client names what it wants, once, and sends the name with each try. The order and its key commit together.",
		Guess:  "The same 50 clients, the same loss, each with a key. How many charges?",
		tell: func(p *Page, ctx context.Context) (string, error) {
			s, err := p.payAndSettle(ctx, 50)
			p.mu.Lock()
			tries := p.run.tries
			p.mu.Unlock()
			return fmt.Sprintf("%d requests, %d charges for 50 intents.", tries, s.Charges),
				errors.Join(err, hold(s.Charges == 50 && s.Twice == 0 && tries > 50))
		}},
	{ID: "unique", Title: "The unique constraint", set: Settings{Seed: chapterSeed, Keys: true, Retries: true}, tell: (*Page).constraintRace,
		Lesson: "“Is the key there? Then insert it” has a gap in the middle. A unique constraint has none.",
		Guess:  "One key, 20 requests at the same moment: how many rows by check-then-act, how many orders under the constraint?"},
	{ID: "redis", Title: "Check, then act; and Redis with Lua", set: Settings{Seed: chapterSeed, Keys: true, Retries: true}, tell: (*Page).redisRace,
		Lesson: "GET, then SET has the same gap. A script closes it, for as long as Redis remembers: behind it stands the constraint.",
		Guess:  "20 at once by GET and SET, by a script, and by the script after a kill of Redis. How many get through each time?"},
	{ID: "deletes", Title: "Soft against hard delete", set: Settings{Seed: chapterSeed, Keys: true, Retries: true}, tell: (*Page).deletes,
		Lesson: "What is deleted for good is forgotten: the delete's retry finds nothing, and the order's retry makes it again.",
		Guess:  "An order is deleted, twice. Then a retry of the order arrives, late. What is answered, and how many orders are there?"},
	{ID: "methods", Title: "Which HTTP methods are idempotent", set: Settings{Seed: chapterSeed, Keys: true, Retries: true}, tell: (*Page).methods,
		Lesson: "GET, PUT and DELETE say how things are to be, and may be said twice. POST says: one more. A key makes it one.",
		Guess:  "Each is sent twice: GET, PUT, DELETE, POST, POST with a key. Which of them does something the second time?"},
	{ID: "outbox", Title: "The dual write that loses, and the outbox", set: Settings{Seed: chapterSeed, Keys: true, Retries: true}, needs: processes | broker,
		Lesson: "Commit, then publish: who dies between the two has an order that nobody will hear of. The outbox commits both at once.",
		Guess:  "A naive writer is killed between its two writes. Orders takes 20 orders while NATS stands still. How many events are lost?",
		tell:   (*Page).dualWrite},
	{ID: "inbox", Title: "The inbox, and a redelivery", needs: processes, set: Settings{Seed: chapterSeed, Loss: 40, Keys: true, Retries: true},
		Lesson: "A broker delivers at least once. The message's id, unique and in the charge's own transaction, makes the rest harmless.",
		Guess:  "50 clients pay. Then the broker forgets what was acknowledged and sends everything again. How many charges?",
		tell: func(p *Page, ctx context.Context) (string, error) {
			if _, err := p.payAndSettle(ctx, 50); err != nil {
				return "", err
			}
			met, err := p.redeliver(ctx)
			if err != nil {
				return "", err
			}
			s, err := p.settle(ctx)
			return fmt.Sprintf("%s Billing charged %d times for 50 intents, the naive consumer %d times.", met, s.Charges, s.Naive),
				errors.Join(err, hold(s.Charges == 50 && s.Twice == 0 && s.NaiveTwice >= 50))
		}},
	{ID: "poison", Title: "Poison and dead letters", set: Settings{Seed: chapterSeed, Keys: true, Retries: true},
		Lesson: "What can never be handled must not come for ever, nor hold up what stands behind it.",
		Guess:  "A message that billing cannot handle, and 20 good ones behind it. How many are charged?",
		tell: func(p *Page, ctx context.Context) (string, error) {
			met, err := p.poison(ctx)
			if err != nil {
				return "", err
			}
			s, err := p.payAndSettle(ctx, 20)
			return fmt.Sprintf("%s All the same %d of 20 were charged.", met, s.Charges), errors.Join(err, hold(s.Charges == 20))
		}},
	{ID: "resend", Title: "The retry that nobody wrote", set: Settings{Seed: chapterSeed, Keys: true, Retries: true},
		Lesson: "HTTP clients and browsers send a request again by themselves when a kept connection dies. You retry, written or not.",
		Guess:  "One POST over a kept connection, which dies before the answer. How often does the service execute it?",
		tell:   (*Page).resend},
}

// errNotHeld is a lesson whose numbers are not those that it teaches.
var errNotHeld = errors.New("that is not what this chapter teaches")

func hold(held bool) error {
	if held {
		return nil
	}
	return errNotHeld
}

// errUnknown is a fault or chapter that is none.
var errUnknown = errors.New("there is no such thing")

// Chapters are all, and why some cannot be had here.
func (p *Page) Chapters() []Chapter {
	cs := slices.Clone(chapters)
	for i := range cs {
		cs[i].Off = p.lab.lacks(cs[i].needs)
		if cs[i].ID == "redis" && p.lab.Redis == nil {
			cs[i].Off = "There is no redis-server here."
		}
	}
	return cs
}

// Play begins the chapter in the background, on a run of its own.
func (p *Page) Play(id string) error {
	for _, c := range p.Chapters() {
		if c.ID == id {
			if c.Off != "" {
				return errors.New(c.Off)
			}
			return p.begin("chapter", c.ID, c.Title, func(ctx context.Context) (string, error) {
				p.mu.Lock()
				p.reset(c.set)
				p.mu.Unlock()
				return c.tell(p, ctx)
			})
		}
	}
	return errUnknown
}

func (p *Page) payAndSettle(ctx context.Context, n int) (Sums, error) {
	if err := p.Pay(n); err != nil {
		return Sums{}, err
	}
	return p.settle(ctx)
}

// payWithoutNATS has n intents answered while NATS stands still.
func (p *Page) payWithoutNATS(ctx context.Context, n int) (text string, err error) {
	if err := p.lab.PauseNATS(); err != nil {
		return "", err
	}
	p.natsStands(true)
	answered, err := p.answered(ctx, n)
	p.natsStands(false)
	if err := errors.Join(err, p.lab.ContinueNATS()); err != nil {
		return "", err
	}
	s, err := p.settle(ctx)
	return fmt.Sprintf("%d orders were accepted while NATS stood still, and %d charged once it went on.", answered, s.Charges),
		errors.Join(err, hold(answered == n && s.Charges == n))
}

// answered pays and waits until every client has its answer and the orders' database shows the orders.
func (p *Page) answered(ctx context.Context, n int) (int, error) {
	if err := p.Pay(n); err != nil {
		return 0, err
	}
	for {
		p.mu.Lock()
		s, changed := p.run.sums(), p.changed
		p.mu.Unlock()
		if s.Running == 0 && s.Orders == n {
			return s.Answered, nil
		}
		select {
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		case <-changed:
		}
	}
}
