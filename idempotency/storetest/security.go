package storetest

import (
	"net/http"
	"strings"

	"github.com/google/go-cmp/cmp"

	"github.com/oncebox/oncebox/idempotency"
)

var securityCases = []Case{
	{"logs-traces-metrics-contain-no-raw-key-or-body-grep", func(r *rig) {
		s := r.serve(required, func(w http.ResponseWriter, req *http.Request) {
			if req.URL.Path == "/panic" {
				panic("out of luck")
			}
			r.charge(w, req)
		})
		s.do("POST", "/panic", "secret-body", "Idempotency-Key", "secret-key-1")
		s.do("POST", "/charges", "secret-body", "Idempotency-Key", "secret-key-2")
		s.do("POST", "/charges", "secret-other", "Idempotency-Key", "secret-key-2")
		var all strings.Builder
		all.WriteString(s.log.String())
		families, err := s.requests.Gather()
		if err != nil {
			r.Fatal(err)
		}
		for _, f := range families {
			all.WriteString(f.String())
		}
		if all := all.String(); !strings.Contains(all, "out of luck") || !strings.Contains(all, "oncebox_idempotency_requests_total") {
			r.Errorf("the log and the metrics are not there: %s", all)
		} else if strings.Contains(all, "secret") {
			r.Errorf("a key or a body is in the log or the metrics: %s", all)
		}
	}},
	{"anonymous-route-with-key", func(r *rig) {
		_, err := idempotency.New(r.Store(r), idempotency.Config{})
		if err == nil || !strings.Contains(err.Error(), "Config.Scope") {
			r.Errorf("got %v, want an error that names Config.Scope", err)
		}
		if _, err := idempotency.New(r.Store(r), idempotency.Config{Scope: idempotency.SingleTenant}); err != nil {
			r.Error(err)
		}
	}},
	{"metrics-each-request-counted-once", func(r *rig) {
		started, release := make(chan struct{}), make(chan struct{})
		p := required
		p.Wait = -1
		s := r.serve(p, func(w http.ResponseWriter, req *http.Request) {
			switch req.URL.Path {
			case "/slow":
				close(started)
				<-release
			case "/invalid":
				w.WriteHeader(http.StatusUnprocessableEntity)
				return
			}
			r.charge(w, req)
		})
		slow := make(chan reply)
		go func() { slow <- s.do("POST", "/slow", body, "Idempotency-Key", "slow") }()
		<-started
		s.do("POST", "/slow", body, "Idempotency-Key", "slow")    // conflict
		s.do("POST", "/charges", body, "Idempotency-Key", "slow") // mismatch
		close(release)
		<-slow              // executed
		s.post("k", body)   // executed
		s.post("k", body)   // replayed
		s.post("k", body)   // replayed
		s.post("k", "else") // mismatch
		s.do("POST", "/invalid", body, "Idempotency-Key", "l")
		s.do("POST", "/charges", body)   // rejected: no key
		s.do("GET", "/charges", "")      // not counted
		s.do("DELETE", "/charges", body) // not counted
		want := map[string]float64{"executed": 2, "replayed": 2, "conflict": 1, "mismatch": 2, "not_kept": 1, "rejected": 1, "unknown": 0, "store_error": 0}
		if diff := cmp.Diff(want, s.counted()); diff != "" {
			r.Errorf("requests by outcome (-want +got):\n%s", diff)
		}
	}},
}

// counted are the requests by outcome.
func (s *server) counted() map[string]float64 {
	s.Helper()
	families, err := s.requests.Gather()
	if err != nil {
		s.Fatal(err)
	}
	counted := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			counted[m.GetLabel()[0].GetValue()] = m.GetCounter().GetValue()
		}
	}
	return counted
}
