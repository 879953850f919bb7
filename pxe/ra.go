package pxe

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// advertiser answers IPv6 router solicitations with an advertisement of
// nothing: no prefix, no default router (RFC 4861 section 4.2 with a lifetime
// of zero). iPXE sends solicitations before it uses IPv4 and waits for every
// retry of them; told at once that there is no IPv6, it goes on some 16
// seconds earlier.
//
// On a network that boots over IPv6 the advertisement says so, and that
// addresses come by DHCPv6. It still names no router.
type advertiser struct {
	iface  *net.Interface
	conn   *ipv6.PacketConn
	answer []byte
}

var (
	allNodes   = net.ParseIP("ff02::1")
	allRouters = net.ParseIP("ff02::2")
)

// RFC 4861 section 6.2.6 asks for this much between two advertisements to all.
const minDelayBetweenRAs = 3 * time.Second

func openAdvertiser(name string, prefix netip.Prefix) (*advertiser, error) {
	iface, err := net.InterfaceByName(name)
	if err != nil {
		return nil, err
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var serr error
		err := c.Control(func(fd uintptr) { serr = unix.BindToDevice(int(fd), name) })
		return errors.Join(err, serr)
	}}
	pc, err := lc.ListenPacket(context.Background(), "ip6:ipv6-icmp", "::")
	if err != nil {
		return nil, err
	}
	conn := ipv6.NewPacketConn(pc)
	var filter ipv6.ICMPFilter
	filter.SetAll(true)
	filter.Accept(ipv6.ICMPTypeRouterSolicitation)
	err = errors.Join(
		conn.SetICMPFilter(&filter),
		conn.JoinGroup(iface, &net.IPAddr{IP: allRouters}),
		conn.SetControlMessage(ipv6.FlagHopLimit, true),
		conn.SetHopLimit(255), // RFC 4861 section 4.2: proves that no router forwarded it
		conn.SetMulticastHopLimit(255),
		conn.SetMulticastLoopback(false),
	)
	if err != nil {
		conn.Close()
		return nil, err
	}
	return &advertiser{iface, conn, advertisement(prefix)}, nil
}

// advertisement: type 134, code 0, checksum (the kernel's), hop limit
// unspecified, no flags, lifetime 0, reachable and retransmit unspecified; with
// a prefix the flags M and O, and that the prefix is on this wire but no source
// of addresses (RFC 4861 sections 4.2 and 4.6.2).
func advertisement(prefix netip.Prefix) []byte {
	b := make([]byte, 16)
	b[0] = 134
	if !prefix.IsValid() {
		return b
	}
	const month = 30 * 24 * 60 * 60
	b[5] = 0x80 | 0x40
	b = append(b, 3, 4, byte(prefix.Bits()), 0x80)
	b = binary.BigEndian.AppendUint32(b, month) // valid lifetime: it is told only to those who ask
	b = binary.BigEndian.AppendUint32(b, month)
	b = append(b, 0, 0, 0, 0)
	return append(b, prefix.Masked().Addr().AsSlice()...)
}

// run answers until ctx ends.
func (a *advertiser) run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { a.conn.Close() })
	defer stop()
	defer a.conn.Close()
	buf := make([]byte, 1500)
	var last time.Time
	for {
		n, cm, from, err := a.conn.ReadFrom(buf)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("router solicitations on %s: %v", a.iface.Name, err)
		}
		ip, ok := from.(*net.IPAddr)
		if !ok || n < 8 || buf[0] != 133 || buf[1] != 0 || cm == nil || cm.HopLimit != 255 {
			continue
		}
		to := &net.IPAddr{IP: ip.IP, Zone: a.iface.Name}
		if ip.IP.IsUnspecified() {
			if time.Since(last) < minDelayBetweenRAs {
				continue
			}
			last = time.Now()
			to.IP = allNodes
		}
		// Lost like any datagram: the machine asks again, or waits a while.
		_, _ = a.conn.WriteTo(a.answer, &ipv6.ControlMessage{HopLimit: 255, IfIndex: a.iface.Index}, to)
	}
}
