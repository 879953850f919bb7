package pxe

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
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
	for kind := dhcpv4.MessageType(21); kind < 255; kind++ {
		_, e := message{kind: kind, mac: other}.tell(t, s, now)
		s.recorder.record(e)
	}
	get(t, s, "GET", "/boot/script?mac=52:54:00:00:00:01")
	st := s.Stats()
	want := []Count{
		{[]string{"eth0", "ack"}, 1}, {[]string{"eth0", "discover"}, 1}, {[]string{"eth0", "nak"}, 1},
		{[]string{"eth0", "offer"}, 1}, {[]string{"eth0", "other"}, 234}, {[]string{"eth0", "request"}, 2},
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

// TestBootTime: from the first DISCOVER of a start to its kernel, by the
// firmware that sent it.
func TestBootTime(t *testing.T) {
	uefi, ipxe := Machine{MAC: known, Stage: AskAddress, Arch: UEFIx64}, Machine{MAC: known, Stage: AskAddress, Arch: UEFIx64, IPXE: true}
	discover, script, orders := "dhcp discover", "script", "orders"
	type step struct {
		at   int // seconds
		m    Machine
		kind string
		what string
	}
	for _, c := range []struct {
		name  string
		steps []step
		want  map[string]float64
	}{
		{"snponly", []step{{0, uefi, discover, ""}, {4, uefi, discover, ""}, {9, ipxe, discover, ""}, {12, ipxe, script, "kernel"}}, map[string]float64{"uefi-pxe": 12}},
		{"a signed program", []step{{0, uefi, discover, ""}, {9, uefi, orders, "kernel"}}, map[string]float64{"uefi-pxe": 9}},
		{"ROM", []step{{0, ipxe, discover, ""}, {2, ipxe, script, "kernel"}, {60, ipxe, script, "kernel"}}, map[string]float64{"ipxe": 2}},
		{"told to wait", []step{{0, uefi, discover, ""}, {2, ipxe, script, "hold"}, {12, ipxe, script, "kernel"}}, nil},
		{"power cut in between", []step{{0, uefi, discover, ""}, {9, ipxe, discover, ""}, {40, uefi, discover, ""}, {50, ipxe, script, "kernel"}}, map[string]float64{"uefi-pxe": 10}},
		{"gave up once", []step{{0, uefi, discover, ""}, {90, uefi, discover, ""}, {100, ipxe, script, "kernel"}}, map[string]float64{"uefi-pxe": 10}},
	} {
		s := testServer(t, tableBooter{})
		for _, x := range c.steps {
			s.recorder.record(Event{At: time.Unix(int64(x.at), 0), Machine: x.m, Kind: x.kind, Answer: x.what})
		}
		got := map[string]float64{}
		for k, h := range s.Stats().Kernels {
			got[k] = h.Sum
		}
		if fmt.Sprint(got) != fmt.Sprint(c.want) && len(got)+len(c.want) > 0 {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

// TestSightings: what a machine once said of itself stays, and a flood of
// made-up machines does not push out one that comes back.
func TestSightings(t *testing.T) {
	s := testServer(t, tableBooter{})
	at := time.Unix(0, 0)
	hear := func(after time.Duration, m Machine, kind, answer string) {
		s.recorder.record(Event{At: at.Add(after), Machine: m, Kind: kind, Answer: answer})
	}
	hear(0, Machine{MAC: known, Stage: AskAddress, Arch: UEFIx64, Vendor: "PXEClient:Arch:00007", UUID: "u", Circuit: "sw1/7", Network: "a"}, "dhcp discover", "offer 10.77.0.11")
	hear(2*time.Minute, Machine{MAC: known, Vendor: "udhcp 1.35", Hostname: "rig", Network: "a"}, "dhcp request", "ack 10.77.0.11")
	for i := range 2 * recentMachines {
		hear(time.Hour, Machine{MAC: MAC{2, 0, 0, byte(i >> 16), byte(i >> 8), byte(i)}}, "dhcp discover", "none")
	}
	all := s.Sightings()
	if len(all) != recentMachines {
		t.Errorf("%d machines are remembered", len(all))
	}
	if h := s.Heard(); h["a"] != 1 || h[""] != recentMachines-1 {
		t.Errorf("heard %v", h)
	}
	x := all[len(all)-1]
	if x.Machine.MAC != known {
		t.Fatalf("the machine that came back was forgotten for one that did not: %+v", x)
	}
	if m := x.Machine; !x.Boots || m.Arch != UEFIx64 || m.UUID != "u" || m.Circuit != "sw1/7" || m.Vendor != "udhcp 1.35" || m.Hostname != "rig" ||
		x.Asks != 2 || x.Got != "ack 10.77.0.11" || x.Last.Sub(x.First) != 2*time.Minute {
		t.Errorf("%+v", x)
	}
}

// sink takes an answer as net/http does: a file goes to the kernel (sendfile)
// when it is asked to read from one.
type sink struct {
	http.ResponseWriter
	from io.Reader
}

func (s *sink) ReadFrom(r io.Reader) (int64, error) {
	s.from = r
	return io.Copy(io.Discard, r)
}

// TestCountingKeepsSendfile: counting bytes does not put itself between the
// file and the socket.
func TestCountingKeepsSendfile(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(make([]byte, 5000)); err != nil {
		t.Fatal(err)
	}
	var n atomic.Uint64
	s := &sink{ResponseWriter: httptest.NewRecorder()}
	http.ServeContent(counting{s, &n}, httptest.NewRequest("GET", "/", nil), "", time.Time{}, f)
	if l, ok := s.from.(*io.LimitedReader); !ok || l.R != io.Reader(f) || n.Load() != 5000 {
		t.Errorf("%d bytes were counted, of a %T", n.Load(), s.from)
	}
}
