package service

import (
	"errors"
	"fmt"
	"os"

	"github.com/nats-io/nats.go"
)

// Broker is where NATS is, and by what a service shows who it is. Its variables are the same for all services.
type Broker struct {
	NATSURL          string `name:"nats-url" env:"NATS_URL" default:"nats://127.0.0.1:4222" help:"NATS servers, separated by commas. tls:// demands TLS. A user and password in it are those of the service."`
	NATSUser         string `name:"nats-user" env:"NATS_USER" help:"The service's user. Goes with NATS_PASSWORD_FILE."`
	NATSPasswordFile string `name:"nats-password-file" env:"NATS_PASSWORD_FILE" help:"File with the user's password, read again at each connection."`
	NATSNKeyFile     string `name:"nats-nkey-file" env:"NATS_NKEY_FILE" help:"File with the seed of the service's nkey, instead of a user and password."`
	NATSCAFile       string `name:"nats-ca-file" env:"NATS_CA_FILE" help:"Certificates that vouch for the servers' (PEM). Demands TLS."`
	NATSCertFile     string `name:"nats-cert-file" env:"NATS_CERT_FILE" help:"The service's own certificate (PEM), where the servers ask for one. Goes with NATS_KEY_FILE."`
	NATSKeyFile      string `name:"nats-key-file" env:"NATS_KEY_FILE" help:"The private key of NATS_CERT_FILE (PEM)."`

	NATSReplicas   int      `name:"nats-replicas" env:"NATS_REPLICAS" default:"1" help:"How many servers of a NATS cluster hold the service's stream and its readers' positions, 1 to 5: three go on without one. A stream that is there is not changed, and its relay says so and waits."`
	NATSSync       string   `name:"nats-sync" env:"NATS_SYNC" enum:",always,interval" default:"" help:"Whether the servers sync to disk before they acknowledge (sync_interval: always): 'always' or 'interval'. Where it is empty their monitoring addresses are asked."`
	NATSMonitor    []string `name:"nats-monitor" env:"NATS_MONITOR" help:"The servers' monitoring addresses, such as http://127.0.0.1:8222, separated by commas."`
	RequireDurable bool     `name:"require-durable" env:"REQUIRE_DURABLE" help:"Do not serve where the broker might lose what it acknowledged."`
}

func (b Broker) validate() error {
	if b.NATSReplicas < 1 || b.NATSReplicas > 5 { // JetStream takes no more
		return fmt.Errorf("NATS_REPLICAS is %d, and must be 1 to 5", b.NATSReplicas)
	}
	return nil
}

// inboxPrefix is where answers to a service come. The server lets no other service listen there.
func inboxPrefix(name string) string { return "_INBOX_" + name }

// options are how the connection of the service of that name identifies itself. An error names the variable that is wrong.
func (b Broker) options(name string) ([]nats.Option, error) {
	opts := []nats.Option{nats.CustomInboxPrefix(inboxPrefix(name))}
	switch {
	case (b.NATSUser == "") != (b.NATSPasswordFile == ""):
		return nil, errors.New("NATS_USER and NATS_PASSWORD_FILE go together")
	case b.NATSUser != "" && b.NATSNKeyFile != "":
		return nil, errors.New("NATS_USER and NATS_NKEY_FILE are two ways of saying who we are: set one")
	case (b.NATSCertFile == "") != (b.NATSKeyFile == ""):
		return nil, errors.New("NATS_CERT_FILE and NATS_KEY_FILE go together")
	}
	if b.NATSUser != "" {
		if _, err := readPassword(b.NATSPasswordFile); err != nil {
			return nil, fmt.Errorf("NATS_PASSWORD_FILE: %w", err)
		}
		opts = append(opts, nats.UserInfoHandler(func() (string, string) {
			password, _ := readPassword(b.NATSPasswordFile) // an empty one is refused by the server, logged, and tried again
			return b.NATSUser, password
		}))
	}
	if b.NATSNKeyFile != "" {
		o, err := nats.NkeyOptionFromSeed(b.NATSNKeyFile)
		if err != nil {
			return nil, fmt.Errorf("NATS_NKEY_FILE: %w", err)
		}
		opts = append(opts, o)
	}
	if b.NATSCAFile != "" {
		if _, err := os.ReadFile(b.NATSCAFile); err != nil {
			return nil, fmt.Errorf("NATS_CA_FILE: %w", err)
		}
		opts = append(opts, nats.RootCAs(b.NATSCAFile))
	}
	if b.NATSCertFile != "" {
		opts = append(opts, nats.ClientCert(b.NATSCertFile, b.NATSKeyFile))
	}
	return opts, nil
}
