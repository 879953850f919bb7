package pxe

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// link is the DHCP side of one interface: the socket of port 67 and a packet
// socket for clients that have no address yet.
type link struct {
	iface *net.Interface
	addr  netip.Addr
	conn  *ipv4.PacketConn
	raw   int
}

// openLink takes port 67 of the interface for this process alone. Nothing is
// shared (no SO_REUSEADDR, no SO_REUSEPORT): with two servers on one port, each
// would see half of the renewals and neither would know.
func openLink(name string, addr netip.Addr) (*link, error) {
	iface, err := net.InterfaceByName(name)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %v", name, err)
	}
	addrs, err := iface.Addrs()
	if err != nil {
		return nil, fmt.Errorf("interface %s: %v", name, err)
	}
	found := false
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.Equal(addr.AsSlice()) {
			found = true
		}
	}
	if !found {
		return nil, fmt.Errorf("interface %s has no address %s (it has %v): configure the interface first, or correct the address", name, addr, addrs)
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var serr error
		err := c.Control(func(fd uintptr) { serr = unix.BindToDevice(int(fd), name) })
		return errors.Join(err, serr)
	}}
	pc, err := lc.ListenPacket(context.Background(), "udp4", fmt.Sprintf(":%d", serverPort))
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("port %d on %s is taken: another DHCP server runs on this machine (find it with: ss -ulpn 'sport = :%d')", serverPort, name, serverPort)
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("port %d on %s: %v (a boot server needs root, or CAP_NET_BIND_SERVICE and CAP_NET_RAW)", serverPort, name, err)
	case err != nil:
		return nil, fmt.Errorf("port %d on %s: %v", serverPort, name, err)
	}
	conn := ipv4.NewPacketConn(pc)
	if err := conn.SetControlMessage(ipv4.FlagDst|ipv4.FlagInterface, true); err != nil {
		conn.Close()
		return nil, fmt.Errorf("interface %s: %v", name, err)
	}
	// Protocol 0: it sends, and receives nothing.
	raw, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("packet socket on %s: %v (needs CAP_NET_RAW)", name, err)
	}
	return &link{iface: iface, addr: addr, conn: conn, raw: raw}, nil
}

func (l *link) close() {
	l.conn.Close()
	unix.Close(l.raw)
}

// send transmits a DHCP message from our address and port.
func (l *link) send(payload []byte, to target) error {
	if to.mac == (MAC{}) {
		cm := &ipv4.ControlMessage{Src: l.addr.AsSlice(), IfIndex: l.iface.Index}
		_, err := l.conn.WriteTo(payload, cm, net.UDPAddrFromAddrPort(to.addr))
		return err
	}
	sa := &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_IP), Ifindex: l.iface.Index, Halen: 6}
	copy(sa.Addr[:], to.mac[:])
	return unix.Sendto(l.raw, datagram(l.addr, to.addr, payload), 0, sa)
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
