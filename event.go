// Package oncebox holds the envelope that the rooms of Oncebox hand to each other: an [Event], its form on the wire, and how
// ids are made.
//
// On the wire an event is a CloudEvent 1.0 in binary mode: the attributes are headers named ce-…, the payload is the data
// as it is. In the process it travels as a Watermill message whose metadata are those headers.
package oncebox

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
)

// An Event is one fact about one aggregate, as its producer wrote it into its outbox.
type Event struct {
	// ID is unique within Source and is what a consumer's inbox remembers. A UUID: version 7 when made at the edge,
	// [DerivedID] when made by a handler. The outbox's writer fills in an empty one.
	ID string
	// Source names the producer, such as "orders". The outbox's writer fills it in, and refuses another than its own.
	Source string
	// Type is what happened and the subject it is published to, such as "orders.charge.requested.v1". A breaking change
	// is a new type.
	Type string
	// Key names the aggregate. Events of one key keep their order in the stream.
	Key string
	// Version is the aggregate's, written under its row's lock, so that a consumer can tell a late event; 0: none.
	Version int64
	// Seq is the producer's outbox row; 0 before the outbox has read it back.
	Seq int64
	// TenantID says whose event it is; "" where there is only one tenant.
	TenantID string
	// Time is when the event was written, by the clock of the producer's database, in UTC.
	Time time.Time
	// CorrelationID is the ID of what began the story, CausationID of the event that this one answers.
	CorrelationID, CausationID string
	// TraceParent is the W3C trace context of the writer.
	TraceParent string
	// Headers are any others. Names that begin with "ce-", "nats-" or "oncebox-" are refused.
	Headers map[string]string
	// Data is the payload, carried byte for byte. Its media type is the header "content-type", by default
	// application/json.
	Data []byte
}

// ErrInvalid is wrapped by each error that says an event cannot be written or a message cannot be read as one.
var ErrInvalid = errors.New("invalid event")

// maxText bounds the bytes of each text attribute; a header block has to fit in one message.
const maxText = 1024

// Validate says whether e can be written to an outbox and published, wrapping [ErrInvalid]. ID and Source may still be
// empty, since the writer fills them in.
func (e Event) Validate() error {
	if e.ID != "" {
		if _, err := uuid.Parse(e.ID); err != nil {
			return fmt.Errorf("%w: id %.64q is no UUID", ErrInvalid, e.ID)
		}
	}
	if err := validSubject(e.Type); err != nil {
		return fmt.Errorf("%w: type %.64q: %w", ErrInvalid, e.Type, err)
	}
	if e.Key == "" {
		return fmt.Errorf("%w: no key", ErrInvalid)
	}
	if e.Version < 0 {
		return fmt.Errorf("%w: version %d is negative", ErrInvalid, e.Version)
	}
	for _, a := range []struct{ name, value string }{
		{"source", e.Source}, {"key", e.Key}, {"tenant id", e.TenantID}, {"correlation id", e.CorrelationID},
		{"causation id", e.CausationID}, {"traceparent", e.TraceParent},
	} {
		if err := validText(a.value); err != nil {
			return fmt.Errorf("%w: %s: %w", ErrInvalid, a.name, err)
		}
	}
	return e.validHeaders()
}

func (e Event) validHeaders() error {
	names := make(map[string]bool, len(e.Headers))
	for name, value := range e.Headers {
		if err := validHeader(name, value); err != nil {
			return fmt.Errorf("%w: header %.64q: %w", ErrInvalid, name, err)
		}
		lower := strings.ToLower(name)
		if names[lower] {
			return fmt.Errorf("%w: header %.64q is there twice, by another case", ErrInvalid, lower)
		}
		names[lower] = true
	}
	return nil
}

// WireSize is how many bytes e takes as a message: headers and data, without what a broker adds of its own.
func (e Event) WireSize() int {
	n := len(e.Data)
	e.EachHeader(func(name, value string) { n += len(name) + len(value) + len(": \r\n") })
	return n
}

// validSubject accepts what NATS takes as a subject to publish to and a header carries as it is: tokens of printable ASCII,
// joined by dots.
func validSubject(s string) error {
	if s == "" || len(s) > 255 {
		return errors.New("must have 1 to 255 characters")
	}
	for token := range strings.SplitSeq(s, ".") {
		if token == "" {
			return errors.New("has an empty token")
		}
	}
	for _, c := range s {
		if c <= ' ' || c > '~' || strings.ContainsRune(`*>%"`, c) { // the last two would be escaped as CloudEvents has it
			return fmt.Errorf("has the character %q", c)
		}
	}
	return nil
}

func validText(s string) error {
	switch {
	case len(s) > maxText:
		return fmt.Errorf("has %d bytes, more than %d", len(s), maxText)
	case !utf8.ValidString(s):
		return errors.New("is no UTF-8")
	case strings.ContainsRune(s, 0):
		return errors.New("has a NUL")
	}
	return nil
}

func validHeader(name, value string) error {
	lower := strings.ToLower(name)
	if name == HeaderReplay {
		return validText(value)
	}
	for _, prefix := range []string{"ce-", "nats-", "oncebox-"} {
		if strings.HasPrefix(lower, prefix) {
			return fmt.Errorf("names that begin with %s are the envelope's and the broker's", prefix)
		}
	}
	if name == "" || len(name) > 255 {
		return errors.New("a name has 1 to 255 characters")
	}
	if lower == HeaderContentType && name != lower {
		return fmt.Errorf("its name is %s, in lower case", HeaderContentType)
	}
	for _, c := range name {
		if c <= ' ' || c > '~' || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, c) { // RFC 9110: what is no token, the broker's client refuses
			return fmt.Errorf("its name has the character %q", c)
		}
	}
	if strings.TrimSpace(value) != value {
		return errors.New("its value has blanks at its ends, which get lost on the way")
	}
	if len(value) > 8*maxText {
		return fmt.Errorf("has %d bytes, more than %d", len(value), 8*maxText)
	}
	if strings.ContainsAny(value, "\r\n\x00") || !utf8.ValidString(value) {
		return errors.New("its value has a line break, a NUL or is no UTF-8")
	}
	return nil
}

// DerivedID is the id of the n-th event of type typ that consumer sends because of cause: the same on every rerun, so that
// what a rerun sends again is a duplicate to the next inbox. It is a UUID of version 8 (RFC 9562): the cause's time in
// milliseconds, so that ids sort by time, then bits of a SHA-256 over the rest.
func DerivedID(cause Event, consumer, typ string, n int) string {
	h := sha256.New()
	for _, s := range []string{cause.Source, cause.ID, consumer, typ} {
		_ = binary.Write(h, binary.BigEndian, uint32(len(s))) // lengths first: no two lists of fields hash alike
		h.Write([]byte(s))
	}
	_ = binary.Write(h, binary.BigEndian, int64(n))
	var id uuid.UUID
	copy(id[:], h.Sum(nil))
	var ms [8]byte
	binary.BigEndian.PutUint64(ms[:], uint64(cause.Time.UnixMilli()))
	copy(id[:6], ms[2:])
	id[6] = 0x80 | id[6]&0x0f
	id[8] = 0x80 | id[8]&0x3f
	return id.String()
}

type deliveredKey struct{}

// WithDelivered notes in a message's context how often the broker has handed the message over, 1 the first time.
func WithDelivered(ctx context.Context, n int) context.Context {
	return context.WithValue(ctx, deliveredKey{}, n)
}

// Delivered is how often the broker has handed the message of ctx over, 0 when nobody said.
func Delivered(ctx context.Context) int {
	n, _ := ctx.Value(deliveredKey{}).(int)
	return n
}

type takenKey struct{}

// WithTaken notes in a message's context what a handler may call before it is done with the message, to say that it has put the
// message in its order and may be handed the next one of the key meanwhile.
func WithTaken(ctx context.Context, taken func()) context.Context {
	return context.WithValue(ctx, takenKey{}, taken)
}

// Taken tells the subscriber of ctx's message that its handler may be handed the next one of the key. A handler that never says
// so is handed the messages of a key one by one, each after the one before it is acked or nacked.
func Taken(ctx context.Context) {
	if taken, ok := ctx.Value(takenKey{}).(func()); ok {
		taken()
	}
}

type repeatedKey struct{}

// WithRepeated notes in a message's context what a handler calls to say that it had handled the message before.
func WithRepeated(ctx context.Context, repeated func()) context.Context {
	return context.WithValue(ctx, repeatedKey{}, repeated)
}

// Repeated tells the subscriber of ctx's message that the message had been handled before and changed nothing now, which only a
// handler with a memory knows: a consumer that was made again hands everything out as if for the first time. It has to be called
// before the message is acked.
func Repeated(ctx context.Context) {
	if repeated, ok := ctx.Value(repeatedKey{}).(func()); ok {
		repeated()
	}
}
