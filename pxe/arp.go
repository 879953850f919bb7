package pxe

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// probeTime is how long an owner of an address has to answer. RFC 5227 takes
// seconds; a machine that boots repeats its DISCOVER after one.
const probeTime = 300 * time.Millisecond

// prober finds out whether somebody uses an address that nobody was given (RFC
// 2131 section 2.2): a BMC with a static address, a forgotten switch.
type prober struct {
	iface *net.Interface
	file  *os.File

	mu      sync.Mutex
	waiting map[netip.Addr]chan MAC
}

func openProber(name string) (*prober, error) {
	iface, err := net.InterfaceByName(name)
	if err != nil {
		return nil, err
	}
	if len(iface.HardwareAddr) != 6 {
		return nil, fmt.Errorf("interface %s has no Ethernet address", name)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(htons(unix.ETH_P_ARP)))
	if err != nil {
		return nil, fmt.Errorf("packet socket on %s: %v (needs CAP_NET_RAW)", name, err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ARP), Ifindex: iface.Index}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("packet socket on %s: %v", name, err)
	}
	return &prober{iface: iface, file: os.NewFile(uintptr(fd), "arp"), waiting: make(map[netip.Addr]chan MAC)}, nil
}

// arpPacket is an Ethernet ARP packet (RFC 826).
func arpPacket(op uint16, from MAC, fromIP [4]byte, to MAC, toIP [4]byte) []byte {
	p := []byte{0, 1, 8, 0, 6, 4}
	p = binary.BigEndian.AppendUint16(p, op)
	p = append(append(p, from[:]...), fromIP[:]...)
	return append(append(p, to[:]...), toIP[:]...)
}

// inUse asks for addr and returns who answered. Our own sender address is
// left out (RFC 5227 section 2.1.1), so that nobody remembers the question.
func (p *prober) inUse(ctx context.Context, addr netip.Addr) (MAC, bool) {
	c := make(chan MAC, 1)
	p.mu.Lock()
	if _, busy := p.waiting[addr]; busy {
		p.mu.Unlock()
		return MAC{}, false // being asked already, for another DISCOVER
	}
	p.waiting[addr] = c
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.waiting, addr)
		p.mu.Unlock()
	}()
	sa := &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ARP), Ifindex: p.iface.Index, Halen: 6, Addr: [8]byte{255, 255, 255, 255, 255, 255}}
	request := arpPacket(1, MAC(p.iface.HardwareAddr), [4]byte{}, MAC{}, addr.As4())
	raw, err := p.file.SyscallConn()
	if err != nil {
		return MAC{}, false
	}
	_ = raw.Write(func(fd uintptr) bool {
		_ = unix.Sendto(int(fd), request, 0, sa) // not sent is not answered: the client may still decline
		return true
	})
	timer := time.NewTimer(probeTime)
	defer timer.Stop()
	select {
	case mac := <-c:
		return mac, true
	case <-timer.C:
	case <-ctx.Done():
	}
	return MAC{}, false
}

// run listens to answers until ctx ends.
func (p *prober) run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { p.file.Close() })
	defer stop()
	defer p.file.Close()
	buf := make([]byte, 1500)
	for {
		n, err := p.file.Read(buf)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("ARP on %s: %v", p.iface.Name, err)
		}
		// Any packet with a sender shows that it uses the address, a request too.
		if n < 28 || [6]byte(buf[:6]) != [6]byte{0, 1, 8, 0, 6, 4} {
			continue
		}
		mac, addr := MAC(buf[8:14]), netip.AddrFrom4([4]byte(buf[14:18]))
		p.mu.Lock()
		if c, ok := p.waiting[addr]; ok {
			select {
			case c <- mac:
			default:
			}
		}
		p.mu.Unlock()
	}
}
