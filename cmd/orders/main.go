// Command orders serves the orders service.
package main

import (
	"github.com/alecthomas/kong"

	"github.com/oncebox/oncebox/events"
	"github.com/oncebox/oncebox/internal/service"
	"github.com/oncebox/oncebox/migrations"
	"github.com/oncebox/oncebox/orders"
)

type config struct {
	service.Options  `embed:"" envprefix:"ORDERS_"`
	service.Broker   `embed:""`
	service.KeyStore `embed:""`
	service.Commands `embed:""`
}

func main() {
	var c config
	command := service.Parse(&c, orders.Name, "Oncebox orders: takes orders and has each charged once.", kong.Vars{"listen": ":8080", "admin": "127.0.0.1:8090"})
	service.Main(command, c.Options, c.Broker, c.KeyStore, service.Definition{
		Name: orders.Name, Line: migrations.Orders,
		Stream: events.OrdersStream, Subjects: events.OrdersSubjects,
		ReadsStream: events.BillingStream, ReadsSubjects: events.BillingSubjects, Reads: "billing", Consumers: []string{"billing"},
		Build: func(p service.Parts) (service.Built, error) {
			s := orders.New(p.Pool, p.Outbox, orders.Config{Wake: p.Wake, Registerer: p.Registerer})
			return service.Built{Routes: s.Routes, Keys: s.Keys(), Forget: s.Forget, Handler: s.GroupHandler(), Purge: s.Purge,
				Books: s.Books, Trace: s.Trace}, nil
		},
	})
}
