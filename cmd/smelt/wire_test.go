package main

import (
	"fmt"
	"net/netip"
	"testing"

	"smelt/internal/config"
	"smelt/inventory"
	"smelt/pxe"
)

// TestNetworks: what the site says of nodes and classes is said of hardware
// addresses, and a class without nodes allows nobody.
func TestNetworks(t *testing.T) {
	mac := func(i byte) inventory.MAC { return inventory.MAC{2, 0, 0, 0, 0, i} }
	bmc := mac(9)
	node := func(name, class, addr string, macs ...inventory.MAC) config.Node {
		n := config.Node{Spec: inventory.Spec{Name: inventory.NodeID(name), Class: class, MACs: macs}}
		if addr != "" {
			n.Address = netip.MustParseAddr(addr)
		}
		return n
	}
	site := &config.Site{
		Nodes: []config.Node{node("srv-01", "srv", "10.20.1.1", mac(1), mac(2)), node("rig-01", "rig", "10.21.1.1", mac(3)), node("rig-02", "rig", "", mac(4))},
		Networks: []config.Network{
			{Name: "a", Mode: "authoritative", Interface: "eno2", Address: netip.MustParsePrefix("10.20.0.1/16"), Deny: config.Rule{Classes: []string{"rig"}, OUIs: [][3]byte{{2, 0, 0}}}},
			{Name: "b", Mode: "relay", Interface: "eno2", Address: netip.MustParsePrefix("10.20.0.1/16"), Subnet: netip.MustParsePrefix("10.21.0.0/16"), Relays: []netip.Addr{netip.MustParseAddr("10.21.0.1")}},
			{Name: "c", Mode: "proxy", Interface: "eno3", Address: netip.MustParsePrefix("10.30.0.1/16"), Allow: config.Rule{Classes: []string{"none"}}},
			{Name: "d", Mode: "observe", Interface: "eno4", Address: netip.MustParsePrefix("10.40.0.1/16")},
		},
	}
	site.Nodes[0].BMCMAC = &bmc
	got := networks(site)
	for i, mode := range []pxe.Mode{pxe.Authoritative, pxe.Relay, pxe.Proxy, pxe.Observe} {
		if got[i].Mode != mode || len(got[i].Known) != 5 {
			t.Errorf("network %s: mode %v, known %v", got[i].Name, got[i].Mode, got[i].Known)
		}
	}
	if s := fmt.Sprint(got[0].Fixed, got[1].Fixed, len(got[2].Fixed)); s != "map[02:00:00:00:00:01:10.20.1.1] map[02:00:00:00:00:03:10.21.1.1] 0" {
		t.Errorf("fixed addresses %s", s)
	}
	if s := fmt.Sprint(got[0].Rules.Deny); s != "[OUI 02:00:00 MAC 02:00:00:00:00:03 of class rig MAC 02:00:00:00:00:04 of class rig]" {
		t.Errorf("denied %s", s)
	}
	if got[0].Rules.Allow != nil || got[2].Rules.Allow == nil || len(got[2].Rules.Allow) != 0 {
		t.Errorf("allowed %v and %v: want everybody and nobody", got[0].Rules.Allow, got[2].Rules.Allow)
	}
}
