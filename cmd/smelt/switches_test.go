package main

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"smelt/internal/config"
	"smelt/internal/vbmc"
	"smelt/inventory"
	"smelt/power"
)

func switchesOf(t *testing.T, site *config.Site, secrets *config.Secrets) map[inventory.NodeID]*power.Verified {
	t.Helper()
	units, err := pduUnits(site, secrets)
	if err != nil {
		t.Fatal(err)
	}
	out, err := controllers(site, secrets, units, &ears{})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// A wrong password reaches a BMC once, whatever asks and however often this
// server is started; storing the secret again is what allows another try.
func TestRefusedOnceForEver(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var m vbmc.Switch
	b, err := vbmc.StartRedfish(vbmc.RedfishConfig{Listener: l, Password: "s3cret-pass"}, &m)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	site := &config.Site{State: t.TempDir()}
	way := config.Power{Driver: "redfish", Address: "https://" + b.Addr().String(), User: "admin", Password: "bmc", Pin: b.Pin()}
	for _, n := range []inventory.NodeID{"srv-01", "srv-02"} { // two nodes of one BMC
		site.Nodes = append(site.Nodes, config.Node{Spec: inventory.Spec{Name: n}, Power: []config.Power{way}})
	}
	secrets, err := config.OpenSecrets(site.State)
	if err != nil {
		t.Fatal(err)
	}
	store := func(s string) {
		t.Helper()
		if err := secrets.Set("bmc", config.NewSecret([]byte(s))); err != nil {
			t.Fatal(err)
		}
	}
	store("wrong")
	for range 2 { // starts of the server
		for _, v := range switchesOf(t, site, secrets) {
			for range 3 {
				if _, err := v.State(t.Context()); !errors.Is(err, power.ErrAuth) {
					t.Errorf("state: %v", err)
				}
			}
			if _, err := v.On(t.Context()); !errors.Is(err, power.ErrAuth) || m.On() {
				t.Errorf("on: %v", err)
			}
		}
	}
	if n := b.Stats().FailedLogins; n != 1 {
		t.Errorf("%d failed logins, want 1", n)
	}
	store("wrong again")
	v := switchesOf(t, site, secrets)["srv-01"]
	if _, err := v.State(t.Context()); !errors.Is(err, power.ErrAuth) || b.Stats().FailedLogins != 2 {
		t.Errorf("another secret: %v, %d failed logins", err, b.Stats().FailedLogins)
	}
	store("s3cret-pass") // while the server runs
	if s, err := v.State(t.Context()); err != nil || s != power.Off {
		t.Errorf("the right one: %s, %v", s, err)
	}
}

// Each way of site.yaml makes a controller, and a list makes a chain.
func TestWiring(t *testing.T) {
	site := &config.Site{
		State:    t.TempDir(),
		Networks: []config.Network{{Name: "a", Address: netip.MustParsePrefix("10.20.0.1/20")}},
		PDUs:     []config.PDU{{Name: "p", Address: "10.30.0.1:161", Version: "v2c", Community: "c", Names: "check"}},
	}
	secrets, err := config.OpenSecrets(site.State)
	if err != nil {
		t.Fatal(err)
	}
	mac := []inventory.MAC{{0x52, 0x54, 0, 0, 0, 1}}
	for want, ways := range map[string][]config.Power{
		"":                  {{Driver: "manual"}},
		"inband agent on n": {{Driver: "inband"}},
		"wol 52:54:00:00:00:01 at 10.20.15.255:9":               {{Driver: "wol", Network: "a"}},
		"amt 10.0.0.1:16993":                                    {{Driver: "amt", Address: "10.0.0.1", User: "admin", Password: "x"}},
		"plug tasmota 10.0.0.2 channel 1":                       {{Driver: "plug", Kind: "tasmota", Address: "http://10.0.0.2", Channel: 1}},
		"inband agent on n, else pdu p outlet 4, else manual n": {{Driver: "inband"}, {Driver: "pdu", Outlets: []config.Outlet{{PDU: "p", Outlet: 4}}}, {Driver: "manual"}},
	} {
		site.Nodes = []config.Node{{Spec: inventory.Spec{Name: "n", MACs: mac}, Power: ways}}
		v := switchesOf(t, site, secrets)["n"]
		switch {
		case want == "" && v != nil:
			t.Errorf("a person is %s", v)
		case want != "" && (v == nil || v.String() != want):
			t.Errorf("%v, want %s", v, want)
		}
	}
}
