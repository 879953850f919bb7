package pxe

import (
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

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

// captures are what firmware of the lab was seen to send.
func captures(t testing.TB) [][]byte {
	files, err := filepath.Glob(filepath.Join("testdata", "discover", "*.hex"))
	if err != nil || len(files) == 0 {
		t.Fatal("no captures", err)
	}
	var out [][]byte
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		b, err := hex.DecodeString(strings.Join(strings.Fields(string(text)), ""))
		if err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		out = append(out, b)
	}
	return out
}

// FuzzModes: whatever comes to ports 67 and 4011 beside another DHCP server or
// through relays, no address is given that is not ours to give, nothing goes to
// who did not ask, and what is sent can be read.
func FuzzModes(f *testing.F) {
	relayed := []byte{10, 78, 0, 1}
	for _, b := range captures(f) {
		for _, boot := range []bool{false, true} {
			f.Add(b, uint32(0x0a4d003c), boot, boot)
			r := append([]byte(nil), b...)
			copy(r[24:], relayed)
			f.Add(r, uint32(0x0a4e0001), true, boot)
		}
	}
	for _, kind := range []dhcpv4.MessageType{1, 3, 4, 7, 8} {
		for _, o := range []map[uint8][]byte{linux, ipxeROM, pxeUEFI, httpUEFI} {
			f.Add(message{kind: kind, mac: unknown, ciaddr: "10.77.0.60", options: with(o, 43, []byte{71, 4, 0, 1, 0, 0})}.bytes(f), uint32(0x0a4d003c), true, true)
			f.Add(message{kind: kind, mac: known, ciaddr: "10.78.0.11", server: "10.77.0.1", options: o}.bytes(f), uint32(0x0a4e000b), true, false)
			f.Add(message{kind: kind, mac: known, want: "10.78.0.11", giaddr: "10.78.0.1", options: with(o, 82, []byte{1, 1, 'x', 5, 4, 10, 79, 0, 0, 11, 4, 10, 78, 0, 1})}.bytes(f), uint32(0x0a4e0001), true, false)
		}
	}
	s := modesServer(f, tableBooter{"": {Action: Hold, Why: "x"}})
	relays := []netip.Addr{netip.MustParseAddr("10.78.0.1"), netip.MustParseAddr("192.0.2.5")}
	f.Fuzz(func(t *testing.T, data []byte, from uint32, unicast, boot bool) {
		var src [4]byte
		binary.BigEndian.PutUint32(src[:], from)
		p := packet{data: data, src: netip.AddrPortFrom(netip.AddrFrom4(src), clientPort), unicast: unicast || boot, boot: boot}
		s.limits.circuits = newThrottle(circuitRate, 1)
		a, e := decide(s, p, time.Now())
		if e.Answer == "" || e.Why == "" {
			t.Fatalf("a decision without a reason: %+v", e)
		}
		if a == nil {
			return
		}
		wire := a.msg.ToBytes()
		m, err := dhcpv4.FromBytes(wire)
		if err != nil {
			t.Fatalf("answer cannot be read: %v", err)
		}
		to := a.to.addr.Addr()
		switch {
		case a.to.addr == broadcast, slices.Contains(relays, to) && a.to.addr.Port() == serverPort:
		case s.networkOf(to) == nil:
			t.Fatalf("sent to %s, which is none of ours: %s", a.to.addr, m.Summary())
		case boot && to != p.src.Addr():
			t.Fatalf("a boot server answers %s for %s", to, p.src)
		}
		if len(wire) > 1500-headerSize {
			t.Fatalf("an answer of %d bytes", len(wire))
		}
		ip, ok := netip.AddrFromSlice(m.YourIPAddr.To4())
		if n := s.networkOf(ip); ok && !ip.IsUnspecified() && (n == nil || n.Mode != Relay || boot) {
			t.Fatalf("gives %s: %s", ip, m.Summary())
		}
		r, err := parseRequest(data)
		if err != nil {
			t.Fatalf("an answer to what cannot be read: %v", err)
		}
		if MAC(m.ClientHWAddr) != r.machine.MAC || m.TransactionID != r.msg.TransactionID || m.OpCode != dhcpv4.OpcodeBootReply {
			t.Fatalf("answer to somebody else: %v", m)
		}
		if !r.giaddr.IsValid() && m.MessageType() == dhcpv4.MessageTypeNak && a.to.addr == broadcast {
			t.Fatalf("a NAK on a wire whose addresses are not ours: %s", m.Summary())
		}
		if r.client == plain4 && (m.Options.Has(dhcpv4.OptionVendorSpecificInformation) || m.Options.Has(optEtherboot) || m.BootFileName != "") {
			t.Fatalf("boot options for a plain client: %v", m.Summary())
		}
	})
}
