package main

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strconv"
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

// Two nodes of one BMC log in by one account. Giving it a new password through
// one of them leaves the other without a refused login, while both are read all
// the time; and what was refused is not tried again by adopting.
func TestAdoptSharedBMC(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var one, two vbmc.Switch
	b, err := vbmc.StartRedfish(vbmc.RedfishConfig{Listener: l, Password: "s3cret-pass", Others: []vbmc.RedfishSystem{{ID: "2", Power: &two}}}, &one)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	site := &config.Site{State: t.TempDir()}
	for i, n := range []inventory.NodeID{"srv-01", "srv-02"} {
		way := config.Power{Driver: "redfish", Address: "https://" + b.Addr().String(), User: "admin", Password: "bmc", Pin: b.Pin(), System: strconv.Itoa(i + 1), Kept: "srv-01"}
		// A chain: the gate of the BMC is that of a link.
		site.Nodes = append(site.Nodes, config.Node{Spec: inventory.Spec{Name: n}, Power: []config.Power{way, {Driver: "manual"}}})
	}
	secrets, err := config.OpenSecrets(site.State)
	if err != nil {
		t.Fatal(err)
	}
	if err := secrets.Set("bmc", config.NewSecret([]byte("wrong"))); err != nil {
		t.Fatal(err)
	}
	switches, cares := switchesOf(t, site, secrets), devices(site, secrets)
	adopt := func(n inventory.NodeID) error {
		return switches[n].Alone(t.Context(), func(ctx context.Context, try power.Try) error {
			d := cares[n]
			d.Try = try
			_, err := d.Adopt(ctx)
			return err
		})
	}
	for range 3 {
		if err := adopt("srv-02"); !errors.Is(err, power.ErrAuth) {
			t.Errorf("adopted with a wrong password: %v", err)
		}
		if _, err := switches["srv-01"].State(t.Context()); err == nil {
			t.Error("read with a wrong password")
		}
	}
	if n := b.Stats().FailedLogins; n != 1 {
		t.Errorf("%d failed logins by a wrong password, want 1", n)
	}
	if err := secrets.Set("bmc", config.NewSecret([]byte("s3cret-pass"))); err != nil {
		t.Fatal(err)
	}
	stop, read := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(read)
		for {
			select {
			case <-stop:
				return
			default:
				_, _ = switches["srv-01"].State(t.Context())
			}
		}
	}()
	if err := adopt("srv-02"); err != nil {
		t.Errorf("adopt: %v", err)
	}
	close(stop)
	<-read
	for n, v := range switches {
		if s, err := v.State(t.Context()); err != nil || s != power.Off {
			t.Errorf("%s afterwards: %s, %v", n, s, err)
		}
	}
	if n := b.Stats().FailedLogins; n != 1 {
		t.Errorf("%d failed logins in the end, want the 1 of before", n)
	}
}

// A passphrase that a PDU refused is not tried again, and another one is as soon
// as somebody stores it: while the server runs.
func TestRefusedByPDU(t *testing.T) {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var m vbmc.Switch
	p, err := vbmc.StartPDU(vbmc.PDUConfig{Conn: conn, Model: "raritan", Community: "x", User: "smelt", Auth: "authentication", Priv: "privacy-privacy",
		Outlets: []vbmc.Outlet{{Name: "n", Power: &m}}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	site := &config.Site{State: t.TempDir(), PDUs: []config.PDU{{Name: "p", Address: conn.LocalAddr().String(), Version: "v3", User: "smelt", Auth: "auth", Priv: "priv", Names: "check"}},
		Nodes: []config.Node{{Spec: inventory.Spec{Name: "n"}, Power: []config.Power{{Driver: "pdu", Outlets: []config.Outlet{{PDU: "p", Outlet: 1}}}}}}}
	secrets, err := config.OpenSecrets(site.State)
	if err != nil {
		t.Fatal(err)
	}
	store := func(name, s string) {
		t.Helper()
		if err := secrets.Set(name, config.NewSecret([]byte(s))); err != nil {
			t.Fatal(err)
		}
	}
	store("auth", "not the right one")
	store("priv", "privacy-privacy")
	v := switchesOf(t, site, secrets)["n"]
	for range 3 {
		if _, err := v.State(t.Context()); !errors.Is(err, power.ErrAuth) {
			t.Errorf("a wrong passphrase: %v", err)
		}
	}
	store("auth", "authentication")
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
