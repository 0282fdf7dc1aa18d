package chaos

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/oncebox/oncebox/internal/stacktest"
)

// Invariant: a key makes one order and has one answer, whichever process it is sent to and however often at once.
func TestDuplicateRequestsMakeOneOrder(t *testing.T) {
	t.Parallel()
	s := startSystem(t, nil, nil)
	second := s.orders.twin(t, brisk)
	second.start(t)

	const requests = 50
	answers, errs := make([]answer, requests), make([]error, requests)
	var ready, done sync.WaitGroup
	ready.Add(requests)
	for i := range requests {
		done.Go(func() {
			to := s.orders
			if i%2 == 1 {
				to = second
			}
			ready.Done()
			ready.Wait()
			for answers[i].status == 0 && errs[i] == nil || answers[i].status == http.StatusConflict && errs[i] == nil { // in progress
				answers[i], errs[i] = to.post(t.Context(), "one-key", 4200)
			}
		})
	}
	done.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	for i, a := range answers {
		if a.status != http.StatusCreated || string(a.body) != string(answers[0].body) {
			t.Errorf("request %d was answered %d, %s; request 0 %s", i, a.status, a.body, answers[0].body)
		}
	}
	const keys = "oncebox_idempotency_requests_total"
	if n := s.orders.metric(t, keys, "outcome", "replayed") + second.metric(t, keys, "outcome", "replayed"); n != requests-1 {
		t.Errorf("%v requests were given the answer that was kept, want %d", n, requests-1)
	}
	if n := s.orders.metric(t, "oncebox_relay_leading") + second.metric(t, "oncebox_relay_leading"); n != 1 {
		t.Errorf("%v relays lead on one database, want 1", n)
	}
	s.settle(t)
	s.checkOnce(t, 1)
}

// Invariant: what one service knows of the other's data came to it in an event.
func TestNeitherServiceCanReadTheOthersTables(t *testing.T) {
	t.Parallel()
	s := startSystem(t, nil, nil)
	for _, c := range []struct {
		own, other         *service
		ownTable, othersDB string
	}{
		{s.orders, s.billing, "orders", s.billing.role},
		{s.billing, s.orders, "charge", s.orders.role},
	} {
		cfg, err := pgx.ParseConfig(c.own.app)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := pgx.ConnectConfig(t.Context(), cfg)
		if err != nil {
			t.Fatalf("%s cannot connect to its own database: %v", c.own.name, err)
		}
		defer conn.Close(context.WithoutCancel(t.Context()))
		if _, err := conn.Exec(t.Context(), "SELECT FROM "+c.ownTable); err != nil {
			t.Errorf("%s cannot read its own tables: %v", c.own.name, err)
		}
		if _, err := conn.Exec(t.Context(), "SET ROLE "+c.other.role); !denied(err) {
			t.Errorf("%s becomes %s's role: %v", c.own.name, c.other.name, err)
		}
		cfg.Database = c.othersDB
		if other, err := pgx.ConnectConfig(t.Context(), cfg); !denied(err) {
			t.Errorf("%s connects to %s's database: %v", c.own.name, c.other.name, err)
			if err == nil {
				other.Close(t.Context())
			}
		}
	}
}

// denied says whether Postgres refused for want of a privilege.
func denied(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == "42501"
}

// Invariant: orders takes orders for as long as its database lives, also when NATS was never there.
func TestOrdersStartsAndTakesOrdersWithoutNATS(t *testing.T) {
	t.Parallel()
	s := startSystem(t, nil, nil)
	s.orders.kill(t)
	s.orders.link.cut()
	s.orders.start(t)
	for i := range 3 {
		s.order(t, fmt.Sprint("key-", i))
	}
	failures := s.orders.metric(t, "oncebox_relay_failures_total")
	stacktest.Eventually(t, patience, "the relay has tried again", func() (bool, error) {
		return s.orders.metric(t, "oncebox_relay_failures_total") > failures+1, nil
	})
	if connected, err := s.orders.connected(t.Context()); err != nil || connected || !s.orders.isReady(t) {
		t.Fatalf("orders is connected: %t (%v); ready: %t", connected, err, s.orders.isReady(t))
	}
	if n := s.published(t); n != 0 {
		t.Fatalf("%d messages went over a link that is cut", n)
	}
	s.orders.link.mend(t)
	s.settle(t)
	s.checkOnce(t, 3)
}
