package bmc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"smelt/internal/vbmc"
	"smelt/power"
	"smelt/power/powertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const secret = "Kanarienvogel-7"

func is(s string) func(context.Context) (string, error) {
	return func(context.Context) (string, error) { return s, nil }
}

// need skips the test without the program, or fails it where skips are not
// allowed.
func need(t *testing.T, program, pkg string) {
	t.Helper()
	if _, err := exec.LookPath(program); err == nil {
		return
	}
	if os.Getenv("SMELT_TEST_NO_SKIP") == "1" {
		t.Fatalf("%s is missing: apt-get install %s", program, pkg)
	}
	t.Skipf("%s is missing (Debian package %s)", program, pkg)
}

func udp(t *testing.T) net.PacketConn {
	t.Helper()
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func startIPMI(t *testing.T, p vbmc.Power) *vbmc.IPMI {
	t.Helper()
	need(t, "ipmi_sim", "openipmi")
	need(t, "ipmitool", "ipmitool")
	need(t, "curl", "curl")
	dir, err := os.MkdirTemp("", "bmc") // short: it holds a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	b, err := vbmc.StartIPMI(t.Context(), vbmc.IPMIConfig{Dir: dir, Conn: udp(t), Password: secret}, p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func startRedfish(t *testing.T, p vbmc.Power) *vbmc.Redfish {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r, err := vbmc.StartRedfish(vbmc.RedfishConfig{Listener: l, Password: secret}, p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func open(t *testing.T, c Config) *Controller {
	t.Helper()
	if c.User == "" {
		c.User = "admin"
	}
	if c.Password == nil {
		c.Password = is(secret)
	}
	out, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// seen is m as hardware of the conformance suite.
func seen(t *testing.T, m *vbmc.Switch) powertest.Hardware {
	return powertest.Hardware{
		On: m.On,
		Turn: func(on bool) {
			f := m.PowerOff
			if on {
				f = m.PowerOn
			}
			if err := f(t.Context()); err != nil {
				t.Error(err)
			}
		},
		Boot: func() (out []string) {
			for _, b := range m.Boots() {
				out = append(out, map[vbmc.Boot]string{vbmc.BootNetwork: "network", vbmc.BootDisk: "disk"}[b])
			}
			return out
		},
	}
}

func TestIPMI(t *testing.T) {
	powertest.Run(t, func(t *testing.T) (power.Controller, powertest.Hardware) {
		var m vbmc.Switch
		b := startIPMI(t, &m)
		at := b.Addr().String()
		h := seen(t, &m)
		h.Refused = func(t *testing.T) (power.Controller, func() int) {
			return open(t, Config{Kind: "ipmi", Address: at, Password: is("wrong"), CipherSuite: 3}),
				func() int { return b.Stats().Attempts }
		}
		h.Dead = func(t *testing.T) power.Controller {
			c := udp(t)
			c.Close()
			return open(t, Config{Kind: "ipmi", Address: c.LocalAddr().String(), CipherSuite: 3})
		}
		h.Hang = func() { b.Drop(true) }
		return open(t, Config{Kind: "ipmi", Address: at, CipherSuite: 3}), h
	})
}

func TestIPMIRefusals(t *testing.T) {
	var m vbmc.Switch
	b := startIPMI(t, &m)
	at := b.Addr().String()
	for name, c := range map[string]struct {
		cfg      Config
		attempts int // that reached the BMC
		auth     bool
		says     string
	}{
		"unknown user":      {Config{User: "nobody", CipherSuite: 3}, 1, true, "user nobody"},
		"cipher suite 17":   {Config{}, 0, false, "cipher suite 17"},
		"password too long": {Config{Password: is(strings.Repeat("x", 21)), CipherSuite: 3}, 0, false, "20 bytes"},
		"no password to be had": {Config{Password: func(context.Context) (string, error) { return "", errors.New("no such secret") }, CipherSuite: 3}, 0, false,
			"no such secret"},
	} {
		t.Run(name, func(t *testing.T) {
			before := b.Stats().Attempts
			c.cfg.Kind, c.cfg.Address = "ipmi", at
			err := open(t, c.cfg).Set(t.Context(), power.On)
			if err == nil || errors.Is(err, power.ErrAuth) != c.auth || !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %v; want ErrAuth %v and %q", err, c.auth, c.says)
			}
			if n := b.Stats().Attempts - before; n != c.attempts || m.On() {
				t.Errorf("%d attempts reached the BMC, machine on %v; want %d", n, m.On(), c.attempts)
			}
		})
	}
	// Soft off of a machine that is off: bmclib alone says that all went well.
	if err := open(t, Config{Kind: "ipmi", Address: at, CipherSuite: 3}).SoftOff(t.Context()); err == nil {
		t.Error("a machine that is off was shut down")
	}
}

// An override that stays what it was is no override.
func TestRedfishBootReadBack(t *testing.T) {
	var m vbmc.Switch
	r := startRedfish(t, &m)
	c := open(t, Config{Kind: "redfish", Address: r.Addr().String()})
	if err := c.BootOnce(t.Context(), power.Network); err != nil {
		t.Fatal(err)
	}
	r.SetFaults(vbmc.RedfishFaults{BootIgnore: true})
	if err := c.BootOnce(t.Context(), power.Disk); err == nil || !strings.Contains(err.Error(), `reads back "Pxe" "Once"`) {
		t.Errorf("error %v", err)
	}
}

func pin(c *Controller) string { return c.Keys()[0].Pin }

func TestRedfishPin(t *testing.T) {
	var m vbmc.Switch
	one, two := startRedfish(t, &m), startRedfish(t, &m)
	c := open(t, Config{Kind: "redfish", Address: one.Addr().String()})
	if pin(c) != "" {
		t.Errorf("pin before the first connection: %q", pin(c))
	}
	if _, err := c.State(t.Context()); err != nil || pin(c) != one.Pin() {
		t.Fatalf("first use: error %v, pin %q, want %q", err, pin(c), one.Pin())
	}
	// Somebody else answers at the address, or the configured pin is wrong.
	impostor := open(t, Config{Kind: "redfish", Address: two.Addr().String(), Pin: one.Pin()})
	if err := impostor.Set(t.Context(), power.On); err == nil || !strings.Contains(err.Error(), "somebody else answers") || errors.Is(err, power.ErrAuth) {
		t.Errorf("another key: error %v", err)
	}
	if s := two.Stats(); s.Logins+s.FailedLogins+s.Requests != 0 || m.On() {
		t.Errorf("the password went to somebody else: %+v", s)
	}
}

func TestRedfishReadings(t *testing.T) {
	var m vbmc.Switch
	r := startRedfish(t, &m)
	if err := m.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	v := power.Verify(open(t, Config{Kind: "redfish", Address: r.Addr().String(), SystemID: "1"}), power.Limits{})
	rd, err := v.Readings(t.Context())
	if err != nil || rd.Watts != 120 || rd.Celsius["Inlet (simulated)"] != 24 || rd.At.IsZero() {
		t.Errorf("readings %+v, error %v", rd, err)
	}
}

// odd is a Redfish service without sessions and with what one test gives it.
func odd(t *testing.T, routes map[string]string) *Controller {
	t.Helper()
	mux := http.NewServeMux()
	if routes["GET /redfish/v1/"] == "" {
		routes = with(routes, "GET /redfish/v1/", `{"RedfishVersion":"1.0.0"}`)
	}
	for at, answer := range routes {
		if at == "GET /redfish/v1/" {
			at += "{$}"
		}
		mux.HandleFunc(at, func(w http.ResponseWriter, q *http.Request) {
			if user, password, _ := q.BasicAuth(); q.URL.Path != rootPath && (user != "admin" || password != secret) {
				http.Error(w, "who are you", http.StatusUnauthorized)
				return
			}
			fmt.Fprint(w, answer)
		})
	}
	return open(t, Config{Kind: "redfish", Address: serveTLS(t, mux)})
}

func TestRedfishOddities(t *testing.T) {
	for name, c := range map[string]struct {
		routes map[string]string
		state  power.State
		says   string
	}{
		"basic authentication only": {map[string]string{
			"GET /redfish/v1/Systems":   `{"Members":[{"@odata.id":"/redfish/v1/Systems/x"}]}`,
			"GET /redfish/v1/Systems/x": `{"PowerState":"On"}`,
		}, power.On, ""},
		"two systems": {map[string]string{
			"GET /redfish/v1/Systems": `{"Members":[{"@odata.id":"/redfish/v1/Systems/HGX"},{"@odata.id":"/redfish/v1/Systems/Host"}]}`,
		}, power.Unknown, `2 systems ["HGX" "Host"]: say which one`},
		"no system": {map[string]string{"GET /redfish/v1/Systems": `{}`}, power.Unknown, "0 systems"},
		"no JSON":   {map[string]string{"GET /redfish/v1/Systems": `<html>login`}, power.Unknown, "no JSON"},
		"null state": {map[string]string{
			"GET /redfish/v1/Systems":   `{"Members":[{"@odata.id":"/redfish/v1/Systems/x"}]}`,
			"GET /redfish/v1/Systems/x": `{"PowerState":null}`,
		}, power.Unknown, ""},
		"endless": {map[string]string{"GET /redfish/v1/Systems": strings.Repeat(" ", maxBody+1)}, power.Unknown, "larger than"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := odd(t, c.routes).State(t.Context())
			if s != c.state || c.says == "" && err != nil || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
				t.Errorf("state %s, error %v; want %s and %q", s, err, c.state, c.says)
			}
		})
	}
}

func TestNew(t *testing.T) {
	for _, c := range []struct {
		cfg  Config
		says string // "" for none
	}{
		{Config{Kind: "ipmi", Address: "10.0.0.5"}, ""},
		{Config{Kind: "ipmi", Address: "[fe80::1]:624"}, ""},
		{Config{Kind: "ipmi", Address: "fe80::1"}, ""},
		{Config{Kind: "redfish", Address: "https://10.0.0.5"}, ""},
		{Config{Kind: "redfish", Address: "bmc.example:8443"}, ""},
		{Config{Kind: "telnet", Address: "10.0.0.5"}, "want ipmi or redfish"},
		{Config{Kind: "ipmi", Address: ""}, "want HOST"},
		{Config{Kind: "ipmi", Address: "-oProxyCommand"}, "want HOST"},
		{Config{Kind: "ipmi", Address: "admin:hunter2@10.0.0.1"}, "want HOST"},
		{Config{Kind: "ipmi", Address: "10.0.0.1:-v"}, "want HOST"},
		{Config{Kind: "ipmi", Address: "https://10.0.0.1"}, "want HOST"},
		{Config{Kind: "ipmi", Address: "10.0.0.5", CipherSuite: 0xff}, "cipher suite 255"},
		{Config{Kind: "ipmi", Address: "10.0.0.5", CipherSuite: 1}, "cipher suite 1"},
		{Config{Kind: "redfish", Address: "http://10.0.0.5"}, "want https://"},
		{Config{Kind: "redfish", Address: "https://admin:" + secret + "@10.0.0.5"}, "want https://"},
		{Config{Kind: "redfish", Address: "https://10.0.0.5", Pin: "abc"}, "32 bytes"},
	} {
		c.cfg.User, c.cfg.Password = "admin", is(secret)
		_, err := New(c.cfg)
		if c.says == "" && err != nil || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%+v: error %v, want %q", c.cfg.Address, err, c.says)
		}
		if err != nil && strings.Contains(err.Error(), secret) {
			t.Errorf("the password is in the error: %v", err)
		}
	}
	if _, err := New(Config{Kind: "ipmi", Address: "10.0.0.5"}); err == nil {
		t.Error("a BMC without a user and a password was accepted")
	}
}

// The password is in no command line while ipmitool runs, in no error and in
// no evidence.
func TestCanary(t *testing.T) {
	var m vbmc.Switch
	ipmi, redfish := startIPMI(t, &m), startRedfish(t, &m)
	ctx, stop := context.WithCancel(t.Context())
	watched := make(chan string, 1)
	go func() {
		tools, found := 0, ""
		for ctx.Err() == nil {
			files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
			for _, f := range files {
				b, _ := os.ReadFile(f) // it may have ended
				if bytes.HasPrefix(b, []byte("ipmitool")) || bytes.Contains(b, []byte("/ipmitool\x00")) {
					tools++
				}
				if bytes.Contains(b, []byte(secret)) {
					found = string(b)
				}
			}
			time.Sleep(time.Millisecond) // ipmitool runs for some 30 ms
		}
		if tools == 0 {
			found = "ipmitool was never seen: this test looks at nothing"
		}
		watched <- found
	}()
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, nil))
	limits := power.Limits{Reach: time.Second, Poll: 10 * time.Millisecond, Dwell: time.Millisecond, Spacing: time.Millisecond}
	for _, c := range []*Controller{
		open(t, Config{Kind: "ipmi", Address: ipmi.Addr().String(), CipherSuite: 3}),
		open(t, Config{Kind: "ipmi", Address: ipmi.Addr().String(), CipherSuite: 3, Password: is(secret + "x")}),
		open(t, Config{Kind: "redfish", Address: redfish.Addr().String()}),
		open(t, Config{Kind: "redfish", Address: redfish.Addr().String(), Password: is(secret + "x")}),
		open(t, Config{Kind: "redfish", Address: serveTLS(t, http.HandlerFunc(parrot))}),
	} {
		e, err := power.Verify(c, limits).Cycle(t.Context(), power.Disk)
		log.Info("cycle", "evidence", e, "map", e.Map(), "err", err, "controller", c.String())
	}
	stop()
	if found := <-watched; found != "" {
		t.Errorf("command line: %q", found)
	}
	if strings.Contains(out.String(), secret) {
		t.Errorf("the password was logged:\n%s", out.String())
	}
}

// parrot is a BMC that repeats what it was sent.
func parrot(w http.ResponseWriter, q *http.Request) {
	if q.URL.Path == rootPath {
		fmt.Fprint(w, `{"Links":{"Sessions":{"@odata.id":"/redfish/v1/SessionService/Sessions"}}}`)
		return
	}
	w.WriteHeader(http.StatusInternalServerError)
	io.Copy(w, q.Body)
}
