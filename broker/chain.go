package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/internal/crash"
)

const (
	// maxBatch is the broker's limit for the messages of an atomic batch.
	maxBatch = 1000
	// maxBatchBytes keeps a batch, which a cluster proposes as a whole, well below what a server buffers.
	maxBatchBytes = 1 << 20
	// maxOpenBatches on their way at once keep the broker busy; a stream takes 50.
	maxOpenBatches = 4
	// ackEvery is how many singles share an acknowledgement: one that is stored at its sequence proves the singles before it.
	ackEvery = 64
	// maxUnacked bounds the singles on their way, since a stream takes 10,000 into its queue and drops the rest. There are fewer where
	// the broker is slow: see window.
	maxUnacked = 4096
	// lateReach is how far behind its end of now a stream may still be given messages by older chains: the most that one has on
	// its way, and a batch.
	lateReach = max(maxUnacked, maxOpenBatches*maxBatch) + maxBatch
)

// A refusal is the broker's answer to a message of a chain that it did not store where it should be.
type refusal struct {
	code int // JetStream's, 0 when it was stored elsewhere
	text string
}

func (r *refusal) Error() string {
	if r.code == 0 {
		return r.text
	}
	return fmt.Sprintf("refused: %s (%d)", r.text, r.code)
}

// A unit is what one acknowledgement is for: the messages up to sequence last.
type unit struct {
	last   uint64
	bytes  int
	at     time.Time // when it was asked for
	batch  bool
	stored bool
}

// A chain publishes messages behind each other. Of one goroutine.
type chain struct {
	nc     *nats.Conn
	stream string
	cfg    SinkConfig

	replies string // under a subject of this chain alone; the sequence that is expected is its last token
	acks    chan *nats.Msg
	sub     *nats.Subscription
	broken  chan nats.Status

	base, acked, sent uint64 // sequences
	lastID            string // of the message at sent, "" when another chain sent it
	open              []unit // on their way, the oldest first
	bytes             int    // of open
	unasked           unit   // where the last one ends that asks for an acknowledgement, and the bytes behind it
	window            int    // units of singles on their way
	answered, asked   int
	msg               nats.Msg
	values            []string // of msg's headers
	err               error    // ends the chain
}

func newChain(nc *nats.Conn, stream string, last uint64, cfg SinkConfig) (*chain, error) {
	c := &chain{
		nc: nc, stream: stream, cfg: cfg, replies: nc.NewInbox() + ".",
		acks: make(chan *nats.Msg, maxUnacked), base: last, acked: last, sent: last, unasked: unit{last: last}, window: 1,
		msg:    nats.Msg{Header: make(nats.Header)},
		broken: nc.StatusChanged(nats.RECONNECTING, nats.DISCONNECTED, nats.CLOSED),
	}
	var err error
	if c.sub, err = nc.ChanSubscribe(c.replies+"*", c.acks); err != nil {
		nc.RemoveStatusListener(c.broken)
		return nil, fmt.Errorf("subscribe to acknowledgements: %w", err)
	}
	return c, nil
}

func (c *chain) close() {
	c.nc.RemoveStatusListener(c.broken)
	_ = c.sub.Unsubscribe() // fails only where the connection is gone, and the subscription with it
}

// singles publishes the events one by one and asks for an acknowledgement of the last, and of some before it.
func (c *chain) singles(ctx context.Context, events []oncebox.Event) error {
	for i := range events {
		e := &events[i]
		size := roughSize(e)
		if err := c.room(ctx, size, c.window); err != nil {
			return err
		}
		c.message(e)
		c.set(jetstream.ExpectedLastSeqHeader, strconv.FormatUint(c.sent, 10))
		if c.lastID != "" {
			c.set(jetstream.ExpectedLastMsgIDHeader, c.lastID)
		}
		c.unasked.bytes += size
		if ask := i == len(events)-1 || c.sent+1-c.unasked.last >= ackEvery || c.unasked.bytes >= c.cfg.MaxInFlight/8; ask {
			c.unasked.last = c.sent + 1
			c.ask(c.unasked)
			c.unasked.bytes = 0
		}
		if err := c.publish(); err != nil {
			return err
		}
		c.sent++
		c.lastID = messageID(e)
	}
	return nil
}

// batch publishes as many of the events as make one atomic batch, and returns how many.
func (c *chain) batch(ctx context.Context, events []oncebox.Event) (int, error) {
	n, size := 1, roughSize(&events[0])
	for ; n < min(len(events), maxBatch); n++ {
		more := roughSize(&events[n])
		if size+more > min(maxBatchBytes, c.cfg.MaxInFlight) {
			break
		}
		size += more
	}
	// A single names the message before it, which the broker lets no batch do. A late one of an older chain, of other events,
	// may be as long as ours, and the next of ours would stand behind that and overtake the one that was refused.
	units := maxOpenBatches
	if c.sent < c.base+lateReach {
		units = 1
	}
	if err := c.room(ctx, size, units); err != nil {
		return 0, err
	}
	id := nuid.Next()
	for i := range n {
		c.message(&events[i])
		c.set("Nats-Batch-Id", id)
		c.set("Nats-Batch-Sequence", strconv.Itoa(i+1))
		if i == 0 {
			c.set(jetstream.ExpectedLastSeqHeader, strconv.FormatUint(c.sent, 10))
		}
		if i == n-1 {
			c.set("Nats-Batch-Commit", "1")
			c.ask(unit{last: c.sent + uint64(n), bytes: size, batch: true})
		}
		if err := c.publish(); err != nil {
			return 0, err
		}
	}
	c.sent += uint64(n)
	c.unasked.last, c.lastID = c.sent, messageID(&events[n-1])
	return n, nil
}

// message makes e the chain's message: the connection copies what it publishes, so that one is enough for all.
func (c *chain) message(e *oncebox.Event) {
	clear(c.msg.Header)
	c.values = c.values[:0]
	c.msg.Subject, c.msg.Reply, c.msg.Data = e.Type, "", e.Data
	e.EachHeader(c.set)
	c.set(jetstream.MsgIDHeader, messageID(e))
	c.set(jetstream.ExpectedStreamHeader, c.stream)
}

// set sets a header of the chain's message. The values lie in one slice: one that grows leaves those before where they are.
func (c *chain) set(name, value string) {
	c.values = append(c.values, value)
	end := len(c.values)
	c.msg.Header[name] = c.values[end-1 : end : end]
}

// messageID is the event's own, but of a replay, which the stream may remember under that.
func messageID(e *oncebox.Event) string {
	if _, replay := e.Headers[oncebox.HeaderReplay]; replay {
		return e.ID + "." + strconv.FormatInt(e.Seq, 10)
	}
	return e.ID
}

// roughSize is about how many bytes e takes on its way, and not less but for what is escaped.
func roughSize(e *oncebox.Event) int {
	size := len(e.Data) + addedBytes + len(e.Type) + len(e.Key) + len(e.Source) + len(e.TenantID) + len(e.CorrelationID) + len(e.CausationID)
	for name, value := range e.Headers {
		size += len(name) + len(value) + len(": \r\n")
	}
	return size
}

// ask makes the message, the last of u, ask for an acknowledgement.
func (c *chain) ask(u unit) {
	c.msg.Reply, u.at = c.replies+strconv.FormatUint(u.last, 10), time.Now()
	c.open = append(c.open, u)
	c.bytes += u.bytes
	c.asked++
}

func (c *chain) publish() error {
	if c.err = crash.Before("broker-publish"); c.err == nil {
		c.err = crash.After("broker-publish", c.nc.PublishMsg(&c.msg))
	}
	return c.err
}

// room takes what acknowledgements have come, and waits for more while there are size bytes too many on their way, or units.
func (c *chain) room(ctx context.Context, size, units int) error {
	for c.err == nil {
		select {
		case m := <-c.acks:
			c.take(m)
			continue
		default:
		}
		if len(c.open) < units && (len(c.open) == 0 || c.bytes+c.unasked.bytes+size <= c.cfg.MaxInFlight) {
			return nil
		}
		c.await(ctx)
	}
	return c.err
}

// flush waits for all acknowledgements.
func (c *chain) flush(ctx context.Context) error {
	for c.err == nil && len(c.open) > 0 {
		c.await(ctx)
	}
	return c.err
}

// await waits for one acknowledgement.
func (c *chain) await(ctx context.Context) {
	late := time.NewTimer(c.cfg.Timeout)
	defer late.Stop()
	select {
	case m := <-c.acks:
		c.take(m)
	case status := <-c.broken:
		c.err = fmt.Errorf("the connection is %s", status)
	case <-late.C:
		c.err = fmt.Errorf("no acknowledgement within %s", c.cfg.Timeout)
	case <-ctx.Done():
		c.err = ctx.Err()
	}
}

// settle lets the answers to what is on its way come in after a failure, for a while: they tell what need not be read back,
// and that nothing of this chain is stored any more.
func (c *chain) settle(ctx context.Context) {
	late := time.NewTimer(c.cfg.Timeout)
	defer late.Stop()
	for c.answered < c.asked {
		select {
		case m := <-c.acks:
			c.take(m)
		case <-c.broken:
			return
		case <-late.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// take reads an acknowledgement. It counts by its sequence: on a cluster the old leader and the new one both answer, or
// neither, so that a number of acknowledgements proves nothing. Of what is before it, it proves the singles, each of which names
// the message before it, down to the batch that they follow; a batch proves itself alone.
func (c *chain) take(m *nats.Msg) {
	c.answered++
	expected, err := strconv.ParseUint(strings.TrimPrefix(m.Subject, c.replies), 10, 64)
	if err != nil {
		return // nobody of ours
	}
	if err = crash.Before("broker-acked"); err == nil {
		err = checkAck(m, c.stream, expected)
	}
	if err != nil {
		if c.err == nil {
			c.err = err
		}
		return
	}
	for i, u := range slices.Backward(c.open) {
		if u.last <= expected {
			c.open[i].stored = true
			if u.batch {
				break
			}
		}
	}
	if len(c.open) > 0 && c.open[0].stored {
		c.pace(time.Since(c.open[0].at))
	}
	for len(c.open) > 0 && c.open[0].stored {
		c.acked = c.open[0].last
		c.bytes -= c.open[0].bytes
		c.open = c.open[1:]
	}
	c.err = crash.After("broker-acked", c.err)
}

// pace sets how many singles may be on their way, by how long an acknowledgement took. A stream takes all that has come to it before it
// acknowledges the first of them, so that on a server which syncs each message, and did not say so, thousands would keep us waiting for
// longer than we wait, and be taken for a broker that is away.
func (c *chain) pace(took time.Duration) {
	switch {
	case took > c.cfg.Timeout/4:
		c.window = max(1, c.window/2)
	case took < c.cfg.Timeout/8 && len(c.open) >= c.window:
		c.window = min(2*c.window, maxUnacked/ackEvery)
	}
}

// checkAck says whether m acknowledges that what ends at sequence expected is stored there.
func checkAck(m *nats.Msg, stream string, expected uint64) error {
	if len(m.Data) == 0 {
		if m.Header.Get("Status") == "503" {
			return nats.ErrNoResponders
		}
		return errors.New("an empty acknowledgement")
	}
	var ack struct {
		Stream    string              `json:"stream"`
		Seq       uint64              `json:"seq"`
		Duplicate bool                `json:"duplicate"`
		Error     *jetstream.APIError `json:"error"`
	}
	switch err := json.Unmarshal(m.Data, &ack); {
	case err != nil:
		return fmt.Errorf("read an acknowledgement: %w", err)
	case ack.Error != nil:
		return &refusal{code: int(ack.Error.ErrorCode), text: ack.Error.Description}
	case ack.Duplicate:
		return &refusal{text: fmt.Sprintf("the stream knows the id, of sequence %d", ack.Seq)}
	case ack.Stream != stream || ack.Seq != expected:
		return &refusal{text: fmt.Sprintf("stored at %s %d, not at %s %d", ack.Stream, ack.Seq, stream, expected)}
	}
	return nil
}
