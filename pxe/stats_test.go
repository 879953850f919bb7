package pxe

import (
	"slices"
	"testing"
	"time"
)

// TestStats: what is heard and answered is counted, once.
func TestStats(t *testing.T) {
	s := testServer(t, tableBooter{"": {Action: Local, Why: "test"}})
	now := time.Now()
	for _, m := range []message{
		{kind: 1, mac: unknown},
		{kind: 3, mac: unknown, want: "10.77.0.100", server: "10.77.0.1"},
		{kind: 3, mac: other, want: "192.168.7.7"},
	} {
		_, e := m.tell(t, s, now)
		s.recorder.record(e)
	}
	get(t, s, "GET", "/boot/script?mac=52:54:00:00:00:01")
	st := s.Stats()
	want := []Count{
		{[]string{"eth0", "ack"}, 1}, {[]string{"eth0", "discover"}, 1}, {[]string{"eth0", "nak"}, 1},
		{[]string{"eth0", "offer"}, 1}, {[]string{"eth0", "request"}, 2},
	}
	if !slices.EqualFunc(st.DHCP, want, func(a, b Count) bool { return a.N == b.N && slices.Equal(a.Labels, b.Labels) }) {
		t.Errorf("DHCP: %v, want %v", st.DHCP, want)
	}
	if len(st.Scripts) != 1 || st.Scripts[0].Labels[0] != "local disk" || st.Scripts[0].N != 1 {
		t.Errorf("scripts: %v", st.Scripts)
	}
	if len(st.Pools) != 1 || st.Pools[0].Used != 1 || st.Pools[0].Size < 2 {
		t.Errorf("pools: %v", st.Pools)
	}
}
