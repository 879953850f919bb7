package powertest_test

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"smelt/internal/vbmc"
	"smelt/inventory"
	"smelt/power"
	"smelt/power/bmc"
	"smelt/power/pdu"
)

// A real machine (QEMU) behind each protocol: verified verbs, and the firmware
// says on its serial port what it was made to boot.
func TestMachineBehindEachProtocol(t *testing.T) {
	if os.Getenv("SMELT_TEST_E2E") != "1" {
		t.Skip("set SMELT_TEST_E2E=1: it starts three machines, one after the other")
	}
	for _, program := range []string{"qemu-system-x86_64", "ipmi_sim", "ipmitool", "curl"} {
		if _, err := exec.LookPath(program); err != nil {
			if os.Getenv("SMELT_TEST_NO_SKIP") == "1" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
	is := func(s string) func(context.Context) (string, error) {
		return func(context.Context) (string, error) { return s, nil }
	}
	udp := func(t *testing.T) net.PacketConn {
		c, err := net.ListenPacket("udp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	for name, behind := range map[string]func(*testing.T, string, *vbmc.Machine) power.Controller{
		"ipmi": func(t *testing.T, dir string, m *vbmc.Machine) power.Controller {
			b, err := vbmc.StartIPMI(t.Context(), vbmc.IPMIConfig{Dir: filepath.Join(dir, "bmc"), Conn: udp(t), Password: "secret"}, m)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { b.Close() })
			c, err := bmc.New(bmc.Config{Kind: "ipmi", Address: b.Addr().String(), User: "admin", Password: is("secret"), CipherSuite: 3})
			if err != nil {
				t.Fatal(err)
			}
			return c
		},
		"redfish": func(t *testing.T, _ string, m *vbmc.Machine) power.Controller {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			b, err := vbmc.StartRedfish(vbmc.RedfishConfig{Listener: l, Password: "secret"}, m)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { b.Close() })
			c, err := bmc.New(bmc.Config{Kind: "redfish", Address: b.Addr().String(), User: "admin", Password: is("secret"), Pin: b.Pin()})
			if err != nil {
				t.Fatal(err)
			}
			return c
		},
		"pdu": func(t *testing.T, _ string, m *vbmc.Machine) power.Controller {
			p, err := vbmc.StartPDU(vbmc.PDUConfig{Conn: udp(t), Model: "apc-rpdu2", Community: "secret", Outlets: []vbmc.Outlet{{Name: "e2e", Power: m}}})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { p.Close() })
			u, err := pdu.NewUnit(pdu.Config{Name: "p", Address: p.Addr().String(), Version: "v2c", Model: "apc-rpdu2", Community: is("secret")})
			if err != nil {
				t.Fatal(err)
			}
			c, err := pdu.New(pdu.Outlet{Unit: u, Number: 1, Node: "e2e"})
			if err != nil {
				t.Fatal(err)
			}
			return c
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "qemu") // short: it holds sockets
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(dir) })
			disk := filepath.Join(dir, "disk")
			if err := os.WriteFile(disk, vbmc.PoliteDisk(), 0o600); err != nil {
				t.Fatal(err)
			}
			m := &vbmc.Machine{
				Name: name, Dir: dir, Memory: 128,
				NICs:  []vbmc.NIC{{MAC: inventory.MAC{0x52, 0x54, 0, 0, 0, 1}}},
				Disks: []vbmc.Disk{{Path: disk, Serial: "D1"}},
			}
			t.Cleanup(func() { m.Close() })
			c := behind(t, dir, m)
			v := power.Verify(c, power.Limits{Poll: 100 * time.Millisecond, Dwell: 100 * time.Millisecond, Spacing: 10 * time.Millisecond})
			boots := func(text string, times int) {
				t.Helper()
				for end := time.Now().Add(60 * time.Second); ; time.Sleep(50 * time.Millisecond) {
					b, err := os.ReadFile(filepath.Join(dir, "serial.log"))
					if err == nil && strings.Count(string(b), text) == times {
						return
					}
					if time.Now().After(end) {
						t.Fatalf("the serial port does not say %q %d times:\n%s", text, times, b)
					}
				}
			}
			// The card announces its ROM at every boot; that it was chosen, SeaBIOS says.
			const fromDisk, fromNIC = "Booting from Hard Disk", "Booting from ROM"
			step := func(verb string, e power.Evidence, err error, on bool) {
				t.Helper()
				if err != nil || m.Running() != on {
					t.Fatalf("%s: error %v, running %v, evidence %+v", verb, err, m.Running(), e)
				}
			}
			e, err := v.On(t.Context())
			step("on", e, err, true)
			boots(fromDisk, 1)
			first := m.Pid()
			e, err = v.Cycle(t.Context(), power.Network)
			step("cycle", e, err, true)
			if m.Pid() == first {
				t.Error("the machine never lost power")
			}
			if name == "pdu" { // an outlet leaves the boot order alone
				boots(fromDisk, 2)
			} else {
				boots(fromNIC, 1)
				e, err = v.Cycle(t.Context(), power.Disk)
				step("cycle", e, err, true)
				boots(fromDisk, 2)
				e, err = v.SoftOff(t.Context())
				step("soft off", e, err, false)
				e, err = v.On(t.Context())
				step("on", e, err, true)
			}
			e, err = v.Off(t.Context())
			step("off", e, err, false)
		})
	}
}
