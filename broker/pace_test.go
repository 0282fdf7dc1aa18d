package broker_test

import (
	"testing"
	"time"

	"github.com/oncebox/oncebox/broker"
	"github.com/oncebox/oncebox/internal/stacktest"
)

// A server that syncs each message, of which nobody told the sink, is slow, and acknowledges nothing of what has come to it before all
// of that is stored. It is not taken for one that is away.
func TestASlowBrokerIsNotTakenForOneThatIsAway(t *testing.T) {
	t.Parallel()
	r := newRig(t, stacktest.SyncAlways)
	const some, many = 1000, 9000
	slow := r.sinkIn(broker.SyncInterval)
	_, _, err := slow.Open(t.Context(), 0)
	must(t, err)
	began := time.Now()
	_, last, err := storeAll(slow, events(1, some))
	must(t, err)
	each := time.Since(began) / some

	// Less time than all that may be on its way take, and more than a few of them do.
	s, err := broker.NewSink(r.nc, broker.Stream("TEST", "test.>"), broker.SinkConfig{Sync: broker.SyncInterval, Timeout: 1500 * each})
	must(t, err)
	_, _, err = s.Open(t.Context(), last)
	must(t, err)
	stored, _, err := storeAll(s, events(some+1, some+many))
	if err != nil || stored != many {
		t.Errorf("stored %d of %d, and then: %v; one takes %s", stored, many, err, each)
	}
}
