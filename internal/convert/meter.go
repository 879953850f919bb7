package convert

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"

	"smelt/internal/store"
	"smelt/inventory"
	"smelt/power"

	"golang.org/x/sync/errgroup"
)

// meterEvery is how often every machine and PDU is read. A reading counts for
// 60 s (power.Rules.Stale), so one may be missed.
const meterEvery = 20 * time.Second

// A PDU is what the conductor asks of a power distribution unit: to measure.
// It never switches an outlet by it.
type PDU struct {
	Name string
	// Circuits measures the unit's own circuits: its inlet, phases, banks. nil:
	// it has no such meters.
	Circuits func(context.Context) ([]CircuitReading, error)
	// Outlets measures each outlet, in watts by number. nil: it cannot.
	Outlets func(context.Context) (map[int]float64, error)
	// Feeds says which node site.yaml hangs on which outlet.
	Feeds map[int]inventory.NodeID
}

// CircuitReading is what a meter of a PDU showed.
type CircuitReading struct {
	Circuit string // of site.yaml
	Line    string // L1, L2, L3; "" for all lines together
	Watts   float64
}

// gauge is what is known of one machine's power while this process runs.
type gauge struct {
	watts float64 // last believable reading
	at    time.Time
	five  window
	idle  float64 // the least that it drew while on; 0: not known
	lie   string  // what was wrong with its last reading

	failed string // why its controller could not be read the last time; "" when it could

	state   power.State // last read
	reads   int         // how often in a row it was read so
	stateAt time.Time
	peak    peak
}

// fresh tells whether the last reading counts at now.
func (g gauge) fresh(now time.Time) bool {
	return !g.at.IsZero() && now.Sub(g.at) <= time.Minute && g.at.Sub(now) <= time.Minute
}

// window is the readings of the last five minutes.
type window struct {
	at []time.Time
	w  []float64
}

const (
	windowSpan  = 5 * time.Minute
	windowLeast = 5 // readings
)

func (v *window) add(at time.Time, w float64) {
	if n := len(v.at); n > 0 && !at.After(v.at[n-1]) {
		return
	}
	v.at, v.w = append(v.at, at), append(v.w, w)
	old := 0
	for at.Sub(v.at[old]) > windowSpan {
		old++
	}
	v.at, v.w = v.at[old:], v.w[old:]
}

// mean is the mean over five minutes, and whether there were readings enough
// for one.
func (v *window) mean() (float64, bool) {
	n := len(v.at)
	if n < windowLeast || v.at[n-1].Sub(v.at[0]) < windowSpan*4/5 {
		return 0, false
	}
	sum := 0.0
	for _, w := range v.w {
		sum += w
	}
	return sum / float64(n), true
}

// implausible says why a reading of a machine is not believed, or "". NaN is no
// reading, and no lie.
func implausible(w, nameplate float64) string {
	switch {
	case math.IsNaN(w):
		return ""
	case w < 0:
		return fmt.Sprintf("it says that it draws %.0f W", w)
	case math.IsInf(w, 0) || w > 100e3:
		return fmt.Sprintf("it says that it draws %.0f W, which no machine does", w)
	case nameplate > 0 && w > 4*nameplate:
		return fmt.Sprintf("it says that it draws %.0f W, more than four times its nameplate of %.0f W", w, nameplate)
	}
	return ""
}

// meter reads every machine and every PDU until ctx ends.
func (c *Conductor) meter(ctx context.Context) error {
	p := power.NewPoller(c.Power, power.PollConfig{Every: c.meterPace(), Limit: meterEvery, Seen: c.saw})
	var g errgroup.Group
	if len(c.Power) > 0 {
		g.Go(func() error {
			_ = p.Run(ctx) // ends with ctx alone
			return nil
		})
	}
	g.Go(func() error {
		c.readPDUs(ctx)
		close(c.metered)
		for {
			if sleep(ctx, c.meterPace()) != nil {
				return nil
			}
			c.readPDUs(ctx)
		}
	})
	return g.Wait()
}

func (c *Conductor) meterPace() time.Duration {
	if c.testOnlyMeter > 0 {
		return c.testOnlyMeter
	}
	return meterEvery
}

// sampled takes in what a controller said of one machine. watts is NaN where it
// measures nothing.
func (c *Conductor) sampled(id inventory.NodeID, state power.State, watts float64, at time.Time) {
	m := c.machine(id)
	lie := implausible(watts, m.watts)
	c.mu.Lock()
	g := c.gauges[id]
	if g == nil {
		g = new(gauge)
		c.gauges[id] = g
	}
	news := lie != "" && g.lie == ""
	if g.lie = lie; lie == "" && !math.IsNaN(watts) {
		g.watts, g.at = watts, at
		if state == power.On && watts > 0 && (g.idle == 0 || watts < g.idle) {
			g.idle = watts
		}
		g.five.add(at, watts)
	}
	if state == g.state {
		g.reads++
	} else {
		g.state, g.reads = state, 1
	}
	g.stateAt = at
	reads, busy := g.reads, c.job[id] != nil
	c.mu.Unlock()
	if news {
		c.Log.Warn("a reading is not believed", "node", id, "why", lie)
	}
	if lie == "" && !math.IsNaN(watts) {
		c.Budget.Measured(id, watts, at)
		c.learnPeak(m, at)
	}
	// A state that changed without us is a fact of the node's story. Off is
	// said for a moment by many BMCs, so it must be read twice.
	if !busy && reads >= 2 && (state == power.On || state == power.Off) && m.on != state.String() && m.id != "" && !at.Before(m.onAt) {
		c.mu.Lock()
		c.found[id] = foundState{state, at}
		c.mu.Unlock()
	}
}

// saw takes in a sample. Why one failed is kept for whoever asks why nothing is
// known of the machine.
func (c *Conductor) saw(s power.Sample) {
	c.sampled(s.Node, s.State, s.Readings.Watts, s.At)
	c.mu.Lock()
	defer c.mu.Unlock()
	g := c.gauges[s.Node]
	if g.failed = ""; s.Err != nil {
		g.failed = s.Err.Error()
	}
}

// foundState is a power state that was read and that nobody here brought about.
type foundState struct {
	state power.State
	at    time.Time
}

// noteStates makes events of what was found since the last call.
func (c *Conductor) noteStates(ctx context.Context) {
	c.mu.Lock()
	list := c.found
	c.found = map[inventory.NodeID]foundState{}
	c.mu.Unlock()
	for id, f := range list {
		if err := c.noteState(ctx, id, f.state, f.at); err != nil && ctx.Err() == nil {
			c.Log.Error("power state not noted", "node", id, "err", err)
		}
	}
}

// lostPower is the detail of a power fact: it was on, nobody switched it off,
// and it is off.
const lostPower = "lost power: nobody here switched it off"

// noteState makes an event of a power state that was read and that nobody here
// brought about.
func (c *Conductor) noteState(ctx context.Context, id inventory.NodeID, state power.State, at time.Time) error {
	if _, err := c.leading(); err != nil {
		return nil // whoever leads sees it too
	}
	unlock := c.lock(id)
	defer unlock()
	n, err := c.Store.Node(ctx, id)
	if err != nil {
		return err
	}
	t := c.turn(ctx, n)
	if t.busy() || n.Power.On == state.String() || at.Before(n.Power.At) {
		return nil
	}
	f := inventory.PowerFact{On: state.String(), At: at.UTC()}
	if v := c.Power[id]; v != nil {
		f.Via = v.String()
	}
	reason := "it was found " + state.String()
	if state == power.Off && n.Power.On == power.On.String() {
		f.Detail, reason = lostPower, lostPower
	}
	t.add(inventory.Event{Kind: inventory.KindPower, Actor: system, Reason: reason, Power: &f})
	return t.commit()
}

// readPDUs gives the meters of all PDUs to the budget.
func (c *Conductor) readPDUs(ctx context.Context) {
	done := make(chan struct{}, len(c.PDUs))
	for _, p := range c.PDUs {
		go func() {
			defer func() { done <- struct{}{} }()
			if p.Circuits == nil {
				return
			}
			rctx, cancel := context.WithTimeout(ctx, meterEvery)
			defer cancel()
			at := c.Now()
			list, err := p.Circuits(rctx)
			if err != nil {
				if ctx.Err() == nil && !errors.Is(err, power.ErrUnsupported) {
					c.Log.Warn("PDU not read: its circuits count as reserved", "pdu", p.Name, "err", err)
				}
				return
			}
			for _, r := range list {
				if r.Line != "" {
					c.Budget.MeasuredLine(r.Circuit, r.Line, r.Watts, at)
				} else {
					c.Budget.MeasuredCircuit(r.Circuit, r.Watts, at)
				}
			}
		}()
	}
	for range c.PDUs {
		<-done
	}
}

// peak is the highest five-minute mean of one burn-in. It is kept beside the
// node while it rises, so that a controller that dies forgets none of it, and
// counts once that burn-in passed.
type peak struct {
	Report   string    `json:"report"`
	Hardware string    `json:"hardware"`
	Watts    float64   `json:"watts"`
	At       time.Time `json:"at"`
}

const peakBlob = "power/peak.json"

// learnPeak raises the peak of a machine that burns in under its whole load.
func (c *Conductor) learnPeak(m machine, at time.Time) {
	if !burning(m.state) || len(m.shed) > 0 {
		return
	}
	c.mu.Lock()
	g, held := c.gauges[m.id], c.hall.Hold != nil
	mean, ok := g.five.mean()
	old := g.peak
	c.mu.Unlock()
	if !ok || held || at.Sub(m.since) < windowSpan {
		return
	}
	if old.Report != m.report {
		// Of this process's first look: what an earlier one saw counts on.
		stored, err := c.storedPeak(context.Background(), m.id)
		if err != nil {
			c.Log.Error("learned peak not read", "node", m.id, "err", err)
			return
		}
		if old = stored; old.Report != m.report {
			old = peak{Report: m.report, Hardware: m.hardware}
		}
	}
	if mean > 1.01*old.Watts {
		old.Watts, old.At = mean, at.UTC()
		data, err := json.Marshal(old)
		if err == nil {
			err = c.Store.PutBlob(context.Background(), store.Blob{Node: m.id, Name: peakBlob, Type: "application/json", Data: data, At: old.At})
		}
		if err != nil {
			c.Log.Error("learned peak not stored", "node", m.id, "err", err)
			return
		}
	}
	c.mu.Lock()
	g.peak = old
	c.mu.Unlock()
}

func (c *Conductor) storedPeak(ctx context.Context, id inventory.NodeID) (p peak, err error) {
	b, err := c.Store.Blob(ctx, id, peakBlob)
	if errors.Is(err, store.ErrNotFound) {
		return peak{}, nil
	}
	if err != nil {
		return peak{}, err
	}
	return p, json.Unmarshal(b.Data, &p)
}

// learned tells the budget what a node drew at most, if its last PASS says so
// and it is still the same machine.
func (c *Conductor) learned(ctx context.Context, n inventory.Node) (float64, error) {
	if n.Passed == nil || n.Hardware == nil {
		return 0, nil
	}
	p, err := c.storedPeak(ctx, n.ID)
	if err != nil || p.Report != n.Passed.Report || p.Hardware != n.Hardware.Digest() || !(p.Watts > 0) {
		return 0, err
	}
	c.Budget.Learned(n.ID, p.Watts)
	return p.Watts, nil
}

// takePeak tells the budget what the burn-in that just passed drew at most.
func (t *turn) takePeak() {
	if w, err := t.learned(t.ctx, t.n); err != nil {
		t.Log.Error("learned peak not taken", "node", t.n.ID, "err", err)
	} else if w > 0 {
		t.Log.Info("learned peak", "node", t.n.ID, "watts", w)
	}
}

// powerTasks measures, sheds and recovers for as long as this process leads.
func (c *Conductor) powerTasks(ctx context.Context) error {
	for {
		c.mu.Lock()
		restored := c.restored
		c.mu.Unlock()
		if restored {
			break
		}
		if sleep(ctx, settle) != nil {
			return nil
		}
	}
	var g errgroup.Group
	g.Go(func() error { return c.meter(ctx) })
	g.Go(func() error { return c.tend(ctx) })
	return g.Wait()
}
