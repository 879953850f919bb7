package convert

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"smelt/inventory"
	"smelt/power"
)

const (
	// blackoutWithin is the time within which machines that lose power lose it
	// together: every one of them is read at least twice in it.
	blackoutWithin = 2 * time.Minute
	blackoutLeast  = 3 // machines
	blackoutShare  = 4 // one of so many of those that were on
)

// seeBlackout notices that many machines lost power at once, and looks after
// the way back.
func (c *Conductor) seeBlackout(ctx context.Context) error {
	now := c.Now()
	var lost, on []machine
	for _, m := range c.machines() {
		switch {
		case m.lost && now.Sub(m.onAt) <= blackoutWithin:
			lost = append(lost, m)
		case m.on == power.On.String():
			on = append(on, m)
		}
	}
	if b := c.SitePower().Blackout; b != nil {
		again := slices.DeleteFunc(slices.Clone(lost), func(m machine) bool { return !lostAgain(b, m) })
		if why := c.darkness(again, on); why != "" {
			return c.blackout(ctx, system, why, append(again, c.awaited(b)...))
		}
		return c.recover(ctx, lost)
	}
	if why := c.darkness(lost, on); why != "" {
		return c.blackout(ctx, system, why, lost)
	}
	return nil
}

// lostAgain tells whether a machine lost its power on the way back from b: it was
// on again, or had not lost it when that was long over.
func lostAgain(b *inventory.Blackout, m machine) bool {
	if b.Released.IsZero() || !m.onAt.After(b.Released) {
		return false
	}
	return slices.Contains(b.Back, m.id) || !slices.Contains(b.Lost, m.id) && m.onAt.Sub(b.Released) > blackoutWithin
}

// darkness says what lost its power, or "". One breaker may feed few machines,
// so a circuit that lost all of several is enough: what tripped it once trips
// it again when they all start.
func (c *Conductor) darkness(lost, on []machine) string {
	if len(lost) < blackoutLeast {
		return ""
	}
	if blackoutShare*len(lost) >= len(lost)+len(on) {
		return fmt.Sprintf("%d of %d machines lost power within %v", len(lost), len(lost)+len(on), blackoutWithin)
	}
	dark, lit := map[string]int{}, map[string]bool{}
	for _, m := range lost {
		for _, name := range c.above(m.circuit) {
			dark[name]++
		}
	}
	for _, m := range on {
		for _, name := range c.above(m.circuit) {
			lit[name] = true
		}
	}
	for _, x := range c.Site.Circuits {
		if n := dark[x.Name]; n >= blackoutLeast && !lit[x.Name] {
			return fmt.Sprintf("all %d machines of %s %s lost power within %v", n, x.Kind, x.Name, blackoutWithin)
		}
	}
	return ""
}

// above lists circuit and what feeds it.
func (c *Conductor) above(circuit string) (out []string) {
	for name := circuit; name != "" && !slices.Contains(out, name); {
		i := slices.IndexFunc(c.Site.Circuits, func(x inventory.Circuit) bool { return x.Name == name })
		if i < 0 {
			break
		}
		out = append(out, name)
		name = c.Site.Circuits[i].Parent
	}
	return out
}

// comesBack tells whether a machine that lost its power is started again: it
// had work. The others wait for whoever wants them.
func (m machine) comesBack() bool {
	switch m.work() {
	case power.WorkService, power.WorkBurnIn:
		return true
	case power.WorkConvert:
		return m.state != inventory.Approved // its restart is still to come
	}
	return false
}

// blackout stops every start on the site until a person releases it.
func (c *Conductor) blackout(ctx context.Context, by, why string, lost []machine) error {
	now := c.Now().UTC()
	if why == "" {
		why = "said so"
	}
	err := c.decideHall(ctx, func(s *inventory.SitePower) error {
		if s.Blackout != nil && s.Blackout.Released.IsZero() {
			return fmt.Errorf("there is a blackout already, since %s: %s", s.Blackout.At.Format(time.RFC3339), s.Blackout.Why)
		}
		b := &inventory.Blackout{At: now, By: by, Why: why}
		for _, m := range lost {
			if m.comesBack() {
				b.Lost = append(b.Lost, m.id)
			}
		}
		s.Blackout = b
		c.Budget.Blackout(now, c.wereOn(b))
		return nil
	})
	if err == nil {
		c.Log.Error("blackout: nothing starts until somebody says: smelt power release", "by", by, "why", why, "machines", len(lost))
		c.pokeAll()
	}
	return err
}

// believedOn are the machines that were confirmed on last.
func (c *Conductor) believedOn() []machine {
	return slices.DeleteFunc(c.machines(), func(m machine) bool { return m.on != power.On.String() && !m.lost })
}

// awaited are the machines that are still to come back.
func (c *Conductor) awaited(b *inventory.Blackout) (out []machine) {
	for _, id := range b.Lost {
		if m := c.machine(id); m.id != "" && b.Waits(id) {
			out = append(out, m)
		}
	}
	return out
}

// wereOn is the same in the words of the budget.
func (c *Conductor) wereOn(b *inventory.Blackout) (out []power.Load) {
	for _, m := range c.awaited(b) {
		l := m.load()
		if l.Work == "" {
			l.Work = power.WorkIdle
		}
		out = append(out, l)
	}
	return out
}

// releaseBlackout lets machines start again, one after the other.
func (c *Conductor) releaseBlackout(ctx context.Context, actor string) error {
	now := c.Now().UTC()
	err := c.decideHall(ctx, func(s *inventory.SitePower) error {
		switch {
		case s.Blackout == nil:
			return errors.New("there is no blackout to release")
		case !s.Blackout.Released.IsZero():
			return fmt.Errorf("%s released it already, at %s", s.Blackout.ReleasedBy, s.Blackout.Released.Format(time.RFC3339))
		}
		s.Blackout.Released, s.Blackout.ReleasedBy = now, actor
		return nil
	})
	if err == nil {
		c.Budget.Released(now)
		c.Log.Warn("blackout released", "actor", actor)
		c.pokeAll()
	}
	return err
}

// recover adds who lost power later, notes who is back, and ends the blackout
// once nobody is waited for.
func (c *Conductor) recover(ctx context.Context, lost []machine) error {
	b := c.SitePower().Blackout
	var late, back []inventory.NodeID
	for _, m := range lost {
		if m.comesBack() && !slices.Contains(b.Lost, m.id) {
			late = append(late, m.id)
		}
	}
	released := !b.Released.IsZero()
	for _, id := range b.Lost {
		m := c.machine(id)
		switch {
		case !b.Waits(id):
		case m.id == "" || !m.comesBack(), m.on == power.On.String() && m.onAt.After(b.At):
			back = append(back, id) // by us, by itself, or wanted no more
		}
	}
	if len(late)+len(back) > 0 {
		err := c.decideHall(ctx, func(s *inventory.SitePower) error {
			if s.Blackout == nil {
				return nil
			}
			s.Blackout.Lost = append(s.Blackout.Lost, late...)
			s.Blackout.Back = append(s.Blackout.Back, back...)
			return nil
		})
		if err != nil {
			return err
		}
		b = c.SitePower().Blackout
		if len(late) > 0 {
			c.Budget.Lost(c.Now(), c.wereOn(b))
		}
	}
	if !released {
		return nil
	}
	if b.Over() {
		return c.decideHall(ctx, func(s *inventory.SitePower) error {
			s.Blackout = nil
			return nil
		})
	}
	next := c.Budget.Waiting()
	if len(next) == 0 {
		next = b.Lost
	}
	tries := 0
	for _, id := range next {
		if b.Waits(id) && tries < 64 {
			tries++
			c.poke(id, c.Now())
		}
	}
	return nil
}

// returns is the step of a machine that lost its power in a blackout. It tells
// whether the node is left alone because of it.
func (t *turn) returns() (busy bool, err error) {
	b := t.SitePower().Blackout
	if b == nil || !b.Waits(t.n.ID) || t.n.Power.On == power.On.String() && t.n.Power.At.After(b.At) {
		t.unsay(dark)
		return false, nil
	}
	if t.busy() {
		return true, nil
	}
	v := t.Power[t.n.ID]
	switch {
	case b.Released.IsZero():
		t.note(dark + ": it starts again after: smelt power release")
		return true, nil
	case v == nil, t.n.Hold != nil:
		why := "nothing here can switch it"
		if v != nil {
			why = "held by " + t.n.Hold.Owner
		}
		t.alarm("it lost power in the blackout and is not started: "+why, nil)
		t.after = append(t.after, t.outOfBlackout)
		return true, nil
	}
	return true, t.switchOn(dark, func(t *turn, err error) {
		if err != nil {
			t.after = append(t.after, t.outOfBlackout)
		}
	})
}

const dark = "lost its power in the blackout"

// outOfBlackout leaves the machine to a person.
func (t *turn) outOfBlackout() {
	id := t.n.ID
	err := t.decideHall(t.ctx, func(s *inventory.SitePower) error {
		if s.Blackout != nil && s.Blackout.Waits(id) {
			s.Blackout.Failed = append(s.Blackout.Failed, id)
		}
		return nil
	})
	if err != nil {
		t.Log.Error("power of the site", "node", id, "err", err)
	}
}

// pokeAll looks at every node that may wait for power.
func (c *Conductor) pokeAll() {
	now := c.Now()
	for _, m := range c.machines() {
		if !resting(m.state) || m.lost {
			c.poke(m.id, now)
		}
	}
}
