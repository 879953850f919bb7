package convert

import (
	"context"
	"time"

	"smelt/inventory"
	"smelt/power"
)

// How long a RAM system may take to end: it has nothing to save.
const (
	ramEnds     = time.Minute
	ramEndsPoll = time.Second
)

// softOff asks the system of a machine to shut down, and waits until it is off.
// The RAM system hears no power button, so its agent is told first. That the
// machine is off is read from its controller, whoever brought it about.
func (c *Conductor) softOff(ctx context.Context, node inventory.NodeID, v *power.Verified) (power.Evidence, error) {
	if l := c.Live(node); v.HasSoftOff() && l.Mode == modeInspect && c.Now().Sub(l.LastSeen) < agentAlive {
		if err := c.Tell(ctx, node, orderOff); err != nil {
			c.Log.Warn("its agent was not told to shut down; its controller is", "node", node, "err", err)
		} else {
			awaitOff(ctx, v)
		}
	}
	return v.SoftOff(ctx)
}

// awaitOff gives a system that shuts down the time for it.
func awaitOff(ctx context.Context, v *power.Verified) {
	ctx, cancel := context.WithTimeout(ctx, ramEnds)
	defer cancel()
	for {
		if s, err := v.State(ctx); err == nil && s == power.Off {
			return
		}
		if sleep(ctx, ramEndsPoll) != nil {
			return
		}
	}
}
