package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncebox/oncebox"
)

// A Relay stores what was committed to an outbox in a sink. Any number may run on one database: one of a name is active, by
// lease, and the others stand by.
type Relay struct {
	pool    *pgxpool.Pool
	sink    Sink
	cfg     RelayConfig
	log     *slog.Logger
	queries queries
	metrics *relayMetrics
	wake    chan string // what caused it
	vacant  chan struct{}
	leading atomic.Bool

	// Of the goroutine in Run, while it leads:
	cursor     *cursor
	pos        position
	created    time.Time      // of the log
	last       uint64         // the log's last position, as far as this chain of writes knows
	stored     map[string]int // ids that the log held behind the saved cursor when it was opened, and how often
	isOpen     bool           // the sink is, and pos says how far it came
	opened     int64          // the newest tick then: behind it no id of stored can come
	openedAt   position       // and where the relay was then
	onWay      onWay
	fresh      []oncebox.Event // of the page that is being sent
	parked     parkedRows
	highest    int64 // seq of the rounds sent
	passed     int   // rows of the round that the log was seen to hold
	saved      position
	savedAt    time.Time
	retainedAt time.Time
	dueAt      time.Time
}

// NewRelay returns a Relay, or an error that names the option that is wrong. It does not touch the database.
func NewRelay(pool *pgxpool.Pool, sink Sink, cfg RelayConfig) (*Relay, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if _, ok := sink.(Reporter); cfg.RequireDurable && !ok {
		return nil, errors.New("outbox: RelayConfig.RequireDurable is set, and the sink does not say whether it is durable")
	}
	r := &Relay{
		pool: pool, sink: sink, cfg: cfg, log: cfg.Logger.With("cursor", cfg.Name),
		queries: newQueries(cfg.Schema, topicsPattern(cfg.Topics)), wake: make(chan string, 1), vacant: make(chan struct{}, 1),
	}
	r.metrics = newRelayMetrics(r)
	return r, nil
}

// Wake tells the relay that something was committed, so that it looks at once. It never blocks; calls before the next look
// are one.
func (r *Relay) Wake() { r.wakeFor("commit") }

// Pinged is [Relay.Wake] on the word of another process.
func (r *Relay) Pinged() { r.wakeFor("ping") }

func (r *Relay) wakeFor(cause string) {
	select {
	case r.wake <- cause:
	default:
	}
}

// Leading says whether this relay holds the lease, as far as it knows. Where it does not, a commit here is to wake another.
func (r *Relay) Leading() bool { return r.leading.Load() }

// Vacant tells a relay that stands by, on the word of another process, that the lease was given up: it tries to take it at once, rather than
// at its next look. See [RelayConfig.Released]. It never blocks.
func (r *Relay) Vacant() {
	select {
	case r.vacant <- struct{}{}:
	default:
	}
}

// Run relays until ctx is done; then it sends what is committed by then, saves the cursor, gives the lease up, and returns
// nil. Outages of the database or the sink are logged and tried again for as long as it takes: nothing is skipped. It returns
// an error at once where trying again cannot help: a sequence with a cache, a log that is not durable and has to be,
// tables of another cluster. Run
// must not be called twice.
func (r *Relay) Run(ctx context.Context) error {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown host"
	}
	r.cursor = newCursor(r.pool, r.cfg.Schema, r.cfg.Name, topicsPattern(r.cfg.Topics), host+" "+uuid.NewString(), r.cfg.Lease)
	watching, stop := context.WithCancel(ctx)
	defer stop()
	go r.watch(watching)
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = r.cfg.MinPoll, r.cfg.MaxPoll
	for {
		err := r.lead(ctx, pause.Reset)
		var fatal *setupError
		switch {
		case errors.As(err, &fatal):
			return err
		case ctx.Err() != nil:
			if err != nil {
				r.log.Warn("relay: stopped before all was sent; the next one goes on", "error", err)
			}
			return nil
		case err != nil:
			r.metrics.failures.Inc()
			r.log.Error("relay: trying again", "error", err)
		}
		if !r.idle(ctx, pause.NextBackOff()) {
			return nil
		}
	}
}

// idle waits for d or the end of ctx, which it reports by false.
func (r *Relay) idle(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// lead waits for the lease, resumes where the cursor stands, and relays round by round until ctx is done, an error comes, or
// the lease is lost. It calls progress whenever something worked.
func (r *Relay) lead(ctx context.Context, progress func()) error {
	if err := r.checkSequence(ctx); err != nil {
		return err
	}
	if err := r.cursor.create(ctx, r.cfg.Schema); err != nil {
		return err
	}
	var created *time.Time
	for {
		var ok bool
		var err error
		if r.pos, created, ok, err = r.cursor.acquire(ctx); err != nil {
			end, done := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer done()
			return errors.Join(err, r.cursor.release(end))
		}
		if ok {
			break
		}
		select {
		case <-ctx.Done():
			return nil
		case <-r.vacant:
		case <-time.After(min(r.cfg.Lease/3, r.cfg.MaxPoll)):
		}
	}
	// From here on the work goes on for a while after ctx is done, to send what is committed by then.
	work, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	defer context.AfterFunc(ctx, func() {
		time.AfterFunc(r.cfg.DrainTimeout, func() { cancel(fmt.Errorf("not all was sent within %s", r.cfg.DrainTimeout)) })
	})()
	r.leading.Store(true)
	r.metrics.leading.Set(1)
	r.metrics.epoch.Set(float64(r.cursor.epoch))
	defer func() {
		r.leading.Store(false)
		r.metrics.leading.Set(0)
	}()
	r.created = time.Time{}
	if created != nil {
		r.created = *created
	}
	r.isOpen, r.retainedAt = false, time.Now()
	err := r.relay(ctx, work, progress)
	if errors.Is(err, errFenced) {
		return err
	}
	end, done := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer done()
	if work.Err() != nil {
		err = context.Cause(work)
	}
	if r.isOpen && r.safe() != r.saved {
		err = errors.Join(err, r.save(end)) // how far it came
	}
	err = errors.Join(err, r.cursor.release(end))
	if r.cfg.Released != nil {
		r.cfg.Released()
	}
	return err
}

func (r *Relay) relay(ctx, work context.Context, progress func()) error {
	if err := r.checkCluster(work); err != nil {
		return err
	}
	if err := r.loadParked(work); err != nil {
		return err
	}
	if err := r.openSink(work); err != nil {
		return err
	}
	r.isOpen = true
	if err := r.checkDurable(); err != nil {
		return err
	}
	r.log.Info("relay: leading", "epoch", r.cursor.epoch, "round", r.pos.n, "seq", r.pos.seq, "stream_seq", r.pos.stream,
		"read_back", len(r.stored))
	pause, woken := r.cfg.MinPoll, false
	for {
		stopping, tick := ctx.Err() != nil, r.cursor.newest // asked before the look: what is committed by now is found by it
		sent, err := r.runOnce(work, woken)
		if err != nil {
			return err
		}
		woken = false
		progress()
		switch {
		case stopping && (!sent || r.cursor.newest > tick): // what comes behind that tick is for the next relay
			return nil
		case sent:
			pause = r.cfg.MinPoll
			continue
		}
		if err := r.whileIdle(work); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
		case cause := <-r.wake:
			r.metrics.wakeups.WithLabelValues(cause).Inc()
			pause, woken = r.cfg.MinPoll, true
		case <-time.After(min(pause, r.cfg.Lease/3)):
			r.metrics.wakeups.WithLabelValues("poll").Inc()
			pause = min(2*pause, r.cfg.MaxPoll)
		}
	}
}

// whileIdle saves how far the relay came, renews the lease, and looks whether the log still holds what was stored. Nothing else is
// written while nothing happens.
func (r *Relay) whileIdle(ctx context.Context) error {
	if r.safe() != r.saved {
		return r.saveIfDue(ctx)
	}
	if time.Since(r.savedAt) <= r.cfg.Lease/3 {
		return nil
	}
	if err := r.checkTail(ctx); err != nil {
		return err
	}
	return r.save(ctx)
}

// runOnce sends the next round that has rows, making one where there is none; false says that nothing is new. What is to be done between
// rounds comes before it; when it was woken, after it.
func (r *Relay) runOnce(ctx context.Context, woken bool) (sent bool, err error) {
	for r.pos.n <= r.cursor.newest {
		b, err := findBounds(ctx, r.queries, r.cursor, r.pos.n)
		if err != nil {
			return false, err
		}
		if err := r.round(ctx, b); err != nil || !b.empty() {
			return true, err
		}
	}
	if !woken { // as the first look never is: what was read back is forgotten before it, and the position in the log is its end
		if err := r.betweenRounds(ctx); err != nil {
			return false, err
		}
	}
	b, err := r.cursor.tickIfNew(ctx, r.pos.stream)
	switch {
	case err != nil:
		return false, err
	case b == nil && woken:
		return false, r.betweenRounds(ctx)
	case b == nil:
		return false, nil
	}
	r.metrics.rounds.Inc()
	if b.empty() {
		return false, errors.New("rows are there that no snapshot shows: were they restored into another cluster?")
	}
	return true, r.round(ctx, b)
}

// betweenRounds is called when every row of every tick is stored, and nothing is on its way.
func (r *Relay) betweenRounds(ctx context.Context) error {
	if err := r.unpark(ctx); err != nil {
		return err
	}
	if err := r.releaseDue(ctx); err != nil {
		return err
	}
	if len(r.stored) > 0 && r.pos.n > r.opened {
		r.forgetStored()
	}
	if time.Since(r.retainedAt) > r.cfg.RetainEvery {
		r.retainedAt = time.Now()
		if err := r.retain(ctx); err != nil {
			r.log.Warn("relay: retention has to wait", "error", err)
		}
	}
	return nil
}

// round sends what is left of round pos.n and goes on to the next. The position is saved only when it is time to: a round may be one row,
// and a takeover makes empty ones by the thousands.
func (r *Relay) round(ctx context.Context, b *bounds) error {
	rd := newRound(r.queries, r.cursor, b, r.pos.seq, int64(r.cfg.Page), int64(r.cfg.PageBytes))
	reading, stop := context.WithCancel(ctx)
	pages := rd.pages(reading)
	defer func() {
		stop()
		for range pages { // until the reader has given its connection back
		}
	}()
	first := int64(0)
	r.passed = 0
	for page := range pages {
		if page.err != nil {
			return page.err
		}
		if first == 0 {
			first = page.rows[0].Seq
		}
		if err := r.send(ctx, page.rows); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil { // the reader may have ended for that
		return err
	}
	if err := r.flush(ctx); err != nil {
		return err
	}
	// A seq below that of a round before is what a cursor at the greatest seq would lose.
	if !b.empty() {
		r.log.Debug("relay: round", "n", r.pos.n, "late", rd.lateRows, "first", first, "last", r.pos.seq, "below", first < r.highest,
			"skipped", r.passed)
		r.highest = max(r.highest, r.pos.seq)
	}
	r.pos.n, r.pos.seq = r.pos.n+1, 0
	return r.saveIfDue(ctx)
}

// safe is the position that may be saved. While some of what the log holds is still to be skipped that is the one at which the log
// was read back: what was sent since stands behind it, and no other position of the log holds both.
func (r *Relay) safe() position {
	if len(r.stored) > 0 || r.onWay.skipped > 0 {
		return r.openedAt
	}
	return r.pos
}

// saveIfDue saves when it is time to, and so to renew the lease.
func (r *Relay) saveIfDue(ctx context.Context) error {
	if time.Since(r.savedAt) <= min(r.cfg.SaveEvery, r.cfg.Lease/3) {
		return nil
	}
	return r.save(ctx)
}

func (r *Relay) save(ctx context.Context) error {
	// Taken before the write: a slow save does not put off the next renewal of the lease.
	now, pos := time.Now(), r.safe()
	if err := r.cursor.save(ctx, pos, r.created); err != nil {
		return err
	}
	r.saved, r.savedAt = pos, now
	return nil
}
