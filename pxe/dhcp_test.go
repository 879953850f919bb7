package pxe

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv4"
)

var update = flag.Bool("update", false, "write the golden files anew")

var (
	epoch   = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	known   = MAC{0x52, 0x54, 0, 0, 0, 1} // has a fixed address
	unknown = MAC{0x52, 0x54, 0, 0, 0, 0x99}
	other   = MAC{0x52, 0x54, 0, 0, 0, 0x98}
)

func testConfig(t testing.TB, b Booter) Config {
	files := &Files{}
	for _, name := range []string{LoaderBIOS, LoaderUEFI, "vmlinuz", "initrd"} {
		if err := files.Add(name, []byte("content of "+name)); err != nil {
			t.Fatal(err)
		}
	}
	return Config{
		Networks: []Network{{
			Interface: "eth0", Address: netip.MustParsePrefix("10.77.0.1/24"),
			Pool:      Range{netip.MustParseAddr("10.77.0.100"), netip.MustParseAddr("10.77.0.103")},
			Fixed:     map[MAC]netip.Addr{known: netip.MustParseAddr("10.77.0.11")},
			Router:    netip.MustParseAddr("10.77.0.254"),
			DNS:       []netip.Addr{netip.MustParseAddr("10.77.0.2"), netip.MustParseAddr("10.77.0.3")},
			LeaseTime: time.Hour,
		}},
		Files: files, Booter: b, Log: slog.New(slog.DiscardHandler), Leases: filepath.Join(t.TempDir(), "leases"),
		HTTP: netip.MustParseAddrPort("0.0.0.0:80"),
	}
}

// testServer is a server whose journal works and that has no sockets.
func testServer(t testing.TB, b Booter, change ...func(*Config)) *Server {
	t.Helper()
	c := testConfig(t, b)
	for _, f := range change {
		f(&c)
	}
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	j, err := openJournal(c.Leases)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range s.networks {
		n.leases.journal = j
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() { _ = j.run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-j.done
	})
	return s
}

// message is a DHCP message as a client writes it.
type message struct {
	kind      dhcpv4.MessageType
	mac       MAC
	broadcast bool
	unicast   bool
	ciaddr    string
	giaddr    string
	want      string
	server    string
	src       string // where it comes from, when that matters
	boot      bool   // to port 4011
	options   map[uint8][]byte
}

func (m message) bytes(t testing.TB) []byte {
	p, err := dhcpv4.New(dhcpv4.WithHwAddr(m.mac[:]), dhcpv4.WithTransactionID(dhcpv4.TransactionID{1, 2, 3, 4}))
	if err != nil {
		t.Fatal(err)
	}
	if m.kind != 0 {
		p.UpdateOption(dhcpv4.OptMessageType(m.kind))
	}
	p.ClientHWAddr = m.mac[:]
	if m.broadcast {
		p.SetBroadcast()
	}
	if m.ciaddr != "" {
		p.ClientIPAddr = net.ParseIP(m.ciaddr).To4()
	}
	if m.giaddr != "" {
		p.GatewayIPAddr = net.ParseIP(m.giaddr).To4()
	}
	if m.want != "" {
		p.UpdateOption(dhcpv4.OptRequestedIPAddress(net.ParseIP(m.want)))
	}
	if m.server != "" {
		p.UpdateOption(dhcpv4.OptServerIdentifier(net.ParseIP(m.server)))
	}
	for code, v := range m.options {
		p.Options[code] = v
	}
	return p.ToBytes()
}

// tell gives the message to the server at a moment.
func (m message) tell(t testing.TB, s *Server, now time.Time) (*answer, Event) {
	t.Helper()
	p := packet{data: m.bytes(t), unicast: m.unicast, boot: m.boot}
	if m.src != "" {
		p.src = netip.MustParseAddrPort(m.src)
	}
	return decide(s, p, now)
}

// decide gives a datagram to the first interface of the server.
func decide(s *Server, p packet, now time.Time) (*answer, Event) {
	a, e, err := s.segments[0].decide(context.Background(), p, now)
	if err != nil {
		return nil, Event{Answer: "dropped", Why: err.Error()}
	}
	return a.settle(e)
}

var guid = append([]byte{0}, 0x44, 0x33, 0x22, 0x11, 0x66, 0x55, 0x88, 0x77, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff, 0x00)

// What the clients of the lab were seen to send.
var (
	ipxeROM = map[uint8][]byte{
		60: []byte("PXEClient:Arch:00000:UNDI:002001"), 77: []byte("iPXE"), 93: {0, 0}, 94: {1, 2, 1}, 97: guid, 57: {0x05, 0xc0},
		175: {0xb1, 5, 1, 0x1a, 0xf4, 0x10, 0},
	}
	ipxeRFC3004 = map[uint8][]byte{60: []byte("PXEClient:Arch:00007:UNDI:003010"), 77: append([]byte{4}, "iPXE"...), 93: {0, 7}, 97: guid}
	pxeBIOS     = map[uint8][]byte{60: []byte("PXEClient:Arch:00000:UNDI:002001"), 93: {0, 0}, 94: {1, 2, 1}, 97: guid, 57: {0x04, 0xec}}
	pxeUEFI     = map[uint8][]byte{60: []byte("PXEClient:Arch:00007:UNDI:003000"), 93: {0, 7}, 94: {1, 3, 0}, 97: guid, 57: {0x05, 0xc0}}
	pxeUEFI9    = map[uint8][]byte{60: []byte("PXEClient:Arch:00009:UNDI:003000"), 93: {0, 9}, 97: guid}
	httpUEFI    = map[uint8][]byte{60: []byte("HTTPClient:Arch:00016:UNDI:003000"), 93: {0, 16}, 94: {1, 3, 0}, 97: guid, 57: {0xff, 0}}
	linux       = map[uint8][]byte{12: []byte("rig\x1b[2J\nnode"), 55: {1, 3, 6, 43, 175}, 61: {0xff, 1, 2, 3}}
)

func with(base map[uint8][]byte, code uint8, v []byte) map[uint8][]byte {
	m := map[uint8][]byte{code: v}
	for k, b := range base {
		if k != code {
			m[k] = b
		}
	}
	return m
}

// TestDecisions compares what every kind of client is told with a table that
// people read: testdata/decisions.golden.
func TestDecisions(t *testing.T) {
	const discover, request = dhcpv4.MessageTypeDiscover, dhcpv4.MessageTypeRequest
	hold := tableBooter{"": {Action: Kernel, Why: "unknown: inspection"}}
	ignore := tableBooter{"": {Action: Ignore, Why: "rejected"}}
	failing := tableBooter{}
	leased := func(t *testing.T, s *Server) { // unknown holds 10.77.0.100
		if a, e := (message{kind: request, mac: unknown, want: "10.77.0.100", server: "10.77.0.1"}).tell(t, s, epoch); a == nil {
			t.Fatal(e.Why)
		}
	}
	goldenDecisions(t, "decisions", testServer, []decisionRow{
		{"plain client, unknown", hold, nil, message{kind: discover, mac: unknown, options: linux}},
		{"plain client, fixed address", hold, nil, message{kind: discover, mac: known, options: linux}},
		{"plain client although ignored", ignore, nil, message{kind: discover, mac: unknown, options: linux}},
		{"plain client names a free address", hold, nil, message{kind: discover, mac: unknown, want: "10.77.0.102"}},
		{"plain client names a taken address", hold, leased, message{kind: discover, mac: other, want: "10.77.0.100"}},
		{"iPXE ROM on BIOS", hold, nil, message{kind: discover, mac: unknown, options: ipxeROM}},
		{"undionly.kpxe (broadcast, no arch)", hold, nil, message{kind: discover, mac: unknown, broadcast: true, options: map[uint8][]byte{60: []byte("PXEClient"), 77: []byte("iPXE")}}},
		{"iPXE on UEFI, RFC 3004 user class", hold, nil, message{kind: discover, mac: known, options: ipxeRFC3004}},
		{"iPXE, ignored", ignore, nil, message{kind: discover, mac: unknown, options: ipxeROM}},
		{"iPXE, undecided", failing, nil, message{kind: discover, mac: unknown, options: ipxeROM}},
		{"PXE ROM on BIOS", hold, nil, message{kind: discover, mac: unknown, options: pxeBIOS}},
		{"PXE ROM without option 93", hold, nil, message{kind: discover, mac: unknown, options: map[uint8][]byte{60: []byte("PXEClient:Arch:00007:UNDI:003000")}}},
		{"UEFI PXE", hold, nil, message{kind: discover, mac: unknown, broadcast: true, options: pxeUEFI}},
		{"UEFI PXE, request", hold, nil, message{kind: request, mac: unknown, broadcast: true, want: "10.77.0.100", server: "10.77.0.1", options: with(pxeUEFI, 57, []byte{0xff, 0})}},
		{"UEFI PXE, arch 9", hold, nil, message{kind: discover, mac: unknown, options: pxeUEFI9}},
		{"UEFI PXE, list of archs", hold, nil, message{kind: discover, mac: unknown, options: with(pxeUEFI, 93, []byte{0, 99, 0, 7})}},
		{"UEFI PXE, ignored", ignore, nil, message{kind: request, mac: unknown, want: "10.77.0.100", server: "10.77.0.1", options: pxeUEFI}},
		{"UEFI PXE 32 bit", hold, nil, message{kind: discover, mac: unknown, options: with(pxeUEFI, 93, []byte{0, 6})}},
		{"UEFI PXE arm64, no loader", hold, nil, message{kind: discover, mac: unknown, options: with(pxeUEFI, 93, []byte{0, 11})}},
		{"UEFI HTTP", hold, nil, message{kind: discover, mac: unknown, broadcast: true, options: httpUEFI}},
		{"UEFI HTTP with a PXE arch", hold, nil, message{kind: discover, mac: unknown, options: with(httpUEFI, 93, []byte{0, 7})}},
		{"UEFI HTTP, ignored", ignore, nil, message{kind: discover, mac: unknown, options: httpUEFI}},

		{"SELECTING another server", hold, nil, message{kind: request, mac: unknown, want: "10.77.0.100", server: "10.77.0.9"}},
		{"SELECTING us, forgotten offer", hold, nil, message{kind: request, mac: unknown, want: "10.77.0.101", server: "10.77.0.1"}},
		{"SELECTING us, address of another", hold, leased, message{kind: request, mac: other, want: "10.77.0.100", server: "10.77.0.1"}},
		{"SELECTING us, not its fixed address", hold, nil, message{kind: request, mac: known, want: "10.77.0.100", server: "10.77.0.1"}},
		{"SELECTING us, fixed address of another", hold, nil, message{kind: request, mac: unknown, want: "10.77.0.11", server: "10.77.0.1"}},
		{"SELECTING us, no address", hold, nil, message{kind: request, mac: unknown, server: "10.77.0.1"}},
		{"INIT-REBOOT, its address", hold, leased, message{kind: request, mac: unknown, want: "10.77.0.100"}},
		{"INIT-REBOOT, wrong net", hold, nil, message{kind: request, mac: unknown, want: "192.168.1.5"}},
		{"INIT-REBOOT, other address than ours", hold, leased, message{kind: request, mac: unknown, want: "10.77.0.102"}},
		{"INIT-REBOOT, nothing known", hold, nil, message{kind: request, mac: unknown, want: "10.77.0.100"}},
		{"INIT-REBOOT, taken by another", hold, leased, message{kind: request, mac: other, want: "10.77.0.100"}},
		{"RENEWING, its address", hold, leased, message{kind: request, mac: unknown, ciaddr: "10.77.0.100", unicast: true}},
		{"RENEWING, fixed address", hold, nil, message{kind: request, mac: known, ciaddr: "10.77.0.11", unicast: true}},
		{"RENEWING, nothing known", hold, nil, message{kind: request, mac: unknown, ciaddr: "10.77.0.50", unicast: true}},
		{"RENEWING, moved to a fixed address", hold, nil, message{kind: request, mac: known, ciaddr: "10.77.0.100", unicast: true}},
		{"REBINDING, lease of another server", hold, nil, message{kind: request, mac: unknown, ciaddr: "10.77.0.50"}},
		{"REBINDING, our pool, nothing known", hold, nil, message{kind: request, mac: unknown, ciaddr: "10.77.0.102"}},
		{"REBINDING, wrong net", hold, nil, message{kind: request, mac: unknown, ciaddr: "192.168.1.5"}},
		{"RENEWING through a relay, refused", hold, nil, message{kind: request, mac: unknown, ciaddr: "10.77.0.102", giaddr: "10.77.0.9"}},
		{"relayed, our net", hold, nil, message{kind: discover, mac: unknown, giaddr: "10.77.0.9", options: with(linux, 82, []byte{1, 3, 'v', 'c', '0'})}},
		{"relayed, foreign net", hold, nil, message{kind: discover, mac: unknown, giaddr: "10.99.0.9"}},
		{"option 82 without a relay", hold, nil, message{kind: discover, mac: unknown, options: with(linux, 82, []byte{1, 3, 'v', 'c', '0'})}},
		{"DECLINE, its address", hold, leased, message{kind: dhcpv4.MessageTypeDecline, mac: unknown, want: "10.77.0.100", server: "10.77.0.1"}},
		{"DECLINE, address of another", hold, leased, message{kind: dhcpv4.MessageTypeDecline, mac: other, want: "10.77.0.100", server: "10.77.0.1"}},
		{"RELEASE, its address", hold, leased, message{kind: dhcpv4.MessageTypeRelease, mac: unknown, ciaddr: "10.77.0.100", server: "10.77.0.1"}},
		{"RELEASE, address of another", hold, leased, message{kind: dhcpv4.MessageTypeRelease, mac: other, ciaddr: "10.77.0.100", server: "10.77.0.1"}},
		{"INFORM", hold, nil, message{kind: dhcpv4.MessageTypeInform, mac: unknown, ciaddr: "10.77.0.60", options: linux}},
		{"INFORM from elsewhere", hold, nil, message{kind: dhcpv4.MessageTypeInform, mac: unknown, ciaddr: "192.0.2.1"}},
		{"an OFFER to a server", hold, nil, message{kind: dhcpv4.MessageTypeOffer, mac: unknown}},
		{"no message type", hold, nil, message{mac: unknown}},
		{"a multicast MAC", hold, nil, message{kind: discover, mac: MAC{1, 0, 0x5e, 0, 0, 1}}},
	})
}

// decisionRow is one message, and who decides on it.
type decisionRow struct {
	name   string
	booter Booter
	before func(*testing.T, *Server)
	m      message
}

func goldenDecisions(t *testing.T, name string, server func(testing.TB, Booter, ...func(*Config)) *Server, rows []decisionRow) {
	t.Helper()
	var b strings.Builder
	for _, row := range rows {
		s := server(t, row.booter)
		if row.before != nil {
			row.before(t, s)
		}
		a, e := row.m.tell(t, s, epoch.Add(time.Minute))
		fmt.Fprintf(&b, "%s\n\t%s: %s\n", row.name, e.Answer, e.Why)
		if a == nil {
			continue
		}
		// What a client reads from the wire, not what we meant to write.
		wire := a.msg.ToBytes()
		if len(wire) != length(a.msg) {
			t.Errorf("%s: %d bytes, thought to be %d", row.name, len(wire), length(a.msg))
		}
		if len(wire) < 300 {
			t.Errorf("%s: %d bytes: BOOTP asks for 300", row.name, len(wire))
		}
		m, err := dhcpv4.FromBytes(wire)
		if err != nil {
			t.Errorf("%s: the answer cannot be read: %v", row.name, err)
			continue
		}
		if m.TransactionID != (dhcpv4.TransactionID{1, 2, 3, 4}) || m.ClientHWAddr.String() != row.m.mac.String() {
			t.Errorf("%s: answer for %s %s", row.name, m.TransactionID, m.ClientHWAddr)
		}
		to := "to " + a.to.addr.String()
		if a.to.mac != (MAC{}) {
			to += " at " + a.to.mac.String()
		}
		fmt.Fprintf(&b, "\t%s: yiaddr %s ciaddr %s siaddr %s giaddr %s broadcast %v file %q\n",
			to, m.YourIPAddr, m.ClientIPAddr, m.ServerIPAddr, m.GatewayIPAddr, m.IsBroadcast(), m.BootFileName)
		codes := make([]int, 0, len(m.Options))
		for c := range m.Options {
			codes = append(codes, int(c))
		}
		sort.Ints(codes)
		for _, c := range codes {
			v := m.Options[uint8(c)]
			text := fmt.Sprintf("%x", v)
			switch c {
			case 1, 3, 6, 54:
				text = fmt.Sprint([]byte(v))
			case 56, 60, 66, 67:
				text = fmt.Sprintf("%q", v)
			}
			fmt.Fprintf(&b, "\t\t%d = %s\n", c, text)
		}
	}
	golden := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(b.String(), "\n")); diff != "" {
		t.Errorf("decisions differ from %s (look, then run with -update):\n%s", golden, diff)
	}
}

// TestMaxMessageSize: option 57 bounds the answer, and what every machine
// needs is never what gives way.
func TestMaxMessageSize(t *testing.T) {
	s := testServer(t, tableBooter{"": {Action: Hold}})
	options := with(pxeUEFI, 57, []byte{2, 64}) // 576, the least there is
	options[61] = make([]byte, 200)
	a, _ := message{kind: dhcpv4.MessageTypeDiscover, mac: unknown, options: options}.tell(t, s, epoch)
	if n := len(a.msg.ToBytes()); n > 576-28 {
		t.Errorf("answer of %d bytes to a client that takes %d", n, 576-28)
	}
	for _, o := range []dhcpv4.GenericOptionCode{1, 3, 51, 53, 54, 60, 43, 67} {
		if !a.msg.Options.Has(o) {
			t.Errorf("option %d gave way", o)
		}
	}
}

// TestOverload: options 60 and 93 stand in the field file (RFC 2131 section 4.1).
func TestOverload(t *testing.T) {
	s := testServer(t, tableBooter{"": {Action: Hold, Why: "x"}})
	data := message{kind: dhcpv4.MessageTypeDiscover, mac: unknown, options: map[uint8][]byte{52: {1}}}.bytes(t)
	copy(data[108:], append(append([]byte{60, 9}, "PXEClient"...), 93, 2, 0, 7, 255))
	a, e := decide(s, packet{data: data}, epoch)
	if a == nil || a.msg.BootFileName != LoaderUEFI {
		t.Errorf("overloaded options were not read: %+v", e)
	}
}

// TestDeclined: a declined address is not given out again before its time, and
// a machine with a fixed address that is taken gets one of the pool meanwhile.
func TestDeclined(t *testing.T) {
	s := testServer(t, tableBooter{})
	for _, mac := range []MAC{unknown, known} {
		a, _ := message{kind: dhcpv4.MessageTypeDiscover, mac: mac}.tell(t, s, epoch)
		first := a.msg.YourIPAddr.String()
		m := message{kind: dhcpv4.MessageTypeRequest, mac: mac, want: first, server: "10.77.0.1"}
		if a, e := m.tell(t, s, epoch); a == nil {
			t.Fatal(e)
		}
		m.kind = dhcpv4.MessageTypeDecline
		m.tell(t, s, epoch)
		a, e := message{kind: dhcpv4.MessageTypeDiscover, mac: mac}.tell(t, s, epoch.Add(time.Minute))
		if a == nil || a.msg.YourIPAddr.String() == first {
			t.Errorf("%s was offered again right after a decline (%v)", first, e)
		}
	}
	if a, _ := (message{kind: dhcpv4.MessageTypeDiscover, mac: known}).tell(t, s, epoch.Add(quarantine+time.Minute)); a.msg.YourIPAddr.String() != "10.77.0.11" {
		t.Errorf("after the quarantine the machine got %s, not its fixed address", a.msg.YourIPAddr)
	}
}

// TestPool: every address is used before one is used again, a full pool
// refuses, the one free for longest comes first, and a machine that comes back
// gets what it had.
func TestPool(t *testing.T) {
	s := testServer(t, tableBooter{})
	mac := func(i int) MAC { return MAC{2, 0, 0, 0, 1, byte(i)} }
	take := func(i int, now time.Time) string {
		a, _ := message{kind: dhcpv4.MessageTypeDiscover, mac: mac(i)}.tell(t, s, now)
		if a == nil {
			return ""
		}
		ip := a.msg.YourIPAddr.String()
		a, e := message{kind: dhcpv4.MessageTypeRequest, mac: mac(i), want: ip, server: "10.77.0.1"}.tell(t, s, now)
		if a == nil || a.msg.MessageType() != dhcpv4.MessageTypeAck {
			t.Fatalf("machine %d: %v", i, e)
		}
		return ip
	}
	seen := make(map[string]bool)
	for i := range 4 {
		seen[take(i, epoch.Add(time.Duration(i)*time.Minute))] = true
	}
	if len(seen) != 4 {
		t.Fatalf("4 machines got %v", seen)
	}
	now := epoch.Add(10 * time.Minute)
	if got := take(4, now); got != "" {
		t.Errorf("a fifth machine got %s from a pool of 4", got)
	}
	if a := s.networks[0].leases.lookup(known, now); a.String() != "10.77.0.11" {
		t.Errorf("with the pool exhausted the known machine has %s", a)
	}
	back := take(1, now) // renews 1
	now = epoch.Add(65 * time.Minute)
	if got := take(4, now); got != "10.77.0.100" {
		t.Errorf("got %s, want 10.77.0.100, which has been free for longest", got)
	}
	if got := take(1, now.Add(3*time.Hour)); got != back {
		t.Errorf("a machine came back to %s, it had %s", got, back)
	}
}

// TestBooterSlow: a Booter that hangs or panics costs a moment, not the lease.
func TestBooterSlow(t *testing.T) {
	s := testServer(t, booterFunc(func(ctx context.Context, m Machine) (Boot, error) {
		if m.MAC == known {
			panic("broken")
		}
		<-ctx.Done()
		return Boot{}, ctx.Err()
	}))
	for _, mac := range []MAC{unknown, known} {
		start := time.Now()
		a, e := message{kind: dhcpv4.MessageTypeDiscover, mac: mac, options: ipxeROM}.tell(t, s, epoch)
		if a == nil || !strings.HasPrefix(a.msg.BootFileNameOption(), "http://10.77.0.1/boot/script?mac="+mac.String()) {
			t.Errorf("got %+v", e)
		}
		if d := time.Since(start); d > 3*time.Second {
			t.Errorf("answered after %s", d)
		}
	}
}

type booterFunc func(context.Context, Machine) (Boot, error)

func (f booterFunc) Boot(ctx context.Context, m Machine) (Boot, error) { return f(ctx, m) }

func TestNewRefuses(t *testing.T) {
	addr := netip.MustParseAddr
	for _, c := range []struct {
		want   string
		change func(*Config)
	}{
		{"no network", func(c *Config) { c.Networks = nil }},
		{"journal", func(c *Config) { c.Leases = "" }},
		{"boot HTTP", func(c *Config) { c.HTTP = netip.AddrPort{} }},
		{"Booter", func(c *Config) { c.Booter = nil }},
		{"pool end 10.78.0.3 is not in 10.77.0.0/24", func(c *Config) { c.Networks[0].Pool.To = addr("10.78.0.3") }},
		{"ends before it starts", func(c *Config) { c.Networks[0].Pool = Range{addr("10.77.0.9"), addr("10.77.0.8")} }},
		{"holds our own address", func(c *Config) { c.Networks[0].Pool.From = addr("10.77.0.1") }},
		{"holds the router", func(c *Config) { c.Networks[0].Router = addr("10.77.0.101") }},
		{"router 10.1.0.1 is not in", func(c *Config) { c.Networks[0].Router = addr("10.1.0.1") }},
		{"holds the DNS", func(c *Config) { c.Networks[0].DNS[0] = addr("10.77.0.101") }},
		{"lies in the pool", func(c *Config) { c.Networks[0].Fixed[known] = addr("10.77.0.101") }},
		{"is given to", func(c *Config) { c.Networks[0].Fixed[unknown] = addr("10.77.0.11") }},
		{"is our own, the router's or a relay's", func(c *Config) { c.Networks[0].Fixed[known] = addr("10.77.0.1") }},
		{"broadcast address", func(c *Config) { c.Networks[0].Fixed[known] = addr("10.77.0.255") }},
		{"is not in", func(c *Config) { c.Networks[0].Fixed[known] = addr("fe80::1") }},
		{"want our IPv4 address", func(c *Config) { c.Networks[0].Address = netip.MustParsePrefix("fd00::1/64") }},
		{"lease time", func(c *Config) { c.Networks[0].LeaseTime = time.Second }},
		{"two networks", func(c *Config) { c.Networks = append(c.Networks, c.Networks[0]) }},
		{"overlaps", func(c *Config) {
			n := c.Networks[0]
			n.Interface = "eth1"
			c.Networks = append(c.Networks, n)
		}},
	} {
		config := testConfig(t, tableBooter{})
		c.change(&config)
		if _, err := New(config); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got error %v, want one that says %q", err, c.want)
		}
	}
}

// FuzzDHCP: whatever comes to port 67, the server answers or does not, and
// what it answers can be read and is addressed to the one who asked.
func FuzzDHCP(f *testing.F) {
	for _, o := range []map[uint8][]byte{linux, ipxeROM, ipxeRFC3004, pxeBIOS, pxeUEFI, httpUEFI} {
		f.Add(message{kind: dhcpv4.MessageTypeDiscover, mac: unknown, options: o}.bytes(f), false)
		f.Add(message{kind: dhcpv4.MessageTypeRequest, mac: known, want: "10.77.0.11", options: with(o, 52, []byte{3})}.bytes(f), true)
	}
	for _, b := range captures(f) {
		f.Add(b, false)
	}
	f.Add(message{kind: dhcpv4.MessageTypeDecline, mac: unknown, want: "10.77.0.100", giaddr: "10.77.0.9", options: map[uint8][]byte{82: {1, 200, 3}}}.bytes(f), false)
	s := testServer(f, tableBooter{"": {Action: Hold}})
	f.Fuzz(func(t *testing.T, data []byte, unicast bool) {
		r, err := parseRequest(data)
		if err != nil {
			return
		}
		a, e := decide(s, packet{data: data, unicast: unicast}, time.Now())
		if e.Answer == "" || e.Why == "" {
			t.Fatalf("a decision without a reason: %+v", e)
		}
		if a == nil {
			return
		}
		m, err := dhcpv4.FromBytes(a.msg.ToBytes())
		if err != nil {
			t.Fatalf("answer cannot be read: %v", err)
		}
		if MAC(m.ClientHWAddr) != r.machine.MAC || m.TransactionID != r.msg.TransactionID || m.OpCode != dhcpv4.OpcodeBootReply {
			t.Fatalf("answer to somebody else: %v", m)
		}
		if r.client == plain4 && (m.Options.Has(dhcpv4.GenericOptionCode(43)) || m.Options.Has(dhcpv4.GenericOptionCode(175)) || m.BootFileName != "") {
			t.Fatalf("boot options for a plain client: %v", m.Summary())
		}
		if ip, ok := netip.AddrFromSlice(m.YourIPAddr.To4()); m.MessageType() != dhcpv4.MessageTypeNak && m.MessageType() != dhcpv4.MessageTypeAck && (!ok || !s.networks[0].leases.subnet.Contains(ip)) {
			t.Fatalf("address %v is not of this network", m.YourIPAddr)
		}
	})
}
