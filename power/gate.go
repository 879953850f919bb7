package power

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// A Gate is the one way to a device: a BMC, a PDU, a plug. All controllers that
// lead to it (two systems behind one BMC, the outlets of one PDU) share it, so
// that one request is in flight, two requests keep their distance, and a
// credential is refused once for all of them.
//
// The gate that each Verified has for itself also has a breaker: a device that
// does not answer is left alone for a while that grows with each failure. A
// shared one has none, because what fails for one machine (an outlet that is not
// there) says nothing about the others.
type Gate struct {
	device  string
	spacing time.Duration
	refused *Refused
	breaker bool

	call  lock // held for one call
	ended time.Time
	down  outage
}

// Gates are the gates of a site, one for each device.
type Gates struct {
	spacing time.Duration
	refused *Refused

	mu sync.Mutex
	at map[string]*Gate
}

// NewGates makes the gates of a site. spacing is the least time from the end of
// one request to the start of the next on one device. r keeps what was refused.
func NewGates(spacing time.Duration, r *Refused) *Gates {
	return &Gates{spacing: spacing, refused: r, at: map[string]*Gate{}}
}

// At is the gate of the device at address, made on first use. Who writes one
// address in two ways has two gates: callers normalise it.
func (g *Gates) At(address string) *Gate {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.at[address] == nil {
		g.at[address] = &Gate{device: address, spacing: g.spacing, refused: g.refused, call: newLock()}
	}
	return g.at[address]
}

// own is the gate of one controller.
func own(c Controller) *Login {
	return (&Gate{device: c.String(), refused: new(Refused), breaker: true, call: newLock()}).Login("", nil)
}

// A Login is one credential at a gate. It is refused at most once: BMCs lock a
// user out after three to five attempts, so from then on everything with this
// version of the credential fails with ErrAuth, without a word to the device,
// also after a restart.
type Login struct {
	gate    *Gate
	user    string
	version func(context.Context) (string, error)
}

// Login is the login of user at the gate. version tells which version of the
// credential is in use now; it changes whenever somebody stores the secret, and
// the new version may be tried. It must not be the secret. nil: it never changes.
func (g *Gate) Login(user string, version func(context.Context) (string, error)) *Login {
	if version == nil {
		version = func(context.Context) (string, error) { return "", nil }
	}
	return &Login{gate: g, user: user, version: version}
}

// Reset forgets a refused credential and an outage, after a human corrected the
// cause at the device. A refusal whose file cannot be written comes back with
// the next start.
func (l *Login) Reset() {
	l.gate.call <- struct{}{}
	defer l.gate.call.put()
	l.gate.down = outage{}
	_ = l.gate.refused.forget(l.gate.device, l.user)
}

// gated marks an error that a gate has already counted: a gate around another
// one does not count it again.
type gated struct{ error }

func (g gated) Unwrap() error { return g.error }

// errSlow is why the context of one call ended: the device took too long, as
// opposed to a caller who lost patience, which says nothing about the device.
var errSlow = errors.New("it did not answer in time")

// Verify wraps c, whose calls pass the gate with this credential. With a nil
// Login it is package Verify.
func (l *Login) Verify(c Controller, limits Limits) *Verified {
	v := Verify(c, limits)
	v.shared = l
	return v
}

// Do makes one call to the device.
func (l *Login) Do(ctx context.Context, f func(context.Context) error) error {
	called := false
	err := l.do(ctx, func(ctx context.Context) error {
		called = true
		return f(ctx)
	})
	if err != nil && (l.gate.breaker || !called || errors.Is(err, ErrAuth)) {
		return gated{err}
	}
	return err
}

func (l *Login) do(ctx context.Context, f func(context.Context) error) error {
	g := l.gate
	if err := g.call.get(ctx); err != nil {
		return err
	}
	defer g.call.put()
	version, err := l.version(ctx)
	if err != nil {
		return err
	}
	if err := g.refused.check(g.device, l.user, version); err != nil {
		return err
	}
	if wait := time.Until(g.down.again); wait > 0 {
		return fmt.Errorf("failed %d times in a row, left alone for another %v: %w", g.down.failures, wait.Round(time.Second), g.down.last)
	}
	if err := pause(ctx, time.Until(g.ended.Add(g.spacing))); err != nil {
		return err
	}
	err = f(ctx)
	g.ended = time.Now()
	var below gated
	switch {
	case errors.As(err, &below):
	case errors.Is(err, ErrAuth):
		if kept := g.refused.add(g.device, l.user, version, err); kept != nil {
			return fmt.Errorf("%w (and a restart would try it again: %w)", err, kept)
		}
	case err == nil:
		g.down = outage{}
		// What was refused before was another version, or the device changed its
		// mind; that it cannot be written down costs nothing.
		_ = g.refused.forget(g.device, l.user)
	case errors.Is(err, ErrUnsupported), errors.Is(err, ErrNeedsHuman), errors.Is(err, ErrMismatch), blind(err):
		g.down = outage{}
	case ctx.Err() != nil && !errors.Is(context.Cause(ctx), errSlow):
		// The caller gave up; that says nothing about the device.
	case g.breaker:
		g.down.fail(err)
	}
	return err
}

// alone runs f while no call is under way. What f shows to be well is forgotten
// as after Reset.
func (l *Login) alone(ctx context.Context, f func(context.Context) error) error {
	if err := l.gate.call.get(ctx); err != nil {
		return err
	}
	defer l.gate.call.put()
	err := f(ctx)
	if err == nil {
		l.gate.down = outage{}
		_ = l.gate.refused.forget(l.gate.device, l.user)
	}
	return err
}

// A lock is a mutex that gives up with a context.
type lock chan struct{}

func newLock() lock { return make(lock, 1) }

func (l lock) get(ctx context.Context) error {
	select {
	case l <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l lock) put() { <-l }

// An outage is a run of failed calls.
type outage struct {
	failures int
	again    time.Time // not before
	last     error
}

// The breaker: after breakAfter failed calls in a row a device is left alone
// for breakMin, then one call is let through, and so on with doubled pauses.
const (
	breakAfter = 3
	breakMin   = 5 * time.Second
	breakMax   = 5 * time.Minute
)

func (o *outage) fail(err error) {
	o.failures++
	o.last = err
	if n := o.failures - breakAfter; n >= 0 {
		o.again = time.Now().Add(min(breakMin<<min(n, 10), breakMax))
	}
}
