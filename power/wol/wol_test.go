package wol

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"smelt/inventory"
	"smelt/power"
	"smelt/power/powertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A sleeper is a machine whose card listens for magic packets. It is heard of
// while it runs.
type sleeper struct {
	conn *net.UDPConn
	wake []byte // what wakes it
	done sync.WaitGroup

	mu      sync.Mutex
	on      bool
	packets [][]byte
}

func sleep(t *testing.T, wake []byte) *sleeper {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	s := &sleeper{conn: conn, wake: wake}
	s.done.Go(func() {
		buf := make([]byte, 2048)
		for {
			n, _, err := conn.ReadFromUDP(buf)
			if err != nil {
				return
			}
			s.mu.Lock()
			s.packets = append(s.packets, bytes.Clone(buf[:n]))
			s.on = s.on || bytes.Equal(buf[:n], s.wake)
			s.mu.Unlock()
		}
	})
	t.Cleanup(func() {
		conn.Close()
		s.done.Wait()
	})
	return s
}

func (s *sleeper) running() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.on
}

func (s *sleeper) heard() (time.Time, string) {
	if s.running() {
		return time.Now(), "its agent"
	}
	return time.Time{}, ""
}

var mac = inventory.MAC{0x52, 0x54, 0, 0x12, 0x34, 0x56}

func (s *sleeper) controller(t *testing.T, password string) *Controller {
	t.Helper()
	cfg := Config{Node: "rig-01", MACs: []inventory.MAC{mac}, To: s.conn.LocalAddr().(*net.UDPAddr).AddrPort(),
		From: netip.MustParseAddr("127.0.0.1"), Heard: s.heard}
	if password != "" {
		cfg.Password = func(context.Context) (string, error) { return password, nil }
	}
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestConformance(t *testing.T) {
	powertest.Run(t, func(t *testing.T) (power.Controller, powertest.Hardware) {
		s := sleep(t, Packet(mac, nil))
		return s.controller(t, ""), powertest.Hardware{On: s.running, OnlyOn: true}
	})
}

// White paper 20213: six bytes of ones, the address sixteen times; SecureOn adds six.
func TestPacket(t *testing.T) {
	p := Packet(mac, nil)
	if len(p) != 102 || !bytes.Equal(p[:6], bytes.Repeat([]byte{0xff}, 6)) || !bytes.Equal(p[6:], bytes.Repeat(mac[:], 16)) {
		t.Errorf("% x", p)
	}
	if p := Packet(mac, []byte{1, 2, 3, 4, 5, 6}); len(p) != 108 || !bytes.HasSuffix(p, []byte{1, 2, 3, 4, 5, 6}) {
		t.Errorf("% x", p)
	}
}

// Only a machine that is heard of afterwards is on.
func TestVerified(t *testing.T) {
	limits := power.Limits{Reach: 500 * time.Millisecond, Poll: 10 * time.Millisecond, Spacing: time.Millisecond}
	s := sleep(t, Packet(mac, []byte{0, 0x11, 0x22, 0x33, 0x44, 0x55}))
	e, err := power.Verify(s.controller(t, ""), limits).On(t.Context())
	if !errors.Is(err, power.ErrNotReached) || s.running() {
		t.Errorf("without its password: %v, on %v, evidence %+v", err, s.running(), e)
	}
	v := power.Verify(s.controller(t, "00:11:22:33:44:55"), limits)
	if e, err = v.On(t.Context()); err != nil || !s.running() || e.Before != "unknown" || e.After != "on" {
		t.Errorf("with it: %v, evidence %+v", err, e)
	}
	if e, err = v.Off(t.Context()); !errors.Is(err, power.ErrUnsupported) || !s.running() {
		t.Errorf("off: %v", err)
	}
	if e, err = v.Cycle(t.Context(), power.Network); !errors.Is(err, power.ErrUnsupported) || !s.running() {
		t.Errorf("cycle of a machine that runs: %v, evidence %+v", err, e)
	}
	s.mu.Lock()
	s.on = false
	s.mu.Unlock()
	if e, err = v.Cycle(t.Context(), power.Network); err != nil || !s.running() {
		t.Errorf("cycle of a machine that nobody hears: %v, evidence %+v", err, e)
	}
}

func TestPasswordIsNotRepeated(t *testing.T) {
	s := sleep(t, nil)
	err := s.controller(t, "hunter2").Set(t.Context(), power.On)
	if err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("error %v", err)
	}
	if len(s.packets) > 0 {
		t.Error("something was sent")
	}
}

func TestNewRefuses(t *testing.T) {
	to := netip.MustParseAddrPort("10.0.255.255:9")
	heard := func() (time.Time, string) { return time.Time{}, "" }
	for name, c := range map[string]Config{
		"no address": {To: to, Heard: heard},
		"nowhere":    {MACs: []inventory.MAC{mac}, Heard: heard},
		"no ears":    {MACs: []inventory.MAC{mac}, To: to},
	} {
		if _, err := New(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
