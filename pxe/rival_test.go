package pxe

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/bpf"
)

// answerBytes is a DHCP answer as another server would send it.
func answerBytes(set func(m []byte), options ...byte) []byte {
	m := make([]byte, dhcpHeader, 400)
	m[0], m[1], m[2] = 2, 1, 6
	copy(m[28:], unknown[:])
	copy(m[236:], dhcpCookie)
	if set != nil {
		set(m)
	}
	return append(append(m, options...), 255)
}

// ipPacket is an IP packet from src:port to everybody.
func ipPacket(src string, port uint16, payload []byte) []byte {
	p := datagram(netip.MustParseAddr(src), broadcast, payload)
	binary.BigEndian.PutUint16(p[20:], port)
	clear(p[26:28])
	return p
}

func newTestWatcher(n Network) (*watcher, *strings.Builder) {
	var log strings.Builder
	if !n.Address.IsValid() {
		n.Address = netip.MustParsePrefix("10.20.0.1/16")
	}
	n.Name, n.Interface = "provisioning", "eno2"
	l := slog.New(slog.NewTextHandler(&log, nil))
	return &watcher{rivals: newRivals(n, l, nil), iface: &net.Interface{Name: "eno2", HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1}},
		id: smeltID, addr: n.Address.Addr(), log: l, own: []MAC{{2, 0, 0, 0, 0, 1}}, asked: map[uint32]string{7: "BIOS PXE"}}, &log
}

var (
	other1 = MAC{0x52, 0x54, 0, 0, 9, 1}
	offer  = []byte{53, 1, 2, 54, 4, 10, 20, 0, 2, 51, 4, 0, 0, 14, 16, 1, 4, 255, 255, 0, 0}
	when   = time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
)

func yiaddr(m []byte) { copy(m[16:], []byte{10, 20, 200, 7}) }

func TestRivalJudgement(t *testing.T) {
	boot := append(slices.Clone(offer), 66, 9, '1', '0', '.', '2', '0', '.', '0', '.', '2', 67, 3, 'a', '.', '0')
	bootUs := append(slices.Clone(offer), 66, 9, '1', '0', '.', '2', '0', '.', '0', '.', '1', 67, 3, 'a', '.', '0')
	url := append(slices.Clone(offer), append([]byte{67, 21}, "http://10.20.0.1/b.ef"...)...)
	proxy := []byte{53, 1, 2, 54, 4, 10, 20, 0, 2, 60, 9, 'P', 'X', 'E', 'C', 'l', 'i', 'e', 'n', 't', 67, 3, 'a', '.', '0'}
	named := []netip.Addr{netip.MustParseAddr("10.20.0.2")}
	for _, c := range []struct {
		name    string
		n       Network
		src     string
		set     func([]byte)
		options []byte
		kind    string
		alarm   string // a part of it; "" none
	}{
		{"DHCP beside us", Network{}, "10.20.0.2", yiaddr, offer, "DHCP", "whichever answer comes first"},
		{"the hall's own", Network{Servers: named}, "10.20.0.2", yiaddr, boot, "DHCP with boot", ""},
		{"the hall's own, by its source", Network{Servers: named}, "10.20.0.2", yiaddr, offer[:3], "DHCP", ""},
		{"not the hall's own", Network{Mode: Proxy, Servers: []netip.Addr{netip.MustParseAddr("10.20.0.3")}}, "10.20.0.2", yiaddr, offer, "DHCP", "none of the hall's"},
		{"DHCP where we are proxy", Network{Mode: Proxy}, "10.20.0.2", yiaddr, offer, "DHCP", ""},
		{"DHCP that boots, where we are proxy", Network{Mode: Proxy}, "10.20.0.2", yiaddr, boot, "DHCP with boot", "machines boot a.0 from 10.20.0.2 and do not reach Smelt"},
		{"DHCP that points to us, where we are proxy", Network{Mode: Proxy}, "10.20.0.2", yiaddr, bootUs, "DHCP with boot", ""},
		{"DHCP that points to us by URL", Network{Mode: Proxy}, "10.20.0.2", yiaddr, url, "DHCP with boot", ""},
		{"ProxyDHCP beside us", Network{}, "10.20.0.2", nil, proxy, "ProxyDHCP", "do not reach Smelt"},
		{"our own address", Network{Servers: named}, "10.20.0.1", yiaddr, append([]byte{53, 1, 2, 54, 4, 10, 20, 0, 1}, offer[9:]...), "DHCP", "our own address 10.20.0.1"},
		{"NAK", Network{}, "10.20.0.2", nil, []byte{53, 1, 6, 54, 4, 10, 20, 0, 2}, "DHCP", "whichever"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, log := newTestWatcher(c.n)
			for range 3 { // one alarm, however often it is heard
				w.packet(other1, ipPacket(c.src, 67, answerBytes(c.set, c.options...)), when)
			}
			list := w.rivals.list(when)
			if len(list) != 1 {
				t.Fatalf("rivals: %+v", list)
			}
			r := list[0]
			if r.Kind() != c.kind || (c.alarm == "") != (r.Alarm == "") || !strings.Contains(r.Alarm, c.alarm) || (r.Alarm == "") != (r.Next() == "") || r.Count != 3 || r.MAC != other1 || r.Addr.String() != c.src {
				t.Errorf("%s: alarm %q: %+v", r.Kind(), r.Alarm, r)
			}
			want := 0
			if c.alarm != "" {
				want = 1
			}
			if got := strings.Count(log.String(), "level=WARN"); got != want {
				t.Errorf("%d warnings: %s", got, log)
			}
			if got := len(w.rivals.changes); got != want {
				t.Errorf("told %d times", got)
			}
		})
	}
}

// TestRivalTwin: who borrows the name of the hall's own server is no friend.
func TestRivalTwin(t *testing.T) {
	w, log := newTestWatcher(Network{Mode: Proxy, Servers: []netip.Addr{netip.MustParseAddr("10.20.0.2")}})
	hear := func(from MAC, src string, set func([]byte), at time.Time) {
		w.packet(from, ipPacket(src, 67, answerBytes(set, offer...)), at)
	}
	hear(other1, "10.20.0.2", yiaddr, when)
	// Its answers to machines behind a relay come from there.
	hear(MAC{2, 7, 7, 7, 7, 7}, "10.20.0.254", func(m []byte) { yiaddr(m); copy(m[24:], []byte{10, 20, 0, 254}) }, when.Add(time.Second))
	if log.Len() > 0 {
		t.Errorf("alarm: %s", log)
	}
	hear(MAC{2, 6, 6, 6, 6, 6}, "10.20.0.2", yiaddr, when.Add(2*time.Second))
	hear(other1, "10.20.0.2", yiaddr, when.Add(3*time.Second))
	list := w.rivals.list(when.Add(3 * time.Second))
	if len(list) != 3 || list[0].MAC != (MAC{2, 6, 6, 6, 6, 6}) || !strings.Contains(list[0].Next(), "02:06:06:06:06:06") || list[1].Alarm != "" || list[2].Alarm != "" {
		t.Errorf("rivals %+v", list)
	}
	if n := strings.Count(log.String(), "level=WARN"); n != 1 {
		t.Errorf("%d warnings: %s", n, log)
	}
}

// TestRivalSilence: an alarm ends when its server is not heard for long, and
// begins anew when it is back.
func TestRivalSilence(t *testing.T) {
	w, log := newTestWatcher(Network{})
	hear := func(at time.Time) { w.packet(other1, ipPacket("10.20.0.2", 67, answerBytes(yiaddr, offer...)), at) }
	hear(when)
	hear(when.Add(rivalSilence - time.Second))
	if got := w.rivals.list(when.Add(2*rivalSilence - 2*time.Second)); len(got) != 1 {
		t.Fatalf("gone too early: %+v", got)
	}
	if got := w.rivals.list(when.Add(2 * rivalSilence)); len(got) != 0 {
		t.Fatalf("still there: %+v", got)
	}
	if first, gone := <-w.rivals.changes, <-w.rivals.changes; first.Gone || !gone.Gone || gone.Server != first.Server {
		t.Errorf("told %+v, then %+v", first, gone)
	}
	hear(when.Add(3 * rivalSilence))
	if n := strings.Count(log.String(), "level=WARN"); n != 2 {
		t.Errorf("%d warnings for two visits: %s", n, log)
	}
}

// TestRivalFlood: made-up servers cost bounded memory and few lines of log, and
// hide neither a server that answers us nor the hall's own.
func TestRivalFlood(t *testing.T) {
	w, log := newTestWatcher(Network{Servers: []netip.Addr{netip.MustParseAddr("10.20.0.3")}})
	hall := append([]byte{53, 1, 2, 54, 4, 10, 20, 0, 3}, offer[9:]...)
	w.packet(other1, ipPacket("10.20.0.3", 67, answerBytes(yiaddr, hall...)), when)
	flood := func() {
		for i := range 10_000 {
			o := slices.Clone(offer)
			binary.BigEndian.PutUint16(o[7:], uint16(100+i))
			w.packet(MAC{2, 9, 9, 9, byte(i >> 8), byte(i)}, ipPacket("10.20.0.2", 67, answerBytes(yiaddr, o...)), when)
		}
	}
	flood()
	asked := func(m []byte) {
		yiaddr(m)
		m[7] = 7
		mac := probeMAC(MAC(w.iface.HardwareAddr))
		copy(m[28:], mac[:])
	}
	w.packet(other1, ipPacket("10.20.0.2", 67, answerBytes(asked, offer...)), when)
	flood()
	list := w.rivals.list(when)
	if len(list) > maxRivals {
		t.Errorf("%d rivals are kept", len(list))
	}
	for _, want := range []string{"10.20.0.2", "10.20.0.3"} {
		if !slices.ContainsFunc(list, func(r Rival) bool { return r.MAC == other1 && r.Server.String() == want }) {
			t.Errorf("%s is lost in the flood", want)
		}
	}
	if n := strings.Count(log.String(), "\n"); n > maxRivals+2 {
		t.Errorf("%d lines of log", n)
	}
	if !strings.Contains(log.String(), "DHCP snooping") {
		t.Error("nobody is told of the flood")
	}
}

// TestRivalNotOurs: what we or our relays send is no rival.
func TestRivalNotOurs(t *testing.T) {
	w, log := newTestWatcher(Network{})
	own := append([]byte{53, 1, 2, 54, 4, 10, 20, 0, 1}, offer[9:]...)
	w.packet(w.own[0], ipPacket("10.20.0.1", 67, answerBytes(yiaddr, own...)), when)
	relayed := func(m []byte) { yiaddr(m); copy(m[24:], []byte{10, 20, 0, 254}) }
	w.packet(other1, ipPacket("10.20.0.254", 67, answerBytes(relayed, own...)), when)
	// Our own question, that a relay sends on to us.
	q := w.question(1, probes[0].class, BIOS, 1)
	copy(q[24:], []byte{10, 20, 0, 254})
	w.packet(other1, ipPacket("10.20.0.254", 67, q), when)
	if list := w.rivals.list(when); len(list) != 0 || log.Len() > 0 {
		t.Errorf("rivals %+v: %s", list, log)
	}
	// Another Smelt, which also names a server that a machine chose.
	w.rivals.named(netip.MustParseAddr("10.20.0.9"), when)
	two, _ := newTestWatcher(Network{Address: netip.MustParsePrefix("10.20.0.9/16")})
	w.packet(other1, ipPacket("0.0.0.0", 68, two.question(1, probes[0].class, BIOS, 1)), when)
	if list := w.rivals.list(when); len(list) != 1 || list[0].Kind() != "Smelt" || list[0].MAC != other1 {
		t.Errorf("rivals %+v", list)
	}
}

// TestRivalFilter runs the packet filter on what it must and must not pass.
func TestRivalFilter(t *testing.T) {
	vm, err := bpf.NewVM(rivalFilter())
	if err != nil {
		t.Fatal(err)
	}
	w, _ := newTestWatcher(Network{})
	to := func(port uint16, p []byte) []byte { binary.BigEndian.PutUint16(p[22:], port); return p }
	change := func(p []byte, at int, v byte) []byte { p[at] = v; return p }
	answer := answerBytes(yiaddr, offer...)
	probe := w.question(1, probes[0].class, BIOS, 1)
	machine := slices.Clone(probe)
	copy(machine[28:], unknown[:])
	options := append(append([]byte{0x46}, ipPacket("10.20.0.2", 67, answer)[1:20]...), append([]byte{1, 1, 1, 0}, ipPacket("10.20.0.2", 67, answer)[20:]...)...)
	for name, c := range map[string]struct {
		packet []byte
		pass   bool
	}{
		"answer":             {ipPacket("10.20.0.2", 67, answer), true},
		"boot server":        {ipPacket("10.20.0.2", 4011, answer), true},
		"IP options":         {options, true},
		"another Smelt":      {to(67, ipPacket("0.0.0.0", 68, probe)), true},
		"a machine":          {to(67, ipPacket("0.0.0.0", 68, machine)), false},
		"a relay":            {to(67, ipPacket("10.20.0.2", 67, machine)), false},
		"a relayed Smelt":    {to(67, ipPacket("10.20.0.2", 67, probe)), true},
		"not to a server":    {to(68, ipPacket("0.0.0.0", 68, probe)), false},
		"DNS":                {ipPacket("10.20.0.2", 53, answer), false},
		"TCP":                {change(ipPacket("10.20.0.2", 67, answer), 9, 6), false},
		"a later fragment":   {change(ipPacket("10.20.0.2", 67, answer), 7, 1), false},
		"cut off":            {ipPacket("10.20.0.2", 67, answer)[:20], false},
		"cut off in a probe": {to(67, ipPacket("0.0.0.0", 68, probe))[:50], false},
	} {
		n, err := vm.Run(c.packet)
		if err != nil || (n > 0) != c.pass {
			t.Errorf("%s: passes %d bytes, %v", name, n, err)
		}
	}
}

func TestServiceMarks(t *testing.T) {
	for file, want := range map[string]string{
		"/bios/pxelinux.0": "HiveOS diskless PXE server (dnsmasq)", "/efi/grubnetx64.efi": "HiveOS diskless PXE server (dnsmasq)",
		`boot\x64\wdsnbp.com`: "Windows Deployment Services", `Boot\x64\wdsmgfw.efi`: "Windows Deployment Services",
		"http://10.0.0.5:5248/images/bootx64.efi": "MAAS", "undionly.kkpxe": "FOG",
		"ipxe.efi-00-0123456789abcdef0123456789abcdef-0123456789abcdef-01": "Tinkerbell", "http://10.0.0.5/auto.ipxe": "Tinkerbell",
		"netboot.xyz.efi": "netboot.xyz", "pxelinux.0": "", "snponly.efi": "",
		"http://10.20.0.1/boot/script?mac=52:54:00:00:00:01": programSmelt,
	} {
		s, err := parseSighting(answerBytes(nil, append(append([]byte{53, 1, 2, 67, byte(len(file))}, file...), 0)...))
		if err != nil || service(s) != want {
			t.Errorf("%s is %q, want %q (%v)", file, service(s), want, err)
		}
	}
}

// FuzzSighting feeds the watcher with packets of strangers.
func FuzzSighting(f *testing.F) {
	f.Add(ipPacket("10.20.0.2", 67, answerBytes(yiaddr, offer...)))
	f.Add(ipPacket("10.20.0.2", 67, answerBytes(func(m []byte) { copy(m[108:], "pxelinux.0") }, offer...)))
	// What dnsmasq says as ProxyDHCP: a menu.
	f.Add(ipPacket("10.20.0.2", 67, answerBytes(nil, append([]byte{53, 1, 2, 54, 4, 10, 20, 0, 2, 60, 9, 'P', 'X', 'E', 'C', 'l', 'i', 'e', 'n', 't', 43, 18},
		6, 1, 3, 10, 4, 0, 'P', 'X', 'E', 9, 4, 0x80, 0, 1, 'x', 255, 0, 0)...)))
	f.Add(ipPacket("10.20.0.2", 67, answerBytes(func(m []byte) {
		copy(m[108:], []byte{67, 3, 'a', '.', '0', 255})
		copy(m[44:], []byte{66, 1, 'b', 255})
	},
		append([]byte{52, 1, 3}, offer...)...))) // option overload
	f.Add(ipPacket("10.20.0.2", 67, answerBytes(yiaddr, 54, 3, 1, 2, 3, 67, 0, 60, 255)))
	f.Add(ipPacket("10.20.0.2", 4011, answerBytes(nil, 53, 1, 5)[:dhcpHeader]))
	w, _ := newTestWatcher(Network{})
	f.Add(ipPacket("0.0.0.0", 68, w.question(1, probes[0].class, BIOS, 1)))
	f.Fuzz(func(t *testing.T, p []byte) {
		w, log := newTestWatcher(Network{})
		w.packet(other1, p, when)
		for _, r := range w.rivals.list(when) {
			for _, s := range []string{r.String(), r.Alarm, r.Next(), r.Vendor, r.Program, fmt.Sprint(r.Boots)} {
				if strings.ContainsFunc(s, func(c rune) bool { return c < ' ' || c > '~' }) {
					t.Errorf("not printable: %q", s)
				}
				if len(s) > 2000 {
					t.Errorf("%d bytes: %.100s", len(s), s)
				}
			}
		}
		if strings.Contains(log.String(), "panic") {
			t.Error(log.String())
		}
	})
}
