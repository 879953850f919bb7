package triage

import (
	"encoding/hex"
	"strings"
	"testing"

	"smelt/inventory"
)

func TestMiners(t *testing.T) {
	seen := map[string]string{}
	for _, m := range Miners() {
		if m.Maker == "" || m.Product == "" || len(m.Prefixes) == 0 && m.Vendor == "" && m.Hostname == "" {
			t.Errorf("%+v can be recognised by nothing", m)
		}
		if m.Vendor+m.Hostname != strings.ToLower(m.Vendor+m.Hostname) {
			t.Errorf("%s: words are compared in lower case", m.Maker)
		}
		for _, p := range m.Prefixes {
			if _, err := hex.DecodeString((p + "0")[:len(p)/2*2]); err != nil || len(p) < 6 || len(p) > 9 || strings.ToLower(p) != p {
				t.Errorf("%s: %q is no registered prefix: want 6, 7 or 9 digits", m.Maker, p)
			}
			if other := seen[p]; other != "" {
				t.Errorf("prefix %s belongs to %s and %s", p, other, m.Maker)
			}
			seen[p] = m.Maker
		}
	}
	for _, c := range []struct{ mac, vendor, host, want string }{
		{"e0:a5:09:12:34:56", "udhcp 1.20.2", "", "Bitmain"},
		{"b4:a2:eb:3f:00:01", "", "", "Canaan"},
		{"b4:a2:eb:4f:00:01", "", "", ""}, // the next 28-bit block is somebody else's
		{"50:6c:be:00:00:01", "", "", "Innosilicon"},
		{"02:34:56:00:00:01", "udhcp 1.20.2", "antMiner", "Bitmain"},
		{"c0:ff:ee:00:00:01", "", "WhatsMiner_1234", "MicroBT"},
		{"52:54:00:00:00:01", "PXEClient:Arch:00007:UNDI:003000", "rig-01", ""},
		{"52:54:00:00:00:01", "udhcp 1.35.0", "", ""}, // busybox is in every RAM system too
	} {
		mac, err := inventory.ParseMAC(c.mac)
		if err != nil {
			t.Fatal(err)
		}
		m, ok := MinerByMAC(mac)
		if !ok {
			m, ok = MinerBySaying(c.vendor, c.host)
		}
		if ok != (c.want != "") || m.Maker != c.want {
			t.Errorf("%+v: %q", c, m.Maker)
		}
		if ok && !strings.Contains(m.NotConvertible(), "cannot be converted") {
			t.Errorf("%s: no reason", m.Maker)
		}
	}
}
