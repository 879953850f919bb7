package amt

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"smelt/internal/vbmc"
	"smelt/power"
	"smelt/power/powertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func is(s string) func(context.Context) (string, error) {
	return func(context.Context) (string, error) { return s, nil }
}

const secret = "s3cret-Pass!"

func start(t *testing.T, m vbmc.Power, tls bool) *vbmc.AMT {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a, err := vbmc.StartAMT(vbmc.AMTConfig{Listener: l, TLS: tls, Password: secret}, m)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return a
}

func controller(t *testing.T, address, password, pin string) *Controller {
	t.Helper()
	c, err := New(Config{Address: address, User: "admin", Password: is(password), Pin: pin})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// onlyNetwork keeps the suite from asking for a boot that AMT does not have.
type onlyNetwork struct{ *Controller }

func (o onlyNetwork) BootOnce(ctx context.Context, d power.Device) error {
	if d == power.Disk {
		return nil
	}
	return o.Controller.BootOnce(ctx, d)
}

func TestConformance(t *testing.T) {
	for name, tls := range map[string]bool{"http": false, "https": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			powertest.Run(t, func(t *testing.T) (power.Controller, powertest.Hardware) {
				var m vbmc.Switch
				a := start(t, &m, tls)
				return onlyNetwork{controller(t, a.URL(), secret, a.Pin())}, powertest.Hardware{
					On: m.On,
					Turn: func(on bool) {
						if on {
							_ = m.PowerOn(t.Context())
						} else {
							_ = m.PowerOff(t.Context())
						}
					},
					Refused: func(t *testing.T) (power.Controller, func() int) {
						return controller(t, a.URL(), "wrong", a.Pin()), a.Refused
					},
					Dead: func(t *testing.T) power.Controller {
						l, err := net.Listen("tcp", "127.0.0.1:0")
						if err != nil {
							t.Fatal(err)
						}
						l.Close()
						return controller(t, "http://"+l.Addr().String(), secret, "")
					},
					Hang: func() { a.SetFaults(vbmc.AMTFaults{Hang: true}) },
				}
			})
		})
	}
}

func TestBootsFromNetworkOnce(t *testing.T) {
	var m vbmc.Switch
	a := start(t, &m, false)
	c := controller(t, a.URL(), secret, "")
	if err := c.BootOnce(t.Context(), power.Disk); !errors.Is(err, power.ErrUnsupported) {
		t.Errorf("disk: %v", err)
	}
	v := power.Verify(c, power.Limits{Reach: 5 * time.Second, Poll: 5 * time.Millisecond, Dwell: time.Millisecond, Spacing: time.Millisecond})
	for _, d := range []power.Device{power.Network, 0} {
		if e, err := v.Cycle(t.Context(), d); err != nil {
			t.Fatalf("%v, evidence %+v", err, e)
		}
	}
	if b := m.Boots(); len(b) != 2 || b[0] != vbmc.BootNetwork || b[1] != 0 {
		t.Errorf("boots %v, want the network once", b)
	}
	put := a.Settings()
	if len(put) != 1 || strings.Contains(put[0], "BIOSLastStatus") || !strings.Contains(put[0], "BIOSPause>false<") || !strings.Contains(put[0], "BootMediaIndex>0<") {
		t.Errorf("settings %q", put)
	}
}

func TestLies(t *testing.T) {
	limits := power.Limits{Reach: 300 * time.Millisecond, Poll: 10 * time.Millisecond, Dwell: time.Millisecond, Spacing: time.Millisecond}
	for name, l := range map[string]struct {
		faults vbmc.AMTFaults
		err    error
		says   string
		end    bool
	}{
		"honest":                {vbmc.AMTFaults{}, nil, "", false},
		"returns 0 and nothing": {vbmc.AMTFaults{Ignores: true}, power.ErrNotReached, "still on", true},
		"refuses":               {vbmc.AMTFaults{Returns: 2}, power.ErrNotReached, `returns "2"`, true},
		"sleeps":                {vbmc.AMTFaults{State: 4}, power.ErrNotReached, "nothing was done", true},
		"fails":                 {vbmc.AMTFaults{Status: 500}, power.ErrNotReached, "internal processing errors", true},
		"garbage":               {vbmc.AMTFaults{Garbage: true}, power.ErrNotReached, "no SOAP message", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var m vbmc.Switch
			_ = m.PowerOn(t.Context())
			a := start(t, &m, false)
			a.SetFaults(l.faults)
			e, err := power.Verify(controller(t, a.URL(), secret, ""), limits).Off(t.Context())
			if !errors.Is(err, l.err) || l.err == nil && err != nil || err != nil && !strings.Contains(err.Error(), l.says) {
				t.Errorf("error %v, want %v (%s); evidence %+v", err, l.err, l.says, e)
			}
			if m.On() != l.end {
				t.Errorf("the machine is on: %v, want %v", m.On(), l.end)
			}
		})
	}
}

// The key of the first connection is the one that counts.
func TestPin(t *testing.T) {
	var m vbmc.Switch
	a, b := start(t, &m, true), start(t, &m, true)
	c := controller(t, a.URL(), secret, "")
	if _, err := c.State(t.Context()); err != nil || c.Keys()[0].Pin != a.Pin() {
		t.Errorf("first use: %v, pin %q, want %q", err, c.Keys()[0].Pin, a.Pin())
	}
	if _, err := controller(t, b.URL(), secret, a.Pin()).State(t.Context()); err == nil || errors.Is(err, power.ErrAuth) || b.Refused() != 0 {
		t.Errorf("another key: %v", err)
	}
	// A restart of the server is no first connection.
	dir := t.TempDir()
	kept := func(address string) *Controller {
		c, err := New(Config{Address: address, User: "admin", Password: is(secret), Keys: dir})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	if _, err := kept(a.URL()).State(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.Close()
	at := strings.TrimPrefix(a.URL(), "https://")
	l, err := net.Listen("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	impostor, err := vbmc.StartAMT(vbmc.AMTConfig{Listener: l, TLS: true, Password: secret}, &m)
	if err != nil {
		t.Fatal(err)
	}
	defer impostor.Close()
	c = kept(impostor.URL())
	if _, err := c.State(t.Context()); err == nil || !strings.Contains(err.Error(), "somebody else answers") || c.Keys()[0].Other != impostor.Pin() {
		t.Errorf("another key after a restart: %v, %+v", err, c.Keys())
	}
}

func TestNewRefuses(t *testing.T) {
	for name, c := range map[string]Config{
		"account in it": {Address: "https://admin:s3cret@10.0.0.1", User: "a", Password: is("x")},
		"path":          {Address: "https://10.0.0.1/wsman", User: "a", Password: is("x")},
		"no user":       {Address: "10.0.0.1", Password: is("x")},
		"no password":   {Address: "10.0.0.1", User: "a"},
		"bad pin":       {Address: "10.0.0.1", User: "a", Password: is("x"), Pin: "abc"},
		"other scheme":  {Address: "ftp://10.0.0.1", User: "a", Password: is("x")},
		"empty":         {User: "a", Password: is("x")},
	} {
		if _, err := New(c); err == nil || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if c := controller(t, "10.0.0.1", "x", ""); c.base != "https://10.0.0.1:16993" || c.String() != "amt 10.0.0.1:16993" {
		t.Errorf("%s, %s", c.base, c)
	}
}

// Whatever an engine answers is read without a panic and within bounds.
func FuzzRead(f *testing.F) {
	f.Add([]byte(`<e:Envelope xmlns:e="http://www.w3.org/2003/05/soap-envelope"><e:Body><a><PowerState>2</PowerState></a></e:Body></e:Envelope>`))
	f.Add([]byte(`<e:Envelope xmlns:e="http://www.w3.org/2003/05/soap-envelope"><e:Body><e:Fault><e:Text>x</e:Text></e:Fault></e:Body></e:Envelope>`))
	f.Fuzz(func(t *testing.T, b []byte) {
		out, err := read(b)
		if err != nil && out != nil || len(out) > maxElements {
			t.Fatalf("%d elements beside %v", len(out), err)
		}
		if why := fault(b); len(why) > 250 || strings.ContainsAny(why, "\r\n") {
			t.Fatalf("%q", why)
		}
	})
}
