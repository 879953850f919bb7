// Package manual is the power controller of machines that only a person can
// switch. It asks; the person acts. That a machine runs is heard of it (it asks
// for its boot, or its agent speaks); that it is off is the person's word.
package manual

import (
	"context"
	"fmt"
	"sync"
	"time"

	"smelt/inventory"
	"smelt/power"
)

// Config is one machine.
type Config struct {
	Node  inventory.NodeID
	Place inventory.Position
	// Heard tells when the machine was last heard of, and by what; nil: nobody
	// listens.
	Heard func() (at time.Time, by string)
}

// Controller words what a person must do. It is a power.Hearer.
type Controller struct {
	cfg Config

	mu    sync.Mutex
	state power.State
	told  time.Time // when the person said so, or was asked
}

// New returns the controller of a machine.
func New(c Config) *Controller {
	if c.Heard == nil {
		c.Heard = func() (time.Time, string) { return time.Time{}, "" }
	}
	return &Controller{cfg: c, state: power.Unknown}
}

func (c *Controller) String() string { return "manual " + string(c.cfg.Node) }

// Heard is when the machine was last heard of.
func (c *Controller) Heard() (at time.Time, by string) { return c.cfg.Heard() }

func (c *Controller) where() string {
	if c.cfg.Place == "" {
		return string(c.cfg.Node)
	}
	return fmt.Sprintf("%s at %s", c.cfg.Node, c.cfg.Place)
}

// Confirm is what a person saw.
func (c *Controller) Confirm(s power.State) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state, c.told = s, time.Now()
}

// State is On when the machine was heard of after the person's last word and
// within power.Alive, and else what the person confirmed. Before that it is
// Unknown and the error asks for a look.
func (c *Controller) State(context.Context) (power.State, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if at, _ := c.cfg.Heard(); at.After(c.told) && time.Since(at) < power.Alive {
		return power.On, nil
	}
	if c.state != power.On && c.state != power.Off {
		return power.Unknown, fmt.Errorf("look whether %s is on, and say so: %w", c.where(), power.ErrNeedsHuman)
	}
	return c.state, nil
}

// Set asks a person. What was confirmed and heard before is forgotten: it is
// about to change.
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
