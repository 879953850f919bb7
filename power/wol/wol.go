// Package wol wakes machines with AMD's magic packet ("Magic Packet
// Technology", white paper 20213, 1995). It can do nothing else: a network card
// that listens knows neither whether its machine runs nor how to stop it. That
// a machine runs is what was heard of it.
package wol

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"smelt/inventory"
	"smelt/power"
)

// Config is one machine.
type Config struct {
	Node inventory.NodeID
	MACs []inventory.MAC // of its cards; each is woken: which one listens is its firmware's matter
	// To is where packets go: the broadcast address of the machines' network and
	// a port, by custom 9 (discard). A packet that a router must pass reaches
	// nobody, unless the router passes directed broadcasts.
	To netip.AddrPort
	// From is our address on that network; the packet leaves by its interface.
	// Invalid: the routing table decides.
	From netip.Addr
	// Password is the SecureOn password, six bytes as 00:11:22:33:44:55; nil: none.
	Password func(context.Context) (string, error)
	// Heard tells when the machine was last heard of, and by what.
	Heard func() (at time.Time, by string)
}

// Controller is a power.Controller and a power.Hearer.
type Controller struct{ cfg Config }

// New checks c. It sends nothing.
func New(c Config) (*Controller, error) {
	switch {
	case len(c.MACs) == 0:
		return nil, fmt.Errorf("wake %s: it needs a hardware address", c.Node)
	case !c.To.IsValid() || c.To.Port() == 0:
		return nil, fmt.Errorf("wake %s: want a broadcast address and a port to send to", c.Node)
	case c.Heard == nil:
		return nil, fmt.Errorf("wake %s: nobody listens for it", c.Node)
	}
	return &Controller{c}, nil
}

func (c *Controller) String() string {
	macs := make([]string, len(c.cfg.MACs))
	for i, m := range c.cfg.MACs {
		macs[i] = m.String()
	}
	return "wol " + strings.Join(macs, " ") + " at " + c.cfg.To.String()
}

// Heard is when the machine was last heard of.
func (c *Controller) Heard() (at time.Time, by string) { return c.cfg.Heard() }

// State is On when the machine was heard of within power.Alive. Its silence is
// a power.Blind error that allows On: a packet does nothing to a machine that
// runs.
func (c *Controller) State(context.Context) (power.State, error) {
	at, by := c.cfg.Heard()
	switch {
	case at.IsZero():
		return power.Unknown, &power.Blind{May: power.On, Why: fmt.Sprintf("%s was not heard of", c.cfg.Node)}
	case time.Since(at) >= power.Alive:
		return power.Unknown, &power.Blind{May: power.On, Why: fmt.Sprintf("%s was last heard of %s ago, by %s", c.cfg.Node, time.Since(at).Round(time.Second), by)}
	}
	return power.On, nil
}

// times is how often a packet is sent, pace apart: it is not acknowledged.
const (
	times = 3
	pace  = 100 * time.Millisecond
)

// Set sends the packet. Off is not supported.
func (c *Controller) Set(ctx context.Context, s power.State) error {
	if s != power.On {
		return fmt.Errorf("set %s by a magic packet: %w", s, power.ErrUnsupported)
	}
	var password []byte
	if c.cfg.Password != nil {
		p, err := c.cfg.Password(ctx)
		if err != nil {
			return fmt.Errorf("SecureOn password: %w", err)
		}
		if password, err = secureOn(p); err != nil {
			return err
		}
	}
	from := net.UDPAddr{}
	if c.cfg.From.IsValid() {
		from = *net.UDPAddrFromAddrPort(netip.AddrPortFrom(c.cfg.From, 0))
	}
	conn, err := net.ListenUDP("udp4", &from) // Go asks for SO_BROADCAST itself
	if err != nil {
		return fmt.Errorf("wake: %w", err)
	}
	defer conn.Close()
	for i := range times {
		if i > 0 {
			select {
			case <-time.After(pace):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		for _, m := range c.cfg.MACs {
			if _, err := conn.WriteToUDPAddrPort(Packet(m, password), c.cfg.To); err != nil {
				return fmt.Errorf("wake: %w", err)
			}
		}
	}
	return nil
}

// BootOnce is not supported: the machine's own boot order decides.
func (c *Controller) BootOnce(_ context.Context, d power.Device) error {
	return fmt.Errorf("boot once from %s by a magic packet: %w", d, power.ErrUnsupported)
}

// Packet is the magic packet for m: six bytes of ones, the address sixteen
// times, and the SecureOn password if there is one: 102 or 108 bytes.
func Packet(m inventory.MAC, password []byte) []byte {
	p := make([]byte, 0, 108)
	for range 6 {
		p = append(p, 0xff)
	}
	for range 16 {
		p = append(p, m[:]...)
	}
	return append(p, password...)
}

// secureOn reads a password as it stands in a firmware's setup. What is wrong
// with it is said without repeating it.
func secureOn(s string) ([]byte, error) {
	b, err := net.ParseMAC(strings.TrimSpace(s))
	if err != nil || len(b) != 6 {
		return nil, errors.New("the SecureOn password is not six bytes like 00:11:22:33:44:55")
	}
	return b, nil
}
