package pxe

import (
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

func TestLateStarts(t *testing.T) {
	day := time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name   string
		kind   dhcpv4.MessageType
		boots  bool
		secs   uint16
		heard  time.Duration // before now; 0: never
		uptime time.Duration
		late   bool
	}{
		{"a port that ran STP", dhcpv4.MessageTypeDiscover, true, 28, 0, time.Hour, true},
		{"and again after a day", dhcpv4.MessageTypeDiscover, true, 12, 24 * time.Hour, time.Hour, true},
		{"at once", dhcpv4.MessageTypeDiscover, true, 0, 0, time.Hour, false},
		{"the first repeat", dhcpv4.MessageTypeDiscover, true, 4, 0, time.Hour, false},
		{"its first one was heard", dhcpv4.MessageTypeDiscover, true, 28, 28 * time.Second, time.Hour, false},
		{"we did not run", dhcpv4.MessageTypeDiscover, true, 28, 0, 20 * time.Second, false},
		{"the bytes swapped", dhcpv4.MessageTypeDiscover, true, 8 << 8, 0, time.Hour, false},
		{"an operating system", dhcpv4.MessageTypeDiscover, false, 28, 0, time.Hour, false},
		{"a request", dhcpv4.MessageTypeRequest, true, 28, 0, time.Hour, false},
	} {
		l := &late{}
		now := day.Add(c.uptime)
		l.begin(day)
		r := &request{msg: &dhcpv4.DHCPv4{NumSeconds: c.secs}, kind: c.kind, machine: Machine{MAC: unknown}}
		if c.boots {
			r.machine.Stage = AskAddress
		}
		var before time.Time
		if c.heard != 0 {
			before = now.Add(-c.heard)
		}
		l.hear("hall", r, before, now)
		got := l.list(now)
		if (len(got) == 1) != c.late {
			t.Errorf("%s: %+v", c.name, got)
		}
		if c.late && (got[0].Network != "hall" || got[0].After != time.Duration(c.secs)*time.Second) {
			t.Errorf("%s: %+v", c.name, got[0])
		}
		if got := l.list(now.Add(lateKept + time.Second)); len(got) != 0 {
			t.Errorf("%s: kept forever: %+v", c.name, got)
		}
	}
	// Made-up machines cost bounded memory.
	l := &late{}
	l.begin(day)
	for i := range 3 * lateMachines {
		m := Machine{MAC: MAC{2, 0, 0, 0, byte(i >> 8), byte(i)}, Stage: AskAddress}
		l.hear("hall", &request{msg: &dhcpv4.DHCPv4{NumSeconds: 28}, kind: dhcpv4.MessageTypeDiscover, machine: m}, time.Time{}, day.Add(time.Hour))
	}
	if n := len(l.list(day.Add(time.Hour))); n != lateMachines {
		t.Errorf("%d machines are kept", n)
	}
}
