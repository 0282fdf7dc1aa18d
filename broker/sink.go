package broker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/oncebox/oncebox"
)

// SinkConfig configures a [Sink].
type SinkConfig struct {
	// Timeout bounds each call to the broker, and how long none of the acknowledgements that are due may come before the
	// broker counts as away. Default 2 s.
	Timeout time.Duration
	// MaxInFlight bounds the bytes that are published and not yet acknowledged. One message may be larger. Default 4 MiB.
	MaxInFlight int
	// Sync says whether the servers sync to disk before they acknowledge (sync_interval: always): a client cannot ask its
	// server for that. Default [SyncUnknown].
	Sync Sync
	// MonitorURLs are the servers' monitoring addresses, such as http://127.0.0.1:8222, where Sync is unknown: a server says
	// there whether it syncs always. Default: none is asked.
	MonitorURLs []string
}

func (c SinkConfig) withDefaults() SinkConfig {
	if c.Timeout == 0 {
		c.Timeout = 2 * time.Second
	}
	if c.MaxInFlight == 0 {
		c.MaxInFlight = 4 << 20
	}
	return c
}

func (c SinkConfig) validate() error {
	if c.Timeout < 0 {
		return fmt.Errorf("broker: SinkConfig.Timeout is %s, below 0", c.Timeout)
	}
	if c.MaxInFlight < 0 {
		return fmt.Errorf("broker: SinkConfig.MaxInFlight is %d bytes, below 0", c.MaxInFlight)
	}
	return nil
}

// A Sink stores a relay's events in a stream that the relay owns: it creates the stream where it is missing, and is its only
// writer. It is an outbox.Sink, for one relay's goroutine.
//
// Each message, or atomic batch of messages, is published under the sequence that it must get, one behind the last
// (Nats-Expected-Last-Sequence), with several on their way at a time. So an older writer whose messages come late is refused
// by the stream itself, nothing can slip in between, and once one is refused all behind it are.
//
// Where the servers sync always, the events go in atomic batches, each of which is synced once; elsewhere, and where the
// stream takes no batches, one by one, which is faster there.
type Sink struct {
	nc       *nats.Conn
	js       jetstream.JetStream
	cfg      SinkConfig
	declared jetstream.StreamConfig

	stream    jetstream.Stream
	batches   bool   // rather than singles
	limit     int    // bytes of a message with its headers
	chain     *chain // since Open
	noSeq     uint64 // events stored since Open that took no sequence: the stream held them
	stuck     bool   // the chain before was refused at its first message
	carefully int    // events to store one by one, each looked at, before the chain goes on

	durability          atomic.Pointer[durability]
	refusals, fallbacks atomic.Uint64
}

// NewSink returns a Sink for the stream that declared declares; see [Stream]. It fails on a stream that could lose or reorder
// what a relay stores, and names the setting. It does not touch the broker yet.
func NewSink(nc *nats.Conn, declared jetstream.StreamConfig, cfg SinkConfig) (*Sink, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if err := ownable(declared); err != nil {
		return nil, fmt.Errorf("broker: stream %s: %w", declared.Name, err)
	}
	js, err := jetstream.New(nc, jetstream.WithDefaultTimeout(cfg.Timeout))
	if err != nil {
		return nil, fmt.Errorf("broker: %w", err)
	}
	s := &Sink{nc: nc, js: js, cfg: cfg, declared: declared}
	s.durability.Store(&durability{why: "the broker was not asked yet"})
	return s, nil
}

// firstSeqGap is how far above the last known sequence a stream begins that replaces a lost one, so that no late message of
// an older chain expects a sequence that it has: more than can be on its way.
const firstSeqGap = 1 << 20

// Open creates the stream where it is missing, begins a chain of writes behind its last sequence, and returns that and the
// time when the stream was created. known is the highest sequence that the caller knows of, 0 for none. An error that wraps
// [ErrStreamDiffers] needs an operator.
func (s *Sink) Open(ctx context.Context, known uint64) (uint64, time.Time, error) {
	if s.chain != nil {
		s.chain.close()
		s.chain = nil
	}
	last, created, err := s.Last(ctx, known)
	if err != nil {
		return 0, time.Time{}, err
	}
	d, err := s.preflight(ctx)
	if err != nil {
		return 0, time.Time{}, fmt.Errorf("broker: stream %s: %w", s.declared.Name, err)
	}
	s.durability.Store(&d)
	s.batches, s.limit = d.syncs && s.declared.AllowAtomicPublish, int(s.nc.MaxPayload())
	if s.declared.MaxMsgSize >= 0 {
		s.limit = min(s.limit, int(s.declared.MaxMsgSize))
	}
	if s.chain, err = newChain(s.nc, s.declared.Name, last, s.cfg); err != nil {
		return 0, time.Time{}, fmt.Errorf("broker: %w", err)
	}
	s.noSeq, s.carefully = 0, 0
	if s.stuck { // again at the same message, from a fresh position: the broker does not say which of a batch is the matter
		s.stuck = false
		s.carefully = maxBatch
		s.fallbacks.Add(1)
	}
	return last, created, nil
}

// Last is Open without a new chain: it only looks.
func (s *Sink) Last(ctx context.Context, known uint64) (uint64, time.Time, error) {
	cfg := s.declared
	if known > 0 {
		cfg.FirstSeq = known + firstSeqGap
	}
	stream, err := ensureStream(ctx, s.js, cfg)
	if err != nil {
		return 0, time.Time{}, fmt.Errorf("broker: %w", err)
	}
	info, err := stream.Info(ctx)
	if err != nil {
		return 0, time.Time{}, fmt.Errorf("broker: look at stream %s: %w", cfg.Name, err)
	}
	// Without a leader any member answers, also one that is behind.
	if info.Config.Replicas > 1 && (info.Cluster == nil || info.Cluster.Leader == "") {
		return 0, time.Time{}, fmt.Errorf("broker: stream %s has no leader", cfg.Name)
	}
	s.stream = stream
	return info.State.LastSeq, info.Created.UTC(), nil
}

// ReadBack calls stored with the event id of each message that stands behind sequence after, up to upTo, in their order. Each
// is asked for by itself, of the stream's leader: a consumer would wait for messages that age out meanwhile, or for a stream
// that is gone.
func (s *Sink) ReadBack(ctx context.Context, after, upTo uint64, stored func(id string)) error {
	const window, atOnce = 512, 16
	after = max(after, s.stream.CachedInfo().State.FirstSeq-1) // what is below has aged out
	for ; after < upTo; after += min(window, upTo-after) {
		ids := make([]string, min(window, upTo-after))
		asking, ctx := errgroup.WithContext(ctx)
		asking.SetLimit(atOnce)
		for i := range ids {
			asking.Go(func() error {
				m, err := s.stream.GetMsg(ctx, after+1+uint64(i))
				if errors.Is(err, jetstream.ErrMsgNotFound) {
					return nil // aged out meanwhile
				}
				if err != nil {
					return fmt.Errorf("broker: read stream %s back from %d: %w", s.declared.Name, after+1+uint64(i), err)
				}
				ids[i] = m.Header.Get(oncebox.HeaderID)
				return nil
			})
		}
		if err := asking.Wait(); err != nil {
			return err
		}
		for _, id := range ids {
			if id != "" {
				stored(id)
			}
		}
	}
	return nil
}

// Check says why the stream can never hold e, as far as its limits were known at Open: it is no valid event, no subject of the
// stream's is its type, or it is too large.
func (s *Sink) Check(e oncebox.Event) error {
	if err := e.Validate(); err != nil {
		return err
	}
	if !covers(s.declared.Subjects, e.Type) {
		return fmt.Errorf("stream %s has no subject %s", s.declared.Name, e.Type)
	}
	// Cheap and too much at first: few are near the limit.
	escaped := 2 * (len(e.Key) + len(e.Source) + len(e.TenantID) + len(e.CorrelationID) + len(e.CausationID)) // to three bytes each, at most
	if rough := roughSize(&e) + escaped; rough <= min(s.limit, maxHeader) {
		return nil
	}
	size := e.WireSize() + brokerBytes
	if size > s.limit {
		return fmt.Errorf("%d bytes with its headers are more than the %d that the broker takes", size, s.limit)
	}
	if headers := size - len(e.Data); headers > maxHeader {
		return fmt.Errorf("%d bytes of headers are more than the %d that the broker takes", headers, maxHeader)
	}
	return nil
}

const (
	maxHeader   = 1<<16 - 1         // the broker's own limit
	brokerBytes = 256               // room for what the chain adds to a message's headers
	addedBytes  = brokerBytes + 700 // and for the envelope's names, times and numbers
)

// Store publishes events behind those of the calls before, and returns when they are on their way: what is then stored for
// certain is what the acknowledgements that have come by now say. stored counts since Open; last is the stream's last
// sequence as far as it is known. After an error nothing more can be stored before the next Open; what was on its way may
// still be stored.
func (s *Sink) Store(ctx context.Context, events []oncebox.Event) (stored, last uint64, err error) {
	for len(events) > 0 && err == nil {
		n := len(events)
		switch {
		case s.carefully > 0:
			n = 1
			s.carefully--
			err = s.storeCarefully(ctx, events[0])
		case s.batches && n > 1:
			n, err = s.chain.batch(ctx, events)
		default:
			err = s.chain.singles(ctx, events)
		}
		events = events[n:]
	}
	return s.settled(ctx, err)
}

// Flush waits until all that was given to Store since Open is stored, or fails as Store does.
func (s *Sink) Flush(ctx context.Context) (stored, last uint64, err error) {
	return s.settled(ctx, s.chain.flush(ctx))
}

// settled notes a failure and tells how far the chain is.
func (s *Sink) settled(ctx context.Context, err error) (uint64, uint64, error) {
	c := s.chain
	if err != nil {
		c.settle(ctx)
		if refused := (*refusal)(nil); errors.As(err, &refused) {
			s.refusals.Add(1)
			s.stuck = c.acked == c.base && s.noSeq == 0
		}
		err = fmt.Errorf("broker: publish to %s behind %d: %w", s.declared.Name, c.acked, err)
	}
	return c.acked - c.base + s.noSeq, c.acked, err
}

// Durable says whether what is stored outlasts a loss of power at the broker, as of the last Open, and in words why. It may
// be called from any goroutine, as Refusals and Fallbacks may.
func (s *Sink) Durable() (ok bool, why string) {
	d := s.durability.Load()
	return d.ok, d.why
}

// Refusals is how often the broker refused a chain of writes.
func (s *Sink) Refusals() uint64 { return s.refusals.Load() }

// Fallbacks is how often events were stored one by one because a chain was refused twice at the same place.
func (s *Sink) Fallbacks() uint64 { return s.fallbacks.Load() }

// covers says whether one of the patterns is subject's.
func covers(patterns []string, subject string) bool {
	for _, p := range patterns {
		if matches(p, subject) {
			return true
		}
	}
	return false
}

func matches(pattern, subject string) bool {
	for {
		p, morePattern, inPattern := strings.Cut(pattern, ".")
		s, moreSubject, inSubject := strings.Cut(subject, ".")
		switch {
		case p == ">":
			return true
		case p != "*" && p != s, inPattern != inSubject:
			return false
		case !inPattern:
			return true
		}
		pattern, subject = morePattern, moreSubject
	}
}
