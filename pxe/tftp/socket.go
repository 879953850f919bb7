package tftp

import (
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

const (
	maxDatagram = 1<<16 - 1 - 20 - 8 // in one call, also when it is cut
	maxSegments = 64                 // UDP_MAX_SEGMENTS

	// The kernel would cut an OACK or ERROR too, which are shorter than this.
	leastSegment = 128
)

// segment lets the kernel cut what is written into packets of size (UDP GSO),
// so that a window is one call. It returns how many packets may be in one; with
// size 0, or where the kernel cannot do it, one.
func segment(conn *net.UDPConn, size int) int {
	if err := control(conn, func(fd int) error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT, size)
	}); err != nil || size == 0 {
		return 1
	}
	return max(1, min(maxSegments, maxDatagram/size))
}

// growBuffer makes room for n bytes of datagrams that wait: beyond the
// system's limit where we may, else up to it.
func growBuffer(conn *net.UDPConn, n int) {
	if err := control(conn, func(fd int) error {
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, n)
	}); err != nil {
		_ = conn.SetReadBuffer(n)
	}
}

func control(conn *net.UDPConn, f func(fd int) error) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}

// pathMTU is what the kernel knows of the way to a client: the interface's, or
// less where a router said so. A connected socket tells, without a packet.
func pathMTU(client netip.AddrPort, unknown int) int {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return unknown
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(client.Port()), Addr: client.Addr().As4()}); err != nil {
		return unknown
	}
	mtu, err := unix.GetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU)
	if err != nil {
		return unknown
	}
	return mtu
}
