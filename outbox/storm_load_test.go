package outbox_test

import (
	"context"
	"fmt"
	"math/rand/v2"
)

// stormKeys are those that the writers change; two more have events of their own: see storm.parkOne and storm.holdSlot.
const stormKeys = 12

// stormSQL is what a storm's database has beside the outbox: aggregates, the truth of what was committed, written by the same
// transactions, and a watch on the saved cursor.
//
// Writers are procedures, so that a machine with two cores has a thousand transactions a second to relay. write runs some that
// change the versions of one to three keys, one to four times, and add an event for each change, as the premises of order ask: the
// row's lock first, then the event. They take their time, before the first lock and before the end, set savepoints, roll those
// and themselves back, and half of them commit without waiting for the disk.
var stormSQL = []string{
	"CREATE TABLE aggregate (key text PRIMARY KEY, version bigint NOT NULL) WITH (fillfactor = 20)",
	fmt.Sprintf("INSERT INTO aggregate SELECT 'key-' || g, 0 FROM generate_series(1, %d) g", stormKeys),
	"INSERT INTO aggregate VALUES ('parked', 0), ('late', 0)",
	"CREATE TABLE truth (id uuid NOT NULL, key text NOT NULL, version bigint NOT NULL)",
	"CREATE TABLE went_back (what text, in_stream boolean)",
	`CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
		IF NEW.epoch < OLD.epoch OR (NEW.n, NEW.seq) < (OLD.n, OLD.seq) OR NEW.stream_seq < OLD.stream_seq THEN
			INSERT INTO went_back VALUES (OLD::text || ' -> ' || NEW::text, NEW.epoch >= OLD.epoch AND NEW.stream_seq < OLD.stream_seq);
		END IF;
		PERFORM pg_advisory_xact_lock_shared(1); -- see storm.sendUnsaved
		RETURN NEW; END $$`,
	"CREATE TRIGGER watch BEFORE UPDATE ON oncebox.outbox_cursor FOR EACH ROW EXECUTE FUNCTION watch()",
	`CREATE FUNCTION change(topic text, k text, old_slot int) RETURNS int LANGUAGE plpgsql AS $$
	DECLARE
		n int := 1 + floor(random() * 4);
		v bigint;
	BEGIN
		UPDATE aggregate SET version = version + n WHERE key = k RETURNING version - n INTO v;
		WITH e AS (SELECT gen_random_uuid() AS id, v + g AS version FROM generate_series(1, n) g),
		t AS (INSERT INTO truth SELECT id, k, version FROM e)
		INSERT INTO oncebox.outbox (slot, time, id, source, topic, key, version, tenant_id, headers, payload)
		SELECT COALESCE(old_slot, (extract(epoch FROM clock_timestamp())::bigint / 86400) % 16),
			clock_timestamp() - CASE WHEN old_slot IS NULL THEN '0 s' ELSE '9 days' END::interval, id, 'test', topic, k, version, '', '{}', '{}'
		FROM e ORDER BY version;
		RETURN n;
	END $$`,
	`CREATE PROCEDURE write(topic text, old_slot int, seed float, INOUT committed int) LANGUAGE plpgsql AS $$
	DECLARE
		k text;
		n int;
		slot int;
	BEGIN
		PERFORM setseed(seed);
		FOR i IN 1..2 LOOP
			n := 0;
			IF random() < 0.5 THEN
				PERFORM set_config('synchronous_commit', 'off', true);
			END IF;
			IF random() < 0.33 THEN -- an xid long before the lock
				PERFORM pg_current_xact_id(), pg_sleep(random() * 0.02);
			END IF;
			slot := CASE WHEN random() < 0.3 THEN old_slot END;
			FOREACH k IN ARRAY ARRAY(SELECT key FROM (SELECT key FROM aggregate WHERE key LIKE 'key-%' ORDER BY random() LIMIT 1 + floor(random() * 3)) AS a ORDER BY key) LOOP
				IF random() < 0.75 THEN
					n := n + change(topic, k, slot);
				ELSE
					DECLARE
						before int := n;
					BEGIN
						n := n + change(topic, k, slot);
						IF random() < 0.5 THEN
							RAISE EXCEPTION 'back to the savepoint' USING ERRCODE = 'OB999';
						END IF;
					EXCEPTION WHEN SQLSTATE 'OB999' THEN
						n := before;
					END;
				END IF;
			END LOOP;
			IF random() < 0.33 THEN
				PERFORM pg_sleep(random() * 0.01);
			END IF;
			IF random() < 0.2 THEN
				ROLLBACK;
			ELSE
				COMMIT;
				committed := committed + n;
			END IF;
		END LOOP;
	END $$`,
	// held_slot adds events to a slot in a transaction that ends as soon as somebody waits for that slot's lock.
	`CREATE PROCEDURE held_slot(topic text, old_slot int) LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM change(topic, 'late', old_slot);
		FOR i IN 1..5000 LOOP
			EXIT WHEN EXISTS (SELECT FROM pg_locks WHERE relation = ('oncebox.outbox_' || old_slot)::regclass AND mode = 'AccessExclusiveLock' AND NOT granted);
			PERFORM pg_sleep(0.001);
		END LOOP;
	END $$`,
}

// write runs transactions until the storm is over. One that is cut off is nobody's fault.
func (s *storm) write(rng *rand.Rand) {
	for s.turn() {
		var slot *int
		if s.old.Load() {
			slot = &s.oldSlot
		}
		var n int
		if err := s.pool.QueryRow(context.Background(), "CALL write($1, $2, $3, 0)", s.topic, slot, 2*rng.Float64()-1).Scan(&n); err == nil {
			s.wrote(n)
		}
		s.rest()
	}
}

// turn waits until more events are asked for; false says that no more will be.
func (s *storm) turn() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.written >= s.asked && !s.over {
		s.more.Wait()
	}
	if !s.over {
		s.writing++
	}
	return !s.over
}

func (s *storm) rest() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writing--
}

// quiet says that all writers wait to be asked.
func (s *storm) quiet() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.writing == 0 && s.written >= s.asked
}

func (s *storm) wrote(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.written += n
}

// ask has the writers commit n more events from now on.
func (s *storm) ask(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = max(s.asked, s.written+n) // each writer goes on to the end of what it began
	s.more.Broadcast()
}

// left is how many of n events are not written yet.
func (s *storm) left(n int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return n - s.written
}

func (s *storm) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	s.more.Broadcast()
}
