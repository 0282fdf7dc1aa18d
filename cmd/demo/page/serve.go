package page

import (
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"strings"
	"time"
)

//go:embed assets
var assets embed.FS

// Handler serves the page at address, host and port on loopback. Requests that came by another name or from another origin
// are refused: with the page one kills processes.
func (p *Page) Handler(address string) http.Handler {
	files, err := fs.Sub(assets, "assets")
	if err != nil {
		panic(err) // the folder is embedded
	}
	mux := http.NewServeMux()
	mux.Handle("GET /", http.FileServerFS(files))
	mux.HandleFunc("GET /api/events", p.events)
	mux.HandleFunc("GET /api/console", p.console)
	mux.HandleFunc("GET /api/journey", p.journeyOf)
	mux.HandleFunc("POST /api/operate", p.operated)
	mux.HandleFunc("POST /api/pay", command(func(in struct {
		Count int `json:"count"`
	}) error {
		if in.Count < 1 || in.Count > 1000 {
			return errors.New("count must be from 1 to 1000")
		}
		return p.Pay(in.Count)
	}))
	mux.HandleFunc("POST /api/settings", command(p.Set))
	mux.HandleFunc("POST /api/reset", command(func(struct{}) error { p.Reset(); return nil }))
	mux.HandleFunc("POST /api/faults/{id}", func(w http.ResponseWriter, r *http.Request) { answer(w, p.Break(r.PathValue("id"))) })
	mux.HandleFunc("POST /api/chapters/{id}", func(w http.ResponseWriter, r *http.Request) { answer(w, p.Play(r.PathValue("id"))) })

	_, port, err := net.SplitHostPort(address)
	if err != nil {
		panic(err) // a listener's address
	}
	own := map[string]bool{address: true, "localhost:" + port: true}
	guarded := http.NewCrossOriginProtection().Handler(mux)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cache-Control", "no-store")
		site := r.Header.Get("Sec-Fetch-Site")
		foreign := site == "cross-site" || site == "same-site"
		if !own[r.Host] || foreign && r.Header.Get("Sec-Fetch-Mode") != "navigate" {
			http.Error(w, "this page answers to itself only", http.StatusForbidden)
			return
		}
		guarded.ServeHTTP(w, r)
	})
}

// command decodes a small JSON body for do.
func command[T any](do func(T) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var in T
		if decode(w, r, &in) {
			answer(w, do(in))
		}
	}
}

// decode reads a small JSON body, or refuses it.
func decode(w http.ResponseWriter, r *http.Request, v any) bool {
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4096))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil && !errors.Is(err, io.EOF) {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return false
	}
	return true
}

func answer(w http.ResponseWriter, err error) {
	switch {
	case errors.Is(err, errUnknown), errors.Is(err, errNoJourney):
		http.Error(w, err.Error(), http.StatusNotFound)
	case errors.Is(err, errBusy), errors.Is(err, errFull):
		http.Error(w, err.Error(), http.StatusConflict)
	case err != nil:
		http.Error(w, err.Error(), http.StatusBadRequest)
	default:
		w.WriteHeader(http.StatusAccepted)
	}
}

// A state is all that the page shows. Its sums and its rows are of one moment, and come in one message.
type state struct {
	Run       string    `json:"run"`
	Settings  Settings  `json:"settings"`
	Sums      Sums      `json:"sums"`
	Tries     int       `json:"tries"`
	Lost      int       `json:"lost"`
	Published int       `json:"published"`
	Copies    int       `json:"copies"`
	Way       sight     `json:"way"`
	Processes []process `json:"processes"`
	Busy      string    `json:"busy"`
	Outcomes  []Outcome `json:"outcomes"`
	Letters   int       `json:"letters"` // of both services, as far as the console shows them
	More      bool      `json:"more"`    // and there are more
	Rows      []intent  `json:"rows"`    // those that have changed
}

type process struct {
	Name  string `json:"name"`
	Pid   int    `json:"pid,omitempty"`
	State string `json:"state"` // up, dead, paused
}

// news is what is true now, with the rows that have changed since version, and the version that it brings one to.
func (p *Page) news(run string, since uint64) (s state, version uint64, changed <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.run
	if run != r.id {
		since = 0
	}
	rows := []intent{}
	for _, in := range r.intents {
		if in.version > since {
			c := *in
			c.Tries = append([]Try{}, in.Tries...)
			rows = append(rows, c)
		}
	}
	s = state{Rows: rows, Run: r.id, Settings: r.settings, Sums: r.sums(), Tries: r.tries, Lost: r.lost, Published: len(r.published), Copies: r.copies, Way: r.seen, Busy: p.busy,
		Outcomes: append([]Outcome{}, p.outcomes...)}
	s.Processes = p.processes()
	for _, d := range p.desks {
		s.Letters += len(d.Letters)
		s.More = s.More || d.More
	}
	nats := process{Name: "NATS", State: "up"}
	switch {
	case p.natsStill:
		nats.State = "paused"
	case !r.seen.NATSAnswers:
		nats.State = "silent"
	}
	postgres := process{Name: "Postgres", State: "up"}
	if !r.seen.DatabasesAnswer {
		postgres.State = "silent"
	}
	s.Processes = append(s.Processes, nats, postgres)
	return s, p.version, p.changed
}

// processes are the services and the naive consumer, and how they stand. p.mu is held.
func (p *Page) processes() (all []process) {
	if p.lab.Containers { // they are others', and are asked
		for i, a := range p.lab.Admins {
			is := process{Name: a.Name, State: "up"}
			if !p.desks[i].Answers {
				is.State = "silent"
			}
			all = append(all, is)
		}
		return all
	}
	for _, l := range []Process{p.lab.OrdersProcess, p.lab.BillingProcess, p.lab.NaiveProcess} {
		is := process{Name: l.Name, Pid: l.Pid(), State: "up"}
		if !l.Alive() {
			is.State = "dead"
		}
		all = append(all, is)
	}
	return all
}

// tempo is the least time between two messages to a browser: what changes meanwhile comes together.
const tempo = 150 * time.Millisecond

// A stream sends server-sent events.
type stream struct {
	w   http.ResponseWriter
	out *http.ResponseController
}

func newStream(w http.ResponseWriter) stream {
	w.Header().Set("Content-Type", "text/event-stream")
	return stream{w, http.NewResponseController(w)}
}

func (s stream) send(event string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(s.w, "event: %s\ndata: %s\n\n", event, data)
	return err
}

// events streams the page's news. There is no queue to grow: who comes late gets what is true now.
func (p *Page) events(w http.ResponseWriter, r *http.Request) {
	out := newStream(w)
	if out.send("lab", map[string]any{"faults": p.Faults(), "chapters": p.Chapters()}) != nil {
		return
	}
	run, version := "", uint64(0)
	for {
		s, now, changed := p.news(run, version)
		run, version = s.Run, now
		if out.send("state", s) != nil { // the browser is gone
			return
		}
		if out.out.Flush() != nil || wait(r.Context(), tempo) != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-changed:
		}
	}
}

// console streams what an operator sees, each second, and the charts, each other second: drawing costs some milliseconds, and
// only who looks pays for it.
func (p *Page) console(w http.ResponseWriter, r *http.Request) {
	out := newStream(w)
	for n := 0; ; n++ {
		p.mu.Lock()
		desks, h := append([]desk{}, p.desks...), history{append([]moment{}, p.history.moments...)}
		p.mu.Unlock()
		if out.send("desks", desks) != nil {
			return
		}
		if n%2 == 0 {
			drawn := map[string]string{}
			for _, c := range allCharts {
				svg, err := c.svg(h)
				if err != nil {
					svg = "" // the numbers are there without it
				}
				drawn[c.ID] = svg
			}
			if out.send("charts", drawn) != nil {
				return
			}
		}
		if out.out.Flush() != nil || wait(r.Context(), deskPause) != nil {
			return
		}
	}
}

func (p *Page) journeyOf(w http.ResponseWriter, r *http.Request) {
	j, err := p.journey(r.Context(), strings.TrimSpace(r.URL.Query().Get("q")))
	if err != nil {
		answer(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(j)
}
