package pxe

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// host is one more machine on the lab's bridge.
func (l *lab) host(name, addr string) string {
	l.t.Helper()
	ns := fmt.Sprintf("%s-%s", name, l.server)
	l.t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", ns).Run() })
	l.ip("netns add "+ns,
		"-n "+ns+" link set lo up",
		"-n "+l.server+" link add b-"+name+" type veth peer name "+name+"0 netns "+ns,
		"-n "+l.server+" link set b-"+name+" master "+bridge+" up",
		"-n "+ns+" addr add "+addr+" dev "+name+"0",
		"-n "+ns+" link set "+name+"0 up")
	return ns
}

func (l *lab) ip(lines ...string) {
	l.t.Helper()
	for _, line := range lines {
		if out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput(); err != nil {
			l.t.Fatalf("ip %s: %v: %s", line, err, out)
		}
	}
}

// daemon runs a foreign program in a namespace until the test ends. It is
// ready once it has printed ready.
func (l *lab) daemon(ns, ready, name string, args ...string) *exec.Cmd {
	l.t.Helper()
	cmd := exec.Command("ip", append([]string{"netns", "exec", ns, name}, args...)...)
	cmd.Dir = l.dir
	r, w, err := os.Pipe()
	if err != nil {
		l.t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	w.Close()
	var mu sync.Mutex
	var said bytes.Buffer
	up, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		lines := bufio.NewScanner(r)
		for once := false; lines.Scan(); {
			mu.Lock()
			said.WriteString(lines.Text() + "\n")
			mu.Unlock()
			if !once && strings.Contains(lines.Text(), ready) {
				once = true
				close(up)
			}
		}
		_, _ = io.Copy(io.Discard, r)
	}()
	l.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		<-done
		r.Close()
		if l.t.Failed() {
			l.t.Logf("%s:\n%s", name, said.String())
		}
	})
	select {
	case <-up:
	case <-done:
		l.t.Fatalf("%s ended: %s", name, said.String())
	case <-time.After(10 * time.Second):
		mu.Lock()
		defer mu.Unlock()
		l.t.Fatalf("%s is not ready: %s", name, said.String())
	}
	return cmd
}

// relayLab puts Debian's DHCP relay between the server and the machines of
// 10.78.0.0/24, which are behind c1 in the client namespace.
func relayLab(t *testing.T) *lab {
	needs(t, "dhcrelay", "dhclient", "busybox")
	l := newLab(t)
	relay := l.host("r", "10.77.0.9/24")
	l.ip("-n "+relay+" link add r1 type veth peer name c1 netns "+l.client,
		"-n "+relay+" addr add 10.78.0.1/24 dev r1", "-n "+relay+" link set r1 up", "-n "+l.client+" link set c1 up",
		"-n "+l.server+" route add 10.78.0.0/24 via 10.77.0.9")
	if out, err := exec.Command("ip", "netns", "exec", relay, "sysctl", "-qw", "net.ipv4.ip_forward=1").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	l.spec.More = []Network{{
		Name: "row-b", Mode: Relay, Interface: bridge, Address: l.spec.Network.Address, Subnet: netip.MustParsePrefix("10.78.0.0/24"),
		Relays: []netip.Addr{netip.MustParseAddr("10.78.0.1")}, Router: netip.MustParseAddr("10.78.0.1"),
		Pool: Range{netip.MustParseAddr("10.78.0.100"), netip.MustParseAddr("10.78.0.199")}, LeaseTime: 10 * time.Minute,
	}}
	l.start()
	l.daemon(relay, "Sending on   Socket", "dhcrelay", "-4", "-d", "--no-pid", "-a", "-m", "append", "-id", "r1", "-iu", "r0", "10.77.0.1")
	return l
}

// TestForeignRelay: machines behind Debian's relay get addresses of their own
// subnet, the port they hang on is noted, and they renew without the relay.
func TestForeignRelay(t *testing.T) {
	l := relayLab(t)
	script := filepath.Join(l.dir, "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho \"GOT $1 $ip $router\"\n[ \"$1\" != bound ] || { ip addr add $ip/24 dev c1; ip route add default via $router; }\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	udhcpc := l.daemon(l.client, "GOT bound 10.78.0.100 10.78.0.1", "busybox", "udhcpc", "-i", "c1", "-f", "-s", script)
	e := l.event("ack through the relay", func(e Event) bool { return e.Kind == "dhcp request" && e.Answer == "ack 10.78.0.100" })
	if m := e.Machine; m.Network != "row-b" || m.Relay.String() != "10.78.0.1" || m.Circuit != "r1" {
		t.Errorf("noted network %q, relay %s, circuit %q", m.Network, m.Relay, m.Circuit)
	}
	// It renews when it is told to: from its own address straight to ours.
	if err := udhcpc.Process.Signal(syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	l.event("renewal without the relay", func(e Event) bool {
		return e.Kind == "dhcp request" && e.Answer == "ack 10.78.0.100" && !e.Machine.Relay.IsValid() && e.Machine.Network == "row-b"
	})
	// The wire of the server has its own addresses.
	if out, err := l.run("busybox", "udhcpc", "-i", "c0", "-f", "-q", "-n", "-s", script); err != nil || !strings.Contains(out, "GOT bound 10.77.0.100") {
		t.Errorf("on the server's own wire: %v: %s", err, out)
	}
}

// TestForeignDHCPCD runs the client of Debian's desktops and of many images.
func TestForeignDHCPCD(t *testing.T) {
	needs(t, "dhcpcd")
	l := newLab(t)
	l.start()
	script := filepath.Join(l.dir, "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho \"GOT $reason $new_ip_address $new_routers\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	// Its leases go to a place that only this run sees. The second time it has
	// one and asks whether it still may (INIT-REBOOT).
	run := "dhcpcd -4 -1 -A -B -L --nodelay -t 10 -f /dev/null -c " + script + " c0; ip addr flush dev c0;"
	out, err := l.run("sh", "-c", "mount -t tmpfs tmpfs /var/lib/dhcpcd && { "+run+run+" }")
	if err != nil || strings.Count(out, "leased 10.77.0.100 ") != 2 || !strings.Contains(out, "GOT BOUND 10.77.0.100 10.77.0.1") {
		t.Fatalf("dhcpcd: %v: %s", err, out)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	n := map[string]int{}
	for _, e := range l.events {
		n[e.Kind]++
	}
	if n["dhcp discover"] != 1 || n["dhcp request"] != 2 {
		t.Errorf("asked %v, want one DISCOVER and two REQUESTs", n)
	}
}

// hallLab is the lab with a DHCP server of the hall's own, on a host of its own,
// and ours beside it.
func hallLab(t *testing.T) *lab {
	needs(t, "dnsmasq", "dhclient", "curl")
	l := newLab(t)
	ns := l.host("h", "10.77.0.2/24")
	l.spec.Network.Mode, l.spec.Network.Pool, l.spec.Network.Fixed = Proxy, Range{}, nil
	l.spec.Network.Servers = []netip.Addr{netip.MustParseAddr("10.77.0.2")}
	l.file(LoaderBIOS, []byte("undionly"))
	l.file(LoaderUEFI, []byte("snponly"))
	l.spec.Boots[""] = Boot{Action: Hold, Why: "a test"}
	l.start()
	l.daemon(ns, "DHCP, sockets bound", "dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--port=0", "--user=root", "--interface=h0", "--bind-interfaces",
		"--no-ping", "--log-dhcp", "--dhcp-range=10.77.0.50,10.77.0.99,255.255.255.0,1h", "--dhcp-leasefile="+filepath.Join(l.dir, "dnsmasq.leases"))
	return l
}

// answers waits for so many, and a moment for more; they go by who sent them.
func (w *wire) answers(want int, xid dhcpv4.TransactionID) map[string]*seen {
	out := make(map[string]*seen)
	end := time.Now().Add(250 * time.Millisecond)
	if want > 0 {
		end = time.Now().Add(5 * time.Second)
	}
	for time.Now().Before(end) {
		if s := w.answer(time.Until(end), xid); s != nil {
			if out[s.src.String()] = s; len(out) == want {
				end = time.Now().Add(250 * time.Millisecond)
			}
		}
	}
	return out
}

// TestProxyBesideDnsmasq: the hall's server gives the addresses and we say what
// to boot, at port 67 and at port 4011, to boot clients and to nobody else.
func TestProxyBesideDnsmasq(t *testing.T) {
	l := hallLab(t)
	w := l.wire()
	for i, c := range []struct {
		name    string
		options map[uint8][]byte
		class   string
		file    string // the beginning
	}{
		{"BIOS ROM", pxeBIOS, "PXEClient", LoaderBIOS},
		{"UEFI PXE", pxeUEFI, "PXEClient", LoaderUEFI},
		{"UEFI HTTP", httpUEFI, "HTTPClient", "http://10.77.0.1/boot/file/"},
		{"iPXE", ipxeROM, "PXEClient", "http://10.77.0.1/boot/script?"},
		{"plain", linux, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			w.t = t
			mac := MAC{2, 0, 0, 0, 3, byte(i)}
			ask := func(m message, id byte, want int) map[string]*seen {
				xid := dhcpv4.TransactionID{0xee, id, 0, byte(i)}
				data := m.bytes(t)
				copy(data[4:], xid[:])
				w.send(mac, "0.0.0.0", "255.255.255.255", clientPort, data)
				return w.answers(want, xid)
			}
			want := 2
			if c.class == "" {
				want = 1
			}
			got := ask(message{kind: dhcpv4.MessageTypeDiscover, mac: mac, broadcast: true, options: c.options}, 1, want)
			theirs, ours := got["10.77.0.2:67"], got["10.77.0.1:67"]
			if theirs == nil || theirs.msg.YourIPAddr.IsUnspecified() {
				t.Fatalf("dnsmasq made no offer: %v", got)
			}
			if c.class == "" {
				if ours != nil {
					t.Errorf("a plain client got %s", ours.msg.Summary())
				}
			} else {
				if ours == nil {
					t.Fatal("no offer of ours")
				}
				m := ours.msg
				if m.MessageType() != dhcpv4.MessageTypeOffer || !m.YourIPAddr.IsUnspecified() || m.Options.Has(dhcpv4.OptionIPAddressLeaseTime) || m.Options.Has(dhcpv4.OptionSubnetMask) {
					t.Errorf("an offer of an address: %s", m.Summary())
				}
				if m.ClassIdentifier() != c.class || !strings.HasPrefix(m.BootFileNameOption(), c.file) {
					t.Errorf("class %q, file %q; want %q, %q", m.ClassIdentifier(), m.BootFileNameOption(), c.class, c.file)
				}
				if v := m.Options.Get(dhcpv4.OptionVendorSpecificInformation); c.class == "PXEClient" && !bytes.Equal(v, []byte{6, 1, 8, 255}) {
					t.Errorf("option 43 is % x", v)
				}
			}
			ack := ask(message{kind: dhcpv4.MessageTypeRequest, mac: mac, broadcast: true, want: theirs.msg.YourIPAddr.String(), server: "10.77.0.2", options: c.options}, 2, 1)
			if ack["10.77.0.2:67"] == nil || ack["10.77.0.1:67"] != nil {
				t.Errorf("the REQUEST was answered by %v", ack)
			}
			// A lease of the hall's server that has ended is none of our business.
			if nak := ask(message{kind: dhcpv4.MessageTypeRequest, mac: mac, ciaddr: "10.77.0.60", options: c.options}, 3, 0); nak["10.77.0.1:67"] != nil {
				t.Errorf("a rebinding client was answered: %v", nak)
			}
		})
	}
	w.t = t
	// A real client gets the hall's address; what it fetches has its name then.
	script := filepath.Join(l.dir, "script")
	if err := os.WriteFile(script, []byte(leaseScript), 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := l.run("dhclient", "-4", "-v", "-1", "-sf", script, "-lf", filepath.Join(l.dir, "leases"), "-pf", filepath.Join(l.dir, "pid"), "c0")
	if err != nil || !strings.Contains(out, "from 10.77.0.2") {
		t.Fatalf("dhclient: %v: %s", err, out)
	}
	defer l.run("dhclient", "-4", "-x", "-pf", filepath.Join(l.dir, "pid"), "-lf", filepath.Join(l.dir, "leases"), "c0")
	_, addr, _ := strings.Cut(out, "bound to ")
	addr, _, _ = strings.Cut(addr, " ")
	if out, err := l.run("curl", "-sS", "tftp://10.77.0.1/"+LoaderBIOS); err != nil || out != "undionly" {
		t.Errorf("TFTP to a machine of the hall's server: %v: %q", err, out)
	}
	l.event("a transfer with a name", func(e Event) bool {
		return e.Kind == "tftp "+LoaderBIOS && e.Machine.MAC != (MAC{}) && e.Machine.Addr.String() == addr
	})
	t.Run("boot server", func(t *testing.T) {
		within(t, l.client, func() error {
			c, err := net.DialUDP("udp4", &net.UDPAddr{IP: net.ParseIP(addr), Port: proxyPort}, &net.UDPAddr{IP: net.IPv4(10, 77, 0, 1), Port: proxyPort})
			if err != nil {
				return err
			}
			defer c.Close()
			data := message{kind: dhcpv4.MessageTypeRequest, mac: MAC{2, 0, 0, 0, 3, 9}, ciaddr: addr, options: with(pxeUEFI, 43, []byte{71, 4, 0x80, 7, 0, 0, 255})}.bytes(t)
			if _, err := c.Write(data); err != nil {
				return err
			}
			if err := c.SetReadDeadline(time.Now().Add(3 * time.Second)); err != nil {
				return err
			}
			buf := make([]byte, 1500)
			n, err := c.Read(buf) // a connected socket: from port 4011 only
			if err != nil {
				return fmt.Errorf("no answer of the boot server: %v", err)
			}
			m, err := dhcpv4.FromBytes(buf[:n])
			if err != nil {
				return err
			}
			if m.MessageType() != dhcpv4.MessageTypeAck || m.BootFileNameOption() != LoaderUEFI || !bytes.Equal(m.Options.Get(dhcpv4.OptionVendorSpecificInformation), []byte{6, 1, 8, 71, 4, 0x80, 7, 0, 0, 255}) {
				t.Errorf("the boot server said %s", m.Summary())
			}
			return nil
		})
	})
}

// TestObserve: nobody is answered, and who asks is noted.
func TestObserve(t *testing.T) {
	needs(t, "busybox", "curl")
	l := newLab(t)
	l.spec.Network.Mode, l.spec.Network.Pool, l.spec.Network.Fixed = Observe, Range{}, nil
	l.file(LoaderBIOS, []byte("undionly"))
	l.start()
	if out, err := l.run("busybox", "udhcpc", "-i", "c0", "-f", "-q", "-n", "-t", "2", "-T", "1", "-s", "/bin/true", "-x", "hostname:rig-7"); err == nil {
		t.Errorf("a client got a lease: %s", out)
	}
	e := l.event("a plain client", func(e Event) bool { return e.Kind == "dhcp discover" })
	if e.Answer != "none" || e.Machine.Hostname != "rig-7" || e.Machine.Network != bridge || !strings.Contains(e.Why, "only observed") {
		t.Errorf("noted %+v", e)
	}
	w := l.wire()
	data := message{kind: dhcpv4.MessageTypeDiscover, mac: unknown, options: pxeUEFI}.bytes(t)
	w.send(unknown, "0.0.0.0", "255.255.255.255", clientPort, data)
	if a := w.answer(700*time.Millisecond, dhcpv4.TransactionID(data[4:8])); a != nil {
		t.Errorf("a boot client got %s", a.msg.Summary())
	}
	l.event("a boot client", func(e Event) bool { return e.Machine.MAC == unknown && e.Machine.Vendor != "" })
	l.ip("-n " + l.client + " addr add 10.77.0.50/24 dev c0")
	if out, err := l.run("curl", "-sS", "--max-time", "1", "tftp://10.77.0.1/"+LoaderBIOS); err == nil {
		t.Errorf("TFTP was answered: %q", out)
	}
}
