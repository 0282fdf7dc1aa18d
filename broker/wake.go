package broker

import (
	"fmt"

	"github.com/nats-io/nats.go"
)

// Wakeups passes on, between the processes of one name, that something was committed: ping tells the others, and pinged is
// called when another has told. It is a hint over core NATS, which may be lost; whoever waits for it also looks by itself. ping
// never blocks and fails silently while the broker is away. The subscription ends with the connection.
func Wakeups(nc *nats.Conn, name string, pinged func()) (ping func(), err error) {
	subject := "oncebox.wake." + name
	if _, err := nc.Subscribe(subject, func(*nats.Msg) { pinged() }); err != nil {
		return nil, fmt.Errorf("broker: subscribe to %s: %w", subject, err)
	}
	return func() { _ = nc.Publish(subject, nil) }, nil
}
