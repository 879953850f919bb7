package pdu

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gosnmp/gosnmp"
	"go.uber.org/goleak"

	"smelt/internal/vbmc"
	"smelt/power"
	"smelt/power/powertest"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(passEnv); dir != "" {
		os.Exit(pass(dir, os.Stdin, os.Stdout))
	}
	// These tests wait for timers and not for the processor.
	if err := flag.Set("test.parallel", "24"); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

func is(s string) Secret { return func(context.Context) (string, error) { return s, nil } }

func udp(t testing.TB) net.PacketConn {
	t.Helper()
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func start(t testing.TB, model string, outlets ...vbmc.Outlet) *vbmc.PDU {
	t.Helper()
	p, err := vbmc.StartPDU(vbmc.PDUConfig{Conn: udp(t), Model: model, Community: "hush", ReadOnly: "public",
		User: "admin", Auth: "authentic-42", Priv: "private-4242", Outlets: outlets})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func unit(t testing.TB, c Config) *Unit {
	t.Helper()
	if c.Version == "" {
		c.Version = "v2c"
	}
	if c.Community == nil {
		c.Community = is("hush")
	}
	if c.Version == "v3" && c.User == "" {
		c.User, c.Auth, c.Priv = "admin", is("authentic-42"), is("private-4242")
	}
	if c.Name == "" {
		c.Name = "pdu1"
	}
	u, err := NewUnit(c)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func controller(t testing.TB, outlets ...Outlet) *Controller {
	t.Helper()
	c, err := New(outlets...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// brisk are limits for a device that answers at once.
var brisk = power.Limits{Reach: 500 * time.Millisecond, Poll: 20 * time.Millisecond, Dwell: time.Millisecond, Spacing: time.Millisecond}

// Every family against its simulation.
func TestConformance(t *testing.T) {
	runs := []struct{ model, version string }{{"apc-rpdu", "v1"}, {"servertech3", "v1"}, {"apc-rpdu2", "v3"}}
	for _, m := range Models() {
		runs = append(runs, struct{ model, version string }{m, "v2c"})
	}
	for _, v := range runs {
		t.Run(v.model+" "+v.version, func(t *testing.T) {
			t.Parallel()
			powertest.Run(t, func(t *testing.T) (power.Controller, powertest.Hardware) {
				var m, other vbmc.Switch
				outlets := []vbmc.Outlet{{Name: "spare"}, {Name: "rig-01 left", Power: &m}, {Name: "rig-02", Power: &other}}
				for range 6 {
					outlets = append(outlets, vbmc.Outlet{})
				}
				outlets = append(outlets, vbmc.Outlet{Name: "rig-01 right", Power: &m}) // behind the gap of an ATEN
				p := start(t, v.model, outlets...)
				u := unit(t, Config{Address: p.Addr().String(), Model: v.model, Version: v.version, Nodes: []string{"rig-01", "rig-02"}})
				on := func(u *Unit) *Controller {
					return controller(t, Outlet{Unit: u, Number: 2, Node: "rig-01"}, Outlet{Unit: u, Number: 10, Node: "rig-01"})
				}
				t.Cleanup(func() {
					if other.On() {
						t.Error("another machine was switched on")
					}
				})
				return on(u), powertest.Hardware{
					On: m.On,
					Turn: func(on bool) {
						for _, n := range []int{2, 10} {
							if err := p.Turn(n, on); err != nil {
								t.Error(err)
							}
						}
					},
					Dead: func(t *testing.T) power.Controller {
						c := udp(t)
						c.Close()
						return on(unit(t, Config{Address: c.LocalAddr().String(), Model: v.model, Version: v.version}))
					},
					Hang: func() { p.Drop(true) },
				}
			})
		})
	}
}

// Two cords: mixed outlets are a machine with power, and nothing is switched
// on before both were off.
func TestTwoCords(t *testing.T) {
	var m vbmc.Switch
	a, b := start(t, "apc-rpdu", vbmc.Outlet{Power: &m}), start(t, "apc-rpdu2", vbmc.Outlet{}, vbmc.Outlet{Power: &m})
	ua, ub := unit(t, Config{Name: "a", Address: a.Addr().String()}), unit(t, Config{Name: "b", Address: b.Addr().String()})
	c := controller(t, Outlet{Unit: ua, Number: 1}, Outlet{Unit: ub, Number: 2})
	if err := a.Turn(1, true); err != nil {
		t.Fatal(err)
	}
	if s, err := c.State(t.Context()); err != nil || s != power.On {
		t.Errorf("one of two outlets on: state %s, error %v", s, err)
	}
	b.Fault(2, vbmc.OutletIgnores)
	if err := b.Turn(2, true); err != nil {
		t.Fatal(err)
	}
	v := power.Verify(c, brisk)
	e, err := v.Cycle(t.Context(), 0)
	if !errors.Is(err, power.ErrNotReached) || a.On(1) {
		t.Errorf("one outlet is deaf: error %v, the other one on %v; want it left off", err, a.On(1))
	}
	if notes := strings.Join(e.Notes, "\n"); !strings.Contains(notes, "pdu a outlet 1: told to switch off") || !strings.Contains(notes, "pdu b outlet 2: told to switch off") {
		t.Errorf("the evidence does not name both outlets: %q", notes)
	}
	b.Fault(2, vbmc.OutletObeys)

	// One refuses: the other one is told all the same, and the error says which.
	b.Fault(2, vbmc.OutletRefuses)
	if err := a.Turn(1, true); err != nil {
		t.Fatal(err)
	}
	err = c.Set(t.Context(), power.Off)
	if err == nil || !strings.Contains(err.Error(), "pdu b outlet 2: switch off") || strings.Contains(err.Error(), "pdu a outlet") || a.On(1) {
		t.Errorf("one refuses: %v, the other one on %v", err, a.On(1))
	}
	if notes := c.Notes(); !slices.ContainsFunc(notes, func(n string) bool { return strings.Contains(n, "pdu a outlet 1: told to switch off") }) {
		t.Errorf("notes %q", notes)
	}
	if s, err := c.State(t.Context()); err != nil || s != power.On {
		t.Errorf("one of two outlets still on: state %s, error %v", s, err)
	}
	b.Fault(2, vbmc.OutletObeys)

	// One waits for a delay: neither on nor off, while the other is off.
	if err := b.Turn(2, false); err != nil {
		t.Fatal(err)
	}
	b.Later(2, true, time.Minute)
	if s, err := c.State(t.Context()); err != nil || s != power.Unknown {
		t.Errorf("one off, one about to change: state %s, error %v", s, err)
	}

	// One PDU is gone: the state is not known, and the other one is left alone.
	b.Restart()
	b.Drop(true)
	before := a.Sets()
	for _, call := range []func(context.Context) error{
		func(ctx context.Context) error { _, err := c.State(ctx); return err },
		func(ctx context.Context) error { return c.Set(ctx, power.On) },
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		if err := call(ctx); err == nil || !strings.Contains(err.Error(), "pdu b") {
			t.Errorf("one PDU is gone: error %v", err)
		}
		cancel()
	}
	if a.Sets() != before || m.On() {
		t.Error("one PDU is gone, and the other one was switched")
	}
}

// Two machines on the same two PDUs, named in opposite order, never wait for
// each other.
func TestManyAtOnce(t *testing.T) {
	var machines [8]vbmc.Switch
	var outlets []vbmc.Outlet
	for i := range machines {
		outlets = append(outlets, vbmc.Outlet{Power: &machines[i]})
	}
	a, b := start(t, "apc-rpdu2", outlets...), start(t, "vertiv", outlets...)
	ua, ub := unit(t, Config{Name: "a", Address: a.Addr().String()}), unit(t, Config{Name: "b", Address: b.Addr().String()})
	a.Fault(3, vbmc.OutletHesitant) // moves while others are watched
	var wg sync.WaitGroup
	began := time.Now()
	for i := range machines {
		on := []Outlet{{Unit: ua, Number: i + 1}, {Unit: ub, Number: i + 1}}
		if i%2 == 1 {
			slices.Reverse(on)
		}
		v := power.Verify(controller(t, on...), power.Limits{Reach: 10 * time.Second, Poll: 20 * time.Millisecond, Dwell: time.Millisecond, Spacing: time.Millisecond})
		wg.Go(func() {
			if e, err := v.Cycle(t.Context(), 0); err != nil {
				t.Errorf("%v, %+v", err, e)
			}
			if e, err := v.Off(t.Context()); err != nil {
				t.Errorf("%v, %+v", err, e)
			}
		})
	}
	wg.Wait()
	t.Logf("%d machines cycled and switched off within %v", len(machines), time.Since(began))
	for i := range machines {
		if machines[i].On() {
			t.Errorf("machine %d is on", i+1)
		}
	}
}

// Nothing is written to a device that is not what the site says.
func TestRefusesToWrite(t *testing.T) {
	t.Parallel()
	var m vbmc.Switch
	p := start(t, "apc-rpdu", vbmc.Outlet{Name: "rig-10", Power: &m}, vbmc.Outlet{})
	at := p.Addr().String()
	sentry := start(t, "servertech3", vbmc.Outlet{}).Addr().String()
	other := otherDevice(t, "1.3.6.1.4.1.8072.3.2.10") // a Linux host
	ups := otherDevice(t, "1.3.6.1.4.1.476.1.42")      // says that it is an Emerson, has no outlets
	for name, c := range map[string]struct {
		outlet Outlet
		says   string
	}{
		"another model":     {Outlet{Unit: unit(t, Config{Address: at, Model: "apc-rpdu2"}), Number: 1}, "there it is a apc-rpdu2, sysObjectID 1.3.6.1.4.1.318.1.3.4.5 says apc-rpdu"},
		"no PDU at all":     {Outlet{Unit: unit(t, Config{Address: other}), Number: 1}, "no model that Smelt knows, so nothing is switched; it knows apc-masterswitch"},
		"no outlets":        {Outlet{Unit: unit(t, Config{Address: ups}), Number: 1}, "this emerson says nothing of an outlet 1"},
		"beyond the last":   {Outlet{Unit: unit(t, Config{Address: at}), Number: 9}, "there is no outlet 9: this apc-rpdu has 2, from 1 to 2"},
		"a number too much": {Outlet{Unit: unit(t, Config{Address: sentry}), Number: 101}, "there is no outlet 101"},
		"no such tower":     {Outlet{Unit: unit(t, Config{Address: sentry}), Number: 20101}, "there is no outlet 20101: this servertech3 has 1"},
		"another name":      {Outlet{Unit: unit(t, Config{Address: at}), Number: 1, Node: "rig-1"}, `the PDU calls it "rig-10", not rig-1`},
		"another node":      {Outlet{Unit: unit(t, Config{Address: at, Nodes: []string{"rig-1", "rig-10"}}), Number: 1, Node: "rig-1"}, `that is node rig-10, not rig-1`},
	} {
		t.Run(name, func(t *testing.T) {
			for _, s := range []power.State{power.On, power.Off} {
				if err := controller(t, c.outlet).Set(t.Context(), s); !errors.Is(err, power.ErrMismatch) || !strings.Contains(err.Error(), c.says) {
					t.Errorf("set %s: error %v, want %q", s, err, c.says)
				}
			}
		})
	}
	if p.Sets() != 0 || m.On() {
		t.Errorf("%d commands were written", p.Sets())
	}
	// A wrong community is silence, and the error says so.
	wrong := unit(t, Config{Address: at, Community: is("wrong")})
	if err := controller(t, Outlet{Unit: wrong, Number: 1}).Set(t.Context(), power.On); err == nil || !strings.Contains(err.Error(), "a wrong community looks like that too") || errors.Is(err, power.ErrAuth) || m.On() {
		t.Errorf("a wrong community: error %v, machine on %v", err, m.On())
	}
	// One that may only read is refused when it writes.
	for version, want := range map[string]string{"v2c": "NoAccess", "v1": "may this community or user write?"} {
		read := unit(t, Config{Address: at, Version: version, Community: is("public")})
		err := controller(t, Outlet{Unit: read, Number: 1}).Set(t.Context(), power.On)
		if err == nil || !strings.Contains(err.Error(), want) || (version == "v2c") != errors.Is(err, power.ErrAuth) {
			t.Errorf("%s: a community that may only read: %v", version, err)
		}
	}
	if p.Sets() != 0 || m.On() {
		t.Errorf("%d commands were written", p.Sets())
	}
}

// otherDevice has a sysObjectID and nothing else.
func otherDevice(t *testing.T, object string) string {
	conn := udp(t)
	var wait sync.WaitGroup
	t.Cleanup(wait.Wait)
	t.Cleanup(func() { conn.Close() })
	wait.Go(func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			var g gosnmp.GoSNMP
			p, err := g.SnmpDecodePacket(buf[:n])
			if err != nil {
				continue
			}
			for i, v := range p.Variables {
				switch strings.TrimPrefix(v.Name, ".") {
				case sysObjectID:
					p.Variables[i] = gosnmp.SnmpPDU{Name: v.Name, Type: gosnmp.ObjectIdentifier, Value: object}
				case sysUpTime:
					p.Variables[i] = gosnmp.SnmpPDU{Name: v.Name, Type: gosnmp.TimeTicks, Value: uint32(4711)}
				default:
					p.Variables[i] = gosnmp.SnmpPDU{Name: v.Name, Type: gosnmp.NoSuchObject}
				}
			}
			p.PDUType, p.NonRepeaters, p.MaxRepetitions = gosnmp.GetResponse, 0, 0
			if b, err := p.MarshalMsg(); err == nil {
				_, _ = conn.WriteTo(b, from)
			}
		}
	})
	return conn.LocalAddr().String()
}

func TestIdentify(t *testing.T) {
	p := start(t, "emerson", vbmc.Outlet{Name: "rig-01"}, vbmc.Outlet{Name: "rig-02"})
	u := unit(t, Config{Address: p.Addr().String()})
	c := controller(t, Outlet{Unit: u, Number: 2, Node: "rig-02"})
	for _, on := range []bool{true, false} {
		if err := c.Identify(t.Context(), on); err != nil {
			t.Errorf("identify %v: %v", on, err)
		}
	}
	if got := p.Blinked(); !slices.Equal(got, []int{2}) || p.On(1) || p.On(2) || c.Light() == "" {
		t.Errorf("blinked %v", got)
	}
	if err := controller(t, Outlet{Unit: u, Number: 1, Node: "rig-02"}).Identify(t.Context(), true); err == nil || len(p.Blinked()) != 1 {
		t.Errorf("the light of another node's outlet: %v, %v", err, p.Blinked())
	}
	dark := start(t, "apc-rpdu2", vbmc.Outlet{})
	if err := controller(t, Outlet{Unit: unit(t, Config{Address: dark.Addr().String()}), Number: 1}).Identify(t.Context(), true); !errors.Is(err, power.ErrUnsupported) {
		t.Errorf("no light: %v", err)
	}
}

func TestNew(t *testing.T) {
	good := Config{Name: "p", Address: "10.0.0.1", Version: "v2c", Community: is("x")}
	for says, f := range map[string]func(*Config){
		"want HOST":         func(c *Config) { c.Address = ":161" },
		"want HOST or":      func(c *Config) { c.Address = "10.0.0.1:snmp" },
		`model "apc"`:       func(c *Config) { c.Model = "apc" },
		`"servertech4"`:     func(c *Config) { c.Model = "sentry" }, // the error lists the models
		"needs a community": func(c *Config) { c.Community = nil },
		"v3 needs a user":   func(c *Config) { c.Version = "v3" },
		`version "2"`:       func(c *Config) { c.Version = "2" },
		`names "sometimes"`: func(c *Config) { c.Names = "sometimes" },
		"":                  func(c *Config) { c.Address = "[::1]:1161" },
	} {
		c := good
		f(&c)
		if _, err := NewUnit(c); says == "" && err != nil || says != "" && (err == nil || !strings.Contains(err.Error(), says)) {
			t.Errorf("error %v, want %q", err, says)
		}
	}
	u := unit(t, good)
	for says, outlets := range map[string][]Outlet{
		"at least one": {}, "counted from 1": {{Unit: u, Number: -1}}, "on a unit": {{Number: 1}}, "twice": {{Unit: u, Number: 1}, {Unit: u, Number: 1}},
	} {
		if _, err := New(outlets...); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("error %v, want %q", err, says)
		}
	}
	if s := fmt.Sprint(controller(t, Outlet{Unit: u, Number: 3}, Outlet{Unit: u, Number: 4})); s != "pdu p outlet 3, pdu p outlet 4" {
		t.Errorf("its name is %q", s)
	}
}

// The words are those that act at once, not the delayed ones beside them, and
// reach the outlet that was meant: every one of 24, in every family.
func TestEveryOutlet(t *testing.T) {
	for _, model := range Models() {
		t.Run(model, func(t *testing.T) {
			t.Parallel()
			p := start(t, model, make([]vbmc.Outlet, 24)...)
			u := unit(t, Config{Address: p.Addr().String()})
			for n := 1; n <= 24; n++ {
				c := controller(t, Outlet{Unit: u, Number: n})
				for _, want := range []power.State{power.On, power.Off} {
					if err := c.Set(t.Context(), want); err != nil {
						t.Fatalf("outlet %d: %v", n, err)
					}
					for m := 1; m <= 24; m++ {
						if p.On(m) != (m == n && want == power.On) {
							t.Fatalf("outlet %d was told %s: outlet %d is on: %v", n, want, m, p.On(m))
						}
					}
				}
			}
		})
	}
}
