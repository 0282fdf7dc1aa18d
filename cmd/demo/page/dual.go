package page

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
)

// NaiveStream is where the naive writer publishes.
const NaiveStream = "NAIVE"

// NaiveSubject is the subject of its messages.
const NaiveSubject = "naive.order"

// NaiveOrders is the table that it writes to before.
const NaiveOrders = "naive_written"

// dualWrite kills a writer that commits an order and then publishes its event, between the two; and has orders do the same with
// its outbox while there is no broker at all.
func (p *Page) dualWrite(ctx context.Context) (string, error) {
	if _, err := p.lab.Naive.Exec(ctx, "DROP TABLE IF EXISTS "+NaiveOrders+"; CREATE TABLE "+NaiveOrders+" (id bigint GENERATED ALWAYS AS IDENTITY)"); err != nil {
		return "", err
	}
	stream, err := p.lab.JetStream.CreateOrUpdateStream(ctx, jetstream.StreamConfig{Name: NaiveStream, Subjects: []string{NaiveSubject}, Storage: jetstream.MemoryStorage})
	if err != nil {
		return "", err
	}
	if err := stream.Purge(ctx); err != nil {
		return "", err
	}
	var rows, published int
	count := func() (bool, error) {
		info, err := stream.Info(ctx)
		if err != nil {
			return false, err
		}
		published = int(info.State.Msgs)
		err = p.lab.Naive.QueryRow(ctx, "SELECT count(*) FROM "+NaiveOrders).Scan(&rows)
		return rows > published && published > 0, err
	}
	if err := p.lab.NaiveWriter.Start(ctx); err != nil {
		return "", err
	}
	between, err := killAt(ctx, p.lab.NaiveWriter, count)
	if !between {
		err = errors.Join(err, p.lab.NaiveWriter.Kill())
	}
	if err != nil {
		return "", err
	}
	if _, err := count(); err != nil {
		return "", err
	}
	said := fmt.Sprintf("The naive writer died with %d orders committed and %d events published: %d event is lost for good.", rows, published, rows-published)
	if !between || rows <= published {
		return said, errors.New("it could not be killed between the two writes")
	}
	text, err := p.payWithoutNATS(ctx, 20)
	return said + " With the outbox " + text, err
}
