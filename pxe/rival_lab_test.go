package pxe

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/insomniacslk/dhcp/dhcpv4"
)

// rogue puts another machine on the network of l, with the address 10.77.0.2,
// and runs a program there until the test ends.
func (l *lab) rogue(name string, args ...string) {
	l.t.Helper()
	ns := fmt.Sprintf("pxe-r%d", os.Getpid())
	l.t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", ns).Run() })
	for _, line := range []string{
		"netns add " + ns,
		"-n " + ns + " link set lo up",
		"-n " + l.server + " link add s1 type veth peer name r0 address 52:54:00:00:00:ee netns " + ns,
		"-n " + l.server + " link set s1 master " + bridge + " up",
		"-n " + ns + " addr add 10.77.0.2/24 dev r0",
		"-n " + ns + " link set r0 up",
	} {
		if out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput(); err != nil {
			l.t.Fatalf("ip %s: %v: %s", line, err, out)
		}
	}
	l.wait("r0 is up", 5*time.Second, func() bool {
		out, _ := exec.Command("ip", "-n", ns, "link", "show", "r0").Output()
		return bytes.Contains(out, []byte("state UP"))
	})
	var out bytes.Buffer
	cmd := exec.Command("ip", append([]string{"netns", "exec", ns, name}, args...)...)
	cmd.Stdout, cmd.Stderr = lockedWriter{&l.mu, &out}, lockedWriter{&l.mu, &out}
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if l.t.Failed() {
			l.t.Logf("%s:\n%s", name, out.String())
		}
	})
	time.Sleep(300 * time.Millisecond) // it opens its sockets; a question it misses is asked again
}

func dnsmasq(args ...string) []string {
	return append([]string{"--no-daemon", "--conf-file=/dev/null", "--port=0", "--log-dhcp", "--user=root", "--pid-file", "--dhcp-leasefile=/dev/null", "--interface=r0"}, args...)
}

// found asks once, from the client's end of the network.
func (l *lab) found(servers ...string) []Rival {
	l.t.Helper()
	n := Network{Interface: "c0", Address: netip.MustParsePrefix("10.77.0.9/24")}
	if out, err := l.run("ip", "addr", "replace", "10.77.0.9/24", "dev", "c0"); err != nil {
		l.t.Fatal(out)
	}
	for _, s := range servers {
		n.Servers = append(n.Servers, netip.MustParseAddr(s))
	}
	var found []Rival
	within(l.t, l.client, func() (err error) {
		found, err = FindRivals(context.Background(), n, time.Second)
		return err
	})
	return found
}

// rogueMAC is the hardware address of rogue.
var rogueMAC = MAC{0x52, 0x54, 0, 0, 0, 0xee}

// hiveOS is what the HiveOS diskless PXE server makes of dnsmasq
// (minershive/hiveos-pxe-diskless, pxe-config.sh).
func hiveOS() []string {
	return dnsmasq("--dhcp-range=10.77.0.0,proxy", "--dhcp-no-override", "--dhcp-option-force=208,f1:00:74:7e", "--dhcp-option-force=211,30i",
		"--pxe-service=X86PC,Boot BIOS PXE,/bios/lpxelinux.0,10.77.0.2",
		"--pxe-service=BC_EFI,Boot UEFI PXE-BC,/efi/grubnetx64.efi,10.77.0.2",
		"--pxe-service=X86-64_EFI,Boot UEFI PXE-64,/efi/grubnetx64.efi,10.77.0.2")
}

// slow skips what takes long, unless all is to run.
func slow(t *testing.T) {
	t.Helper()
	if os.Getenv("SMELT_TEST_E2E") != "1" {
		t.Skip("waits for several servers: set SMELT_TEST_E2E=1")
	}
}

// TestRivalsAreNamed: each foreign server is found by asking, for what it is.
func TestRivalsAreNamed(t *testing.T) {
	needs(t, "dnsmasq", "dhcpd", "kea-dhcp4")
	slow(t)
	dir := t.TempDir()
	write := func(name, text string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return p
	}
	isc := write("dhcpd.conf", "authoritative; subnet 10.77.0.0 netmask 255.255.255.0 { range 10.77.0.210 10.77.0.220; next-server 10.77.0.2; filename \"pxelinux.0\"; }\n")
	kea := write("kea.json", `{"Dhcp4": {"interfaces-config": {"interfaces": ["r0"]}, "lease-database": {"type": "memfile", "persist": false},
		"subnet4": [{"id": 1, "subnet": "10.77.0.0/24", "pools": [{"pool": "10.77.0.210-10.77.0.220"}]}]}}`)
	bios := func(file string) []RivalBoot {
		return []RivalBoot{{"BIOS PXE", file, "10.77.0.2", 0}, {"UEFI PXE", file, "10.77.0.2", 0}, {"UEFI HTTP", file, "10.77.0.2", 0}}
	}
	for _, c := range []struct {
		name    string
		command []string
		want    Rival
	}{
		{"dnsmasq", append([]string{"dnsmasq"}, dnsmasq("--dhcp-range=10.77.0.210,10.77.0.220", "--no-ping")...), Rival{DHCP: true, Program: "dnsmasq"}},
		{"dnsmasq that boots", append([]string{"dnsmasq"}, dnsmasq("--dhcp-range=10.77.0.210,10.77.0.220", "--no-ping", "--dhcp-boot=netboot.xyz.kpxe")...),
			Rival{DHCP: true, Program: "netboot.xyz", Boots: bios("netboot.xyz.kpxe")}},
		{"HiveOS", append([]string{"dnsmasq"}, hiveOS()...),
			Rival{Proxy: true, Program: "HiveOS diskless PXE server (dnsmasq)", Vendor: "PXEClient",
				Boots: []RivalBoot{{"BIOS PXE", "/bios/lpxelinux.0", "10.77.0.2", 0}, {"UEFI PXE", "/efi/grubnetx64.efi", "10.77.0.2", 0}}}},
		{"ISC", []string{"dhcpd", "-4", "-d", "-cf", isc, "-lf", write("leases", ""), "--no-pid", "r0"}, Rival{DHCP: true, Program: "ISC dhcpd", Boots: bios("pxelinux.0")}},
		{"Kea", []string{"env", "KEA_LOCKFILE_DIR=" + dir, "KEA_PIDFILE_DIR=" + dir, "kea-dhcp4", "-c", kea}, Rival{DHCP: true, Program: "Kea"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t)
			l.rogue(c.command[0], c.command[1:]...)
			var found []Rival
			l.wait("the rival", 20*time.Second, func() bool {
				found = l.found()
				return len(found) > 0 && (found[0].Count >= 3 || !found[0].DHCP)
			})
			got := found[0]
			if len(found) != 1 || got.MAC != rogueMAC || got.Addr.String() != "10.77.0.2" || got.Server != got.Addr || got.Alarm == "" || got.Next() == "" {
				t.Errorf("found %+v", found)
			}
			if pool := netip.MustParsePrefix("10.77.0.208/28"); c.want.DHCP && !pool.Contains(got.Offered) || !c.want.DHCP && got.Offered.IsValid() {
				t.Errorf("offered %s", got.Offered)
			}
			got = Rival{DHCP: got.DHCP, Proxy: got.Proxy, Program: got.Program, Vendor: got.Vendor, Boots: got.Boots}
			if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(RivalBoot{}), cmpopts.IgnoreUnexported(Rival{}), cmpopts.EquateComparable(netip.Addr{})); diff != "" {
				t.Error(diff)
			}
			if found := l.found("10.77.0.2"); len(found) != 1 || !found[0].Expected || found[0].Alarm != "" {
				t.Errorf("the hall's own server alarms: %+v", found)
			}
		})
	}
}

// TestRivalAlarm: the running server finds a rival that answers everybody, and
// one that answers a single machine, and serves nobody's questions itself.
func TestRivalAlarm(t *testing.T) {
	needs(t, "dnsmasq")
	slow(t)
	warns := func(l *lab, text string) {
		t.Helper()
		l.wait("warning of "+text, 20*time.Second, func() bool {
			return slices.ContainsFunc(strings.Split(l.log(), "\n"), func(line string) bool {
				return strings.Contains(line, "level=WARN") && strings.Contains(line, text)
			})
		})
	}
	t.Run("everybody", func(t *testing.T) {
		l := newLab(t)
		l.rogue("dnsmasq", hiveOS()...)
		l.start()
		warns(l, "HiveOS diskless PXE server")
	})
	t.Run("one machine", func(t *testing.T) {
		l := newLab(t)
		l.rogue("dnsmasq", dnsmasq("--dhcp-range=10.77.0.0,static", "--no-ping", "--dhcp-host="+unknown.String()+",10.77.0.77")...)
		l.start()
		time.Sleep(answerTime + 2*offerTime)
		if strings.Contains(l.log(), "level=WARN") {
			t.Fatalf("an alarm before anybody was answered: %s", l.log())
		}
		w := l.wire()
		d := message{kind: dhcpv4.MessageTypeDiscover, mac: unknown}.bytes(t)
		d[10] = 0x80
		w.send(unknown, "0.0.0.0", "255.255.255.255", clientPort, d)
		warns(l, "DHCP server 10.77.0.2 ("+rogueMAC.String()+")")
	})
	t.Run("chosen", func(t *testing.T) {
		l := newLab(t)
		l.start()
		l.wire().send(unknown, "0.0.0.0", "255.255.255.255", clientPort,
			message{kind: dhcpv4.MessageTypeRequest, mac: unknown, server: "10.77.0.7", want: "10.77.0.77"}.bytes(t))
		warns(l, "DHCP server 10.77.0.7")
	})
	t.Run("Smelt", func(t *testing.T) {
		l := newLab(t)
		l.start()
		// The doctor sees a Smelt, and is no rival of it.
		found := l.found()
		if len(found) != 1 || found[0].Program != programSmelt || found[0].DHCP || found[0].Server.String() != "10.77.0.1" {
			t.Errorf("the doctor found %+v", found)
		}
		time.Sleep(answerTime + offerTime)
		if strings.Contains(l.log(), "level=WARN") {
			t.Errorf("an alarm about a doctor: %s", l.log())
		}
		within(t, l.client, func() error {
			log := slog.New(slog.DiscardHandler)
			other, err := openWatcher(newRivals(Network{Interface: "c0", Address: netip.MustParsePrefix("10.77.0.9/24")}, log, nil), smeltID, log)
			if err != nil {
				return err
			}
			defer other.file.Close()
			return other.ask(context.Background())
		})
		warns(l, "two Smelts")
		if strings.Contains(l.log(), "dhcp discover") {
			t.Errorf("a question was taken for a machine: %s", l.log())
		}
		if b, err := os.ReadFile(l.spec.Leases); err != nil || len(b) > 0 && bytes.Contains(b, []byte(strings.ToLower("02:53:4d:45:4c"))) {
			t.Errorf("leases: %v %s", err, b)
		}
	})
}
