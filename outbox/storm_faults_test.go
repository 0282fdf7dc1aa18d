package outbox_test

import (
	"context"
	"sync"
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
	s.ask(100)
	s.eventually("bytes are held up", func() (bool, error) { return s.held() >= 0, nil })
	i := s.held()
	if s.w.spying.sayAgain(s.declared.Name) && s.within(100*time.Millisecond, s.savedTooMuch) {
		s.t.Error("the saved cursor says that more is in the stream than is, while it is still on its way")
	}
	must(s.t, s.relays[i].Kill())
	s.letGo()
	s.replace(i)
}

// savedTooMuch says that the stream does not hold what the cursor says.
func (s *storm) savedTooMuch() (bool, error) {
	var saved uint64
	err := s.pool.QueryRow(context.Background(), "SELECT stream_seq FROM oncebox.outbox_cursor").Scan(&saved)
	last := s.lastSeq()
	return last > 0 && saved > last, err
}

// pause stops a relay until another leads, and lets it be late.
func (s *storm) pause() {
	i := s.rng.IntN(len(s.relays))
	must(s.t, s.relays[i].Pause())
	before, logged := s.epoch(), s.lastSeq()
	s.ask(100)
	s.eventually("a relay leads that is not paused", func() (bool, error) {
		return s.epoch() > before || s.lastSeq() > logged+75, nil
	})
	must(s.t, s.relays[i].Continue())
}

// rob takes the lease from the relays whose bytes are held up or which are paused, and lets them go when another relay has gone on
// in their place.
func (s *storm) rob() {
	if !s.w.processes {
		s.hold(20_000)
		s.ask(100)
		s.eventually("bytes are held up", func() (bool, error) { return s.held() >= 0, nil })
	}
	for _, p := range s.relays {
		must(s.t, p.Pause())
	}
	_, err := s.pool.Exec(context.Background(), "UPDATE oncebox.outbox_cursor SET lease_until = '-infinity'")
	must(s.t, err)
	s.relays = append(s.relays, s.startRelay())
	logged := s.lastSeq()
	s.ask(100)
	s.eventually("the next one sends", func() (bool, error) { return s.lastSeq() > logged+50, nil })
	s.forget()
	s.letGo()
	for _, p := range s.relays[:len(s.relays)-1] {
		must(s.t, p.Continue())
	}
}

// forget has events sent until the broker has forgotten the ids of those that are in the stream by now: a late batch of them is then
// refused for its sequence alone.
func (s *storm) forget() {
	if s.w.remembers {
		return
	}
	var sent, last time.Time
	s.eventually("the ids are forgotten", func() (bool, error) {
		stream, err := s.js.Stream(context.Background(), s.declared.Name)
		if err != nil {
			return false, err
		}
		if last = stream.CachedInfo().State.LastTime; sent.IsZero() {
			sent = last
		}
		s.ask(10)
		return last.After(sent.Add(2 * s.declared.Duplicates)), nil
	})
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
	var held sync.WaitGroup
	held.Go(s.holdSlot)
	s.old.Store(false)
	s.ask(100)
	held.Wait()
	s.eventually("the old slot is emptied", func() (bool, error) { return s.rows(s.oldSlot) == 0, nil })
	s.old.Store(true)
}

// holdSlot adds events to the old slot that commit when a relay that has looked at the slot waits for its lock. One that is cut off is
// nobody's fault.
func (s *storm) holdSlot() {
	_, _ = s.pool.Exec(context.Background(), "CALL held_slot($1, $2)", s.topic, s.oldSlot)
}

// parkOne commits, between others of its key, an event that the stream cannot hold until the storm is over.
func (s *storm) parkOne() {
	s.eventually("an event is committed that cannot be sent", func() (bool, error) {
		_, err := s.pool.Exec(context.Background(), "SELECT change($1, 'parked', NULL), change($2, 'parked', NULL), change($1, 'parked', NULL)", s.topic, s.unsendable)
		return err == nil, err
	})
	s.eventually("it is parked", func() (parked bool, err error) {
		err = s.pool.QueryRow(context.Background(), "SELECT EXISTS (SELECT FROM oncebox.outbox_parked WHERE topic = $1)", s.unsendable).Scan(&parked)
		return parked, err
	})
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
