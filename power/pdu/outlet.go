package pdu

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"smelt/power"
)

// An Outlet is one outlet of a unit.
type Outlet struct {
	Unit   *Unit
	Number int // from 1; models.yaml says how levels before it are written
	// Node and Place are whom it feeds: the name that people gave the outlet on
	// the PDU must contain one of them before anything is written. With an empty
	// Node the name is not looked at.
	Node, Place string
}

func (o Outlet) String() string { return fmt.Sprintf("%s outlet %d", o.Unit, o.Number) }

// Controller switches the machine behind one or more outlets: a machine with
// two power supplies is off only when both are. It is a power.Controller, a
// power.Meter, and a power.Identifier where the PDU has lights that blink.
type Controller struct {
	outlets []Outlet

	mu    sync.Mutex
	notes []string
}

// New returns the controller of the machine that hangs on outlets.
func New(outlets ...Outlet) (*Controller, error) {
	if len(outlets) == 0 {
		return nil, errors.New("PDU: a machine needs at least one outlet")
	}
	for i, o := range outlets {
		if o.Unit == nil || o.Number < 1 {
			return nil, fmt.Errorf("PDU: outlet %d: outlets are counted from 1, on a unit", o.Number)
		}
		if slices.ContainsFunc(outlets[:i], func(p Outlet) bool { return p.Unit == o.Unit && p.Number == o.Number }) {
			return nil, fmt.Errorf("PDU: %s is there twice", o)
		}
	}
	return &Controller{outlets: slices.Clone(outlets)}, nil
}

func (c *Controller) String() string {
	var s []string
	for _, o := range c.outlets {
		s = append(s, o.String())
	}
	return strings.Join(s, ", ")
}

// units are the PDUs that c hangs on.
func (c *Controller) units() []*Unit {
	var out []*Unit
	for _, o := range c.outlets {
		if !slices.Contains(out, o.Unit) {
			out = append(out, o.Unit)
		}
	}
	return out
}

// on are the outlets of c on u.
func (c *Controller) on(u *Unit) (outlets []Outlet, numbers []int) {
	for _, o := range c.outlets {
		if o.Unit == u {
			outlets, numbers = append(outlets, o), append(numbers, o.Number)
		}
	}
	return outlets, numbers
}

func (c *Controller) note(format string, a ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.notes = append(c.notes, fmt.Sprintf(format, a...))
}

// Notes are what there is to say about each outlet since the last call: which
// were told what, which have no name. They belong into the evidence of a verb.
func (c *Controller) Notes() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	notes := c.notes
	c.notes = nil
	return notes
}

// Reset makes the PDUs be written to again, after a person found out why one of
// them switched an outlet that it was not told to, and lets a refused login be
// tried once more; names are looked at anew.
func (c *Controller) Reset() {
	for _, u := range c.units() {
		u.turn <- struct{}{}
		u.forget()
		u.refused = refusal{}
		<-u.turn
	}
}

// State is On when an outlet is on, Off when all are off. An outlet that
// waits for a delay is neither.
func (c *Controller) State(ctx context.Context) (power.State, error) {
	anyOn, unclear := false, false
	for _, u := range c.units() {
		_, numbers := c.on(u)
		err := u.with(ctx, func(s *session) error {
			states, err := s.read(numbers)
			if err != nil {
				return err
			}
			note, err := s.follow(states)
			if note != "" {
				c.note("%s: %s", u, note)
			}
			for _, st := range states {
				anyOn = anyOn || st.State == power.On
				unclear = unclear || st.State == power.Unknown
			}
			return err
		})
		if err != nil {
			return power.Unknown, fmt.Errorf("%s: %w", u, err)
		}
	}
	switch {
	case anyOn:
		return power.On, nil
	case unclear:
		return power.Unknown, nil
	}
	return power.Off, nil
}

// Set switches all outlets. First every PDU is asked who it is, whether it has
// the outlets and how they are called: when one of them objects or does not
// answer, nothing is switched anywhere. Then all are told, the PDUs at the same
// time. An outlet that refuses then does not keep the others from being told;
// the error names it, the notes name the others.
func (c *Controller) Set(ctx context.Context, want power.State) error {
	if want != power.On && want != power.Off {
		return fmt.Errorf("set %s: %w", want, power.ErrUnsupported)
	}
	return withAll(ctx, c.units(), func(sessions []*session) error {
		var objections []error
		plans := make([]*plan, len(sessions))
		for i, s := range sessions {
			outlets, numbers := c.on(s.unit)
			p, err := s.prepare(outlets, numbers)
			if err != nil {
				objections = append(objections, fmt.Errorf("%s: %w", s.unit, err))
				continue
			}
			plans[i] = p
			for _, n := range p.notes {
				c.note("%s", n)
			}
		}
		if err := errors.Join(objections...); err != nil {
			return fmt.Errorf("nothing was switched: %w", err)
		}
		var wg sync.WaitGroup
		failed := make([]error, len(sessions))
		for i, s := range sessions {
			wg.Go(func() { failed[i] = c.tell(s, plans[i], want) })
		}
		wg.Wait()
		return errors.Join(failed...)
	})
}

// A plan is what is known of a unit right before it is told something.
type plan struct {
	at      time.Time
	outlets []Outlet
	own     map[int]outletState
	all     map[int]power.State
	notes   []string
}

// prepare looks at everything that could make a write hit the wrong machine.
func (s *session) prepare(outlets []Outlet, numbers []int) (*plan, error) {
	if s.unit.doubt != nil {
		return nil, s.unit.doubt
	}
	// To read before writing finds an outlet that is not there: a v2c Set on it
	// may be answered without an error.
	own, err := s.read(numbers)
	if err != nil {
		return nil, err
	}
	notes, err := s.checkNames(outlets)
	if err != nil {
		return nil, err
	}
	all, err := s.states()
	if err != nil {
		return nil, err
	}
	for n, st := range own {
		if st.waits && len(s.model.Cancel) == 0 {
			return nil, fmt.Errorf("outlet %d: a delayed command waits, which a %s cannot take back: try again after it ran", n, s.model.Name)
		}
	}
	return &plan{time.Now(), outlets, own, all, notes}, nil
}

// tell writes to one unit.
func (c *Controller) tell(s *session, p *plan, want power.State) error {
	var failed []error
	for _, o := range p.outlets {
		if err := s.tell(o.Number, p, want); err != nil {
			failed = append(failed, fmt.Errorf("%s: switch %s: %w", o, want, err))
			continue
		}
		waited := ""
		if p.own[o.Number].waits {
			waited = ", after a delayed command was taken back"
		}
		c.note("%s: told to switch %s%s, was %s", o, want, waited, p.own[o.Number].State)
	}
	return errors.Join(failed...)
}

func (s *session) tell(n int, p *plan, want power.State) error {
	w := s.model.On
	if want == power.Off {
		w = s.model.Off
	}
	oid, err := w.At.at(n)
	if err != nil {
		return err
	}
	if p.own[n].waits {
		for _, c := range s.model.Cancel {
			oid, err := c.At.at(n)
			if err == nil {
				err = s.set(oid, c.Word)
			}
			if err != nil {
				return fmt.Errorf("take back a delayed command: %w", err)
			}
		}
	}
	s.unit.sent[n] = p.at
	s.unit.told[n] = &order{want: want, at: p.at, before: p.all}
	err = s.set(oid, w.Word)
	if errors.Is(err, errMissing) {
		// It was read a moment ago. SNMPv1 has no better word for "you may not"
		// (RFC 3584, section 4.3).
		return fmt.Errorf("the PDU refuses: may this community or user write? (%w)", err)
	}
	return err
}

// BootOnce is not supported: an outlet knows nothing of boot devices.
func (c *Controller) BootOnce(_ context.Context, d power.Device) error {
	return fmt.Errorf("boot once from %s by an outlet: %w", d, power.ErrUnsupported)
}

// Light is what Identify lights.
func (c *Controller) Light() string { return "outlet light" }

// Identify makes the lights of the outlets blink for as long as the PDU does;
// there is no way to end it sooner. ErrUnsupported where it has none.
func (c *Controller) Identify(ctx context.Context, on bool) error {
	for _, u := range c.units() {
		outlets, numbers := c.on(u)
		err := u.with(ctx, func(s *session) error {
			if s.model.Blink == nil {
				return fmt.Errorf("outlet lights of a %s: %w", s.model.Name, power.ErrUnsupported)
			}
			if !on {
				return nil
			}
			if _, err := s.prepare(outlets, numbers); err != nil {
				return err
			}
			for _, n := range numbers {
				oid, err := s.model.Blink.At.at(n)
				if err == nil {
					err = s.set(oid, s.model.Blink.Word)
				}
				if err != nil {
					return fmt.Errorf("outlet %d: blink: %w", n, err)
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("%s: %w", u, err)
		}
	}
	return nil
}
