// Package redisstore keeps idempotency keys in Redis: a lease on a request while its handler runs, then its answer.
//
// It is faster than a database and knows less. A lease alone does not stop a second effect: a process may be paused for longer
// than it, and a failover of Redis may forget it. So a route says whether its effect is guarded, by a unique key in the
// handler's own database (idempotency.Policy.Guarded). A guarded request whose lease is lost is executed again: the guard
// refuses the second effect, and the handler answers with the first one's, by the same status and id, though not always by the
// same bytes. One without a guard is never executed again: it is answered outcome-unknown until an operator resolves it.
package redisstore

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/oncebox/oncebox/idempotency"
)

// Config configures a [Store].
type Config struct {
	// Prefix begins the names of the keys in Redis. Default "idem:".
	Prefix string
	// Lease is how long a request whose process died stays in progress. While the handler runs it is renewed each third of
	// it. Default 15 s.
	Lease time.Duration
	// Margin is how long before the lease's end, by this process's clock, an attempt that could not renew it gives up. Default
	// 2 s.
	Margin time.Duration
	// CommandTimeout bounds one command. Default 1 s.
	CommandTimeout time.Duration
	// KeepTrying is for how long an answer that Redis could not be told of is offered again, in the background. Default 5 min.
	KeepTrying time.Duration
	// Logger hears of leases and answers that were lost. Default slog.Default().
	Logger *slog.Logger
}

// A Store implements [idempotency.Store]. It is safe for concurrent use, by any number of processes.
type Store struct {
	client redis.UniversalClient
	cfg    Config
	later  sync.WaitGroup // what is told Redis in the background
	closed context.Context
	close  context.CancelFunc
}

// New returns a store, or an error that names the option that is wrong. It asks the servers whether they keep what they are
// given, and refuses one that may evict keys (maxmemory-policy must be noeviction) or that does not append writes to a file
// (appendonly must be yes). The client must have ContextTimeoutEnabled, or a server that hangs would hang requests.
func New(ctx context.Context, client redis.UniversalClient, cfg Config) (*Store, error) {
	for _, o := range []struct {
		name  string
		value *time.Duration
		def   time.Duration
	}{
		{"Lease", &cfg.Lease, 15 * time.Second}, {"Margin", &cfg.Margin, 2 * time.Second},
		{"CommandTimeout", &cfg.CommandTimeout, time.Second}, {"KeepTrying", &cfg.KeepTrying, 5 * time.Minute},
	} {
		if *o.value < 0 {
			return nil, fmt.Errorf("redisstore: Config.%s is %s, below 0", o.name, *o.value)
		}
		if *o.value == 0 {
			*o.value = o.def
		}
	}
	if cfg.Margin >= cfg.Lease {
		return nil, fmt.Errorf("redisstore: Config.Margin is %s, and must be below Lease, %s", cfg.Margin, cfg.Lease)
	}
	if cfg.Prefix == "" {
		cfg.Prefix = "idem:"
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	switch c := client.(type) {
	case *redis.Client:
		if !c.Options().ContextTimeoutEnabled {
			return nil, errors.New("redisstore: the client's ContextTimeoutEnabled must be set")
		}
		if err := check(ctx, c); err != nil {
			return nil, err
		}
	case *redis.ClusterClient:
		if !c.Options().ContextTimeoutEnabled {
			return nil, errors.New("redisstore: the client's ContextTimeoutEnabled must be set")
		}
		if err := c.ForEachMaster(ctx, check); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("redisstore: a %T is none of *redis.Client and *redis.ClusterClient", client)
	}
	s := &Store{client: client, cfg: cfg}
	s.closed, s.close = context.WithCancel(context.Background())
	return s, nil
}

// check refuses a server that forgets.
func check(ctx context.Context, c *redis.Client) error {
	info, err := c.InfoMap(ctx, "memory", "persistence").Result()
	if err != nil {
		return fmt.Errorf("redisstore: ask the server how it keeps data: %w", err)
	}
	if policy := info["Memory"]["maxmemory_policy"]; policy != "noeviction" {
		return fmt.Errorf("redisstore: the server's maxmemory-policy is %s, and must be noeviction: it would forget requests that it was told to remember", policy)
	}
	if info["Persistence"]["aof_enabled"] != "1" {
		return errors.New("redisstore: the server's appendonly is no, and must be yes: a restart would forget requests")
	}
	return nil
}

// Close waits until Redis has been told of what it could not be told before, and gives up when ctx ends. The client stays open.
func (s *Store) Close(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.later.Wait()
	}()
	select {
	case <-done:
		s.close()
		return nil
	case <-ctx.Done():
		s.close()
		<-done
		return fmt.Errorf("redisstore: answers are left that Redis does not know of: %w", context.Cause(ctx))
	}
}

// key is where a request's record is. The braces keep what belongs to one request in one slot.
func (s *Store) key(tenant string, key idempotency.KeyHash) string {
	h := sha256.New()
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], uint64(len(tenant)))
	h.Write(n[:])
	h.Write([]byte(tenant))
	h.Write(key[:])
	return s.cfg.Prefix + "{" + hex.EncodeToString(h.Sum(nil)) + "}"
}

const (
	firstPause = 4 * time.Millisecond // between two looks at a request that another process executes; it doubles
	lastPause  = 64 * time.Millisecond
)

// Begin implements [idempotency.Store].
func (s *Store) Begin(ctx context.Context, req idempotency.Request) (idempotency.Attempt, idempotency.Outcome, error) {
	a := &attempt{store: s, req: req, key: s.key(req.Tenant, req.Key), owner: rand.Text()}
	until := time.Now().Add(req.Wait)
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		out, err := a.reserve(ctx)
		if err != nil {
			// The reply may be what got lost: then the request is ours, and nobody else's before the lease ends.
			s.tellLater("release", a, a.release)
			return nil, idempotency.Outcome{}, fmt.Errorf("redisstore: look a key up: %w", err)
		}
		if out.State == idempotency.Fresh {
			a.hold(ctx)
			return a, out, nil
		}
		left := time.Until(until)
		if out.State != idempotency.Busy || left <= 0 {
			return nil, out, nil
		}
		select {
		case <-ctx.Done():
			return nil, out, nil
		case <-time.After(min(pause, left)):
		}
	}
}

// tellLater offers Redis a transition until it is heard of, KeepTrying is over or the store closed.
func (s *Store) tellLater(what string, a *attempt, tell func(context.Context) (string, error)) {
	s.later.Go(func() {
		ctx, cancel := context.WithTimeout(s.closed, s.cfg.KeepTrying)
		defer cancel()
		for pause := firstPause; ; pause = min(2*pause, time.Second) {
			answer, err := tell(ctx)
			if err == nil {
				if answer == lost && what != "release" {
					s.cfg.Logger.Warn("redisstore: too late: another attempt has the request", "transition", what, "key", a.req.Key.String())
				}
				return
			}
			select {
			case <-ctx.Done():
				s.cfg.Logger.Warn("redisstore: Redis was not told", "transition", what, "key", a.req.Key.String(), "error", err)
				return
			case <-time.After(pause):
			}
		}
	})
}

// record reads what reserve found.
func record(req idempotency.Request, v []any) (idempotency.Record, error) {
	var f [6]string
	if len(v) != len(f) {
		return idempotency.Record{}, fmt.Errorf("redisstore: a record of %d fields", len(v))
	}
	for i := range f {
		f[i], _ = v[i].(string)
	}
	res, err := unmarshal(f[0])
	if err != nil {
		return idempotency.Record{}, err
	}
	return idempotency.Record{Fingerprint: req.Fingerprint, Principal: f[1], Method: f[2], Path: f[3], Response: res,
		CreatedAt: millis(f[4]), ExpiresAt: millis(f[5])}, nil
}

func millis(s string) time.Time {
	f, err := strconv.ParseFloat(s, 64) // Lua's numbers are doubles
	if err != nil {
		return time.Time{}
	}
	return time.UnixMilli(int64(f))
}

// A kept answer is a JSON object.
type kept struct {
	Status  int    `json:"status"`
	Header  []byte `json:"header"`
	Body    []byte `json:"body"`
	Dropped bool   `json:"dropped,omitempty"`
}

func marshal(r idempotency.Response) (string, error) {
	b, err := json.Marshal(kept{r.Status, idempotency.EncodeHeader(r.Header), r.Body, r.Dropped})
	return string(b), err
}

func unmarshal(s string) (idempotency.Response, error) {
	var k kept
	var header http.Header
	err := json.NewDecoder(strings.NewReader(s)).Decode(&k)
	if err == nil {
		header, err = idempotency.DecodeHeader(k.Header)
	}
	if err != nil {
		return idempotency.Response{}, fmt.Errorf("redisstore: read a kept answer: %w", err)
	}
	return idempotency.Response{Status: k.Status, Header: header, Body: k.Body, Dropped: k.Dropped}, nil
}
