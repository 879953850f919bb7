package pdu

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
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

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func is(s string) Secret { return func(context.Context) (string, error) { return s, nil } }

func udp(t *testing.T) net.PacketConn {
	t.Helper()
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func start(t *testing.T, model string, outlets ...vbmc.Outlet) *vbmc.PDU {
	t.Helper()
	p, err := vbmc.StartPDU(vbmc.PDUConfig{Conn: udp(t), Model: model, Community: "hush", Outlets: outlets})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func unit(t *testing.T, c Config) *Unit {
	t.Helper()
	if c.Version == "" {
		c.Version = "v2c"
	}
	if c.Community == nil {
		c.Community = is("hush")
	}
	c.Name = "pdu1"
	u, err := NewUnit(c)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func controller(t *testing.T, outlets ...Outlet) *Controller {
	t.Helper()
	c, err := New(outlets...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestConformance(t *testing.T) {
	for _, v := range []struct{ model, version string }{{"apc-rpdu", "v1"}, {"apc-rpdu", "v2c"}, {"apc-rpdu2", "v2c"}} {
		t.Run(v.model+" "+v.version, func(t *testing.T) {
			t.Parallel()
			powertest.Run(t, func(t *testing.T) (power.Controller, powertest.Hardware) {
				var m vbmc.Switch
				p := start(t, v.model, vbmc.Outlet{Name: "spare"}, vbmc.Outlet{Name: "rig-01 left", Power: &m}, vbmc.Outlet{Name: "rig-01 right", Power: &m})
				u := unit(t, Config{Address: p.Addr().String(), Model: v.model, Version: v.version})
				on := func(u *Unit) *Controller {
					return controller(t, Outlet{Unit: u, Number: 2, Label: "rig-01"}, Outlet{Unit: u, Number: 3, Label: "rig-01"})
				}
				return on(u), powertest.Hardware{
					On: m.On,
					Turn: func(on bool) {
						for n := 2; n <= 3; n++ {
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
	c := controller(t, Outlet{Unit: unit(t, Config{Address: a.Addr().String()}), Number: 1}, Outlet{Unit: unit(t, Config{Address: b.Addr().String()}), Number: 2})
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
	v := power.Verify(c, power.Limits{Reach: 300 * time.Millisecond, Poll: 20 * time.Millisecond, Dwell: time.Millisecond, Spacing: time.Millisecond})
	if _, err := v.Cycle(t.Context(), 0); !errors.Is(err, power.ErrNotReached) || a.On(1) {
		t.Errorf("one outlet is deaf: error %v, the other one on %v; want it left off", err, a.On(1))
	}
	b.Fault(2, vbmc.OutletObeys)
	a.Drop(true)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if s, err := c.State(ctx); err == nil || s != power.Unknown {
		t.Errorf("one PDU is gone: state %s, error %v", s, err)
	}
}

func TestLies(t *testing.T) {
	limits := power.Limits{Reach: 500 * time.Millisecond, Poll: 20 * time.Millisecond, Dwell: time.Millisecond, Spacing: time.Millisecond}
	for name, l := range map[string]struct {
		fault vbmc.OutletFault
		reach time.Duration
		err   error
	}{
		"ignores":  {vbmc.OutletIgnores, 0, power.ErrNotReached},
		"inverts":  {vbmc.OutletInverts, 0, power.ErrNotReached},
		"hesitant": {vbmc.OutletHesitant, 5 * time.Second, nil},
		"too slow": {vbmc.OutletHesitant, 0, power.ErrNotReached},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var m vbmc.Switch
			p := start(t, "apc-rpdu2", vbmc.Outlet{Power: &m})
			p.Fault(1, l.fault)
			limits := limits
			if l.reach > 0 {
				limits.Reach = l.reach
			}
			v := power.Verify(controller(t, Outlet{Unit: unit(t, Config{Address: p.Addr().String()}), Number: 1}), limits)
			if _, err := v.On(t.Context()); !errors.Is(err, l.err) || m.On() != (l.err == nil) || p.Sets() != 1 {
				t.Errorf("error %v, machine on %v, %d commands; want %v and one command", err, m.On(), p.Sets(), l.err)
			}
		})
	}
}

// Nothing is written to a device that is not what the site says.
func TestRefusesToWrite(t *testing.T) {
	var m vbmc.Switch
	p := start(t, "apc-rpdu", vbmc.Outlet{Name: "rig-10", Power: &m})
	at := p.Addr().String()
	other := otherDevice(t, "1.3.6.1.4.1.8072.3.2.10") // a Linux host
	for name, c := range map[string]struct {
		outlet Outlet
		says   string
	}{
		"another model":  {Outlet{Unit: unit(t, Config{Address: at, Model: "apc-rpdu2"}), Number: 1}, "the site says that it is a apc-rpdu2"},
		"no PDU at all":  {Outlet{Unit: unit(t, Config{Address: other}), Number: 1}, "no model that Smelt knows"},
		"no such outlet": {Outlet{Unit: unit(t, Config{Address: at}), Number: 9}, "no such outlet"},
		"another name":   {Outlet{Unit: unit(t, Config{Address: at}), Number: 1, Label: "rig-1"}, `the PDU calls it "rig-10", not "rig-1"`},
	} {
		t.Run(name, func(t *testing.T) {
			for _, s := range []power.State{power.On, power.Off} {
				if err := controller(t, c.outlet).Set(t.Context(), s); err == nil || !strings.Contains(err.Error(), c.says) {
					t.Errorf("set %s: error %v, want %q", s, err, c.says)
				}
			}
		})
	}
	if p.Sets() != 0 || m.On() {
		t.Errorf("%d commands were written", p.Sets())
	}
	wrong := unit(t, Config{Address: at, Community: is("public")})
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := controller(t, Outlet{Unit: wrong, Number: 1}).Set(ctx, power.On); err == nil || m.On() {
		t.Errorf("a wrong community: error %v, machine on %v", err, m.On())
	}
}

// otherDevice answers every request with a sysObjectID.
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
			p.PDUType = gosnmp.GetResponse
			p.Variables = []gosnmp.SnmpPDU{{Name: sysObjectID, Type: gosnmp.ObjectIdentifier, Value: object}}
			if b, err := p.MarshalMsg(); err == nil {
				_, _ = conn.WriteTo(b, from)
			}
		}
	})
	return conn.LocalAddr().String()
}

func TestReadings(t *testing.T) {
	var m vbmc.Switch
	p := start(t, "apc-rpdu2", vbmc.Outlet{Power: &m, Watts: 300}, vbmc.Outlet{Power: &m, Watts: 250})
	u := unit(t, Config{Address: p.Addr().String()})
	c := controller(t, Outlet{Unit: u, Number: 1}, Outlet{Unit: u, Number: 2})
	if err := c.Set(t.Context(), power.On); err != nil {
		t.Fatal(err)
	}
	if r, err := c.Readings(t.Context()); err != nil || r.Watts != 550 {
		t.Errorf("readings %+v, error %v", r, err)
	}
	old := start(t, "apc-rpdu", vbmc.Outlet{Power: &m})
	if _, err := controller(t, Outlet{Unit: unit(t, Config{Address: old.Addr().String()}), Number: 1}).Readings(t.Context()); !errors.Is(err, power.ErrUnsupported) {
		t.Errorf("a PDU without meters: %v", err)
	}
}

// Each model against the words of its own table: a command, seen as a state.
func TestModels(t *testing.T) {
	seen := map[string]string{}
	for _, m := range models {
		if m.on == m.off || slices.ContainsFunc(m.isOn, func(n int) bool { return slices.Contains(m.isOff, n) }) {
			t.Errorf("%s: on and off are the same", m.name)
		}
		if len(m.objects) == 0 || m.status == "" || m.on.column == "" || m.off.column == "" {
			t.Errorf("%s: incomplete", m.name)
		}
		for _, o := range m.objects {
			for other, name := range seen {
				if under(o, other) || under(other, o) {
					t.Errorf("sysObjectID %s belongs to %s and to %s", o, m.name, name)
				}
			}
			seen[o] = m.name
			for _, oid := range []string{m.on.column, m.off.column, m.status, m.label, m.watts} {
				if oid != "" && !strings.HasPrefix(oid, "1.3.6.1.4.1.") {
					t.Errorf("%s: OID %q", m.name, oid)
				}
			}
		}
	}
	if m, ok := modelOf("1.3.6.1.4.1.318.1.3.4.60"); ok {
		t.Errorf("318.1.3.4.60 is no %s", m.name)
	}
}

func TestNew(t *testing.T) {
	good := Config{Name: "p", Address: "10.0.0.1", Version: "v2c", Community: is("x")}
	for says, f := range map[string]func(*Config){
		"want HOST":         func(c *Config) { c.Address = ":161" },
		"want HOST or":      func(c *Config) { c.Address = "10.0.0.1:snmp" },
		`model "apc"`:       func(c *Config) { c.Model = "apc" },
		"needs a community": func(c *Config) { c.Community = nil },
		"v3 needs a user":   func(c *Config) { c.Version = "v3" },
		`version "2"`:       func(c *Config) { c.Version = "2" },
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
		"at least one": {}, "counted from 1": {{Unit: u}}, "on a unit": {{Number: 1}}, "twice": {{Unit: u, Number: 1}, {Unit: u, Number: 1}},
	} {
		if _, err := New(outlets...); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("error %v, want %q", err, says)
		}
	}
}

// A real agent, with SNMPv3: Debian's snmpd answers for an rPDU whose outlet
// is a file, by way of a pass program.
func TestSnmpd(t *testing.T) {
	snmpd, err := exec.LookPath("snmpd")
	if err != nil {
		if _, err := os.Stat("/usr/sbin/snmpd"); err == nil {
			snmpd = "/usr/sbin/snmpd"
		} else if os.Getenv("SMELT_TEST_NO_SKIP") == "1" {
			t.Fatal("snmpd is missing: apt-get install snmpd")
		} else {
			t.Skip("snmpd is missing (Debian package snmpd)")
		}
	}
	conn := udp(t)
	at := conn.LocalAddr().String()
	conn.Close()
	dir := t.TempDir()
	outlet := filepath.Join(dir, "outlet")
	write := func(path, text string) {
		if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	write(outlet, "2")
	write(filepath.Join(dir, "pass"), fmt.Sprintf(passScript, outlet))
	write(filepath.Join(dir, "snmpd.conf"), fmt.Sprintf(`agentaddress udp:%s
rwcommunity hush
rocommunity public
createUser admin SHA-256 "authentic-42" AES "private-4242"
rwuser admin priv
sysObjectID .1.3.6.1.4.1.318.1.3.4.5
pass .1.3.6.1.4.1.318.1.1.12 /bin/sh %s/pass
`, at, dir))
	var said lockedBuilder
	cmd := exec.Command(snmpd, "-f", "-Lo", "-C", "-c", filepath.Join(dir, "snmpd.conf"), "-I", "-smux,-agentx")
	cmd.Env = append(os.Environ(), "SNMP_PERSISTENT_DIR="+dir, "SNMPCONFPATH="+dir, "MIBS=")
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Log(said.String())
		}
	})
	open := func(c Config) *Controller {
		c.Address, c.Model = at, "apc-rpdu"
		return controller(t, Outlet{Unit: unit(t, c), Number: 1})
	}
	v2, v3 := open(Config{}), open(Config{Version: "v3", User: "admin", Auth: is("authentic-42"), Priv: is("private-4242")})
	for end := time.Now().Add(10 * time.Second); ; {
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		s, err := v2.State(ctx)
		cancel()
		if err == nil && s == power.Off {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("snmpd: state %s, error %v", s, err)
		}
	}
	limits := power.Limits{Reach: 5 * time.Second, Poll: 20 * time.Millisecond, Spacing: time.Millisecond}
	for _, c := range []*Controller{v2, v3} {
		v := power.Verify(c, limits)
		if e, err := v.On(t.Context()); err != nil || read(t, outlet) != "1" {
			t.Errorf("on: %v, outlet %q, %+v", err, read(t, outlet), e)
		}
		if e, err := v.Off(t.Context()); err != nil || read(t, outlet) != "2" {
			t.Errorf("off: %v, outlet %q, %+v", err, read(t, outlet), e)
		}
	}
	for name, c := range map[string]*Controller{
		"a community that may only read": open(Config{Community: is("public")}),
		"a wrong passphrase":             open(Config{Version: "v3", User: "admin", Auth: is("authentic-43"), Priv: is("private-4242")}),
		"an unknown user":                open(Config{Version: "v3", User: "nobody", Auth: is("authentic-42"), Priv: is("private-4242")}),
	} {
		if err := c.Set(t.Context(), power.On); !errors.Is(err, power.ErrAuth) || read(t, outlet) != "2" {
			t.Errorf("%s: error %v, outlet %q", name, err, read(t, outlet))
		}
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	s.Scan()
	return s.Text()
}

// passScript is a pass program of snmpd.conf(5) for one outlet.
const passScript = `O=%s
B=.1.3.6.1.4.1.318.1.1.12.3
case "$1 $2" in
"-g $B.5.1.1.4.1" | "-g $B.3.1.1.4.1") echo "$2"; echo integer; cat $O ;;
"-s $B.3.1.1.4.1") case "$4" in 1|2) echo "$4" > $O ;; *) echo wrong-value ;; esac ;;
-s*) echo not-writable ;;
esac
`

type lockedBuilder struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedBuilder) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuilder) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func FuzzAnswer(f *testing.F) {
	for _, p := range []gosnmp.SnmpPacket{
		{Version: gosnmp.Version2c, Community: "hush", PDUType: gosnmp.GetResponse, Variables: []gosnmp.SnmpPDU{{Name: "." + sysObjectID, Type: gosnmp.ObjectIdentifier, Value: "1.3.6.1.4.1.318.1.3.4.5"}}},
		{Version: gosnmp.Version1, Community: "hush", PDUType: gosnmp.GetResponse, Error: gosnmp.NoSuchName, ErrorIndex: 1, Variables: []gosnmp.SnmpPDU{{Name: ".1.3", Type: gosnmp.Null}}},
		{Version: gosnmp.Version2c, PDUType: gosnmp.GetResponse, Variables: []gosnmp.SnmpPDU{{Name: ".1.3", Type: gosnmp.Integer, Value: 2}}},
	} {
		b, err := p.MarshalMsg()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var g gosnmp.GoSNMP
		p, err := g.SnmpDecodePacket(b)
		if err != nil {
			return
		}
		v, err := answer(p, nil)
		if err == nil && (p.Error != gosnmp.NoError || len(p.Variables) != 1 || v.Type == gosnmp.Null) {
			t.Errorf("%+v was taken for an answer", p)
		}
	})
}
