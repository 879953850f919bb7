package pxe

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// rawOptions are the options of a message as they stand on the wire, in order.
func rawOptions(t *testing.T, b []byte) (codes []byte, values [][]byte) {
	t.Helper()
	if len(b) < 240 || !bytes.Equal(b[236:240], dhcpCookie) {
		t.Fatalf("%d bytes, no cookie", len(b))
	}
	for b = b[240:]; ; {
		switch {
		case len(b) == 0:
			t.Fatal("no END")
		case b[0] == 255:
			if len(bytes.Trim(b[1:], "\x00")) > 0 {
				t.Fatalf("behind END stands % x", b[1:])
			}
			return codes, values
		case b[0] == 0:
			b = b[1:]
		default:
			n := int(b[1])
			codes, values, b = append(codes, b[0]), append(values, b[2:2+n]), b[2+n:]
		}
	}
}

// TestAnswerForm is RFC 2131 section 4.1 and table 3, RFC 3046 section 2.2 and
// RFC 6842: what every answer copies, contains once, and ends with.
func TestAnswerForm(t *testing.T) {
	s := modesServer(t, tableBooter{"": {Action: Hold, Why: "x"}})
	local := testServer(t, tableBooter{"": {Action: Hold, Why: "x"}})
	agent := []byte{1, 3, 'v', 'c', '0', 151, 2, 9, 9} // with a sub-option of a vendor's own
	id := []byte{0xff, 1, 2, 3, 4}
	answered := 0
	for _, options := range []map[uint8][]byte{linux, ipxeROM, pxeUEFI, pxeBIOS, httpUEFI} {
		for _, m := range []message{
			{kind: dhcpv4.MessageTypeDiscover}, {kind: dhcpv4.MessageTypeDiscover, broadcast: true},
			{kind: dhcpv4.MessageTypeDiscover, giaddr: "10.78.0.1"}, {kind: dhcpv4.MessageTypeDiscover, giaddr: "10.77.0.9"},
			{kind: dhcpv4.MessageTypeRequest, want: "10.77.0.11", server: "10.77.0.1"}, {kind: dhcpv4.MessageTypeRequest, want: "192.168.0.1"},
			{kind: dhcpv4.MessageTypeRequest, want: "10.78.0.11", server: "10.77.0.1", giaddr: "10.78.0.1"},
			{kind: dhcpv4.MessageTypeRequest, want: "192.168.0.1", giaddr: "10.78.0.1"},
			{kind: dhcpv4.MessageTypeInform, ciaddr: "10.77.0.60"},
			{kind: dhcpv4.MessageTypeRequest, ciaddr: "10.77.0.60", src: "10.77.0.60:68", boot: true, unicast: true},
		} {
			for _, server := range []*Server{s, local} {
				m.mac, m.options = known, with(with(options, 61, id), 82, agent)
				ask := m.bytes(t)
				a, _ := m.tell(t, server, epoch)
				if a == nil {
					continue
				}
				answered++
				b := a.msg.ToBytes()
				if len(b) < 300 {
					t.Errorf("%+v: %d bytes, BOOTP relays drop fewer than 300", m, len(b))
				}
				nak := a.msg.MessageType() == dhcpv4.MessageTypeNak
				for _, f := range []struct {
					name     string
					from, to int
				}{{"htype, hlen", 1, 3}, {"xid", 4, 8}, {"giaddr", 24, 28}, {"chaddr", 28, 44}, {"flags", 10, 12}} {
					if !bytes.Equal(b[f.from:f.to], ask[f.from:f.to]) && !(f.name == "flags" && nak && m.giaddr != "" && b[10] == 0x80) {
						t.Errorf("%+v: %s is % x, was % x", m, f.name, b[f.from:f.to], ask[f.from:f.to])
					}
				}
				if b[0] != 2 || b[3] != 0 || !bytes.Equal(b[8:10], []byte{0, 0}) {
					t.Errorf("%+v: op %d, hops %d, secs % x", m, b[0], b[3], b[8:10])
				}
				codes, values := rawOptions(t, b)
				seen := make(map[byte][]byte)
				for i, c := range codes {
					if _, twice := seen[c]; twice {
						t.Errorf("%+v: option %d stands twice", m, c)
					}
					seen[c] = values[i]
				}
				if !bytes.Equal(seen[61], id) {
					t.Errorf("%+v: client identifier % x", m, seen[61])
				}
				if len(seen[54]) != 4 || len(seen[53]) != 1 {
					t.Errorf("%+v: options 53 and 54 are % x, % x", m, seen[53], seen[54])
				}
				if _, ok := seen[52]; ok {
					t.Errorf("%+v: options stand in sname or file", m)
				}
				switch {
				case m.giaddr == "" && seen[82] != nil:
					t.Errorf("%+v: option 82 that no relay added comes back", m)
				case m.giaddr != "" && (!bytes.Equal(seen[82], agent) || codes[len(codes)-1] != 82):
					t.Errorf("%+v: option 82 is % x at %v, want it as it was and last", m, seen[82], codes)
				}
				if nak && (!bytes.Equal(b[16:24], make([]byte, 8)) || seen[51] != nil || b[108] != 0) {
					t.Errorf("%+v: a NAK gives something: % x", m, b[12:28])
				}
			}
		}
	}
	if answered < 60 {
		t.Errorf("%d answers", answered)
	}
}

// TestRequestStates is RFC 2131 section 4.3.2: what a REQUEST is answered in
// each state of its client.
func TestRequestStates(t *testing.T) {
	for _, c := range []struct {
		name string
		m    message
		want string // the beginning of the answer; "none" is silence
	}{
		{"SELECTING, our offer", message{want: "10.77.0.100", server: "10.77.0.1"}, "ack 10.77.0.100"},
		{"SELECTING, the offer of another server", message{want: "10.77.0.100", server: "10.77.0.9"}, "none"},
		{"SELECTING, not what was offered", message{want: "10.77.0.101", server: "10.77.0.1"}, "nak"},
		{"INIT-REBOOT, its lease", message{want: "10.77.0.100"}, "ack 10.77.0.100"},
		{"INIT-REBOOT, of another network", message{want: "192.168.1.1"}, "nak"},
		{"INIT-REBOOT, another address than its lease", message{want: "10.77.0.101"}, "nak"},
		{"INIT-REBOOT, of a machine without a record", message{mac: other, want: "10.77.0.101"}, "none"},
		{"RENEWING, its lease", message{ciaddr: "10.77.0.100", unicast: true}, "ack 10.77.0.100"},
		{"RENEWING, without a record", message{mac: other, ciaddr: "10.77.0.101", unicast: true}, "nak"},
		{"RENEWING, the address of another", message{mac: other, ciaddr: "10.77.0.100", unicast: true}, "nak"},
		{"REBINDING, its lease", message{ciaddr: "10.77.0.100"}, "ack 10.77.0.100"},
		{"REBINDING, another server's lease on this network", message{mac: other, ciaddr: "10.77.0.60"}, "none"},
		{"REBINDING, an address of our pool without a record", message{mac: other, ciaddr: "10.77.0.101"}, "nak"},
		{"REBINDING, of another network", message{ciaddr: "192.168.1.1"}, "none"},
	} {
		s := testServer(t, tableBooter{})
		if a, e := (message{kind: dhcpv4.MessageTypeDiscover, mac: unknown}).tell(t, s, epoch); a == nil {
			t.Fatal(e)
		}
		if c.name[0] != 'S' {
			if a, e := (message{kind: dhcpv4.MessageTypeRequest, mac: unknown, want: "10.77.0.100", server: "10.77.0.1"}).tell(t, s, epoch); a == nil {
				t.Fatal(e)
			}
		}
		c.m.kind = dhcpv4.MessageTypeRequest
		if c.m.mac == (MAC{}) {
			c.m.mac = unknown
		}
		a, e := c.m.tell(t, s, epoch.Add(time.Second))
		if !strings.HasPrefix(e.Answer, c.want) || (a == nil) != (c.want == "none") {
			t.Errorf("%s: %s: %s; want %s", c.name, e.Answer, e.Why, c.want)
		}
	}
}

// TestInform is RFC 2131 section 4.3.5: settings, and no lease.
func TestInform(t *testing.T) {
	s := testServer(t, tableBooter{})
	a, e := message{kind: dhcpv4.MessageTypeInform, mac: unknown, ciaddr: "10.77.0.60", options: linux}.tell(t, s, epoch)
	if a == nil || a.msg.MessageType() != dhcpv4.MessageTypeAck || !a.msg.YourIPAddr.IsUnspecified() || a.to.addr.String() != "10.77.0.60:68" {
		t.Fatalf("%+v", e)
	}
	for _, o := range []dhcpv4.GenericOptionCode{51, 58, 59} {
		if a.msg.Options.Has(o) {
			t.Errorf("option %d in an answer to INFORM", o)
		}
	}
	if !a.msg.Options.Has(dhcpv4.OptionRouter) || !a.msg.Options.Has(dhcpv4.OptionSubnetMask) {
		t.Error("the settings are missing")
	}
	if _, used := s.networks[0].leases.holder(a.to.addr.Addr(), epoch); used {
		t.Error("an INFORM made a lease")
	}
}

// TestRelease is RFC 2131 section 4.3.4: the address is free, and its machine
// gets it again while nobody needs it.
func TestRelease(t *testing.T) {
	s := testServer(t, tableBooter{})
	mac := func(i byte) MAC { return MAC{2, 7, 0, 0, 0, i} }
	take := func(m MAC) string {
		a, e := message{kind: dhcpv4.MessageTypeDiscover, mac: m}.tell(t, s, epoch)
		if a == nil {
			return e.Why
		}
		addr := a.msg.YourIPAddr.String()
		if a, e := (message{kind: dhcpv4.MessageTypeRequest, mac: m, want: addr, server: "10.77.0.1"}).tell(t, s, epoch); a == nil || a.msg.MessageType() != dhcpv4.MessageTypeAck {
			return e.Why
		}
		return addr
	}
	release := func(m MAC, addr, server string) string {
		a, e := message{kind: dhcpv4.MessageTypeRelease, mac: m, ciaddr: addr, server: server}.tell(t, s, epoch)
		if a != nil {
			t.Errorf("a RELEASE was answered by %v", a.msg.MessageType())
		}
		return e.Why
	}
	first := take(mac(0))
	if why := release(mac(0), first, "10.77.0.9"); !strings.Contains(why, "another server") {
		t.Errorf("a RELEASE to another server: %s", why)
	}
	if why := release(mac(1), first, "10.77.0.1"); !strings.Contains(why, "not its address") {
		t.Errorf("a RELEASE of the address of another: %s", why)
	}
	if why := release(mac(0), first, "10.77.0.1"); why != "gave back "+first {
		t.Errorf("a RELEASE: %s", why)
	}
	if again := take(mac(0)); again != first {
		t.Errorf("it came back and got %s, it had %s", again, first)
	}
	release(mac(0), first, "10.77.0.1")
	for i := byte(1); i <= 4; i++ { // the pool has four
		if got := take(mac(i)); i == 4 && got != first {
			t.Errorf("the last of the pool is %s, want %s, which was given back", got, first)
		}
	}
}

// TestOverloaded is RFC 2131 section 4.1: options of a request in the fields
// file and sname, in that order.
func TestOverloaded(t *testing.T) {
	for _, c := range []struct {
		where       byte
		file, sname string
	}{
		{1, "\x3c\x09PXEClient\x5d\x02\x00\x07\xff", "a name, no options"},
		{2, "loader.efi", "\x3c\x09PXEClient\x5d\x02\x00\x07\xff"},
		{3, "\x3c\x04PXEC\xff", "\x3c\x05lient\x5d\x02\x00\x07\xff"}, // one option in two parts (RFC 3396)
	} {
		data := message{kind: dhcpv4.MessageTypeDiscover, mac: unknown, options: map[uint8][]byte{52: {c.where}}}.bytes(t)
		copy(data[108:], c.file)
		copy(data[44:], c.sname)
		r, err := parseRequest(data)
		if err != nil {
			t.Errorf("overload %d: %v", c.where, err)
			continue
		}
		if r.machine.Vendor != "PXEClient" || r.machine.Arch != UEFIx64 || r.msg.Options.Has(optOverload) {
			t.Errorf("overload %d: vendor %q, architecture %d", c.where, r.machine.Vendor, r.machine.Arch)
		}
	}
	data := message{kind: dhcpv4.MessageTypeDiscover, mac: unknown}.bytes(t)
	copy(data[108:], "\x3c\x09PXEClient\xff")
	if r, err := parseRequest(data); err != nil || r.machine.Vendor != "" {
		t.Errorf("without option 52 the field file is no options: %v", err)
	}
}

// TestLongOptions is RFC 3396: an option in parts is one; one that is too long
// for its length is written in parts that follow each other.
func TestLongOptions(t *testing.T) {
	head := message{mac: unknown}.bytes(t)[:240]
	split := append(head, 53, 1, 1, 60, 4, 'P', 'X', 'E', 'C', 12, 2, 'r', 'i', 60, 5, 'l', 'i', 'e', 'n', 't', 12, 1, 'g', 255)
	r, err := parseRequest(split)
	if err != nil || r.machine.Vendor != "PXEClient" || r.machine.Hostname != "rig" {
		t.Errorf("joined %q, %q, %v", r.machine.Vendor, r.machine.Hostname, err)
	}
	name := "http://10.77.0.1/" + strings.Repeat("x", 300)
	s := testServer(t, tableBooter{"": {Action: Hold, Why: "x"}})
	a, _ := message{kind: dhcpv4.MessageTypeDiscover, mac: unknown, options: httpUEFI}.tell(t, s, epoch)
	a.msg.UpdateOption(dhcpv4.OptBootFileName(name))
	codes, values := rawOptions(t, a.msg.ToBytes())
	i := slices.Index(codes, 67)
	if i < 0 || codes[i+1] != 67 || len(values[i]) != 255 || string(values[i])+string(values[i+1]) != name {
		t.Errorf("%d bytes were written as %v", len(name), codes)
	}
}

// TestMessageSize is RFC 2132 section 9.10, with what firmware says.
func TestMessageSize(t *testing.T) {
	for _, c := range []struct {
		option []byte
		max    int
	}{
		{nil, 548}, {[]byte{2, 64}, 548}, {[]byte{0, 68}, 548}, {[]byte{5, 0xc0}, 1444}, {[]byte{0xff, 0}, 1472}, {[]byte{9}, 548},
	} {
		m := message{kind: dhcpv4.MessageTypeDiscover, mac: unknown}
		if c.option != nil {
			m.options = map[uint8][]byte{57: c.option}
		}
		r, err := parseRequest(m.bytes(t))
		if err != nil || r.max != c.max {
			t.Errorf("option 57 % x: answers of %d bytes, want %d (%v)", c.option, r.max, c.max, err)
		}
	}
}

// TestUserClass is RFC 3004, and what iPXE sends instead.
func TestUserClass(t *testing.T) {
	for _, c := range []struct {
		class string
		ipxe  bool
	}{
		{"iPXE", true}, {"\x04iPXE", true}, {"\x03abc\x04iPXE", true}, {"\x04iPXE\x03abc", true}, {"iPXEx", false}, {"\x05iPXE", false}, {"gPXE", false},
		{"", false}, {"\x00", false}, {"\x04iPX", false},
	} {
		r, err := parseRequest(message{kind: dhcpv4.MessageTypeDiscover, mac: unknown, options: map[uint8][]byte{77: []byte(c.class)}}.bytes(t))
		if err != nil || r.machine.IPXE != c.ipxe {
			t.Errorf("user class %q: iPXE %v, %v", c.class, r.machine.IPXE, err)
		}
	}
}

// TestPXEOptions is RFC 4578 and RFC 5071: what PXE clients say of themselves,
// in whatever shape, and what is only sent to those who asked.
func TestPXEOptions(t *testing.T) {
	const vendor = "PXEClient:Arch:00007:UNDI:003000"
	s := testServer(t, tableBooter{"": {Action: Hold, Why: "x"}})
	for _, c := range []struct {
		name    string
		options map[uint8][]byte
		arch    Arch
		uuid    string
		echo    bool
	}{
		{"as OVMF", pxeUEFI, UEFIx64, "11223344-5566-7788-99aa-bbccddeeff00", true},
		{"a list, the first known wins", map[uint8][]byte{60: []byte(vendor), 93: {0, 99, 0, 9, 0, 7}}, UEFIx64v9, "", false},
		{"half an architecture", map[uint8][]byte{60: []byte(vendor), 93: {7}}, UEFIx64, "", false},
		{"none, but the class says it", map[uint8][]byte{60: []byte(vendor)}, UEFIx64, "", false},
		{"none at all is BIOS", map[uint8][]byte{60: []byte("PXEClient")}, BIOS, "", false},
		{"option 94 of nonsense", with(pxeUEFI, 94, []byte{1}), UEFIx64, "11223344-5566-7788-99aa-bbccddeeff00", true},
		{"identifier of another type", with(pxeUEFI, 97, append([]byte{7}, guid[1:]...)), UEFIx64, "", true},
		{"identifier too short", with(pxeUEFI, 97, []byte{0, 1}), UEFIx64, "", true},
		{"identifier far too long", with(pxeUEFI, 97, make([]byte, 200)), UEFIx64, "", false},
		{"asks for PXELINUX's options", with(pxeUEFI, 55, []byte{208, 209, 210, 211, 128, 135}), UEFIx64, "11223344-5566-7788-99aa-bbccddeeff00", true},
	} {
		m := message{kind: dhcpv4.MessageTypeDiscover, mac: unknown, options: c.options}
		r, err := parseRequest(m.bytes(t))
		if err != nil || r.machine.Arch != c.arch || r.machine.UUID != c.uuid {
			t.Errorf("%s: architecture %d, UUID %q, %v", c.name, r.machine.Arch, r.machine.UUID, err)
			continue
		}
		a, e := m.tell(t, s, epoch)
		if a == nil || a.msg.Options.Get(dhcpv4.OptionBootfileName) == nil {
			t.Errorf("%s: no boot: %+v", c.name, e)
			continue
		}
		if got := a.msg.Options.Get(dhcpv4.OptionClientMachineIdentifier); c.echo != (got != nil) || c.echo && !bytes.Equal(got, c.options[97]) {
			t.Errorf("%s: identifier % x comes back", c.name, got)
		}
		for code := range a.msg.Options { // RFC 3942: what these mean depends on who asks
			if code >= 128 && code < 224 {
				t.Errorf("%s: option %d for firmware", c.name, code)
			}
		}
	}
}

// TestSiteOptions is RFC 3942: 175 goes to iPXE alone, 43 and a boot file to
// boot clients alone.
func TestSiteOptions(t *testing.T) {
	for _, server := range []*Server{testServer(t, tableBooter{"": {Action: Hold, Why: "x"}}), modesServer(t, tableBooter{"": {Action: Hold, Why: "x"}})} {
		for _, c := range []struct {
			name           string
			options        map[uint8][]byte
			etherboot, pxe bool
		}{
			{"plain", linux, false, false},
			{"plain that names another class", map[uint8][]byte{60: []byte("MSFT 5.0"), 55: {43, 60, 66, 67, 175}}, false, false},
			{"iPXE", ipxeROM, true, true},
			{"firmware", pxeUEFI, false, true},
			{"HTTP boot", httpUEFI, false, true},
		} {
			for _, giaddr := range []string{"", "10.78.0.1"} {
				a, _ := message{kind: dhcpv4.MessageTypeDiscover, mac: unknown, giaddr: giaddr, options: c.options}.tell(t, server, epoch)
				if a == nil {
					continue
				}
				o := a.msg.Options
				if o.Has(optEtherboot) != c.etherboot {
					t.Errorf("%s: option 175: %v", c.name, !c.etherboot)
				}
				if boot := o.Has(dhcpv4.OptionVendorSpecificInformation) || o.Has(dhcpv4.OptionBootfileName) || o.Has(dhcpv4.OptionTFTPServerName) ||
					o.Has(dhcpv4.OptionClassIdentifier) || a.msg.BootFileName != "" || !a.msg.ServerIPAddr.IsUnspecified(); boot != c.pxe {
					t.Errorf("%s: boot options: %v", c.name, boot)
				}
			}
		}
	}
}

// TestColdStart: the very first DISCOVER that comes is answered, and so is the
// next of a machine that asked before anybody was there (PXE 2.1 section 2.2.3:
// a ROM asks after 0, 4, 8 and 16 s).
func TestColdStart(t *testing.T) {
	needs(t)
	l := newLab(t)
	w := l.wire()
	early := message{kind: dhcpv4.MessageTypeDiscover, mac: unknown, broadcast: true, options: pxeUEFI}.bytes(t)
	w.send(unknown, "0.0.0.0", "255.255.255.255", clientPort, early)
	l.file(LoaderUEFI, []byte("loader"))
	l.spec.Boots[""] = Boot{Action: Hold, Why: "a test"}
	l.start()
	early[9] = 4 // secs
	w.send(unknown, "0.0.0.0", "255.255.255.255", clientPort, early)
	start := time.Now()
	a := w.answer(5*time.Second, dhcpv4.TransactionID(early[4:8]))
	if a == nil || a.msg.MessageType() != dhcpv4.MessageTypeOffer || a.msg.BootFileNameOption() != LoaderUEFI {
		t.Fatalf("the first DISCOVER after the start: %+v", a)
	}
	t.Logf("answered after %s", time.Since(start).Round(time.Millisecond))
}
