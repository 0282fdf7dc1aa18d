// Command billing serves the billing service.
package main

import (
	"fmt"
	"time"

	"github.com/alecthomas/kong"

	"github.com/oncebox/oncebox/billing"
	"github.com/oncebox/oncebox/events"
	"github.com/oncebox/oncebox/inbox"
	"github.com/oncebox/oncebox/internal/service"
	"github.com/oncebox/oncebox/migrations"
)

type config struct {
	service.Options  `embed:"" envprefix:"BILLING_"`
	service.Broker   `embed:""`
	service.KeyStore `embed:""`
	service.Commands `embed:""`
	ChargeLimit      int64         `env:"BILLING_CHARGE_LIMIT" default:"1000000" help:"Greatest amount that is charged, in minor units; more is declined."`
	PSPURL           string        `name:"psp-url" env:"BILLING_PSP_URL" help:"A payment provider in Stripe's form, https://secret-key@host: charges and refunds are asked for there. Empty: they are made in the ledger alone."`
	PSPTimeout       time.Duration `name:"psp-timeout" env:"BILLING_PSP_TIMEOUT" default:"30s" help:"How long one call of the provider may take, and how long a charge waits whose process died in the middle of it."`
}

func main() {
	var c config
	command := service.Parse(&c, billing.Name, "Oncebox billing: charges each order once.", kong.Vars{"listen": ":8081", "admin": "127.0.0.1:8091"})
	service.Main(command, c.Options, c.Broker, c.KeyStore, service.Definition{
		Name: billing.Name, Line: migrations.Billing,
		Stream: events.BillingStream, Subjects: events.BillingSubjects,
		ReadsStream: events.OrdersStream, ReadsSubjects: events.OrdersSubjects, Reads: "orders", Consumers: []string{"orders"},
		Build: func(p service.Parts) (service.Built, error) {
			s, err := billing.New(p.Pool, p.Outbox, billing.Config{ChargeLimit: c.ChargeLimit})
			if err != nil {
				return service.Built{}, err
			}
			outside, err := c.outside(s)
			return service.Built{Routes: s.Routes, Keys: s.Keys(), Forget: s.Forget, Handler: s.GroupHandler(),
				Outside: outside, Books: s.Books, Trace: s.Trace}, err
		},
	})
}

// outside is the way by a payment provider, nil if none is set.
func (c config) outside(s *billing.Service) (*inbox.Outside, error) {
	if c.PSPURL == "" {
		return nil, nil
	}
	p, err := billing.NewProvider(c.PSPURL)
	if err != nil {
		return nil, fmt.Errorf("BILLING_PSP_URL (--psp-url): %w", err)
	}
	o, err := s.Outside(p, c.PSPTimeout)
	if err != nil {
		return nil, fmt.Errorf("BILLING_PSP_TIMEOUT (--psp-timeout): %w", err)
	}
	return &o, nil
}
