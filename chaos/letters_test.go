package chaos

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/oncebox/oncebox/internal/stacktest"
)

// operate sends one request to the service's admin listener with that token.
func (s *service) operate(t testing.TB, method, path, token string) answer {
	t.Helper()
	onAdmin := *s
	onAdmin.addr = s.admin
	a, err := onAdmin.ask(t.Context(), method, path, "", "Authorization", "Bearer "+token)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func (s *system) alterCharge(t testing.TB, how string) {
	t.Helper()
	if _, err := s.billing.db.Exec(t.Context(), "ALTER TABLE charge "+how); err != nil {
		t.Fatal(err)
	}
}

// deadRequest makes an order whose charge the database refuses, for as long as the constraint not_today is there, and returns the
// path of its dead letter.
func (s *system) deadRequest(t testing.TB) string {
	t.Helper()
	s.alterCharge(t, "ADD CONSTRAINT not_today CHECK (amount < 0) NOT VALID")
	s.order(t, "one")
	var list struct {
		Letters []struct {
			N     int64
			Class string
		}
	}
	stacktest.Eventually(t, patience, "the request is a dead letter", func() (bool, error) {
		err := json.Unmarshal(s.billing.operate(t, http.MethodGet, "/dead-letters", "").body, &list)
		return len(list.Letters) == 1, err
	})
	return fmt.Sprint("/dead-letters/", list.Letters[0].N)
}

// Invariant: an order whose charge request died is charged once when an operator has the letter retried, however often.
func TestADeadChargeRequestIsChargedWhenItIsRetried(t *testing.T) {
	t.Parallel()
	const token = "the-token-of-the-operator"
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := startSystem(t, nil, map[string]string{"ADMIN_TOKEN_FILE": file})
	letter := s.deadRequest(t)
	if a := s.billing.operate(t, http.MethodPost, letter+"/retry", token); a.status != http.StatusConflict || !strings.Contains(string(a.body), "not_today") {
		t.Errorf("a retry while the database refuses the charge: %d %s", a.status, a.body)
	}
	s.alterCharge(t, "DROP CONSTRAINT not_today")
	if a := s.billing.operate(t, http.MethodPost, letter+"/retry", "another-token-altogether"); a.status != http.StatusUnauthorized {
		t.Errorf("a retry with another token: %d %s", a.status, a.body)
	}
	if a := s.billing.operate(t, http.MethodPost, letter+"/retry", token); a.status != http.StatusOK {
		t.Errorf("the retry: %d %s", a.status, a.body)
	}
	if a := s.billing.operate(t, http.MethodPost, letter+"/retry", token); a.status != http.StatusNotFound {
		t.Errorf("another retry: %d %s", a.status, a.body)
	}
	s.settle(t)
	for _, problem := range s.brokenOrders(t, 1) {
		t.Error(problem)
	}
}
