package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/events"
)

// judgeEvents accounts for each event of a direction: it is in the producer's outbox, as the order's state wants it there, and its
// effect is in the consumer's inbox, once; it is no dead letter and not parked. What the stream holds, and what the inbox had, is in
// the outbox: an event of a transaction that was rolled back is nowhere. (The stream itself may lack what was healed, and hold an
// event twice.)
func (v *verdict) judgeEvents(ctx context.Context, w *world, d direction, b *books) error {
	type written struct{ ID, Topic, Key string }
	rows, err := query[written](ctx, w.database(d.producer), "SELECT DISTINCT id::text, topic, key FROM oncebox.outbox")
	if err != nil {
		return fmt.Errorf("read the outbox of %s: %w", d.producer, err)
	}
	type had struct{ ID, State string }
	inbox, err := query[had](ctx, w.database(d.consumer), "SELECT id::text, state FROM oncebox.inbox WHERE consumer = $1 AND source = $2", d.consumer, d.producer)
	if err != nil {
		return fmt.Errorf("read the inbox of %s: %w", d.consumer, err)
	}
	states := make(map[string]string, len(inbox))
	for _, h := range inbox {
		states[h.ID] = h.State
	}
	ids := make(map[string]bool, len(rows))
	type topicOf struct{ key, topic string }
	times := make(map[topicOf]int, len(rows))
	for _, e := range rows {
		ids[e.ID] = true
		times[topicOf{e.Key, e.Topic}]++
		v.check(states[e.ID] == "done", "event %s %s of %s is %q in the inbox of %s", e.ID, e.Topic, e.Key, states[e.ID], d.consumer)
		_, known := b.orders[e.Key]
		v.check(known, "event %s %s is of %s, which is no order: its transaction was rolled back", e.ID, e.Topic, e.Key)
	}
	for id := range states {
		v.check(ids[id], "the inbox of %s has event %s, which is in no outbox", d.consumer, id)
	}
	for id, o := range b.orders {
		for topic, want := range wanted(d.producer, o, b) {
			got := times[topicOf{id, topic}]
			v.check(got == want, "order %s, %s: %d events %s, want %d", id, o.Status, got, topic, want)
		}
	}
	if err := v.judgeAside(ctx, w, d); err != nil {
		return err
	}
	return v.judgeStream(ctx, w, d, ids)
}

// wanted is how many events of each type an order has, by its end and its charge's.
func wanted(producer string, o order, b *books) map[string]int {
	is := map[bool]int{true: 1}
	if producer == ordersName {
		return map[string]int{events.TypeChargeRequested: 1, events.TypeOrderCancelled: is[o.DeletedAs != ""]}
	}
	c, charged := b.ofOrder[o.ID]
	return map[string]int{events.TypeChargeSucceeded: is[charged && c.Status != "cancelled"], events.TypeChargeRefunded: is[charged && c.Status == "refunded"]}
}

// classAlreadyCharged is that of the dead letter which the last guard leaves, one charge for each order.
const classAlreadyCharged = "already_charged"

// judgeAside looks for what was put aside.
func (v *verdict) judgeAside(ctx context.Context, w *world, d direction) error {
	type letter struct {
		ID, Topic, Class, Reason string
	}
	letters, err := query[letter](ctx, w.database(d.consumer), "SELECT id::text, topic, class, reason FROM oncebox.dead_letter")
	if err != nil {
		return fmt.Errorf("read the dead letters of %s: %w", d.consumer, err)
	}
	for _, l := range letters {
		if l.Class == classAlreadyCharged {
			v.guardOrder++
		}
		v.fail("event %s %s is a dead letter of %s: %s: %s", l.ID, l.Topic, d.consumer, l.Class, l.Reason)
	}
	type parked struct{ ID, Topic, Reason string }
	aside, err := query[parked](ctx, w.database(d.producer), "SELECT id::text, topic, reason FROM oncebox.outbox_parked WHERE outcome NOT IN ('retried', 'dropped')")
	if err != nil {
		return fmt.Errorf("read what %s parked: %w", d.producer, err)
	}
	for _, p := range aside {
		v.fail("event %s %s of %s is parked: %s", p.ID, p.Topic, d.producer, p.Reason)
	}
	return nil
}

// streamLimit bounds the reading of a stream.
const streamLimit = 5 * time.Minute

// judgeStream asks of each message whose event it is.
func (v *verdict) judgeStream(ctx context.Context, w *world, d direction, ids map[string]bool) error {
	ctx, cancel := context.WithTimeout(ctx, streamLimit)
	defer cancel()
	s, err := w.js.Stream(ctx, d.stream)
	if err != nil {
		return fmt.Errorf("look at %s: %w", d.stream, err)
	}
	state := s.CachedInfo().State
	if state.Msgs == 0 {
		return nil
	}
	c, err := s.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{HeadersOnly: true})
	if err != nil {
		return fmt.Errorf("read %s: %w", d.stream, err)
	}
	read, err := c.Messages()
	if err != nil {
		return fmt.Errorf("read %s: %w", d.stream, err)
	}
	defer read.Stop()
	stop := context.AfterFunc(ctx, read.Stop)
	defer stop()
	for {
		m, err := read.Next()
		if err != nil {
			return fmt.Errorf("read %s: %w", d.stream, errors.Join(err, context.Cause(ctx)))
		}
		meta, err := m.Metadata()
		if err != nil {
			return fmt.Errorf("read %s: %w", d.stream, err)
		}
		id := m.Headers().Get(oncebox.HeaderID)
		v.check(ids[id], "message %d of %s is the event %s, which is in no outbox", meta.Sequence.Stream, d.stream, id)
		if meta.Sequence.Stream >= state.LastSeq {
			return nil
		}
	}
}
