package pxe

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

const (
	rivalInterval = 5 * time.Minute         // between our questions, and a fifth more or less
	questionGap   = 1200 * time.Millisecond // ISC dhcpd drops a question while it pings an address for the one before
	offerTime     = time.Second             // in which a ProxyDHCP server answers, before its port 4011 is asked
	answerTime    = 4 * time.Second         // in which all have answered: dnsmasq first pings an address for 3 s
	proxyPort     = 4011                    // boot servers (PXE 2.1 section 2.2.2)
)

// probePrefix begins the hardware address that our questions name: locally
// administered, and reserved for this. No Smelt answers it or takes it for a
// machine; hearing it from elsewhere shows that another Smelt is there.
var probePrefix = [5]byte{0x02, 'S', 'M', 'E', 'L'}

// probeMAC is the address that the questions of the interface with the
// hardware address hw name.
func probeMAC(hw MAC) MAC {
	var last byte
	for _, b := range hw {
		last = last*31 + b
	}
	return MAC{probePrefix[0], probePrefix[1], probePrefix[2], probePrefix[3], probePrefix[4], last}
}

// isProbe reports whether mac is that of a Smelt that looks for rivals.
func isProbe(mac MAC) bool { return [5]byte(mac[:5]) == probePrefix }

// probes are the machines that our questions pretend to be.
var probes = []struct {
	name  string
	class string
	arch  Arch
}{
	{"BIOS PXE", "PXEClient:Arch:00000:UNDI:002001", BIOS},
	{"UEFI PXE", "PXEClient:Arch:00007:UNDI:003000", UEFIx64},
	{"UEFI HTTP", "HTTPClient:Arch:00016:UNDI:003001", HTTPx64},
}

// watcher listens on an interface to other servers, and asks for them.
type watcher struct {
	rivals *rivals
	iface  *net.Interface
	id     string     // in our questions: whose they are
	own    []MAC      // of all our interfaces: what comes from there is our own
	addr   netip.Addr // ours on this one; invalid: none
	file   *os.File
	log    *slog.Logger
	shown  time.Time // when a doctor last saw us

	mu    sync.Mutex
	asked map[uint32]string // transaction: what the question said it was
}

// openWatcher listens in the whole interface, whoever holds port 67.
func openWatcher(t *rivals, id string, log *slog.Logger) (*watcher, error) {
	name := t.network.Interface
	iface, err := net.InterfaceByName(name)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %v", name, err)
	}
	if len(iface.HardwareAddr) != 6 {
		return nil, fmt.Errorf("interface %s has no Ethernet address", name)
	}
	all, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	w := &watcher{rivals: t, iface: iface, id: id, log: log, addr: t.network.Address.Addr()}
	if addrs, err := iface.Addrs(); err == nil && !w.addr.IsValid() {
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil {
				w.addr = netip.AddrFrom4([4]byte(n.IP.To4()))
			}
		}
	}
	for _, i := range all {
		if len(i.HardwareAddr) == 6 {
			w.own = append(w.own, MAC(i.HardwareAddr))
		}
	}
	filter, err := bpf.Assemble(rivalFilter())
	if err != nil {
		return nil, err
	}
	// Protocol 0 until the filter is in place, so that nothing else is read.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("packet socket on %s: %v (needs CAP_NET_RAW)", name, err)
	}
	prog := make([]unix.SockFilter, len(filter))
	for i, f := range filter {
		prog[i] = unix.SockFilter{Code: f.Op, Jt: f.Jt, Jf: f.Jf, K: f.K}
	}
	err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]})
	// Our own answers leave from port 67 as well, thousands of them a second; a
	// kernel before 4.20 lets us look at them in vain.
	_ = unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_IP), Ifindex: iface.Index})
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("packet socket on %s: %v", name, err)
	}
	w.file = os.NewFile(uintptr(fd), "rivals")
	return w, nil
}

// rivalFilter lets through, of IPv4: UDP from port 67 or 4011, which are
// answers of servers, and UDP to port 67 about a probe address, which are
// questions of another Smelt.
func rivalFilter() []bpf.Instruction {
	const chaddr = 8 + 28 // behind the IP header: UDP header, fields before chaddr (RFC 2131 figure 1)
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: 9, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_UDP, SkipTrue: 13},
		bpf.LoadAbsolute{Off: 6, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: 0x1fff, SkipTrue: 11}, // a later fragment
		bpf.LoadMemShift{Off: 0},
		bpf.LoadIndirect{Off: 0, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: serverPort, SkipTrue: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: proxyPort, SkipTrue: 2},
		bpf.LoadIndirect{Off: 8, Size: 1}, // a relay asks from port 67, too
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 2, SkipTrue: 4},
		bpf.LoadIndirect{Off: 2, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: serverPort, SkipTrue: 3},
		bpf.LoadIndirect{Off: chaddr, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: binary.BigEndian.Uint32(probePrefix[:4]), SkipTrue: 1},
		bpf.RetConstant{Val: 65535},
		bpf.RetConstant{Val: 0},
	}
}

// listen notes what it hears until ctx ends.
func (w *watcher) listen(ctx context.Context) error {
	if w.file == nil {
		<-ctx.Done()
		return nil
	}
	stop := context.AfterFunc(ctx, func() { w.file.Close() })
	defer stop()
	defer w.file.Close()
	raw, err := w.file.SyscallConn()
	if err != nil {
		return err
	}
	buf := make([]byte, 28+40+maxReply)
	for {
		var n int
		var from unix.Sockaddr
		var rerr error
		err := raw.Read(func(fd uintptr) bool {
			n, from, rerr = unix.Recvfrom(int(fd), buf, 0)
			return rerr != unix.EAGAIN && rerr != unix.EINTR
		})
		if err == nil {
			err = rerr
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case err == unix.ENETDOWN:
			continue // the interface went down; it reads again once it is up
		case err != nil:
			return fmt.Errorf("other DHCP servers on %s: %v", w.iface.Name, err)
		}
		if sa, ok := from.(*unix.SockaddrLinklayer); ok && sa.Pkttype != unix.PACKET_OUTGOING && sa.Halen == 6 {
			w.packet(MAC(sa.Addr[:6]), buf[:n], time.Now())
		}
	}
}

// packet looks at one IP packet. Whatever a stranger sends, the watch goes on.
func (w *watcher) packet(from MAC, p []byte, now time.Time) {
	defer func() {
		if v := recover(); v != nil {
			w.log.Error("boot: a packet of another DHCP server dropped after a panic", "interface", w.iface.Name, "panic", v, "stack", string(debug.Stack()))
		}
	}()
	if slices.Contains(w.own, from) {
		return
	}
	src, payload, ok := udp4(p)
	if !ok {
		return
	}
	if payload[0] == 1 {
		switch id, a := readProbe(payload); {
		case id == smeltID && a.Is4():
			w.rivals.smelt(from, a, now)
		case id == doctorID && w.id == smeltID && now.Sub(w.shown) > answerTime:
			// We offer it nothing; a question of ours shows it that we are here.
			w.shown = now
			p := probes[0]
			_ = w.broadcast(w.question(1, p.class, p.arch, mathrand.Uint32())) // else it asks again
		}
		return
	}
	s, err := parseSighting(payload)
	if err != nil {
		return
	}
	s.proxy = src.Port() == proxyPort
	// What a relay passes on to its machines is not what it says itself: ours
	// comes back with our own identifier.
	if s.giaddr.IsValid() && s.server == w.rivals.network.Address.Addr() {
		return
	}
	w.mu.Lock()
	asked := w.asked[s.xid]
	w.mu.Unlock()
	if !isProbe(s.client) {
		asked = ""
	}
	w.rivals.hear(from, src.Addr(), s, asked, now)
}

// udp4 is the source and the content of a UDP datagram that is not empty and
// not in fragments.
func udp4(p []byte) (src netip.AddrPort, payload []byte, ok bool) {
	if len(p) < 28 || p[0]>>4 != 4 || p[9] != unix.IPPROTO_UDP || binary.BigEndian.Uint16(p[6:])&0x3fff != 0 {
		return
	}
	head := int(p[0]&15) * 4
	total := int(binary.BigEndian.Uint16(p[2:])) // behind it is padding of Ethernet
	if head < 20 || total > len(p) || total < head+8 {
		return
	}
	u := p[head:total]
	n := int(binary.BigEndian.Uint16(u[4:]))
	if n <= 8 || n > len(u) {
		return
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(p[12:16])), binary.BigEndian.Uint16(u)), u[8:n], true
}

// Whose question it is: option 61 holds one of these and an address.
const (
	smeltID  = "smelt "
	doctorID = "smelt-doctor "
)

// readProbe returns whose question b is, and the address of that one. Not one
// from beyond a relay (giaddr), which may have sent us our own.
func readProbe(b []byte) (id string, a netip.Addr) {
	if len(b) < dhcpHeader || b[0] != 1 || !isProbe(MAC(b[28:34])) || binary.BigEndian.Uint32(b[24:]) != 0 {
		return "", a
	}
	options := make(map[byte][]byte)
	if _, err := readOptions(b[dhcpHeader:], options); err != nil || len(options[61]) == 0 {
		return "", a
	}
	text := string(options[61][1:])
	for _, id := range []string{smeltID, doctorID} {
		if rest, ok := strings.CutPrefix(text, id); ok {
			a, _ = netip.ParseAddr(rest)
			return id, a
		}
	}
	return "", a
}

// question is a DISCOVER as firmware sends it (RFC 4578), of a machine that
// does not exist. Answers come by broadcast.
func (w *watcher) question(kind byte, class string, arch Arch, xid uint32) []byte {
	m := make([]byte, dhcpHeader, 400)
	m[0], m[1], m[2] = 1, 1, 6 // request, Ethernet
	binary.BigEndian.PutUint32(m[4:], xid)
	m[10] = 0x80 // answer by broadcast
	mac := probeMAC(MAC(w.iface.HardwareAddr))
	copy(m[28:], mac[:])
	copy(m[236:], dhcpCookie)
	id := w.id + w.addr.String()
	option := func(code byte, b ...byte) { m = append(append(m, code, byte(len(b))), b...) }
	option(53, kind)
	option(55, 1, 3, 6, 12, 43, 54, 60, 66, 67, 97, 175, 208, 209, 210)
	option(57, 1472>>8, 1472&0xff)
	option(60, []byte(class)...)
	option(61, append([]byte{0}, id...)...)
	option(93, byte(arch>>8), byte(arch))
	option(94, 1, 3, 0)
	option(97, append([]byte{0}, append(mac[:], "smeltprobe"...)...)...)
	return append(m, 255)
}

// send transmits a question from port 68 in a frame of our own
// hardware address: a switch that saw the address of the question on our port
// might shut it.
func (w *watcher) send(to netip.AddrPort, mac MAC, from netip.Addr, payload []byte) error {
	p := datagram(from, to, payload)
	binary.BigEndian.PutUint16(p[20:], clientPort)
	clear(p[26:28]) // no checksum (RFC 768): the port above is another
	sa := &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_IP), Ifindex: w.iface.Index, Halen: 6}
	copy(sa.Addr[:], mac[:])
	raw, err := w.file.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = raw.Write(func(fd uintptr) bool {
		serr = unix.Sendto(int(fd), p, 0, sa)
		return serr != unix.EAGAIN
	})
	if err == nil {
		err = serr
	}
	return err
}

func (w *watcher) broadcast(payload []byte) error {
	to := netip.AddrPortFrom(broadcast.Addr(), serverPort)
	return w.send(to, MAC{255, 255, 255, 255, 255, 255}, netip.IPv4Unspecified(), payload)
}

// ask puts one round of questions.
func (w *watcher) ask(ctx context.Context) error {
	asked := make(map[uint32]string)
	w.mu.Lock()
	w.asked = asked
	w.mu.Unlock()
	remember := func(name string) uint32 {
		var b [4]byte
		_, _ = rand.Read(b[:]) // never fails
		xid := binary.BigEndian.Uint32(b[:])
		w.mu.Lock()
		asked[xid] = name
		w.mu.Unlock()
		return xid
	}
	w.rivals.ask()
	for _, p := range probes {
		if err := w.broadcast(w.question(1, p.class, p.arch, remember(p.name))); err != nil {
			return fmt.Errorf("question to other DHCP servers on %s: %v", w.iface.Name, err)
		}
		if !sleep(ctx, questionGap) {
			return nil
		}
	}
	if !sleep(ctx, offerTime) {
		return nil
	}
	// What a ProxyDHCP server offered no file for, it has at port 4011.
	for _, r := range w.rivals.list(time.Now()) {
		if !w.addr.IsValid() || !r.Addr.Is4() {
			continue
		}
		for _, p := range probes {
			i := slices.IndexFunc(r.Boots, func(b RivalBoot) bool { return b.File == "" && b.For == p.name })
			if i < 0 {
				continue
			}
			q := w.question(3, p.class, p.arch, remember(p.name))
			if item := r.Boots[i].item; item != 0 { // PXE 2.1 table 2-1: PXE_BOOT_ITEM, layer 0
				q = append(q[:len(q)-1], 43, 7, 71, 4, byte(item>>8), byte(item), 0, 0, 255, 255)
			}
			a := w.addr.As4()
			copy(q[12:], a[:]) // ciaddr: where the answer goes
			q[10] = 0
			if err := w.send(netip.AddrPortFrom(r.Addr, proxyPort), r.MAC, w.addr, q); err != nil {
				return fmt.Errorf("question to %s on %s: %v", r.Addr, w.iface.Name, err)
			}
		}
	}
	return nil
}

// run asks now and again until ctx ends.
func (w *watcher) run(ctx context.Context) error {
	failed := false
	var settle <-chan time.Time
	next := time.After(0)
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		select {
		case r := <-w.rivals.changes:
			if w.rivals.told != nil {
				w.rivals.told(r)
			}
		case <-tick.C:
			w.rivals.list(time.Now()) // forgets who is gone
		case <-next:
			next = time.After(rivalInterval*4/5 + mathrand.N(rivalInterval*2/5))
			if m := w.rivals.network.Mode; m == Observe || m == Relay {
				continue // whoever observes is not heard, and beyond a relay nobody hears us
			}
			err := w.ask(ctx)
			if err != nil && !failed {
				w.log.Warn("boot: cannot look for other DHCP servers", "err", err)
			}
			failed = err != nil
			settle = time.After(answerTime)
		case <-settle:
			w.rivals.settle()
		case <-ctx.Done():
			return nil
		}
	}
}

// openWatchers starts to listen on every wire that machines are on. Behind
// relays there is nothing to hear or to ask, only what machines name.
func (s *Server) openWatchers() ([]*watcher, error) {
	var out []*watcher
	for _, n := range s.networks {
		if n.Mode == Relay {
			out = append(out, &watcher{rivals: n.rivals, log: s.log})
			continue
		}
		w, err := openWatcher(n.rivals, smeltID, s.log)
		if err != nil {
			for _, w := range out {
				if w.file != nil {
					w.file.Close()
				}
			}
			return nil, err
		}
		out = append(out, w)
	}
	return out, nil
}

// FindRivals asks once on an interface and returns who answered within wait.
// Of n it reads Interface, Address, Mode and Servers.
func FindRivals(ctx context.Context, n Network, wait time.Duration) ([]Rival, error) {
	log := slog.New(slog.DiscardHandler)
	t := newRivals(n, log, nil)
	w, err := openWatcher(t, doctorID, log)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- w.listen(ctx) }()
	err = w.ask(ctx)
	if err == nil {
		sleep(ctx, wait)
	}
	cancel()
	if lerr := <-done; err == nil {
		err = lerr
	}
	return t.list(time.Now()), err
}

// sleep waits, unless ctx ends first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
