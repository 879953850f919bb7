package pxe

import (
	"net/netip"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// modesServer serves a network of each mode: on eth0 machines whose addresses
// the hall gives and two subnets behind relays, nothing else.
func modesServer(t testing.TB, b Booter, change ...func(*Config)) *Server {
	addr := netip.MustParseAddr
	return testServer(t, b, append([]func(*Config){func(c *Config) {
		row := func(name, subnet, relay string) Network {
			p := netip.MustParsePrefix(subnet)
			router := p.Addr().Next()
			return Network{
				Name: name, Mode: Relay, Interface: "eth0", Address: netip.MustParsePrefix("10.77.0.1/24"), Subnet: p, Relays: []netip.Addr{addr(relay)},
				Pool: Range{addr("10.0.0.0"), addr("10.0.0.0")}, Router: router,
			}
		}
		b, d := row("row-b", "10.78.0.0/24", "10.78.0.1"), row("row-d", "10.79.0.0/25", "10.78.0.1")
		b.Pool = Range{addr("10.78.0.100"), addr("10.78.0.103")}
		b.Fixed = map[MAC]netip.Addr{known: addr("10.78.0.11")}
		d.Pool = Range{addr("10.79.0.100"), addr("10.79.0.103")}
		far := row("row-e", "10.80.0.0/24", "192.0.2.5")
		far.Pool = Range{addr("10.80.0.100"), addr("10.80.0.103")}
		c.Networks = []Network{
			{
				Name: "office", Mode: Proxy, Interface: "eth0", Address: netip.MustParsePrefix("10.77.0.1/24"), Servers: []netip.Addr{addr("10.77.0.2")},
				Rules: Rules{Deny: []Match{{MAC: other, Name: "class asic"}}},
			},
			b, d, far,
			{Name: "uplink", Mode: Observe, Interface: "eth1", Address: netip.MustParsePrefix("10.90.0.1/24")},
		}
	}}, change...)...)
}

// TestModes compares what machines are told beside another DHCP server, and
// behind relays, with testdata/modes.golden.
func TestModes(t *testing.T) {
	const discover, request, inform = dhcpv4.MessageTypeDiscover, dhcpv4.MessageTypeRequest, dhcpv4.MessageTypeInform
	boot := tableBooter{"": {Action: Kernel, Why: "unknown: inspection"}}
	ignore := tableBooter{"": {Action: Ignore, Why: "rejected"}}
	circuit := []byte{1, 3, 'v', 'c', '0', 2, 4, 's', 'w', '1', 0x1b}
	sub := func(extra ...byte) map[uint8][]byte {
		return with(linux, 82, append(circuit[:len(circuit):len(circuit)], extra...))
	}
	item := with(pxeUEFI, 43, []byte{0, 71, 4, 0x80, 1, 0, 0, 255})
	leased := func(t *testing.T, s *Server) {
		if a, e := (message{kind: request, mac: unknown, want: "10.78.0.100", server: "10.77.0.1", giaddr: "10.78.0.1"}).tell(t, s, epoch); a == nil {
			t.Fatal(e.Why)
		}
	}
	goldenDecisions(t, "modes", modesServer, []decisionRow{
		{"proxy: plain client", boot, nil, message{kind: discover, mac: unknown, options: linux}},
		{"proxy: BIOS ROM", boot, nil, message{kind: discover, mac: unknown, options: pxeBIOS}},
		{"proxy: UEFI PXE", boot, nil, message{kind: discover, mac: unknown, broadcast: true, options: pxeUEFI}},
		{"proxy: UEFI HTTP", boot, nil, message{kind: discover, mac: unknown, broadcast: true, options: httpUEFI}},
		{"proxy: iPXE", boot, nil, message{kind: discover, mac: unknown, options: ipxeROM}},
		{"proxy: ignored", ignore, nil, message{kind: discover, mac: unknown, options: pxeUEFI}},
		{"proxy: denied", boot, nil, message{kind: discover, mac: other, options: pxeUEFI}},
		{"proxy: no loader", boot, nil, message{kind: discover, mac: unknown, options: with(pxeUEFI, 93, []byte{0, 6})}},
		{"proxy: REQUEST to the hall's server", boot, nil, message{kind: request, mac: unknown, want: "10.77.0.60", server: "10.77.0.2", options: pxeUEFI}},
		{"proxy: REQUEST that would be refused", boot, nil, message{kind: request, mac: unknown, ciaddr: "192.0.2.1", options: linux}},
		{"proxy: INFORM", boot, nil, message{kind: inform, mac: unknown, ciaddr: "10.77.0.60", options: linux}},
		{"proxy: relayed", boot, nil, message{kind: discover, mac: unknown, giaddr: "10.77.0.9", options: pxeUEFI}},
		{"4011: REQUEST", boot, nil, message{kind: request, mac: unknown, ciaddr: "10.77.0.60", src: "10.77.0.60:68", boot: true, unicast: true, options: pxeUEFI}},
		{"4011: INFORM of a menu's item", boot, nil, message{kind: inform, mac: unknown, ciaddr: "10.77.0.60", src: "10.77.0.60:4011", boot: true, unicast: true, options: item}},
		{"4011: BIOS ROM without ciaddr", boot, nil, message{kind: request, mac: unknown, src: "10.77.0.60:68", boot: true, unicast: true, options: pxeBIOS}},
		{"4011: UEFI HTTP", boot, nil, message{kind: request, mac: unknown, ciaddr: "10.77.0.60", src: "10.77.0.60:68", boot: true, unicast: true, options: httpUEFI}},
		{"4011: DISCOVER", boot, nil, message{kind: discover, mac: unknown, src: "10.77.0.60:68", boot: true, unicast: true, options: pxeUEFI}},
		{"4011: plain client", boot, nil, message{kind: request, mac: unknown, ciaddr: "10.77.0.60", src: "10.77.0.60:68", boot: true, unicast: true, options: linux}},
		{"4011: ciaddr of another", boot, nil, message{kind: request, mac: unknown, ciaddr: "10.77.0.61", src: "10.77.0.60:68", boot: true, unicast: true, options: pxeUEFI}},
		{"4011: stranger", boot, nil, message{kind: request, mac: unknown, src: "192.0.2.9:68", boot: true, unicast: true, options: pxeUEFI}},
		{"4011: behind a relay", boot, leased, message{kind: request, mac: unknown, ciaddr: "10.78.0.100", src: "10.78.0.100:68", boot: true, unicast: true, options: pxeUEFI}},

		{"relay: DISCOVER", boot, nil, message{kind: discover, mac: unknown, giaddr: "10.78.0.1", options: sub()}},
		{"relay: fixed address, UEFI PXE", boot, nil, message{kind: discover, mac: known, giaddr: "10.78.0.1", options: pxeUEFI}},
		{"relay: REQUEST", boot, leased, message{kind: request, mac: unknown, want: "10.78.0.100", server: "10.77.0.1", giaddr: "10.78.0.1", options: sub()}},
		{"relay: not listed", boot, nil, message{kind: discover, mac: unknown, giaddr: "10.78.0.2", options: sub()}},
		{"relay: speaks from elsewhere", boot, nil, message{kind: discover, mac: unknown, giaddr: "192.0.2.5", options: sub()}},
		{"relay: link selection", boot, nil, message{kind: discover, mac: unknown, giaddr: "10.78.0.1", options: sub(5, 4, 10, 79, 0, 0)}},
		{"relay: link selection of a foreign subnet", boot, nil, message{kind: discover, mac: unknown, giaddr: "10.78.0.1", options: sub(5, 4, 10, 80, 0, 0)}},
		{"relay: server identifier override", boot, nil, message{kind: discover, mac: unknown, giaddr: "10.78.0.1", options: sub(11, 4, 10, 78, 0, 1)}},
		{"relay: override chosen", boot, leased, message{kind: request, mac: unknown, want: "10.78.0.100", server: "10.78.0.1", giaddr: "10.78.0.1", options: sub(11, 4, 10, 78, 0, 1)}},
		{"relay: another server chosen", boot, leased, message{kind: request, mac: unknown, want: "10.78.0.100", server: "10.78.0.1", giaddr: "10.78.0.1", options: sub()}},
		{"relay: renewal without it", boot, leased, message{kind: request, mac: unknown, ciaddr: "10.78.0.100", src: "10.78.0.100:68", unicast: true, options: linux}},
		{"relay: renewal without it, refused", boot, leased, message{kind: request, mac: other, ciaddr: "10.78.0.100", src: "10.78.0.100:68", unicast: true, options: linux}},
		{"relay: rebinding", boot, leased, message{kind: request, mac: unknown, ciaddr: "10.78.0.100", giaddr: "10.78.0.1", options: sub()}},
		{"relay: refused", boot, leased, message{kind: request, mac: other, want: "10.78.0.100", giaddr: "10.78.0.1", options: sub()}},
		{"relay: release without it", boot, leased, message{kind: dhcpv4.MessageTypeRelease, mac: unknown, ciaddr: "10.78.0.100", src: "10.78.0.100:68", unicast: true}},
		{"relay: broken option 82", boot, nil, message{kind: discover, mac: unknown, giaddr: "10.78.0.1", options: with(linux, 82, []byte{1, 9, 'x'})}},
	})
}
