package pxe

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/sys/unix"
)

// wire is a packet socket on the client's end of the cable: it sends frames
// from any machine and sees where answers really go.
type wire struct {
	t       *testing.T
	fd      int
	ifindex int
}

func (l *lab) wire() *wire {
	l.t.Helper()
	w := &wire{t: l.t}
	within(l.t, l.client, func() error {
		iface, err := net.InterfaceByName("c0")
		if err != nil {
			return err
		}
		w.ifindex = iface.Index
		w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_ALL)))
		if err != nil {
			return err
		}
		tv := unix.NsecToTimeval((100 * time.Millisecond).Nanoseconds())
		return errors.Join(
			unix.SetsockoptTimeval(w.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv),
			unix.SetsockoptInt(w.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20),
			unix.Bind(w.fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: w.ifindex}),
		)
	})
	l.t.Cleanup(func() { unix.Close(w.fd) })
	return w
}

var everybody = MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// send writes a DHCP message in a frame.
func (w *wire) send(from MAC, src, dst string, port uint16, dhcp []byte) {
	w.t.Helper()
	p := datagram(netip.MustParseAddr(src), netip.AddrPortFrom(netip.MustParseAddr(dst), serverPort), dhcp)
	binary.BigEndian.PutUint16(p[20:], port)
	p[26], p[27] = 0, 0 // without a checksum: the port changed
	frame := append(everybody[:6:6], from[:]...)
	frame = append(frame, 8, 0)
	w.write(append(frame, p...))
}

func (w *wire) write(frame []byte) {
	w.t.Helper()
	if err := unix.Sendto(w.fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: w.ifindex, Protocol: htons(unix.ETH_P_IP)}); err != nil {
		w.t.Fatal(err)
	}
}

// seen is a DHCP answer as it stood on the wire.
type seen struct {
	mac      MAC // destination of the frame
	src, dst netip.AddrPort
	msg      *dhcpv4.DHCPv4
}

// frame returns the next frame that fits, or nil when none comes in time.
func (w *wire) frame(limit time.Duration, fits func([]byte) bool) []byte {
	w.t.Helper()
	buf := make([]byte, 65536)
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); {
		n, _, err := unix.Recvfrom(w.fd, buf, 0)
		if err == nil && fits(buf[:n]) {
			return append([]byte(nil), buf[:n]...)
		}
	}
	return nil
}

// answer waits for the server's answer to the transaction, for a moment.
func (w *wire) answer(limit time.Duration, xid dhcpv4.TransactionID) *seen {
	w.t.Helper()
	var s seen
	f := w.frame(limit, func(f []byte) bool {
		if len(f) < 14+28+240 || f[12] != 8 || f[13] != 0 || f[14] != 0x45 || f[23] != unix.IPPROTO_UDP {
			return false
		}
		ip := f[14:]
		s.src = netip.AddrPortFrom(netip.AddrFrom4([4]byte(ip[12:16])), binary.BigEndian.Uint16(ip[20:]))
		if s.src.Port() != serverPort {
			return false
		}
		s.dst = netip.AddrPortFrom(netip.AddrFrom4([4]byte(ip[16:20])), binary.BigEndian.Uint16(ip[22:]))
		s.mac = MAC(f[:6])
		m, err := dhcpv4.FromBytes(ip[28:binary.BigEndian.Uint16(ip[2:])])
		if err != nil || m.TransactionID != xid {
			return false
		}
		s.msg = m
		if check := sum(0, ip[:20]); check != 0xffff {
			w.t.Errorf("IP checksum is wrong: %04x", check)
		}
		// Offloaded checksums of the kernel's own sending are not on a veth.
		udp := ip[20:binary.BigEndian.Uint16(ip[2:])]
		pseudo := uint32(sum(0, ip[12:20])) + unix.IPPROTO_UDP + uint32(len(udp))
		if s.mac != everybody && s.dst.Port() == clientPort && m.ClientIPAddr.IsUnspecified() && sum(pseudo, udp) != 0xffff {
			w.t.Errorf("UDP checksum is wrong")
		}
		return true
	})
	if f == nil {
		return nil
	}
	return &s
}

// arp answers one ARP request for addr, so that the server can reach it.
func (w *wire) arp(stop <-chan struct{}, owners map[netip.Addr]MAC) {
	for {
		select {
		case <-stop:
			return
		default:
		}
		w.frame(200*time.Millisecond, func(f []byte) bool {
			if len(f) < 42 || f[12] != 8 || f[13] != 6 || f[21] != 1 {
				return false
			}
			mac, ok := owners[netip.AddrFrom4([4]byte(f[38:42]))]
			if !ok {
				return false
			}
			r := append([]byte(nil), f[6:12]...)
			r = append(append(r, mac[:]...), 8, 6)
			r = append(r, arpPacket(2, mac, [4]byte(f[38:42]), MAC(f[22:28]), [4]byte(f[28:32]))...)
			w.write(r)
			return true
		})
	}
}

// TestWire checks where answers go, as frames on a cable (RFC 2131 section 4.1).
func TestWire(t *testing.T) {
	needs(t)
	l := newLab(t)
	l.start()
	w, arp := l.wire(), l.wire()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	relay := MAC{0x52, 0x54, 0, 0, 0, 0x77}
	wg.Go(func() {
		arp.arp(stop, map[netip.Addr]MAC{
			netip.MustParseAddr("10.77.0.9"): relay, // and nobody else answers: a machine is reached without a question
		})
	})
	defer wg.Wait()
	defer close(stop)
	const discover, request = dhcpv4.MessageTypeDiscover, dhcpv4.MessageTypeRequest
	xid := byte(0)
	for _, c := range []struct {
		name     string
		m        message
		src, dst string
		kind     dhcpv4.MessageType // 0: no answer
		mac      MAC
		to       string
	}{
		{"relay", message{kind: discover, mac: unknown, giaddr: "10.77.0.9"}, "10.77.0.9", "10.77.0.1", dhcpv4.MessageTypeOffer, relay, "10.77.0.9:67"},
		{"no address, no flag", message{kind: discover, mac: unknown}, "0.0.0.0", "255.255.255.255", dhcpv4.MessageTypeOffer, unknown, "10.77.0.100:68"},
		{"broadcast flag", message{kind: discover, mac: unknown, broadcast: true}, "0.0.0.0", "255.255.255.255", dhcpv4.MessageTypeOffer, everybody, "255.255.255.255:68"},
		{"ack, no flag", message{kind: request, mac: unknown, want: "10.77.0.100", server: "10.77.0.1"}, "0.0.0.0", "255.255.255.255", dhcpv4.MessageTypeAck, unknown, "10.77.0.100:68"},
		{"ciaddr", message{kind: request, mac: unknown, ciaddr: "10.77.0.100", broadcast: true}, "10.77.0.100", "10.77.0.1", dhcpv4.MessageTypeAck, unknown, "10.77.0.100:68"},
		{"relay before ciaddr", message{kind: request, mac: known, ciaddr: "10.77.0.11", giaddr: "10.77.0.9"}, "10.77.0.9", "10.77.0.1", dhcpv4.MessageTypeAck, relay, "10.77.0.9:67"},
		{"nak is broadcast", message{kind: request, mac: known, ciaddr: "10.77.0.12"}, "10.77.0.12", "10.77.0.1", dhcpv4.MessageTypeNak, everybody, "255.255.255.255:68"},
		{"nak of a wrong net", message{kind: request, mac: other, want: "192.168.1.4"}, "0.0.0.0", "255.255.255.255", dhcpv4.MessageTypeNak, everybody, "255.255.255.255:68"},
		{"nak through a relay", message{kind: request, mac: known, want: "10.77.0.12", giaddr: "10.77.0.9"}, "10.77.0.9", "10.77.0.1", dhcpv4.MessageTypeNak, relay, "10.77.0.9:67"},
		{"inform", message{kind: dhcpv4.MessageTypeInform, mac: known, ciaddr: "10.77.0.11"}, "10.77.0.11", "255.255.255.255", dhcpv4.MessageTypeAck, known, "10.77.0.11:68"},
		{"another server was chosen", message{kind: request, mac: other, want: "10.77.0.100", server: "10.77.0.9"}, "0.0.0.0", "255.255.255.255", 0, MAC{}, ""},
		{"nothing known after a reboot", message{kind: request, mac: other, want: "10.77.0.150"}, "0.0.0.0", "255.255.255.255", 0, MAC{}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			w.t = t
			data := c.m.bytes(t)
			xid++
			id := dhcpv4.TransactionID{0xab, 0, 0, xid}
			copy(data[4:], id[:])
			port := uint16(clientPort)
			if c.m.giaddr != "" {
				port = serverPort
			}
			w.send(c.m.mac, c.src, c.dst, port, data)
			limit := 5 * time.Second
			if c.kind == 0 {
				limit = 300 * time.Millisecond
			}
			got := w.answer(limit, id)
			if c.kind == 0 {
				if got != nil {
					t.Fatalf("got %v to %s", got.msg.MessageType(), got.dst)
				}
				return
			}
			if got == nil {
				t.Fatal("no answer")
			}
			if got.msg.MessageType() != c.kind || got.mac != c.mac || got.dst.String() != c.to || got.src.String() != "10.77.0.1:67" {
				t.Errorf("got %v from %s to %s at %s, want %v to %s at %s", got.msg.MessageType(), got.src, got.dst, got.mac, c.kind, c.to, c.mac)
			}
		})
	}
	w.t = t
	t.Run("noise is survived", func(t *testing.T) {
		good := message{kind: discover, mac: known}.bytes(t)
		for i := range 2000 {
			b := append([]byte(nil), good[:rand.IntN(len(good))+1]...)
			for range i % 10 {
				b[rand.IntN(len(b))] = byte(rand.Uint32())
			}
			w.send(unknown, "0.0.0.0", "255.255.255.255", clientPort, b)
		}
		id := dhcpv4.TransactionID{0xcd, 0, 0, 1}
		copy(good[4:], id[:])
		l.wait("an answer after noise", 5*time.Second, func() bool {
			w.send(known, "0.0.0.0", "255.255.255.255", clientPort, good)
			return w.answer(300*time.Millisecond, id) != nil
		})
		if strings.Contains(l.log(), "after a panic") {
			t.Error("a message made the server panic")
		}
	})
}

// TestSquatter: an address that somebody uses already is not given out.
func TestSquatter(t *testing.T) {
	needs(t)
	l := newLab(t)
	l.start()
	if out, err := l.run("ip", "addr", "add", "10.77.0.100/24", "dev", "c0"); err != nil {
		t.Fatal(out)
	}
	w := l.wire()
	data := message{kind: dhcpv4.MessageTypeDiscover, mac: unknown}.bytes(t)
	w.send(unknown, "0.0.0.0", "255.255.255.255", clientPort, data)
	a := w.answer(5*time.Second, dhcpv4.TransactionID(data[4:8]))
	if a == nil || a.msg.YourIPAddr.String() != "10.77.0.101" {
		t.Fatalf("offered %+v, want 10.77.0.101: the one before is in use", a)
	}
	if !strings.Contains(l.log(), "in use by an unknown machine") {
		t.Error("the log does not say so")
	}
}

// TestStartRefuses: what stops a boot server at start says so.
func TestStartRefuses(t *testing.T) {
	needs(t)
	l := newLab(t)
	l.start()
	for _, c := range []struct {
		want   string
		change func(*serverSpec)
	}{
		{"another server uses it", func(*serverSpec) {}},
		{"another DHCP server runs on this machine", func(s *serverSpec) { s.Leases += "2" }},
		{"no address 10.77.0.2", func(s *serverSpec) { s.Leases += "2"; s.Network.Address = netip.MustParsePrefix("10.77.0.2/24") }},
		{"no such network interface", func(s *serverSpec) { s.Leases += "2"; s.Network.Interface = "eth9" }},
	} {
		spec := l.spec
		c.change(&l.spec)
		l.mu.Lock()
		l.stderr.Reset()
		l.mu.Unlock()
		l.spec.NoHTTP = true
		if err := l.tryStart(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("started, or failed without %q: %v", c.want, err)
		}
		l.spec = spec
	}
}

// TestAdvertisement: a router solicitation is answered at once, with nothing in it.
func TestAdvertisement(t *testing.T) {
	needs(t)
	l := newLab(t)
	l.spec.Network.RouterAdvertisement = true
	l.start()
	w := l.wire()
	src := netip.MustParseAddr("fe80::5054:ff:fe00:99").As16()
	dst := netip.MustParseAddr("ff02::2").As16()
	icmp := []byte{133, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0x52, 0x54, 0, 0, 0, 0x99}
	pseudo := uint32(sum(0, src[:])) + uint32(sum(0, dst[:])) + uint32(len(icmp)) + unix.IPPROTO_ICMPV6
	binary.BigEndian.PutUint16(icmp[2:], ^sum(pseudo, icmp))
	frame := append([]byte{0x33, 0x33, 0, 0, 0, 2}, unknown[:]...)
	frame = append(frame, 0x86, 0xdd, 0x60, 0, 0, 0, 0, byte(len(icmp)), unix.IPPROTO_ICMPV6, 255)
	frame = append(append(append(frame, src[:]...), dst[:]...), icmp...)

	neighbour := func(f []byte) bool { return f[54] == 135 } // the server looks for us
	advert := func(f []byte) bool { return f[54] == 134 }
	icmp6 := func(f []byte) bool {
		return len(f) >= 14+40+8 && f[12] == 0x86 && f[13] == 0xdd && f[20] == unix.IPPROTO_ICMPV6
	}
	var got []byte
	l.wait("an advertisement", 10*time.Second, func() bool {
		w.write(frame)
		got = w.frame(500*time.Millisecond, func(f []byte) bool {
			if !icmp6(f) {
				return false
			}
			if neighbour(f) && [16]byte(f[62:78]) == src {
				// Neighbour advertisement, solicited.
				na := append([]byte{136, 0, 0, 0, 0x60, 0, 0, 0}, src[:]...)
				na = append(append(na, 2, 1), unknown[:]...)
				to := f[22:38]
				pseudo := uint32(sum(0, src[:])) + uint32(sum(0, to)) + uint32(len(na)) + unix.IPPROTO_ICMPV6
				binary.BigEndian.PutUint16(na[2:], ^sum(pseudo, na))
				r := append(append([]byte(nil), f[6:12]...), unknown[:]...)
				r = append(r, 0x86, 0xdd, 0x60, 0, 0, 0, 0, byte(len(na)), unix.IPPROTO_ICMPV6, 255)
				w.write(append(append(append(r, src[:]...), to...), na...))
			}
			return advert(f)
		})
		return got != nil
	})
	ra := got[54:]
	if len(ra) != 16 || got[21] != 255 || ra[5] != 0 || ra[6] != 0 || ra[7] != 0 {
		t.Errorf("want 16 bytes with hop limit 255, no flags, lifetime 0; got hop limit %d, % x", got[21], ra)
	}
}
