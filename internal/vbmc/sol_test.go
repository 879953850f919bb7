package vbmc

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// said is output that a test looks at while it grows.
type said struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *said) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *said) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// TestSerialOverLAN: ipmitool's console of a QEMU machine behind ipmi_sim shows
// what its firmware says, over a power cycle.
func TestSerialOverLAN(t *testing.T) {
	need(t, "qemu-system-x86_64", "qemu-system-x86")
	need(t, "ipmi_sim", "openipmi")
	need(t, "ipmitool", "ipmitool")
	ctx := context.Background()
	dir := shortDir(t)
	disk := filepath.Join(dir, "disk")
	if err := os.WriteFile(disk, PoliteDisk(), 0o600); err != nil {
		t.Fatal(err)
	}
	m := &Machine{Name: "t", Dir: filepath.Join(dir, "m"), Memory: 64, Disks: []Disk{{Path: disk, Serial: "D1"}}}
	t.Cleanup(func() { m.Close() })
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b, err := StartIPMI(ctx, IPMIConfig{Dir: filepath.Join(dir, "b"), Conn: conn, Password: "s3cret"}, m)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	script := filepath.Join(dir, "script") // sol activate on the command line wants a terminal
	if err := os.WriteFile(script, []byte("sol activate\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(b.Addr().String())
	var out said
	c := exec.Command("ipmitool", "-I", "lanplus", "-H", "127.0.0.1", "-p", port, "-U", "admin", "-E", "-C", "3", "exec", script)
	c.Env = append(os.Environ(), "IPMITOOL_PASSWORD=s3cret")
	c.Stdout, c.Stderr = &out, &out
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	// What ipmitool says of itself stays in its buffer until the machine speaks.
	within(t, 20*time.Second, "a session", func() bool { return b.Stats().Logins > 0 })
	for i := range 2 {
		if err := m.PowerOn(ctx); err != nil {
			t.Fatal(err)
		}
		within(t, 30*time.Second, "the firmware's words", func() bool { return strings.Count(out.String(), "Booting from Hard Disk") == i+1 })
		if err := m.PowerOff(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := io.WriteString(in, "~."); err != nil {
		t.Fatal(err)
	}
}
