package pxe

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// link is the DHCP side of one interface: the socket of port 67, that of boot
// servers (4011), and a packet socket for clients that have no address yet.
type link struct {
	iface *net.Interface
	addrs []netip.Addr // ours
	conn  *ipv4.PacketConn
	boot  *ipv4.PacketConn // nil where nobody is answered
	raw   int
}

// openLink takes the ports of the interface for this process alone. Nothing is
// shared (no SO_REUSEADDR, no SO_REUSEPORT): with two servers on one port, each
// would see half of the renewals and neither would know.
func openLink(name string, addrs []netip.Addr, boot bool) (*link, error) {
	iface, err := net.InterfaceByName(name)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %v", name, err)
	}
	has, err := iface.Addrs()
	if err != nil {
		return nil, fmt.Errorf("interface %s: %v", name, err)
	}
	for _, addr := range addrs {
		if !slices.ContainsFunc(has, func(a net.Addr) bool {
			n, ok := a.(*net.IPNet)
			return ok && n.IP.Equal(addr.AsSlice())
		}) {
			return nil, fmt.Errorf("interface %s has no address %s (it has %v): configure the interface first, or correct the address", name, addr, has)
		}
	}
	l := &link{iface: iface, addrs: addrs, raw: -1}
	if l.conn, err = openPort(name, serverPort, "another DHCP server"); err != nil {
		return nil, err
	}
	if boot {
		if l.boot, err = openPort(name, proxyPort, "another boot server"); err != nil {
			l.close()
			return nil, err
		}
	}
	// Protocol 0: it sends, and receives nothing.
	if l.raw, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		l.close()
		return nil, fmt.Errorf("packet socket on %s: %v (needs CAP_NET_RAW)", name, err)
	}
	return l, nil
}

func openPort(name string, port int, who string) (*ipv4.PacketConn, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var serr error
		err := c.Control(func(fd uintptr) {
			serr = unix.BindToDevice(int(fd), name)
			// A hall that powers on at once sends more than fits in a usual buffer; with
			// too large a one, answers come after their clients have given up. Where
			// it may not be enlarged, the usual one does.
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 512<<10)
		})
		return errors.Join(err, serr)
	}}
	pc, err := lc.ListenPacket(context.Background(), "udp4", fmt.Sprintf(":%d", port))
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("port %d on %s is taken: %s runs on this machine (find it with: ss -ulpn 'sport = :%d')", port, name, who, port)
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("port %d on %s: %v (a boot server needs root, or CAP_NET_BIND_SERVICE and CAP_NET_RAW)", port, name, err)
	case err != nil:
		return nil, fmt.Errorf("port %d on %s: %v", port, name, err)
	}
	conn := ipv4.NewPacketConn(pc)
	if err := conn.SetControlMessage(ipv4.FlagDst|ipv4.FlagInterface, true); err != nil {
		conn.Close()
		return nil, fmt.Errorf("interface %s: %v", name, err)
	}
	return conn, nil
}

// conns are the sockets that are read.
func (l *link) conns() []*ipv4.PacketConn {
	if l.boot == nil {
		return []*ipv4.PacketConn{l.conn}
	}
	return []*ipv4.PacketConn{l.conn, l.boot}
}

func (l *link) close() {
	for _, c := range l.conns() {
		c.Close()
	}
	if l.raw >= 0 {
		unix.Close(l.raw)
		l.raw = -1
	}
}

// toUs reports whether a datagram came to an address of ours, and not to all.
func (l *link) toUs(cm *ipv4.ControlMessage) bool {
	return cm != nil && slices.ContainsFunc(l.addrs, func(a netip.Addr) bool { return cm.Dst.Equal(net.IP(a.AsSlice())) })
}

// addrPort is where a datagram came from.
func addrPort(a net.Addr) netip.AddrPort {
	if u, ok := a.(*net.UDPAddr); ok {
		p := u.AddrPort()
		return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
	}
	return netip.AddrPort{}
}

// send transmits an answer from our address and the port that was asked.
func (l *link) send(a *answer, boot bool) error {
	payload, to := a.wire, a.to
	if to.mac == (MAC{}) {
		conn := l.conn
		if boot {
			conn = l.boot
		}
		cm := &ipv4.ControlMessage{Src: a.from.AsSlice(), IfIndex: l.iface.Index}
		_, err := conn.WriteTo(payload, cm, net.UDPAddrFromAddrPort(to.addr))
		return err
	}
	sa := &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_IP), Ifindex: l.iface.Index, Halen: 6}
	copy(sa.Addr[:], to.mac[:])
	return unix.Sendto(l.raw, datagram(a.from, to.addr, payload), 0, sa)
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

// datagram is an IPv4 packet (RFC 791) that holds a UDP datagram (RFC 768)
// from our port 67.
func datagram(from netip.Addr, to netip.AddrPort, payload []byte) []byte {
	src, dst := from.As4(), to.Addr().As4()
	p := make([]byte, 28+len(payload))
	p[0] = 0x45
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	p[8] = 64
	p[9] = unix.IPPROTO_UDP
	copy(p[12:], src[:])
	copy(p[16:], dst[:])
	binary.BigEndian.PutUint16(p[10:], ^sum(0, p[:20]))

	udp := p[20:]
	binary.BigEndian.PutUint16(udp, serverPort)
	binary.BigEndian.PutUint16(udp[2:], to.Port())
	binary.BigEndian.PutUint16(udp[4:], uint16(len(udp)))
	copy(udp[8:], payload)
	pseudo := uint32(sum(0, p[12:20])) + unix.IPPROTO_UDP + uint32(len(udp))
	check := ^sum(pseudo, udp)
	if check == 0 {
		check = 0xffff // 0 would mean that there is none
	}
	binary.BigEndian.PutUint16(udp[6:], check)
	return p
}

// sum is the one's complement sum of RFC 1071.
func sum(s uint32, b []byte) uint16 {
	for ; len(b) >= 2; b = b[2:] {
		s += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}
