package pxe

import (
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
)

// ourDUID is the server that the requests of testdata/dhcp6 name.
var ourDUID = &dhcpv6.DUIDUUID{UUID: [16]byte{0x3d, 0x8f, 0x3e, 0xb8, 0xaa, 0x09, 0x4b, 0x57, 0x9d, 0x24, 0xcc, 0x11, 0x8c, 0xda, 0x65, 0x0d}}

// fromKnown is the link-local address of the machine known; fromRandom says nothing.
var (
	fromKnown  = netip.MustParseAddr("fe80::5054:ff:fe00:1")
	fromRandom = netip.MustParseAddr("fe80::1234:5678:9abc:def0")
)

func testDHCP6(t testing.TB, b Booter, change func(*Network)) *dhcp6 {
	c := testConfig(t, b)
	c.Networks[0].IPv6 = netip.MustParsePrefix("fd00:77::1/64")
	if change != nil {
		change(&c.Networks[0])
	}
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return newDHCP6(s, s.networks[0].v6, ourDUID)
}

// captured6 is a message as it was on the wire: the files testdata/dhcp6/*.hex
// are of a QEMU machine with Debian's OVMF that boots by HTTP, then snponly.efi.
func captured6(t testing.TB, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "dhcp6", name+".hex"))
	if err != nil {
		t.Fatal(err)
	}
	data, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// tell gives a message to the server.
func (d *dhcp6) tell(t testing.TB, data []byte, from netip.Addr) (*dhcpv6.Message, Event) {
	t.Helper()
	r, err := parseRequest6(data, from)
	if err != nil {
		t.Fatal(err)
	}
	m, e := d.respond(context.Background(), r, epoch)
	if m == nil {
		return nil, e
	}
	again, err := dhcpv6.MessageFromBytes(m.ToBytes())
	if err != nil {
		t.Fatalf("the answer cannot be read: %v", err)
	}
	return again, e
}

// message6 is a message as a client writes it.
func message6(kind dhcpv6.MessageType, options ...dhcpv6.Option) []byte {
	m := &dhcpv6.Message{MessageType: kind, TransactionID: dhcpv6.TransactionID{1, 2, 3}}
	for _, o := range options {
		m.AddOption(o)
	}
	return m.ToBytes()
}

func client6(hw string) dhcpv6.Option {
	mac, _ := net.ParseMAC(hw)
	return dhcpv6.OptClientID(&dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: mac})
}

func ia6(id byte, addrs ...string) *dhcpv6.OptIANA {
	ia := &dhcpv6.OptIANA{IaId: [4]byte{id}}
	for _, a := range addrs {
		ia.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: net.ParseIP(a)})
	}
	return ia
}

// leased6 is the one address that m gives.
func leased6(t testing.TB, m *dhcpv6.Message) netip.Addr {
	t.Helper()
	if m == nil || m.Options.OneIANA() == nil || len(addresses(m.Options.OneIANA())) == 0 {
		t.Fatalf("no address in %v", m)
	}
	return addresses(m.Options.OneIANA())[0]
}

// TestFirmware6 answers what firmware and iPXE really send.
func TestFirmware6(t *testing.T) {
	d := testDHCP6(t, tableBooter{"": {Action: Kernel, Kernel: "vmlinuz", Why: "a test"}}, nil)
	for _, c := range []struct {
		capture string
		kind    dhcpv6.MessageType
		url     string
		vendor  string // class that HTTP boot wants back
		why     string
	}{
		{"ovmf-own-solicit", dhcpv6.MessageTypeAdvertise, "", "", "plain lease"},
		{"ovmf-own-request", dhcpv6.MessageTypeReply, "", "", "plain lease"},
		{"ovmf-http-solicit", dhcpv6.MessageTypeAdvertise, "http://[fd00:77::1]/boot/file/snponly.efi", "HTTPClient", "snponly.efi by HTTP (not served: smelt.efi, shimx64.efi) over IPv6; kernel: a test"},
		{"ovmf-http-request", dhcpv6.MessageTypeReply, "http://[fd00:77::1]/boot/file/snponly.efi", "HTTPClient", "snponly.efi by HTTP (not served: smelt.efi, shimx64.efi) over IPv6; kernel: a test"},
		{"ovmf-release", dhcpv6.MessageTypeReply, "", "", "gave back"},
		{"ipxe-solicit", dhcpv6.MessageTypeAdvertise, "http://[fd00:77::1]/boot/script?mac=52:54:00:00:00:01&arch=7&uuid=${uuid}&serial=${serial:uristring}", "", "script; kernel: a test"},
		{"ipxe-request", dhcpv6.MessageTypeReply, "http://[fd00:77::1]/boot/script?mac=52:54:00:00:00:01&arch=7&uuid=${uuid}&serial=${serial:uristring}", "", "script; kernel: a test"},
	} {
		data := captured6(t, c.capture)
		m, e := d.tell(t, data, fromKnown)
		if m == nil || m.MessageType != c.kind || string(m.TransactionID[:]) != string(data[1:4]) || !m.Options.ServerID().Equal(ourDUID) {
			t.Errorf("%s: answered %v (%s)", c.capture, m, e.Why)
			continue
		}
		if got := m.Options.BootFileURL(); got != c.url {
			t.Errorf("%s: boots from %q, want %q", c.capture, got, c.url)
		}
		if got := m.Options.VendorClass(enterpriseIntel); len(got) > 0 != (c.vendor != "") || len(got) > 0 && string(got[0]) != c.vendor {
			t.Errorf("%s: vendor class %q, want %q", c.capture, got, c.vendor)
		}
		if e.Machine.MAC != known || !strings.HasPrefix(e.Why, c.why) || e.Machine.UUID != "" && e.Machine.UUID != guestUUID {
			t.Errorf("%s: decided on %+v: %s", c.capture, e.Machine, e.Why)
		}
	}
	if _, e := d.tell(t, captured6(t, "ovmf-http-solicit"), fromRandom); e.Why != "plain lease: no MAC is known" || e.Machine.Stage != 0 {
		t.Errorf("a machine that nobody can know was told: %s", e.Why)
	}
	if mac, ok := d.s.holder(leased6(t, first(d.tell(t, captured6(t, "ipxe-request"), fromKnown))), epoch); !ok || mac != known {
		t.Errorf("the address belongs to %v, %v", mac, ok)
	}
}

func first(m *dhcpv6.Message, _ Event) *dhcpv6.Message { return m }

// TestFirmware6TFTP: firmware that boots by PXE gets the file by TFTP.
func TestFirmware6TFTP(t *testing.T) {
	d := testDHCP6(t, tableBooter{"": {Action: Kernel, Kernel: "vmlinuz", Why: "a test"}}, nil)
	m, e := d.tell(t, message6(dhcpv6.MessageTypeSolicit, client6(known.String()), ia6(1), dhcpv6.OptClientArchType(iana.EFI_X86_64),
		&dhcpv6.OptVendorClass{EnterpriseNumber: enterpriseIntel, Data: [][]byte{[]byte("PXEClient:Arch:00007:UNDI:003000")}}), fromRandom)
	if got := m.Options.BootFileURL(); got != "tftp://[fd00:77::1]/snponly.efi" || e.Machine.MAC != known || e.Machine.Arch != UEFIx64 {
		t.Errorf("told %q: %+v", got, e)
	}
}

// TestMessages6 is RFC 8415 section 18.3, message by message.
func TestMessages6(t *testing.T) {
	us, them := dhcpv6.OptServerID(ourDUID), dhcpv6.OptServerID(&dhcpv6.DUIDUUID{UUID: [16]byte{1}})
	id := client6(unknown.String())
	d := testDHCP6(t, tableBooter{}, nil)
	m, _ := d.tell(t, message6(dhcpv6.MessageTypeSolicit, id, ia6(1)), fromRandom)
	own := leased6(t, m)
	if !d.n.IPv6.Contains(own) || own == d.n.id || own.As16()[8]>>6 != 1 || m.Options.Preference() != 255 {
		t.Errorf("advertised %s: %v", own, m)
	}
	for _, c := range []struct {
		name   string
		kind   dhcpv6.MessageType
		with   []dhcpv6.Option
		answer string // of the event
		check  func(*dhcpv6.Message) string
	}{
		{"request", dhcpv6.MessageTypeRequest, []dhcpv6.Option{id, us, ia6(1, "fd00:77::5")}, "reply " + own.String(), func(m *dhcpv6.Message) string {
			ia := m.Options.OneIANA()
			return fmt.Sprint(addresses(ia), ia.T1, ia.T2, ia.Options.OneAddress().ValidLifetime) + want("["+own.String()+"] 30m0s 48m0s 1h0m0s")
		}},
		{"request to another server", dhcpv6.MessageTypeRequest, []dhcpv6.Option{id, them, ia6(1)}, "none", nil},
		{"request to nobody", dhcpv6.MessageTypeRequest, []dhcpv6.Option{id, ia6(1)}, "none", nil},
		{"solicit to somebody", dhcpv6.MessageTypeSolicit, []dhcpv6.Option{id, us, ia6(1)}, "none", nil},
		{"renew", dhcpv6.MessageTypeRenew, []dhcpv6.Option{id, us, ia6(1, own.String())}, "reply " + own.String(), func(m *dhcpv6.Message) string {
			return fmt.Sprint(addresses(m.Options.OneIANA())) + want("["+own.String()+"]")
		}},
		{"rebind an address of another network", dhcpv6.MessageTypeRebind, []dhcpv6.Option{id, ia6(1, "fd00:66::5")}, "reply " + own.String(), func(m *dhcpv6.Message) string {
			all := m.Options.OneIANA().Options.Addresses()
			return fmt.Sprint(all[0].IPv6Addr, all[1].IPv6Addr, all[1].ValidLifetime) + want(own.String()+" fd00:66::5 0s")
		}},
		{"rebind to somebody", dhcpv6.MessageTypeRebind, []dhcpv6.Option{id, us, ia6(1, own.String())}, "none", nil},
		{"confirm", dhcpv6.MessageTypeConfirm, []dhcpv6.Option{id, ia6(1, own.String())}, "reply", func(m *dhcpv6.Message) string {
			return m.Options.Status().StatusCode.String() + want("Success")
		}},
		{"confirm elsewhere", dhcpv6.MessageTypeConfirm, []dhcpv6.Option{id, ia6(1, own.String()), ia6(2, "fd00:66::5")}, "reply", func(m *dhcpv6.Message) string {
			return m.Options.Status().StatusCode.String() + want("NotOnLink")
		}},
		{"confirm nothing", dhcpv6.MessageTypeConfirm, []dhcpv6.Option{id, ia6(1)}, "none", nil},
		{"release", dhcpv6.MessageTypeRelease, []dhcpv6.Option{id, us, ia6(1, own.String())}, "reply", func(m *dhcpv6.Message) string {
			return m.Options.Status().StatusCode.String() + want("Success")
		}},
		{"release to another server", dhcpv6.MessageTypeRelease, []dhcpv6.Option{id, them, ia6(1, own.String())}, "none", nil},
		{"information", dhcpv6.MessageTypeInformationRequest, nil, "reply", func(m *dhcpv6.Message) string {
			return fmt.Sprint(len(m.Options.IANA()), m.Options.ClientID()) + want("0 <nil>")
		}},
		{"information from another server", dhcpv6.MessageTypeInformationRequest, []dhcpv6.Option{them}, "none", nil},
		{"two associations", dhcpv6.MessageTypeRequest, []dhcpv6.Option{id, us, ia6(1), ia6(2)}, "reply " + own.String(), func(m *dhcpv6.Message) string {
			ias := m.Options.IANA()
			return fmt.Sprint(len(ias), addresses(ias[0])[0] == addresses(ias[1])[0]) + want("2 false")
		}},
		{"too many associations", dhcpv6.MessageTypeRequest, []dhcpv6.Option{id, us, ia6(1), ia6(2), ia6(3), ia6(4), ia6(5), ia6(6)}, "reply " + own.String(), func(m *dhcpv6.Message) string {
			return fmt.Sprint(len(m.Options.IANA())) + want(fmt.Sprint(maxIA))
		}},
		{"what is not given", dhcpv6.MessageTypeRequest, []dhcpv6.Option{id, us, &dhcpv6.OptIATA{IaId: [4]byte{7}}, &dhcpv6.OptIAPD{IaId: [4]byte{8}}}, "reply", func(m *dhcpv6.Message) string {
			return fmt.Sprint(m.Options.OneIATA().Options.Status().StatusCode, m.Options.OneIAPD().Options.Status().StatusCode) + want("NoAddrsAvail NoPrefixAvail")
		}},
		{"a plain client asks for boot options", dhcpv6.MessageTypeSolicit, []dhcpv6.Option{id, ia6(1), dhcpv6.OptRequestedOption(dhcpv6.OptionBootfileURL)}, "advertise " + own.String(), func(m *dhcpv6.Message) string {
			return m.Options.BootFileURL() + want("")
		}},
	} {
		m, e := d.tell(t, message6(c.kind, c.with...), fromRandom)
		if e.Answer != c.answer || e.Why == "" || (m == nil) != (c.check == nil) {
			t.Errorf("%s: %q (%s), want %q", c.name, e.Answer, e.Why, c.answer)
			continue
		}
		if m != nil {
			if got, want, _ := strings.Cut(c.check(m), "\x00"); got != want {
				t.Errorf("%s: got %s, want %s", c.name, got, want)
			}
		}
	}

	// In use: another one, for those who had it and for nobody else.
	d.tell(t, message6(dhcpv6.MessageTypeDecline, client6(other.String()), us, ia6(1, own.String())), fromRandom)
	d.tell(t, message6(dhcpv6.MessageTypeDecline, id, us, ia6(1, "fd00:77::5")), fromRandom)
	if got := leased6(t, first(d.tell(t, message6(dhcpv6.MessageTypeSolicit, id, ia6(1)), fromRandom))); got != own {
		t.Errorf("after a stranger declined %s it was %s", own, got)
	}
	if m, _ := d.tell(t, message6(dhcpv6.MessageTypeDecline, id, us, ia6(1, own.String())), fromRandom); m.Options.Status().StatusCode != iana.StatusSuccess {
		t.Errorf("a decline was answered %v", m)
	}
	if got := leased6(t, first(d.tell(t, message6(dhcpv6.MessageTypeSolicit, id, ia6(1)), fromRandom))); got == own || !d.n.IPv6.Contains(got) {
		t.Errorf("after its holder declined %s it was %s", own, got)
	}
	// Another server of the same site says the same: nothing is to be lost.
	if got := leased6(t, first(testDHCP6(t, tableBooter{}, nil).tell(t, message6(dhcpv6.MessageTypeSolicit, id, ia6(1)), fromRandom))); got != own {
		t.Errorf("a restart made %s of %s", got, own)
	}
	// An address that is ours is nobody else's.
	d = testDHCP6(t, tableBooter{}, func(n *Network) { n.IPv6 = netip.PrefixFrom(own, 64) })
	if got := leased6(t, first(d.tell(t, message6(dhcpv6.MessageTypeSolicit, id, ia6(1)), fromRandom))); got == own {
		t.Errorf("gave away our own address %s", own)
	}
}

func want(s string) string { return "\x00" + s }

func TestRefused6(t *testing.T) {
	hello := message6(dhcpv6.MessageTypeSolicit, client6(known.String()), ia6(1))
	for _, c := range []struct {
		name string
		data []byte
		from string
		want string
	}{
		{"short", hello[:3], "fe80::1", "too few"},
		{"cut", hello[:len(hello)-1], "fe80::1", "malformed"},
		{"no client", message6(dhcpv6.MessageTypeSolicit, ia6(1)), "fe80::1", "no client identifier"},
		{"answer of a server", message6(dhcpv6.MessageTypeReply), "fe80::1", "no answer to REPLY"},
		{"relayed", append([]byte{12, 0}, make([]byte, 40)...), "fe80::1", "relayed"},
		{"from afar", hello, "fd00:66::1", "no link-local address"},
		{"from IPv4", hello, "10.77.0.9", "no link-local address"},
	} {
		if _, err := parseRequest6(c.data, netip.MustParseAddr(c.from)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got error %v, want one that says %q", c.name, err, c.want)
		}
	}
	d := testDHCP6(t, tableBooter{}, func(n *Network) { n.Rules.Deny = []Match{{MAC: known}} })
	if m, e := d.tell(t, hello, fromKnown); m != nil || !strings.HasPrefix(e.Why, "denied: MAC") {
		t.Errorf("a denied machine was answered %v: %s", m, e.Why)
	}
	d = testDHCP6(t, tableBooter{"": {Action: Ignore, Why: "not mine"}}, nil)
	if m, e := d.tell(t, captured6(t, "ovmf-http-solicit"), fromKnown); m != nil || e.Why != "to be ignored: not mine" {
		t.Errorf("an ignored machine was answered %v: %s", m, e.Why)
	}
}

func TestMAC6(t *testing.T) {
	ll := func(hw ...byte) dhcpv6.DUID {
		return &dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: hw}
	}
	for _, c := range []struct {
		id   dhcpv6.DUID
		from string
		want string
	}{
		{&dhcpv6.DUIDUUID{}, "fe80::5054:ff:fe00:1", "52:54:00:00:00:01"},
		{ll(2, 0, 0, 0, 0, 7), "fe80::5054:ff:fe00:1", "52:54:00:00:00:01"}, // the card it asks with, not another of the machine
		{ll(2, 0, 0, 0, 0, 7), "fe80::1", "02:00:00:00:00:07"},
		{&dhcpv6.DUIDLLT{HWType: iana.HWTypeEthernet, LinkLayerAddr: net.HardwareAddr{2, 0, 0, 0, 0, 7}}, "fe80::1", "02:00:00:00:00:07"},
		{&dhcpv6.DUIDLL{HWType: iana.HWTypeInfiniband, LinkLayerAddr: net.HardwareAddr{2, 0, 0, 0, 0, 7}}, "fe80::1", "00:00:00:00:00:00"},
		{ll(2, 0, 0, 0, 0), "fe80::1", "00:00:00:00:00:00"},
		{ll(3, 0, 0, 0, 0, 7), "fe80::1", "00:00:00:00:00:00"}, // names many
		{ll(), "fe80::0100:ff:fe00:1", "00:00:00:00:00:00"},    // so does this
		{nil, "fe80::1", "00:00:00:00:00:00"},
	} {
		if got := mac6(c.id, netip.MustParseAddr(c.from)); got.String() != c.want {
			t.Errorf("%v from %s is %s, want %s", c.id, c.from, got, c.want)
		}
	}
}

func TestAdvertisement6(t *testing.T) {
	if got := hex.EncodeToString(advertisement(netip.Prefix{})); got != "86000000"+"00000000"+"00000000"+"00000000" {
		t.Errorf("of nothing: %s", got)
	}
	// M and O, lifetime 0 as a router; the prefix is on the link and no more.
	if got := hex.EncodeToString(advertisement(netip.MustParsePrefix("fd00:77::1/64"))); got != "86000000"+"00c00000"+"00000000"+"00000000"+
		"03044080"+"00278d00"+"00278d00"+"00000000"+"fd000077000000000000000000000000" {
		t.Errorf("of DHCPv6: %s", got)
	}
}

func TestServerDUID(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leases.duid")
	a, err := serverDUID(path)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := serverDUID(path); err != nil || !a.Equal(b) {
		t.Errorf("it was %v and is %v (%v)", a, b, err)
	}
	if err := os.WriteFile(path, []byte("3d8f\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := serverDUID(path); err == nil || !strings.Contains(err.Error(), "remove it and a new one is made") {
		t.Errorf("got error %v", err)
	}
}

func TestNetwork6(t *testing.T) {
	for _, c := range []struct {
		mode Mode
		ipv6 string
		want string
	}{
		{Authoritative, "10.77.0.1/24", "want a global or unique local one"},
		{Authoritative, "::ffff:10.77.0.1/112", "want a global or unique local one"},
		{Authoritative, "fe80::1/64", "want a global or unique local one"},
		{Authoritative, "fd00:77::1/48", "want a /64"},
		{Authoritative, "fd00:77::/64", "is the network"},
		{Proxy, "fd00:77::1/64", "IPv6 in mode proxy"},
	} {
		n := testConfig(t, tableBooter{}).Networks[0]
		n.Mode, n.IPv6 = c.mode, netip.MustParsePrefix(c.ipv6)
		if err := n.validate6(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %s: got error %v, want one that says %q", c.mode, c.ipv6, err, c.want)
		}
	}
	config := testConfig(t, tableBooter{})
	if s, err := New(config); err != nil || s.networks[0].v6 != nil || s.ours(netip.MustParseAddr("fd00:77::5")) {
		t.Errorf("IPv6 is on and nobody asked for it (%v)", err)
	}
	config.Networks[0].IPv6 = netip.MustParsePrefix("fd00:77::1/64")
	config.Networks = append(config.Networks, Network{Interface: "eth1", Address: netip.MustParsePrefix("10.78.0.1/24"), IPv6: netip.MustParsePrefix("fd00:77::2/64")})
	if _, err := New(config); err == nil || !strings.Contains(err.Error(), "fd00:77::/64 is on eth0 as well") {
		t.Errorf("got error %v", err)
	}
}

// FuzzDHCP6: whatever comes to port 547, the server answers or does not, and
// what it answers can be read, is for the one who asked and gives only
// addresses of its network.
func FuzzDHCP6(f *testing.F) {
	captures, err := filepath.Glob("testdata/dhcp6/*.hex")
	if err != nil || len(captures) < 7 {
		f.Fatalf("%d captures: %v", len(captures), err)
	}
	for _, c := range captures {
		f.Add(captured6(f, strings.TrimSuffix(filepath.Base(c), ".hex")), true)
	}
	us, id := dhcpv6.OptServerID(ourDUID), client6(unknown.String())
	f.Add(message6(dhcpv6.MessageTypeRenew, id, us, ia6(1, "fd00:66::5", "fd00:77::5")), false)
	f.Add(message6(dhcpv6.MessageTypeDecline, id, us, ia6(1, "fd00:77::5")), false)
	f.Add(message6(dhcpv6.MessageTypeConfirm, id, ia6(1, "fd00:77::5")), false)
	f.Add(message6(dhcpv6.MessageTypeRebind, id, ia6(1), &dhcpv6.OptIATA{}, &dhcpv6.OptIAPD{}), true)
	f.Add(message6(dhcpv6.MessageTypeInformationRequest), true)
	d := testDHCP6(f, tableBooter{"": {Action: Hold}}, nil)
	f.Fuzz(func(t *testing.T, data []byte, eui bool) {
		from := fromRandom
		if eui {
			from = fromKnown
		}
		r, err := parseRequest6(data, from)
		if err != nil {
			return
		}
		m, e := d.respond(context.Background(), r, time.Now())
		if e.Answer == "" || e.Why == "" {
			t.Fatalf("a decision without a reason: %+v", e)
		}
		if m == nil {
			return
		}
		m, err = dhcpv6.MessageFromBytes(m.ToBytes())
		if err != nil {
			t.Fatalf("answer cannot be read: %v", err)
		}
		if m.TransactionID != r.msg.TransactionID || m.MessageType != dhcpv6.MessageTypeReply && m.MessageType != dhcpv6.MessageTypeAdvertise {
			t.Fatalf("answer to somebody else: %v", m)
		}
		if id := r.msg.Options.ClientID(); id != nil && (m.Options.ClientID() == nil || !m.Options.ClientID().Equal(id)) {
			t.Fatalf("answer for %v, who asked was %v", m.Options.ClientID(), id)
		}
		if r.client == plain4 && m.Options.BootFileURL() != "" {
			t.Fatalf("boot options for a plain client: %v", m)
		}
		for _, ia := range m.Options.IANA() {
			for _, o := range ia.Options.Addresses() {
				if a, _ := netip.AddrFromSlice(o.IPv6Addr); o.ValidLifetime != 0 && (!d.n.IPv6.Contains(a) || a == d.n.id) {
					t.Fatalf("gave %s", a)
				}
			}
		}
	})
}

// serve6 gives the lab's network IPv6.
func (l *lab) serve6() {
	l.t.Helper()
	l.spec.Network.IPv6 = netip.MustParsePrefix("fd00:77::1/64")
	// Checking for duplicates would take a second in which nobody can bind it.
	out, err := exec.Command("ip", "-n", l.server, "addr", "add", "fd00:77::1/64", "dev", bridge, "nodad").CombinedOutput()
	if err != nil {
		l.t.Fatalf("%v: %s", err, out)
	}
}

// TestForeignDHCPv6Clients: Linux takes our router advertisement, dhclient our
// addresses, curl and atftp our files.
func TestForeignDHCPv6Clients(t *testing.T) {
	needs(t, "dhclient", "curl", "atftp")
	l := newLab(t)
	l.serve6()
	content := strings.Repeat("a loader of no length that a block divides\n", 3000)
	l.file(LoaderUEFI, []byte(content))
	script := filepath.Join(l.dir, "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\ncase $reason in BOUND6) ip addr add $new_ip6_address/128 dev c0 nodad;; esac\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	l.start()
	// It solicits when its link comes up, and that without the usual pauses.
	if out, err := l.run("sh", "-ec", "cd /proc/sys/net/ipv6/conf/c0; echo 0 >accept_dad; echo 0 >router_solicitation_delay; echo 1 >router_solicitation_interval; ip link set c0 down; ip link set c0 up"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	ip := func(args ...string) string {
		out, err := l.run("ip", append([]string{"-6"}, args...)...)
		if err != nil {
			t.Fatal(out)
		}
		return out
	}
	l.wait("a route from our advertisement", 15*time.Second, func() bool { return strings.Contains(ip("route", "show", "dev", "c0"), "fd00:77::/64 proto kernel") })
	if out := ip("route", "show", "default"); out != "" {
		t.Errorf("a machine made us its router: %s", out)
	}
	if out := ip("addr", "show", "dev", "c0", "scope", "global"); out != "" {
		t.Errorf("a machine made itself an address: %s", out)
	}

	files := []string{"-6", "-v", "-sf", script, "-lf", filepath.Join(l.dir, "dhclient6.leases"), "-pf", filepath.Join(l.dir, "dhclient6.pid"), "c0"}
	dhclient := func(args ...string) string {
		t.Helper()
		out, err := l.run("dhclient", append(args, files...)...)
		if err != nil {
			t.Fatalf("dhclient: %v: %s", err, out)
		}
		return out
	}
	dhclient("-1")
	l.wait("an address", 5*time.Second, func() bool { return strings.Contains(ip("addr", "show", "dev", "c0"), "inet6 fd00:77::") })
	_, addr, _ := strings.Cut(ip("addr", "show", "dev", "c0"), "inet6 fd00:77::")
	addr, _, _ = strings.Cut("fd00:77::"+addr, "/")
	l.event("request", func(e Event) bool { return e.Kind == "dhcp6 request" && e.Answer == "reply "+addr })

	for _, command := range []string{
		"curl -s -g -o OUT http://[fd00:77::1]/boot/file/snponly.efi",
		"curl -s -g -o OUT tftp://[fd00:77::1]/snponly.efi",
		"atftp --option 'blksize 1468' --option 'windowsize 16' -g -r snponly.efi -l OUT fd00:77::1",
	} {
		got := filepath.Join(l.dir, "got")
		_ = os.Remove(got)
		if out, err := l.run("sh", "-c", strings.ReplaceAll(command, "OUT", got)); err != nil {
			t.Errorf("%s: %v: %s", command, err, out)
		}
		if data, _ := os.ReadFile(got); string(data) != content {
			t.Errorf("%s: got %d bytes, want %d", command, len(data), len(content))
		}
	}
	if out, _ := l.run("curl", "-s", "-g", "http://[fd00:77::1]/boot/script?mac="+guestMAC); !strings.Contains(out, "http://[fd00:77::1]/boot/script?") {
		t.Errorf("a script that is asked for by IPv6 goes on elsewhere: %s", out)
	}

	// A server that was killed knows nothing more and says the same.
	_ = os.Remove(l.spec.Leases)
	l.stop()
	l.start()
	if _, err := l.run("sh", "-c", "kill $(cat "+filepath.Join(l.dir, "dhclient6.pid")+"); sleep 0.2; rm -f "+filepath.Join(l.dir, "dhclient6.pid")); err != nil {
		t.Fatal(err)
	}
	dhclient("-1")
	l.event("confirm", func(e Event) bool {
		return (e.Kind == "dhcp6 confirm" && e.Why == "its addresses: Success") || (e.Kind == "dhcp6 rebind" && e.Answer == "reply "+addr)
	})
	dhclient("-r")
	l.event("release", func(e Event) bool {
		return e.Kind == "dhcp6 release" && e.Answer == "reply" && e.Why == "gave back "+addr
	})
	dhclient("-S", "-1")
	l.event("information", func(e Event) bool { return e.Kind == "dhcp6 information-request" && e.Answer == "reply" })
	if err := l.end(15 * time.Second); err != nil {
		t.Errorf("the server ended with %v: %s", err, l.log())
	}
}

// not4 is a Booter for whom a machine is to come by IPv6: what firmware gets by
// IPv4 is no program, so that it goes on with its next boot entry.
type not4 struct{ Booter }

func (b not4) Boot(ctx context.Context, m Machine) (Boot, error) {
	if m.Stage == AskAddress && !m.Addr.Is6() {
		return Boot{Action: Local, Why: "a test of IPv6"}, nil
	}
	return b.Booter.Boot(ctx, m)
}

// TestBootUEFIv6: firmware that loads iPXE over IPv6, by PXE to its script and
// by HTTP to userland.
func TestBootUEFIv6(t *testing.T) {
	for _, c := range []struct {
		name, mark, loader string
		flags              []string
	}{
		{"UEFI PXE", "| kernel: a test", "tftp snponly.efi", nil},
		{"UEFI HTTP boot", "BOOT-OK", "file snponly.efi", []string{"-fw_cfg", "name=opt/org.tianocore/IPv6PXESupport,string=n"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newBootLab(t)
			l.serve6()
			l.spec.Not4 = true
			l.file(LoaderLocal, []byte("no EFI program"))
			l.start()
			flags := append(uefi(l), "-fw_cfg", "name=opt/org.tianocore/IPv4PXESupport,string=n")
			serial, took := l.boot(300*time.Second, c.mark, append(flags, c.flags...)...)
			if c.mark == "BOOT-OK" && !strings.Contains(serial, `second="here"`) {
				t.Errorf("not booted:\n%s", serial)
			}
			e := l.event("loader", func(e Event) bool {
				return e.Kind == c.loader && e.Answer == "sent" && e.Machine.Addr.Is6() && !strings.HasPrefix(e.Why, "HEAD")
			})
			if e.Machine.MAC.String() != guestMAC {
				t.Errorf("the loader went to %+v", e.Machine)
			}
			// It blocks for minutes where this is not answered.
			l.event("release", func(e Event) bool { return e.Kind == "dhcp6 release" && e.Answer == "reply" })
			l.event("script", func(e Event) bool { return e.Kind == "script" })
			l.event("iPXE over IPv6", func(e Event) bool { return e.Kind == "dhcp6 request" && e.Machine.IPXE })
			t.Logf("boot time: %s over IPv6, to %s %.1f", c.name, strings.Trim(c.mark, "| "), took.Seconds())
		})
	}
}
