package chaos

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A setting that is wrong is one line that names its variable, shows no password, and comes at once.
func TestAWrongSettingIsOneLineThatNamesItsVariable(t *testing.T) {
	t.Parallel()
	s := startSystem(t, nil, nil)
	s.orders.terminate(t)()
	wrong := filepath.Join(t.TempDir(), "wrong")
	if err := os.WriteFile(wrong, []byte("hunter2"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, value string
		want        string // "": ORDERS_ and the name
	}{
		{name: "DATABASE_URL", value: ""},
		{name: "DATABASE_URL", value: "postgres://orders:hunter2@127.0.0.1:port/orders"},
		{name: "RELAY_DATABASE_URL", value: "postgres://orders:hunter2@127.0.0.1/orders?sslmode=hunter"},
		{name: "LANES", value: "many"},
		{name: "LANES", value: "0"},
		{name: "LEASE", value: "5"},
		{name: "LEASE", value: "-5s"},
		{name: "RETAIN_EVERY", value: "0s"},
		{name: "ACK_WAIT", value: "0s"},
		{name: "LOCK_TIMEOUT", value: "1us"},
		{name: "LOG_LEVEL", value: "loud"},
		{name: "MIGRATE", value: "perhaps"},
		{name: "APP_ROLE", value: "somebody"},
		{name: "AUTH", value: "maybe"},
		{name: "AUTH", value: "keys", want: "ORDERS_API_KEYS_FILE"},
		{name: "API_KEYS_FILE", value: wrong},
		{name: "ADMIN_TOKEN_FILE", value: wrong},
		{name: "LISTEN", value: "nowhere"},
		{name: "ADMIN", value: s.billing.admin}, // taken
		{name: "NATS_PASSWORD_FILE", value: wrong, want: "NATS_USER"},
		{name: "NATS_REPLICAS", value: "0", want: "NATS_REPLICAS"},
		{name: "NATS_REPLICAS", value: "6", want: "NATS_REPLICAS"},
		{name: "NATS_CA_FILE", value: "/nowhere", want: "NATS_CA_FILE"},
		{name: "NATS_NKEY_FILE", value: wrong, want: "NATS_NKEY_FILE"},
	} {
		o := *s.orders
		o.env, o.process = maps.Clone(s.orders.env), map[string]string{}
		if strings.HasPrefix(c.name, "NATS_") {
			o.process[c.name] = c.value
		} else {
			o.env[c.name] = c.value
		}
		if c.name == "API_KEYS_FILE" {
			o.env["AUTH"] = "keys"
		}
		want := c.want
		if want == "" {
			want = "ORDERS_" + c.name
		}
		out, err := o.run(t)
		lines := strings.Split(strings.TrimSpace(out), "\n")
		last := lines[len(lines)-1]
		if err == nil || !strings.HasPrefix(last, "orders: error: ") || !strings.Contains(last, want) ||
			strings.Contains(out, "hunter2") || strings.Contains(out, "goroutine ") {
			t.Errorf("%s=%s: %v\n%s", c.name, c.value, err, out)
		}
		for _, line := range lines[:len(lines)-1] {
			if !strings.HasPrefix(line, "{") { // a line of the log
				t.Errorf("%s=%s: more than one line:\n%s", c.name, c.value, out)
				break
			}
		}
	}
}
