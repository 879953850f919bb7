package bmc

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"smelt/internal/vbmc"
	"smelt/power"
	"smelt/power/powertest"
)

func startRedfishWith(t *testing.T, c vbmc.RedfishConfig, p vbmc.Power) *vbmc.Redfish {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c.Listener, c.Password = l, secret
	r, err := vbmc.StartRedfish(c, p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// The virtual BMC shows a change at once or never.
func init() {
	readBacks = []time.Duration{0, 10 * time.Millisecond}
	busyPause = 20 * time.Millisecond
}

func TestRedfish(t *testing.T) {
	for name, cfg := range map[string]vbmc.RedfishConfig{
		"classic": {},
		"modern":  {Modern: true, Vendor: "Dell (simulated)", Clock: -56 * 365 * 24 * time.Hour, Others: []vbmc.RedfishSystem{{ID: "other", Power: new(vbmc.Switch)}}},
	} {
		t.Run(name, func(t *testing.T) {
			powertest.Run(t, func(t *testing.T) (power.Controller, powertest.Hardware) {
				var m vbmc.Switch
				r := startRedfishWith(t, cfg, &m)
				c := Config{Kind: "redfish", Address: "https://" + r.Addr().String(), Pin: r.Pin()}
				if len(cfg.Others) > 0 {
					c.SystemID, c.Sessions = "1", t.TempDir()
				}
				h := seen(t, &m)
				h.Light, h.Secret = r.Lit, secret
				h.Log = func(what string) string { r.Note(what); return what }
				h.Again = func(t *testing.T, password string) power.Controller {
					again := c
					again.Password = is(password)
					return open(t, again)
				}
				h.Refused = func(t *testing.T) (power.Controller, func() int) {
					return h.Again(t, "wrong"), func() int { return r.Stats().FailedLogins }
				}
				h.Dead = func(t *testing.T) power.Controller {
					l, err := net.Listen("tcp", "127.0.0.1:0")
					if err != nil {
						t.Fatal(err)
					}
					l.Close()
					return open(t, Config{Kind: "redfish", Address: l.Addr().String()})
				}
				h.Hang = func() { r.SetFaults(vbmc.RedfishFaults{Slow: time.Hour}) }
				t.Cleanup(func() {
					if n := r.Stats().OpenSessions; n != 0 {
						t.Errorf("%d sessions were left open", n)
					}
				})
				return open(t, c), h
			})
		})
	}
}

// BMCs of 2015 know no key exchange but RSA.
func TestOldTLS(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		fmt.Fprint(w, `{"RedfishVersion":"1.0.0"}`)
	}))
	s.TLS = &tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_RSA_WITH_AES_256_CBC_SHA}}
	s.StartTLS()
	defer s.Close()
	if f, err := Probe(t.Context(), s.URL); err != nil || f.Version != "1.0.0" {
		t.Errorf("%+v, error %v", f, err)
	}
}

// Facts come without a credential.
func TestProbe(t *testing.T) {
	var m vbmc.Switch
	r := startRedfishWith(t, vbmc.RedfishConfig{Vendor: "Contoso (simulated)"}, &m)
	f, err := Probe(t.Context(), r.Addr().String())
	if err != nil || f.Vendor != "Contoso (simulated)" || f.Version != "1.11.0" || f.Pin != r.Pin() || !f.Sessions {
		t.Errorf("%+v, error %v", f, err)
	}
	if s := r.Stats(); s.Logins+s.FailedLogins != 0 || s.Requests != 1 {
		t.Errorf("%+v", s)
	}
	asked := ""
	stranger := serveTLS(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		asked += q.Method + " " + q.URL.Path + " " + q.Header.Get("Authorization") + "\n"
		fmt.Fprint(w, `{"hello":"world"}`)
	}))
	if _, err := Probe(t.Context(), stranger); !errors.Is(err, ErrNoRedfish) {
		t.Errorf("a web server: error %v", err)
	}
	// A thing that is no Redfish service gets no password.
	if _, err := open(t, Config{Kind: "redfish", Address: stranger}).State(t.Context()); err == nil || errors.Is(err, power.ErrAuth) {
		t.Errorf("a web server: error %v", err)
	}
	if want := strings.Repeat("GET /redfish/v1/ \n", 2); asked != want {
		t.Errorf("it was asked %q", asked)
	}
}

func TestTwoSystems(t *testing.T) {
	var host, board vbmc.Switch
	r := startRedfishWith(t, vbmc.RedfishConfig{System: "HGX_Baseboard_0", Others: []vbmc.RedfishSystem{{ID: "System_0", Power: &host}}}, &board)
	at := r.Addr().String()
	for id, says := range map[string]string{
		"":         `2 systems ["HGX_Baseboard_0" "System_0"]: say which one`,
		"System_1": `no system "System_1", it has ["HGX_Baseboard_0" "System_0"]`,
	} {
		c := open(t, Config{Kind: "redfish", Address: at, SystemID: id})
		for name, err := range map[string]error{
			"on": c.Set(t.Context(), power.On), "boot": c.BootOnce(t.Context(), power.Network), "light": c.Identify(t.Context(), true),
			"policy": c.SetRestorePolicy(t.Context(), power.AlwaysOff), "soft": c.SoftOff(t.Context()),
		} {
			if err == nil || !strings.Contains(err.Error(), says) {
				t.Errorf("%s of system %q: error %v, want %q", name, id, err, says)
			}
		}
	}
	if len(r.Stats().Resets) != 0 || board.On() || host.On() || r.Lit() || r.Restore() != "LastState" {
		t.Errorf("something was done: %+v", r.Stats())
	}
	c := open(t, Config{Kind: "redfish", Address: at, SystemID: "System_0"})
	if err := c.Set(t.Context(), power.On); err != nil || !host.On() || board.On() {
		t.Errorf("error %v, host on %v, board on %v", err, host.On(), board.On())
	}
	if rd, err := c.Readings(t.Context()); err != nil || rd.Watts != 120 {
		t.Errorf("watts of the host %v, error %v", rd.Watts, err)
	}
	r.SetFaults(vbmc.RedfishFaults{Crossed: true})
	if err := c.Set(t.Context(), power.Off); err == nil || !strings.Contains(err.Error(), "not part of it") || len(r.Stats().Resets) != 1 {
		t.Errorf("an action of another system: error %v, resets %q", err, r.Stats().Resets)
	}
}

func TestBootMode(t *testing.T) {
	for name, c := range map[string]struct {
		vendor string
		faults vbmc.RedfishFaults
		err    string
	}{
		"honest":               {"", vbmc.RedfishFaults{}, ""},
		"wants the mode":       {"", vbmc.RedfishFaults{WantMode: true}, ""},
		"refuses the mode":     {"HPE", vbmc.RedfishFaults{NoMode: true}, ""},
		"loses the mode":       {"", vbmc.RedfishFaults{LoseMode: true}, ""},
		"Supermicro":           {"Supermicro", vbmc.RedfishFaults{LoseMode: true}, ""},
		"wants an ETag":        {"", vbmc.RedfishFaults{NeedETag: true}, ""},
		"ETag and mode":        {"", vbmc.RedfishFaults{NeedETag: true, WantMode: true}, ""},
		"accepts and does not": {"", vbmc.RedfishFaults{BootIgnore: true}, `reads back "None" "Disabled"`},
		"loses, refuses":       {"", vbmc.RedfishFaults{LoseMode: true, NoMode: true}, "not writable"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var m vbmc.Switch
			r := startRedfishWith(t, vbmc.RedfishConfig{Vendor: c.vendor}, &m)
			r.SetFaults(c.faults)
			ctl := open(t, Config{Kind: "redfish", Address: r.Addr().String()})
			err := ctl.BootOnce(t.Context(), power.Network)
			if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
				t.Fatalf("error %v, want %q", err, c.err)
			}
			if err := ctl.Set(t.Context(), power.On); err != nil {
				t.Fatal(err)
			}
			if b := m.Boots(); c.err == "" && (len(b) != 1 || b[0] != vbmc.BootNetwork) {
				t.Errorf("boots %v", b)
			}
		})
	}
}

func TestReset(t *testing.T) {
	for name, c := range map[string]struct {
		on      bool
		faults  vbmc.RedfishFaults
		verb    func(context.Context, *Controller) error
		err     string
		resets  int
		after   bool
		timeout time.Duration
	}{
		"on while busy":     {false, vbmc.RedfishFaults{Conflict: 1}, setOn, "", 2, true, 0},
		"off while busy":    {true, vbmc.RedfishFaults{Conflict: 1}, setOff, `409 Conflict: Base.1.8.ResourceInUse the system is busy (the machine is "On")`, 1, true, 0},
		"refused, off":      {true, vbmc.RedfishFaults{Refuse: []string{"ForceOff"}}, setOff, "ActionParameterValueNotInList", 1, true, 0},
		"refused, is off":   {false, vbmc.RedfishFaults{Refuse: []string{"ForceOff"}}, setOff, "", 1, false, 0},
		"not offered":       {true, vbmc.RedfishFaults{Reject: []string{"ForceOff"}}, setOff, "the BMC offers", 0, true, 0},
		"409 and done":      {true, vbmc.RedfishFaults{ResetFails: 409}, setOff, `the machine is "Off"`, 1, false, 0},
		"busy without end":  {false, vbmc.RedfishFaults{Conflict: 9}, setOn, "409", 3, false, 0},
		"gone in a session": {true, vbmc.RedfishFaults{Status: 401}, setOff, "ended our session", 0, true, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var m vbmc.Switch
			if c.on {
				_ = m.PowerOn(t.Context())
			}
			r := startRedfish(t, &m)
			r.SetFaults(c.faults)
			ctx := t.Context()
			if c.timeout > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, c.timeout)
				defer cancel()
			}
			err := c.verb(ctx, open(t, Config{Kind: "redfish", Address: r.Addr().String()}))
			if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) || errors.Is(err, power.ErrAuth) {
				t.Errorf("error %v, want %q", err, c.err)
			}
			if n := len(r.Stats().Resets); n != c.resets || m.On() != c.after {
				t.Errorf("%d resets, machine on %v; want %d, %v", n, m.On(), c.resets, c.after)
			}
		})
	}
}

func setOn(ctx context.Context, c *Controller) error  { return c.Set(ctx, power.On) }
func setOff(ctx context.Context, c *Controller) error { return c.Set(ctx, power.Off) }

func TestIdentify(t *testing.T) {
	var m vbmc.Switch
	r := startRedfish(t, &m)
	c := open(t, Config{Kind: "redfish", Address: r.Addr().String()})
	for _, on := range []bool{true, true, false} {
		if err := c.Identify(t.Context(), on); err != nil || r.Lit() != on || c.Light() != "chassis LED" {
			t.Errorf("light %v: error %v, lit %v, %s", on, err, r.Lit(), c.Light())
		}
	}
	r.SetFaults(vbmc.RedfishFaults{Ignore: true})
	if err := c.Identify(t.Context(), true); err == nil || !strings.Contains(err.Error(), "reads back as dark") {
		t.Errorf("an LED that does not light: error %v", err)
	}
}

func TestMeter(t *testing.T) {
	for _, modern := range []bool{false, true} {
		var m vbmc.Switch
		r := startRedfishWith(t, vbmc.RedfishConfig{Modern: modern}, &m)
		c := open(t, Config{Kind: "redfish", Address: r.Addr().String()})
		if rd, err := c.Readings(t.Context()); err != nil || rd.Watts != 0 {
			t.Errorf("modern %v, off: %+v, error %v", modern, rd, err)
		}
		_ = m.PowerOn(t.Context())
		for watts, want := range map[float64]float64{431.5: 431.5, math.NaN(): math.NaN(), 0: math.NaN(), 1e9: math.NaN(), -4: math.NaN()} {
			r.SetWatts(watts)
			rd, err := c.Readings(t.Context())
			if err != nil || rd.Watts != want && !(math.IsNaN(rd.Watts) && math.IsNaN(want)) {
				t.Errorf("modern %v, meter %v: %v, error %v; want %v", modern, watts, rd.Watts, err, want)
			}
			if len(rd.Celsius) != 1 || rd.Celsius["Inlet (simulated)"] != 24 || rd.RPM["Fan 1 (simulated)"] != 3000 {
				t.Errorf("modern %v: %+v", modern, rd)
			}
		}
	}
}

// What real services answer where the virtual one is too neat: a supply that
// does not say, a shared enclosure, numbers as text, sensors one by one.
func TestMeterOddities(t *testing.T) {
	base := map[string]string{
		"GET /redfish/v1/Systems":   `{"Members":[{"@odata.id":"/redfish/v1/Systems/x"}]}`,
		"GET /redfish/v1/Systems/x": `{"PowerState":"On","Links":{"Chassis":[{"@odata.id":"/redfish/v1/Chassis/c"}]}}`,
	}
	const c = "GET /redfish/v1/Chassis/c"
	supplies := map[string]string{
		c: `{"PowerSubsystem":{"@odata.id":"/redfish/v1/Chassis/c/P"}}`, c + "/P": `{"PowerSupplies":{"@odata.id":"/redfish/v1/Chassis/c/S"}}`,
		c + "/S":   `{"Members":[{"@odata.id":"/redfish/v1/Chassis/c/S/1"},{"@odata.id":"/redfish/v1/Chassis/c/S/2"},{"@odata.id":"/redfish/v1/Chassis/c/S/3"}]}`,
		c + "/S/1": `{"Metrics":{"@odata.id":"/redfish/v1/Chassis/c/M/1"}}`, c + "/M/1": `{"InputPowerWatts":{"Reading":300}}`,
		c + "/S/2": `{"Metrics":{"@odata.id":"/redfish/v1/Chassis/c/M/2"}}`, c + "/M/2": `{"InputPowerWatts":{"Reading":200.5}}`,
		c + "/S/3": `{"Status":{"State":"Absent"}}`,
	}
	for name, v := range map[string]struct {
		routes map[string]string
		watts  float64
		says   string // of an error
		heat   map[string]float64
		fans   map[string]float64
	}{
		"sum of supplies":    {supplies, 500.5, "", nil, nil},
		"a supply is silent": {with(supplies, c+"/M/2", `{"InputPowerWatts":{"Reading":null}}`), math.NaN(), "", nil, nil},
		"nothing at all":     {map[string]string{c: `{}`}, 0, "the chassis has none", nil, nil},
		"shared enclosure":   {map[string]string{c: `{"Power":{"@odata.id":"/redfish/v1/P"},"Links":{"ComputerSystems":[{},{}]}}`}, 0, "no chassis of its own", nil, nil},
		"first control only": {map[string]string{c: `{"Power":{"@odata.id":"/redfish/v1/P"}}`, "GET /redfish/v1/P": `{"PowerControl":[{"PowerConsumedWatts":"412"},{"PowerConsumedWatts":90}]}`}, 412, "", nil, nil},
		"percent is no RPM":  {map[string]string{c: `{"Thermal":{"@odata.id":"/redfish/v1/T"}}`, "GET /redfish/v1/T": `{"Fans":[{"Name":"a","Reading":30,"ReadingUnits":"Percent"},{"FanName":"b","Reading":900,"ReadingUnits":"RPM"}],"Temperatures":[{"Name":"t","ReadingCelsius":"nan"},{"Name":"u","ReadingCelsius":31,"SensorNumber":"x"}]}`}, math.NaN(), "", map[string]float64{"u": 31}, map[string]float64{"b": 900}},
		"sensors": {map[string]string{c: `{"Sensors":{"@odata.id":"/redfish/v1/Chassis/c/Sensors"}}`, c + "/Sensors": `{"Members":[{"@odata.id":"/redfish/v1/Chassis/c/Sensors/1"},{"@odata.id":"/redfish/v1/Chassis/c/Sensors/2"},{"@odata.id":"/redfish/v1/Chassis/c/Sensors/3"}]}`,
			c + "/Sensors/1": `{"Name":"GPU 0","ReadingType":"Temperature","ReadingUnits":"Cel","Reading":61}`, c + "/Sensors/2": `{"Name":"GPU 1","ReadingType":"Temperature","ReadingUnits":"Cel","Reading":0,"Status":{"State":"UnavailableOffline"}}`,
			c + "/Sensors/3": `{"Name":"Fan","ReadingType":"Rotational","ReadingUnits":"RPM","Reading":1200}`}, math.NaN(), "", map[string]float64{"GPU 0": 61}, map[string]float64{"Fan": 1200}},
	} {
		t.Run(name, func(t *testing.T) {
			routes := map[string]string{}
			for _, m := range []map[string]string{base, v.routes} {
				for k, a := range m {
					routes[k] = a
				}
			}
			rd, err := odd(t, routes).Readings(t.Context())
			if v.says != "" {
				if err == nil || !errors.Is(err, power.ErrUnsupported) || !strings.Contains(err.Error(), v.says) {
					t.Errorf("error %v, want %q", err, v.says)
				}
				return
			}
			if err != nil || rd.Watts != v.watts && !(math.IsNaN(rd.Watts) && math.IsNaN(v.watts)) {
				t.Errorf("watts %v, error %v; want %v", rd.Watts, err, v.watts)
			}
			if fmt.Sprint(rd.Celsius, rd.RPM) != fmt.Sprint(nonNil(v.heat), nonNil(v.fans)) {
				t.Errorf("%v %v, want %v %v", rd.Celsius, rd.RPM, v.heat, v.fans)
			}
		})
	}
}

func nonNil(m map[string]float64) map[string]float64 {
	if m == nil {
		return map[string]float64{}
	}
	return m
}

func with(m map[string]string, k, v string) map[string]string {
	out := map[string]string{}
	for a, b := range m {
		out[a] = b
	}
	out[k] = v
	return out
}

func TestEventLog(t *testing.T) {
	var m vbmc.Switch
	r := startRedfish(t, &m)
	c := open(t, Config{Kind: "redfish", Address: r.Addr().String()})
	for _, s := range []power.State{power.On, power.Off} {
		if err := c.Set(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	log, err := c.EventLog(t.Context())
	if err != nil || len(log) != 2 || log[0].Message != "ResetType On (simulated)" || log[1].Message != "ResetType ForceOff (simulated)" ||
		log[0].At.IsZero() || log[0].Severity != "OK" || log[1].ID != "2" {
		t.Errorf("%+v, error %v", log, err)
	}
}

// Logs come in pages, as links, with newest first, and with control characters.
func TestEventLogOddities(t *testing.T) {
	entry := func(n int, text string) string {
		return fmt.Sprintf(`{"@odata.id":"/redfish/v1/L/%d","Id":"%d","Created":"2026-01-01T00:00:%02dZ","Severity":"Critical","SensorNumber":"odd","Message":"%s"}`, n, n, n, text)
	}
	routes := map[string]string{
		"GET /redfish/v1/Systems":                    `{"Members":[{"@odata.id":"/redfish/v1/Systems/x"}]}`,
		"GET /redfish/v1/Systems/x":                  `{"PowerState":"On","Links":{"ManagedBy":[{"@odata.id":"/redfish/v1/Managers/m"}]}}`,
		"GET /redfish/v1/Managers/m":                 `{"LogServices":{"@odata.id":"/redfish/v1/Managers/m/LogServices"}}`,
		"GET /redfish/v1/Managers/m/LogServices":     `{"Members":[{"@odata.id":"/redfish/v1/Managers/m/LogServices/Lclog"},{"@odata.id":"/redfish/v1/Managers/m/LogServices/Sel"}]}`,
		"GET /redfish/v1/Managers/m/LogServices/Sel": `{"Entries":{"@odata.id":"/redfish/v1/L"}}`,
	}
	paged := with(with(routes, "GET /redfish/v1/L", `{"Members":[`+entry(3, "c")+`,`+entry(2, "b\\u001b[2J\\u0007")+`],"Members@odata.nextLink":"/redfish/v1/L2?$skip=2"}`),
		"GET /redfish/v1/L2", `{"Members":[`+entry(1, "a")+`]}`)
	linked := with(with(with(routes, "GET /redfish/v1/L", `{"Members":[{"@odata.id":"/redfish/v1/L/1"},{"@odata.id":"/redfish/v1/L/2"},{"@odata.id":"/redfish/v1/L/3"}]}`),
		"GET /redfish/v1/L/1", entry(1, "a")), "GET /redfish/v1/L/2", entry(2, "b\\u001b[2J\\u0007"))
	linked["GET /redfish/v1/L/3"] = entry(3, "c")
	for name, m := range map[string]map[string]string{"paged": paged, "linked": linked} {
		log, err := odd(t, m).EventLog(t.Context())
		var said []string
		for _, e := range log {
			said = append(said, e.ID+e.Severity+e.Message)
		}
		if want := []string{"1Criticala", "2Criticalb [2J", "3Criticalc"}; err != nil || !slices.Equal(said, want) {
			t.Errorf("%s: %q, error %v; want %q", name, said, err, want)
		}
	}
	loop := with(routes, "GET /redfish/v1/L", `{"Members":[`+entry(1, "a")+`],"Members@odata.nextLink":"/redfish/v1/L"}`)
	if log, err := odd(t, loop).EventLog(t.Context()); err != nil || len(log) != maxPages {
		t.Errorf("a log without an end: %d entries, error %v", len(log), err)
	}
}

func TestScreen(t *testing.T) {
	var m vbmc.Switch
	r := startRedfishWith(t, vbmc.RedfishConfig{Vendor: "Dell (simulated)"}, &m)
	p, err := open(t, Config{Kind: "redfish", Address: r.Addr().String()}).Screen(t.Context())
	if err != nil || p.Type != "image/png" || len(p.Data) == 0 {
		t.Errorf("%s, %d bytes, error %v", p.Type, len(p.Data), err)
	}
	if _, err := open(t, Config{Kind: "redfish", Address: startRedfish(t, &m).Addr().String()}).Screen(t.Context()); !errors.Is(err, power.ErrUnsupported) {
		t.Errorf("another vendor: error %v", err)
	}
}

func TestAudit(t *testing.T) {
	var m vbmc.Switch
	r := startRedfishWith(t, vbmc.RedfishConfig{Accounts: []vbmc.RedfishAccount{
		{Name: "root", Enabled: true, Expired: true}, {Name: "ADMIN", Enabled: true}, {Name: "", Enabled: true}, {Name: ""}, {Name: "USERID"}, {Name: "auditor", Role: "ReadOnly", Enabled: true},
	}}, &m)
	c := open(t, Config{Kind: "redfish", Address: r.Addr().String()})
	before := r.Stats()
	a, err := c.Audit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var codes []string
	for _, f := range a.Findings {
		codes = append(codes, f.Code)
	}
	slices.Sort(codes)
	if want := []string{"anonymous-user", "default-account", "default-credential", "ipmi-over-lan", "restore-policy"}; !slices.Equal(codes, want) {
		t.Errorf("findings %q, want %q", codes, want)
	}
	if a.Vendor != "Smelt (simulated)" || a.Model != "virtual machine (simulated)" || a.Serial != "SIM-1" || a.Restore != power.LastState ||
		a.Firmware["bmc"] != "1.2.3 (simulated)" || a.Firmware["bios"] != "1.0 (simulated)" || a.Firmware["NIC (simulated)"] != "22.31" || a.At.IsZero() {
		t.Errorf("%+v", a)
	}
	if len(a.Accounts) != 6 || a.Accounts[0].Name != "admin" || a.Accounts[5].Role != "ReadOnly" {
		t.Errorf("accounts %+v", a.Accounts)
	}
	if want := []string{"Boot0001 debian (simulated)", "Boot0002 UEFI PXEv4 (simulated)"}; !slices.Equal(a.Boot, want) {
		t.Errorf("boot order %q", a.Boot)
	}
	if s := r.Stats(); s.Logins != before.Logins+1 || s.FailedLogins != 0 || s.OpenSessions != 0 {
		t.Errorf("%+v", s)
	}
	// What it may not read is a finding, and no refused credential.
	r.SetFaults(vbmc.RedfishFaults{Status: 403})
	if _, err := c.Audit(t.Context()); !errors.Is(err, power.ErrAuth) {
		t.Errorf("a BMC that shows nothing at all: error %v", err)
	}
}

func TestAuditPartly(t *testing.T) {
	c := odd(t, map[string]string{
		"GET /redfish/v1/":          `{"RedfishVersion":"1.6.0","Systems":{"@odata.id":"/redfish/v1/Systems"},"AccountService":{"@odata.id":"/redfish/v1/AccountService"},"Oem":{"Hpe":{}}}`,
		"GET /redfish/v1/Systems":   `{"Members":[{"@odata.id":"/redfish/v1/Systems/x"}]}`,
		"GET /redfish/v1/Systems/x": `{"PowerState":"On","Model":"DL\u0007380"}`,
	})
	a, err := c.Audit(t.Context())
	if err != nil || a.Vendor != "Hpe" || a.Model != "DL 380" || len(a.Findings) != 1 || a.Findings[0].Code != "not-read" || !strings.Contains(a.Findings[0].What, "accounts") {
		t.Errorf("%+v, error %v", a, err)
	}
}

func TestSetPassword(t *testing.T) {
	const next = "Ein neues Wort 1"
	for name, prepare := range map[string]func(*vbmc.Redfish){
		"plain":         func(*vbmc.Redfish) {},
		"wants an ETag": func(r *vbmc.Redfish) { r.SetFaults(vbmc.RedfishFaults{NeedETag: true}) },
		"expired":       func(r *vbmc.Redfish) { r.Expire() },
	} {
		t.Run(name, func(t *testing.T) {
			var m vbmc.Switch
			r := startRedfishWith(t, vbmc.RedfishConfig{Accounts: []vbmc.RedfishAccount{{Name: "other", Enabled: true}}}, &m)
			prepare(r)
			at := r.Addr().String()
			c := open(t, Config{Kind: "redfish", Address: at})
			if name == "expired" {
				if _, err := c.State(t.Context()); !errors.Is(err, power.ErrAuth) || !strings.Contains(err.Error(), "before its password is changed") {
					t.Errorf("error %v", err)
				}
				if a, err := c.Audit(t.Context()); err != nil || len(a.Findings) != 1 || a.Findings[0].Code != "default-credential" {
					t.Errorf("%+v, error %v", a, err)
				}
			} else if err := c.SetPassword(t.Context(), "short"); err == nil || strings.Contains(err.Error(), "short") {
				t.Errorf("a short one: error %v", err)
			}
			if err := c.SetPassword(t.Context(), next); err != nil {
				t.Fatal(err)
			}
			if _, err := c.State(t.Context()); !errors.Is(err, power.ErrAuth) {
				t.Errorf("the old one: error %v", err)
			}
			if s, err := open(t, Config{Kind: "redfish", Address: at, Password: is(next)}).State(t.Context()); err != nil || s != power.Off {
				t.Errorf("the new one: %s, error %v", s, err)
			}
			if s := r.Stats(); s.OpenSessions != 0 || s.FailedLogins != 1 {
				t.Errorf("%+v", s)
			}
		})
	}
	var m vbmc.Switch
	c := open(t, Config{Kind: "redfish", Address: startRedfish(t, &m).Addr().String()})
	if err := c.SetPassword(t.Context(), strings.Repeat("x", 21)); err == nil {
		t.Error("a password that IPMI cannot carry was accepted")
	}
}

func TestSetRestorePolicy(t *testing.T) {
	var m vbmc.Switch
	r := startRedfish(t, &m)
	c := open(t, Config{Kind: "redfish", Address: r.Addr().String()})
	if err := c.SetRestorePolicy(t.Context(), power.AlwaysOff); err != nil || r.Restore() != "AlwaysOff" {
		t.Errorf("error %v, policy %s", err, r.Restore())
	}
	if err := c.SetRestorePolicy(t.Context(), "Sometimes"); err == nil {
		t.Error("nonsense was accepted")
	}
	r.SetFaults(vbmc.RedfishFaults{Ignore: true})
	if err := c.SetRestorePolicy(t.Context(), power.AlwaysOn); err == nil || !strings.Contains(err.Error(), `reads back "AlwaysOff"`) {
		t.Errorf("error %v", err)
	}
}

func TestSetBootOrder(t *testing.T) {
	var m vbmc.Switch
	r := startRedfish(t, &m)
	c := open(t, Config{Kind: "redfish", Address: r.Addr().String()})
	for _, v := range []struct {
		first power.Device
		want  []string
	}{{power.Network, []string{"Boot0002", "Boot0001"}}, {power.Network, []string{"Boot0002", "Boot0001"}}, {power.Disk, []string{"Boot0001", "Boot0002"}}} {
		if got, err := c.SetBootOrder(t.Context(), v.first); err != nil || !slices.Equal(got, v.want) {
			t.Errorf("%s first: %q, error %v", v.first, got, err)
		}
	}
	r.SetFaults(vbmc.RedfishFaults{BootIgnore: true})
	if got, err := c.SetBootOrder(t.Context(), power.Network); err == nil {
		t.Errorf("an order that is not kept: %q", got)
	}
	if _, err := order([]string{"a", "b"}, nil, power.Network); err == nil {
		t.Error("an order of things that nobody knows was changed")
	}
	if _, err := c.SetBootOrder(t.Context(), 99); !errors.Is(err, power.ErrUnsupported) {
		t.Errorf("error %v", err)
	}
}

// Two thousand BMCs share a key and a server.
func TestHall(t *testing.T) {
	h, err := vbmc.NewRedfishHall()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	var machines [3]vbmc.Switch
	var ctl []*Controller
	for i := range machines {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		r, err := h.Add(vbmc.RedfishConfig{Listener: l, Password: secret}, &machines[i])
		if err != nil {
			t.Fatal(err)
		}
		ctl = append(ctl, open(t, Config{Kind: "redfish", Address: l.Addr().String(), Pin: r.Pin()}))
	}
	if err := ctl[1].Set(t.Context(), power.On); err != nil {
		t.Fatal(err)
	}
	for i, c := range ctl {
		if s, err := c.State(t.Context()); err != nil || (s == power.On) != (i == 1) || machines[i].On() != (i == 1) {
			t.Errorf("BMC %d: %s, error %v, machine on %v", i, s, err, machines[i].On())
		}
	}
}

func FuzzRedfish(f *testing.F) {
	f.Add([]byte(`{"PowerState":"On","Actions":{"#ComputerSystem.Reset":{"target":"/x"}}}`), "https://a/redfish/v1/x")
	f.Add([]byte(`{"error":{"code":"a","message":"b","@Message.ExtendedInfo":[{"MessageId":"c","MessageArgs":[1,"/redfish/v1/A"]}]}}`), "")
	f.Add([]byte(`{"PowerControl":[{"PowerConsumedWatts":"1e999"}],"Temperatures":[{"ReadingCelsius":null}]}`), "/redfish/v1/x?a=b#c")
	f.Add([]byte(`{"Message":"x\u0000","SensorNumber":{},"Created":"1970-01-01T00:00:00Z"}`), "//evil/redfish/../..")
	f.Add([]byte(`{"ServerScreenshotFile":"iVBORw0KGgo="}`), "/redfish/v1/%2e%2e/x")
	f.Fuzz(func(t *testing.T, body []byte, ref string) {
		m := extended(body)
		if said := m.String(); len(said) > maxSaid*3+len("…") {
			t.Errorf("an error of %d bytes", len(said))
		}
		for _, at := range []string{sessionPath(ref, body), inService(ref), account(m)} {
			if at != "" && at != "unknown" && (!strings.HasPrefix(at, "/redfish/") || strings.Contains(at, "/../")) {
				t.Errorf("path %q", at)
			}
		}
		var sys system
		if decode("", body, &sys) == nil && sys.state() == power.On && !strings.Contains(strings.ToLower(string(body)), "on") {
			t.Errorf("on from %q", body)
		}
		var n number
		if err := n.UnmarshalJSON(body); err != nil || math.IsInf(float64(n), 0) {
			t.Errorf("number %v, error %v", n, err)
		}
		if e, ok := logEntry(body); ok && (strings.ContainsAny(e.Message, "\x00\x1b\n") || len(e.Message) > maxText+len("…")) {
			t.Errorf("%+v", e)
		}
		if p, err := screenShot(body); (err == nil) != (len(p.Data) > 0) {
			t.Errorf("%+v, error %v", p, err)
		}
	})
}
