package vbmc

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"smelt/inventory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// need skips the test without the program, or fails it where skips are not
// allowed.
func need(t *testing.T, program, pkg string) {
	t.Helper()
	if _, err := exec.LookPath(program); err == nil {
		return
	}
	if os.Getenv("SMELT_TEST_NO_SKIP") == "1" {
		t.Fatalf("%s is missing: apt-get install %s", program, pkg)
	}
	t.Skipf("%s is missing (Debian package %s)", program, pkg)
}

func within(t *testing.T, limit time.Duration, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", limit, what)
		}
	}
}

func udp(t *testing.T) net.PacketConn {
	t.Helper()
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// shortDir is a directory whose name leaves room for a socket.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "vbmc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func TestIPMIWithIpmitool(t *testing.T) {
	need(t, "ipmi_sim", "openipmi")
	need(t, "ipmitool", "ipmitool")
	need(t, "curl", "curl")
	var m Switch
	conn := udp(t)
	b, err := StartIPMI(t.Context(), IPMIConfig{Dir: shortDir(t), Conn: conn, Password: "s3cret-pass"}, &m)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	_, port, _ := net.SplitHostPort(b.Addr().String())
	tool := func(password string, args ...string) (string, error) {
		cmd := exec.Command("ipmitool", append([]string{"-I", "lanplus", "-C", "3", "-U", "admin", "-E", "-H", "127.0.0.1", "-p", port, "-N", "5"}, args...)...)
		cmd.Env = []string{"IPMITOOL_PASSWORD=" + password}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	for _, s := range []struct {
		args string
		say  string
		on   bool
	}{
		{"chassis power status", "Chassis Power is off", false},
		{"chassis bootdev pxe", "Set Boot Device to pxe", false},
		{"chassis power on", "Up/On", true},
		{"chassis power status", "Chassis Power is on", true},
		{"chassis power reset", "Reset", true},
		{"chassis power soft", "Soft", false},
		{"chassis power on", "Up/On", true},
		{"chassis power off", "Down/Off", false},
	} {
		out, err := tool("s3cret-pass", strings.Fields(s.args)...)
		if err != nil || !strings.Contains(out, s.say) || m.On() != s.on {
			t.Fatalf("%s: %v, on %v, said %q; want on %v and %q", s.args, err, m.On(), out, s.on, s.say)
		}
	}
	if got := m.Boots(); len(got) != 3 || got[0] != BootNetwork || got[1] != 0 {
		t.Errorf("boots %v, want network once and then nothing chosen", got)
	}
	before := b.Stats()
	if before.Logins != 8 || before.Attempts != 8 {
		t.Errorf("counted %d logins in %d attempts, want 8 in 8", before.Logins, before.Attempts)
	}
	if out, err := tool("wrong", "chassis", "power", "on"); err == nil {
		t.Errorf("a wrong password was accepted: %s", out)
	}
	if after := b.Stats(); after.Attempts != 9 || after.Logins != 8 || m.On() {
		t.Errorf("after a wrong password: %+v, on %v", after, m.On())
	}
}

func TestPDUWithNetSNMP(t *testing.T) {
	need(t, "snmpset", "snmp")
	for _, model := range []string{"apc-rpdu", "apc-rpdu2"} {
		t.Run(model, func(t *testing.T) {
			var one, two Switch
			p, err := StartPDU(PDUConfig{Conn: udp(t), Model: model, Community: "hush", Outlets: []Outlet{
				{Name: "rig-01", Power: &one}, {Name: "rig-02 a", Power: &two}, {Name: "rig-02 b", Power: &two},
			}})
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			m := pduModels[model]
			control, status := enterprises+m.commands[0].column, enterprises+m.shows
			snmp := func(program, community string, args ...string) string {
				cmd := exec.Command(program, append([]string{"-v2c", "-c", community, "-r0", "-t1", "-On", "-Oqv", p.Addr().String()}, args...)...)
				var said bytes.Buffer
				cmd.Stderr = &said // also "Created directory" on the first run
				if out, err := cmd.Output(); err == nil {
					return strings.TrimSpace(string(out))
				}
				return said.String()
			}
			if got := snmp("snmpget", "hush", "1.3.6.1.2.1.1.2.0"); got != "."+enterprises+m.object {
				t.Fatalf("sysObjectID %q", got)
			}
			if got := snmp("snmpset", "public", control+".1", "i", "1"); !strings.Contains(got, "No Response") || one.On() {
				t.Fatalf("wrong community: %q, on %v", got, one.On())
			}
			set := func(n, v string) { snmp("snmpset", "hush", control+"."+n, "i", v) }
			set("1", "1")
			if !one.On() || two.On() || !p.On(1) {
				t.Fatal("outlet 1 on did not start machine 1 alone")
			}
			if got := snmp("snmpget", "hush", status+".1"); got != map[string]string{"apc-rpdu": "1", "apc-rpdu2": "2"}[model] {
				t.Errorf("status word of an outlet that is on: %q", got)
			}
			if err := one.Shutdown(t.Context()); err != nil {
				t.Fatal(err)
			}
			set("1", "1")
			if one.On() {
				t.Error("on to an outlet that is on started the machine behind it")
			}
			set("2", "1")
			set("3", "1")
			set("2", "2")
			if !two.On() {
				t.Error("a machine with two cords lost power with one")
			}
			set("3", "2")
			if two.On() {
				t.Error("a machine with no cord left runs")
			}
			p.Fault(1, OutletIgnores)
			set("1", "2")
			if !p.On(1) {
				t.Error("a deaf outlet obeyed")
			}
			if got := snmp("snmpset", "hush", control+".1", "i", "9"); p.On(1) != true || !strings.Contains(got, "genError") {
				t.Errorf("unknown command: %q", got)
			}
		})
	}
}

// A machine without a kernel: SeaBIOS says on the serial port what it tries
// to boot, which proves the boot order that the firmware got.
func TestMachine(t *testing.T) {
	need(t, "qemu-system-x86_64", "qemu-system-x86")
	dir := shortDir(t)
	disk := filepath.Join(dir, "disk")
	if err := os.WriteFile(disk, PoliteDisk(), 0o600); err != nil {
		t.Fatal(err)
	}
	m := &Machine{
		Name: "t", Dir: dir, Memory: 128,
		NICs:   []NIC{{MAC: inventory.MAC{0x52, 0x54, 0, 0, 0, 1}}},
		Disks:  []Disk{{Path: disk, Serial: "D1"}},
		GPUs:   []GPU{{Width: 1, Speed: "2_5"}, {Slot: 7}},
		SMBIOS: SMBIOS{Serial: "S,1", BoardSerial: "B1", ChassisSerial: "C1"},
	}
	defer m.Close()
	ctx := t.Context()
	said := func(text string, times int) func() bool {
		return func() bool {
			b, err := os.ReadFile(m.serial())
			return err == nil && strings.Count(string(b), text) == times
		}
	}
	const fromDisk, fromNIC = "Booting from Hard Disk", "iPXE (http"
	if err := m.SetBoot(ctx, BootNetwork, true); err != nil {
		t.Fatal(err)
	}
	if err := m.PowerOn(ctx); err != nil {
		t.Fatal(err)
	}
	if err := m.PowerOn(ctx); err != nil || !m.Running() || m.Pid() == 0 {
		t.Fatalf("second power on: %v, running %v", err, m.Running())
	}
	within(t, 30*time.Second, "network once", said(fromNIC, 1))
	if !said(fromDisk, 0)() {
		t.Error("the disk came before the network")
	}
	if err := m.Reset(ctx); err != nil {
		t.Fatal(err)
	}
	within(t, 30*time.Second, "disk after a reset", said(fromDisk, 1))
	if err := m.SetBoot(ctx, BootNetwork, true); err != nil {
		t.Fatal(err)
	}
	if err := m.Reset(ctx); err != nil {
		t.Fatal(err)
	}
	within(t, 30*time.Second, "network once at a reset", said(fromNIC, 2))
	pid := m.Pid()
	if err := m.PowerOff(ctx); err != nil || m.Running() {
		t.Fatalf("power off: %v, running %v", err, m.Running())
	}
	if _, err := os.Stat(filepath.Join("/proc", strconv.Itoa(pid))); err == nil {
		t.Error("QEMU is still there")
	}
	if err := m.Reset(ctx); err != nil || m.Running() {
		t.Error("a reset started a machine that is off")
	}
	if err := m.PowerOn(ctx); err != nil {
		t.Fatal(err)
	}
	within(t, 30*time.Second, "disk again", said(fromDisk, 2))
	within(t, 30*time.Second, "off by the button", func() bool {
		if err := m.Shutdown(ctx); err != nil {
			t.Fatal(err)
		}
		return !m.Running()
	})
}

func TestMachineThatCannotStart(t *testing.T) {
	need(t, "qemu-system-x86_64", "qemu-system-x86")
	m := &Machine{Name: "t", Dir: shortDir(t), Extra: []string{"-device", "no-such-device"}}
	err := m.PowerOn(context.Background())
	if err == nil || !strings.Contains(err.Error(), "no-such-device") || m.Running() {
		t.Fatalf("error %v, running %v; want what QEMU said", err, m.Running())
	}
}

// TestArgsOfHardware: what a machine is made of is what QEMU is told.
func TestArgsOfHardware(t *testing.T) {
	m := &Machine{Name: "m", Dir: "/m", NICs: []NIC{{Model: "e1000e"}, {}}, Disks: []Disk{{Path: "/a", Serial: "A", SATA: true}, {Path: "/b", Serial: "B", NVMe: true}, {Path: "/c", Serial: "C"}}}
	said := strings.Join(m.Args(BootDisk), " ")
	for _, want := range []string{"-device e1000e,id=nic0,", "-device virtio-net-pci,id=nic1,", "-device ide-hd,bus=ide.0,id=disk0,", "-device nvme,id=disk1,", "-device virtio-blk-pci,id=disk2,", "-accel tcg,"} {
		if !strings.Contains(said, want) {
			t.Errorf("no %q in %s", want, said)
		}
	}
	m.KVM = true
	if said := strings.Join(m.Args(BootDisk), " "); !strings.Contains(said, "-accel kvm ") || strings.Contains(said, "tcg") {
		t.Error(said)
	}
}
