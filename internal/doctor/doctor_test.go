package doctor

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"smelt/internal/config"
	"smelt/inventory"
	"smelt/pxe"
)

// doctorEnv makes the test binary a doctor instead, in a namespace of its own.
const doctorEnv = "DOCTOR_TEST_CONFIG"

func TestMain(m *testing.M) {
	if addr := os.Getenv(webEnv); addr != "" {
		fmt.Fprintln(os.Stderr, serveWeb(addr))
		os.Exit(1)
	}
	text := os.Getenv(doctorEnv)
	if text == "" {
		os.Exit(m.Run())
	}
	var c Config
	err := json.Unmarshal([]byte(text), &c)
	if err == nil {
		var r *Report
		if r, err = Run(context.Background(), c); err == nil {
			err = json.NewEncoder(os.Stdout).Encode(r)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// UnmarshalText is what the tests read a report with.
func (r *Result) UnmarshalText(b []byte) error {
	for _, x := range []Result{OK, Warn, Fail, Skip} {
		if strings.EqualFold(x.String(), string(b)) {
			*r = x
			return nil
		}
	}
	return fmt.Errorf("no result %q", b)
}

func needs(t *testing.T, programs ...string) {
	t.Helper()
	skip := func(format string, args ...any) {
		t.Helper()
		if os.Getenv("SMELT_TEST_NO_SKIP") == "1" {
			t.Fatalf(format, args...)
		}
		t.Skipf(format, args...)
	}
	if os.Getuid() != 0 {
		skip("needs root for network namespaces")
	}
	for _, p := range append([]string{"ip"}, programs...) {
		if _, err := exec.LookPath(p); err != nil {
			skip("needs the program %s", p)
		}
	}
}

// hall is two machines on a wire: the server with eno2, 10.20.0.1/16, and
// another one with eth0, 10.20.0.2/16.
type hall struct {
	t             *testing.T
	server, other string // namespaces
}

var halls atomic.Int32

func newHall(t *testing.T) *hall {
	t.Helper()
	i := halls.Add(1)
	h := &hall{t, fmt.Sprintf("doc-s%d-%d", os.Getpid(), i), fmt.Sprintf("doc-o%d-%d", os.Getpid(), i)}
	t.Cleanup(func() {
		for _, ns := range []string{h.server, h.other} {
			_ = exec.Command("ip", "netns", "del", ns).Run()
		}
	})
	for _, line := range []string{
		"netns add " + h.server, "netns add " + h.other,
		"-n " + h.server + " link set lo up", "-n " + h.other + " link set lo up",
		"-n " + h.server + " link add eno2 type veth peer name eth0 address 52:54:00:00:00:ee netns " + h.other,
		"-n " + h.server + " addr add 10.20.0.1/16 dev eno2", "-n " + h.server + " link set eno2 up",
		"-n " + h.other + " addr add 10.20.0.2/16 dev eth0", "-n " + h.other + " link set eth0 up",
	} {
		h.ip(line)
	}
	for ns, link := range map[string]string{h.server: "eno2", h.other: "eth0"} {
		for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			out, _ := exec.Command("ip", "-n", ns, "link", "show", link).Output()
			if bytes.Contains(out, []byte("state UP")) {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s is not up: %s", link, out)
			}
		}
	}
	return h
}

func (h *hall) ip(line string) {
	h.t.Helper()
	if out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput(); err != nil {
		h.t.Fatalf("ip %s: %v: %s", line, err, out)
	}
}

// start runs a program in a namespace until the test ends.
func (h *hall) start(namespace, name string, args ...string) *exec.Cmd {
	h.t.Helper()
	var out bytes.Buffer
	cmd := exec.Command("ip", append([]string{"netns", "exec", namespace, name}, args...)...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if h.t.Failed() {
			h.t.Logf("%s:\n%s", name, out.String())
		}
	})
	time.Sleep(500 * time.Millisecond)
	return cmd
}

// examine runs a doctor in the server's namespace.
func (h *hall) examine(namespace string, c Config) *Report {
	h.t.Helper()
	text, err := json.Marshal(c)
	if err != nil {
		h.t.Fatal(err)
	}
	cmd := exec.Command("ip", "netns", "exec", namespace, os.Args[0])
	cmd.Env = append(os.Environ(), doctorEnv+"="+string(text))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		h.t.Fatalf("%v: %s", err, stderr.String())
	}
	var r Report
	if err := json.Unmarshal(out, &r); err != nil {
		h.t.Fatal(err)
	}
	return &r
}

// site is one network on eno2.
func site(t *testing.T, change func(*config.Network)) *config.Site {
	n := config.Network{Name: "hall", Mode: "authoritative", Interface: "eno2", Address: netip.MustParsePrefix("10.20.0.1/16")}
	if change != nil {
		change(&n)
	}
	return &config.Site{Name: "test", State: t.TempDir(), Listen: config.Listen{Boot: "10.20.0.1:80"}, Networks: []config.Network{n}}
}

// want holds a report to lines of "check result words that it found".
func want(t *testing.T, r *Report, checks []string, works map[string]string) {
	t.Helper()
	all := ""
	for _, c := range r.Checks {
		all += fmt.Sprintf("%s %s %s -> %s\n", c.Name, c.Result, c.Found, c.Next)
	}
	for _, w := range checks {
		name, rest, _ := strings.Cut(w, "|")
		result, found, _ := strings.Cut(rest, "|")
		ok := false
		for _, c := range r.Checks {
			ok = ok || c.Name == name && c.Result.String() == result && strings.Contains(c.Found, found)
			if c.Result == Fail && c.Next == "" {
				t.Errorf("%s fails and does not say what to do", c.Name)
			}
		}
		if !ok {
			t.Errorf("no %q in:\n%s", w, all)
		}
	}
	for _, m := range r.Modes {
		if w, ok := works[m.Name]; ok && m.Works != w {
			t.Errorf("%s: %s (%s), want %s", m.Name, m.Works, m.Why, w)
		}
		if m.Why == "" {
			t.Errorf("%s: %s without a reason", m.Name, m.Works)
		}
		delete(works, m.Name)
	}
	for name := range works {
		t.Errorf("the mode %q is missing", name)
	}
}

func dnsmasq(args ...string) []string {
	return append([]string{"--no-daemon", "--conf-file=/dev/null", "--port=0", "--user=root", "--pid-file", "--dhcp-leasefile=/dev/null", "--no-ping"}, args...)
}

func TestDoctor(t *testing.T) {
	needs(t, "dnsmasq", "nft")
	loader := filepath.Join(t.TempDir(), pxe.LoaderBIOS)
	if err := os.WriteFile(loader, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	conf := func(s *config.Site) Config {
		return Config{Site: s, Wait: time.Second, Running: Running{}, Files: []File{
			{Name: pxe.LoaderBIOS, Sources: []string{loader}, Next: "x"}, {Name: pxe.LoaderUEFI, Sources: []string{loader + ".not"}, Next: "apt-get install ipxe"}}}
	}
	t.Run("nothing in the way", func(t *testing.T) {
		h := newHall(t)
		want(t, h.examine(h.server, conf(site(t, nil))), []string{"interface|ok|eno2 is up", "ports|ok|67, 69", "boot HTTP|ok|80 free", "boot files|FAIL|undionly.kpxe.not",
			"other servers|ok|none answered", "IPv6 router|warn|none", "packet filter|ok|", "rights|ok|"},
			map[string]string{"BIOS, PXE ROM": "yes", "BIOS, iPXE ROM": "yes", "UEFI PXE": "no", "Secure Boot, vendor's keys": "no"})
	})
	if os.Getenv("SMELT_TEST_E2E") != "1" {
		t.Skip("waits for servers that do not answer: set SMELT_TEST_E2E=1")
	}
	t.Run("rivals", func(t *testing.T) {
		t.Parallel()
		h := newHall(t)
		h.start(h.other, "dnsmasq", dnsmasq("--interface=eth0", "--dhcp-range=10.20.0.0,proxy", "--dhcp-no-override",
			"--pxe-service=X86PC,Boot BIOS PXE,/bios/lpxelinux.0,10.20.0.2", "--pxe-service=BC_EFI,x,/efi/grubnetx64.efi,10.20.0.2", "--pxe-service=X86-64_EFI,x,/efi/grubnetx64.efi,10.20.0.2")...)
		want(t, h.examine(h.server, conf(site(t, nil))), []string{"other servers|FAIL|HiveOS diskless PXE server"}, map[string]string{"BIOS, PXE ROM": "unknown"})
		// Its owner keeps it, beside the hall's DHCP server, which is missing.
		keep := func(n *config.Network) { n.Mode, n.Servers = "proxy", []netip.Addr{netip.MustParseAddr("10.20.0.2")} }
		want(t, h.examine(h.server, conf(site(t, keep))), []string{"other servers|warn|the hall's own ProxyDHCP", "other servers|FAIL|no DHCP server answers"},
			map[string]string{"BIOS, PXE ROM": "no"})
		// A laptop there.
		want(t, h.examine(h.other, Config{Interface: "eth0", Wait: time.Second}), []string{"Smelt|warn|no Smelt", "DHCP servers|FAIL|nobody answers"}, nil)
	})
	t.Run("beside the hall's server", func(t *testing.T) {
		t.Parallel()
		h := newHall(t)
		h.start(h.other, "dnsmasq", dnsmasq("--interface=eth0", "--dhcp-range=10.20.7.1,10.20.7.9")...)
		proxy := func(n *config.Network) { n.Mode, n.Servers = "proxy", []netip.Addr{netip.MustParseAddr("10.20.0.2")} }
		want(t, h.examine(h.server, conf(site(t, proxy))), []string{"other servers|ok|the hall's own DHCP server 10.20.0.2", "ports|ok|67, 69, 4011"}, map[string]string{"BIOS, PXE ROM": "yes"})
		two := func(n *config.Network) { n.Mode, n.Servers = "proxy", []netip.Addr{netip.MustParseAddr("10.20.0.3")} }
		want(t, h.examine(h.server, conf(site(t, two))), []string{"other servers|FAIL|10.20.0.2", "other servers|warn|10.20.0.3 did not answer"}, map[string]string{"BIOS, PXE ROM": "unknown"})
	})
	t.Run("this machine", func(t *testing.T) {
		t.Parallel()
		h := newHall(t)
		h.start(h.server, "dnsmasq", dnsmasq("--dhcp-range=10.20.7.1,10.20.7.9", "--enable-tftp", "--tftp-root=/")...)
		h.ip("-n " + h.server + " link set eno2 mtu 1400")
		cmd := exec.Command("ip", "netns", "exec", h.server, "nft", "-f", "-")
		cmd.Stdin = strings.NewReader("table inet f {\n chain in {\n type filter hook input priority 0; policy accept;\n udp dport 4011 drop\n }\n}\n")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("nft: %v: %s", err, out)
		}
		want(t, h.examine(h.server, conf(site(t, nil))), []string{"port 67|FAIL|dnsmasq (pid ", "port 69|FAIL|dnsmasq (pid ", "MTU|warn|1400", "packet filter|FAIL|UDP port 4011"},
			map[string]string{"BIOS, PXE ROM": "no", "BIOS, iPXE ROM": "no"})
		h.ip("-n " + h.server + " link set eno2 down")
		want(t, h.examine(h.server, conf(site(t, nil))), []string{"interface|FAIL|eno2 is down"}, map[string]string{"BIOS, PXE ROM": "no"})
	})
	t.Run("relay and path", func(t *testing.T) {
		t.Parallel()
		h := newHall(t)
		relay := func(n *config.Network) {
			n.Mode, n.Subnet = "relay", netip.MustParsePrefix("10.21.0.0/16")
			n.Relays = []netip.Addr{netip.MustParseAddr("10.20.0.2"), netip.MustParseAddr("10.20.0.77")}
		}
		c := conf(site(t, relay))
		want(t, h.examine(h.server, c), []string{"relay 10.20.0.2|warn|answers ping, but nobody asked", "relay 10.20.0.77|warn|does not answer ping"}, map[string]string{"BIOS, PXE ROM": "unknown"})
		c.Running.Networks = []RunningNetwork{{Name: "hall", Heard: 3, Relays: map[string]int{"10.20.0.2": 3}, Warnings: []string{"the pool is full"}}}
		with := c
		with.Running.Networks = []RunningNetwork{{Name: "hall", Heard: 3, Relays: map[string]int{"10.20.0.2": 3}, Rivals: []RunningRival{{"DHCP server 10.21.0.9", "it gives addresses", "switch it off"}}}}
		want(t, h.examine(h.server, with), []string{"other servers|FAIL|smelt serve heard a DHCP server 10.21.0.9"}, map[string]string{"BIOS, PXE ROM": "unknown"})
		want(t, h.examine(h.server, c), []string{"relay 10.20.0.2|ok|3 machines", "machines|ok|3 heard", "smelt serve|warn|the pool is full"}, map[string]string{"BIOS, PXE ROM": "yes"})

		c = conf(site(t, nil))
		c.Site.Nodes = []config.Node{{Spec: inventory.Spec{Name: "srv-01"}, Address: netip.MustParseAddr("10.20.0.2")}}
		want(t, h.examine(h.server, c), []string{"path MTU|ok|1500 to srv-01"}, nil)
		h.ip("-n " + h.other + " link set eth0 mtu 1400")
		want(t, h.examine(h.server, c), []string{"path MTU|FAIL|srv-01 answers small packets"}, nil)
	})
}

// TestHolders reads a /proc of its own.
func TestHolders(t *testing.T) {
	root := t.TempDir()
	write := func(name, text string) {
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("proc/thread-self/net/udp", `   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  115: 00000000:0043 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4711 2 0000000000000000 0
  117: 0100007F:0045 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4712 2 0000000000000000 0
`)
	write("proc/thread-self/net/tcp", `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:0050 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 4713 1 0000000000000000 100 0 0 10 0
`)
	write("proc/812/comm", "dnsmasq\n")
	if err := os.Mkdir(filepath.Join(root, "proc/812/fd"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("socket:[4711]", filepath.Join(root, "proc/812/fd/4")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		proto string
		port  int
		want  string
	}{
		{"udp", 67, "[dnsmasq (pid 812)]"},
		{"udp", 69, "[a process that this user cannot see]"},
		{"udp", 4011, "[]"},
		{"tcp", 80, "[]"}, // a connection is no listener
	} {
		if got, err := holders(root, c.proto, c.port); err != nil || fmt.Sprint(got) != c.want {
			t.Errorf("%s %d: %v, %v; want %s", c.proto, c.port, got, err, c.want)
		}
	}
}

func TestDropping(t *testing.T) {
	for rules, want := range map[string]string{
		"": "",
		"table ip nat {\n\tchain POSTROUTING {\n\t\ttype nat hook postrouting priority srcnat; policy accept;\n\t\tip saddr 10.0.0.0/8 drop\n\t}\n}": "",
		"chain input {\n type filter hook input priority filter; policy drop;\n":                                                                     "type filter hook input priority filter; policy drop;",
		"chain input {\n type filter hook input priority filter; policy accept;\n udp dport 69 counter packets 0 bytes 0 drop\n":                     "udp dport 69 counter packets 0 bytes 0 drop",
		"chain input {\n type filter hook input priority filter; policy accept;\n tcp dport 22 accept\n":                                             "",
	} {
		if got := dropping(rules); got != want {
			t.Errorf("%q: %q, want %q", rules, got, want)
		}
	}
}

// TestSnippets has the foreign programs read what we write for them, and then
// answer machines with it.
func TestSnippets(t *testing.T) {
	needs(t, "dnsmasq", "dhcpd", "kea-dhcp4")
	dir := t.TempDir()
	one := site(t, func(n *config.Network) {
		n.Pool = config.Range{First: netip.MustParseAddr("10.20.200.1"), Last: netip.MustParseAddr("10.20.200.250")}
		n.Router, n.DNS = netip.MustParseAddr("10.20.0.254"), []netip.Addr{netip.MustParseAddr("10.20.0.53"), netip.MustParseAddr("10.20.0.54")}
	})
	proxy := site(t, func(n *config.Network) { n.Mode = "proxy" })
	three := site(t, nil)
	three.Networks = append(three.Networks, config.Network{
		Name: "aisle-3", Mode: "relay", Interface: "eno2", Address: netip.MustParsePrefix("10.20.0.1/16"),
		Subnet: netip.MustParsePrefix("10.21.16.0/20"), Relays: []netip.Addr{netip.MustParseAddr("10.21.16.1")}, Router: netip.MustParseAddr("10.21.16.1"),
	}, config.Network{Name: "cell", Mode: "observe", Interface: "eno3", Address: netip.MustParsePrefix("10.30.0.1/30")})
	env := []string{"KEA_LOCKFILE_DIR=" + dir, "KEA_PIDFILE_DIR=" + dir}
	commands := map[string][]string{
		"dnsmasq": {"dnsmasq", "--test", "--conf-file=CONFIG"}, "isc": {"dhcpd", "-t", "-cf", "CONFIG"}, "kea": {"kea-dhcp4", "-t", "CONFIG"},
	}
	write := func(kind string, s *config.Site, network string) string {
		t.Helper()
		text, err := Snippet(kind, s, network)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(text, "<no value>") || strings.Contains(text, "invalid") {
			t.Errorf("%s has holes:\n%s", kind, text)
		}
		path := filepath.Join(dir, kind)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, kind := range Snippets() {
		for i, s := range []*config.Site{one, proxy, three} {
			path := write(kind, s, "")
			if commands[kind] == nil {
				continue
			}
			args := strings.Split(strings.ReplaceAll(strings.Join(commands[kind], " "), "CONFIG", path), " ")
			cmd := exec.Command(args[0], args[1:]...)
			cmd.Env = append(os.Environ(), env...)
			if out, err := cmd.CombinedOutput(); err != nil {
				b, _ := os.ReadFile(path)
				t.Errorf("%s refuses the snippet of site %d: %v: %s\n%s", kind, i, err, out, b)
			}
		}
	}
	if text, err := Snippet("cisco-ios", three, "aisle-3"); err != nil || !strings.Contains(text, "ip address 10.21.16.1 255.255.240.0\n ip helper-address 10.20.0.1\n") || strings.Contains(text, "cell") {
		t.Errorf("cisco-ios: %v\n%s", err, text)
	}
	for _, c := range [][2]string{{"foundry", ""}, {"../machine", ""}, {"kea", "nowhere"}} {
		if _, err := Snippet(c[0], one, c[1]); err == nil {
			t.Errorf("a snippet of %v was written", c)
		}
	}

	leases := filepath.Join(dir, "leases")
	if err := os.WriteFile(leases, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for kind, command := range map[string][]string{
		"dnsmasq": {"dnsmasq", "--no-daemon", "--port=0", "--user=root", "--pid-file", "--dhcp-leasefile=/dev/null", "--no-ping", "--conf-file=CONFIG"},
		"isc":     {"dhcpd", "-4", "-d", "-cf", "CONFIG", "-lf", leases, "--no-pid", "eth0"},
		"kea":     {"env", env[0], env[1], "kea-dhcp4", "-c", "CONFIG"},
	} {
		t.Run(kind, func(t *testing.T) {
			if os.Getenv("SMELT_TEST_E2E") != "1" {
				t.Skip("waits for servers: set SMELT_TEST_E2E=1")
			}
			path := write(kind, one, "")
			if kind == "kea" { // whose folder of leases is not there without its service
				b, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, bytes.Replace(b, []byte(`"lfc-interval": 3600`), []byte(`"persist": false`), 1), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			t.Parallel()
			h := newHall(t)
			args := strings.Split(strings.ReplaceAll(strings.Join(command, " "), "CONFIG", path), " ")
			h.start(h.other, args[0], args[1:]...)
			time.Sleep(time.Second)
			// The doctor sees what machines are given: all of it from Smelt.
			r := h.examine(h.server, Config{Site: site(t, func(n *config.Network) { n.Mode, n.Servers = "proxy", []netip.Addr{netip.MustParseAddr("10.20.0.2")} }), Wait: 3 * time.Second})
			want(t, r, []string{"other servers|ok|boots undionly.kpxe from 10.20.0.1 to BIOS PXE, snponly.efi from 10.20.0.1 to UEFI PXE, http://10.20.0.1/boot/file/snponly.efi from 10.20.0.1 to UEFI HTTP"}, nil)
		})
	}
}

// TestSnippetBoots: a machine that hears nobody but dnsmasq with our snippet
// comes to Smelt.
func TestSnippetBoots(t *testing.T) {
	needs(t, "dnsmasq", "qemu-system-x86_64")
	if os.Getenv("SMELT_TEST_E2E") != "1" {
		t.Skip("boots a machine in QEMU: set SMELT_TEST_E2E=1")
	}
	h := newHall(t)
	for _, line := range []string{
		"link add br0 type bridge forward_delay 0 mcast_snooping 0", "addr flush dev eth0", "link set eth0 master br0",
		"addr add 10.20.0.2/16 dev br0", "link set br0 up", "tuntap add tap0 mode tap", "link set tap0 master br0", "link set tap0 up",
	} {
		h.ip("-n " + h.other + " " + line)
	}
	text, err := Snippet("dnsmasq", site(t, nil), "")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "dnsmasq.conf")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	h.start(h.other, "dnsmasq", "--no-daemon", "--port=0", "--user=root", "--pid-file", "--dhcp-leasefile=/dev/null", "--conf-file="+path)
	web := exec.Command("ip", "netns", "exec", h.server, os.Args[0])
	web.Env = append(os.Environ(), webEnv+"=10.20.0.1:80")
	out, err := web.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := web.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = web.Process.Kill()
		_ = web.Wait()
	})
	// Its option ROM is iPXE.
	h.start(h.other, "qemu-system-x86_64", "-accel", "tcg", "-m", "256", "-nographic", "-no-reboot", "-net", "none",
		"-netdev", "tap,id=n0,ifname=tap0,script=no,downscript=no", "-device", "virtio-net-pci,netdev=n0,mac=52:54:00:00:00:01,bootindex=1")
	asked := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(out).ReadString('\n')
		asked <- strings.TrimSpace(line)
	}()
	select {
	case got := <-asked:
		if got != "GET /boot/script" {
			t.Errorf("the machine asked %q", got)
		}
	case <-time.After(3 * time.Minute):
		t.Error("the machine did not come to Smelt")
	}
}

// webEnv makes the test binary a web server that prints what it is asked.
const webEnv = "DOCTOR_TEST_WEB"

func serveWeb(addr string) error {
	return http.ListenAndServe(addr, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Println(r.Method, r.URL.RequestURI())
		fmt.Fprint(w, "#!ipxe\npoweroff\n")
	}))
}
