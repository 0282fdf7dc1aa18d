package broker

import (
	"fmt"

	"github.com/nats-io/nats.go"
)

// Wakeups passes words on between the processes of one name, such as that something was committed: tell tells the others, and heard is
// called with what another has told. It is a hint over core NATS, which may be lost; whoever waits for it also looks by itself. tell
// never blocks and fails silently while the broker is away. The subscription ends with the connection.
func Wakeups(nc *nats.Conn, name string, heard func(word string)) (tell func(word string), err error) {
	subject := "oncebox.wake." + name
	if _, err := nc.Subscribe(subject, func(m *nats.Msg) { heard(string(m.Data)) }); err != nil {
		return nil, fmt.Errorf("broker: subscribe to %s: %w", subject, err)
	}
	return func(word string) { _ = nc.Publish(subject, []byte(word)) }, nil
}
