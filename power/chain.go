package power

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// Proof is what the state of a controller proves about the machine.
type Proof int

// The proofs.
const (
	_       Proof = iota
	Machine       // on and off are the machine's own: a BMC, Intel AMT, a person who looks
	Supply        // off: the machine is off. On: it has power, and may run or not. An outlet, a plug.
	Life          // on: it was heard of. Its silence proves nothing: Wake-on-LAN, the agent.
)

func (p Proof) String() string {
	switch p {
	case Machine:
		return "machine"
	case Supply:
		return "supply"
	case Life:
		return "life"
	}
	return fmt.Sprintf("proof(%d)", int(p))
}

// A Link is one controller of a Chain. One that proves Life is a Hearer.
type Link struct {
	Controller
	Proves Proof
	Login  *Login // at the gate of its device; nil where nobody else talks to it
}

// A Chain is a machine with several controllers, in the order in which they are
// tried: its agent, else its BMC, else its outlets.
//
// State is told by the first link that knows:
//
//   - A link that proves Machine knows on and off. It is asked first, and one
//     that does not answer is no news: a BMC without power is silent.
//   - Supplies know off when every one of them is off. On says only that there
//     is power: it stands for on where no other link could tell better, as it
//     does for an outlet alone; else it is a Blind error that allows Off.
//   - A machine that was heard of within Alive, and since it was last switched
//     off, is on where no link that proves Machine says otherwise. Whoever says
//     off of a machine that is heard of at the same time is not believed: one
//     of the two is another machine's. What was heard before we switched it off
//     does not count.
//
// Off goes down the list until off is confirmed, all supplies as one step. It
// is tried by the next link when the state does not follow, also where the link
// before had accepted it. SoftOff asks the first link that takes it and never
// switches anything. On needs all supplies: they come first, each confirmed,
// and without them nothing more is sent; then the links that prove Machine or
// Life, until on is confirmed. BootOnce is the first link's that can; where
// none can now, the machine's own boot order decides, which is no failure of
// the chain: what it booted is seen.
//
// Each link has a breaker of its own: one whose credential was refused is not
// asked again until Reset, and does not keep the others from being used. What
// was tried, and what came of it, stands in the evidence.
type Chain struct {
	links []*link

	mu   sync.Mutex
	sent time.Time // when off was last commanded
	off  time.Time // when it was first read after that
}

type link struct {
	*Verified
	proves Proof
}

// NewChain checks links. The Chain owns them: nobody else talks to them.
func NewChain(links ...Link) (*Chain, error) {
	if len(links) < 2 {
		return nil, errors.New("a chain of controllers needs at least two")
	}
	c := &Chain{}
	for _, l := range links {
		if l.Controller == nil || l.Proves < Machine || l.Proves > Life {
			return nil, fmt.Errorf("a chain of controllers: %v proves %s", l.Controller, l.Proves)
		}
		if _, ok := l.Controller.(Hearer); l.Proves == Life && !ok {
			return nil, fmt.Errorf("a chain of controllers: %s proves life and cannot say when it heard of it", l.Controller)
		}
		c.links = append(c.links, &link{l.Login.Verify(l.Controller, Limits{}), l.Proves})
	}
	return c, nil
}

func (c *Chain) String() string {
	names := make([]string, len(c.links))
	for i, l := range c.links {
		names[i] = l.String()
	}
	return strings.Join(names, ", else ")
}

func (c *Chain) has(p Proof) bool {
	for _, l := range c.links {
		if l.proves == p {
			return true
		}
	}
	return false
}

// Heard is the newest of what its links heard.
func (c *Chain) Heard() (at time.Time, by string) {
	for _, l := range c.links {
		if h, ok := l.c.(Hearer); ok {
			if t, b := h.Heard(); t.After(at) {
				at, by = t, b
			}
		}
	}
	return at, by
}

// linger is how long a machine that is off already may still be heard of: a
// word that was under way.
const linger = 2 * time.Second

// heard tells when the machine was heard of, if that says that it runs: not
// long ago, and not before it was switched off. off is whether a link says that
// it is off now.
func (c *Chain) heard(off bool) (at time.Time, by string, runs bool) {
	at, by = c.Heard()
	c.mu.Lock()
	defer c.mu.Unlock()
	since := c.sent
	if off && !c.sent.IsZero() {
		if c.off.IsZero() {
			c.off = time.Now()
		}
		since = c.off // until then it was on its way
	}
	return at, by, !at.IsZero() && time.Since(at) < Alive && (since.IsZero() || at.After(since.Add(linger)))
}

// switching notes that off is commanded now.
func (c *Chain) switching() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sent, c.off = time.Now(), time.Time{}
}

// State is what the first link that knows says.
func (c *Chain) State(ctx context.Context) (State, error) {
	var failed []error
	feeds, dark, lit := 0, 0, false // supplies, those that are off, whether one is on
	for i, l := range c.links {
		if l.proves == Life {
			continue
		}
		s, err := l.share(ctx, len(c.links)-i).State(ctx)
		if ctx.Err() != nil {
			return Unknown, ctx.Err()
		}
		if err != nil {
			failed = append(failed, err)
		}
		switch {
		case l.proves == Supply:
			feeds++
			lit = lit || s == On
			if s == Off {
				dark++
			}
		case s == Off:
			return c.believe(l.String())
		case s == On:
			return On, nil
		}
	}
	if feeds > 0 && dark == feeds {
		return c.believe("the power supply")
	}
	if _, _, runs := c.heard(false); runs {
		return On, nil
	}
	why := "no controller of it knows whether it runs"
	for _, err := range failed {
		why += "; " + err.Error()
	}
	switch {
	case lit && !c.has(Machine) && !c.has(Life):
		return On, nil
	case lit:
		return Unknown, gated{&Blind{May: Off, Why: "it has power, and " + why}}
	case allAuth(failed) && len(failed) == len(c.links):
		return Unknown, gated{errors.Join(failed...)}
	case feeds == 0 && !c.has(Machine):
		return Unknown, gated{&Blind{May: On, Why: "it was not heard of lately"}}
	}
	// The text alone: an error of one link must not count as the chain's.
	return Unknown, gated{errors.New(why)}
}

// believe is off, unless the machine is heard of.
func (c *Chain) believe(says string) (State, error) {
	if at, by, runs := c.heard(true); runs {
		return Unknown, gated{fmt.Errorf("%s says off, and %s was heard of it %s ago: one of them may be another machine's", says, by, time.Since(at).Round(time.Second))}
	}
	return Off, nil
}

func allAuth(errs []error) bool {
	for _, err := range errs {
		if !errors.Is(err, ErrAuth) {
			return false
		}
	}
	return len(errs) > 0
}

// A share is a link that may take its part of the time that is left for all.
type share struct {
	*link
	parts int
}

func (l *link) share(_ context.Context, parts int) share { return share{l, parts} }

func (s share) State(ctx context.Context) (State, error) {
	if end, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Until(end)/time.Duration(s.parts))
		defer cancel()
	}
	return s.Verified.State(ctx)
}

// Set commands the first link that can. A Verified chain goes on from there
// until the state is confirmed: see set.
func (c *Chain) Set(ctx context.Context, want State) error {
	if want == Off {
		c.switching()
	}
	return c.first(fmt.Sprintf("set %s", want), func(l *link) error {
		if want == On && l.proves == Life && c.has(Machine) {
			return ErrUnsupported
		}
		return l.command(ctx, func(ctx context.Context) error { return l.c.Set(ctx, want) })
	})
}

// SoftOff asks the first link that takes it.
func (c *Chain) SoftOff(ctx context.Context) error {
	c.switching()
	return c.first("shut down", func(l *link) error {
		s, ok := l.c.(SoftOffer)
		if !ok {
			return ErrUnsupported
		}
		return l.command(ctx, s.SoftOff)
	})
}

// BootOnce asks the first link that can.
func (c *Chain) BootOnce(ctx context.Context, d Device) error {
	err := c.first(fmt.Sprintf("boot once from %s", d), func(l *link) error {
		return l.command(ctx, func(ctx context.Context) error { return l.c.BootOnce(ctx, d) })
	})
	if err != nil && ctx.Err() == nil && !errors.Is(err, ErrUnsupported) {
		return gated{fmt.Errorf("%w: %v", ErrUnsupported, err)}
	}
	return err
}

// first does something with the first link that can. The error of one link is
// never that of the chain: it says what each of them said. It is gated because
// the gates of the links have counted it.
func (c *Chain) first(what string, do func(*link) error) error {
	var said []string
	var failed []error
	for _, l := range c.links {
		err := do(l)
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, ErrUnsupported):
			said = append(said, fmt.Sprintf("%s: %v", l, err))
			failed = append(failed, err)
		}
	}
	switch {
	case len(said) == 0:
		return fmt.Errorf("%s: %w", what, ErrUnsupported)
	case allAuth(failed), len(failed) == 1 && errors.Is(failed[0], ErrNeedsHuman):
		return gated{fmt.Errorf("%s: %w", what, errors.Join(failed...))}
	}
	return gated{fmt.Errorf("%s: %s", what, strings.Join(said, "; "))}
}

// Reset forgets what each link was refused.
func (c *Chain) Reset() {
	for _, l := range c.links {
		l.Reset()
	}
}

// How long one link is waited for before the next is tried.
const (
	patience = time.Minute      // after it accepted a command
	doubt    = 20 * time.Second // after a command failed, which may have worked all the same
)

// set switches a chain as part of a verb, and confirms it.
func (c *Chain) set(ctx context.Context, r *run, want State) error {
	if want == On {
		return c.switchOn(ctx, r)
	}
	var tried []string
	cut := false
	for _, l := range c.links {
		step := []*link{l}
		if l.proves == Supply {
			if cut {
				continue
			}
			cut, step = true, c.supplies()
		}
		done, err := c.try(ctx, r, step, Off, min(patience, r.limits.Reach))
		if done || errors.Is(err, ErrNeedsHuman) || ctx.Err() != nil {
			return err
		}
		if err != nil {
			tried = append(tried, err.Error())
		}
	}
	if len(tried) == 0 {
		return fmt.Errorf("switch off: %w", ErrUnsupported)
	}
	return fmt.Errorf("switch off: %w: %s", ErrNotReached, strings.Join(tried, "; "))
}

func (c *Chain) supplies() (out []*link) {
	for _, l := range c.links {
		if l.proves == Supply {
			out = append(out, l)
		}
	}
	return out
}

// try commands links, all of them, and waits until the chain says want. No
// error and not done: none of them can.
func (c *Chain) try(ctx context.Context, r *run, links []*link, want State, wait time.Duration) (done bool, err error) {
	accepted, failed := 0, []string{}
	for _, l := range links {
		if want == Off {
			c.switching()
		}
		err := l.command(ctx, func(ctx context.Context) error { return l.c.Set(ctx, want) })
		r.told = r.told || !final(err)
		switch {
		case ctx.Err() != nil:
			return false, ctx.Err()
		case errors.Is(err, ErrNeedsHuman):
			return false, err
		case err == nil:
			accepted++
		case !errors.Is(err, ErrUnsupported):
			r.note("%s: switch %s failed: %v", l, want, err)
			failed = append(failed, fmt.Sprintf("%s: %v", l, err))
		}
	}
	name := links[0].String()
	if len(links) > 1 {
		name = "all outlets"
	}
	switch {
	case accepted == 0 && len(failed) == 0:
		return false, nil
	case accepted == 0:
		wait = min(wait, doubt)
	}
	s, err := r.reach(ctx, wait, want)
	switch {
	case err == nil && len(failed) > 0 && accepted == 0:
		r.quirk("failed-and-done")
		fallthrough
	case err == nil:
		r.note("%s by %s", want, name)
		return true, nil
	case ctx.Err() != nil:
		return false, ctx.Err()
	case accepted > 0:
		r.quirk("ok-and-nothing")
		failed = append(failed, fmt.Sprintf("%s accepted it and the state is %s: %v", name, s, err))
		r.note("%s accepted to switch %s, and after %v the state is %s", name, want, wait, s)
	}
	return false, errors.New(strings.Join(failed, "; "))
}

// switchOn feeds the machine and starts it.
func (c *Chain) switchOn(ctx context.Context, r *run) error {
	if err := c.feed(ctx, r); err != nil {
		return err
	}
	var tried []string
	for _, l := range c.links {
		if l.proves == Supply {
			continue
		}
		if l.proves == Machine {
			// What it does to a machine that runs is not known before its state is.
			s, err := l.known(ctx, r.limits)
			switch {
			case ctx.Err() != nil:
				return ctx.Err()
			case errors.Is(err, ErrNeedsHuman):
			case err != nil:
				r.note("%s does not say whether it runs: %v", l, err)
				tried = append(tried, err.Error())
				continue
			case s == On:
				if _, err := r.reach(ctx, r.limits.Reach, On); err != nil {
					return fmt.Errorf("switch on: %w", err)
				}
				r.note("on by itself, when it had power")
				return nil
			}
		}
		done, err := c.try(ctx, r, []*link{l}, On, r.limits.Reach)
		if done || errors.Is(err, ErrNeedsHuman) || ctx.Err() != nil {
			return err
		}
		if err != nil {
			tried = append(tried, err.Error())
		}
	}
	if len(tried) > 0 {
		return fmt.Errorf("switch on: %w: %s", ErrNotReached, strings.Join(tried, "; "))
	}
	if len(c.supplies()) == 0 {
		return fmt.Errorf("switch on: %w", ErrUnsupported)
	}
	// Power is all that can be given; the rest is its firmware's.
	if _, err := r.reach(ctx, r.limits.Reach, On); err != nil {
		return fmt.Errorf("switch on: it has power, and: %w", err)
	}
	return nil
}

// feed switches all supplies on and confirms each. A BMC that had no power
// needs minutes to start: feed waits for it.
func (c *Chain) feed(ctx context.Context, r *run) error {
	fed := false
	for _, l := range c.supplies() {
		s, err := l.State(ctx)
		if s == On {
			continue
		}
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("switch on: it needs all of its outlets: %w: %v", ErrNotReached, err)
		}
		fed, r.told = true, true
		sent := l.command(ctx, func(ctx context.Context) error { return l.c.Set(ctx, On) })
		for end := time.Now().Add(min(patience, r.limits.Reach)); ; {
			s, err = l.State(ctx)
			if s == On || time.Now().After(end) || pause(ctx, r.limits.Poll) != nil {
				break
			}
		}
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case s != On:
			if sent == nil {
				r.quirk("ok-and-nothing")
			}
			return fmt.Errorf("switch on: it needs all of its outlets: %w: %s is %s (command: %v, state: %v)", ErrNotReached, l, s, sent, err)
		}
		r.note("power by %s", l)
	}
	if !fed {
		return nil
	}
	for _, l := range c.links {
		if l.proves != Machine {
			continue
		}
		l.rested()
		if _, err := l.known(ctx, r.limits); err != nil && ctx.Err() == nil {
			r.note("%s does not answer after it got power: %v", l, err)
		}
	}
	return ctx.Err()
}

// rested ends an outage of the link, not a refusal: it had no power.
func (l *link) rested() {
	g := l.login.gate
	g.call <- struct{}{}
	defer g.call.put()
	g.down = outage{}
}

// known polls the link until it says on or off, several times in a row for off.
func (l *link) known(ctx context.Context, limits Limits) (State, error) {
	end := time.Now().Add(limits.Reach)
	for offs := 0; ; {
		s, err := l.State(ctx)
		if s == Off {
			offs++
		} else {
			offs = 0
		}
		if s == On || offs >= agree || final(err) {
			return s, err
		}
		if time.Now().After(end) {
			if err == nil {
				err = fmt.Errorf("%w: still %s after %v", ErrNotReached, s, limits.Reach)
			}
			return Unknown, err
		}
		if err := pause(ctx, limits.Poll); err != nil {
			return Unknown, err
		}
	}
}

// firstOf asks the links for an ability, in order.
func firstOf[R any](c *Chain, what string, f func(*Verified) (R, error)) (R, error) {
	var out R
	err := c.first(what, func(l *link) (err error) {
		out, err = f(l.Verified)
		return err
	})
	return out, err
}

// Readings is the first link's that measures.
func (c *Chain) Readings(ctx context.Context) (Readings, error) {
	return firstOf(c, "readings", func(v *Verified) (Readings, error) { return v.Readings(ctx) })
}

// EventLog is the first link's that has one.
func (c *Chain) EventLog(ctx context.Context) ([]LogEntry, error) {
	return firstOf(c, "event log", func(v *Verified) ([]LogEntry, error) { return v.EventLog(ctx) })
}

// Screen is the first link's that shows it.
func (c *Chain) Screen(ctx context.Context) (Picture, error) {
	return firstOf(c, "screen", func(v *Verified) (Picture, error) { return v.Screen(ctx) })
}

// Identify lights the first link that has a light.
func (c *Chain) Identify(ctx context.Context, on bool) error {
	_, err := firstOf(c, "locate light", func(v *Verified) (string, error) { return v.Identify(ctx, on) })
	return err
}

// Light is the light of the first link that has one.
func (c *Chain) Light() string {
	for _, l := range c.links {
		if i, ok := l.c.(Identifier); ok {
			return i.Light()
		}
	}
	return ""
}

// Console is the first link's that has one.
func (c *Chain) Console(ctx context.Context) (io.ReadWriteCloser, error) {
	return firstOf(c, "console", func(v *Verified) (io.ReadWriteCloser, error) { return v.Console(ctx) })
}

// can tells whether the controller of v has an ability; that of a chain is one
// that a link has.
func can[A any](v *Verified) bool {
	c, ok := v.c.(*Chain)
	if !ok {
		_, ok := v.c.(A)
		return ok
	}
	for _, l := range c.links {
		if can[A](l.Verified) {
			return true
		}
	}
	return false
}

// keep does something with the first link whose device needs care.
func keep[R any](ctx context.Context, c *Chain, what string, f func(context.Context, Keeper) (R, error)) (R, error) {
	return firstOf(c, what, func(v *Verified) (R, error) { return ask(ctx, v, what, f) })
}

// Audit is of the first link whose device needs care.
func (c *Chain) Audit(ctx context.Context) (Audit, error) {
	return keep(ctx, c, "audit", func(ctx context.Context, k Keeper) (Audit, error) { return k.Audit(ctx) })
}

// SetPassword is for the device of Audit.
func (c *Chain) SetPassword(ctx context.Context, password string) error {
	_, err := keep(ctx, c, "password", func(ctx context.Context, k Keeper) (struct{}, error) {
		return struct{}{}, k.SetPassword(ctx, password)
	})
	return err
}

// SetRestorePolicy is for the device of Audit.
func (c *Chain) SetRestorePolicy(ctx context.Context, p RestorePolicy) error {
	_, err := keep(ctx, c, "restore policy", func(ctx context.Context, k Keeper) (struct{}, error) {
		return struct{}{}, k.SetRestorePolicy(ctx, p)
	})
	return err
}
