package devstack

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"

	"github.com/jackc/pgx/v5"
)

// CreateService gives one service its own: a role of that name that may log in, with a random password, and a database of
// that name which it owns and to which no other service's role can connect. It returns the role's URL to the database.
//
// A second call keeps the database and sets a new password: the URL of the first is worth nothing then. Calls at the same
// time, also of other processes, wait for each other. A role that is a superuser is refused.
func (p *Postgres) CreateService(ctx context.Context, name string) (_ string, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("create service %q: %w", name, err)
		}
	}()
	conn, err := pgx.Connect(ctx, p.URL(superuser))
	if err != nil {
		return "", err
	}
	defer conn.Close(context.WithoutCancel(ctx))

	// A session's lock: CREATE DATABASE does not run in a transaction.
	if _, err := conn.Exec(ctx, "SELECT pg_advisory_lock(hashtext('oncebox devstack'))"); err != nil {
		return "", err
	}
	password := rand.Text()
	ident := pgx.Identifier{name}.Sanitize()
	if err := createRole(ctx, conn, name, password); err != nil {
		return "", err
	}
	var exists bool
	if err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", name).Scan(&exists); err != nil {
		return "", err
	}
	if !exists {
		if _, err := conn.Exec(ctx, "CREATE DATABASE "+ident+" OWNER "+ident); err != nil {
			return "", err
		}
	}
	if _, err := conn.Exec(ctx, "REVOKE CONNECT ON DATABASE "+ident+" FROM PUBLIC"); err != nil {
		return "", err
	}
	u := *p.base
	u.User = url.UserPassword(name, password)
	u.Path = "/" + name
	return u.String(), nil
}

// createRole puts the password in the statement, which takes no parameters: it is letters and digits.
func createRole(ctx context.Context, conn *pgx.Conn, name, password string) error {
	verb := "ALTER"
	var super bool
	err := conn.QueryRow(ctx, "SELECT rolsuper FROM pg_roles WHERE rolname = $1", name).Scan(&super)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		verb = "CREATE"
	case err != nil:
		return err
	case super:
		return errors.New("the role is a superuser")
	}
	_, err = conn.Exec(ctx, fmt.Sprintf("%s ROLE %s LOGIN PASSWORD '%s'", verb, pgx.Identifier{name}.Sanitize(), password))
	return err
}
