package stacktest

import (
	"context"
	"testing"

	"github.com/oncebox/oncebox/internal/devstack"
)

// Redis returns a redis-server of the test's own, removed at the end of the test. Options change its configuration before it
// starts.
func Redis(t testing.TB, opts ...func(*devstack.RedisConfig)) *devstack.Redis {
	t.Helper()
	var cfg devstack.RedisConfig
	for _, o := range opts {
		o(&cfg)
	}
	ctx, cancel := context.WithTimeout(t.Context(), startLimit)
	defer cancel()
	server, err := devstack.StartRedis(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Remove(); err != nil {
			t.Errorf("remove Redis: %v", err)
		}
	})
	return server
}
