package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// A Lease says that this process is responsible for a name (for example
// "conductor"). Fence rises with every change of hands.
type Lease struct {
	Name  string
	Owner string
	Fence uint64
	Until time.Time // database clock
}

// Acquire takes the lease if it is free, expired or ours. ErrConflict names
// the owner otherwise. On SQLite one process holds the file's lock, so an old
// lease is void at once.
//
// Every Acquire raises the fence, also for the same owner: a process that
// restarts under its old name must be told apart from what it left behind.
func (s *Store) Acquire(ctx context.Context, name, owner string, ttl time.Duration) (Lease, error) {
	if name == "" || owner == "" || ttl <= 0 {
		return Lease{}, errors.New("store: a lease needs a name, an owner and a time")
	}
	l := Lease{Name: name, Owner: owner}
	err := s.do(ctx, func(t *tx) error {
		now, err := t.now()
		if err != nil {
			return err
		}
		var holder string
		var fence, until int64
		err = t.row(`SELECT owner, fence, until FROM leases WHERE name = $1`, name).Scan(&holder, &fence, &until)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		if holder != "" && holder != owner && now < until {
			return fmt.Errorf("%w: lease %s belongs to %s until %s", ErrConflict, name, holder, time.UnixMicro(until).UTC().Format(time.RFC3339))
		}
		fence++
		until = now + ttl.Microseconds()
		l.Fence, l.Until = uint64(fence), time.UnixMicro(until).UTC()
		_, err = t.exec(`INSERT INTO leases (name, owner, fence, until) VALUES ($1, $2, $3, $4)
			ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, fence = excluded.fence, until = excluded.until`,
			name, owner, fence, until)
		return err
	})
	if err != nil {
		return Lease{}, fmt.Errorf("acquire lease %s for %s: %w", name, owner, err)
	}
	return l, nil
}

// Renew extends l, or is ErrFenced.
func (s *Store) Renew(ctx context.Context, l Lease, ttl time.Duration) (Lease, error) {
	err := s.do(ctx, func(t *tx) error {
		now, err := t.now()
		if err != nil {
			return err
		}
		until := now + ttl.Microseconds()
		n, err := t.exec(`UPDATE leases SET until = $1 WHERE name = $2 AND owner = $3 AND fence = $4`,
			until, l.Name, l.Owner, int64(l.Fence))
		if err != nil {
			return err
		}
		if n == 0 {
			return ErrFenced
		}
		l.Until = time.UnixMicro(until).UTC()
		return nil
	})
	if err != nil {
		return Lease{}, fmt.Errorf("renew lease %s of %s: %w", l.Name, l.Owner, err)
	}
	return l, nil
}

// held is ErrFenced unless l is the newest lease of its name. An expired lease
// that nobody took is still the newest: whoever takes it raises the fence, and
// takes the write turn to do so.
func (t *tx) held(l Lease) error {
	if l == (Lease{}) {
		return nil
	}
	var owner string
	var fence int64
	err := t.row(`SELECT owner, fence FROM leases WHERE name = $1`, l.Name).Scan(&owner, &fence)
	if errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("%w: nobody holds lease %s", ErrFenced, l.Name)
	}
	if err != nil {
		return err
	}
	if owner != l.Owner || uint64(fence) != l.Fence {
		return fmt.Errorf("%w: lease %s is %s's with fence %d, not %s's with %d", ErrFenced, l.Name, owner, fence, l.Owner, l.Fence)
	}
	return nil
}
