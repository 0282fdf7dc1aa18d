// Package devstack starts and stops what Oncebox needs around it on one machine, as real processes that can be killed:
// Postgres from the local binaries, nats-server from our own executable, and the services' own binaries.
//
// Whatever it starts ends with the process that started it, also when that one is killed (on Linux). Files go to
// /var/tmp/oncebox-<uid>, and what a killed process left there the next start removes.
//
// It is for the demo, the chaos tests, the benchmarks and internal/stacktest, never for production: Postgres trusts every
// user of this machine.
package devstack

import "errors"

// ErrExternal is returned by what needs a server of our own (kill, pause, restart) when the server was named by
// DATABASE_URL or NATS_URL.
var ErrExternal = errors.New("not started by us: its address was given by the environment")
