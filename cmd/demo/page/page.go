// Package page serves the Duplicate Slayer: a page on which one pays, loses replies, kills processes, and reads in the
// services' own databases and in JetStream what became of the money. The browser shows numbers and makes none.
package page

import (
	"context"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/redis/go-redis/v9"
)

const (
	// Customers is what the names of the page's customers begin with; the run's id and the intent's number come next.
	Customers = "slayer-"
	// Application is the application_name of the demo's own connections to Postgres: no fault cuts them.
	Application = "oncebox demo"
	// Price is what each intent is to pay, in cents.
	Price = 100_00
)

// A Lab is what the page looks at and has power over.
type Lab struct {
	Orders, Billing, Naive *pgxpool.Pool
	Super                  *pgxpool.Pool // on the same server, as a superuser
	JetStream              jetstream.JetStream

	OrdersProcess, BillingProcess, NaiveProcess Process // not with Containers
	NaiveDurable                                string

	// NaiveWriter commits an order and then publishes its event, for as long as it lives. A chapter starts and kills it.
	NaiveWriter Process

	// Containers: the processes are not ours to kill. OwnNATS: the server is ours to pause.
	Containers, OwnNATS     bool
	PauseNATS, ContinueNATS func() error
	// CopyNATS stops the server, copies its store and starts it again; putBack does the same with the copy in the store's place.
	CopyNATS func(context.Context) (putBack func(context.Context) error, err error)

	// CutPostgres cuts the services' way to their databases for a while; nil: it does not go through here.
	CutPostgres func(context.Context, time.Duration) error

	Redis     *redis.Client               // nil: there is none
	LoseRedis func(context.Context) error // kills it, and starts it with nothing in it
	APIKey    string                      // of orders; "" where it asks for none

	// Admins are the services' admin listeners, those of orders and billing.
	Admins []Admin
}

// A power is what a fault or chapter must have to do its work.
type power int

const (
	processes power = 1 << iota
	broker
	wire
	writer // to the stream of orders
)

// lacks says why something that needs these powers cannot be had, "" if it can.
func (l Lab) lacks(needs power) string {
	switch {
	case needs&processes != 0 && l.Containers:
		return "The services run in containers, and the page has no power over those."
	case needs&broker != 0 && l.Containers:
		return "NATS runs in a container, and the page has no power over that."
	case needs&broker != 0 && !l.OwnNATS:
		return "The server was given by NATS_URL: the demo has no power over it."
	case needs&wire != 0 && l.CutPostgres == nil:
		return "The services' way to Postgres does not go through the demo here."
	case needs&writer != 0 && l.Containers:
		return "NATS lets orders write to its stream, and nobody else."
	}
	return ""
}

// A Process is one that may be killed and started again. Start returns when it serves.
type Process struct {
	Name                  string
	Pid                   func() int
	Alive                 func() bool
	Kill, Pause, Continue func() error
	Start                 func(context.Context) error
}

// Settings are what a visitor sets. A run is a function of them and of what is pressed.
type Settings struct {
	Seed    uint64 `json:"seed"`
	Loss    int    `json:"loss"` // percent of the replies, 0 to 90
	Keys    bool   `json:"keys"`
	Retries bool   `json:"retries"`
}

// A Try is one request as the link saw it: Status is 0 until the service has answered. Lost says that this answer never came
// to the client.
type Try struct {
	Client   string `json:"-"`
	Run      string `json:"-"`
	Intent   int    `json:"-"`
	Attempt  int    `json:"attempt"`
	Key      string `json:"-"`
	Status   int    `json:"status"`
	Replayed bool   `json:"replayed,omitempty"`
	Lost     bool   `json:"lost,omitempty"`
}

// A Page is the page and all that it shows. Buy, SetFate and LinkURL are set before Run and Handler are used.
type Page struct {
	// Buy tries one intent of a run until it has an answer or may not try again.
	Buy func(ctx context.Context, run string, s Settings, intent int) error
	// SetFate decides by s.Seed and s.Loss which replies are lost from now on.
	SetFate func(s Settings)
	// LinkURL leads to orders and loses replies.
	LinkURL string

	lab   Lab
	slots chan struct{} // intents that are tried at once

	mu          sync.Mutex
	ctx         context.Context // of Run
	run         *run
	natsStill   bool      // paused by a fault or chapter
	busy        string    // the fault or chapter that is under way
	outcomes    []Outcome // newest last
	lastOutcome int
	desks       []desk
	history     history
	passed      *passages
	changed     chan struct{} // closed at the next change
	version     uint64
}

// An Outcome is what came of a fault or a chapter, in words with the numbers that were counted.
type Outcome struct {
	ID    int       `json:"id"`
	Kind  string    `json:"kind"` // fault, chapter
	Of    string    `json:"of"`   // its id
	Title string    `json:"title"`
	Text  string    `json:"text"`
	State string    `json:"state"` // running, ok, failed; missed: the fault did not fire, or not all of it
	At    time.Time `json:"at"`
}

const (
	workers     = 16
	maxIntents  = 5000
	maxOutcomes = 30
)

// New returns a page with an empty run.
func New(lab Lab, s Settings) *Page {
	return &Page{lab: lab, slots: make(chan struct{}, workers), run: newRun(s), desks: make([]desk, len(lab.Admins)),
		passed: newPassages(), changed: make(chan struct{})}
}

// Run looks at the databases, JetStream and the processes until ctx is done.
func (p *Page) Run(ctx context.Context) error {
	p.mu.Lock()
	p.ctx = ctx
	p.SetFate(p.run.settings)
	p.mu.Unlock()
	stop, err := p.watch(ctx)
	if err != nil {
		return err
	}
	defer stop()
	desks := make(chan struct{})
	go func() { defer close(desks); p.watchDesks(ctx) }()
	defer func() { <-desks }()
	t := time.NewTicker(lookPause)
	defer t.Stop()
	for {
		p.look(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

// touch tells the listeners. p.mu is held.
func (p *Page) touch() {
	p.version++
	close(p.changed)
	p.changed = make(chan struct{})
}
