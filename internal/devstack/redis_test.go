package devstack_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/oncebox/oncebox/internal/devstack"
)

func TestRedisKeepsItsPortOverAKillAndLeavesNothing(t *testing.T) {
	t.Parallel()
	redis, err := devstack.StartRedis(t.Context(), devstack.RedisConfig{})
	if err != nil {
		t.Fatal(err)
	}
	url := redis.URL()
	first := redis.Pid()
	if err := redis.Kill(); err != nil {
		t.Error(err)
	}
	if err := redis.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if redis.URL() != url || redis.Pid() == first {
		t.Errorf("it was %s, process %d, and is %s, process %d", url, first, redis.URL(), redis.Pid())
	}
	if err := redis.Remove(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", redis.Pid())); err == nil {
		t.Errorf("process %d still runs", redis.Pid())
	}
}

func TestRedisThatDoesNotStartSaysWhy(t *testing.T) {
	t.Parallel()
	_, err := devstack.StartRedis(t.Context(), devstack.RedisConfig{Settings: map[string]string{"maxmemory-policy": "nonsense"}})
	if err == nil {
		t.Fatal("it started")
	}
	t.Log(err)
}
