package vbmc

import (
	"context"
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/bmc-toolbox/bmclib/v2/providers/intelamt"
)

// TestAMTWithBmclib holds the server against a client that works on real boards.
func TestAMTWithBmclib(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var m Switch
	a, err := StartAMT(AMTConfig{Listener: l, Password: "s3cret-pass"}, &m)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	n, _ := strconv.Atoi(port)
	c := intelamt.New("127.0.0.1", "admin", "s3cret-pass", intelamt.WithPort(uint32(n)))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := c.Open(ctx); err != nil {
		t.Fatal(err)
	}
	defer c.Close(ctx)
	state := func(want string) {
		t.Helper()
		if s, err := c.PowerStateGet(ctx); err != nil || s != want {
			t.Fatalf("state %q, %v; want %s", s, err, want)
		}
	}
	state("off")
	if ok, err := c.BootDeviceSet(ctx, "pxe", false, false); err != nil || !ok {
		t.Fatalf("boot device: %v, %v", ok, err)
	}
	for range 2 {
		if ok, err := c.PowerSet(ctx, "on"); err != nil || !ok || !m.On() {
			t.Fatalf("on: %v, %v", ok, err)
		}
		state("on")
		if ok, err := c.PowerSet(ctx, "off"); err != nil || !ok || m.On() {
			t.Fatalf("off: %v, %v", ok, err)
		}
		state("off")
	}
	if b := m.Boots(); len(b) != 2 || b[0] != BootNetwork || b[1] != 0 {
		t.Errorf("boots %v, want the network once", b)
	}
	// What bmclib's client does with a wrong password is why power/amt has its own.
	wrong := intelamt.New("127.0.0.1", "admin", "wrong", intelamt.WithPort(uint32(n)))
	_ = wrong.Open(ctx)
	_, err = wrong.PowerStateGet(ctx)
	if err == nil || a.Refused() != 2 {
		t.Errorf("a wrong password: %v, %d attempts", err, a.Refused())
	}
}
