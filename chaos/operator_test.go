package chaos

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncebox/oncebox/internal/stacktest"
)

// An operator has the command oncebox, and the services' admin token.
type operator struct {
	s     *system
	token string // its file
}

const operatorToken = "the-token-of-the-operator"

// startOperated is startSystem with services that take an operator's writes.
func startOperated(t testing.TB, settings map[string]string) (*system, operator) {
	t.Helper()
	s := newSystem(t)
	op := s.operated(t, settings)
	s.start(t)
	return s, op
}

// operated gives both services these settings and the operator's token, for their next start.
func (s *system) operated(t testing.TB, settings map[string]string) operator {
	t.Helper()
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte(operatorToken), 0o600); err != nil {
		t.Fatal(err)
	}
	all := map[string]string{"ADMIN_TOKEN_FILE": token}
	maps.Copy(all, settings)
	for _, svc := range []*service{s.orders, s.billing} {
		svc.set(all)
	}
	return operator{s, token}
}

// run runs the command with JSON as output, which is read into v, and returns its exit status.
func (o operator) run(t testing.TB, v any, args ...string) int {
	t.Helper()
	bin, _ := shared.get(t)
	cmd := exec.CommandContext(t.Context(), filepath.Join(bin, "oncebox"), append(args, "-o", "json")...)
	cmd.Env = []string{"ONCEBOX_TOKEN_FILE=" + o.token,
		fmt.Sprintf("ONCEBOX_SERVICES=orders=http://%s;billing=http://%s", o.s.orders.admin, o.s.billing.admin)}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	exit := (*exec.ExitError)(nil)
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if v != nil {
		if err := json.Unmarshal(out.Bytes(), v); err != nil {
			t.Fatalf("oncebox %v: %v\n%s%s", args, err, &out, &errs)
		}
	}
	return cmd.ProcessState.ExitCode()
}

// A book is what oncebox verify tells of one.
type book struct {
	Book      string
	Rows      int64
	From      int64    `json:"from_bucket"`
	OnlyLeft  []string `json:"only_left"`
	OnlyRight []string `json:"only_right"`
	Unequal   []string
}

// verify returns the books that differ, by name, and how many rows were compared. The exit status has to agree.
func (o operator) verify(t testing.TB, args ...string) (different map[string]book, rows int64) {
	t.Helper()
	var books []book
	status := o.run(t, &books, append([]string{"verify"}, args...)...)
	different = map[string]book{}
	for _, b := range books {
		if rows += b.Rows; len(b.OnlyLeft)+len(b.OnlyRight)+len(b.Unequal) > 0 {
			different[b.Book] = b
		}
	}
	if want := map[bool]int{true: 0, false: 1}[len(different) == 0]; status != want || len(books) != 6 {
		t.Fatalf("verify %v ended with %d, of %d books these differ: %+v", args, status, len(books), different)
	}
	return different, rows
}

// saved keeps a copy of the service's database as it is now; the function that it returns puts it back. The service must not run
// at either.
func (s *service) saved(t testing.TB) (restore func()) {
	t.Helper()
	_, pg := shared.get(t)
	admin, err := pgxpool.New(t.Context(), pg.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(admin.Close)
	exec := func(sql string) {
		t.Helper()
		if _, err := admin.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	s.endSessions(t)
	s.db.Close()
	exec(fmt.Sprintf("CREATE DATABASE %[1]s_saved TEMPLATE %[1]s OWNER %[1]s", s.role))
	open := func() {
		t.Helper()
		if s.db, err = pgxpool.New(t.Context(), pg.URL(s.role)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.db.Close)
	}
	open()
	return func() {
		t.Helper()
		s.endSessions(t)
		s.db.Close()
		exec(fmt.Sprintf("DROP DATABASE %s WITH (FORCE)", s.role))
		exec(fmt.Sprintf("ALTER DATABASE %[1]s_saved RENAME TO %[1]s", s.role))
		exec(fmt.Sprintf("REVOKE CONNECT ON DATABASE %[1]s FROM PUBLIC; GRANT CONNECT ON DATABASE %[1]s TO %[1]s_app, %[1]s_relay", s.role))
		open()
	}
}

// drained waits until nothing is on its way, whatever became of it: all that is written is sent, and all that is sent acknowledged.
func (s *system) drained(t testing.TB) {
	t.Helper()
	stacktest.Eventually(t, patience, "nothing is on its way", func() (bool, error) {
		for d, producer := range map[direction]*service{toBilling: s.orders, toOrders: s.billing} {
			var relay struct{ Backlog int }
			body, err := producer.look(t.Context(), "/relay")
			if err == nil {
				err = json.Unmarshal(body, &relay)
			}
			if err != nil || relay.Backlog > 0 {
				return false, err
			}
			if c, err := s.consumer(t.Context(), d); err != nil || c.NumPending > 0 || c.NumAckPending > 0 {
				return false, err
			}
		}
		return true, nil
	})
}
