// Package broker carries Watermill messages over NATS JetStream: a [Publisher], a [Subscriber], and the [Sink] of an outbox's
// relay, over streams that are declared in one place, [Stream].
package broker

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"
)

// Connect connects to the NATS servers of a comma-separated list of URLs, under a name that the server shows. It does not fail
// while no server is there: it goes on trying in the background for as long as the connection is not closed, and calls on the
// connection fail meanwhile. Nothing is buffered while it is down: what could not be sent is an error, for the caller to
// repeat. Losses and returns of the connection are logged.
func Connect(urls, name string, log *slog.Logger, opts ...nats.Option) (*nats.Conn, error) {
	base := []nats.Option{
		nats.Name(name),
		nats.RetryOnFailedConnect(true),
		nats.MaxReconnects(-1),
		nats.IgnoreAuthErrorAbort(), // a password that is wrong for a while is an outage, not the end
		nats.ReconnectWait(250 * time.Millisecond),
		nats.ReconnectBufSize(-1),
		nats.PingInterval(5 * time.Second), // a server that stands still, or is cut off, is left after the third that it does not answer
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil { // nil: we closed it
				log.Warn("nats: disconnected", "error", err)
			}
		}),
		nats.ReconnectHandler(func(c *nats.Conn) { log.Info("nats: connected again", "server", c.ConnectedUrlRedacted()) }),
		nats.ErrorHandler(func(_ *nats.Conn, s *nats.Subscription, err error) {
			subject := ""
			if s != nil {
				subject = s.Subject
			}
			log.Warn("nats: asynchronous error", "subject", subject, "error", err)
		}),
	}
	nc, err := nats.Connect(urls, append(base, opts...)...)
	if err != nil {
		return nil, fmt.Errorf("broker: connect to NATS: %w", err)
	}
	return nc, nil
}
