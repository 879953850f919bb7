// Package store keeps a site's state in SQLite (one process) or PostgreSQL
// (several controllers): nodes, their events, intents and observations,
// permits, leases, tasks, reports, agents and tokens. The SQL is hand-written
// and the same for both.
//
// Only the conductor changes nodes (Commit). The API, the boot service and the
// agents add intents and observations, which it consumes.
//
// Every write is durable when its method returns: one goroutine collects the
// writes that wait and commits up to 128 of them in one transaction. One that
// fails leaves the others be.
package store

import (
	"database/sql"
	"errors"
	"os"
	"sync"
	"time"
)

// Errors that callers branch on.
var (
	ErrNotFound  = errors.New("not found")
	ErrConflict  = errors.New("conflict") // the node changed, or the lease is taken: read again
	ErrFenced    = errors.New("fenced: another controller is responsible now")
	ErrUsed      = errors.New("already used")
	ErrNewer     = errors.New("the database was written by a newer smelt")
	ErrAmbiguous = errors.New("ambiguous: it labels more than one node")
	ErrClosed    = errors.New("the store is closed")
)

// Store is one open database. Its methods may be called from any goroutine.
type Store struct {
	dialect dialect
	w       *sql.DB  // the writer's
	r       *sql.DB  // read-only pool
	lock    *os.File // SQLite: held while open

	jobs    chan *job
	quit    chan struct{}
	stopped chan struct{} // closed when the writer has ended
	closing sync.Once

	mu      sync.Mutex
	changed chan struct{}
	swept   time.Time // when the last of the nonces expires that was added when old ones were dropped
}

// Close flushes the writer and closes the database.
func (s *Store) Close() error {
	err := error(nil)
	s.closing.Do(func() {
		close(s.quit)
		<-s.stopped
		err = errors.Join(s.r.Close(), s.w.Close())
		if s.lock != nil {
			err = errors.Join(err, s.lock.Close()) // gives the file lock back
		}
	})
	return err
}

// Changed is closed when something was committed through this Store after the
// call: the hint that replaces polling inside one process.
func (s *Store) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

func (s *Store) announce() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.changed)
	s.changed = make(chan struct{})
}

// nanos is how a time is kept: exact, ordered, and the same in both databases.
func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func fromNanos(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n).UTC()
}
