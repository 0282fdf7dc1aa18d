package outbox_test

import (
	"context"
	"time"
)

// replace starts a relay in the place of one that was ended.
func (s *storm) replace(i int) { s.relays[i] = s.startRelay() }

func (s *storm) kill() {
	i := s.rng.IntN(len(s.relays))
	must(s.t, s.relays[i].Kill())
	s.replace(i)
}

// killSending kills a relay while what it sends is on its way, at some byte.
func (s *storm) killSending() {
	if s.w.processes {
		s.kill()
		return
	}
	s.hold(20_000)
	s.ask(200)
	s.eventually("bytes are held up", func() (bool, error) { return s.held() >= 0, nil })
	i := s.held()
	must(s.t, s.relays[i].Kill())
	s.letGo()
	s.replace(i)
}

// pause stops a relay until another leads, and lets it be late.
func (s *storm) pause() {
	i := s.rng.IntN(len(s.relays))
	must(s.t, s.relays[i].Pause())
	before, logged := s.epoch(), s.lastSeq()
	s.ask(200)
	s.eventually("a relay leads that is not paused", func() (bool, error) {
		return s.epoch() > before || s.lastSeq() > logged+150, nil
	})
	must(s.t, s.relays[i].Continue())
}

// rob takes the lease from the relays whose bytes are held up or which are paused, and lets them go when another relay has gone on
// in their place.
func (s *storm) rob() {
	if !s.w.processes {
		s.hold(20_000)
		s.ask(200)
		s.eventually("bytes are held up", func() (bool, error) { return s.held() >= 0, nil })
	}
	for _, p := range s.relays {
		must(s.t, p.Pause())
	}
	_, err := s.pool.Exec(context.Background(), "UPDATE oncebox.outbox_cursor SET lease_until = '-infinity'")
	must(s.t, err)
	s.relays = append(s.relays, s.startRelay())
	logged := s.lastSeq()
	s.ask(200)
	s.eventually("the next one sends", func() (bool, error) { return s.lastSeq() > logged+50, nil })
	s.letGo()
	for _, p := range s.relays[:len(s.relays)-1] {
		must(s.t, p.Continue())
	}
}

func (s *storm) stopOne() {
	i := s.rng.IntN(len(s.relays))
	end, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	must(s.t, s.relays[i].Stop(end))
	s.replace(i)
}

// cutOff ends connections to the database that are in a transaction or a query, of writers and of relays.
func (s *storm) cutOff() {
	_, err := s.pool.Exec(context.Background(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
		WHERE datname = current_database() AND pid <> pg_backend_pid() AND state <> 'idle' AND random() < 0.3`)
	must(s.t, err)
}

// vacuum vacuums, and where slots are emptied waits until one has had rows and has lost them.
func (s *storm) vacuum() {
	_, err := s.pool.Exec(context.Background(), "VACUUM oncebox.outbox, oncebox.outbox_cursor, oncebox.outbox_tick")
	must(s.t, err)
	if !s.w.empties {
		return
	}
	s.old.Store(false)
	s.ask(300)
	s.eventually("the old slot is emptied", func() (bool, error) { return s.rows(s.oldSlot) == 0, nil })
	s.old.Store(true)
}

// blow comes to the wave's next wind, once all of its storms have.
func (s *storm) blow(i int) {
	ok := s.w.meeting.all(func() {
		before := map[*storm]uint64{}
		for _, other := range s.w.storms {
			before[other] = other.lastSeq()
			other.ask(100)
		}
		for _, other := range s.w.storms {
			s.eventually("all storms blow", func() (bool, error) { return other.lastSeq() > before[other]+uint64(s.rng.IntN(50)), nil })
		}
		s.w.blows[i](s.w, s.t)
	})
	if !ok {
		s.t.Skip("another storm of the wave has failed")
	}
	s.pool.Reset()
	var up bool
	s.query("the database is back", &up, "SELECT true")
	s.underway(100)
}

func (s *storm) epoch() (epoch int64) {
	s.query("the epoch", &epoch, "SELECT COALESCE(max(epoch), 0) FROM oncebox.outbox_cursor")
	return epoch
}

// hold holds up what the relays send, each from some byte on.
func (s *storm) hold(bytes int) {
	for _, p := range s.relays {
		p.(*wiredRelay).holdBehind(1 + s.rng.IntN(bytes))
	}
}

// held is a relay whose bytes are held up, -1 if none is.
func (s *storm) held() int {
	for i, p := range s.relays {
		if p.(*wiredRelay).holds() {
			return i
		}
	}
	return -1
}

func (s *storm) letGo() {
	for _, p := range s.relays {
		if w, ok := p.(*wiredRelay); ok {
			w.open()
		}
	}
}
