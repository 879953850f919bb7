package vbmc

import (
	"context"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bmc-toolbox/bmclib/v2"
)

// A foreign client (bmclib with gofish) drives the Redfish BMC.
func TestRedfishWithBmclib(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var m Switch
	r, err := StartRedfish(RedfishConfig{Listener: l, Password: "s3cret-pass"}, &m)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	host, port, _ := net.SplitHostPort(r.Addr().String())
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c := bmclib.NewClient(host, "admin", "s3cret-pass", bmclib.WithRedfishPort(port), bmclib.WithPerProviderTimeout(10*time.Second))
	c.Registry.Drivers = c.Registry.For("gofish")
	if err := c.Open(ctx); err != nil {
		t.Fatal(err)
	}
	for _, s := range []struct {
		command string
		on      bool
	}{{"on", true}, {"off", false}, {"on", true}, {"cycle", true}} {
		if ok, err := c.SetPowerState(ctx, s.command); err != nil || !ok || m.On() != s.on {
			t.Fatalf("%s: ok %v, error %v, machine on %v", s.command, ok, err, m.On())
		}
		state, err := c.GetPowerState(ctx)
		if want := map[bool]string{true: "on", false: "off"}[s.on]; err != nil || !strings.EqualFold(state, want) {
			t.Errorf("after %s: state %q, error %v", s.command, state, err)
		}
	}
	if ok, err := c.SetBootDevice(ctx, "pxe", false, true); err != nil || !ok {
		t.Fatalf("boot device: ok %v, error %v", ok, err)
	}
	if o, err := c.GetBootDeviceOverride(ctx); err != nil || o.Device != "pxe" || o.IsPersistent {
		t.Errorf("boot override %+v, error %v", o, err)
	}
	if ok, err := c.SetPowerState(ctx, "cycle"); err != nil || !ok {
		t.Errorf("cycle: ok %v, error %v", ok, err)
	}
	if b := m.Boots(); b[len(b)-1] != BootNetwork {
		t.Errorf("boots %v", b)
	}
	if err := c.Close(ctx); err != nil {
		t.Error(err)
	}
	if s := r.Stats(); s.OpenSessions != 0 || s.Logins != 1 || s.FailedLogins != 0 || !slices.Contains(s.Resets, "ForceRestart") {
		t.Errorf("%+v", s)
	}
}
