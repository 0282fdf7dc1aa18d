package service

import (
	"context"
	"errors"
)

// serve runs what is assembled, until ctx is done or a part fails for good, and stops it.
func (a *assembly) serve(ctx context.Context) (err error) {
	// What the parts work on outlasts ctx: they are stopped one after the other.
	running, stopRelay := context.WithCancel(context.WithoutCancel(ctx))
	defer stopRelay()
	relayDone, routerDone := start(func() error { return a.relay.Run(running) }), start(func() error { return a.router.Run(running) })
	cleanDone := start(func() error { return a.inPostgres.Run(ctx) }) // what was kept before keys went to Redis, too
	chores := []chore{{"handled messages' ids", func(ctx context.Context) error { _, err := a.in.Prune(ctx); return err }}}
	if a.built.Purge != nil {
		chores = append(chores, chore{"what was deleted", a.built.Purge})
	}
	go a.in.WatchHorizon(ctx)
	go tend(ctx, a.TendEvery, a.log, chores...)
	go a.healer.run(ctx, a.HealEvery)
	a.health.ready.Store(true)
	a.log.Info("serving", "listen", a.public.addr, "admin", a.admin.addr)

	select {
	case <-ctx.Done():
	case err = <-a.public.done:
	case err = <-a.admin.done:
	case err = <-relayDone:
	case err = <-routerDone:
	case err = <-cleanDone:
	}
	a.log.Info("stopping", "cause", errors.Join(err, context.Cause(ctx)))
	a.health.ready.Store(false)
	stop(context.WithoutCancel(ctx), a.log,
		stage{"requests", share(a.StopTimeout, requestsShare), func(end context.Context) error {
			return errors.Join(a.public.stop(end), a.closeStore(end))
		}},
		stage{"messages in hand", share(a.StopTimeout, messagesShare), func(end context.Context) error {
			a.healer.stopAnswering()
			return within(end, a.sub.Close)
		}},
		stage{"the router", share(a.StopTimeout, routerShare), func(end context.Context) error { return within(end, a.router.Close) }},
		stage{"the relay", share(a.StopTimeout, relayShare), func(end context.Context) error {
			stopRelay()
			return within(end, func() error { return <-relayDone })
		}})
	a.log.Info("stopped", "error", err)
	return err
}
