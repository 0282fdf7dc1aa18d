package heal_test

import (
	"slices"
	"testing"
	"time"

	"github.com/oncebox/oncebox/heal"
	"github.com/oncebox/oncebox/internal/stacktest"
)

// Nothing is wrong: nothing is sent again, and the next look begins behind what was closed.
func TestWhatIsAlikeIsComparedOnce(t *testing.T) {
	t.Parallel()
	asker, answerer := newPair(t)
	asker.ask(2500)
	answerer.effects(2500)
	asker.effects(2500)
	asker.alike(2500)
	answerer.alike(2500)
	stacktest.Eventually(t, patience, "the next look begins behind the buckets that are full", func() (bool, error) {
		r := asker.audit(heal.Options{})
		return r.FromBucket == 2 && r.Alike() && r.Compared == 501, nil
	})
	if n := asker.count("SELECT count(*) FROM oncebox.outbox WHERE headers ? 'oncebox-replay'"); n != 0 {
		t.Errorf("%d events were sent again", n)
	}
	for _, n := range []*node{asker, answerer} {
		stacktest.Eventually(t, patience, n.name+" keeps its mark", func() (bool, error) {
			return n.count("SELECT count(*) FROM oncebox.heal_mark WHERE book = 'events-asker-to-answerer' AND bucket = 2") == 1, nil
		})
	}
}

// The consumer's database is put back: what it had acknowledged since comes again, its answers are the same ones, and the asker
// takes no notice of them.
func TestAConsumersDatabaseThatIsPutBackIsHealed(t *testing.T) {
	t.Parallel()
	asker, answerer := newPair(t)
	asker.ask(1200)
	asker.effects(1200)
	answerer.halt()
	restore := answerer.saved()
	answerer.start()
	asker.ask(1300)
	asker.effects(2500)
	asker.alike(2500)
	stacktest.Eventually(t, patience, "a mark is behind what will be lost", func() (bool, error) {
		return asker.audit(heal.Options{}).Alike() && asker.count("SELECT COALESCE(max(bucket), 0) FROM oncebox.heal_mark") == 2, nil
	})
	answerer.halt()
	restore()
	answerer.start()
	if n := answerer.count("SELECT count(*) FROM effect"); n != 1200 {
		t.Fatalf("%d effects after the restore, want 1200", n)
	}
	stacktest.Eventually(t, patience, "the loss is seen", func() (bool, error) {
		r := asker.audit(heal.Options{DryRun: true})
		return r.Missing == 1300 && r.Resent == 0, nil
	})
	asker.alike(1300)
	answerer.effects(2500)
	answerer.once(2500)
	asker.once(2500)
	answerer.alike(1300) // under other seqs than the asker remembers
	asker.once(2500)
}

// The producer's database is put back: the consumer has what no outbox has any more. It is told, and nothing is done about it.
func TestAProducersDatabaseThatIsPutBackIsReported(t *testing.T) {
	t.Parallel()
	asker, answerer := newPair(t)
	asker.ask(100)
	asker.effects(100)
	asker.halt()
	restore := asker.saved()
	asker.start()
	lost := asker.ask(30)
	answerer.effects(130)
	asker.effects(130)
	asker.halt()
	restore()
	asker.start()
	asker.ask(5) // under the seqs of the lost ones
	answerer.effects(135)
	var r heal.Report
	stacktest.Eventually(t, patience, "the lost ones are named", func() (bool, error) {
		r = asker.audit(heal.Options{})
		return r.Unknown == 30 && r.Missing == 0, nil
	})
	slices.Sort(r.UnknownIDs)
	slices.Sort(lost)
	if !slices.Equal(r.UnknownIDs, lost) {
		t.Errorf("unknown are %v, want %v", r.UnknownIDs, lost)
	}
	answerer.once(135)
	if n := asker.count("SELECT count(*) FROM oncebox.outbox WHERE headers ? 'oncebox-replay'"); n != 0 {
		t.Errorf("%d events were sent again", n)
	}
	if r = asker.audit(heal.Options{}); r.Unknown != 30 {
		t.Errorf("at the next look %d are unknown: it does not forget them", r.Unknown)
	}
}

// The inbox forgot what its producer still keeps. Nobody knows whether it was handled: it is told, and not sent again.
func TestWhatTheInboxMayHaveForgottenIsNotSentAgain(t *testing.T) {
	t.Parallel()
	asker, answerer := newPair(t)
	asker.ask(40)
	answerer.effects(40)
	asker.effects(40)
	if _, err := answerer.inbox.Prune(t.Context()); err != nil { // by a retention of nothing, far below the producer's
		t.Fatal(err)
	}
	if n := answerer.count("SELECT count(*) FROM oncebox.inbox"); n != 0 {
		t.Fatalf("%d rows are left", n)
	}
	ids := asker.ask(1)
	answerer.effects(41)
	var r heal.Report
	stacktest.Eventually(t, patience, "what is missing is seen", func() (bool, error) {
		r = asker.audit(heal.Options{})
		return r.Missing == 40 && r.Compared == 41, nil
	})
	if r.TooOld != 40 || r.Resent != 0 || r.OnWay != 0 || slices.Contains(r.MissingIDs, ids[0]) {
		t.Errorf("got %+v, want 40 too old and none sent again", r)
	}
	answerer.once(41)
}

// What nobody has acknowledged is on its way, however long it takes: it is not missing.
func TestWhatIsNotAcknowledgedIsNotMissing(t *testing.T) {
	t.Parallel()
	asker, answerer := newPair(t)
	asker.ask(10)
	answerer.effects(10)
	asker.effects(10)
	release, err := answerer.pool.Begin(t.Context())
	must(t, err)
	defer release.Rollback(t.Context())
	_, err = release.Exec(t.Context(), "LOCK TABLE effect IN SHARE MODE")
	must(t, err)
	asker.ask(50)
	stacktest.Eventually(t, patience, "all is sent", func() (bool, error) {
		s, err := asker.relay.Status(t.Context())
		return s.Backlog == 0 && s.StreamSeq == 60, err
	})
	for range 3 {
		if r := asker.audit(heal.Options{}); !r.Alike() {
			t.Errorf("got %+v while messages wait", r)
		}
	}
	must(t, release.Rollback(t.Context()))
	answerer.effects(60)
	asker.alike(60)
	answerer.once(60)
}

// One row is taken out of the inbox by hand, and one is changed.
func TestWhatIsChangedByHandIsSeen(t *testing.T) {
	t.Parallel()
	asker, answerer := newPair(t)
	ids := asker.ask(2000)
	answerer.effects(2000)
	asker.alike(2000)
	// What is alike is behind the mark once every transaction is over that ran then, in whatever database of the server.
	stacktest.Eventually(t, patience, "the mark moves", func() (bool, error) { return asker.audit(heal.Options{}).FromBucket == 2, nil })
	_, err := answerer.pool.Exec(t.Context(), "UPDATE oncebox.inbox SET digest = digest + 1 WHERE id = $1", ids[7])
	must(t, err)
	_, err = answerer.pool.Exec(t.Context(), "DELETE FROM oncebox.inbox WHERE id = $1", ids[8])
	must(t, err)
	if r := asker.audit(heal.Options{}); !r.Alike() || r.FromBucket != 2 {
		t.Errorf("got %+v: what was found alike is looked at each time", r)
	}
	r := asker.audit(heal.Options{DryRun: true, Full: true})
	if !slices.Equal(r.ConflictIDs, ids[7:8]) || !slices.Equal(r.MissingIDs, ids[8:9]) {
		t.Errorf("got %+v, want the conflict %s and %s missing", r, ids[7], ids[8])
	}
}

func TestOptionsAreChecked(t *testing.T) {
	t.Parallel()
	for name, cfg := range map[string]heal.Config{
		"no source":    {Cursor: "c", Consumers: []string{"x"}},
		"no consumers": {Source: "s", Cursor: "c"},
		"a rate":       {Source: "s", Cursor: "c", Consumers: []string{"x"}, Rate: -1},
		"a time":       {Source: "s", Cursor: "c", Consumers: []string{"x"}, Every: -time.Second},
	} {
		if _, err := heal.NewAuditor(nil, nil, nil, cfg); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}
