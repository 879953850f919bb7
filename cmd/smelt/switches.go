package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"smelt/internal/config"
	"smelt/internal/convert"
	"smelt/inventory"
	"smelt/power"
	"smelt/power/amt"
	"smelt/power/bmc"
	"smelt/power/care"
	"smelt/power/inband"
	"smelt/power/manual"
	"smelt/power/pdu"
	"smelt/power/plug"
	"smelt/power/wol"
)

// bmcJournal is where it is remembered what BMCs must be freed of after a crash,
// and which keys were trusted first.
func bmcJournal(site *config.Site) string { return filepath.Join(site.State, "bmc") }

// ears hear of machines for the controllers that cannot read them. It is the
// conductor that hears, and it is made after them, before anything runs.
type ears struct{ conductor *convert.Conductor }

var errDeaf = errors.New("the conductor does not run yet")

func (e *ears) heard(n inventory.NodeID) (time.Time, string) {
	if e.conductor == nil {
		return time.Time{}, ""
	}
	return e.conductor.Heard(n)
}

func (e *ears) agent(n inventory.NodeID) time.Time {
	if e.conductor == nil {
		return time.Time{}
	}
	return e.conductor.AgentHeard(n)
}

func (e *ears) tell(ctx context.Context, n inventory.NodeID, verb string) error {
	if e.conductor == nil {
		return errDeaf
	}
	return e.conductor.Tell(ctx, n, verb)
}

// pduUnits are the PDUs of the site by name. Each is one device, whoever asks it.
func pduUnits(site *config.Site, secrets *config.Secrets) (map[string]*pdu.Unit, error) {
	units := map[string]*pdu.Unit{}
	var nodes []string
	for _, n := range site.Nodes {
		nodes = append(nodes, string(n.Name))
	}
	for _, p := range site.PDUs {
		u, err := pdu.NewUnit(pdu.Config{
			Names: p.Names, Nodes: nodes,
			Name: p.Name, Address: p.Address, Version: p.Version, Model: p.Model, User: p.User,
			Community: reveal(secrets, p.Community), Auth: reveal(secrets, p.Auth), Priv: reveal(secrets, p.Priv),
		})
		if err != nil {
			return nil, err
		}
		units[p.Name] = u
	}
	return units, nil
}

// controllers makes what switches each node. A node without one is switched by
// a human, who gets a task.
func controllers(site *config.Site, secrets *config.Secrets, units map[string]*pdu.Unit, e *ears) (map[inventory.NodeID]*power.Verified, error) {
	// A server that is started again and again must not lock its account at
	// every BMC: what was refused outlives the process.
	refused, err := power.OpenRefused(filepath.Join(site.State, "refused.json"))
	if err != nil {
		return nil, err
	}
	gates := power.NewGates(requestSpacing, refused)
	out := map[inventory.NodeID]*power.Verified{}
	for _, n := range site.Nodes {
		v, err := switchOf(site, n, units, secrets, gates, e)
		if err != nil {
			return nil, fmt.Errorf("node %s: power: %w", n.Name, err)
		}
		if v != nil {
			out[n.Name] = v
		}
	}
	return out, nil
}

// requestSpacing is the least pause between two requests to one BMC or plug:
// their network stacks are small.
const requestSpacing = 50 * time.Millisecond

// loginOf is the credential of a way to switch n, at the gate of its device; nil
// for one that logs in nowhere. PDUs let one in at a time themselves, and outlets
// may be on several: the gate of a node is only to know what was refused.
func loginOf(site *config.Site, n config.Node, p config.Power, secrets *config.Secrets, gates *power.Gates) *power.Login {
	var names []string
	device := config.BMCHost(p.Address)
	switch p.Driver {
	case "pdu":
		device = "outlets of " + string(n.Name)
		for _, u := range site.PDUs {
			if slices.ContainsFunc(p.Outlets, func(o config.Outlet) bool { return o.PDU == u.Name }) {
				names = append(names, string(u.Community), string(u.Auth), string(u.Priv))
			}
		}
	case "ipmi", "redfish":
		names = []string{care.Device{Node: n.Name, Kept: p.Kept}.SecretName(), string(p.Password)}
	case "amt", "plug":
		names = []string{string(p.Password), string(p.Token)}
	default:
		return nil
	}
	// The name of the secret tells logins of one account apart: that one is taken
	// does not mean that another may be tried again.
	who := strings.Join([]string{p.Driver, p.User, string(p.Password), string(p.Token)}, " ")
	return gates.At(device).Login(who, func(context.Context) (string, error) { return secrets.Version(names...) })
}

// How long a state may take that is confirmed in a roundabout way.
const (
	reachHeard = 12 * time.Minute // until a machine is heard of: its firmware tests itself first
	reachChain = 3 * time.Minute  // a BMC that was without power starts
	pollHeard  = 5 * time.Second
)

// switchOf is what switches n, nil for a person alone.
func switchOf(site *config.Site, n config.Node, units map[string]*pdu.Unit, secrets *config.Secrets, gates *power.Gates, e *ears) (*power.Verified, error) {
	var links []power.Link
	for _, w := range n.Power {
		c, proves, err := controller(site, n, w, units, secrets, e)
		if err != nil {
			return nil, err
		}
		links = append(links, power.Link{Controller: c, Proves: proves, Login: loginOf(site, n, w, secrets, gates)})
	}
	machine := slices.ContainsFunc(links, func(l power.Link) bool { return l.Proves == power.Machine })
	life := slices.ContainsFunc(links, func(l power.Link) bool { return l.Proves == power.Life })
	var limits power.Limits
	switch {
	case life && !machine:
		limits.Reach, limits.Poll = reachHeard, pollHeard
	case len(links) > 1:
		limits.Reach = reachChain
	}
	switch {
	case len(links) > 1:
		chain, err := power.NewChain(links...)
		if err != nil {
			return nil, err
		}
		return power.Verify(chain, limits), nil
	case len(links) == 0 || n.Power[0].Driver == "manual":
		return nil, nil
	}
	return links[0].Login.Verify(links[0].Controller, limits), nil
}

// controller makes one way to switch n, and says what its state proves.
func controller(site *config.Site, n config.Node, p config.Power, units map[string]*pdu.Unit, secrets *config.Secrets, e *ears) (power.Controller, power.Proof, error) {
	heard := func() (time.Time, string) { return e.heard(n.Name) }
	var c power.Controller
	var err error
	proves := power.Machine
	switch p.Driver {
	case "ipmi", "redfish":
		c, err = bmc.New(bmc.Config{Kind: p.Driver, Address: p.Address, User: p.User, CipherSuite: p.CipherSuite, Pin: p.Pin, SystemID: p.System,
			Password: deviceOf(n, p, secrets, bmcJournal(site)).Password, Sessions: bmcJournal(site)})
	case "amt":
		c, err = amt.New(amt.Config{Address: p.Address, User: p.User, Pin: p.Pin, Keys: bmcJournal(site), Password: reveal(secrets, p.Password)})
	case "pdu":
		proves = power.Supply
		outlets := make([]pdu.Outlet, 0, len(p.Outlets))
		for _, o := range p.Outlets {
			outlets = append(outlets, pdu.Outlet{Unit: units[o.PDU], Number: o.Outlet, Node: string(n.Name), Place: string(n.Position)})
		}
		c, err = pdu.New(outlets...)
	case "plug":
		proves = power.Supply
		c, err = plug.New(plug.Config{Kind: p.Kind, Address: p.Address, Channel: p.Channel, User: p.User, Password: reveal(secrets, p.Password),
			Token: reveal(secrets, p.Token), Entity: p.Entity, Meter: p.Meter})
	case "wol":
		proves = power.Life
		to, from := broadcast(site, p.Network)
		c, err = wol.New(wol.Config{Node: n.Name, MACs: n.MACs, To: to, From: from, Password: reveal(secrets, p.Password), Heard: heard})
	case "inband":
		proves = power.Life
		c, err = inband.New(inband.Config{Node: n.Name, Heard: func() time.Time { return e.agent(n.Name) },
			Tell: func(ctx context.Context, verb string) error { return e.tell(ctx, n.Name, verb) }})
	case "manual":
		c = manual.New(manual.Config{Node: n.Name, Place: n.Position, Heard: heard})
	default:
		err = fmt.Errorf("driver %q is not in this release", p.Driver)
	}
	return c, proves, err
}

// wakePort is where magic packets go by custom: discard.
const wakePort = 9

// broadcast is where magic packets for a network go, and our address on its
// wire. Machines behind relays are reached by directed broadcast, which their
// router must pass.
func broadcast(site *config.Site, network string) (to netip.AddrPort, from netip.Addr) {
	for _, n := range site.Networks {
		if n.Name != network {
			continue
		}
		machines := n.Machines()
		b := machines.Masked().Addr().As4()
		for i := machines.Bits(); i < 32; i++ {
			b[i/8] |= 0x80 >> (i % 8)
		}
		return netip.AddrPortFrom(netip.AddrFrom4(b), wakePort), n.Address.Addr()
	}
	return netip.AddrPort{}, netip.Addr{}
}
