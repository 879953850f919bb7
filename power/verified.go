package power

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Verified makes the verbs of a Controller trustworthy. All methods return the
// evidence, also with an error.
//
// A refused credential trips the controller: BMCs lock a user out after three
// to five attempts, so everything else fails with ErrAuth, without a word to
// the device, until Reset. A device that does not answer is left alone for a
// while that grows with each failure.
type Verified struct {
	c      Controller
	limits Limits

	verb lock      // held for a whole verb: two verbs on one machine never interleave
	sent time.Time // the last command; guarded by verb

	call lock  // held for one call to c
	trip error // the refusal that tripped it; guarded by call, as is down
	down outage
	line line // the console beside all that
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

// maxCall bounds one call. Redfish actions of 20 to 30 s are seen in the field
// (tinkerbell/pbnj#167).
const maxCall = 45 * time.Second

// Verify wraps c.
func Verify(c Controller, l Limits) *Verified {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&l.Reach, 60*time.Second)
	def(&l.Poll, 2*time.Second)
	def(&l.Dwell, 5*time.Second)
	def(&l.Spacing, time.Second)
	def(&l.Soft, 600*time.Second)
	return &Verified{c: c, limits: l, verb: newLock(), call: newLock()}
}

func (v *Verified) String() string { return v.c.String() }

// Reset forgets a refused credential and an outage, after a human corrected
// the cause.
func (v *Verified) Reset() {
	v.call <- struct{}{}
	defer v.call.put()
	v.trip, v.down = nil, outage{}
}

// do makes one call to the device. It is the only place that does.
func (v *Verified) do(ctx context.Context, f func(context.Context) error) error {
	if err := v.call.get(ctx); err != nil {
		return err
	}
	defer v.call.put()
	if v.trip != nil {
		return fmt.Errorf("not tried again, so that the device does not lock the user out (correct the credential, then reset this controller): %w", v.trip)
	}
	if wait := time.Until(v.down.again); wait > 0 {
		return fmt.Errorf("failed %d times in a row, left alone for another %v: %w", v.down.failures, wait.Round(time.Second), v.down.last)
	}
	limited, cancel := context.WithTimeout(ctx, min(maxCall, v.limits.Reach))
	defer cancel()
	v.line.giveWay()
	err := f(limited)
	switch {
	case errors.Is(err, ErrAuth):
		v.trip = err
	case err == nil, errors.Is(err, ErrUnsupported), errors.Is(err, ErrNeedsHuman):
		v.down = outage{}
		v.line.called(true)
	case ctx.Err() != nil:
		// The caller gave up; that says nothing about the device.
	default:
		v.line.called(false)
		v.down.failures++
		v.down.last = err
		if n := v.down.failures - breakAfter; n >= 0 {
			v.down.again = time.Now().Add(min(breakMin<<min(n, 10), breakMax))
		}
	}
	return err
}

// State reads the state; an error is State Unknown.
func (v *Verified) State(ctx context.Context) (State, error) {
	s, err := v.read(ctx)
	if err != nil {
		return Unknown, fmt.Errorf("power state of %s: %w", v, err)
	}
	return s, nil
}

func (v *Verified) read(ctx context.Context) (State, error) {
	s := Unknown
	err := v.do(ctx, func(ctx context.Context) (err error) {
		s, err = v.c.State(ctx)
		return err
	})
	if err != nil || s != On && s != Off {
		s = Unknown
	}
	return s, err
}

// command sends one command, Spacing after the last one.
func (v *Verified) command(ctx context.Context, f func(context.Context) error) error {
	if err := pause(ctx, time.Until(v.sent.Add(v.limits.Spacing))); err != nil {
		return err
	}
	defer func() { v.sent = time.Now() }()
	return v.do(ctx, f)
}

func pause(ctx context.Context, d time.Duration) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if d <= 0 {
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// final tells errors that waiting or asking again cannot mend.
func final(err error) bool {
	return errors.Is(err, ErrAuth) || errors.Is(err, ErrUnsupported) || errors.Is(err, ErrNeedsHuman)
}

// A run is one verb under way.
type run struct {
	*Verified
	began    time.Time
	evidence Evidence
}

func (v *Verified) run(ctx context.Context, verb string, f func(*run) error) (Evidence, error) {
	r := &run{Verified: v, began: time.Now(), evidence: Evidence{
		Verb: verb, Controller: v.String(), Before: Unknown.String(), After: Unknown.String(),
	}}
	err := v.verb.get(ctx)
	if err == nil {
		err = f(r)
		v.verb.put()
	}
	r.evidence.Took = time.Since(r.began)
	if err != nil {
		err = fmt.Errorf("power %s %s: %w", verb, v, err)
	}
	return r.evidence, err
}

func (r *run) note(format string, a ...any) {
	r.evidence.Notes = append(r.evidence.Notes, fmt.Sprintf(format, a...))
}

func (r *run) poll(ctx context.Context) (State, error) {
	s, err := r.read(ctx)
	r.evidence.Polls++
	r.evidence.After = s.String()
	return s, err
}

// offReads is how many reads in a row must say off before it is believed: a
// BMC says off for a moment while it restarts or the host resets.
const offReads = 2

// reach polls until the state is want (0: on or off, whichever) and returns
// it. Off must be read twice in a row, on once.
func (r *run) reach(ctx context.Context, limit time.Duration, want State) (State, error) {
	end := time.Now().Add(limit)
	for offs := 0; ; {
		s, err := r.poll(ctx)
		if final(err) {
			return Unknown, err
		}
		if ctx.Err() != nil {
			return Unknown, ctx.Err()
		}
		if s == Off {
			offs++
		} else {
			offs = 0
		}
		if (s == On || offs >= offReads) && (want == 0 || s == want) {
			return s, nil
		}
		left := time.Until(end)
		if left <= 0 {
			if err != nil {
				return s, fmt.Errorf("%w: %v without a clear answer, the last one: %w", ErrNotReached, limit, err)
			}
			return s, fmt.Errorf("%w: still %s after %v and %d reads", ErrNotReached, s, limit, r.evidence.Polls)
		}
		if err := pause(ctx, min(r.limits.Poll, left)); err != nil {
			return Unknown, err
		}
	}
}

// before finds out what is the case; nothing is done to a machine whose state
// is not known.
func (r *run) before(ctx context.Context) (State, error) {
	s, err := r.reach(ctx, r.limits.Reach, 0)
	r.evidence.Before = s.String()
	if errors.Is(err, ErrNotReached) {
		return s, fmt.Errorf("nothing was done because the state is not known: %w", err)
	}
	return s, err
}

// set commands want and waits until it is the case. A command that fails may
// have worked all the same (a lost answer, a BMC that answers 500 and acts),
// so the state decides; it is never sent twice.
func (r *run) set(ctx context.Context, want State) error {
	sent := r.command(ctx, func(ctx context.Context) error { return r.c.Set(ctx, want) })
	if final(sent) || ctx.Err() != nil {
		return sent
	}
	if sent != nil {
		r.note("the command to switch %s failed, the state decides: %v", want, sent)
	}
	if _, err := r.reach(ctx, r.limits.Reach, want); err != nil {
		if sent != nil {
			return fmt.Errorf("switch %s: %w (and the command had failed: %w)", want, err, sent)
		}
		return fmt.Errorf("switch %s: %w", want, err)
	}
	return nil
}

func (r *run) to(ctx context.Context, want State) error {
	s, err := r.before(ctx)
	if errors.Is(err, ErrNeedsHuman) {
		// Only a person knows the state, and only a person switches: the
		// driver words what that person is asked for.
		return r.command(ctx, func(ctx context.Context) error { return r.c.Set(ctx, want) })
	}
	if err != nil {
		return err
	}
	if s == want {
		r.note("it was %s already", want)
		return nil
	}
	return r.set(ctx, want)
}

// On commands on and confirms it. On a machine that is on it is a no-op.
func (v *Verified) On(ctx context.Context) (Evidence, error) {
	return v.run(ctx, "on", func(r *run) error { return r.to(ctx, On) })
}

// Off commands off and confirms it.
func (v *Verified) Off(ctx context.Context) (Evidence, error) {
	return v.run(ctx, "off", func(r *run) error { return r.to(ctx, Off) })
}

// SoftOff asks the system to shut down and confirms off.
func (v *Verified) SoftOff(ctx context.Context) (Evidence, error) {
	return v.run(ctx, "soft-off", func(r *run) error {
		soft, ok := v.c.(SoftOffer)
		if !ok {
			return fmt.Errorf("shut down: %w", ErrUnsupported)
		}
		s, err := r.before(ctx)
		if err != nil {
			return err
		}
		if s == Off {
			r.note("it was off already")
			return nil
		}
		sent := r.command(ctx, soft.SoftOff)
		if final(sent) || ctx.Err() != nil {
			return sent
		}
		if sent != nil {
			r.note("the command to shut down failed, the state decides: %v", sent)
		}
		if _, err := r.reach(ctx, r.limits.Soft, Off); err != nil {
			return fmt.Errorf("shut down: %w", err)
		}
		return nil
	})
}

// Cycle is off, confirmed off, dwell, the boot device (0: leave it), on,
// confirmed on. The boot device is set right before power-on because IPMI boot
// flags expire after 60 s (IPMI 2.0, table 28-14).
func (v *Verified) Cycle(ctx context.Context, next Device) (Evidence, error) {
	return v.run(ctx, "cycle", func(r *run) error {
		s, err := r.before(ctx)
		if errors.Is(err, ErrNeedsHuman) {
			return r.command(ctx, func(ctx context.Context) error { return r.c.Set(ctx, Off) })
		}
		if err != nil {
			return err
		}
		if s == On {
			if err := r.set(ctx, Off); err != nil {
				return err
			}
		}
		if err := pause(ctx, r.limits.Dwell); err != nil {
			return err
		}
		if next != 0 {
			err := r.command(ctx, func(ctx context.Context) error { return r.c.BootOnce(ctx, next) })
			switch {
			case errors.Is(err, ErrUnsupported):
				r.note("the boot device was left to the machine: %v", err)
			case err != nil:
				return fmt.Errorf("the machine is off and stays off: boot once from %s: %w", next, err)
			default:
				r.note("next boot from %s", next)
			}
		}
		return r.set(ctx, On)
	})
}

// ask makes one call of an ability that a controller may have.
func ask[A, R any](ctx context.Context, v *Verified, what string, f func(context.Context, A) (R, error)) (R, error) {
	var r R
	a, ok := v.c.(A)
	if !ok {
		return r, fmt.Errorf("%s of %s: %w", what, v, ErrUnsupported)
	}
	err := v.do(ctx, func(ctx context.Context) (err error) {
		r, err = f(ctx, a)
		return err
	})
	if err != nil {
		var none R
		return none, fmt.Errorf("%s of %s: %w", what, v, err)
	}
	return r, nil
}

// Readings measures, ErrUnsupported without a Meter.
func (v *Verified) Readings(ctx context.Context) (Readings, error) {
	return ask(ctx, v, "readings", func(ctx context.Context, m Meter) (Readings, error) { return m.Readings(ctx) })
}

// Identify lights what makes the machine findable, and names it.
func (v *Verified) Identify(ctx context.Context, on bool) (light string, err error) {
	return ask(ctx, v, "locate light", func(ctx context.Context, i Identifier) (string, error) {
		return i.Light(), i.Identify(ctx, on)
	})
}

// EventLog reads the device's own log.
func (v *Verified) EventLog(ctx context.Context) ([]LogEntry, error) {
	return ask(ctx, v, "event log", func(ctx context.Context, l Logger) ([]LogEntry, error) { return l.EventLog(ctx) })
}

// Screen takes a picture of the machine's screen.
func (v *Verified) Screen(ctx context.Context) (Picture, error) {
	return ask(ctx, v, "screen", func(ctx context.Context, s Screener) (Picture, error) { return s.Screen(ctx) })
}

// Audit looks at the device itself.
func (v *Verified) Audit(ctx context.Context) (Audit, error) {
	return ask(ctx, v, "audit", func(ctx context.Context, k Keeper) (Audit, error) { return k.Audit(ctx) })
}
