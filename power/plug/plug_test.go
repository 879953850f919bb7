package plug

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"smelt/internal/vbmc"
	"smelt/power"
	"smelt/power/powertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const secret = "s3cret pass+&%/word"

var kinds = []string{"shelly", "tasmota", "homeassistant"}

func is(s string) Secret { return func(context.Context) (string, error) { return s, nil } }

// token is a secret as Home Assistant has them.
const token = "eyJhbGciOiJIUzI1NiJ9.s3cret-pass"

func password(kind string) string {
	if kind == "homeassistant" {
		return token
	}
	return secret
}

func start(t *testing.T, kind string, m vbmc.Power) *vbmc.Plug {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p, err := vbmc.StartPlug(vbmc.PlugConfig{Listener: l, Kind: kind, Password: password(kind), Power: m, Watts: 640})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func config(kind, address string) Config {
	c := Config{Kind: kind, Address: address}
	switch kind {
	case "tasmota":
		c.Channel, c.Password = 1, is(secret)
	case "shelly":
		c.Password = is(secret)
	case "homeassistant":
		c.Token, c.Entity, c.Meter = is(token), vbmc.PlugEntity, vbmc.PlugMeter
	}
	return c
}

func controller(t *testing.T, c Config) *Controller {
	t.Helper()
	out, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestConformance(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			powertest.Run(t, func(t *testing.T) (power.Controller, powertest.Hardware) {
				var m vbmc.Switch
				p := start(t, kind, &m)
				return controller(t, config(kind, p.URL())), powertest.Hardware{
					On: m.On,
					Turn: func(on bool) {
						if err := p.Turn(on); err != nil {
							t.Error(err)
						}
					},
					Refused: func(t *testing.T) (power.Controller, func() int) {
						c := config(kind, p.URL())
						c.Password, c.Token = is("wrong"), is("wrong")
						return supplied{controller(t, c)}, p.Refused
					},
					Dead: func(t *testing.T) power.Controller {
						l, err := net.Listen("tcp", "127.0.0.1:0")
						if err != nil {
							t.Fatal(err)
						}
						l.Close()
						return controller(t, config(kind, "http://"+l.Addr().String()))
					},
					Hang: func() { p.SetFaults(vbmc.PlugFaults{Hang: true}) },
				}
			})
		})
	}
}

// supplied makes a boot device of a plug, whose answer the suite wants to be a
// refusal: there is none to be refused.
type supplied struct{ *Controller }

func (s supplied) BootOnce(ctx context.Context, _ power.Device) error {
	_, err := s.State(ctx)
	return err
}

// For each lie the verb ends with what is the case, or with an error.
func TestLies(t *testing.T) {
	limits := power.Limits{Reach: 400 * time.Millisecond, Poll: 10 * time.Millisecond, Dwell: time.Millisecond, Spacing: time.Millisecond}
	for name, l := range map[string]struct {
		faults vbmc.PlugFaults
		verb   string
		err    error
		end    bool // the machine, which was on, is on afterwards
	}{
		"honest":          {vbmc.PlugFaults{}, "off", nil, false},
		"ok and nothing":  {vbmc.PlugFaults{Ignores: true}, "off", power.ErrNotReached, true},
		"inverted":        {vbmc.PlugFaults{Inverts: true}, "off", power.ErrNotReached, true},
		"does and fails":  {vbmc.PlugFaults{Fails: true}, "off", nil, false},
		"fails":           {vbmc.PlugFaults{Fails: true, Ignores: true}, "off", power.ErrNotReached, true},
		"does not know":   {vbmc.PlugFaults{Unknown: true}, "off", power.ErrNotReached, true},
		"garbage":         {vbmc.PlugFaults{Garbage: true}, "off", power.ErrNotReached, true},
		"hangs":           {vbmc.PlugFaults{Hang: true}, "off", power.ErrNotReached, true},
		"cycle, honest":   {vbmc.PlugFaults{}, "cycle", nil, true},
		"cycle, ignores":  {vbmc.PlugFaults{Ignores: true}, "cycle", power.ErrNotReached, true},
		"on while it is":  {vbmc.PlugFaults{Ignores: true}, "on", nil, true},
		"numbers":         {vbmc.PlugFaults{Version: 1}, "off", nil, false},
		"numbers as text": {vbmc.PlugFaults{Version: 2}, "off", nil, false},
	} {
		for _, kind := range kinds {
			t.Run(kind+" "+name, func(t *testing.T) {
				t.Parallel()
				var m vbmc.Switch
				_ = m.PowerOn(t.Context())
				p := start(t, kind, &m)
				p.SetFaults(l.faults)
				v := power.Verify(controller(t, config(kind, p.URL())), limits)
				var e power.Evidence
				var err error
				switch l.verb {
				case "off":
					e, err = v.Off(t.Context())
				case "on":
					e, err = v.On(t.Context())
				case "cycle":
					e, err = v.Cycle(t.Context(), power.Network)
				}
				if !errors.Is(err, l.err) || l.err == nil && err != nil {
					t.Errorf("error %v, want %v; evidence %+v", err, l.err, e)
				}
				if m.On() != l.end {
					t.Errorf("the machine is on: %v, want %v", m.On(), l.end)
				}
				if n := p.Sets(); n > 2 || l.faults.Unknown && n > 0 {
					t.Errorf("%d commands", n)
				}
			})
		}
	}
}

// Home Assistant's guess is no state.
func TestAssumedState(t *testing.T) {
	var m vbmc.Switch
	p := start(t, "homeassistant", &m)
	p.SetFaults(vbmc.PlugFaults{Assumes: true, Ignores: true})
	c := controller(t, config("homeassistant", p.URL()))
	if err := c.Set(t.Context(), power.On); err != nil {
		t.Fatal(err)
	}
	if s, err := c.State(t.Context()); s != power.Unknown || err == nil || !strings.Contains(err.Error(), "assumes") {
		t.Errorf("state %s, error %v", s, err)
	}
}

func TestRefusals(t *testing.T) {
	var m vbmc.Switch
	for name, c := range map[string]struct {
		kind   string
		change func(*Config)
		faults vbmc.PlugFaults
		auth   bool
		says   string
	}{
		"shelly without a password":  {"shelly", func(c *Config) { c.Password = nil }, vbmc.PlugFaults{}, true, "site.yaml names none"},
		"tasmota, without":           {"tasmota", func(c *Config) { c.Password = nil }, vbmc.PlugFaults{}, true, "another user or password"},
		"tasmota, refuses with 200":  {"tasmota", func(c *Config) { c.User = "root" }, vbmc.PlugFaults{Version: 3}, true, "another user or password"},
		"shelly, another switch":     {"shelly", func(c *Config) { c.Channel = 3 }, vbmc.PlugFaults{}, false, "no switch 3"},
		"tasmota, another relay":     {"tasmota", func(c *Config) { c.Channel = 3 }, vbmc.PlugFaults{}, false, "does not know Power3: Unknown"},
		"homeassistant, no entity":   {"homeassistant", func(c *Config) { c.Entity = "switch.nothing" }, vbmc.PlugFaults{}, false, "no switch.nothing is known"},
		"homeassistant, unavailable": {"homeassistant", func(*Config) {}, vbmc.PlugFaults{Unknown: true}, false, "not available"},
		"no secret": {"tasmota", func(c *Config) {
			c.Password = func(context.Context) (string, error) { return "", errors.New("no such secret") }
		}, vbmc.PlugFaults{}, false, "no such secret"},
		"a token that is none": {"homeassistant", func(c *Config) { c.Token = is("two\r\nlines") }, vbmc.PlugFaults{}, false, "characters that no token has"},
	} {
		t.Run(name, func(t *testing.T) {
			p := start(t, c.kind, &m)
			p.SetFaults(c.faults)
			cfg := config(c.kind, p.URL())
			c.change(&cfg)
			err := controller(t, cfg).Set(t.Context(), power.On)
			if err == nil || errors.Is(err, power.ErrAuth) != c.auth || !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %v; want %q, a refusal: %v", err, c.says, c.auth)
			}
			if p.Sets() > 0 || m.On() {
				t.Error("it switched something")
			}
		})
	}
	for name, c := range map[string]Config{
		"account in it":    {Kind: "tasmota", Address: "http://admin:s3cret@10.0.0.1", Channel: 1},
		"query":            {Kind: "tasmota", Address: "http://10.0.0.1?password=s3cret", Channel: 1},
		"relay 0":          {Kind: "tasmota", Address: "http://10.0.0.1"},
		"no scheme":        {Kind: "shelly", Address: "10.0.0.1"},
		"negative":         {Kind: "shelly", Address: "http://10.0.0.1", Channel: -1},
		"no token":         {Kind: "homeassistant", Address: "http://10.0.0.1", Entity: "switch.x"},
		"no switch":        {Kind: "homeassistant", Address: "http://10.0.0.1", Entity: "light.x", Token: is(token)},
		"unknown to Smelt": {Kind: "kasa", Address: "http://10.0.0.1"},
	} {
		if _, err := New(c); err == nil || strings.Contains(err.Error(), "admin:s3cret") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWatts(t *testing.T) {
	for _, kind := range kinds {
		var m vbmc.Switch
		_ = m.PowerOn(t.Context())
		p := start(t, kind, &m)
		c := controller(t, config(kind, p.URL()))
		if r, err := c.Readings(t.Context()); err != nil || r.Watts != 640 || r.At.IsZero() {
			t.Errorf("%s: %+v, %v", kind, r, err)
		}
		if err := p.Turn(false); err != nil {
			t.Fatal(err)
		}
		if r, err := c.Readings(t.Context()); err != nil || r.Watts != 0 {
			t.Errorf("%s, off: %+v, %v", kind, r, err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p, err := vbmc.StartPlug(vbmc.PlugConfig{Listener: l, Kind: "shelly", Power: &vbmc.Switch{}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if _, err := controller(t, Config{Kind: "shelly", Address: p.URL()}).Readings(t.Context()); !errors.Is(err, power.ErrUnsupported) {
		t.Errorf("a plug without a meter, and without a password: %v", err)
	}
}

// Nothing that a controller says holds its secret, in any form.
func TestSecretsStaySecret(t *testing.T) {
	forms := []string{secret, url.QueryEscape(secret), url.PathEscape(secret), strings.ReplaceAll(url.QueryEscape(secret), "+", "%20"), token}
	check := func(kind, what string) {
		t.Helper()
		if i := slices.IndexFunc(forms, func(f string) bool { return strings.Contains(what, f) }); i >= 0 {
			t.Errorf("%s shows its secret: %s", kind, what)
		}
	}
	for _, kind := range kinds {
		var m vbmc.Switch
		p := start(t, kind, &m)
		c := controller(t, config(kind, p.URL()))
		check(kind, c.String())
		calls := func() {
			for _, err := range []error{
				c.Set(t.Context(), power.On), func() error { _, err := c.State(t.Context()); return err }(),
				func() error { _, err := c.Readings(t.Context()); return err }(),
			} {
				if err == nil {
					t.Errorf("%s: no error to look at", kind)
				} else {
					check(kind, err.Error())
				}
			}
		}
		p.SetFaults(vbmc.PlugFaults{Garbage: true})
		calls()
		p.Close() // the error of the transport names the URL
		calls()
	}
}

// Whatever a device answers is a state, or an error and no state.
func FuzzAnswers(f *testing.F) {
	f.Add([]byte(`{"POWER":"ON"}`), 200)
	f.Add([]byte(`{"POWER1":1,"Command":"Unknown"}`), 200)
	f.Add([]byte(`{"id":0,"output":null,"apower":1e400}`), 200)
	f.Add([]byte(`{"entity_id":"switch.x","state":"on","attributes":{"assumed_state":true}}`), 401)
	f.Fuzz(func(t *testing.T, body []byte, status int) {
		a := answer{status: status, body: body}
		var out map[string]json.RawMessage
		if a.read(&out) == nil {
			for _, relay := range []int{1, 2} {
				s, err := (&tasmota{relay: relay}).state(out)
				if err != nil && s != power.Unknown || s < power.On || s > power.Unknown {
					t.Fatalf("state %s, error %v", s, err)
				}
			}
		}
		for _, raw := range out {
			if w, ok := number(raw); ok {
				if got, err := sensible(w); err == nil && !(got >= 0 && got <= 100_000) {
					t.Fatalf("%v W of %s", got, raw)
				}
			}
		}
	})
}
