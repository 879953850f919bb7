package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"

	"smelt/burnin"
	"smelt/internal/config"
	"smelt/internal/console"
	"smelt/internal/convert"
	"smelt/internal/join"
	"smelt/internal/join/slurm"
	"smelt/inventory"
	"smelt/power"
	"smelt/pxe"
)

// conductorSite is the part of the site that the conductor works with.
func conductorSite(site *config.Site, pin string) convert.Site {
	out := convert.Site{
		Name: site.Name, Lab: site.Lab, Circuits: site.Circuits, MaxActive: site.MaxActive, SlotWindow: site.SlotWindow, BootWait: site.BootWait,
		Classes: map[string]convert.Class{}, Profiles: burnin.Profiles(), StandsFor: map[inventory.NodeID][]convert.StandIn{},
		Server: "https://" + site.Listen.Agent, ImageURL: "http://" + site.Listen.Boot + "/images", Pin: pin, Public: site.Listen.Public,
	}
	for name, c := range site.Classes {
		out.Classes[name] = convert.Class{
			Name: c.Name, Image: c.Image, Profile: c.Profile, Target: c.Target, Wipe: c.Wipe, Disk: c.Disk, ReadBack: c.ReadBack, MinLinkWidth: c.MinLinkWidth,
			GPUs: c.GPUs, GPUModel: c.GPUModel, Slots: c.Slots, Watts: c.Watts, Boot: pxe.Path(c.Boot), MayFail: c.MayFail,
			Root: c.Root, Start: c.Start,
		}
		if c.ApproveRule {
			out.AutoOK = append(out.AutoOK, name)
		}
	}
	for _, n := range site.Nodes {
		out.Specs = append(out.Specs, n.Spec)
	}
	for node, list := range site.StandsFor {
		for _, s := range list {
			out.StandsFor[node] = append(out.StandsFor[node], convert.StandIn{PCI: s.PCI, Model: s.Model, UUID: s.UUID, VRAM: s.VRAM, Fault: s.Fault})
		}
	}
	if !site.Lab {
		delete(out.Profiles, burnin.ImageProfile)
	}
	for _, w := range site.Curtail {
		out.Curtail = append(out.Curtail, convert.CurtailWindow(w))
	}
	if site.Cluster != nil {
		out.Cluster = site.Cluster.Name
	}
	return out
}

// modes are the words of the site file.
var modes = map[string]pxe.Mode{"authoritative": pxe.Authoritative, "proxy": pxe.Proxy, "relay": pxe.Relay, "observe": pxe.Observe}

// networks are the networks that machines boot on, with the fixed leases of
// the nodes whose address lies in them.
func networks(site *config.Site) []pxe.Network {
	var known []pxe.MAC
	for _, node := range site.Nodes {
		for _, m := range node.MACs {
			known = append(known, pxe.MAC(m))
		}
		if node.BMCMAC != nil {
			known = append(known, pxe.MAC(*node.BMCMAC))
		}
	}
	var out []pxe.Network
	for _, n := range site.Networks {
		var secure netip.AddrPort
		if n.HTTPS {
			secure = netip.MustParseAddrPort(site.Listen.BootTLS) // the site was checked
		}
		w := pxe.Network{
			HTTPS: secure,
			Name:  n.Name, Mode: modes[n.Mode], Interface: n.Interface, Address: n.Address, Subnet: n.Subnet, Relays: n.Relays, Servers: n.Servers,
			Pool: pxe.Range{From: n.Pool.First, To: n.Pool.Last}, Router: n.Router, DNS: n.DNS, RouterAdvertisement: n.RouterAdvertisement, IPv6: n.IPv6,
			Fixed: map[pxe.MAC]netip.Addr{}, Known: known, Rules: pxe.Rules{Allow: matches(site, n.Allow), Deny: matches(site, n.Deny)},
		}
		for _, node := range site.Nodes {
			if node.Address.IsValid() && n.Machines().Contains(node.Address) && len(node.MACs) > 0 {
				w.Fixed[pxe.MAC(node.MACs[0])] = node.Address
			}
		}
		out = append(out, w)
	}
	return out
}

// matches is a rule of the site in the words of DHCP, which knows of no class:
// nil when there is no rule, empty when its classes have no nodes yet.
func matches(site *config.Site, r config.Rule) []pxe.Match {
	if len(r.MACs)+len(r.OUIs)+len(r.Vendors)+len(r.Classes) == 0 {
		return nil
	}
	out := []pxe.Match{}
	for _, m := range r.MACs {
		out = append(out, pxe.Match{MAC: pxe.MAC(m)})
	}
	for _, o := range r.OUIs {
		out = append(out, pxe.Match{OUI: pxe.OUI(o)})
	}
	for _, v := range r.Vendors {
		out = append(out, pxe.Match{Vendor: v})
	}
	for _, n := range site.Nodes {
		if !slices.Contains(r.Classes, n.Class) {
			continue
		}
		for _, m := range n.MACs {
			out = append(out, pxe.Match{MAC: pxe.MAC(m), Name: "class " + n.Class})
		}
	}
	return out
}

// recorder records the consoles of all machines whose controllers have one.
func recorder(site *config.Site, switches map[inventory.NodeID]*power.Verified, log *slog.Logger) (*console.Recorder, error) {
	ports := map[inventory.NodeID]console.Port{}
	for id, v := range switches {
		if v.HasConsole() {
			ports[id] = v
		}
	}
	return console.New(console.Config{Dir: filepath.Join(site.State, "console"), Ports: ports, Log: log})
}

// reveal opens a secret at the moment it is used.
func reveal(secrets *config.Secrets, ref config.SecretRef) func(context.Context) (string, error) {
	if ref == "" {
		return nil
	}
	return func(context.Context) (string, error) {
		s, err := secrets.Get(string(ref))
		if err != nil {
			return "", err
		}
		return string(s.Reveal()), nil
	}
}

// clusterDriver makes the driver of the cluster that nodes join, nil without one.
func clusterDriver(site *config.Site, secrets *config.Secrets) (join.Driver, error) {
	c := site.Cluster
	if c == nil {
		return nil, nil
	}
	if c.Kind != "slurm" {
		return nil, fmt.Errorf("cluster kind %q is not in this release (slurm)", c.Kind)
	}
	key, err := secrets.Get(string(c.MungeKey))
	if err != nil {
		return nil, err
	}
	return slurm.New(slurm.Config{Conf: c.Conf, Server: c.Server, MungeKey: key.Reveal()})
}
