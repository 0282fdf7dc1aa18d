package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Options are the settings that every service has. A command embeds them under its own prefix of environment variables.
type Options struct {
	Database
	Listen          string        `env:"LISTEN" default:"${listen}" help:"Address of the public API."`
	AdminListen     AdminAddress  `embed:""`
	Access          Access        `embed:""`
	AckWait         time.Duration `env:"ACK_WAIT" default:"30s" help:"After how long without a sign of life a message is handed out again."`
	Lease           time.Duration `env:"LEASE" default:"5s" help:"How long a relay that died keeps its standby waiting."`
	OutboxRetention time.Duration `env:"OUTBOX_RETENTION" default:"168h" help:"How long events stay in the outbox after they were sent; at most 312h."`
	RetainEvery     time.Duration `env:"RETAIN_EVERY" default:"1m" help:"How often the relay looks for a day's events of which all are older than that."`
	TendEvery       time.Duration `env:"TEND_EVERY" default:"1h" help:"How often handled messages' ids, and orders that were deleted, are cleared away when they are over."`
	AfterRestore    string        `env:"AFTER_RESTORE" enum:",resend,resume" default:"" help:"What the relay does where the database was restored into another cluster: 'resend' after pg_restore, 'resume' after pg_upgrade. Empty: refuse to serve."`
	ParkedKeys      string        `env:"PARKED_KEYS" enum:"go on,hold key" default:"go on" help:"What becomes of a key's events behind one that the stream can never hold: 'go on' or 'hold key'."`
	HealEvery       time.Duration `env:"HEAL_EVERY" default:"1m" help:"How often the outbox is compared with the inboxes of its consumers, and what they lost is sent again; 0: never by itself."`
	Lanes           int           `env:"LANES" default:"16" help:"How many messages are handled at once; where they are handled in groups, at most four groups."`
	StopTimeout     time.Duration `env:"STOP_TIMEOUT" default:"9s" help:"How long a graceful stop may take, all in all: a third each for requests and the relay with what is closed last, the rest for messages."`
	LogLevel        slog.Level    `env:"LOG_LEVEL" default:"INFO" help:"DEBUG, INFO, WARN or ERROR."`
}

// Database is where a service's own database is, and by whose rights the service works in it. One URL does all of it; a
// deployment has three roles: the owner migrates (the command migrate, with the owner's URL), the app serves, the relay relays.
type Database struct {
	DatabaseURL      string        `env:"DATABASE_URL" help:"The service's own Postgres database, postgres://user:password@host:port/name. TLS as in libpq: ?sslmode=verify-full&sslrootcert=file. Required to serve and migrate."`
	PasswordFile     string        `name:"database-password-file" env:"DATABASE_PASSWORD_FILE" help:"File with the password for the database URL, read again at each connection."`
	RelayDatabaseURL string        `name:"relay-database-url" env:"RELAY_DATABASE_URL" help:"The same database as the relay's role. Default: the database URL."`
	RelayPassword    string        `name:"relay-database-password-file" env:"RELAY_DATABASE_PASSWORD_FILE" help:"The same for the relay's database URL, and with it."`
	MaxConns         int32         `name:"database-max-conns" env:"DATABASE_MAX_CONNS" default:"24" help:"Most connections to the database: for the lanes and the HTTP requests. The relay has four of its own."`
	StatementTimeout time.Duration `env:"STATEMENT_TIMEOUT" default:"30s" help:"After how long Postgres gives a statement up; 0: as the role is set."`
	LockTimeout      time.Duration `env:"LOCK_TIMEOUT" default:"10s" help:"After how long Postgres gives up waiting for a lock in a request; 0: as the role is set. A message waits for a second."`
	Migrate          bool          `env:"MIGRATE" default:"true" negatable:"" help:"Migrate before serving, which needs the owner's rights. Without it the database must be migrated."`
	AppRole          string        `env:"APP_ROLE" help:"Who a migration gives the rights to serve. Goes with RELAY_ROLE."`
	RelayRole        string        `env:"RELAY_ROLE" help:"Who a migration gives the rights to relay."`
}

// AdminAddress is where health and metrics are served.
type AdminAddress struct {
	Admin string `env:"ADMIN" default:"${admin}" help:"Address of /healthz, /readyz, /metrics, /relay, /dead-letters and /keys. Keep it private."`
}

// Access says who may ask, and how much at once.
type Access struct {
	Auth           string `env:"AUTH" default:"keys" help:"keys: each caller sends an API key. off: whoever reaches the port is the tenant 'default'."`
	APIKeysFile    string `name:"api-keys-file" env:"API_KEYS_FILE" help:"File of tenant:principal:SHA-256 of a key in hex, a line each. Read again when it changes. Required unless --auth=off."`
	AdminTokenFile string `name:"admin-token-file" env:"ADMIN_TOKEN_FILE" help:"File with the token that writes on the admin listener need, and whole dead letters. Without it there are none."`
	MaxHTTPConns   int    `name:"max-http-conns" env:"MAX_HTTP_CONNS" default:"2048" help:"Most connections to the public API at once; further ones wait to be taken."`
}

// variable names a setting of the service of that name: by its variable, and the flag that stands for it.
func variable(service, flag string) string {
	return fmt.Sprintf("%s_%s (--%s)", strings.ToUpper(service), strings.ToUpper(strings.ReplaceAll(flag, "-", "_")), flag)
}

func (d Database) validate(name string) error {
	if d.DatabaseURL == "" {
		return fmt.Errorf("%s is not set: the service needs its database", variable(name, "database-url"))
	}
	for flag, url := range map[string]string{"database-url": d.DatabaseURL, "relay-database-url": d.RelayDatabaseURL} {
		if _, err := pgxpool.ParseConfig(url); err != nil { // it shows no password
			return fmt.Errorf("%s: %w", variable(name, flag), err)
		}
	}
	if d.RelayPassword != "" && d.RelayDatabaseURL == "" {
		return fmt.Errorf("%s needs %s", variable(name, "relay-database-password-file"), variable(name, "relay-database-url"))
	}
	for flag, file := range map[string]string{"database-password-file": d.PasswordFile, "relay-database-password-file": d.RelayPassword} {
		if _, err := readPassword(file); err != nil {
			return fmt.Errorf("%s: %w", variable(name, flag), err)
		}
	}
	if d.MaxConns < 2 {
		return fmt.Errorf("%s is %d, and must be at least 2", variable(name, "database-max-conns"), d.MaxConns)
	}
	if (d.AppRole == "") != (d.RelayRole == "") {
		return fmt.Errorf("%s and %s go together", variable(name, "app-role"), variable(name, "relay-role"))
	}
	for flag, t := range map[string]time.Duration{"statement-timeout": d.StatementTimeout, "lock-timeout": d.LockTimeout} {
		if t < 0 || t > 0 && t < time.Millisecond {
			return fmt.Errorf("%s is %s, and must be 0 or at least 1ms", variable(name, flag), t)
		}
	}
	return nil
}

func (o Options) validate(name string) error {
	if err := o.Database.validate(name); err != nil {
		return err
	}
	for flag, d := range map[string]time.Duration{"ack-wait": o.AckWait, "lease": o.Lease, "retain-every": o.RetainEvery, "tend-every": o.TendEvery, "stop-timeout": o.StopTimeout} {
		if d <= 0 {
			return fmt.Errorf("%s is %s, and must be above 0", variable(name, flag), d)
		}
	}
	if o.HealEvery < 0 {
		return fmt.Errorf("%s is %s, and must not be below 0", variable(name, "heal-every"), o.HealEvery)
	}
	if o.Access.Auth != "keys" && o.Access.Auth != "off" {
		return fmt.Errorf("%s is %q, and must be keys or off", variable(name, "auth"), o.Access.Auth)
	}
	if (o.Access.Auth == "keys") != (o.Access.APIKeysFile != "") {
		return fmt.Errorf("who may call: set %[1]s_API_KEYS_FILE to the file of their keys, or %[1]s_AUTH=off to let everybody in, and not both", strings.ToUpper(name))
	}
	for flag, n := range map[string]int{"max-http-conns": o.Access.MaxHTTPConns, "lanes": o.Lanes} {
		if n < 1 {
			return fmt.Errorf("%s is %d, and must be at least 1", variable(name, flag), n)
		}
	}
	return nil
}

// Commands are what a service's command line can ask for.
type Commands struct {
	Serve   struct{} `cmd:"" default:"1" help:"Migrate the database and serve until SIGTERM. The default."`
	Migrate struct{} `cmd:"" help:"Migrate the database and exit."`
	Health  struct{} `cmd:"" help:"Exit with 0 if the service that runs here is ready."`
}

// Parse reads the command line and the environment into cli, which embeds Options, Broker, KeyStore and Commands, and returns the command.
// A wrong one is printed as one line and ends the process with 2.
func Parse(cli any, name, help string, vars kong.Vars) (command string) {
	k := kong.Must(cli, kong.Name(name), kong.Description(help), vars)
	parsed, err := k.Parse(os.Args[1:])
	if err != nil {
		k.Errorf("%s", err)
		os.Exit(2)
	}
	return parsed.Command()
}

// Main does what the command asks for, until SIGTERM or SIGINT; a second signal ends the process at once. An error is printed
// as one line and ends the process with 1.
func Main(command string, o Options, b Broker, k KeyStore, def Definition) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	context.AfterFunc(ctx, stop)
	var err error
	switch command {
	case "serve":
		err = Run(ctx, o, b, k, def)
	case "migrate":
		err = Migrate(ctx, o.Database, def)
	case "health":
		err = o.AdminListen.Ready(ctx)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: error: %s\n", def.Name, oneLine(err))
		os.Exit(1)
	}
}

// oneLine is what err says, with what stands on lines of its own one behind the other.
func oneLine(err error) string {
	lines := strings.FieldsFunc(err.Error(), func(c rune) bool { return c == '\n' || c == '\r' || c == '\t' })
	return strings.ReplaceAll(strings.Join(lines, "; "), ":; ", ": ")
}

// Ready asks a running service whether it is ready; an error says why not.
func (a AdminAddress) Ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+a.Admin+"/readyz", nil)
	if err != nil {
		return fmt.Errorf("ask for health: %w", err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("ask for health: %w", err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 4096))
	if err != nil {
		return fmt.Errorf("ask for health: %w", err)
	}
	if res.StatusCode != http.StatusOK {
		return errors.New("not ready: " + string(body))
	}
	return nil
}
