package pid1

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Network gets one address by DHCP and keeps it. Every Ethernet card with a
// carrier is tried; the one the machine booted from has a head start.
type Network struct {
	BootIF   net.HardwareAddr
	Hostname string // sent to the server when not empty
	Log      *slog.Logger

	up    chan struct{} // closed with the first lease
	once  sync.Once
	claim sync.Mutex       // one card configures the host at a time
	owner int              // index of the card that has the address
	mac   net.HardwareAddr // of that card

	spares atomic.Int32  // cards with a carrier that wait for the owner to give up
	other  chan struct{} // see Other
}

// The waits. RFC 2131 section 4.1 asks for retries from 4 s, doubling to 64 s,
// with a jitter; switches that block a port for 30 s (spanning tree) make
// short first tries worth it. There is no last try: see Run.
const (
	headStart   = 15 * time.Second
	firstWait   = 2 * time.Second
	longestWait = 64 * time.Second
)

// NewNetwork returns a Network; Run does the work.
func NewNetwork(boot net.HardwareAddr, log *slog.Logger) *Network {
	return &Network{BootIF: boot, Log: log, up: make(chan struct{}), other: make(chan struct{})}
}

// Card is the hardware address of the card that has the address, nil while
// none has.
func (n *Network) Card() net.HardwareAddr {
	n.claim.Lock()
	defer n.claim.Unlock()
	if n.owner == 0 {
		return nil
	}
	return n.mac
}

// errOther ends a lease that is good and leads to the wrong network.
var errOther = errors.New("the server cannot be reached from there")

// Other says that the address leads nowhere: when another card waits, the one
// that has it gives it up and stands back. A machine often hangs on several
// networks, and each may have a DHCP server. It reports whether one waits.
func (n *Network) Other() bool {
	if n.spares.Load() == 0 {
		return false
	}
	select {
	case n.other <- struct{}{}:
		return true
	default: // it has no lease at this moment
		return false
	}
}

// Ready is closed once there is an address.
func (n *Network) Ready() <-chan struct{} { return n.up }

func (n *Network) String() string { return "network" }

// Run brings up every card, also those that appear later, and ends with ctx.
func (n *Network) Run(ctx context.Context) error {
	// Everything below wants random numbers, and the DHCP library spins until
	// there are some. A processor without RDRAND has none at this point: only a
	// call that blocks makes the kernel gather them from its own timing (about a
	// second; try_to_generate_entropy in drivers/char/random.c).
	if _, err := unix.Getrandom(make([]byte, 1), 0); err != nil {
		n.Log.Warn("random numbers", "err", err)
	}
	if lo, err := netlink.LinkByName("lo"); err == nil {
		_ = netlink.LinkSetUp(lo)
	}
	updates := make(chan netlink.LinkUpdate, 64)
	if err := netlink.LinkSubscribeWithOptions(updates, ctx.Done(), netlink.LinkSubscribeOptions{ListExisting: true}); err != nil {
		return fmt.Errorf("watch network cards: %v", err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	cards := map[int]chan bool{} // index -> carrier
	for {
		select {
		case <-ctx.Done():
			return nil
		case u, ok := <-updates:
			if !ok {
				if ctx.Err() != nil {
					return nil
				}
				return errors.New("watch network cards: the kernel ended it")
			}
			a := u.Link.Attrs()
			if u.Link.Type() != "device" || a.Flags&net.FlagLoopback != 0 || len(a.HardwareAddr) != 6 {
				continue
			}
			c := cards[a.Index]
			if u.Header.Type == unix.RTM_DELLINK {
				if c != nil {
					close(c)
					delete(cards, a.Index)
				}
				continue
			}
			if c == nil {
				c = make(chan bool, 64)
				cards[a.Index] = c
				n.Log.Info("network card", "name", a.Name, "mac", a.HardwareAddr.String())
				if err := netlink.LinkSetUp(u.Link); err != nil {
					n.Log.Warn("network card does not come up", "name", a.Name, "err", err)
				}
				wg.Go(func() { n.card(ctx, u.Link, c) })
			}
			select {
			case c <- u.IfInfomsg.Flags&unix.IFF_RUNNING != 0:
			default: // 64 changes behind: the card's loop reads sysfs itself
			}
		}
	}
}

// card follows one card: while it has a carrier, it gets and keeps a lease.
func (n *Network) card(ctx context.Context, l netlink.Link, carrier <-chan bool) {
	stop := func() {}
	defer func() { stop() }()
	on := false
	for {
		select {
		case <-ctx.Done():
			return
		case now, ok := <-carrier:
			if !ok {
				return
			}
			if now == on {
				continue
			}
			on = now
			if !on {
				n.Log.Warn("network cable lost", "name", l.Attrs().Name)
				stop()
				stop = func() {}
				continue
			}
			c, cancel := context.WithCancel(ctx)
			done := make(chan struct{})
			go func() {
				defer close(done)
				n.lease(c, l)
			}()
			stop = func() {
				cancel()
				<-done
			}
		}
	}
}

// lease asks for an address until it has one, keeps it while ctx lasts, and
// starts over when it is lost.
func (n *Network) lease(ctx context.Context, l netlink.Link) {
	a := l.Attrs()
	if len(n.BootIF) == 6 && !bytes.Equal(a.HardwareAddr, n.BootIF) {
		// Another card answers first only when the one we booted from does not.
		select {
		case <-ctx.Done():
			return
		case <-n.up:
		case <-time.After(headStart):
		}
	}
	wait := firstWait
	for ctx.Err() == nil {
		if n.taken(a.Index) {
			// One card carries the address; this one is its spare.
			n.spares.Add(1)
			select {
			case <-ctx.Done():
			case <-time.After(5 * time.Second):
			}
			n.spares.Add(-1)
			continue
		}
		err := n.hold(ctx, l)
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, errOther) {
			wait = headStart // longer than a spare needs to notice
		}
		n.Log.Warn("no address yet", "card", a.Name, "again in", wait, "err", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait + rand.N(time.Second)):
		}
		wait = min(2*wait, longestWait)
	}
}

func (n *Network) taken(index int) bool {
	n.claim.Lock()
	defer n.claim.Unlock()
	return n.owner != 0 && n.owner != index
}

// hold gets one lease and renews it until that fails for good.
func (n *Network) hold(ctx context.Context, l netlink.Link) error {
	a := l.Attrs()
	c, err := nclient4.New(a.Name, nclient4.WithTimeout(firstWait), nclient4.WithRetry(3))
	if err != nil {
		return err
	}
	defer c.Close()
	mods := []dhcpv4.Modifier{
		dhcpv4.WithRequestedOptions(dhcpv4.OptionSubnetMask, dhcpv4.OptionRouter, dhcpv4.OptionDomainNameServer, dhcpv4.OptionInterfaceMTU, dhcpv4.OptionIPAddressLeaseTime, dhcpv4.OptionClasslessStaticRoute),
		// Our own class keeps the boot server from taking us for firmware.
		dhcpv4.WithOption(dhcpv4.OptClassIdentifier("smelt-agent")),
		// The firmware asked with the same hardware address and no client id:
		// without one the server gives the same address again.
	}
	if n.Hostname != "" {
		mods = append(mods, dhcpv4.WithOption(dhcpv4.OptHostName(n.Hostname)))
	}
	lease, err := c.Request(ctx, mods...)
	if err != nil {
		return err
	}
	if err := n.configure(l, lease.ACK); err != nil {
		return err
	}
	defer n.release(l)
	for {
		life := lease.ACK.IPAddressLeaseTime(time.Hour)
		renew := lease.ACK.IPAddressRenewalTime(life / 2)
		if renew < 10*time.Second {
			renew = 10 * time.Second
		}
		expiry := time.Now().Add(life)
		select {
		case <-ctx.Done():
			return nil
		case <-n.other:
			return errOther
		case <-time.After(renew):
		}
		for {
			next, err := c.Renew(ctx, lease, mods...)
			if err == nil {
				lease = next
				break
			}
			if ctx.Err() != nil {
				return nil
			}
			var nak *nclient4.ErrNak
			if errors.As(err, &nak) || time.Now().After(expiry) {
				return fmt.Errorf("lease lost: %v", err)
			}
			select {
			case <-ctx.Done():
				return nil
			case <-n.other:
				return errOther
			case <-time.After(min(time.Until(expiry)/2+time.Second, time.Minute)):
			}
		}
	}
}

// configure gives the card the address of ack, its routes, and the resolver.
func (n *Network) configure(l netlink.Link, ack *dhcpv4.DHCPv4) error {
	n.claim.Lock()
	defer n.claim.Unlock()
	a := l.Attrs()
	if n.owner != 0 && n.owner != a.Index {
		return fmt.Errorf("another card has the address already")
	}
	ip, ok := netip.AddrFromSlice(ack.YourIPAddr.To4())
	if !ok || !ip.IsGlobalUnicast() {
		return fmt.Errorf("the server offers %v, which is no address for a machine", ack.YourIPAddr)
	}
	mask := ack.SubnetMask()
	if ones, bits := mask.Size(); bits != 32 || ones == 0 {
		mask = net.CIDRMask(24, 32)
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: ip.AsSlice(), Mask: mask}}
	old, err := netlink.AddrList(l, netlink.FAMILY_V4)
	if err != nil {
		return err
	}
	for _, o := range old {
		if !o.Equal(*addr) {
			_ = netlink.AddrDel(l, &o)
		}
	}
	if err := netlink.AddrReplace(l, addr); err != nil {
		return fmt.Errorf("set address %s: %v", addr, err)
	}
	if b := ack.Options.Get(dhcpv4.OptionInterfaceMTU); len(b) == 2 {
		if mtu := int(b[0])<<8 | int(b[1]); mtu >= 1280 && mtu <= 9216 {
			_ = netlink.LinkSetMTU(l, mtu)
		}
	}
	for _, gw := range ack.Router() {
		if err := netlink.RouteReplace(&netlink.Route{LinkIndex: a.Index, Gw: gw, Dst: nil}); err != nil {
			n.Log.Warn("default route", "via", gw.String(), "err", err)
			continue
		}
		break
	}
	var dns strings.Builder
	for _, s := range ack.DNS() {
		fmt.Fprintf(&dns, "nameserver %s\n", s)
	}
	if dns.Len() > 0 {
		if err := os.WriteFile("/etc/resolv.conf", []byte(dns.String()), 0o644); err != nil {
			n.Log.Warn("resolver", "err", err)
		}
	}
	n.owner, n.mac = a.Index, a.HardwareAddr
	n.Log.Info("address", "card", a.Name, "address", addr.IPNet.String(), "server", ack.ServerIPAddr.String())
	n.once.Do(func() { close(n.up) })
	return nil
}

// release takes the address away again, so that another card can have one.
func (n *Network) release(l netlink.Link) {
	n.claim.Lock()
	defer n.claim.Unlock()
	old, err := netlink.AddrList(l, netlink.FAMILY_V4)
	if err == nil {
		for _, o := range old {
			_ = netlink.AddrDel(l, &o)
		}
	}
	n.owner = 0
}

// Down takes the address and the link away from every card, as they were when
// the machine started: whoever finds them configured, as the udev and networkd
// of a root that this system hands over to, leaves them as they are.
func Down() error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("network cards: %w", err)
	}
	var errs []error
	for _, l := range links {
		if l.Type() != "device" || l.Attrs().Flags&net.FlagLoopback != 0 {
			continue
		}
		addrs, err := netlink.AddrList(l, netlink.FAMILY_V4)
		errs = append(errs, err)
		for _, a := range addrs {
			errs = append(errs, netlink.AddrDel(l, &a))
		}
		errs = append(errs, netlink.LinkSetDown(l))
	}
	return errors.Join(errs...)
}
