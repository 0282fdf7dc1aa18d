package inbox

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"

	"github.com/oncebox/oncebox"
)

// A delivery is a message as the inbox's tables know it, and what becomes of it.
type delivery struct {
	event     oncebox.Event
	id        uuid.UUID
	digest    int64
	delivered int // how often, 1 the first time
	raw       *message.Message
	since     time.Time
	verdict   *permanentError // known before any handler ran: it is dead

	result
}

// A result is what one transaction made of a delivery. It counts once that is committed.
type result struct {
	outcome outcome
	why     *permanentError // of a dead one
	err     error           // of one that comes again
	fresh   bool            // its inbox row is this transaction's
	stored  int64           // the digest in its inbox row
	held    time.Time       // since when it has been waiting for its predecessor
}

type outcome int

const (
	open outcome = iota
	done
	unknown
	noop
	dead
	again
	waiting // comes again, for want of its predecessor
)

func (d *delivery) row() row { return row{d.event.Source, d.id} }
func (d *delivery) key() key { return key{d.event.Source, d.event.Key} }

// A row names a row of a consumer's inbox, a key an aggregate.
type (
	row struct {
		source string
		id     uuid.UUID
	}
	key struct{ source, key string }
)

func (d *delivery) bury(why *permanentError) { d.outcome, d.why = dead, why }
func (d *delivery) retry(err error)          { d.outcome, d.err = again, err }

// receive takes a message in hand.
func (in *Inbox) receive(m *message.Message) *delivery {
	d := in.read(m)
	in.metrics.inHand.add(d)
	return d
}

// read makes a delivery of a message. One that is no event is a delivery too, with its verdict.
func (*Inbox) read(m *message.Message) *delivery {
	d := &delivery{raw: m, delivered: oncebox.Delivered(m.Context()), since: time.Now()}
	var err error
	if d.event, err = oncebox.Decode(m); err != nil {
		// Without an event's id the message itself is the id: the same bytes again are the same dead letter.
		d.event = oncebox.Event{ID: m.UUID, Data: m.Payload}
		sum := sha256.New()
		sum.Write([]byte(m.UUID))
		sum.Write(m.Payload)
		d.id = hashedID(sum.Sum(nil))
		d.verdict = &permanentError{"undecodable", err}
		return d
	}
	if first, err := strconv.ParseInt(d.event.Headers[oncebox.HeaderReplay], 10, 64); err == nil {
		d.event.Seq = first // what is sent once more is known by the row that it was first, as producer and consumer compare
	}
	if d.id, err = uuid.Parse(d.event.ID); err != nil {
		sum := sha256.Sum256([]byte(d.event.ID))
		d.id = hashedID(sum[:])
	}
	d.digest = digest(d.event)
	return d
}

func digest(e oncebox.Event) int64 {
	sum := sha256.New()
	sum.Write([]byte(e.Type))
	sum.Write([]byte{0})
	sum.Write(e.Data)
	return int64(binary.BigEndian.Uint64(sum.Sum(nil)))
}

// hashedID is the UUID, of version 8, of a message whose id is none.
func hashedID(sum []byte) (id uuid.UUID) {
	copy(id[:], sum)
	id[6] = 0x80 | id[6]&0x0f
	id[8] = 0x80 | id[8]&0x3f
	return id
}

// The classes of dead letters that the inbox itself finds.
const (
	classConflict = "conflict"
	classCrashed  = "crashed"
)

// conflict is the verdict on a message under whose id another one came before.
func (d *delivery) conflict() *permanentError {
	return &permanentError{classConflict, fmt.Errorf("inbox: another message came before under the id %s", d.id)}
}

// letterID is the id of d's dead letter: its own, unless the inbox row is another message's.
func (d *delivery) letterID() uuid.UUID {
	if d.why.class == classConflict {
		return uuid.NewSHA1(d.id, binary.BigEndian.AppendUint64(nil, uint64(d.digest)))
	}
	return d.id
}

var errIntent = errors.New("inbox: the message waits for an outside call")
