package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/jackc/pgx/v5"

	"github.com/oncebox/oncebox/idempotency"
)

// A request is one key: of an intent, or of an order's deletion.
type request struct {
	n  int
	op string
}

// told is the one answer that the clients had to each.
type told map[request]try

// judgeAnswers holds each answer to a key against the first one: the same status, the same Location, the same thing, and where keys
// are kept with the effect, in Postgres, the same bytes. Nothing but these answers and "ask again" may have been said.
func (v *verdict) judgeAnswers(o options, tries []try) told {
	answers := told{}
	for _, t := range tries {
		key := request{t.N, t.Op}
		first, known := answers[key]
		switch {
		case !t.accepted():
			v.check(t.passing(), "intent %d: %s by %s was answered %d", t.N, t.Op, t.At, t.Status)
		case t.ID == "":
			v.fail("intent %d: %s by %s was answered without an id", t.N, t.Op, t.At)
		case !known:
			answers[key] = t
		default:
			v.check(t.Status == first.Status && t.Location == first.Location && t.ID == first.ID,
				"intent %d: %s is %d %s %s by %s, and was %d %s %s by %s", t.N, t.Op, t.Status, t.Location, t.ID, t.At, first.Status, first.Location, first.ID, first.At)
			v.check(t.Op == opCharge || t.Body == first.Body, "intent %d: the answer to %s by %s has other bytes than the one by %s", t.N, t.Op, t.At, first.At)
		}
	}
	for n := range o.Orders {
		if _, ok := answers[request{n, intentOf(o, n).op()}]; !ok {
			v.fail("intent %d was never answered", n)
		}
	}
	return answers
}

// judgeKeys compares what clients were told with the answers that orders keeps under their keys.
func (v *verdict) judgeKeys(ctx context.Context, o options, w *world, told told) error {
	type kept struct {
		Key    string
		Status int
		Body   string
	}
	rows, err := query[kept](ctx, w.ordersDB, "SELECT encode(key_hash, 'hex'), status, encode(sha256(body), 'hex') FROM oncebox.idempotency_keys")
	if err != nil {
		return fmt.Errorf("read the keys: %w", err)
	}
	byKey := make(map[string]kept, len(rows))
	for _, k := range rows {
		byKey[k.Key] = k
	}
	for key, t := range told {
		in := intentOf(o, key.n)
		name := in.key()
		switch key.op {
		case opCharge:
			continue // in Redis, which may forget
		case opDelete:
			name = in.deleteKey()
		}
		k, ok := byKey[hashOf(name)]
		v.check(ok, "intent %d: the key of its %s is gone", key.n, key.op)
		v.check(!ok || k.Status == t.Status && k.Body == t.Body, "intent %d: what is kept of its %s is not what was answered", key.n, key.op)
	}
	return nil
}

// hashOf is how the databases know a key.
func hashOf(key string) string {
	h := idempotency.HashKey(key)
	return hex.EncodeToString(h[:])
}

// An observation is what one try told of a key.
type observation struct{ what, value string }

// onceModel is what is promised of one key: it has no answer until one attempt commits, and then that one for ever. A try without an
// answer may have committed it: then, later, or never.
var onceModel = porcupine.NondeterministicModel{
	Init: func() []any { return []any{""} },
	Step: func(state, _, output any) []any {
		s, o := state.(string), output.(observation)
		switch {
		case o.what == "fresh" && s == "":
			return []any{o.value}
		case o.what == "replay" && s == o.value, o.what == "maybe" && s != "":
			return []any{s}
		case o.what == "maybe":
			return []any{s, o.value}
		}
		return nil
	},
}

const (
	// linearKeys is how many keys' histories are searched at most, those with the most tries first.
	linearKeys = 5000
	// linearTries is how many tries of one can be searched, and linearLimit how long that may take.
	linearTries = 100
	linearLimit = 5 * time.Second
)

// judgeLinear asks of the keys that were asked for most whether what was told of them can have come one after the other.
func (v *verdict) judgeLinear(tries []try, told told) {
	histories := map[request][]porcupine.Operation{}
	for _, t := range tries {
		key := request{t.N, t.Op}
		answer, ok := told[key]
		if !ok {
			continue
		}
		value := func(t try) string {
			if t.Op == opCharge {
				return t.ID
			}
			return t.Body
		}
		op := porcupine.Operation{ClientId: len(histories[key]), Input: key, Output: observation{"maybe", value(answer)}, Call: t.Call, Return: math.MaxInt64}
		if t.accepted() {
			op.Output, op.Return = observation{"fresh", value(t)}, t.Return
			if t.Replayed {
				op.Output = observation{"replay", value(t)}
			}
		}
		histories[key] = append(histories[key], op)
	}
	var keys []request
	for key, ops := range histories {
		switch {
		case len(ops) > linearTries:
			v.unsearched++
		case len(ops) > 1:
			keys = append(keys, key)
		}
	}
	slices.SortFunc(keys, func(a, b request) int { return len(histories[b]) - len(histories[a]) })
	model := onceModel.ToModel()
	for _, key := range keys[:min(len(keys), linearKeys)] {
		switch porcupine.CheckOperationsTimeout(model, histories[key], linearLimit) {
		case porcupine.Ok:
			v.linear++
		case porcupine.Illegal:
			v.fail("intent %d: what its tries of %s were told is not linearizable", key.n, key.op)
		default:
			v.unsearched++
		}
	}
	v.check(v.unsearched <= v.linear/100, "the histories of %d keys could not be searched within %s, of %d they were", v.unsearched, linearLimit, v.linear)
}

// query reads all rows by position.
func query[T any](ctx context.Context, db interface {
	Query(context.Context, string, ...any) (pgx.Rows, error)
}, sql string, args ...any) ([]T, error) {
	rows, err := db.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[T])
}
