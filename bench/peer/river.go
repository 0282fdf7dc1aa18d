package peer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
	"github.com/riverqueue/river/rivertype"

	"github.com/oncebox/oncebox"
)

// A Job is an event as River's queue carries it.
type Job struct {
	ID   string          `json:"id"`
	Key  string          `json:"key"`
	Data json.RawMessage `json:"data"`
}

// Kind names the jobs of River's queue.
func (Job) Kind() string { return "event" }

// An Answer is what a job's effect sends on. Nobody works on it here.
type Answer struct{ Job }

// Kind names the answers.
func (Answer) Kind() string { return "answer" }

// MigrateRiver makes River's tables.
func MigrateRiver(ctx context.Context, pool *pgxpool.Pool) error {
	m, err := rivermigrate.New(riverpgxv5.New(pool), nil)
	if err != nil {
		return fmt.Errorf("migrate River: %w", err)
	}
	if _, err := m.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
		return fmt.Errorf("migrate River: %w", err)
	}
	return nil
}

// River is River's client.
type River struct {
	client *river.Client[pgx.Tx]
	failed failures
}

// failures are those of jobs, which River would try again later.
type failures chan error

// HandleError is called by River.
func (f failures) HandleError(_ context.Context, _ *rivertype.JobRow, err error) *river.ErrorHandlerResult {
	select {
	case f <- err:
	default:
	}
	return nil
}

// HandlePanic is called by River.
func (f failures) HandlePanic(ctx context.Context, job *rivertype.JobRow, cause any, _ string) *river.ErrorHandlerResult {
	return f.HandleError(ctx, job, fmt.Errorf("panic: %v", cause))
}

// riverWorkers is how many jobs run at once, as in River's own examples; the pool's connections bound how many are in the database.
const riverWorkers = 100

// NewRiver returns a client that charges what the jobs ask for and calls charged after each commit; with charged nil it only inserts
// jobs.
//
// River takes up to as many jobs as it has workers free at each fetch, and fetches at most each FetchCooldown; its documentation
// says that this bounds the throughput. So the pauses are as short as River's own benchmark of its queue sets them: 2 ms and 20 ms.
func NewRiver(pool *pgxpool.Pool, charged func()) (*River, error) {
	cfg := &river.Config{Logger: slog.New(slog.DiscardHandler)}
	r := &River{failed: make(failures, 1)}
	if charged != nil {
		cfg.SkipUnknownJobCheck, cfg.ErrorHandler = true, r.failed // nobody works on answers here
		cfg.Workers = river.NewWorkers()
		river.AddWorker(cfg.Workers, &worker{pool: pool, charged: charged})
		cfg.Queues = map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: riverWorkers}}
		cfg.FetchCooldown, cfg.FetchPollInterval = 2*time.Millisecond, 20*time.Millisecond
	}
	var err error
	if r.client, err = river.NewClient(riverpgxv5.New(pool), cfg); err != nil {
		return nil, fmt.Errorf("River: %w", err)
	}
	return r, nil
}

// Add inserts events as jobs in tx.
func (r *River) Add(ctx context.Context, tx pgx.Tx, events []oncebox.Event) error {
	if len(events) == 1 {
		_, err := r.client.InsertTx(ctx, tx, jobOf(events[0]), nil)
		return err
	}
	jobs := make([]river.InsertManyParams, len(events))
	for i, e := range events {
		jobs[i].Args = jobOf(e)
	}
	_, err := r.client.InsertManyTx(ctx, tx, jobs)
	return err
}

func jobOf(e oncebox.Event) Job { return Job{ID: e.ID, Key: e.Key, Data: e.Data} }

// Work works on jobs until ctx is done, or one fails.
func (r *River) Work(ctx context.Context) error {
	if err := r.client.Start(context.WithoutCancel(ctx)); err != nil {
		return fmt.Errorf("start River: %w", err)
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-r.failed:
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	return errors.Join(err, r.client.Stop(end))
}

// A worker charges what a job asks for and completes the job in one transaction, as River's documentation has it for effects that
// are to happen once.
type worker struct {
	river.WorkerDefaults[Job]
	pool    *pgxpool.Pool
	charged func()
}

// Work is called by River. The answer goes to a queue that has no workers here.
func (w *worker) Work(ctx context.Context, job *river.Job[Job]) error {
	err := pgx.BeginFunc(ctx, w.pool, func(tx pgx.Tx) error {
		answer, err := Charge(ctx, tx, job.Args.Data)
		if err != nil {
			return err
		}
		client := river.ClientFromContext[pgx.Tx](ctx)
		if _, err := client.InsertTx(ctx, tx, Answer{jobOf(answer)}, &river.InsertOpts{Queue: "answers"}); err != nil {
			return err
		}
		_, err = river.JobCompleteTx[*riverpgxv5.Driver](ctx, tx, job)
		return err
	})
	if err == nil {
		w.charged()
	}
	return err
}
