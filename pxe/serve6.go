package pxe

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// dhcp6 is the DHCPv6 server of one network.
type dhcp6 struct {
	s         *Server
	n         *network    // its v6
	duid      dhcpv6.DUID // who we are
	strangers *throttle

	mu       sync.Mutex
	declined map[netip.Addr]bool

	iface *net.Interface
	conn  *ipv6.PacketConn
}

func newDHCP6(s *Server, n *network, duid dhcpv6.DUID) *dhcp6 {
	return &dhcp6{s: s, n: n, duid: duid, strangers: newThrottle(strangerRate, 1), declined: make(map[netip.Addr]bool)}
}

// open takes port 547 of the interface for this process alone, as openLink does
// with port 67.
func (d *dhcp6) open() error {
	n := d.n
	iface, err := net.InterfaceByName(n.Interface)
	if err != nil {
		return fmt.Errorf("interface %s: %v", n.Interface, err)
	}
	addrs, err := iface.Addrs()
	if err != nil {
		return fmt.Errorf("interface %s: %v", n.Interface, err)
	}
	if !slices.ContainsFunc(addrs, func(a net.Addr) bool {
		ipn, ok := a.(*net.IPNet)
		return ok && ipn.IP.Equal(n.id.AsSlice())
	}) {
		return fmt.Errorf("interface %s has no address %s (it has %v): configure the interface first, or correct the address", n.Interface, n.id, addrs)
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var serr error
		err := c.Control(func(fd uintptr) { serr = unix.BindToDevice(int(fd), n.Interface) })
		return errors.Join(err, serr)
	}}
	pc, err := lc.ListenPacket(context.Background(), "udp6", fmt.Sprintf("[::]:%d", serverPort6))
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("port %d on %s is taken: another DHCPv6 server runs on this machine (find it with: ss -ulpn 'sport = :%d')", serverPort6, n.Interface, serverPort6)
	case err != nil:
		return fmt.Errorf("port %d on %s: %v", serverPort6, n.Interface, err)
	}
	conn := ipv6.NewPacketConn(pc)
	err = errors.Join(conn.JoinGroup(iface, &net.IPAddr{IP: allServers}), conn.SetControlMessage(ipv6.FlagDst, true))
	if err != nil {
		conn.Close()
		return fmt.Errorf("DHCPv6 on %s: %v", n.Interface, err)
	}
	d.iface, d.conn = iface, conn
	return nil
}

// packet6 is a datagram that waits for a worker.
type packet6 struct {
	data []byte
	from netip.Addr
}

// run reads and lets a bounded number of workers decide, until ctx ends.
func (d *dhcp6) run(ctx context.Context) error {
	queue := make(chan packet6, backlog)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for p := range queue {
				d.handle(ctx, p)
			}
		})
	}
	defer d.conn.Close() // after the workers, which send on it
	defer wg.Wait()
	defer close(queue)
	stop := context.AfterFunc(ctx, func() { _ = d.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, 4096)
	for {
		size, cm, from, err := d.conn.ReadFrom(buf)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("DHCPv6 on %s: %v", d.n.Interface, err)
		}
		a, ok := from.(*net.UDPAddr)
		if !ok || cm == nil || !cm.Dst.Equal(allServers) {
			continue // section 18.4: to our own address only where we allowed it, and we do not
		}
		src := a.AddrPort().Addr().WithZone("")
		if now := time.Now(); !allow(d.s.limits.strangers, src, now) || !allow(d.strangers, 0, now) {
			d.drop("rate")
			continue
		}
		select {
		case queue <- packet6{append([]byte(nil), buf[:size]...), src}:
		default:
			d.drop("busy")
		}
	}
}

func (d *dhcp6) drop(reason string) { d.s.recorder.stats.dropped.add(1, "dhcp6", reason) }

// handle decides on one datagram and sends the answer.
func (d *dhcp6) handle(ctx context.Context, p packet6) {
	defer func() {
		if v := recover(); v != nil {
			d.drop("panic")
			d.s.log.Error("boot: DHCPv6 message dropped after a panic", "interface", d.n.Interface, "panic", v, "stack", string(debug.Stack()))
		}
	}()
	r, err := parseRequest6(p.data, p.from)
	if err != nil {
		d.drop("malformed")
		d.s.log.Debug("boot: DHCPv6 message dropped", "interface", d.n.Interface, "from", p.from, "why", err)
		return
	}
	m, e := d.respond(ctx, r, time.Now())
	if e.Machine.MAC != (MAC{}) {
		d.s.recorder.record(e)
	}
	if m == nil {
		return
	}
	to := &net.UDPAddr{IP: p.from.AsSlice(), Port: clientPort6, Zone: d.iface.Name}
	if _, err := d.conn.WriteTo(m.ToBytes(), nil, to); err != nil {
		d.s.log.Log(context.Background(), d.s.recorder.level(slog.LevelWarn, time.Now()), "boot: DHCPv6 answer not sent", "interface", d.n.Interface, "mac", e.Machine.MAC, "to", p.from, "err", err)
	}
}

// open6 opens what serves n, which is the v6 of a network, and returns what runs it and what closes
// it unrun.
func (s *Server) open6(n *network) (tasks []func(context.Context) error, undo []func(), err error) {
	duid, err := serverDUID(s.path + ".duid")
	if err != nil {
		return nil, nil, err
	}
	d := newDHCP6(s, n, duid)
	if err := d.open(); err != nil {
		return nil, nil, err
	}
	undo = append(undo, func() { d.conn.Close() })
	t, err := openTFTP(s, n)
	if err != nil {
		return nil, undo, err
	}
	undo = append(undo, func() { t.conn.Close() })
	a, err := openAdvertiser(n.Interface, n.IPv6)
	if err != nil {
		return nil, undo, fmt.Errorf("router advertisements on %s, without which no machine asks for an IPv6 address: %v", n.Interface, err)
	}
	undo = append(undo, func() { a.conn.Close() })
	return []func(context.Context) error{d.run, t.run, a.run}, undo, nil
}

// serverDUID is who we are in DHCPv6. It is made once and kept in the file path:
// with another one, machines that renew would not be answered (RFC 8415 section 11).
func serverDUID(path string) (dhcpv6.DUID, error) {
	text, err := os.ReadFile(path)
	if err == nil {
		id, err := hex.DecodeString(strings.TrimSpace(string(text)))
		if err != nil || len(id) != 16 {
			return nil, fmt.Errorf("%s holds no DHCPv6 server identifier (32 hexadecimal digits): restore it, or remove it and a new one is made", path)
		}
		return &dhcpv6.DUIDUUID{UUID: [16]byte(id)}, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("DHCPv6 server identifier: %v", err)
	}
	var id [16]byte
	_, _ = rand.Read(id[:])                         // never fails
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80 // RFC 4122: version 4
	tmp := path + ".new"
	err = os.WriteFile(tmp, []byte(hex.EncodeToString(id[:])+"\n"), 0o600)
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return nil, fmt.Errorf("DHCPv6 server identifier: %v", err)
	}
	return &dhcpv6.DUIDUUID{UUID: id}, nil
}

func (n *Network) validate6() error {
	a := n.IPv6.Addr()
	switch {
	case !n.IPv6.IsValid():
		return nil
	case n.Mode != Authoritative:
		return fmt.Errorf("IPv6 in mode %s: only where the addresses are ours to give", n.Mode)
	case n.HTTPS.IsValid():
		return errors.New("IPv6 and HTTPS boot on one network: over IPv6 loaders are sent in clear")
	case !a.Is6() || a.Is4In6() || !a.IsGlobalUnicast() || a.Zone() != "":
		return fmt.Errorf("IPv6 address %s: want a global or unique local one such as fd00:10:20::1/64", n.IPv6)
	case n.IPv6.Bits() != 64:
		return fmt.Errorf("IPv6 address %s: want a /64, which is what firmware takes every network for", n.IPv6)
	case a == n.IPv6.Masked().Addr():
		return fmt.Errorf("IPv6 address %s is the network, not an address in it", n.IPv6)
	}
	return nil
}
