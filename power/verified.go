package power

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"
)

// Verified makes the verbs of a Controller trustworthy. All methods return the
// evidence, also with an error.
//
// Each call passes a gate of its own and, where Login.Verify made it, the one
// that all controllers of the device share: see Login for what happens after a
// refused credential, and Gate for a device that does not answer.
type Verified struct {
	c      Controller
	limits Limits
	login  *Login
	shared *Login // nil: nobody else talks to the device

	verb lock      // held for a whole verb: two verbs on one machine never interleave
	sent time.Time // the last command; guarded by verb
	line line      // the console beside all that

	doubt atomic.Pointer[error] // see Distrust
}

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
	return &Verified{c: c, limits: l, login: own(c), verb: newLock()}
}

func (v *Verified) String() string { return v.c.String() }

// Distrust refuses every verb with why, which wraps ErrMismatch, until it is
// called with nil or a person resets v: it may be another machine that would be
// switched. Reads go on.
func (v *Verified) Distrust(why error) {
	if why == nil {
		v.doubt.Store(nil)
		return
	}
	v.doubt.Store(&why)
}

func (v *Verified) doubted() error {
	if why := v.doubt.Load(); why != nil {
		return *why
	}
	return nil
}

// Reset forgets a refused credential and an outage, after a human corrected
// the cause, here and in the gates that c passes.
func (v *Verified) Reset() {
	v.Distrust(nil)
	v.login.Reset()
	if v.shared != nil {
		v.shared.Reset()
	}
	if below, ok := v.c.(interface{ Reset() }); ok {
		below.Reset()
	}
}

// do makes one call to the device. It is the only place that does.
func (v *Verified) do(ctx context.Context, f func(context.Context) error) error {
	return v.login.Do(ctx, func(ctx context.Context) error {
		limited, cancel := context.WithTimeoutCause(ctx, min(maxCall, v.limits.Reach), errSlow)
		defer cancel()
		v.line.giveWay()
		var err error
		if v.shared != nil {
			err = v.shared.Do(limited, f)
		} else {
			err = f(limited)
		}
		switch {
		case err == nil, errors.Is(err, ErrUnsupported), errors.Is(err, ErrNeedsHuman), errors.Is(err, ErrMismatch):
			v.line.called(true)
		case errors.Is(err, ErrAuth), ctx.Err() != nil:
		default:
			v.line.called(false)
		}
		if err != nil && errors.Is(context.Cause(limited), errSlow) && !errors.Is(err, errSlow) {
			err = fmt.Errorf("%w: %w", errSlow, err)
		}
		return err
	})
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
	return errors.Is(err, ErrAuth) || errors.Is(err, ErrUnsupported) || errors.Is(err, ErrNeedsHuman) || errors.Is(err, ErrMismatch)
}

// A run is one verb under way.
type run struct {
	*Verified
	began    time.Time
	turns    int  // changes of state that nobody asked for
	told     bool // the last order went out and was not refused
	evidence Evidence
}

func (v *Verified) run(ctx context.Context, verb string, f func(*run) error) (Evidence, error) {
	r := &run{Verified: v, began: time.Now(), evidence: Evidence{
		Verb: verb, Controller: v.String(), Before: Unknown.String(), After: Unknown.String(),
	}}
	err := v.verb.get(ctx)
	if err == nil {
		if err = v.doubted(); err == nil {
			err = f(r)
		}
		if w, ok := v.c.(Witness); ok {
			r.evidence.Notes = append(r.evidence.Notes, w.Notes()...)
		}
		v.verb.put()
	}
	if r.turns >= toggling {
		r.quirk("toggles")
		r.note("its state changed %d times in %d reads without a command", r.turns, r.evidence.Polls)
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

func (r *run) quirk(code string) {
	if !slices.Contains(r.evidence.Quirks, code) {
		r.evidence.Quirks = append(r.evidence.Quirks, code)
	}
}

func (r *run) poll(ctx context.Context) (State, error) {
	s, err := r.read(ctx)
	r.evidence.Polls++
	r.evidence.After = s.String()
	return s, err
}

const (
	// agree is how many reads in a row must say the same before it is believed.
	// A BMC says off for a moment while it restarts or the host resets; and of
	// one whose word changes with each read, one on is worth as little as one
	// off. Each change that nobody asked for makes it one more, so that a state
	// that goes on changing is never believed, whatever its rhythm at first.
	agree = 2
	// toggling is how many such changes are a quirk; away and back, once, happens
	// to any BMC.
	toggling = 3
	// slowOff is how long a switch to off may take without being remarked.
	slowOff = 30 * time.Second
)

// reach polls until enough reads in a row say want (0: on or off, whichever).
// Who wants one of the two has seen the other, or has just commanded it.
func (r *run) reach(ctx context.Context, limit time.Duration, want State) (State, error) {
	end := time.Now().Add(limit)
	last := opposite(want)
	for same := 0; ; {
		s, err := r.poll(ctx)
		if final(err) || want == 0 && may(err, On) {
			return Unknown, err // waiting makes no machine heard
		}
		if ctx.Err() != nil {
			return Unknown, ctx.Err()
		}
		if s == Unknown {
			same = 0
		} else {
			if s != last {
				same = 0
				// The change that was commanded is the one towards want.
				if last != 0 && (want == 0 || s != want) {
					r.turns++
				}
			}
			last = s
			same++
		}
		if s != Unknown && same >= agree+r.turns && (want == 0 || s == want) {
			return s, nil
		}
		left := time.Until(end)
		if left <= 0 {
			if err != nil {
				return s, fmt.Errorf("%w: %v without a clear answer, the last one: %w", ErrNotReached, limit, err)
			}
			if s != Unknown && (want == 0 || s == want) {
				return Unknown, fmt.Errorf("%w: after %v and %d reads it says %s, but not %d times in a row", ErrNotReached, limit, r.evidence.Polls, s, agree+r.turns)
			}
			return s, fmt.Errorf("%w: still %s after %v and %d reads", ErrNotReached, s, limit, r.evidence.Polls)
		}
		wait := r.limits.Poll
		if s != Unknown && (want == 0 || s == want) {
			wait /= 2 // to confirm, and out of step with what changes at the pace of polls
		}
		if err := pause(ctx, min(wait, left)); err != nil {
			return Unknown, err
		}
	}
}

func opposite(s State) State {
	switch s {
	case On:
		return Off
	case Off:
		return On
	}
	return 0
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

// An order is a command that changes the power state.
type order struct {
	words string // "switch off"
	want  State
	limit time.Duration // for the change
	send  func(context.Context) error
	deaf  bool // the device passes the order on to somebody who may not listen
}

// obey sends the order and waits until it is the case. A command that fails may
// have worked all the same (a lost answer, a BMC that answers 500 and acts),
// so the state decides; it is never sent twice.
func (r *run) obey(ctx context.Context, o order) error {
	began := time.Now()
	r.told = false
	sent := r.command(ctx, func(ctx context.Context) error {
		before := r.evidence.After
		r.evidence.After = Unknown.String() // what was read is history now
		err := o.send(ctx)
		if r.told = !final(err); !r.told {
			r.evidence.After = before
		}
		return err
	})
	switch {
	case final(sent), ctx.Err() != nil && !r.told:
		return fmt.Errorf("%s: %w", o.words, sent)
	case ctx.Err() != nil:
		r.note("told to %s, and not looked at since", o.words)
		return fmt.Errorf("%s: cut short, it may yet happen: %w", o.words, ctx.Err())
	case sent != nil:
		r.note("the command to %s failed, the state decides: %v", o.words, sent)
	}
	s, err := r.reach(ctx, o.limit, o.want)
	switch {
	case err == nil && sent != nil:
		r.quirk("failed-and-done")
	case errors.Is(err, ErrNotReached) && sent == nil && s == opposite(o.want) && r.turns < toggling && !o.deaf:
		r.quirk("ok-and-nothing")
	}
	if o.want == Off && !o.deaf && time.Since(began) >= slowOff && (err == nil || errors.Is(err, ErrNotReached) && s == Unknown) {
		r.quirk("slow-off")
	}
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		r.note("told to %s, and not confirmed", o.words)
		return fmt.Errorf("%s: cut short before it was confirmed: %w", o.words, err)
	case sent != nil:
		return fmt.Errorf("%s: %w (and the command had failed: %w)", o.words, err, sent)
	}
	return fmt.Errorf("%s: %w", o.words, err)
}

// set is the order to switch hard.
func (r *run) set(ctx context.Context, want State) error {
	if want == On {
		r.evidence.Started = time.Now()
	}
	if c, ok := r.c.(*Chain); ok {
		return c.set(ctx, r, want)
	}
	return r.obey(ctx, order{words: "switch " + want.String(), want: want, limit: r.limits.Reach,
		send: func(ctx context.Context) error { return r.c.Set(ctx, want) }})
}

func (r *run) to(ctx context.Context, want State) error {
	s, err := r.before(ctx)
	if errors.Is(err, ErrNeedsHuman) {
		// Only a person knows the state, and only a person switches: the
		// driver words what that person is asked for.
		return r.command(ctx, func(ctx context.Context) error { return r.c.Set(ctx, want) })
	}
	if may(err, want) {
		r.note("the state is not known (%v), and to switch %s is safe", err, want)
		return r.set(ctx, want)
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
		// The system behind the button may not listen: that is no quirk of the device.
		return r.obey(ctx, order{words: "shut down", want: Off, limit: r.limits.Soft, send: soft.SoftOff, deaf: true})
	})
}

// HasSoftOff tells whether it can ask the operating system to shut down.
func (v *Verified) HasSoftOff() bool { return can[SoftOffer](v) }

// Cycle is off, confirmed off, dwell, the boot device (0: leave it), on,
// confirmed on. The boot device is set right before power-on because IPMI boot
// flags expire after 60 s (IPMI 2.0, table 28-14).
func (v *Verified) Cycle(ctx context.Context, next Device) (Evidence, error) {
	return v.run(ctx, "cycle", func(r *run) error {
		s, err := r.before(ctx)
		if errors.Is(err, ErrNeedsHuman) {
			return r.command(ctx, func(ctx context.Context) error { return r.c.Set(ctx, Off) })
		}
		switch {
		case may(err, Off): // whatever it is, it may be switched off
			r.note("the state is not known: %v", err)
			s, err = On, nil
		case may(err, On): // and what is not heard of may be woken
			r.note("the state is not known: %v", err)
			err = nil
		}
		if err != nil {
			return err
		}
		if s == On {
			if err := r.set(ctx, Off); err != nil {
				return err
			}
		}
		r.told = false
		if err = r.prepare(ctx, next); err == nil {
			err = r.set(ctx, On)
		}
		if err != nil && !r.told {
			// Whoever asked must know: nobody starts it behind his back.
			r.note("the machine is off and stays off")
			return fmt.Errorf("the machine is off and stays off: %w", err)
		}
		return err
	})
}

// prepare does what belongs between off and on.
func (r *run) prepare(ctx context.Context, next Device) error {
	if err := pause(ctx, r.limits.Dwell); err != nil {
		return err
	}
	if next == 0 {
		return nil
	}
	if c, ok := r.c.(*Chain); ok {
		// A BMC that had no power takes no boot device.
		if err := c.feed(ctx, r); err != nil {
			return err
		}
	}
	err := r.command(ctx, func(ctx context.Context) error { return r.c.BootOnce(ctx, next) })
	for _, odd := range remarks(r.c) {
		r.note("%s", odd)
	}
	switch {
	case errors.Is(err, ErrUnsupported):
		r.note("the boot device was left to the machine: %v", err)
	case err != nil:
		return fmt.Errorf("boot once from %s: %w", next, err)
	default:
		r.note("next boot from %s", next)
	}
	return ctx.Err()
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

// SetRestorePolicy chooses what the machine does when power comes back, and
// reads it back.
func (v *Verified) SetRestorePolicy(ctx context.Context, p RestorePolicy) error {
	_, err := ask(ctx, v, "restore policy", func(ctx context.Context, k Keeper) (none struct{}, err error) {
		return none, k.SetRestorePolicy(ctx, p)
	})
	if err != nil {
		return err
	}
	a, err := v.Audit(ctx)
	if err != nil {
		return err
	}
	if a.Restore != p {
		return fmt.Errorf("restore policy of %s: %w: it accepted %s and reads back %q", v, ErrNotReached, p, a.Restore)
	}
	return nil
}
