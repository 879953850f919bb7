package bmc

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"smelt/internal/vbmc"
	"smelt/power"
	"smelt/power/powertest"
)

// TestConsole: serial over LAN of a QEMU machine behind ipmi_sim keeps the
// promises of power.Consoler.
func TestConsole(t *testing.T) {
	need(t, "qemu-system-x86_64", "qemu-system-x86")
	need(t, "ipmi_sim", "openipmi")
	need(t, "ipmitool", "ipmitool")
	powertest.RunConsole(t, func(t *testing.T) power.Consoler {
		dir, err := os.MkdirTemp("", "sol") // short: it holds sockets
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		disk := filepath.Join(dir, "disk")
		if err := os.WriteFile(disk, vbmc.EchoDisk(), 0o600); err != nil {
			t.Fatal(err)
		}
		m := &vbmc.Machine{Name: "t", Dir: filepath.Join(dir, "m"), Memory: 64, Disks: []vbmc.Disk{{Path: disk, Serial: "D1"}}}
		t.Cleanup(func() { m.Close() })
		conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		b, err := vbmc.StartIPMI(t.Context(), vbmc.IPMIConfig{Dir: filepath.Join(dir, "b"), Conn: conn, Password: "s3cret"}, m)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { b.Close() })
		if err := m.PowerOn(t.Context()); err != nil {
			t.Fatal(err)
		}
		log := filepath.Join(dir, "m", "serial.log")
		for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			if said, err := os.ReadFile(log); err == nil && strings.Contains(string(said), "Booting from Hard Disk") {
				break
			}
			if time.Now().After(end) {
				t.Fatal("the machine does not boot")
			}
		}
		c, err := New(Config{Kind: "ipmi", Address: b.Addr().String(), User: "admin", CipherSuite: 3,
			Password: func(context.Context) (string, error) { return "s3cret", nil }})
		if err != nil {
			t.Fatal(err)
		}
		return c
	})
}
