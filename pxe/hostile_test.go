package pxe

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// TestFlood: 60,000 made-up machines ask for the 1,000 addresses of a pool, by
// DISCOVER and by taking addresses that nobody offered them. Meanwhile and
// afterwards, machines of the site get theirs, and so does one that was there
// before.
func TestFlood(t *testing.T) {
	if os.Getenv("SMELT_TEST_E2E") != "1" {
		t.Skip("sends for some seconds: set SMELT_TEST_E2E=1")
	}
	needs(t)
	l := newLab(t)
	n := &l.spec.Network
	n.Address = netip.MustParsePrefix("10.77.0.1/20")
	n.Pool = Range{netip.MustParseAddr("10.77.4.0"), netip.MustParseAddr("10.77.7.231")}
	rig := func(i int) MAC { return MAC{0x52, 0x54, 1, 0, byte(i >> 8), byte(i)} }
	for i := range 300 {
		n.Known = append(n.Known, rig(i))
	}
	l.start()
	w := l.wire()
	// lease is a whole exchange, with the patience of firmware.
	lease := func(mac MAC) (string, time.Duration) {
		t.Helper()
		start := time.Now()
		xid := dhcpv4.TransactionID{0xaa, mac[3], mac[4], mac[5]}
		ask := func(m message) *seen {
			data := m.bytes(t)
			copy(data[4:], xid[:])
			for range 6 {
				w.send(mac, "0.0.0.0", "255.255.255.255", clientPort, data)
				if a := w.answer(time.Second, xid); a != nil {
					return a
				}
			}
			t.Fatalf("%s got no answer to its %v", mac, m.kind)
			return nil
		}
		o := ask(message{kind: dhcpv4.MessageTypeDiscover, mac: mac})
		a := ask(message{kind: dhcpv4.MessageTypeRequest, mac: mac, want: o.msg.YourIPAddr.String(), server: "10.77.0.1"})
		for a.msg.MessageType() == dhcpv4.MessageTypeOffer { // of a repeated question
			if a = w.answer(time.Second, xid); a == nil {
				t.Fatal("no ACK")
			}
		}
		if a.msg.MessageType() != dhcpv4.MessageTypeAck {
			t.Fatalf("%s got %v", mac, a.msg.Summary())
		}
		return a.msg.YourIPAddr.String(), time.Since(start)
	}
	before, _ := lease(other) // nobody knows it, but it was here first

	flood := l.wire()
	var sent atomic.Int64
	stop := make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		discover := message{kind: dhcpv4.MessageTypeDiscover, mac: unknown, broadcast: true, options: linux}.bytes(t)
		request := message{kind: dhcpv4.MessageTypeRequest, mac: unknown, broadcast: true, want: "10.77.4.0", server: "10.77.0.1"}.bytes(t)
		want := strings.Index(string(request), string([]byte{50, 4, 10, 77, 4, 0})) + 2
		for i := uint32(0); ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			for k, m := range [][]byte{discover, request} {
				m[28], m[29] = 2, byte(0xbd+k) // chaddr
				binary.BigEndian.PutUint32(m[30:], i)
				flood.send(MAC(m[28:34]), "0.0.0.0", "255.255.255.255", clientPort, m)
			}
			binary.BigEndian.PutUint32(request[want:], 0x0a4d0400+i%1000)
			sent.Store(int64(i) + 1)
			if i%100 == 0 {
				time.Sleep(time.Millisecond) // not more than the interface takes
			}
		}
	})
	halt := sync.OnceFunc(func() { close(stop) })
	defer halt()
	l.wait("the flood", 60*time.Second, func() bool { return sent.Load() > 20000 })
	for _, mac := range []MAC{known, rig(0), rig(1), rig(299)} {
		a, took := lease(mac)
		t.Logf("%s got %s in %s, after %d made-up machines", mac, a, took.Round(time.Millisecond), sent.Load())
		if mac == known && a != "10.77.0.11" {
			t.Errorf("the known machine got %s", a)
		}
	}
	l.wait("the flood", 60*time.Second, func() bool { return sent.Load() >= 60000 })
	halt()
	wg.Wait()
	for i := 2; i < 5; i++ {
		lease(rig(i))
	}
	if a, _ := lease(other); a != before {
		t.Errorf("who had %s before the flood got %s after it", before, a)
	}
	data, err := os.ReadFile(l.spec.Leases)
	if err != nil {
		t.Fatal(err)
	}
	records, damaged := parseJournal(data)
	strangers := make(map[netip.Addr]bool)
	for _, r := range records {
		if r.State == bound && r.MAC[0] == 2 {
			strangers[r.Addr] = true
		}
	}
	t.Logf("made-up machines hold %d leases", len(strangers))
	if damaged != 0 || len(strangers) > 800 || len(strangers) < 50 {
		t.Errorf("made-up machines hold %d of 1,000 addresses, want some, and 800 at most", len(strangers))
	}
	if !strings.Contains(l.log(), "the pool fills with machines that the site does not know") {
		t.Error("nobody was warned")
	}
}

// TestShare: strangers share a pool of ten with five machines of the site.
func TestShare(t *testing.T) {
	site := []MAC{{2, 1, 0, 0, 0, 1}, {2, 1, 0, 0, 0, 2}, {2, 1, 0, 0, 0, 3}}
	s := testServer(t, tableBooter{}, func(c *Config) {
		c.Networks[0].Pool.To = netip.MustParseAddr("10.77.0.109")
		c.Networks[0].Known = site
	})
	mac := func(i int) MAC { return MAC{2, 2, 0, 0, 0, byte(i)} }
	discover := func(m MAC, now time.Time) string {
		a, e := message{kind: dhcpv4.MessageTypeDiscover, mac: m}.tell(t, s, now)
		if a == nil {
			return e.Why
		}
		return a.msg.YourIPAddr.String()
	}
	take := func(m MAC, addr string, now time.Time) string {
		a, e := message{kind: dhcpv4.MessageTypeRequest, mac: m, want: addr, server: "10.77.0.1"}.tell(t, s, now)
		if a == nil || a.msg.MessageType() != dhcpv4.MessageTypeAck {
			return e.Answer + ": " + e.Why
		}
		return addr
	}
	for i := range 8 {
		if got := discover(mac(i), epoch); !strings.HasPrefix(got, "10.77.0.1") {
			t.Fatalf("stranger %d: %s", i, got)
		}
	}
	if got := discover(mac(8), epoch); !strings.Contains(got, "machines that the site does not know have 8 of the 10 addresses") {
		t.Errorf("a ninth stranger: %s", got)
	}
	if got := take(mac(8), "10.77.0.109", epoch); !strings.HasPrefix(got, "nak") {
		t.Errorf("a ninth stranger, who waits for no offer: %s", got)
	}
	for i, m := range site[:2] {
		if got := take(m, discover(m, epoch), epoch); got != fmt.Sprintf("10.77.0.%d", 108+i) {
			t.Errorf("a machine of the site: %s", got)
		}
	}
	if got := discover(site[2], epoch); !strings.Contains(got, "are taken") {
		t.Errorf("a third machine of the site: %s", got)
	}
	// An offer nobody takes up is free again sooner than one of a known machine.
	late := epoch.Add(brieflyFor + time.Second)
	if got := take(site[2], discover(site[2], late), late); !strings.HasPrefix(got, "10.77.0.1") {
		t.Errorf("a third machine of the site, later: %s", got)
	}
	if got := discover(mac(9), late); !strings.HasPrefix(got, "10.77.0.1") {
		t.Errorf("a stranger, later: %s", got)
	}
	if st := s.Stats(); len(st.Dropped) == 0 {
		t.Error("nothing was counted")
	}
}

// TestSeenOnce: made-up machines never push out who had one: what was only offered is
// given to the next before what was acknowledged once.
func TestSeenOnce(t *testing.T) {
	s := testServer(t, tableBooter{})
	l := s.networks[0].leases
	now := epoch
	a, _, err := l.offer(unknown, netip.Addr{}, now)
	if err != nil {
		t.Fatal(err)
	}
	if v, _, wait := l.request(claim{mac: unknown, addr: a}, now, time.Hour); v != ack || wait() != nil {
		t.Fatal("no lease")
	}
	if !l.familiar(unknown, false) || l.familiar(other, false) {
		t.Error("familiar is who had a lease")
	}
	now = now.Add(2 * time.Hour) // ended
	for i := range 100 {         // three other addresses, offered again and again
		if got, _, err := l.offer(MAC{2, 3, 0, 0, 0, byte(i)}, netip.Addr{}, now); err == nil && got == a {
			t.Fatalf("offer %d gave %s away", i, got)
		}
		now = now.Add(brieflyFor/3 + time.Second)
	}
	if got, _, err := l.offer(unknown, netip.Addr{}, now); err != nil || got != a {
		t.Errorf("it came back and got %s, %v", got, err)
	}
	// What it asks about but does not take stays its own too.
	if !l.familiar(unknown, false) {
		t.Error("an offer made it a stranger")
	}
}

// TestDeclineAll: a stranger who declines whatever is offered leaves the machines
// of the site their share.
func TestDeclineAll(t *testing.T) {
	site := []MAC{{2, 1, 0, 0, 0, 1}, {2, 1, 0, 0, 0, 2}}
	s := testServer(t, tableBooter{}, func(c *Config) {
		c.Networks[0].Pool.To = netip.MustParseAddr("10.77.0.109")
		c.Networks[0].Known = site
	})
	l := s.networks[0].leases
	declines := 0
	for i := range 50 {
		mac := MAC{2, 2, 0, 0, 0, byte(i)}
		if a, _, err := l.offer(mac, netip.Addr{}, epoch); err == nil && l.decline(mac, a, epoch) {
			declines++
		}
	}
	if declines != 8 {
		t.Errorf("%d of 10 addresses are declined by strangers, want 8", declines)
	}
	for _, m := range site {
		if _, _, err := l.offer(m, netip.Addr{}, epoch); err != nil {
			t.Errorf("a machine of the site: %v", err)
		}
	}
	later := epoch.Add(quarantine + time.Second)
	if _, _, err := l.offer(MAC{2, 2, 0, 0, 1, 0}, netip.Addr{}, later); err != nil {
		t.Errorf("a stranger, once the quarantine is over: %v", err)
	}
}

// TestLeasesOrder holds the pool's heaps against a plain search.
func TestLeasesOrder(t *testing.T) {
	s := testServer(t, tableBooter{}, func(c *Config) { c.Networks[0].Pool.To = netip.MustParseAddr("10.77.0.119") })
	l := s.networks[0].leases
	now := epoch
	for i := range 20000 {
		mac := MAC{2, 4, 0, 0, 0, byte(i * 7 % 31)}
		a, _, err := l.offer(mac, netip.Addr{}, now)
		if err == nil {
			switch i % 5 {
			case 0, 1:
				l.request(claim{mac: mac, addr: a}, now, time.Duration(i%7+1)*time.Minute)
			case 2:
				l.release(mac, a, now)
			case 3:
				if i%25 == 3 {
					l.decline(mac, a, now)
				}
			}
		}
		now = now.Add(time.Duration(i%13) * time.Second)
		if len(l.ends[0])+len(l.ends[1]) != len(l.byAddr) {
			t.Fatalf("step %d: %d and %d in the heaps, %d in all", i, len(l.ends[0]), len(l.ends[1]), len(l.byAddr))
		}
		strangers := 0
		for a, e := range l.byAddr {
			if e.addr != a || e.state != declined && l.byMAC[e.mac] != e {
				t.Fatalf("step %d: %+v at %s", i, e, a)
			}
			if e.stranger {
				strangers++
			}
			for _, q := range l.ends {
				if len(q) > 0 && e.seen == q[0].seen && e.until.Before(q[0].until) {
					t.Fatalf("step %d: %s ends before the top of the heap", i, a)
				}
			}
		}
		if strangers != l.strangers {
			t.Fatalf("step %d: %d strangers, counted %d", i, strangers, l.strangers)
		}
	}
}

func TestThrottle(t *testing.T) {
	th := newThrottle(rate{4, 40}, 1<<10)
	now := time.Now()
	burst := func(now time.Time, source MAC) int {
		n := 0
		for n < 1000 && allow(th, source, now) {
			n++
		}
		return n
	}
	if n := burst(now, unknown); n != 40 {
		t.Errorf("a burst of %d, want 40", n)
	}
	if n := burst(now.Add(time.Second), unknown); n != 4 {
		t.Errorf("%d a second later, want 4", n)
	}
	if n := burst(now.Add(time.Second), other); n != 40 {
		t.Errorf("a burst of %d of another, want 40", n)
	}
	if n := burst(now.Add(-time.Hour), unknown); n != 40 {
		t.Errorf("a burst of %d after the clock went back, want 40", n)
	}
}

// TestAdmit: who sends too much is not even read, and is counted; machines of
// the site wait in a queue of their own.
func TestAdmit(t *testing.T) {
	s := testServer(t, tableBooter{}, func(c *Config) { c.Networks[0].Relays = []netip.Addr{netip.MustParseAddr("10.77.0.9")} })
	g := s.segments[0]
	now := time.Now()
	data := func(mac MAC) []byte { return message{kind: dhcpv4.MessageTypeDiscover, mac: mac}.bytes(t) }
	if q, reason := g.admit(data(known), now); q != g.known || reason != "" {
		t.Errorf("a machine of the site: %s", reason)
	}
	if q, reason := g.admit(data(unknown), now); q != g.strangers || reason != "" {
		t.Errorf("a stranger: %s", reason)
	}
	if _, e := (message{kind: dhcpv4.MessageTypeDiscover, mac: other}).tell(t, s, now); e.Machine.MAC != other {
		t.Fatal(e)
	}
	if q, _ := g.admit(data(other), now); q != g.strangers {
		t.Error("a stranger who asks again overtakes")
	}
	if q, _ := g.admit(message{kind: dhcpv4.MessageTypeRequest, mac: other, want: "10.77.0.100", server: "10.77.0.1"}.bytes(t), now); q != g.known {
		t.Error("a stranger who takes up an offer does not overtake")
	}
	if _, reason := g.admit(data(unknown)[:239], now); reason != "short" {
		t.Errorf("a short message: %q", reason)
	}
	many := func(mac func(int) MAC, n int) (reason string) {
		for i := range n {
			if _, r := g.admit(data(mac(i)), now); r != "" {
				reason = r
			}
		}
		return reason
	}
	if r := many(func(int) MAC { return unknown }, 50); r != "rate of its machine" {
		t.Errorf("50 messages of one stranger: %q", r)
	}
	if r := many(func(int) MAC { return known }, 50); r != "rate of its machine" {
		t.Errorf("50 messages of one known machine: %q", r)
	}
	g.limit = newThrottle(rate{100, 100}, 1)
	if r := many(func(i int) MAC { return MAC{2, 5, 0, 0, byte(i >> 8), byte(i)} }, 300); r != "rate of the interface" {
		t.Errorf("300 strangers: %q", r)
	}
	if r := many(func(i int) MAC { return known }, 0); r != "" {
		t.Errorf("a machine of the site among them: %q", r)
	}
	// A relay on a server names its interface, whatever hangs on it.
	for i := range 8000 {
		if !allow(s.limits.circuits, circuit{[4]byte{10, 77, 0, 9}, "eth1"}, now) {
			t.Errorf("message %d of a hall of 2,000 behind one circuit is dropped", i)
			break
		}
	}
	s.limits.circuits = newThrottle(rate{10, 10}, 1<<10)
	port := func(name string, n int) (e Event) {
		for i := range n {
			_, e = message{kind: dhcpv4.MessageTypeDiscover, mac: MAC{2, 6, 0, 0, 0, byte(i)}, giaddr: "10.77.0.9", options: map[uint8][]byte{82: append([]byte{1, byte(len(name))}, name...)}}.tell(t, s, now)
		}
		return e
	}
	if e := port("ge-0/0/1", 20); !strings.Contains(e.Why, `too much from circuit "ge-0/0/1" of relay 10.77.0.9`) {
		t.Errorf("20 messages of one circuit: %+v", e)
	}
	if _, e := (message{kind: dhcpv4.MessageTypeDiscover, mac: known, giaddr: "10.77.0.9", options: map[uint8][]byte{82: append([]byte{1, 8}, "ge-0/0/1"...)}}).tell(t, s, now); strings.Contains(e.Why, "too much") {
		t.Errorf("a machine of the site on that circuit: %+v", e)
	}
	if e := port("ge-0/0/2", 3); e.Answer == "dropped" {
		t.Errorf("the circuit beside it: %+v", e)
	}
}

// TestMalformed: each kind of nonsense is dropped for a reason that is counted.
func TestMalformed(t *testing.T) {
	good := message{kind: dhcpv4.MessageTypeDiscover, mac: unknown}
	opt := func(code uint8, v []byte) []byte {
		m := good
		m.options = map[uint8][]byte{code: v}
		return m.bytes(t)
	}
	change := func(at int, v byte) []byte {
		b := good.bytes(t)
		b[at] = v
		return b
	}
	for _, c := range []struct {
		name, reason string
		data         []byte
	}{
		{"nothing", "short", nil},
		{"239 bytes", "short", good.bytes(t)[:239]},
		{"a reply", "no request", change(0, 2)},
		{"hlen 0", "hardware", change(2, 0)},
		{"hlen 255", "hardware", change(2, 255)},
		{"token ring", "hardware", change(1, 6)},
		{"no cookie", "malformed", change(236, 1)},
		{"no END", "malformed", bytes.TrimSuffix(bytes.TrimRight(good.bytes(t), "\x00"), []byte{255})},
		{"option longer than the message", "malformed", append(good.bytes(t)[:240], 53, 200, 1)},
		{"two message types", "message type", append(append(good.bytes(t)[:240:240], 53, 1, 1, 53, 1, 3), 255)},
		{"long message type", "message type", opt(53, []byte{1, 1})},
		{"requested address of 3 bytes", "address", opt(50, []byte{10, 0, 0})},
		{"server identifier of 5 bytes", "address", opt(54, []byte{10, 0, 0, 1, 1})},
		{"client identifier of 300 bytes", "overlong", opt(61, make([]byte, 300))},
		{"overload into nonsense", "malformed", func() []byte {
			b := opt(52, []byte{1})
			copy(b[108:], []byte{60, 255, 'x'})
			return b
		}()},
		{"a zero MAC", "hardware", message{kind: dhcpv4.MessageTypeDiscover}.bytes(t)},
	} {
		_, err := parseRequest(c.data)
		d, ok := err.(dropped)
		if !ok || d.reason != c.reason || d.text == "" {
			t.Errorf("%s: %v (%q), want reason %q", c.name, err, d.reason, c.reason)
		}
	}
	// Text is bounded and printable wherever it goes.
	r, err := parseRequest(message{kind: dhcpv4.MessageTypeDiscover, mac: unknown, giaddr: "10.77.0.9", options: map[uint8][]byte{
		12: []byte("<script>\x1b[2J\n" + strings.Repeat("x", 200)), 60: bytes.Repeat([]byte{0xff, 0}, 100), 82: append([]byte{1, 200}, strings.Repeat("\n", 200)...),
	}}.bytes(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{r.machine.Hostname, r.machine.Vendor, r.machine.Circuit} {
		if len(s) > 64 || strings.ContainsFunc(s, func(c rune) bool { return c < ' ' || c > '~' }) {
			t.Errorf("%q is not bounded and printable", s)
		}
	}
}

// TestNoReflection: addresses in a message are not where we send, unless they
// are a listed relay's or inside the network it came from.
func TestNoReflection(t *testing.T) {
	s := modesServer(t, tableBooter{"": {Action: Hold, Why: "x"}})
	local := testServer(t, tableBooter{"": {Action: Hold, Why: "x"}})
	const victim = "192.0.2.1"
	for _, server := range []*Server{s, local} {
		for _, kind := range []dhcpv4.MessageType{1, 3, 4, 7, 8} {
			for _, m := range []message{
				{ciaddr: victim}, {giaddr: victim}, {want: victim}, {ciaddr: victim, giaddr: "10.78.0.1"}, {ciaddr: victim, src: victim + ":68", boot: true, unicast: true},
				{src: victim + ":68", boot: true}, {ciaddr: victim, unicast: true, src: victim + ":68"}, {ciaddr: victim, want: "10.77.0.100", server: "10.77.0.1"},
				{giaddr: "10.78.0.1", options: map[uint8][]byte{82: {5, 4, 192, 0, 2, 0, 11, 4, 192, 0, 2, 1}}},
			} {
				for _, options := range []map[uint8][]byte{nil, pxeUEFI, ipxeROM, httpUEFI} {
					m.kind, m.mac = kind, unknown
					for code, v := range options {
						m.options = with(m.options, code, v)
					}
					a, e := m.tell(t, server, epoch)
					if a == nil {
						continue
					}
					to := a.to.addr.Addr().String()
					if to == victim {
						t.Fatalf("%v %+v: %s is answered: %+v", kind, m, victim, e)
					}
					// A flood of short questions makes no flood of long answers.
					if n := len(a.msg.ToBytes()); n > minMessage-headerSize && !m.boot && len(options) == 0 {
						t.Errorf("%v: an answer of %d bytes", kind, n)
					}
				}
			}
		}
	}
}
