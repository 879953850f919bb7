package tftp

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxDatagram = 1<<16 - 1 - 20 - 8 // in one call, also when it is cut
	maxSegments = 64                 // UDP_MAX_SEGMENTS

	// The kernel would cut an OACK or ERROR too, which are shorter than this.
	leastSegment = 128
)

// socket is a UDP socket.
type socket int

func openSocket(local netip.Addr) (socket, error) {
	family := unix.AF_INET
	if local.Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(local, 0))); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return socket(fd), nil
}

func (s socket) close() { _ = unix.Close(int(s)) }

func (s socket) send(p []byte, to unix.Sockaddr) error {
	return unix.Sendto(int(s), p, unix.MSG_DONTWAIT, to)
}

func (s socket) receive(p []byte) (int, netip.AddrPort, error) {
	n, from, err := unix.Recvfrom(int(s), p, unix.MSG_DONTWAIT)
	if err != nil {
		return 0, netip.AddrPort{}, err
	}
	switch a := from.(type) {
	case *unix.SockaddrInet4:
		return n, netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)), nil
	case *unix.SockaddrInet6:
		return n, netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port)), nil
	}
	return 0, netip.AddrPort{}, unix.EAFNOSUPPORT
}

// segment lets the kernel cut what is sent into packets of size (UDP GSO), so
// that a window is one call. It returns how many packets may be in one; with
// size 0, or where the kernel cannot do it, one.
func (s socket) segment(size int) int {
	if err := unix.SetsockoptInt(int(s), unix.IPPROTO_UDP, unix.UDP_SEGMENT, size); err != nil || size == 0 {
		return 1
	}
	return max(1, min(maxSegments, maxDatagram/size))
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is6() {
		return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
	}
	return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
}

// pathMTU is what the kernel knows of the way to a client: the interface's, or
// less where a router said so. A connected socket tells, without a packet. Of
// IPv6 it is less by what its header is longer.
func pathMTU(client unix.Sockaddr, unknown int) int {
	family, level, option, longer := unix.AF_INET, unix.IPPROTO_IP, unix.IP_MTU, 0
	if _, ok := client.(*unix.SockaddrInet6); ok {
		family, level, option, longer = unix.AF_INET6, unix.IPPROTO_IPV6, unix.IPV6_MTU, 20
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return unknown - longer
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, client); err != nil {
		return unknown - longer
	}
	mtu, err := unix.GetsockoptInt(fd, level, option)
	if err != nil {
		return unknown - longer
	}
	return mtu - longer
}

// descriptor is conn's, with room for n bytes of datagrams that wait: beyond
// the system's limit where we may, else up to it. It lives as long as conn.
func descriptor(conn *net.UDPConn, n int) (s socket, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return -1, err
	}
	err = raw.Control(func(fd uintptr) {
		s = socket(fd)
		if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, n) != nil {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, n)
		}
	})
	return s, err
}

// poll waits for any of many sockets.
type poll struct {
	epoll  int
	event  int // ends a wait
	events [256]unix.EpollEvent
}

func openPoll() (*poll, error) {
	p := &poll{event: -1}
	var err error
	if p.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, err
	}
	if p.event, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err == nil {
		err = p.add(socket(p.event))
	}
	if err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

// add lets wait wait for s too, until s is closed.
func (p *poll) add(s socket) error {
	return unix.EpollCtl(p.epoll, unix.EPOLL_CTL_ADD, int(s), &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(s)})
}

// wait returns the sockets that have something to read; none after limit, if
// that is not negative, or after wake.
func (p *poll) wait(limit time.Duration) ([]unix.EpollEvent, error) {
	ms := -1
	if limit >= 0 {
		ms = int(limit.Milliseconds())
	}
	n, err := unix.EpollWait(p.epoll, p.events[:], ms)
	if errors.Is(err, unix.EINTR) {
		return nil, nil
	}
	return p.events[:max(0, n)], err
}

// wake ends wait, now or the next.
func (p *poll) wake() { _, _ = unix.Write(p.event, binary.NativeEndian.AppendUint64(nil, 1)) }

func (p *poll) close() {
	unix.Close(p.epoll)
	unix.Close(p.event)
}
