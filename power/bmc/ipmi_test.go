package bmc

import (
	"testing"

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
