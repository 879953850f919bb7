package convert

import (
	"cmp"
	"slices"
	"time"

	"smelt/inventory"
	"smelt/power"
)

// A machine is what the power of the hall must know of a node. The conductor
// is the only writer of nodes, so a copy that each commit renews is never old.
type machine struct {
	id       inventory.NodeID
	state    inventory.State
	since    time.Time
	circuit  string
	position inventory.Position
	watts    float64 // nameplate
	on       string  // as last confirmed: on, off, unknown or ""
	onAt     time.Time
	via      string
	shed     []inventory.Shed
	held     bool
	lost     bool   // it is off, and nobody here switched it off
	report   string // burning: of the report that it makes
	hardware string // burning: digest
}

func (c *Conductor) machineOf(n inventory.Node) machine {
	m := machine{
		id: n.ID, state: n.State, since: n.Since, circuit: n.Spec.Circuit, position: n.Spec.Position, watts: c.watts(n),
		on: n.Power.On, onAt: n.Power.At, via: n.Power.Via, shed: n.Shed, held: n.Hold != nil,
		lost: n.Power.On == power.Off.String() && n.Power.Detail == lostPower,
	}
	if burning(n.State) && n.Hardware != nil {
		m.report, m.hardware = reportID(n), n.Hardware.Digest()
	}
	return m
}

// remember renews the copy of a node.
func (c *Conductor) remember(n inventory.Node) {
	m := c.machineOf(n)
	c.mu.Lock()
	c.fleet[n.ID] = m
	c.mu.Unlock()
}

// machines lists the copies by name.
func (c *Conductor) machines() []machine {
	c.mu.Lock()
	out := make([]machine, 0, len(c.fleet))
	for _, m := range c.fleet {
		out = append(out, m)
	}
	c.mu.Unlock()
	slices.SortFunc(out, func(a, b machine) int { return cmp.Compare(a.id, b.id) })
	return out
}

func (c *Conductor) machine(id inventory.NodeID) machine {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.fleet[id]
}

// sheds tells whether do was taken from m.
func (m machine) sheds(do string) bool {
	return slices.ContainsFunc(m.shed, func(s inventory.Shed) bool { return s.Do == do })
}

// work is what the machine does, in the words of power.Load; "" when it draws
// nothing that could be shed.
func (m machine) work() string {
	switch {
	case burning(m.state):
		return power.WorkBurnIn
	case m.state == inventory.InService || m.state == inventory.Leaving:
		return power.WorkService
	case converting(m.state), m.state == inventory.Approved:
		return power.WorkConvert
	case m.on == power.On.String():
		return power.WorkIdle
	}
	return ""
}

// mayShutDown tells whether shutting the machine down loses nothing: nobody
// holds it, no job and no conversion runs on it, and its burn-in, if there is
// one, keeps what passed.
func (m machine) mayShutDown() bool {
	switch m.work() {
	case power.WorkIdle:
		return !m.held && m.state != inventory.NeedsWork // a person may work on it
	case power.WorkBurnIn:
		return !m.held && m.sheds(inventory.ShedPause)
	}
	return false
}
