package main

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"smelt/internal/api"
	"smelt/pxe"
)

// What the boot service heard becomes words without losing who it was about.
func TestNetworkViews(t *testing.T) {
	mac := pxe.MAC{0x52, 0x54, 0, 0, 0, 9}
	v := rivalView(pxe.Rival{
		MAC: mac, Addr: netip.MustParseAddr("10.0.0.9"), Server: netip.MustParseAddr("10.0.0.8"), Proxy: true, Alarm: "harm", Last: time.Now(),
		Boots: []pxe.RivalBoot{{For: "BIOS PXE", File: "pxelinux.0", Server: "10.0.0.9"}, {File: ""}},
	})
	if v.MAC != mac.String() || v.Addr != "10.0.0.8" || v.Offered != "" || v.Alarm != "harm" || v.Type != "ProxyDHCP" ||
		strings.Join(v.Boots, "; ") != "pxelinux.0 from 10.0.0.9 to BIOS PXE; a boot menu" {
		t.Errorf("%+v", v)
	}
	list := sightings([]pxe.Sighting{
		{Machine: pxe.Machine{MAC: pxe.MAC{0xe0, 0xa5, 9, 1, 2, 3}, Addr: netip.MustParseAddr("10.0.0.3")}, Asks: 2},
		{Machine: pxe.Machine{MAC: mac, Hostname: "Avalon", Relay: netip.MustParseAddr("10.1.0.1"), Circuit: "7"}},
		{Machine: pxe.Machine{MAC: mac, Hostname: "rig"}, Boots: true},
	})
	for i, want := range []string{api.SeenASIC, api.SeenASIC, ""} {
		if list[i].Verdict != want || (want != "") != strings.Contains(list[i].Reason, "cannot be converted") {
			t.Errorf("%d: verdict %q, %q", i, list[i].Verdict, list[i].Reason)
		}
	}
	if list[0].Addr != "10.0.0.3" || list[1].Relay != "10.1.0.1" || list[1].Circuit != "7" || list[1].Addr != "" || !list[2].Boots {
		t.Errorf("%+v", list)
	}
}
