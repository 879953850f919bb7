package convert

import (
	"time"

	"smelt/inventory"
	"smelt/power"
)

// HallPower is the power of the site now.
type HallPower struct {
	inventory.SitePower
	Draw     float64 // watts; what is not measured counts as reserved
	Machines []MachinePower
}

// MachinePower is the power of one machine: see api.MachinePower.
type MachinePower struct {
	Node      inventory.NodeID
	Position  inventory.Position
	Circuit   string
	State     inventory.State
	On        string
	At        time.Time
	Via       string
	Read      string
	ReadAt    time.Time
	ReadError string
	Watts     float64
	WattsAt   time.Time
	Nameplate float64
	Learned   float64
	Lie       string
	Shed      []inventory.Shed
}

// HallPower is what is known of the power of the site.
func (c *Conductor) HallPower() HallPower {
	now := c.Now()
	out := HallPower{SitePower: c.SitePower(), Draw: c.Budget.Drawn(now)}
	for _, m := range c.machines() {
		v := MachinePower{Node: m.id, Position: m.position, Circuit: m.circuit, State: m.state, On: m.on, At: m.onAt, Via: m.via,
			Nameplate: m.watts, Learned: c.Budget.Peak(m.id), Shed: m.shed}
		if v.On == "" {
			v.On = power.Unknown.String()
		}
		if g, ok := c.gauge(m.id); ok {
			v.Lie, v.ReadAt, v.ReadError = g.lie, g.stateAt, g.failed
			if g.state != 0 {
				v.Read = g.state.String()
			}
			v.Watts, v.WattsAt = g.watts, g.at
		}
		out.Machines = append(out.Machines, v)
	}
	return out
}
