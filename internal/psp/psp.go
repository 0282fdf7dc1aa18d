// Package psp is a payment provider for tests and for trying out: small, in Stripe's form, and as unkind as the real ones. It
// remembers idempotency keys, charges and refunds on disk, so that it may crash, and it can lose replies and be slow.
package psp

import (
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"sync"
	"time"
)

// A Charge is one that was made, or that the card's bank declined.
type Charge struct {
	ID       string            `json:"id"`
	Object   string            `json:"object"`
	Amount   int64             `json:"amount"`
	Currency string            `json:"currency"`
	Status   string            `json:"status"` // succeeded, failed
	Metadata map[string]string `json:"metadata"`
}

// A Refund gives back all of a charge.
type Refund struct {
	ID     string `json:"id"`
	Object string `json:"object"`
	Charge string `json:"charge"`
	Amount int64  `json:"amount"`
	Status string `json:"status"`
}

// Faults say which of the charges and refunds go wrong, every how many-th, 0 being none. Each goes wrong behind the effect, at
// the first request for it; of several faults the one that stands last here.
type Faults struct {
	Lose  int           // no reply
	Slow  int           // a reply after Delay
	Crash int           // the process dies
	Delay time.Duration // of a slow reply
	// DeclineAbove is the greatest amount that no bank declines; 0: none ever does.
	DeclineAbove int64
}

// A State is what the provider tells of itself, at /state: the faults that fired since its start, and what it holds.
type State struct {
	Lost, Slow, InFlight, Charges, Refunds int
}

// A Provider is the service as an http.Handler:
//
//	POST /v1/charges          amount, currency, metadata[reference]; header Idempotency-Key
//	GET  /v1/charges/search   ?query=metadata['reference']:'…', a list
//	POST /v1/refunds          charge; header Idempotency-Key
//	GET  /v1/refunds          ?charge=…, a list
//	GET  /state               a [State]
type Provider struct {
	faults Faults
	crash  func()
	mux    *http.ServeMux

	mu    sync.Mutex
	disk  *disk
	state State
}

// Open returns a provider that remembers in the file at path, and that crashes by crash.
func Open(path string, f Faults, crash func()) (*Provider, error) {
	d, err := openDisk(path)
	if err != nil {
		return nil, fmt.Errorf("psp: %w", err)
	}
	p := &Provider{faults: f, crash: crash, mux: http.NewServeMux(), disk: d}
	p.mux.HandleFunc("POST /v1/charges", p.postCharge)
	p.mux.HandleFunc("GET /v1/charges/search", p.searchCharges)
	p.mux.HandleFunc("POST /v1/refunds", p.postRefund)
	p.mux.HandleFunc("GET /v1/refunds", p.listRefunds)
	p.mux.HandleFunc("GET /state", func(w http.ResponseWriter, _ *http.Request) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.state.Charges, p.state.Refunds = p.disk.count()
		reply(w, http.StatusOK, p.state)
	})
	return p, nil
}

func (p *Provider) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.inFlight(1)
	defer p.inFlight(-1)
	p.mux.ServeHTTP(w, r)
}

func (p *Provider) inFlight(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state.InFlight += n
}

func (p *Provider) postCharge(w http.ResponseWriter, r *http.Request) {
	amount, err := strconv.ParseInt(r.FormValue("amount"), 10, 64)
	reference, key := r.FormValue("metadata[reference]"), r.Header.Get("Idempotency-Key")
	if err != nil || amount < 1 {
		refuse(w, http.StatusBadRequest, "invalid_request_error", "parameter_invalid_integer", "amount must be at least 1")
		return
	}
	p.once(w, r, key, func(n int) entry {
		c := &Charge{ID: fmt.Sprintf("ch_%06d", n), Object: "charge", Amount: amount, Currency: r.FormValue("currency"), Status: "succeeded",
			Metadata: map[string]string{"reference": reference}}
		if p.faults.DeclineAbove > 0 && amount > p.faults.DeclineAbove {
			c.Status = "failed"
		}
		return entry{Key: key, Charge: c}
	})
}

func (p *Provider) postRefund(w http.ResponseWriter, r *http.Request) {
	key := r.Header.Get("Idempotency-Key")
	p.mu.Lock()
	c := p.disk.charge(r.FormValue("charge"))
	p.mu.Unlock()
	if c == nil || c.Status != "succeeded" {
		refuse(w, http.StatusNotFound, "invalid_request_error", "resource_missing", "no such charge")
		return
	}
	p.once(w, r, key, func(n int) entry {
		if len(p.disk.refunds(c.ID)) > 0 {
			return entry{}
		}
		return entry{Key: key, Refund: &Refund{ID: fmt.Sprintf("re_%06d", n), Object: "refund", Charge: c.ID, Amount: c.Amount, Status: "succeeded"}}
	})
}

// once makes what do returns, or finds what the key made before, and answers, unless a fault keeps it from that.
func (p *Provider) once(w http.ResponseWriter, r *http.Request, key string, do func(n int) entry) {
	p.mu.Lock()
	e, known := p.disk.byKey(key)
	fault := ""
	if !known {
		n := len(p.disk.entries) + 1
		if e = do(n); e.Charge != nil || e.Refund != nil {
			if err := p.disk.add(e); err != nil {
				p.mu.Unlock()
				refuse(w, http.StatusInternalServerError, "api_error", "", err.Error())
				return
			}
			fault = p.fault(n)
		}
	}
	p.mu.Unlock()
	switch fault {
	case "crash":
		p.crash()
	case "lost":
		panic(http.ErrAbortHandler)
	case "slow":
		select {
		case <-r.Context().Done():
		case <-time.After(p.faults.Delay):
		}
	}
	switch {
	case e.Charge != nil && e.Charge.Status == "failed":
		refuse(w, http.StatusPaymentRequired, "card_error", "card_declined", "Your card was declined.")
	case e.Charge != nil:
		reply(w, http.StatusOK, e.Charge)
	case e.Refund != nil:
		reply(w, http.StatusOK, e.Refund)
	default:
		refuse(w, http.StatusBadRequest, "invalid_request_error", "charge_already_refunded", "the charge is refunded already")
	}
}

// fault is what goes wrong with the n-th effect.
func (p *Provider) fault(n int) string {
	every := func(m int) bool { return m > 0 && n%m == 0 }
	switch {
	case every(p.faults.Crash):
		return "crash"
	case every(p.faults.Slow):
		p.state.Slow++
		return "slow"
	case every(p.faults.Lose):
		p.state.Lost++
		return "lost"
	}
	return ""
}

var byReference = regexp.MustCompile(`^metadata\['reference'\]:'([^']*)'$`)

func (p *Provider) searchCharges(w http.ResponseWriter, r *http.Request) {
	query := byReference.FindStringSubmatch(r.FormValue("query"))
	if query == nil {
		refuse(w, http.StatusBadRequest, "invalid_request_error", "", "the query must be metadata['reference']:'…'")
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	reply(w, http.StatusOK, map[string]any{"object": "search_result", "data": p.disk.charges(query[1])})
}

func (p *Provider) listRefunds(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	reply(w, http.StatusOK, map[string]any{"object": "list", "data": p.disk.refunds(r.FormValue("charge"))})
}

func reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

func refuse(w http.ResponseWriter, status int, kind, code, text string) {
	reply(w, status, map[string]any{"error": map[string]string{"type": kind, "code": code, "message": text}})
}
