package billing_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/events"
	"github.com/oncebox/oncebox/internal/stacktest"
)

// What a stream may bring that is no mistake, or is harmless: each by a real broker.
func TestWhatComesAgainOrOtherwiseIsChargedOnce(t *testing.T) {
	t.Parallel()
	l, start := newLine(t)
	start()
	publish := func(t *testing.T, change func(headers map[string][]string, data *[]byte), e oncebox.Event) {
		t.Helper()
		m := wire(e)
		change(m.Header, &m.Data)
		_, err := l.js.PublishMsg(context.Background(), m)
		must(t, err)
	}
	asItIs := func(map[string][]string, *[]byte) {}
	charged := func(t *testing.T, e oncebox.Event, want int) {
		t.Helper()
		var n int
		must(t, l.pool.QueryRow(t.Context(), "SELECT count(*) FROM charge WHERE order_id = $1", e.Key).Scan(&n))
		if n != want {
			t.Errorf("%d charges of the order, want %d", n, want)
		}
	}
	dead := func(t *testing.T, want int) {
		t.Helper()
		var n int
		must(t, l.pool.QueryRow(t.Context(), "SELECT count(*) FROM oncebox.dead_letter").Scan(&n))
		if n != want {
			t.Errorf("%d dead letters, want %d", n, want)
		}
	}
	t.Run("redelivery-10", func(t *testing.T) {
		e := request()
		for range 10 { // without a message id: the broker takes each for another
			publish(t, asItIs, e)
		}
		l.settled()
		charged(t, e, 1)
		// A delivery whose time is over comes again while its first handler still runs.
		hold, err := l.pool.Begin(t.Context())
		must(t, err)
		_, err = hold.Exec(t.Context(), "LOCK TABLE charge IN SHARE MODE")
		must(t, err)
		slow := request()
		done := make(chan error, 2)
		for range 2 {
			go func() { done <- l.handle(slow) }()
		}
		stacktest.Eventually(t, time.Minute, "a handler is in the middle of the charge", func() (bool, error) {
			var n int
			err := l.pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
				AND wait_event_type = 'Lock' AND query LIKE '%INSERT INTO charge%'`).Scan(&n)
			return n > 0, err
		})
		must(t, hold.Rollback(t.Context()))
		failed := 0
		for range 2 { // the second one waits for the first, or is told to come again
			if err := <-done; err != nil {
				failed++
			}
		}
		if failed > 1 {
			t.Error("neither delivery was handled")
		}
		charged(t, slow, 1)
		dead(t, 0)
	})
	t.Run("unknown-type-extra-fields", func(t *testing.T) {
		unknown, next, more := request(), request(), request()
		publish(t, func(h map[string][]string, _ *[]byte) { h["ce-type"] = []string{"orders.order.framed.v1"} }, unknown)
		publish(t, func(h map[string][]string, _ *[]byte) { h["ce-type"] = []string{"orders.charge.requested.v2"} }, next)
		publish(t, func(_ map[string][]string, data *[]byte) {
			*data = []byte(strings.Replace(string(*data), "{", `{"since":"tomorrow",`, 1))
		}, more)
		l.settled()
		charged(t, unknown, 0)
		charged(t, next, 0)
		charged(t, more, 1)
		dead(t, 0)
		l.want("acknowledged and counted", fmt.Sprintf("SELECT state FROM oncebox.inbox WHERE id IN ('%s', '%s')", unknown.ID, next.ID), "done", "done")
	})
	t.Run("ce-id-cased-or-structured-mode-producer", func(t *testing.T) {
		e, structured := request(), request()
		publish(t, func(h map[string][]string, _ *[]byte) {
			for name, values := range h {
				if rest, ok := strings.CutPrefix(name, "ce-"); ok {
					delete(h, name)
					h["Ce-"+strings.ToUpper(rest[:1])+rest[1:]] = values
				}
			}
		}, e)
		publish(t, func(h map[string][]string, data *[]byte) {
			*data = fmt.Appendf(nil, `{"specversion":"1.0","id":%q,"source":%q,"type":%q,"time":%q,"partitionkey":%q,"tenantid":%q,"sequence":"1",
				"datacontenttype":"application/json","data":%s}`, structured.ID, structured.Source, structured.Type,
				h["ce-time"][0], structured.Key, structured.TenantID, *data)
			clear(h)
			h["content-type"] = []string{"application/cloudevents+json; charset=utf-8"}
		}, structured)
		l.settled()
		charged(t, e, 1)
		charged(t, structured, 1)
		dead(t, 0)
		var topics []string
		for _, of := range []oncebox.Event{e, structured} {
			topics = append(topics, l.column("SELECT topic FROM oncebox.outbox WHERE headers->>'ce-causationid' = '"+of.ID+"'")...)
		}
		if strings.Join(topics, " ") != events.TypeChargeSucceeded+" "+events.TypeChargeSucceeded {
			t.Errorf("the answers are %v", topics)
		}
	})
}
