package convert

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"smelt/inventory"
	"smelt/power"
)

// CurtailOrder asks to give back power.
type CurtailOrder struct {
	By, Why string
	Watts   float64       // to give back
	Within  time.Duration // from now
	Until   time.Time     // zero: until somebody ends it

	window string // of site.yaml, and when it began; "" for a person's
	from   time.Time
}

// CurtailWindow is a weekly time in which the site gives back power, in the
// server's own time zone.
type CurtailWindow struct {
	Name     string
	Days     []time.Weekday // of its beginning; none: every day
	From, To time.Duration  // since midnight; To at or before From: of the next day
	Watts    float64
	Within   time.Duration
}

// active tells whether now is in the window, and when it began and ends.
func (w CurtailWindow) active(now time.Time) (from, to time.Time, ok bool) {
	for _, back := range []int{0, -1} {
		y, m, d := now.AddDate(0, 0, back).Date()
		midnight := time.Date(y, m, d, 0, 0, 0, 0, now.Location())
		clock := func(day int, since time.Duration) time.Time {
			// By the clock on the wall, also on the day that it is changed.
			return time.Date(y, m, d+day, int(since/time.Hour), int(since%time.Hour/time.Minute), 0, 0, now.Location())
		}
		from, to = clock(0, w.From), clock(0, w.To)
		if w.To <= w.From {
			to = clock(1, w.To)
		}
		day := len(w.Days) == 0 || slices.Contains(w.Days, midnight.Weekday())
		if day && !now.Before(from) && now.Before(to) {
			return from, to, true
		}
	}
	return time.Time{}, time.Time{}, false
}

// How long what is taken needs until meters show it: agents poll at once, and a
// machine is read each meterEvery.
var takes = map[string]time.Duration{
	inventory.ShedPause: time.Minute,
	inventory.ShedCap:   time.Minute,
	inventory.ShedOff:   10 * time.Minute, // power.Limits.Soft
}

// CanGive is what the site could give back now.
type CanGive struct {
	Watts      float64                 `json:"watts"`      // expected, within the time
	Draw       float64                 `json:"draw"`       // of all machines and circuits now
	Steps      []inventory.CurtailStep `json:"steps"`      // the first ones first
	Unmeasured int                     `json:"unmeasured"` // machines that are on and not measured: what they give does not count
}

// CanGive plans what to give back within a time: burn-ins are paused, the
// newest first; cards of machines in service are capped; machines without work
// are shut down. need is where the plan stops; 0 plans everything.
func (c *Conductor) CanGive(need float64, within time.Duration) CanGive {
	now := c.Now()
	out := CanGive{Draw: c.Budget.Drawn(now)}
	type choice struct {
		machine
		step inventory.CurtailStep
		rank int
	}
	var list []choice
	for _, m := range c.machines() {
		g, ok := c.gauge(m.id)
		if m.on == power.On.String() && (!ok || !g.fresh(now)) {
			out.Unmeasured++
		}
		if !ok || !g.fresh(now) {
			continue
		}
		idle := g.idle
		if burning(m.state) || idle > 0.5*g.watts {
			idle = min(max(idle, 0.1*g.watts), 0.35*max(m.watts, g.watts)) // it was never seen idle
		}
		add := func(rank int, do string, watts float64) {
			if watts >= 1 && takes[do] <= within {
				list = append(list, choice{m, inventory.CurtailStep{Node: m.id, Do: do, Watts: watts}, rank})
			}
		}
		switch m.work() {
		case power.WorkBurnIn:
			if !m.sheds(inventory.ShedPause) {
				add(0, inventory.ShedPause, g.watts-idle)
			}
		case power.WorkService:
			if !m.sheds(inventory.ShedCap) {
				add(1, inventory.ShedCap, (g.watts-idle)*(1-capShare))
			}
		case power.WorkIdle:
			if m.mayShutDown() && !m.sheds(inventory.ShedOff) && c.Power[m.id] != nil {
				add(2, inventory.ShedOff, g.watts)
			}
		}
	}
	slices.SortFunc(list, func(a, b choice) int {
		if a.rank != b.rank {
			return a.rank - b.rank
		}
		if x := b.since.Compare(a.since); x != 0 {
			return x
		}
		return strings.Compare(string(a.id), string(b.id))
	})
	for _, x := range list {
		if need > 0 && out.Watts >= need {
			break
		}
		out.Watts += x.step.Watts
		out.Steps = append(out.Steps, x.step)
	}
	return out
}

// what the steps of a plan are, for people.
func (g CanGive) String() string {
	count, watts := map[string]int{}, map[string]float64{}
	for _, s := range g.Steps {
		count[s.Do]++
		watts[s.Do] += s.Watts
	}
	var said []string
	for _, do := range []string{inventory.ShedPause, inventory.ShedCap, inventory.ShedOff} {
		if n := count[do]; n > 0 {
			words := map[string]string{inventory.ShedPause: "burn-ins paused", inventory.ShedCap: "machines in service capped", inventory.ShedOff: "idle machines shut down"}
			said = append(said, fmt.Sprintf("%d %s: %.0f W", n, words[do], watts[do]))
		}
	}
	if len(said) == 0 {
		said = []string{"nothing that is measured could give any"}
	}
	if g.Unmeasured > 0 {
		said = append(said, fmt.Sprintf("%d machines are on and not measured", g.Unmeasured))
	}
	return strings.Join(said, "; ")
}

// curtail begins to give back power, or says why it cannot.
func (c *Conductor) curtail(ctx context.Context, o CurtailOrder) error {
	now := c.Now().UTC()
	switch {
	case !(o.Watts > 0 && o.Watts < 1e9):
		return fmt.Errorf("%v W: want a number above 0", o.Watts)
	case o.Within < takes[inventory.ShedPause]:
		return fmt.Errorf("within %v: the quickest takes %v until it is measured", o.Within, takes[inventory.ShedPause])
	case !o.Until.IsZero() && !o.Until.After(now):
		return fmt.Errorf("until %s, which is over", o.Until.Format(time.RFC3339))
	}
	can := c.CanGive(o.Watts, o.Within)
	if can.Watts < o.Watts {
		all := c.CanGive(0, o.Within)
		return fmt.Errorf("the site cannot give back %.0f W within %v, but %.0f W: %s; nothing was done", o.Watts, o.Within, all.Watts, all)
	}
	return c.beginCurtail(ctx, o, can)
}

func (c *Conductor) beginCurtail(ctx context.Context, o CurtailOrder, can CanGive) error {
	now := c.Now().UTC()
	err := c.decideHall(ctx, func(s *inventory.SitePower) error {
		if s.Curtail != nil {
			return fmt.Errorf("%s curtails already since %s: %.0f W; end it first: smelt power curtail --end", s.Curtail.By, s.Curtail.At.Format(time.RFC3339), s.Curtail.Watts)
		}
		s.Curtail = &inventory.Curtailment{By: o.By, Why: o.Why, Watts: o.Watts, At: now, Due: now.Add(o.Within), Until: o.Until,
			Base: can.Draw, Draw: can.Draw, Steps: can.Steps, Unmeasured: can.Unmeasured}
		if o.window != "" {
			if s.Windows == nil {
				s.Windows = map[string]time.Time{}
			}
			s.Windows[o.window] = o.from
		}
		return nil
	})
	if err != nil {
		return err
	}
	c.Budget.Ceiling(max(0, can.Draw-o.Watts), o.Why)
	c.Log.Warn("curtailment", "actor", o.By, "reason", o.Why, "watts", o.Watts, "within", o.Within)
	return c.takeSteps(ctx)
}

// takeSteps takes what the curtailment planned and is not taken yet. Killed in
// the middle, the next controller goes on.
func (c *Conductor) takeSteps(ctx context.Context) error {
	cur := c.SitePower().Curtail
	if cur == nil {
		return nil
	}
	var failed []error
	done := map[inventory.CurtailStep]bool{}
	for _, s := range cur.Steps {
		if s.Taken {
			continue
		}
		if !c.machine(s.Node).sheds(s.Do) {
			err := c.take(ctx, s.Node, inventory.Shed{Do: s.Do, By: byCurtail, Why: curtailWhy(cur)})
			if err != nil && !errors.Is(err, errKept) {
				failed = append(failed, err)
				continue
			}
		}
		done[s] = true
	}
	if len(done) > 0 {
		failed = append(failed, c.decideHall(ctx, func(h *inventory.SitePower) error {
			if h.Curtail != nil && h.Curtail.At.Equal(cur.At) {
				for i, s := range h.Curtail.Steps {
					h.Curtail.Steps[i].Taken = s.Taken || done[s]
				}
			}
			return nil
		}))
	}
	return errors.Join(failed...)
}

func curtailWhy(cur *inventory.Curtailment) string {
	why := inventory.Watts(cur.Watts) + " are given back"
	if cur.Why != "" {
		why += ": " + cur.Why
	}
	return why
}

// endCurtail lets everything come back that a curtailment took.
func (c *Conductor) endCurtail(ctx context.Context, actor string) error {
	var was inventory.Curtailment
	err := c.decideHall(ctx, func(s *inventory.SitePower) error {
		if s.Curtail == nil {
			return errors.New("nothing is curtailed")
		}
		was, s.Curtail = *s.Curtail, nil
		s.LastCurtail = &was
		was.Until = c.Now().UTC()
		return nil
	})
	if err != nil {
		return err
	}
	c.Budget.CurtailEnd()
	c.Log.Warn("curtailment is over", "actor", actor, "given", was.Given(), "asked", was.Watts)
	c.pokeAll()
	return nil
}

// tendCurtail measures what is given back, takes more where it is not enough,
// says when it comes too late, and begins and ends curtailments by the clock.
func (c *Conductor) tendCurtail(ctx context.Context) error {
	now := c.Now()
	h := c.SitePower()
	if h.Curtail == nil {
		return c.scheduled(ctx, h, now)
	}
	cur := h.Curtail
	if !cur.Until.IsZero() && !now.Before(cur.Until) {
		return c.endCurtail(ctx, system)
	}
	if err := c.takeSteps(ctx); err != nil {
		return err
	}
	draw := c.Budget.Drawn(now)
	met, late := cur.Met, cur.Late
	if met.IsZero() && cur.Base-draw >= cur.Watts {
		met = now.UTC()
	}
	late = late || met.IsZero() && now.After(cur.Due)
	if now.Sub(cur.Seen) < meterEvery && met.Equal(cur.Met) && late == cur.Late {
		return nil
	}
	if late && !cur.Late {
		c.Log.Error("curtailment: not given back in time", "asked", cur.Watts, "given", cur.Base-draw)
	}
	more := c.topUp(cur, draw, now)
	err := c.decideHall(ctx, func(s *inventory.SitePower) error {
		if s.Curtail != nil && s.Curtail.At.Equal(cur.At) {
			s.Curtail.Draw, s.Curtail.Seen, s.Curtail.Met, s.Curtail.Late = draw, now.UTC(), met, late
			s.Curtail.Steps = append(s.Curtail.Steps, more...)
		}
		return nil
	})
	if err != nil || len(more) == 0 {
		return err
	}
	c.mu.Lock()
	c.toppedUp = now
	c.mu.Unlock()
	return c.takeSteps(ctx)
}

// topUp is what must be taken beyond the plan, because less was given than
// expected, or somebody draws more than before. Where meters fell silent
// nothing more is taken: what is not known causes no action.
func (c *Conductor) topUp(cur *inventory.Curtailment, draw float64, now time.Time) []inventory.CurtailStep {
	c.mu.Lock()
	last := c.toppedUp
	c.mu.Unlock()
	if last.Before(cur.At) {
		last = cur.At
	}
	short := cur.Watts - (cur.Base - draw)
	if short <= 0 || now.Sub(last) < takes[inventory.ShedPause]+meterEvery {
		return nil
	}
	can := c.CanGive(short, 24*time.Hour)
	if can.Unmeasured > cur.Unmeasured {
		return nil
	}
	return can.Steps
}

// listens is how long a process that just began waits for its meters before it
// curtails by the clock: what is only reserved would seem to be given back as
// soon as it is measured.
const listens = time.Minute

// scheduled begins the curtailment of a window of site.yaml, once. A window
// gives what there is to give: nobody is there to be told that it is less.
func (c *Conductor) scheduled(ctx context.Context, h inventory.SitePower, now time.Time) error {
	for _, w := range c.Site.Curtail {
		from, to, ok := w.active(now)
		if !ok {
			continue
		}
		if h.Windows[w.Name].Equal(from) {
			continue // it was ended by hand
		}
		can := c.CanGive(w.Watts, w.Within)
		c.mu.Lock()
		begun := c.begun
		c.mu.Unlock()
		if can.Unmeasured > 0 && now.Sub(begun) < listens {
			return nil
		}
		return c.beginCurtail(ctx, CurtailOrder{By: w.by(), Why: "schedule", Watts: w.Watts, Within: w.Within, Until: to.UTC(), window: w.Name, from: from.UTC()}, can)
	}
	return nil
}

func (w CurtailWindow) by() string { return "schedule:" + w.Name }
