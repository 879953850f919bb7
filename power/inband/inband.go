// Package inband switches a machine off from within: the agent on it shuts its
// system down. It can never switch on, and what it says of a machine that is
// silent is nothing.
package inband

import (
	"context"
	"fmt"
	"time"

	"smelt/inventory"
	"smelt/power"
)

// Config is one machine.
type Config struct {
	Node inventory.NodeID
	// Tell gives the agent an order (off) and returns once it took it.
	Tell func(ctx context.Context, verb string) error
	// Heard tells when the agent, and not only the machine, was last heard of.
	Heard func() time.Time
}

// Controller is a power.Controller, a power.SoftOffer and a power.Hearer.
type Controller struct{ cfg Config }

// New checks c.
func New(c Config) (*Controller, error) {
	if c.Tell == nil || c.Heard == nil {
		return nil, fmt.Errorf("agent on %s: nobody speaks with it", c.Node)
	}
	return &Controller{c}, nil
}

func (c *Controller) String() string { return "inband agent on " + string(c.cfg.Node) }

// Heard is when the agent was last heard of.
func (c *Controller) Heard() (at time.Time, by string) { return c.cfg.Heard(), "its agent" }

func (c *Controller) silent() (why string) {
	switch at := c.cfg.Heard(); {
	case at.IsZero():
		return fmt.Sprintf("no agent was heard on %s", c.cfg.Node)
	case time.Since(at) >= power.Alive:
		return fmt.Sprintf("the agent on %s was last heard %s ago", c.cfg.Node, time.Since(at).Round(time.Second))
	}
	return ""
}

// State is On while the agent speaks, and not known else.
func (c *Controller) State(context.Context) (power.State, error) {
	if why := c.silent(); why != "" {
		return power.Unknown, fmt.Errorf("%s: %w", why, power.ErrUnsupported)
	}
	return power.On, nil
}

// Set is not supported: an agent cannot switch on, and off by force is not its
// way.
func (c *Controller) Set(_ context.Context, s power.State) error {
	return fmt.Errorf("set %s by the agent: %w", s, power.ErrUnsupported)
}

// SoftOff has the agent shut the system down; not supported while none speaks.
func (c *Controller) SoftOff(ctx context.Context) error {
	if why := c.silent(); why != "" {
		return fmt.Errorf("shut down by the agent: %s: %w", why, power.ErrUnsupported)
	}
	if err := c.cfg.Tell(ctx, "off"); err != nil {
		return fmt.Errorf("shut down by the agent: %w", err)
	}
	return nil
}

// BootOnce is not supported.
func (c *Controller) BootOnce(_ context.Context, d power.Device) error {
	return fmt.Errorf("boot once from %s by the agent: %w", d, power.ErrUnsupported)
}
