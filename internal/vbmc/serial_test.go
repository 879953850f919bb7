package vbmc

import (
	"bufio"
	"io"
	"net"
	"testing"
	"time"
)

// TestSerialPort: what QEMU prints reaches everybody who is attached, what they
// type reaches QEMU, and a machine that is off takes it without a word.
func TestSerialPort(t *testing.T) {
	m := &Machine{Name: "m", Dir: t.TempDir()}
	off := m.Attach()
	if _, err := off.Write([]byte("nobody")); err != nil {
		t.Errorf("typing into a machine that is off: %v", err)
	}
	off.Close()
	if err := m.port.open(m.serialSocket()); err != nil {
		t.Fatal(err)
	}
	defer m.port.close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() { defer close(served); m.ServeSerial(ln) }()
	far, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	near := m.Attach()
	for range 2 { // a machine that is switched off and on again
		qemu, err := net.Dial("unix", m.serialSocket())
		if err != nil {
			t.Fatal(err)
		}
		ends := []io.ReadWriter{near, far}
		until(t, m, func() bool { return len(m.port.seen) == 2 && m.port.qemu != nil }) // TCP attaches in its own time
		if _, err := io.WriteString(qemu, "login:\n"); err != nil {
			t.Fatal(err)
		}
		typed := bufio.NewReader(qemu)
		for i, e := range ends {
			if got, err := bufio.NewReader(e).ReadString('\n'); err != nil || got != "login:\n" {
				t.Errorf("end %d reads %q, %v", i, got, err)
			}
			if _, err := io.WriteString(e, "root\n"); err != nil {
				t.Error(err)
			}
			if got, err := typed.ReadString('\n'); err != nil || got != "root\n" {
				t.Errorf("end %d typed %q, %v", i, got, err)
			}
		}
		qemu.Close()
		until(t, m, func() bool { return m.port.qemu == nil })
	}
	near.Close()
	if _, err := near.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("reading what was closed: %v", err)
	}
	far.Close()
	ln.Close()
	<-served
}

func until(t *testing.T, m *Machine, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		m.port.mu.Lock()
		now := ok()
		m.port.mu.Unlock()
		if now {
			return
		}
	}
	t.Fatal("not within 5 s")
}
