package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/nats-io/nats.go/jetstream"
)

// Sync says when a server's disk holds what it acknowledged.
type Sync string

// The values of [Sync].
const (
	// SyncUnknown is taken for SyncInterval, unless the monitoring addresses say otherwise.
	SyncUnknown Sync = ""
	// SyncAlways is before it acknowledges: sync_interval is "always".
	SyncAlways Sync = "always"
	// SyncInterval is some time later, by default two minutes: a loss of power loses what was acknowledged since.
	SyncInterval Sync = "interval"
)

// durability is what the broker really gives.
type durability struct {
	ok, syncs bool
	why       string
}

// ownable says what setting of a declared stream forbids that a relay owns it: nothing may remove, hide or add messages but
// the relay and the limits.
func ownable(cfg jetstream.StreamConfig) error {
	for _, refused := range []struct {
		is  bool
		why string
	}{
		{cfg.Retention != jetstream.LimitsPolicy, "retention is not limits: consumers would remove messages"},
		{cfg.NoAck, "no_ack is set: nothing would be known to be stored"},
		{cfg.Mirror != nil || len(cfg.Sources) > 0, "it has a mirror or sources: others would write into it"},
		{cfg.AllowRollup, "allow_rollup_hdrs is set: a message could remove others"},
		{cfg.SubjectDeleteMarkerTTL > 0, "subject_delete_marker_ttl is set: the broker would write into it"},
		{cfg.AllowMsgSchedules, "allow_msg_schedules is set: the broker would write into it"},
		{!cfg.DenyDelete, "deny_delete is not set"},
		{!cfg.DenyPurge, "deny_purge is not set"},
	} {
		if refused.is {
			return errors.New(refused.why)
		}
	}
	return nil
}

// preflight reads what the broker gives.
func (s *Sink) preflight(ctx context.Context) (durability, error) {
	version := s.nc.ConnectedServerVersion()
	if older(version, 2, 12) {
		return durability{}, fmt.Errorf("nats-server %s is older than 2.12", version)
	}
	sync, err := s.sync(ctx)
	if err != nil {
		return durability{}, err
	}
	c := s.stream.CachedInfo().Config
	about := fmt.Sprintf("nats-server %s, %s storage, %d replicas, discard %s, duplicates %s", version,
		strings.ToLower(c.Storage.String()), c.Replicas, strings.ToLower(c.Discard.String()), c.Duplicates)
	switch {
	case c.Storage != jetstream.FileStorage:
		return durability{why: "messages are kept in memory only: " + about}, nil
	case sync == SyncAlways:
		return durability{ok: true, syncs: true, why: "the servers sync before they acknowledge: " + about}, nil
	case sync == SyncInterval:
		return durability{why: "the servers acknowledge before they sync, and a loss of power loses what they acknowledged since: " + about}, nil
	}
	return durability{why: "nobody said that the servers sync before they acknowledge, and by default a loss of power loses two minutes: " + about}, nil
}

// sync is what was configured, or what all servers say.
func (s *Sink) sync(ctx context.Context) (Sync, error) {
	if s.cfg.Sync != SyncUnknown || len(s.cfg.MonitorURLs) == 0 {
		return s.cfg.Sync, nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	for _, url := range s.cfg.MonitorURLs {
		always, err := syncsAlways(ctx, strings.TrimSuffix(url, "/")+"/jsz")
		if err != nil {
			return SyncUnknown, fmt.Errorf("ask the server whether it syncs: %w", err)
		}
		if !always {
			return SyncInterval, nil
		}
	}
	return SyncAlways, nil
}

func syncsAlways(ctx context.Context, url string) (bool, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return false, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return false, fmt.Errorf("%s: %s", url, res.Status)
	}
	var jsz struct {
		Config struct {
			SyncAlways bool `json:"sync_always"`
		} `json:"config"`
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&jsz); err != nil {
		return false, fmt.Errorf("%s: %w", url, err)
	}
	return jsz.Config.SyncAlways, nil
}

// older says whether a version is certainly below major.minor.
func older(version string, major, minor int) bool {
	var a, b int
	if n, err := fmt.Sscanf(version, "%d.%d", &a, &b); n < 2 || err != nil {
		return false
	}
	return a < major || a == major && b < minor
}
