// Package manual is the power controller of machines that only a person can
// switch. It asks; the person acts and tells.
package manual

import (
	"context"
	"fmt"
	"sync"

	"smelt/inventory"
	"smelt/power"
)

// Controller words what a person must do.
type Controller struct {
	node  inventory.NodeID
	place inventory.Position

	mu    sync.Mutex
	state power.State
}

// New returns the controller of node at place.
func New(node inventory.NodeID, place inventory.Position) *Controller {
	return &Controller{node: node, place: place, state: power.Unknown}
}

func (c *Controller) String() string { return "manual " + string(c.node) }

func (c *Controller) where() string {
	if c.place == "" {
		return string(c.node)
	}
	return fmt.Sprintf("%s at %s", c.node, c.place)
}

// Confirm is what a person saw.
func (c *Controller) Confirm(s power.State) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state = s
}

// State is what a person confirmed last; before that it is Unknown and the
// error asks for a look.
func (c *Controller) State(context.Context) (power.State, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != power.On && c.state != power.Off {
		return power.Unknown, fmt.Errorf("look whether %s is on, and say so: %w", c.where(), power.ErrNeedsHuman)
	}
	return c.state, nil
}

// Set asks a person. What was confirmed before is forgotten: it is about to
// change.
func (c *Controller) Set(_ context.Context, s power.State) error {
	var how string
	switch s {
	case power.On:
		how = "switch on %s (power supply switch, then the power button), and say when it runs"
	case power.Off:
		how = "switch off %s (hold the power button for 5 s, or the power supply switch), and say when it is off"
	default:
		return fmt.Errorf("set %s: %w", s, power.ErrUnsupported)
	}
	c.Confirm(power.Unknown)
	return fmt.Errorf(how+": %w", c.where(), power.ErrNeedsHuman)
}

// BootOnce is not supported: the machine's own boot order decides.
func (c *Controller) BootOnce(_ context.Context, d power.Device) error {
	return fmt.Errorf("boot once from %s: %w", d, power.ErrUnsupported)
}
