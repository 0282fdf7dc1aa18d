package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/oncebox/oncebox/events"
	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/internal/stacktest"
)

// tester is the user by which the tests themselves look into the broker and break it. deploy/nats/nats.conf has no such user.
const tester = "tester"

func natsPassword(user string) string { return "password-of-" + user }

// as are the options of a connection of that user.
func as(user string) []nats.Option {
	return []nats.Option{nats.UserInfo(user, natsPassword(user)), nats.CustomInboxPrefix("_INBOX_" + user)}
}

// natsConf is deploy/nats/nats.conf, with users of the test's own beside those that are there.
func natsConf(t testing.TB, more ...string) string {
	t.Helper()
	const path, users = "deploy/nats/nats.conf", "users = ["
	text := readRepositoryFile(t, path)
	if strings.Count(text, users) != 1 {
		t.Fatalf("%s has not one %q", path, users)
	}
	for _, u := range more {
		text = strings.Replace(text, users, fmt.Sprintf("%s { user: %s, password: %q }", users, u, natsPassword(u)), 1)
	}
	return text
}

// asDeployed has the server run on natsConf.
func asDeployed(t testing.TB, more ...string) func(*devstack.NATSConfig) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"nats.conf": natsConf(t, more...), "passwords.conf": natsPasswords(natsPassword("orders"), natsPassword("billing"), natsPassword("demo"))} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return func(cfg *devstack.NATSConfig) { cfg.Config = filepath.Join(dir, "nats.conf") }
}

// syncingLate is an option beside asDeployed: the server syncs each two minutes, as by default, and so acknowledges what is not on disk.
func syncingLate(t testing.TB) func(*devstack.NATSConfig) {
	t.Helper()
	return func(cfg *devstack.NATSConfig) {
		text, err := os.ReadFile(cfg.Config)
		if err != nil {
			t.Fatal(err)
		}
		const always, late = "sync_interval: always", "sync_interval: 2m"
		if strings.Count(string(text), "\n  "+always+"\n") != 1 {
			t.Fatalf("%s has not one line %q", cfg.Config, always)
		}
		text = []byte(strings.Replace(string(text), "\n  "+always+"\n", "\n  "+late+"\n", 1))
		if err := os.WriteFile(cfg.Config, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// Invariant: with the configuration that is deployed, each service does its whole work, and neither anything else: not write to
// the other's stream, nor change, purge or delete any, nor hear what is not sent to it. All the other tests
// of this room run on that configuration too.
func TestNATSUsersHaveNoMoreRightsThanTheirWorkNeeds(t *testing.T) {
	t.Parallel()
	s := startSystem(t, nil, nil)
	s.order(t, "before")
	s.settle(t)
	streams := map[string]string{"orders": events.OrdersStream, "billing": events.BillingStream}
	other := map[string]string{"orders": "billing", "billing": "orders"}
	for user, own := range streams {
		foreign := streams[other[user]]
		refused := map[string]string{ // subject and payload
			"orders.charge.requested.v1":                           anOrder,
			"billing.charge.succeeded.v1":                          anOrder,
			"anything.else":                                        "",
			"$JS.API.STREAM.UPDATE." + own:                         `{"name":"` + own + `","subjects":["x.>"]}`,
			"$JS.API.STREAM.CREATE.OTHER":                          `{"name":"OTHER","subjects":["other.>"]}`,
			"$JS.API.STREAM.LIST":                                  "",
			"$JS.API.STREAM.NAMES":                                 "",
			"$JS.API.INFO":                                         "",
			"$SYS.REQ.SERVER.PING":                                 "",
			"_INBOX_" + other[user] + ".x":                         "",
			"oncebox.heal." + user:                                 "",
			"$JS.API.CONSUMER.CREATE." + foreign + ".spy.orders.>": `{}`,
			"$JS.API.CONSUMER.DELETE." + own + "." + other[user]:   "",
			"$JS.API.CONSUMER.MSG.NEXT." + own + "." + other[user]: "1",
			"$JS.ACK." + own + "." + other[user] + ".1.1.1.1.0":    "+ACK",
			"$JS.API.CONSUMER.CREATE." + own + "." + other[user] + "." + other[user] + ".>": `{}`,
		}
		delete(refused, map[string]string{"orders": "orders.charge.requested.v1", "billing": "billing.charge.succeeded.v1"}[user])
		for _, stream := range streams {
			refused["$JS.API.STREAM.PURGE."+stream] = ""
			refused["$JS.API.STREAM.DELETE."+stream] = ""
			refused["$JS.API.STREAM.MSG.DELETE."+stream] = `{"seq":1}`
			refused["$JS.API.STREAM.SNAPSHOT."+stream] = `{"deliver_subject":"x"}`
		}
		for subject, payload := range refused {
			mustBeDenied(t, s, user, "Publish", subject, func(nc *nats.Conn) error { return nc.Publish(subject, []byte(payload)) })
		}
		for _, subject := range []string{">", "orders.>", "billing.>", "$JS.>", "_INBOX.>", "_INBOX_" + other[user] + ".>", "oncebox.heal." + other[user]} {
			mustBeDenied(t, s, user, "Subscription", subject, func(nc *nats.Conn) error {
				_, err := nc.SubscribeSync(subject)
				return err
			})
		}
	}
	// The page looks on. It takes nobody's messages, and writes none.
	for subject, payload := range map[string]string{
		"orders.charge.requested.v1": anOrder, "billing.charge.succeeded.v1": anOrder, "oncebox.heal.orders": "", "$JS.API.STREAM.PURGE.ORDERS": "",
		"$JS.API.STREAM.CREATE.OTHER": `{"name":"OTHER","subjects":["other.>"]}`, "$JS.API.CONSUMER.CREATE.ORDERS.billing": `{}`,
		"$JS.API.CONSUMER.CREATE.ORDERS.billing.orders.>": `{}`, "$JS.API.CONSUMER.DELETE.ORDERS.billing": "", "$JS.API.CONSUMER.DELETE.BILLING.orders": "",
		"$JS.API.CONSUMER.MSG.NEXT.ORDERS.billing": "1", "$JS.API.CONSUMER.MSG.NEXT.BILLING.orders": "1", "$JS.ACK.ORDERS.billing.1.1.1.1.0": "+ACK",
	} {
		mustBeDenied(t, s, "demo", "Publish", subject, func(nc *nats.Conn) error { return nc.Publish(subject, []byte(payload)) })
	}
	s.order(t, "after")
	s.settle(t)
	s.checkOnce(t, 2)
	for _, stream := range streams {
		if last := s.lastSeq(t, stream); last != 2 {
			t.Errorf("%s ends at %d, want its owner's 2 messages", stream, last)
		}
	}
}

// mustBeDenied fails the test unless the server says that this user may not do that.
func mustBeDenied(t *testing.T, s *system, user, what, subject string, do func(*nats.Conn) error) {
	t.Helper()
	denied := make(chan error, 1)
	nc := stacktest.Connect(t, s.nats, append(as(user), nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
		select {
		case denied <- err:
		default:
		}
	}))...)
	defer nc.Close()
	if err := errors.Join(do(nc), nc.Flush()); err != nil {
		t.Fatal(err)
	}
	// The server answers in order: before the flush's answer it has said no, and the client has queued that for its handler.
	select {
	case err := <-denied:
		if !errors.Is(err, nats.ErrPermissionViolation) || !strings.Contains(err.Error(), what) {
			t.Errorf("%s to %s by %s: %v, want a permissions violation", what, subject, user, err)
		}
	case <-time.After(5 * time.Second):
		t.Errorf("%s to %s by %s was not refused", what, subject, user)
	}
}

// A stream is closed to deletes by its own configuration too, so that not even a user without bounds can purge it.
func TestNobodyCanPurgeAStream(t *testing.T) {
	t.Parallel()
	s := startSystem(t, nil, nil)
	s.order(t, "one")
	s.settle(t)
	for _, name := range []string{events.OrdersStream, events.BillingStream} {
		stream, err := s.js.Stream(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Purge(t.Context()); err == nil {
			t.Errorf("%s was purged", name)
		}
		if err := stream.DeleteMsg(t.Context(), 1); err == nil {
			t.Errorf("a message of %s was deleted", name)
		}
		if s.lastSeq(t, name) != 1 {
			t.Errorf("%s lost its message", name)
		}
	}
}

// Invariant: a password that is wrong for a while is an outage: what was taken meanwhile is published afterwards.
func TestANATSPasswordIsRotatedWithoutARestart(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "password")
	write := func(password string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(password+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(natsPassword("orders"))
	s := startSystem(t, nil, nil)
	s.orders.terminate(t)()
	s.orders.process = map[string]string{"NATS_URL": "nats://" + s.orders.link.proxy.Listen, "NATS_USER": "orders", "NATS_PASSWORD_FILE": file}
	s.orders.start(t)
	s.order(t, "first")
	s.settle(t)

	write("wrong")
	if err := s.nats.Restart(context.WithoutCancel(t.Context())); err != nil {
		t.Fatal(err)
	}
	stacktest.Eventually(t, patience, "orders was refused more than twice", func() (bool, error) {
		log, err := os.ReadFile(s.nats.LogPath())
		return strings.Count(string(log), "authentication error") > 3, err
	})
	s.order(t, "meanwhile")
	if !s.orders.isReady(t) {
		t.Error("orders is not ready")
	}
	write(natsPassword("orders"))
	s.settle(t)
	s.checkOnce(t, 2)
}
