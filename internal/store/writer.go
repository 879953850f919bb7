package store

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"time"
)

const (
	groupSize    = 128              // changes in one transaction at most
	groupTimeout = 30 * time.Second // a database that takes longer is reported, not waited for
)

// A job is one write and the goroutine that waits for it.
type job struct {
	run  func(*tx) error // may run twice: what it sets outside, it sets each time
	done chan error
}

// do runs f inside a durable transaction and returns once it is committed.
// When ctx ends first, f has not run; once the writer took the job, do waits
// for the outcome, so that an error always means "not written" (except when
// the connection to PostgreSQL breaks during COMMIT: then nobody knows, and
// the version check tells on the next try).
func (s *Store) do(ctx context.Context, f func(*tx) error) error {
	j := &job{run: f, done: make(chan error, 1)}
	select {
	case <-s.quit:
		return ErrClosed
	default:
	}
	select {
	case s.jobs <- j:
		return <-j.done
	case <-ctx.Done():
		return ctx.Err()
	case <-s.quit:
		return ErrClosed
	}
}

// write is the one goroutine that writes. The channel has no buffer: what it
// received it answers, and what it did not receive was not begun.
func (s *Store) write() {
	defer close(s.stopped)
	group := make([]*job, 0, groupSize)
	for {
		select {
		case <-s.quit:
			return
		case j := <-s.jobs:
			group = append(group[:0], j)
		}
	gather:
		for len(group) < groupSize {
			select {
			case j := <-s.jobs:
				group = append(group, j)
			default:
				break gather
			}
		}
		s.commitGroup(group)
	}
}

// commitGroup commits what does not fail. Nearly always that is everything, so
// the first try goes without savepoints, which would be half of the statements;
// when a change failed, all are run again with a savepoint each.
func (s *Store) commitGroup(group []*job) {
	ctx, cancel := context.WithTimeout(context.Background(), groupTimeout)
	defer cancel()
	errs := make([]error, len(group))
	err := s.transaction(ctx, func(t *tx) error {
		for i, j := range group {
			if errs[i] = j.run(t); errs[i] != nil {
				return errs[i]
			}
		}
		return nil
	})
	if len(group) > 1 && slices.ContainsFunc(errs, func(err error) bool { return err != nil }) {
		clear(errs)
		err = s.transaction(ctx, func(t *tx) error {
			for i, j := range group {
				var broken error
				if errs[i], broken = t.attempt(j.run); broken != nil {
					return broken
				}
			}
			return nil
		})
	}
	if err == nil {
		s.announce()
	}
	for i, j := range group {
		if errs[i] == nil {
			errs[i] = err
		}
		j.done <- errs[i]
	}
}

// tx is the transaction of one group.
type tx struct {
	ctx     context.Context
	tx      *sql.Tx
	dialect dialect
	counters
}

// counters is the row of site.
type counters struct {
	seq  int64  // of the newest event
	head string // its hash
	next int64  // last number of an intent, observation or permit
}

func (s *Store) transaction(ctx context.Context, f func(*tx) error) error {
	raw, err := s.w.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	defer raw.Rollback() // no effect after Commit
	t := &tx{ctx: ctx, tx: raw, dialect: s.dialect}
	// The update takes the row's lock: other processes wait here.
	err = t.row(`UPDATE site SET next = next WHERE id = 1 RETURNING seq, head, next`).Scan(&t.seq, &t.head, &t.next)
	if err != nil {
		return fmt.Errorf("take the write turn: %w", err)
	}
	before := t.counters
	if err := f(t); err != nil {
		return err
	}
	if t.counters != before {
		if _, err := t.exec(`UPDATE site SET seq = $1, head = $2, next = $3 WHERE id = 1`, t.seq, t.head, t.next); err != nil {
			return err
		}
	}
	if err := raw.Commit(); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	return nil
}

// attempt runs one change under a savepoint. broken means that the whole
// transaction is lost.
func (t *tx) attempt(run func(*tx) error) (failed, broken error) {
	if _, err := t.exec(`SAVEPOINT change`); err != nil {
		return nil, err
	}
	before := t.counters
	if failed = run(t); failed != nil {
		t.counters = before
		if _, err := t.exec(`ROLLBACK TO SAVEPOINT change`); err != nil {
			return failed, fmt.Errorf("%w (while undoing: %w)", err, failed)
		}
	}
	if _, err := t.exec(`RELEASE SAVEPOINT change`); err != nil {
		return failed, err
	}
	return failed, nil
}

// exec runs a statement and returns how many rows it touched.
func (t *tx) exec(query string, args ...any) (int64, error) {
	r, err := t.tx.ExecContext(t.ctx, t.dialect.text(query), args...)
	if err != nil {
		return 0, err
	}
	return r.RowsAffected()
}

func (t *tx) row(query string, args ...any) *sql.Row {
	return t.tx.QueryRowContext(t.ctx, t.dialect.text(query), args...)
}

// now is the database's clock in microseconds: the only clock that leases know.
func (t *tx) now() (int64, error) {
	var us int64
	err := t.row(t.dialect.clock).Scan(&us)
	return us, err
}

// number gives the next number of the site, in the order of commits.
func (t *tx) number() int64 {
	t.next++
	return t.next
}
