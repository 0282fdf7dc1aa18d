package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// ErrStreamDiffers says that a stream exists with another configuration than the one declared. It is never changed silently:
// in a rolling deploy old and new would fight over it.
var ErrStreamDiffers = errors.New("stream differs from its declaration")

// Stream declares a stream as Oncebox uses them: on disk, bounded in age and bytes, refusing new messages rather than
// dropping old ones when it is full, and closed to deletes and purges, since consumers rely on what stood in it once.
// Callers may change Replicas, MaxAge and MaxBytes before they pass it on.
func Stream(name string, subjects ...string) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:               name,
		Subjects:           subjects,
		Storage:            jetstream.FileStorage,
		Replicas:           1,
		Retention:          jetstream.LimitsPolicy,
		Discard:            jetstream.DiscardNew,
		MaxAge:             7 * 24 * time.Hour, // how long a consumer may be down
		MaxBytes:           1 << 30,
		MaxConsumers:       -1,
		MaxMsgs:            -1,
		MaxMsgsPerSubject:  -1,
		MaxMsgSize:         -1,
		Duplicates:         2 * time.Minute, // the relay reads back what it has sent: this window is a second line only
		DenyDelete:         true,
		DenyPurge:          true,
		AllowAtomicPublish: true,
	}
}

// ensureStream creates the stream where it is missing. It wraps [ErrStreamDiffers] and says in what.
func ensureStream(ctx context.Context, js jetstream.JetStream, cfg jetstream.StreamConfig) (jetstream.Stream, error) {
	s, err := js.CreateStream(ctx, cfg)
	if err == nil {
		return s, nil
	}
	if !errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
		return nil, fmt.Errorf("create stream %s: %w", cfg.Name, err)
	}
	if s, err = js.Stream(ctx, cfg.Name); err != nil {
		return nil, fmt.Errorf("look at stream %s: %w", cfg.Name, err)
	}
	if diff := streamDiff(s.CachedInfo().Config, cfg); diff != "" {
		return nil, fmt.Errorf("stream %s: %w: %s", cfg.Name, ErrStreamDiffers, diff)
	}
	return s, nil
}

// streamDiff names what is not as declared, "" if all is.
func streamDiff(is, want jetstream.StreamConfig) string {
	var diffs []string
	check := func(name string, is, want any) {
		if is != want {
			diffs = append(diffs, fmt.Sprintf("%s is %v, not %v", name, is, want))
		}
	}
	if !slices.Equal(is.Subjects, want.Subjects) {
		diffs = append(diffs, fmt.Sprintf("subjects are %v, not %v", is.Subjects, want.Subjects))
	}
	check("storage", is.Storage, want.Storage)
	check("replicas", is.Replicas, want.Replicas)
	check("retention", is.Retention, want.Retention)
	check("discard", is.Discard, want.Discard)
	check("max_age", is.MaxAge, want.MaxAge)
	check("max_bytes", is.MaxBytes, want.MaxBytes)
	check("max_msgs", is.MaxMsgs, want.MaxMsgs)
	check("max_msgs_per_subject", is.MaxMsgsPerSubject, want.MaxMsgsPerSubject)
	check("max_msg_size", is.MaxMsgSize, want.MaxMsgSize)
	check("mirror", is.Mirror != nil, want.Mirror != nil)
	check("sources", len(is.Sources), len(want.Sources))
	check("duplicate_window", is.Duplicates, want.Duplicates)
	check("deny_delete", is.DenyDelete, want.DenyDelete)
	check("deny_purge", is.DenyPurge, want.DenyPurge)
	check("allow_atomic", is.AllowAtomicPublish, want.AllowAtomicPublish)
	check("no_ack", is.NoAck, want.NoAck)
	check("allow_rollup_hdrs", is.AllowRollup, want.AllowRollup)
	check("subject_delete_marker_ttl", is.SubjectDeleteMarkerTTL, want.SubjectDeleteMarkerTTL)
	check("allow_msg_schedules", is.AllowMsgSchedules, want.AllowMsgSchedules)
	return strings.Join(diffs, ", ")
}
