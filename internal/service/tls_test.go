package service

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/oncebox/oncebox/internal/devstack"
	"github.com/oncebox/oncebox/internal/stacktest"
)

// An authority vouches for certificates of 127.0.0.1.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string
}

func newAuthority(t *testing.T, dir, name string) authority {
	t.Helper()
	a := authority{file: filepath.Join(dir, name+".crt")}
	var err error
	a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	must(t, err)
	a.cert, err = x509.ParseCertificate(der)
	must(t, err)
	writePEM(t, a.file, "CERTIFICATE", der)
	return a
}

// issue writes a certificate and its key.
func (a authority) issue(t *testing.T, dir, name string) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, k.Public(), a.key)
	must(t, err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(k)
	must(t, err)
	cert, key = filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
	writePEM(t, cert, "CERTIFICATE", der)
	writePEM(t, key, "PRIVATE KEY", pkcs8)
	return cert, key
}

func writePEM(t *testing.T, file, kind string, der []byte) {
	t.Helper()
	must(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
}

func TestNATSOverTLSAsDeployed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ours, theirs := newAuthority(t, dir, "ours"), newAuthority(t, dir, "theirs")
	cert, key := ours.issue(t, dir, "nats")
	writeFile(t, filepath.Join(dir, "passwords.conf"), "NATS_ORDERS_PASSWORD: \"o-secret\"\nNATS_BILLING_PASSWORD: \"b-secret\"\nNATS_DEMO_PASSWORD: \"d-secret\"\n")
	for _, name := range []string{"nats.conf", "tls.conf"} {
		conf, err := os.ReadFile(filepath.Join("../../deploy/nats", name))
		must(t, err)
		writeFile(t, filepath.Join(dir, name), string(conf))
	}
	server := stacktest.NATS(t, func(cfg *devstack.NATSConfig) {
		cfg.Config = filepath.Join(dir, "tls.conf")
		cfg.Env = []string{"NATS_TLS_CERT=" + cert, "NATS_TLS_KEY=" + key}
	})
	password := filepath.Join(dir, "password")
	writeFile(t, password, "o-secret\n")
	connect := func(b Broker) error {
		opts, err := b.options("orders")
		must(t, err)
		b.NATSURL = server.URL()
		nc, err := nats.Connect(b.NATSURL, opts...)
		if err == nil {
			defer nc.Close()
			_, err = nc.TLSConnectionState()
		}
		return err
	}
	good := Broker{NATSUser: "orders", NATSPasswordFile: password, NATSCAFile: ours.file}
	must(t, connect(good))
	for name, change := range map[string]func(*Broker){
		"another authority": func(b *Broker) { b.NATSCAFile = theirs.file },
		"no authority":      func(b *Broker) { b.NATSCAFile = "" },
		"another user":      func(b *Broker) { b.NATSUser = "billing" },
		"no user":           func(b *Broker) { b.NATSUser, b.NATSPasswordFile = "", "" },
	} {
		b := good
		change(&b)
		if err := connect(b); err == nil {
			t.Errorf("%s: connected", name)
		}
	}
}

func TestAnNKeySaysWhoWeAre(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	makeKey := func(name string) (public, file string) {
		key, err := nkeys.CreateUser()
		must(t, err)
		public, err = key.PublicKey()
		must(t, err)
		seed, err := key.Seed()
		must(t, err)
		file = filepath.Join(dir, name)
		writeFile(t, file, string(seed)+"\n")
		return public, file
	}
	public, known := makeKey("known")
	_, unknown := makeKey("unknown")
	conf := filepath.Join(dir, "nats.conf")
	writeFile(t, conf, fmt.Sprintf("authorization { users = [{ nkey: %s, permissions: { subscribe: { allow: [%q] } } }] }\n", public, inboxPrefix("orders")+".>"))
	server := stacktest.NATS(t, func(cfg *devstack.NATSConfig) { cfg.Config = conf })
	connect := func(b Broker) (*nats.Conn, error) {
		opts, err := b.options("orders")
		must(t, err)
		return nats.Connect(server.URL(), opts...)
	}
	nc, err := connect(Broker{NATSNKeyFile: known})
	must(t, err)
	defer nc.Close()
	if _, err := nc.RequestWithContext(t.Context(), "nobody.there", nil); !errors.Is(err, nats.ErrNoResponders) { // our inbox can hear
		t.Errorf("a request returned %v", err)
	}
	for name, b := range map[string]Broker{"another key": {NATSNKeyFile: unknown}, "no key": {}} {
		if nc, err := connect(b); !errors.Is(err, nats.ErrAuthorization) {
			t.Errorf("%s: connected, or %v", name, err)
			if err == nil {
				nc.Close()
			}
		}
	}
}

func TestAWrongIdentityForNATSIsNamed(t *testing.T) {
	t.Parallel()
	seed := filepath.Join(t.TempDir(), "seed")
	writeFile(t, seed, "SUno seed\n")
	for want, b := range map[string]Broker{
		"NATS_PASSWORD_FILE":  {NATSUser: "orders"},
		"NATS_USER":           {NATSPasswordFile: seed},
		"NATS_PASSWORD_FILE:": {NATSUser: "orders", NATSPasswordFile: "/nowhere"},
		"NATS_NKEY_FILE:":     {NATSNKeyFile: seed},
		"NATS_CA_FILE:":       {NATSCAFile: "/nowhere"},
		"NATS_CERT_FILE":      {NATSKeyFile: seed},
		"NATS_KEY_FILE":       {NATSCertFile: seed},
		"set one":             {NATSUser: "orders", NATSPasswordFile: seed, NATSNKeyFile: seed},
	} {
		if _, err := b.options("orders"); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "SUno seed") {
			t.Errorf("got %v, want an error with %s", err, want)
		}
	}
}

// Postgres takes its TLS settings from the URL, as everywhere.
func TestPostgresOverTLS(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("/var/tmp", "oncebox-tls-") // one of t.TempDir is closed to the user that Postgres runs as
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	must(t, os.Chmod(dir, 0o755))
	ours, theirs := newAuthority(t, dir, "ours"), newAuthority(t, dir, "theirs")
	cert, key := ours.issue(t, dir, "postgres")
	if os.Getuid() == 0 {
		giveToPostgres(t, cert, key)
	}
	server := stacktest.OwnPostgres(t, devstack.PostgresConfig{Settings: map[string]string{"ssl": "on", "ssl_cert_file": cert, "ssl_key_file": key}})
	base := strings.Replace(server.URL("postgres"), "sslmode=disable", "sslmode=verify-full&sslrootcert=", 1)
	try := func(ca string) error {
		pool, err := connect(t.Context(), base+ca, 2, nil, slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		defer pool.Close()
		var encrypted bool
		err = pool.QueryRow(t.Context(), "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").Scan(&encrypted)
		if err == nil && !encrypted {
			err = errors.New("not encrypted")
		}
		return err
	}
	must(t, try(ours.file))
	if err := try(theirs.file); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a server that another authority vouches for: %v", err)
	}
}

// giveToPostgres hands files to the user that devstack runs Postgres as when we are root.
func giveToPostgres(t *testing.T, files ...string) {
	t.Helper()
	u, err := user.Lookup("postgres")
	if err != nil {
		u, err = user.Lookup("nobody")
	}
	must(t, err)
	uid, err := strconv.Atoi(u.Uid)
	must(t, err)
	for _, f := range files {
		must(t, os.Chown(f, uid, -1))
	}
}
