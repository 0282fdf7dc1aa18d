package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
	"golang.org/x/sync/errgroup"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/bench/measure"
	"github.com/oncebox/oncebox/broker"
)

// memory publishes the same messages, made beforehand, in the way that is fastest on the server and keeps their order: one by one
// with an acknowledgement of each hundredth, or in atomic batches.
func (d drain) memory(ctx context.Context) (_ measure.Figures, err error) {
	s, err := d.b.stream(ctx, d.sync, declare(benchStream, benchSubject))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.drop(ctx)) }()
	msgs := make([]*nats.Msg, d.n)
	for i, e := range sold(0, d.n) {
		e.Seq = int64(i + 1)
		msgs[i] = &nats.Msg{Subject: e.Type, Data: e.Data, Header: nats.Header{}}
		e.EachHeader(func(name, value string) { msgs[i].Header[name] = []string{value} })
		msgs[i].Header[jetstream.MsgIDHeader] = []string{e.ID}
		msgs[i].Header[jetstream.ExpectedStreamHeader] = []string{s.name}
	}
	p := &publisher{nc: s.nc, inbox: s.nc.NewInbox()}
	if p.acks, err = s.nc.SubscribeSync(p.inbox); err != nil {
		return nil, err
	}
	began := time.Now()
	if d.sync == broker.SyncAlways {
		err = p.batches(msgs)
	} else {
		err = p.singles(msgs)
	}
	if err != nil {
		return nil, err
	}
	last, err := s.holds(ctx, d.n)
	return measure.Figures{"rows/s": float64(d.n) / last.Sub(began).Seconds()}, err
}

// A publisher publishes in order with a bounded number of acknowledgements outstanding.
type publisher struct {
	nc    *nats.Conn
	inbox string
	acks  *nats.Subscription
	open  int
}

const (
	askEvery    = 100
	openSingles = 40 // 4,000 messages in flight
	batchSize   = 1000
	openBatches = 4
)

func (p *publisher) singles(msgs []*nats.Msg) error {
	for i, m := range msgs {
		m.Header[jetstream.ExpectedLastSeqHeader] = []string{strconv.Itoa(i)}
		if (i+1)%askEvery == 0 || i == len(msgs)-1 {
			if err := p.room(openSingles - 1); err != nil {
				return err
			}
			m.Reply = p.inbox
			p.open++
		}
		if err := p.nc.PublishMsg(m); err != nil {
			return err
		}
	}
	return p.room(0)
}

func (p *publisher) batches(msgs []*nats.Msg) error {
	for from := 0; from < len(msgs); from += batchSize {
		if err := p.room(openBatches - 1); err != nil {
			return err
		}
		batch, id := msgs[from:min(from+batchSize, len(msgs))], nuid.Next()
		for i, m := range batch {
			m.Header["Nats-Batch-Id"] = []string{id}
			m.Header["Nats-Batch-Sequence"] = []string{strconv.Itoa(i + 1)}
		}
		batch[0].Header[jetstream.ExpectedLastSeqHeader] = []string{strconv.Itoa(from)}
		last := batch[len(batch)-1]
		last.Header["Nats-Batch-Commit"] = []string{"1"}
		last.Reply = p.inbox
		p.open++
		for _, m := range batch {
			if err := p.nc.PublishMsg(m); err != nil {
				return err
			}
		}
	}
	return p.room(0)
}

// room waits until at most so many acknowledgements are outstanding.
func (p *publisher) room(most int) error {
	for p.open > most {
		m, err := p.acks.NextMsg(30 * time.Second)
		if err != nil {
			return fmt.Errorf("wait for an acknowledgement: %w", err)
		}
		var ack struct {
			Error *jetstream.APIError `json:"error"`
		}
		if err := json.Unmarshal(m.Data, &ack); err != nil {
			return fmt.Errorf("read an acknowledgement: %w", err)
		}
		if ack.Error != nil {
			return fmt.Errorf("refused: %s", ack.Error.Description)
		}
		p.open--
	}
	return nil
}

// memory charges requests that stand in memory: the rows that billing writes, by one statement for each 500, on 4 connections.
func (c consumption) memory(ctx context.Context) (_ measure.Figures, err error) {
	const atOnce, connections = 500, 4
	db, err := c.b.database(ctx, "billing", prepareBilling)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.drop(ctx)) }()
	es, err := requests(c.n)
	if err != nil {
		return nil, err
	}
	return c.run(ctx, db, func(ctx context.Context, left *countdown) error {
		g, working := errgroup.WithContext(ctx)
		g.SetLimit(connections)
		for rest := es; len(rest) > 0; rest = rest[min(atOnce, len(rest)):] {
			g.Go(func() error {
				part := rest[:min(atOnce, len(rest))]
				if err := chargeAll(working, db.Pool, part); err != nil {
					return err
				}
				for range part {
					left.one()
				}
				return nil
			})
		}
		if err := g.Wait(); err != nil {
			return err
		}
		<-ctx.Done()
		return nil
	})
}

func chargeAll(ctx context.Context, pool *pgxpool.Pool, es []oncebox.Event) error {
	n := len(es)
	ids, orders, charges, answers, payloads := make([]string, n), make([]string, n), make([]uuid.UUID, n), make([]uuid.UUID, n), make([][]byte, n)
	for i, e := range es {
		ids[i], orders[i], charges[i], answers[i] = e.ID, e.Key, uuid.Must(uuid.NewV7()), uuid.Must(uuid.NewV7())
		payloads[i] = []byte(`{"order_id":"0190b5a0-0000-7000-8000-000000000000","charge_id":"0190b5a0-0000-7000-8000-000000000000","amount":1999,"currency":"USD"}`)
	}
	_, err := pool.Exec(ctx, `
		WITH m AS (SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::bytea[]) AS t (id, order_id, charge_id, answer_id, payload)),
		i AS (
			INSERT INTO oncebox.inbox (consumer, source, id, tenant_id, seq, digest, state)
			SELECT 'billing', 'orders', id, 'default', 1, 1, 'done' FROM m ORDER BY id ON CONFLICT DO NOTHING RETURNING id),
		w AS (SELECT m.* FROM m JOIN i USING (id)),
		c AS (
			INSERT INTO charge (tenant_id, id, order_id, customer_id, amount, currency, status)
			SELECT 'default', charge_id, order_id, 'customer-1', 1999, 'USD', 'succeeded' FROM w),
		l AS (
			INSERT INTO ledger (tenant_id, charge_id, kind, account, amount, currency)
			SELECT 'default', charge_id, 'charge', a.account, a.sign * 1999, 'USD' FROM w, (VALUES ('customer:customer-1', -1), ('revenue', 1)) AS a (account, sign))
		INSERT INTO oncebox.outbox (id, source, topic, key, version, tenant_id, headers, payload)
		SELECT answer_id, 'billing', 'billing.charge.succeeded.v1', order_id::text, 1, 'default',
			jsonb_build_object('ce-causationid', id, 'ce-correlationid', id), payload FROM w`, ids, orders, charges, answers, payloads)
	return err
}
