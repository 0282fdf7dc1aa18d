package page

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
)

// racers is how many requests come at the same moment.
const racers = 20

// takeOnce is check-then-act as one step: Redis runs a script alone. The answer is 1 for whoever took the key.
var takeOnce = redis.NewScript(`
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', 60000)
return 1`)

// race has f done by all racers, each of which calls ready where it has checked, and goes on when all have: the schedule that a
// busy day finds by itself. It counts for how many f was true.
func race(f func(racer int, checked func()) (bool, error)) (int, error) {
	all := make(chan struct{})
	var ready, done sync.WaitGroup
	ready.Add(racers)
	won, errs := make([]bool, racers), make([]error, racers)
	for i := range racers {
		done.Go(func() {
			var once sync.Once
			checked := func() { once.Do(ready.Done); <-all }
			defer once.Do(ready.Done) // one that failed holds nobody up
			won[i], errs[i] = f(i, checked)
		})
	}
	ready.Wait()
	close(all)
	done.Wait()
	n := 0
	for _, w := range won {
		if w {
			n++
		}
	}
	return n, errors.Join(errs...)
}

// redisRace takes one key by check-then-act, by one script, and once more after Redis has lost what it knew.
func (p *Page) redisRace(ctx context.Context) (string, error) {
	r, key := p.lab.Redis, uuid.NewString()
	checked, err := race(func(_ int, checked func()) (bool, error) {
		n, err := r.Exists(ctx, "checked:"+key).Result()
		checked()
		if err != nil || n > 0 {
			return false, err
		}
		return true, r.Set(ctx, "checked:"+key, "taken", 0).Err()
	})
	if err != nil {
		return "", err
	}
	take := func(int, func()) (bool, error) {
		n, err := takeOnce.Run(ctx, r, []string{"taken:" + key}, "taken").Int()
		return n == 1, err
	}
	scripted, err := race(take)
	if err != nil {
		return "", err
	}
	if err := p.lab.LoseRedis(ctx); err != nil {
		return "", err
	}
	forgotten, err := race(take)
	if err != nil {
		return "", err
	}
	// Both who were let through write their order: the constraint is what is left.
	made := 0
	for range scripted + forgotten {
		first, err := p.buy(ctx, oneTry, p.LinkURL, key)
		if err != nil {
			return "", err
		}
		if !first.replayed {
			made++
		}
	}
	return fmt.Sprintf("Check-then-act let %d of %d through, the script %d. Then Redis was killed and came back empty, and the script let %d more through: "+
			"of the %d orders that they wrote the unique constraint took %d.", checked, racers, scripted, forgotten, scripted+forgotten, made),
		hold(checked > 1 && scripted == 1 && forgotten == 1 && made == 1)
}

// constraintRace sends one key 20 times at once: to a table by check-then-act, and to orders.
func (p *Page) constraintRace(ctx context.Context) (string, error) {
	key := uuid.NewString()
	_, err := p.lab.Naive.Exec(ctx, "CREATE TABLE IF NOT EXISTS naive_key (key text NOT NULL)") // nothing unique
	if err != nil {
		return "", err
	}
	rows, err := race(func(_ int, checked func()) (bool, error) {
		var n int
		err := p.lab.Naive.QueryRow(ctx, "SELECT count(*) FROM naive_key WHERE key = $1", key).Scan(&n)
		checked()
		if err != nil || n > 0 {
			return false, err
		}
		_, err = p.lab.Naive.Exec(ctx, "INSERT INTO naive_key VALUES ($1)", key)
		return true, err
	})
	if err != nil {
		return "", err
	}
	first, err := race(func(_ int, checked func()) (bool, error) {
		checked()
		r, err := p.buy(ctx, oneTry, p.LinkURL, key)
		return !r.replayed, err
	})
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("Check-then-act wrote the key %d times. Under the constraint %d request made the order, %d were answered from it.",
		rows, first, racers-first), hold(rows > 1 && first == 1)
}
