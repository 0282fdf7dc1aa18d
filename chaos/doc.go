// Package chaos proves Oncebox's promise on real parts while they are killed: Postgres with fsync on, a nats-server and the
// services' own binaries, each a process of its own. It holds tests only.
//
// A test that kills sees first that the process is in the state that it is about (the row is there, the acknowledgement is
// not), and checks afterwards that the guard it is about was the one that held. Each test says its invariant; what holds
// after all of them is in [system.checkOnce].
package chaos
