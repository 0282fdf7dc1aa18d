package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncebox/oncebox/cmd/demo/page"
	"github.com/oncebox/oncebox/internal/trial"
)

// startPage serves the page on a free port of 127.0.0.1 until stop. It has a link of its own, whose loss its visitor sets.
func (s *stack) startPage(ctx context.Context, o options) error {
	super, err := pgxpool.New(ctx, s.pg.URL("postgres"))
	if err != nil {
		return fmt.Errorf("the page's way to Postgres: %w", err)
	}
	s.onStop(func(context.Context) error { super.Close(); return nil })
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("start the page: %w", err)
	}
	lab := page.Lab{
		Orders: s.ordersDB, Billing: s.billingDB, Naive: s.naives, Super: super, JetStream: s.js,
		OrdersProcess: s.orders.inLab(), BillingProcess: s.billing.inLab(), NaiveProcess: s.naive.inLab(), NaiveWriter: s.writer.inLab(),
		PauseNATS: s.nats.Pause, ContinueNATS: s.nats.Continue, CopyNATS: s.copyNATS, OwnNATS: !s.nats.External(),
		NaiveDurable: naiveGroup,
		Admins:       []page.Admin{s.orders.admin, s.billing.admin},
	}
	if s.pgWire != nil {
		lab.CutPostgres = s.pgWire.cut
	}
	if err := s.lendRedis(ctx, &lab); err != nil {
		return errors.Join(err, listener.Close())
	}
	if err := s.servePage(ctx, listener, listener.Addr().String(), lab, o.seed); err != nil {
		return errors.Join(err, listener.Close())
	}
	s.pageURL = "http://" + listener.Addr().String() + "/"
	return nil
}

// servePage serves the page until stop, with a link of its own. address is what browsers call it.
func (s *stack) servePage(ctx context.Context, listener net.Listener, address string, lab page.Lab, seed uint64) error {
	p := page.New(lab, page.Settings{Seed: seed, Loss: 40, Keys: true, Retries: true})
	l, err := s.openLink("page-link.log", fate{}, p.Observe)
	if err != nil {
		return err
	}
	p.Buy = func(ctx context.Context, run string, set page.Settings, intent int) error {
		c := newClient(page.Customers, !set.Keys, run, l.url)
		c.apiKey = lab.APIKey
		if !set.Retries {
			c.tries = 1
		}
		return c.order(ctx, intent)
	}
	p.SetFate = func(set page.Settings) { l.fate.Store(&fate{seed: set.Seed, loss: float64(set.Loss) / 100}) }
	p.LinkURL = l.url

	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	server := &http.Server{Handler: p.Handler(address), ReadHeaderTimeout: 5 * time.Second,
		BaseContext: func(net.Listener) context.Context { return running }}
	done := make(chan struct{}, 2)
	for _, f := range []func() error{
		func() error { return p.Run(running) },
		func() error {
			if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serve the page: %w", err)
			}
			return nil
		},
	} {
		go func() {
			defer func() { done <- struct{}{} }()
			if err := trial.Guarded(f)(); err != nil {
				s.fail(err)
			}
		}()
	}
	s.onStop(func(context.Context) error {
		cancel()
		err := server.Close()
		<-done
		<-done
		return err
	})
	return nil
}

// inLab is the program as the page has power over it.
func (p *program) inLab() page.Process {
	return page.Process{
		Name: p.name,
		Pid:  func() int { return p.process(false).Pid() },
		Alive: func() bool {
			select {
			case <-p.process(false).Done():
				return false
			default:
				return true
			}
		},
		Kill:     p.kill,
		Pause:    func() error { return p.process(false).Pause() },
		Continue: func() error { return p.process(false).Continue() },
		Start: func(ctx context.Context) error {
			if err := p.start(); err != nil || p.admin.URL == "" {
				return err
			}
			return p.ready(ctx)
		},
	}
}
