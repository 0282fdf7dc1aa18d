package page

import (
	"context"
	"fmt"
	"net/http"
	"strings"

	"github.com/google/uuid"
)

// deletes shows a delete that comes twice, and a retry that comes after it: on a table whose rows are deleted for good, and on
// orders.
func (p *Page) deletes(ctx context.Context) (string, error) {
	hard, err := p.hardDelete(ctx)
	if err != nil {
		return "", err
	}
	key := uuid.NewString()
	first, err := p.buy(ctx, oneTry, p.LinkURL, key)
	if err != nil {
		return "", err
	}
	order := first.order().ID
	err = awaits(ctx, "the order is paid", func() (paid bool, err error) {
		err = p.lab.Orders.QueryRow(ctx, "SELECT status = 'paid' FROM orders WHERE id = $1", order).Scan(&paid)
		return paid, err
	})
	if err != nil {
		return "", err
	}
	var answers [2]reply
	for i := range answers {
		if answers[i], err = p.call(ctx, oneTry, http.MethodDelete, p.LinkURL+"/v1/orders/"+order, "", ""); err != nil {
			return "", err
		}
	}
	late, err := p.buy(ctx, oneTry, p.LinkURL, key)
	if err != nil {
		return "", err
	}
	var refunds, orders int
	err = awaits(ctx, "the refund", func() (bool, error) {
		err := p.lab.Billing.QueryRow(ctx, `SELECT count(*) FROM ledger l JOIN charge c ON c.tenant_id = l.tenant_id AND c.id = l.charge_id
			WHERE c.order_id = $1 AND l.kind = 'refund' AND l.account = 'revenue'`, order).Scan(&refunds)
		return refunds > 0, err
	})
	if err != nil {
		return "", err
	}
	if err := p.lab.Orders.QueryRow(ctx, "SELECT count(*) FROM orders WHERE customer_id = $1", stranger(key)).Scan(&orders); err != nil {
		return "", err
	}
	same := answers[0].status == http.StatusOK && answers[1].status == answers[0].status && answers[1].body == answers[0].body
	return fmt.Sprintf("Hard: %s. Soft: the delete was answered %d twice with the same body, the late retry got the first answer (%d, order …%s), "+
			"and there is %d order with %d refund.", hard.says, answers[0].status, late.status, order[len(order)-6:], orders, refunds),
		hold(hard.made == 2 && same && late.replayed && late.order().ID == order && orders == 1 && refunds == 1)
}

type hardDelete struct {
	says string
	made int
}

// hardDelete deletes a row twice, and then has the request that made it come once more.
func (p *Page) hardDelete(ctx context.Context) (hardDelete, error) {
	_, err := p.lab.Naive.Exec(ctx, "CREATE TABLE IF NOT EXISTS naive_order (key text PRIMARY KEY)")
	if err != nil {
		return hardDelete{}, err
	}
	key := uuid.NewString()
	var made int
	var deleted []string
	for _, sql := range []string{
		"INSERT INTO naive_order VALUES ($1) ON CONFLICT DO NOTHING", // the constraint is there, and does what it can
		"DELETE FROM naive_order WHERE key = $1", "DELETE FROM naive_order WHERE key = $1",
		"INSERT INTO naive_order VALUES ($1) ON CONFLICT DO NOTHING",
	} {
		tag, err := p.lab.Naive.Exec(ctx, sql, key)
		switch {
		case err != nil:
			return hardDelete{}, err
		case tag.Insert():
			made += int(tag.RowsAffected())
		case tag.RowsAffected() == 1:
			deleted = append(deleted, "200")
		default:
			deleted = append(deleted, "404")
		}
	}
	return hardDelete{fmt.Sprintf("the delete was answered %s, and the late retry of the order made it again", strings.Join(deleted, ", then ")), made}, nil
}

// methods sends each method twice, as a retry does.
func (p *Page) methods(ctx context.Context) (string, error) {
	made, err := p.buy(ctx, oneTry, p.LinkURL, uuid.NewString())
	if err != nil {
		return "", err
	}
	order := p.LinkURL + "/v1/orders/" + made.order().ID
	err = awaits(ctx, "the order is paid", func() (bool, error) {
		r, err := p.call(ctx, oneTry, http.MethodGet, order, "", "")
		return r.order().Status == "paid", err
	})
	if err != nil {
		return "", err
	}
	const change = `{"customer_id":"stranger","description":"changed"}`
	customer := uuid.NewString()
	var said []string
	held := true
	for _, m := range []struct {
		name, method, url, body string
		keys                    [2]string
		headers                 []string
		same                    bool
	}{
		{"GET", http.MethodGet, order, "", [2]string{}, nil, true},
		{"PUT", http.MethodPut, order, change, [2]string{}, []string{"If-Match", "*"}, true},
		{"DELETE", http.MethodDelete, order, "", [2]string{}, nil, true},
		{"POST with another key each time", http.MethodPost, p.LinkURL + "/v1/orders", purchase(customer), [2]string{uuid.NewString(), uuid.NewString()}, nil, false},
		{"POST with one key", http.MethodPost, p.LinkURL + "/v1/orders", purchase(customer), [2]string{customer, customer}, nil, true},
	} {
		var twice [2]reply
		for i := range twice {
			if twice[i], err = p.call(ctx, oneTry, m.method, m.url, m.keys[i], m.body, m.headers...); err != nil {
				return "", err
			}
		}
		a, b := twice[0].order(), twice[1].order()
		same := a.ID == b.ID && a.Version == b.Version && a.ID != ""
		what := "the same, and nothing more was done"
		if !same {
			what = "two orders"
		}
		said = append(said, fmt.Sprintf("%s: %d, %d, %s", m.name, twice[0].status, twice[1].status, what))
		held = held && same == m.same
	}
	return strings.Join(said, ". ") + ".", hold(held)
}
