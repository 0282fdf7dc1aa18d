package outbox

import (
	stdsql "database/sql"
	"errors"
	"fmt"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"

	"github.com/oncebox/oncebox"
)

// Publisher returns a Watermill publisher whose messages become events of tx, so that, say, a CQRS EventBus made with it is
// transactional: what it publishes is sent if tx commits, and never otherwise. It belongs to tx's goroutine and ends with tx.
//
// The topic becomes the event's type. A message whose metadata hold an event's attributes (as [oncebox.Event.Message] makes
// them) keeps them, and its ce-type has to be the topic; of any other message the UUID becomes the event's id (a UUID it must
// be) and its key, unless the metadata have one under [oncebox.HeaderKey]; the rest of the metadata become headers.
//
// Publish runs under the context of the first message; its errors are [Writer.Add]'s. Close does nothing.
func (w *Writer) Publisher(tx pgx.Tx) (message.Publisher, error) {
	return sql.NewPublisher(sql.TxFromPgx(tx), sql.PublisherConfig{SchemaAdapter: schemaAdapter{w}}, watermill.NopLogger{})
}

// schemaAdapter teaches watermill-sql's publisher our table. Reading is the relay's.
type schemaAdapter struct{ w *Writer }

var errRelayReads = errors.New("outbox: the relay reads the outbox, a subscriber cannot")

func (a schemaAdapter) InsertQuery(p sql.InsertQueryParams) (sql.Query, error) {
	if len(p.Msgs) == 0 {
		return sql.Query{}, errors.New("outbox: no messages to publish")
	}
	events := make([]oncebox.Event, len(p.Msgs))
	for i, m := range p.Msgs {
		e, err := a.w.eventOf(p.Topic, m)
		if err != nil {
			return sql.Query{}, fmt.Errorf("outbox: message %.64q: %w", m.UUID, err)
		}
		events[i] = e
	}
	insert, args, err := a.w.statement(events)
	return sql.Query{Query: insert, Args: args}, err
}

func (w *Writer) eventOf(topic string, m *message.Message) (oncebox.Event, error) {
	if m.Metadata.Get(oncebox.HeaderSpecVersion) != "" {
		whole := m.Copy()
		if whole.Metadata[oncebox.HeaderSource] == "" {
			whole.Metadata[oncebox.HeaderSource] = w.cfg.Source
		}
		e, err := oncebox.Decode(whole)
		if err == nil && e.Type != topic {
			err = fmt.Errorf("%w: its type %.64q is not the topic %.64q", oncebox.ErrInvalid, e.Type, topic)
		}
		return e, err
	}
	e := oncebox.Event{ID: m.UUID, Type: topic, Key: m.UUID, Data: m.Payload, Headers: make(map[string]string, len(m.Metadata))}
	for name, value := range m.Metadata {
		if name == oncebox.HeaderKey {
			e.Key = value
			continue
		}
		e.Headers[name] = value
	}
	return e, nil
}

func (schemaAdapter) SelectQuery(sql.SelectQueryParams) (sql.Query, error) {
	return sql.Query{}, errRelayReads
}

func (schemaAdapter) UnmarshalMessage(sql.UnmarshalMessageParams) (sql.Row, error) {
	return sql.Row{}, errRelayReads
}

func (schemaAdapter) SchemaInitializingQueries(sql.SchemaInitializingQueriesParams) ([]sql.Query, error) {
	return nil, errors.New("outbox: the tables are made by the migrations")
}

func (schemaAdapter) SubscribeIsolationLevel() stdsql.IsolationLevel {
	return stdsql.LevelReadCommitted
}
