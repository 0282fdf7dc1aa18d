package page

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/oncebox/oncebox/billing"
	"github.com/oncebox/oncebox/events"
)

func (p *Page) pauseNATS(ctx context.Context) (string, error) {
	before, err := p.committed(ctx)
	if err != nil {
		return "", err
	}
	if err := p.lab.PauseNATS(); err != nil {
		return "", err
	}
	p.natsStands(true)
	err = wait(ctx, 3*time.Second)
	after, err2 := p.committed(ctx)
	p.natsStands(false)
	if err := errors.Join(err, err2, p.lab.ContinueNATS()); err != nil {
		return "", err
	}
	if after == before {
		return "NATS stood still for 3 s, in which nobody ordered anything: it broke nothing.", errMissed
	}
	return fmt.Sprintf("NATS stood still for 3 s, in which %d events were committed and waited in the outbox.", after-before), nil
}

// committed counts the events of this run in the outbox of orders.
func (p *Page) committed(ctx context.Context) (n int, err error) {
	p.mu.Lock()
	customers := p.run.customers()
	p.mu.Unlock()
	err = p.lab.Orders.QueryRow(ctx, outboxSQL, customers).Scan(&n)
	return n, err
}

func (p *Page) natsStands(still bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.natsStill = still
	p.touch()
}

func (p *Page) redeliver(ctx context.Context) (string, error) {
	if err := p.lab.NaiveProcess.Kill(); err != nil { // it would end by itself, having lost its consumer
		return "", err
	}
	for _, durable := range []string{billing.Name, p.lab.NaiveDurable} {
		if err := p.lab.JetStream.DeleteConsumer(ctx, events.OrdersStream, durable); err != nil {
			return "", errors.Join(err, p.lab.NaiveProcess.Start(ctx))
		}
	}
	if err := p.lab.NaiveProcess.Start(ctx); err != nil {
		return "", err
	}
	stream, err := p.lab.JetStream.Stream(ctx, events.OrdersStream)
	if err != nil {
		return "", err
	}
	n := stream.CachedInfo().State.Msgs
	if n == 0 {
		return "Did not fire: there was no message that could come again.", errMissed
	}
	return fmt.Sprintf("%d messages came again.", n), nil
}

// duplicate copies the newest messages of the stream, again and again until it is a thousand. Without a Nats-Msg-Id JetStream
// takes them for new ones; billing knows them by their event's id.
func (p *Page) duplicate(ctx context.Context) (string, error) {
	const copies, most = 1000, 100
	stream, err := p.lab.JetStream.Stream(ctx, events.OrdersStream)
	if err != nil {
		return "", err
	}
	last := stream.CachedInfo().State.LastSeq
	if last == 0 {
		return "Did not fire: there was no message to copy.", errMissed
	}
	n := min(most, last)
	sent := 0
	for sent < copies {
		for seq := last - n + 1; seq <= last && sent < copies; seq++ {
			msg, err := stream.GetMsg(ctx, seq)
			if err != nil {
				return "", err
			}
			again := &nats.Msg{Subject: msg.Subject, Header: msg.Header, Data: msg.Data}
			for _, name := range []string{jetstream.MsgIDHeader, jetstream.ExpectedLastSeqHeader, jetstream.ExpectedStreamHeader,
				jetstream.ExpectedLastMsgIDHeader} {
				again.Header.Del(name)
			}
			if _, err := p.lab.JetStream.PublishMsg(ctx, again); err != nil {
				return "", err
			}
			sent++
		}
	}
	return fmt.Sprintf("%d copies of the last %d messages were sent.", sent, n), nil
}

// rollBack has the broker forget what was published since a copy of its store was made. The naive consumer would end by itself
// when its server goes, and is killed before.
func (p *Page) rollBack(ctx context.Context) (text string, err error) {
	if err := p.lab.NaiveProcess.Kill(); err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, p.lab.NaiveProcess.Start(ctx)) }()
	putBack, err := p.lab.CopyNATS(ctx)
	if err != nil {
		return "", err
	}
	if err := p.Pay(20); err != nil {
		return "", err
	}
	p.mu.Lock()
	wanted := len(p.run.published) + p.run.sums().Running
	p.mu.Unlock()
	var last uint64
	err = awaits(ctx, "what was paid is published", func() (bool, error) {
		stream, err := p.lab.JetStream.Stream(ctx, events.OrdersStream)
		if err != nil {
			return false, nil // it is just starting again
		}
		last = stream.CachedInfo().State.LastSeq
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.run.sums().Running == 0 && len(p.run.published) >= wanted, nil
	})
	if err != nil {
		return "", err
	}
	stopped := time.Now()
	p.natsStands(true)
	err = putBack(ctx)
	p.natsStands(false)
	if err != nil {
		return "", err
	}
	stream, err := p.lab.JetStream.Stream(ctx, events.OrdersStream)
	if err != nil {
		return "", err
	}
	// The relay may have sent it again by now.
	switch m, err := stream.GetMsg(ctx, last); {
	case err == nil && m.Time.Before(stopped):
		return fmt.Sprintf("Did not fire: message %d is still what it was.", last), errMissed
	case err != nil && !errors.Is(err, jetstream.ErrMsgNotFound):
		return "", err
	}
	return fmt.Sprintf("The stream lost its tail, up to message %d.", last), nil
}
