package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"smelt/internal/config"
	"smelt/pxe"
)

// network looks at one network of the site.
func (d *doctor) network(ctx context.Context, n config.Network) {
	f := &facts{name: n.Name, mode: n.Mode, ports: map[int]string{}}
	d.facts = append(d.facts, f)
	d.link(f, n.Interface, n.Address)
	if f.link != "" {
		return // nothing else could be seen
	}
	d.ports(f, n)
	d.http(ctx, f, n)
	d.filter(ctx, f)
	if n.Mode == "relay" {
		d.relays(ctx, f, n)
	} else {
		d.rivals(ctx, f, n)
		d.router(ctx, n.Name, n.Interface, n.RouterAdvertisement)
	}
	d.path(ctx, n)
	d.running(f, n)
}

// link looks at the interface.
func (d *doctor) link(f *facts, name string, address netip.Prefix) {
	bad := func(next, format string, args ...any) {
		f.link = fmt.Sprintf(format, args...)
		d.add(f.name, "interface", Fail, next, "%s", f.link)
	}
	iface, err := net.InterfaceByName(name)
	if err != nil {
		var have []string
		if all, err := net.Interfaces(); err == nil {
			for _, i := range all {
				have = append(have, i.Name)
			}
		}
		bad("name the right one in site.yaml (networks: interface)", "there is no interface %s; there are %s", name, strings.Join(have, ", "))
		return
	}
	if iface.Flags&net.FlagUp == 0 {
		bad("ip link set "+name+" up, and make it last (/etc/network/interfaces or netplan)", "%s is down", name)
		return
	}
	sys := filepath.Join(d.Root, "sys/class/net", name)
	if read(sys, "carrier") == "0" {
		bad("check the cable and the switch port", "%s is up but has no carrier: nothing is plugged in, or the switch port is off", name)
		return
	}
	if address.IsValid() {
		addrs, err := iface.Addrs()
		if err != nil {
			bad("", "%s: %v", name, err)
			return
		}
		if !slices.ContainsFunc(addrs, func(a net.Addr) bool {
			n, ok := a.(*net.IPNet)
			return ok && n.IP.Equal(address.Addr().AsSlice())
		}) {
			bad(fmt.Sprintf("ip addr add %s dev %s, or correct networks: address in site.yaml", address, name), "%s has no address %s; it has %v", name, address.Addr(), addrs)
			return
		}
	}
	d.add(f.name, "interface", OK, "", "%s is up", name)
	switch {
	case iface.MTU < 1500:
		d.add(f.name, "MTU", Warn, fmt.Sprintf("ip link set %s mtu 1500", name), "%s has an MTU of %d: firmware sends frames of 1500 and cannot be told otherwise", name, iface.MTU)
	case iface.MTU > 1500:
		d.add(f.name, "MTU", Warn, "set it to 1500 on the machines' network, or make sure that switches and all machines have the same", "%s has an MTU of %d: firmware takes no frame above 1500, and a file that comes in larger ones never arrives", name, iface.MTU)
	default:
		d.add(f.name, "MTU", OK, "", "1500")
	}
	// A bridge of ours that runs STP holds back each new port (IEEE 802.1D).
	for _, br := range []string{filepath.Join(sys, "bridge"), filepath.Join(sys, "brport/bridge/bridge")} {
		delay, _ := strconv.Atoi(read(br, "forward_delay")) // hundredths of a second
		if read(br, "stp_state") == "1" && delay > 0 {
			d.add(f.name, "STP", Warn, "ip link set BRIDGE type bridge stp_state 0", "a bridge on this machine runs STP and holds back each new port for %d s: firmware gives up before", 2*delay/100)
		}
	}
	if n, _ := strconv.Atoi(read(sys, "carrier_changes")); n > 20 {
		d.add(f.name, "link", Warn, "look at the cable, the transceiver and the switch's log", "the link of %s went up or down %d times since this machine started", name, n)
	}
}

func read(dir, name string) string {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// ports looks who has the ports of a boot server.
func (d *doctor) ports(f *facts, n config.Network) {
	want := []int{67, 69}
	if n.Mode == "proxy" {
		want = append(want, 4011)
	}
	if n.Mode == "observe" {
		want = []int{67}
	}
	var free []string
	for _, port := range want {
		err := bindUDP(n.Interface, n.Address.Addr(), port)
		name := fmt.Sprintf("port %d", port)
		switch {
		case err == nil:
			free = append(free, strconv.Itoa(port))
			continue
		case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
			d.add(f.name, name, Skip, "run it again with sudo", "UDP port %d cannot be tried by this user", port)
			continue
		case !errors.Is(err, syscall.EADDRINUSE):
			f.ports[port] = err.Error()
			d.add(f.name, name, Fail, "", "UDP port %d: %v", port, err)
			continue
		}
		who, err := holders(d.Root, "udp", port)
		if err != nil {
			d.add(f.name, name, Skip, "", "UDP port %d is taken, and /proc does not say by whom: %v", port, err)
			continue
		}
		if i := slices.IndexFunc(who, func(h holder) bool { return h.name == "smelt" }); i >= 0 {
			d.add(f.name, name, OK, "", "%s has it", who[i])
			continue
		}
		h := holder{}
		if len(who) > 0 {
			h = who[0]
		}
		f.ports[port] = fmt.Sprintf("%s has UDP port %d on this machine", h, port)
		d.add(f.name, name, Fail, h.next(), "%s has UDP port %d: smelt serve cannot start", h, port)
	}
	if len(free) > 0 {
		d.add(f.name, "ports", OK, "", "UDP %s free for smelt serve", strings.Join(free, ", "))
	}
}

// bindUDP opens a port as serve does, and closes it.
func bindUDP(iface string, addr netip.Addr, port int) error {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		if port != 67 {
			return nil
		}
		var serr error
		err := c.Control(func(fd uintptr) { serr = unix.BindToDevice(int(fd), iface) })
		return errors.Join(err, serr)
	}}
	host := ""
	if port != 67 {
		host = addr.String()
	}
	c, err := lc.ListenPacket(context.Background(), "udp4", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return err
	}
	return c.Close()
}

// http asks boot HTTP, or looks whether its port is free.
func (d *doctor) http(ctx context.Context, f *facts, n config.Network) {
	switch {
	case !n.HTTPS:
		f.https = "https is off for this network in site.yaml"
	default:
		_, f.https = d.tcp(f, "boot HTTPS", d.Site.Listen.BootTLS)
	}
	addr := d.Site.Listen.Boot
	server := ""
	if server, f.http = d.tcp(f, "boot HTTP", addr); server == "" {
		return
	}
	// It runs: what it really serves counts, not what lies on the disk.
	client := &http.Client{Timeout: 2 * time.Second}
	for _, file := range d.Files {
		req, err := http.NewRequestWithContext(ctx, http.MethodHead, "http://"+addr+"/boot/file/"+file.Name, nil)
		if err != nil {
			break
		}
		resp, err := client.Do(req)
		if err != nil {
			f.http = fmt.Sprintf("http://%s/ does not answer: %v", addr, err)
			d.add(f.name, "boot HTTP", Fail, "look at: journalctl -u smelt; and at this machine's packet filter: nft list ruleset", "%s", f.http)
			return
		}
		resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			d.served[file.Name] = service{}
		} else {
			d.served[file.Name] = service{why: "smelt serve does not serve " + file.Name}
		}
	}
	d.add(f.name, "boot HTTP", OK, "", "%s answers at http://%s/", server, addr)
}

// tcp looks who listens at an address of ours: a smelt serve, or why it cannot.
func (d *doctor) tcp(f *facts, name, addr string) (server, why string) {
	_, text, err := net.SplitHostPort(addr)
	port, aerr := strconv.Atoi(text)
	if err != nil || aerr != nil {
		d.add(f.name, name, Skip, "", "its address is %q", addr)
		return "", ""
	}
	who, err := holders(d.Root, "tcp", port)
	if err != nil {
		d.add(f.name, name, Skip, "", "%v", err)
		return "", ""
	}
	for _, h := range who {
		if h.name != "smelt" && h.pid != 0 {
			why := fmt.Sprintf("%s has TCP port %d on this machine", h, port)
			d.add(f.name, name, Fail, h.next(), "%s: smelt serve cannot start", why)
			return "", why
		}
	}
	if len(who) == 0 {
		d.add(f.name, name, OK, "", "TCP %d free for smelt serve", port)
		return "", ""
	}
	return who[0].String(), ""
}

// filter says whether this machine's packet filter drops what machines send.
// Rules are not interpreted: a packet to ourselves is tried, and rules that drop
// are pointed out.
func (d *doctor) filter(ctx context.Context, f *facts) {
	tried := false
	for _, port := range []int{67, 69, 4011} {
		addr := netip.MustParseAddr("127.0.0.1")
		c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, uint16(port))))
		if err != nil {
			continue // taken or not allowed: ports says so
		}
		tried = true
		ok := reaches(c)
		c.Close()
		if !ok {
			f.dropped = fmt.Sprintf("a packet to UDP port %d is dropped on this machine", port)
			d.add(f.name, "packet filter", Fail, allow(d.Site.Listen.Boot), "a packet of this machine to its own UDP port %d did not arrive: its packet filter drops it", port)
			return
		}
	}
	out, err := exec.CommandContext(ctx, "nft", "list", "ruleset").CombinedOutput()
	switch rules := dropping(string(out)); {
	case errors.Is(err, exec.ErrNotFound):
		d.add(f.name, "packet filter", Skip, "", "nft is not here, so rules are not looked at")
	case err != nil:
		d.add(f.name, "packet filter", Skip, "run it again with sudo", "nft list ruleset: %v", err)
	case rules != "":
		d.add(f.name, "packet filter", Warn, allow(d.Site.Listen.Boot), "this machine filters what comes in (%s); doctor does not interpret rules, and cannot send to itself by %s", rules, f.name)
	case tried:
		d.add(f.name, "packet filter", OK, "", "no rule for what comes in, and packets to our own ports arrive; switches in between are not tested")
	default:
		d.add(f.name, "packet filter", OK, "", "no rule for what comes in; switches in between are not tested")
	}
}

func reaches(c *net.UDPConn) bool {
	from, err := net.DialUDP("udp4", nil, c.LocalAddr().(*net.UDPAddr))
	if err != nil {
		return false
	}
	defer from.Close()
	if _, err := from.Write([]byte("smelt doctor")); err != nil {
		return false
	}
	_ = c.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
	_, err = c.Read(make([]byte, 64))
	return err == nil
}

// dropping finds the first sign in a ruleset that something that comes in is
// dropped.
func dropping(ruleset string) string {
	input := false
	for line := range strings.Lines(ruleset) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "chain "):
			input = false
		case strings.Contains(line, "hook input"), strings.Contains(line, "hook prerouting"), strings.Contains(line, "hook ingress"):
			input = true
			if strings.Contains(line, "policy drop") {
				return line
			}
		case input && (strings.Contains(line, " drop") || strings.Contains(line, " reject") || line == "drop"):
			return line
		}
	}
	return ""
}

func allow(boot string) string {
	_, port, _ := net.SplitHostPort(boot)
	return fmt.Sprintf("let in from the machines' network: UDP 67, 69, 4011 and TFTP's answers (UDP, all ports from there), TCP %s and the agents' port; see: nft list ruleset", port)
}

// rivals asks who else answers DHCP.
func (d *doctor) rivals(ctx context.Context, f *facts, n config.Network) {
	modes := map[string]pxe.Mode{"proxy": pxe.Proxy, "relay": pxe.Relay, "observe": pxe.Observe}
	found, err := pxe.FindRivals(ctx, pxe.Network{Name: n.Name, Interface: n.Interface, Address: n.Address, Mode: modes[n.Mode], Servers: n.Servers}, d.Wait)
	if err != nil {
		d.add(f.name, "other servers", Skip, "run it again with sudo", "cannot ask: %v", err)
		return
	}
	f.looked, f.rivals = true, found
	harm := 0
	for _, r := range found {
		f.hall = f.hall || r.DHCP
		text := r.String()
		if r.Offered.IsValid() {
			text += ", gives " + r.Offered.String()
		}
		if g := r.Gives(); g != "" && r.Alarm == "" {
			text += ", boots " + g
		}
		own := slices.ContainsFunc(r.Boots, func(b pxe.RivalBoot) bool { return b.From(n.Address.Addr()) })
		switch {
		case r.Alarm != "":
			harm++
			d.add(f.name, "other servers", Fail, r.Next(), "%s: %s", text, r.Alarm)
		case r.Expected && len(r.Boots) > 0 && !own:
			d.add(f.name, "other servers", Warn, "take its boot options out (66, 67, next-server, filename): smelt doctor snippet dnsmasq", "the hall's own %s: machines may boot that instead of Smelt", text)
		case r.Expected:
			d.add(f.name, "other servers", OK, "", "the hall's own %s", text)
		default:
			d.add(f.name, "other servers", OK, fmt.Sprintf("name it, so that any other one is an alarm (networks: dhcpServers: [%s])", r.Addr), "%s", text)
		}
	}
	silent := slices.DeleteFunc(slices.Clone(n.Servers), func(a netip.Addr) bool {
		return slices.ContainsFunc(found, func(r pxe.Rival) bool { return r.Addr == a || r.Server == a })
	})
	for _, a := range silent {
		d.add(f.name, "other servers", Warn, "see that it runs and has addresses left, or take it out of dhcpServers", "the hall's DHCP server %s did not answer within %s", a, d.Wait)
	}
	switch {
	case n.Mode == "proxy" && !f.hall && len(silent) == 0:
		d.add(f.name, "other servers", Fail, "start the hall's DHCP server, or set mode: authoritative and let Smelt give the addresses", "mode is proxy, and no DHCP server answers here: machines get no address")
	case len(found) == 0 && len(silent) == 0:
		d.add(f.name, "other servers", OK, "", "none answered within %s; one that answers only certain machines is heard by smelt serve, when it answers them", d.Wait)
	}
}

// relays looks whether the relay agents of a network are there.
func (d *doctor) relays(ctx context.Context, f *facts, n config.Network) {
	heard := map[string]int{}
	for _, r := range d.Running.Networks {
		if r.Name == n.Name {
			heard = r.Relays
		}
	}
	var quiet []string
	for _, a := range n.Relays {
		name := "relay " + a.String()
		if m := heard[a.String()]; m > 0 {
			d.add(f.name, name, OK, "", "%d machines asked through it", m)
			continue
		}
		quiet = append(quiet, a.String())
		next := fmt.Sprintf("set %s as its DHCP server (ip helper-address): smelt doctor snippet cisco-ios", n.Address.Addr())
		state := "nobody asked through it yet"
		if d.Running.Err != nil {
			state = "smelt serve does not say whether it sent anything"
		}
		switch err := ping(ctx, a, 56); {
		case errors.Is(err, errNoAnswer):
			d.add(f.name, name, Warn, next+"; and a route to it: ip route get "+a.String(), "it does not answer ping, and %s", state)
		case err != nil:
			d.add(f.name, name, Skip, "run it again with sudo", "%v", err)
		default:
			d.add(f.name, name, Warn, next, "it answers ping, but %s", state)
		}
	}
	if len(quiet) == len(n.Relays) {
		f.relays = "nothing came through " + strings.Join(quiet, ", ") + " yet"
	}
}

// path looks whether whole frames reach machines that are there.
func (d *doctor) path(ctx context.Context, n config.Network) {
	var tried, good []string
	for _, node := range d.Site.Nodes {
		if len(tried) == 3 || !node.Address.IsValid() || !n.Machines().Contains(node.Address) {
			continue
		}
		if ping(ctx, node.Address, 56) != nil {
			continue
		}
		tried = append(tried, string(node.Name))
		if err := ping(ctx, node.Address, 1472); err != nil { // 1500 with its headers
			d.add(n.Name, "path MTU", Fail, "look for a switch, tunnel or VLAN in between with an MTU below 1500", "%s answers small packets and none of 1500 bytes: its boot files would not arrive", node.Name)
			return
		}
		good = append(good, string(node.Name))
	}
	if len(good) > 0 {
		d.add(n.Name, "path MTU", OK, "", "1500 to %s", strings.Join(good, ", "))
		return
	}
	d.add(n.Name, "path MTU", Skip, "", "no machine of this network is up with a fixed address, to try it with")
}

// running adds what the running server says.
func (d *doctor) running(f *facts, n config.Network) {
	for _, r := range d.Running.Networks {
		if r.Name != n.Name {
			continue
		}
		for _, x := range r.Rivals {
			if !slices.ContainsFunc(f.rivals, func(found pxe.Rival) bool { return found.String() == x.Name }) {
				f.heard = append(f.heard, x.Name)
				d.add(n.Name, "other servers", Fail, x.Next, "smelt serve heard a %s: %s", x.Name, x.Alarm)
			}
		}
		for _, w := range r.Warnings {
			d.add(n.Name, "smelt serve", Warn, "", "%s", w)
		}
		if r.Heard == 0 {
			d.add(n.Name, "machines", Warn, "switch a machine on and let it boot from the network; if it still says 0: VLAN, cable, relay", "smelt serve has heard no machine here yet")
		} else {
			d.add(n.Name, "machines", OK, "", "%d heard", r.Heard)
		}
	}
}

var errNoAnswer = errors.New("no answer")

// ping sends one echo request (RFC 792) of so many bytes that no router may cut.
func ping(ctx context.Context, to netip.Addr, size int) error {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var serr error
		err := c.Control(func(fd uintptr) {
			serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
		})
		return errors.Join(err, serr)
	}}
	c, err := lc.ListenPacket(ctx, "ip4:icmp", "0.0.0.0")
	if err != nil {
		return err
	}
	defer c.Close()
	id := uint16(os.Getpid())
	m := make([]byte, 8+size)
	m[0], m[4], m[5], m[7] = 8, byte(id>>8), byte(id), 1
	var sum uint32
	for i := 0; i < len(m); i += 2 {
		sum += uint32(m[i])<<8 | uint32(m[i+1])
	}
	sum = sum>>16 + sum&0xffff
	m[2], m[3] = byte(^(sum+sum>>16)>>8), byte(^(sum + sum>>16))
	deadline := time.Now().Add(time.Second)
	if err := c.SetDeadline(deadline); err != nil {
		return err
	}
	if _, err := c.WriteTo(m, &net.IPAddr{IP: to.AsSlice()}); err != nil {
		return fmt.Errorf("%w: %v", errNoAnswer, err)
	}
	buf := make([]byte, 2000)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return errNoAnswer
		}
		if ip, ok := from.(*net.IPAddr); ok && ip.IP.Equal(to.AsSlice()) && n == len(m) && buf[0] == 0 && buf[4] == m[4] && buf[5] == m[5] {
			return nil
		}
	}
}

// router looks for an IPv6 router on the link (RFC 4861): where there is one,
// our empty advertisement would contradict it.
func (d *doctor) router(ctx context.Context, where, name string, ours bool) {
	seen, err := routers(ctx, name)
	switch {
	case err != nil:
		d.add(where, "IPv6 router", Skip, "run it again with sudo; without IPv6 in this machine's kernel it stays so", "cannot ask: %v", err)
	case len(seen) > 0 && ours:
		d.add(where, "IPv6 router", Fail, "leave routerAdvertisement out of this network in site.yaml", "%s advertises IPv6 here, and routerAdvertisement is on: machines would be told both", strings.Join(seen, ", "))
	case len(seen) > 0:
		d.add(where, "IPv6 router", OK, "", "%s advertises IPv6 here: leave routerAdvertisement off", strings.Join(seen, ", "))
	case !ours && d.Site != nil:
		d.add(where, "IPv6 router", Warn, "routerAdvertisement: true in this network of site.yaml", "none, so iPXE waits up to 16 s for one at each start")
	default:
		d.add(where, "IPv6 router", OK, "", "none")
	}
}

// routers asks for routers and returns who says to be one.
func routers(ctx context.Context, name string) ([]string, error) {
	iface, err := net.InterfaceByName(name)
	if err != nil {
		return nil, err
	}
	pc, err := net.ListenPacket("ip6:ipv6-icmp", "::")
	if err != nil {
		return nil, err
	}
	defer pc.Close()
	c := ipv6.NewPacketConn(pc)
	var filter ipv6.ICMPFilter
	filter.SetAll(true)
	filter.Accept(ipv6.ICMPTypeRouterAdvertisement)
	all := &net.IPAddr{IP: net.ParseIP("ff02::2"), Zone: name}
	if err := errors.Join(c.SetICMPFilter(&filter), c.SetControlMessage(ipv6.FlagInterface|ipv6.FlagHopLimit, true),
		c.SetMulticastInterface(iface), c.SetMulticastHopLimit(255), c.SetReadDeadline(time.Now().Add(1500*time.Millisecond))); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := c.WriteTo([]byte{133, 0, 0, 0, 0, 0, 0, 0}, &ipv6.ControlMessage{HopLimit: 255, IfIndex: iface.Index}, all); err != nil {
		return nil, err
	}
	var out []string
	buf := make([]byte, 1500)
	for {
		n, cm, from, err := c.ReadFrom(buf)
		if err != nil {
			return out, nil // the time is over
		}
		ip, ok := from.(*net.IPAddr)
		// A lifetime of zero and no option is the empty one, of a Smelt.
		if !ok || cm == nil || cm.IfIndex != iface.Index || cm.HopLimit != 255 || n < 16 || buf[0] != 134 || n == 16 && buf[6] == 0 && buf[7] == 0 {
			continue
		}
		if !slices.Contains(out, ip.IP.String()) {
			out = append(out, ip.IP.String())
		}
	}
}
