package bmc

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"smelt/internal/vbmc"
	"smelt/power"
	"smelt/power/powertest"
)

// startMC starts a management controller of our own, which ipmitool holds to
// the specification.
func startMC(t *testing.T, c vbmc.MCConfig, p vbmc.Power) *vbmc.MC {
	t.Helper()
	need(t, "ipmitool", "ipmitool")
	c.Conn = udp(t)
	if c.Password == "" {
		c.Password = secret
	}
	m, err := vbmc.StartMC(c, p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if n := m.Sessions(); n != 0 {
			t.Errorf("%d sessions were left open", n)
		}
		m.Close()
	})
	return m
}

func TestIPMIWithCipherSuite17(t *testing.T) {
	powertest.Run(t, func(t *testing.T) (power.Controller, powertest.Hardware) {
		var m vbmc.Switch
		b := startMC(t, vbmc.MCConfig{}, &m)
		at := b.Addr().String()
		h := seen(t, &m)
		h.Refused = func(t *testing.T) (power.Controller, func() int) {
			return open(t, Config{Kind: "ipmi", Address: at, Password: is("wrong")}), func() int { return b.Stats().Attempts }
		}
		h.Hang = func() { b.Drop(true) }
		return open(t, Config{Kind: "ipmi", Address: at, UEFI: true}), h
	})
}

// ask runs f in a session of its own.
func ask(t *testing.T, c *Controller, f func(*shell) error) {
	t.Helper()
	if err := c.driver.(*ipmi).session(t.Context(), f); err != nil {
		t.Fatal(err)
	}
}

func TestIPMIReadings(t *testing.T) {
	var m vbmc.Switch
	if err := m.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	sensors := []vbmc.Sensor{
		{Name: "Inlet Temp", Unit: 1, Value: 24}, {Name: "FAN 1", Unit: 18, Scale: 100, Value: 42},
		{Name: "PS1 Input", Unit: 6, Scale: 4, Value: 100}, {Name: "PS2 Input", Unit: 6, Scale: 4, Value: 50},
		{Name: "PS1 Output", Unit: 6, Scale: 4, Value: 90}, {Name: "CPU Total Power", Unit: 6, Value: 99},
	}
	for name, c := range map[string]struct {
		dcmi, watts float64
	}{"DCMI": {431, 431}, "power supplies": {0, 600}} {
		t.Run(name, func(t *testing.T) {
			b := startMC(t, vbmc.MCConfig{Watts: c.dcmi, Sensors: sensors}, &m)
			v := open(t, Config{Kind: "ipmi", Address: b.Addr().String()})
			var packets int
			for range 2 {
				before := b.Stats().Packets
				r, err := v.Readings(t.Context())
				if err != nil || r.Watts != c.watts || r.Celsius["Inlet Temp"] != 24 || r.RPM["FAN 1"] != 4200 || len(r.Celsius) != 1 || len(r.RPM) != 1 || r.At.IsZero() {
					t.Errorf("readings %+v, error %v", r, err)
				}
				before, packets = packets, b.Stats().Packets-before
				if before > 0 && packets >= before {
					t.Errorf("%d packets the first time, %d the second: the sensors were read again", before, packets)
				}
			}
			if b.Stats().Logins != 2 {
				t.Errorf("%+v, want two logins", b.Stats())
			}
		})
	}
}

func TestIPMIIdentify(t *testing.T) {
	var m vbmc.Switch
	own := startMC(t, vbmc.MCConfig{}, &m)
	sim := startIPMI(t, &m)
	for name, c := range map[string]struct {
		c   *Controller
		lit func() bool
	}{
		"MC":       {open(t, Config{Kind: "ipmi", Address: own.Addr().String()}), own.Lit},
		"ipmi_sim": {open(t, Config{Kind: "ipmi", Address: sim.Addr().String(), CipherSuite: 3}), sim.Lit},
	} {
		for _, on := range []bool{true, false} {
			if err := c.c.Identify(t.Context(), on); err != nil || c.lit() != on {
				t.Errorf("%s: light %v: error %v, lit %v", name, on, err, c.lit())
			}
		}
		if c.c.Light() != "chassis LED" {
			t.Error(c.c.Light())
		}
	}
}

func TestIPMIEventLog(t *testing.T) {
	var m vbmc.Switch
	own := startMC(t, vbmc.MCConfig{Sensors: []vbmc.Sensor{{Name: "CPU1 Temp", Unit: 1, Value: 60}}}, &m)
	sim := startIPMI(t, &m)
	for name, c := range map[string]*Controller{
		"MC":       open(t, Config{Kind: "ipmi", Address: own.Addr().String()}),
		"ipmi_sim": open(t, Config{Kind: "ipmi", Address: sim.Addr().String(), CipherSuite: 3}),
	} {
		if log, err := c.EventLog(t.Context()); err != nil || len(log) != 0 {
			t.Errorf("%s: empty log: %+v, error %v", name, log, err)
		}
		ask(t, c, func(s *shell) error {
			add := command{"add SEL entry", 0x0a, 0x44}
			for _, e := range [][]byte{
				// a threshold of a temperature at a good time, power off before the BMC had a clock,
				// uncorrectable memory
				{0, 0, 2, 0x00, 0xf1, 0x53, 0x65, 0x20, 0, 4, 0x01, 0x01, 0x01, 0x59, 0x5a, 0x50},
				{0, 0, 2, 0x0c, 0, 0, 0, 0x20, 0, 4, 0x09, 0x31, 0x6f, 0x00, 0xff, 0xff},
				{0, 0, 2, 0x10, 0xf1, 0x53, 0x65, 0x20, 0, 4, 0x0c, 0x32, 0x6f, 0x01, 0xff, 0xff},
			} {
				if _, err := s.raw(add, e...); err != nil {
					return err
				}
			}
			return nil
		})
		if name == "MC" {
			if _, err := c.Readings(t.Context()); err != nil { // which names the sensors
				t.Error(err)
			}
		}
		log, err := c.EventLog(t.Context())
		if err != nil || len(log) != 3 {
			t.Fatalf("%s: %+v, error %v", name, log, err)
		}
		// ipmi_sim stamps an entry with its own clock, which begins in 1970.
		if e := log[0]; name == "MC" && e.At.UTC() != time.Unix(0x6553f100, 0).UTC() || e.Severity != "Critical" || !strings.Contains(e.Message, "Upper Critical going high") {
			t.Errorf("%s: %+v", name, e)
		}
		if e := log[0]; name == "MC" && e.Sensor != "CPU1 Temp" {
			t.Errorf("%s: sensor %q", name, e.Sensor)
		}
		if e := log[1]; !e.At.IsZero() || e.Severity != "" || !strings.Contains(e.Message, "Power off") {
			t.Errorf("%s: an entry from before the clock: %+v", name, e)
		}
		if e := log[2]; e.Severity != "Critical" || !strings.Contains(e.Message, "Uncorrectable ECC") {
			t.Errorf("%s: %+v", name, e)
		}
	}
}

func codes(a power.Audit) string {
	var out []string
	for _, f := range a.Findings {
		if f.What == "" || f.Fix == "" {
			out = append(out, "EMPTY")
		}
		out = append(out, f.Code)
	}
	return strings.Join(out, " ")
}

func TestIPMIAudit(t *testing.T) {
	var m vbmc.Switch
	own := startMC(t, vbmc.MCConfig{}, &m)
	c := open(t, Config{Kind: "ipmi", Address: own.Addr().String()})
	a, err := c.Audit(t.Context())
	if err != nil || codes(a) != "restore-policy" || a.Restore != power.LastState {
		t.Errorf("findings %q, restore %s, error %v", codes(a), a.Restore, err)
	}
	if a.Vendor != "Smelt (simulated)" || a.Model != "Virtual server" || a.Serial != "SIM0001" || a.Firmware["bmc"] != "4.02" {
		t.Errorf("%+v", a)
	}
	if len(a.Accounts) != 2 || a.Accounts[1] != (power.Account{ID: "2", Name: "admin", Role: "Administrator", Enabled: true}) || a.Accounts[0].Enabled {
		t.Errorf("accounts %+v", a.Accounts)
	}
	if s := own.Stats(); s.Attempts != 1 || s.Logins != 1 {
		t.Errorf("an audit cost %+v", s)
	}
	open0 := startMC(t, vbmc.MCConfig{Suites: []int{17, 0}}, &m)
	open0.AddUser("", "guess")
	a, err = open(t, Config{Kind: "ipmi", Address: open0.Addr().String()}).Audit(t.Context())
	if err != nil || codes(a) != "anonymous-user restore-policy cipher-zero" {
		t.Errorf("findings %q, error %v", codes(a), err)
	}
	// ipmi_sim lets anybody in with suite 0.
	sim := startIPMI(t, &m)
	a, err = open(t, Config{Kind: "ipmi", Address: sim.Addr().String(), CipherSuite: 3}).Audit(t.Context())
	if err != nil || codes(a) != "old-cipher cipher-zero" || a.Restore != power.AlwaysOff {
		t.Errorf("ipmi_sim: findings %q, restore %s, error %v", codes(a), a.Restore, err)
	}
}

func TestIPMIRestorePolicy(t *testing.T) {
	var m vbmc.Switch
	b := startMC(t, vbmc.MCConfig{}, &m)
	c := open(t, Config{Kind: "ipmi", Address: b.Addr().String()})
	for p, want := range map[power.RestorePolicy]int{power.AlwaysOff: 0, power.LastState: 1, power.AlwaysOn: 2} {
		if err := c.SetRestorePolicy(t.Context(), p); err != nil || b.Policy() != want {
			t.Errorf("%s: error %v, the BMC has %d", p, err, b.Policy())
		}
	}
	if err := c.SetRestorePolicy(t.Context(), "Never"); !errors.Is(err, power.ErrUnsupported) {
		t.Errorf("error %v", err)
	}
	if err := c.SetRestorePolicy(t.Context(), power.AlwaysOn); err != nil {
		t.Error(err)
	}
	b.SetFaults(vbmc.IPMIFaults{KeepPolicy: true})
	if err := c.SetRestorePolicy(t.Context(), power.AlwaysOff); err == nil || !strings.Contains(err.Error(), `reads back "AlwaysOn"`) {
		t.Errorf("a BMC that keeps its own: error %v", err)
	}
	sim := startIPMI(t, &m)
	if err := open(t, Config{Kind: "ipmi", Address: sim.Addr().String(), CipherSuite: 3}).SetRestorePolicy(t.Context(), power.AlwaysOff); !errors.Is(err, power.ErrUnsupported) {
		t.Errorf("ipmi_sim has none: error %v", err)
	}
}

// A boot device that the BMC may forget, or makes legacy, is told.
func TestIPMIBootRemarks(t *testing.T) {
	var m vbmc.Switch
	b := startMC(t, vbmc.MCConfig{}, &m)
	c := open(t, Config{Kind: "ipmi", Address: b.Addr().String(), UEFI: true})
	if err := c.BootOnce(t.Context(), power.Network); err != nil || !b.Keeps() || len(c.Remarks()) != 0 {
		t.Errorf("error %v, outlives 60 s: %v", err, b.Keeps())
	}
	b.SetFaults(vbmc.IPMIFaults{Expires: true})
	if err := c.BootOnce(t.Context(), power.Network); err != nil {
		t.Error(err)
	}
	if r := fmt.Sprint(c.Remarks()); !strings.Contains(r, "60 s") || c.Remarks() != nil {
		t.Errorf("remarks %s", r)
	}
	sim := startIPMI(t, &m)
	c = open(t, Config{Kind: "ipmi", Address: sim.Addr().String(), CipherSuite: 3, UEFI: true})
	if err := c.BootOnce(t.Context(), power.Network); err != nil {
		t.Error(err)
	}
	if r := fmt.Sprint(c.Remarks()); !strings.Contains(r, "not valid") || !strings.Contains(r, "dropped the choice of a UEFI boot") {
		t.Errorf("ipmi_sim drops both bits: remarks %s", r)
	}
}

// cmdlines looks at every command line of the system until stopped, and
// returns how many ipmitools it saw and which lines held word.
func cmdlines(t *testing.T, words ...string) (stop func() (tools int, found []string)) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	tools, found := 0, []string(nil)
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
			for _, f := range files {
				b, _ := os.ReadFile(f) // it may have ended
				if bytes.HasPrefix(b, []byte("ipmitool")) {
					tools++
				}
				for _, w := range words {
					if bytes.Contains(b, []byte(w)) {
						found = append(found, string(b))
					}
				}
			}
			time.Sleep(time.Millisecond)
		}
	}()
	return func() (int, []string) { cancel(); <-done; return tools, found }
}

func TestIPMISetPassword(t *testing.T) {
	var m vbmc.Switch
	const short, long = "neuer-Kanari-16b", "neuer-Kanarienvogel2" // 16 and 20 bytes
	for name, start := range map[string]func(t *testing.T) (at string, suite int){
		"MC": func(t *testing.T) (string, int) {
			return startMC(t, vbmc.MCConfig{}, &m).Addr().String(), 17
		},
		"ipmi_sim": func(t *testing.T) (string, int) { return startIPMI(t, &m).Addr().String(), 3 },
	} {
		t.Run(name, func(t *testing.T) {
			at, suite := start(t)
			as := func(password string) *Controller {
				return open(t, Config{Kind: "ipmi", Address: at, CipherSuite: suite, Password: is(password)})
			}
			stop := cmdlines(t, secret, short, long, "110 101 117 101 114") // and as bytes
			old := secret
			all := []string{short, long, "short"}
			if name == "ipmi_sim" {
				all = []string{short, "short"} // it takes one of 20 bytes and then refuses it
			}
			for _, next := range all {
				if err := as(old).SetPassword(t.Context(), next); err != nil {
					t.Fatalf("%d bytes: %v", len(next), err)
				}
				if _, err := as(next).State(t.Context()); err != nil {
					t.Errorf("%d bytes: log in with the new one: %v", len(next), err)
				}
				if _, err := as(old).State(t.Context()); !errors.Is(err, power.ErrAuth) {
					t.Errorf("%d bytes: log in with the old one: %v", len(next), err)
				}
				old = next
			}
			if tools, found := stop(); tools == 0 || len(found) > 0 {
				t.Errorf("ipmitool was seen %d times; command lines with a password: %q", tools, found)
			}
			for _, bad := range []string{"", strings.Repeat("x", 21), "a\nb", "a\x00b"} {
				if err := as(old).SetPassword(t.Context(), bad); err == nil {
					t.Errorf("password %q was accepted", bad)
				}
			}
		})
	}
	b := startMC(t, vbmc.MCConfig{}, &m)
	b.SetFaults(vbmc.IPMIFaults{KeepSecret: true})
	err := open(t, Config{Kind: "ipmi", Address: b.Addr().String()}).SetPassword(t.Context(), long)
	if err == nil || !strings.Contains(err.Error(), "does not know it") || strings.Contains(err.Error(), long) {
		t.Errorf("a BMC that keeps the old one: error %v", err)
	}
}

// A process that is killed leaves no session behind: what feeds ipmitool ends
// it. The child of this test is this test.
func TestIPMIKilled(t *testing.T) {
	if at := os.Getenv("SMELT_TEST_KILL_ME"); at != "" {
		ask(t, open(t, Config{Kind: "ipmi", Address: at}), func(*shell) error {
			fmt.Println("logged in")
			select {}
		})
	}
	var m vbmc.Switch
	b := startMC(t, vbmc.MCConfig{Sessions: 20}, &m)
	for range 3 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestIPMIKilled$")
		cmd.Env = append(os.Environ(), "SMELT_TEST_KILL_ME="+b.Addr().String())
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(out).ReadString('\n'); line != "logged in\n" {
			t.Fatalf("%q, error %v", line, err)
		}
		if n := b.Sessions(); n != 1 {
			t.Fatalf("%d sessions while it runs: this test looks at nothing", n)
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // killed
		for end := time.Now().Add(10 * time.Second); b.Sessions() > 0; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d sessions are left after a kill -9", b.Sessions())
			}
		}
	}
}
