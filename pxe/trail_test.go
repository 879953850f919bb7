package pxe

import (
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

func xid(n byte) dhcpv4.TransactionID { return dhcpv4.TransactionID{n} }

// TestTrail follows one machine from start to start.
func TestTrail(t *testing.T) {
	at := func(seconds int) time.Time { return epoch.Add(time.Duration(seconds) * time.Second) }
	type step struct {
		what     string
		client   client
		xid      byte
		discover bool
		second   int
		want     int
	}
	for name, steps := range map[string][]step{
		"retries are one start": {
			{"discover", firmware, 1, true, 0, 1},
			{"retry", firmware, 1, true, 4, 1},
			{"retry", firmware, 1, true, 12, 1},
			{"request", firmware, 1, false, 13, 1},
			{"another xid at once", firmware, 2, true, 2, 1},
		},
		"starts": {
			{"first", firmware, 1, true, 0, 1},
			{"second", firmware, 2, true, 30, 2},
			{"the same xid long after", firmware, 2, true, 200, 3},
		},
		"PXE and HTTP climb apart": {
			{"PXE", firmware, 1, true, 0, 1},
			{"HTTP", httpBoot, 2, true, 20, 1},
			{"PXE", firmware, 3, true, 60, 2},
			{"HTTP", httpBoot, 4, true, 80, 2},
		},
		"iPXE that we sent is no start": {
			{"undionly is told", firmware, 1, true, 0, 1},
			{"undionly asks", ipxe, 2, true, 5, 1},
			{"and asks", ipxe, 2, false, 6, 1},
			{"the ROM again", firmware, 3, true, 60, 2},
		},
		"iPXE of the card is": {
			{"ROM", ipxe, 1, true, 0, 1},
			{"ROM", ipxe, 2, true, 60, 2},
		},
		"plain clients are not machines that boot": {
			{"dhclient", plain4, 1, true, 0, 0},
			{"a request out of nowhere", firmware, 1, false, 1, 0},
		},
	} {
		t.Run(name, func(t *testing.T) {
			trail := newTrail()
			for _, s := range steps {
				if got := trail.start(known, s.client, xid(s.xid), s.discover, at(s.second)); got != s.want {
					t.Errorf("%s: start %d, want %d", s.what, got, s.want)
				}
			}
		})
	}

	trail := newTrail()
	trail.start(known, firmware, xid(1), true, at(0))
	trail.sent(known, firmware, IPXE)
	trail.start(known, httpBoot, xid(2), true, at(20))
	trail.sent(known, httpBoot, UKI)
	trail.start(known, httpBoot, xid(3), true, at(60))
	trail.sent(known, httpBoot, Shim)
	trail.beyond(known)
	if starts, worked := trail.of(known, httpBoot); starts != 0 || worked != Shim {
		t.Errorf("beyond by HTTP: %d starts, %q worked", starts, worked)
	}
	if starts, worked := trail.of(known, firmware); starts != 0 || worked != "" {
		t.Errorf("by PXE it was refused: %d starts, %q worked", starts, worked)
	}
	trail.start(known, httpBoot, xid(4), true, at(300))
	trail.sent(known, httpBoot, "") // told to start its own disk
	trail.beyond(known)
	if _, worked := trail.of(known, httpBoot); worked != Shim {
		t.Errorf("its own disk made it forget what worked: %q", worked)
	}
}

// TestTrailBounded: MAC addresses cost an attacker nothing.
func TestTrailBounded(t *testing.T) {
	trail := newTrail()
	trail.start(known, firmware, xid(1), true, epoch)
	for i := range 2 * trailMachines {
		trail.start(MAC{2, 1, byte(i >> 16), byte(i >> 8), byte(i)}, firmware, xid(1), true, epoch)
		if i%1000 == 0 {
			trail.of(known, firmware) // heard of now and then
		}
	}
	if len(trail.byMAC) != trailMachines || trail.age.Len() != trailMachines {
		t.Errorf("%d machines are remembered, want %d", len(trail.byMAC), trailMachines)
	}
	if starts, _ := trail.of(known, firmware); starts != 1 {
		t.Errorf("a machine that asks was forgotten")
	}
}

// TestLadder: a machine whose firmware refuses what it is given climbs, by
// DHCP alone, and begins with what worked once it got beyond.
func TestLadder(t *testing.T) {
	s := testServer(t, tableBooter{"": {Action: Kernel, Why: "inspection"}})
	for _, f := range []string{LoaderUKI, LoaderShim, LoaderGRUB} {
		if err := s.files.Add(f, []byte(f)); err != nil {
			t.Fatal(err)
		}
	}
	boot := func(second int) string {
		now := epoch.Add(time.Duration(second) * time.Second)
		a, e := message{kind: dhcpv4.MessageTypeDiscover, mac: known, options: httpUEFI}.tell(t, s, now)
		if a == nil {
			t.Fatal(e.Why)
		}
		offered := string(a.msg.Options.Get(dhcpv4.OptionBootfileName))
		b, e := message{kind: dhcpv4.MessageTypeRequest, mac: known, want: "10.77.0.11", server: "10.77.0.1", options: httpUEFI}.tell(t, s, now)
		if b == nil {
			t.Fatal(e.Why)
		}
		if acked := string(b.msg.Options.Get(dhcpv4.OptionBootfileName)); acked != offered {
			t.Errorf("offered %s, then %s", offered, acked)
		}
		return offered
	}
	const base = "http://10.77.0.1/boot/file/"
	for i, want := range []string{LoaderUKI, LoaderShim, LoaderUEFI, LoaderUKI} {
		if got := boot(i * 100); got != base+want {
			t.Errorf("start %d: %s, want %s", i+1, got, want)
		}
	}
	boot(400) // shim
	s.trail.beyond(known)
	for i, want := range []string{LoaderShim, LoaderUEFI} {
		if got := boot(500 + i*100); got != base+want {
			t.Errorf("start %d after it got beyond: %s, want %s", i+1, got, want)
		}
	}
}

// TestTrailLocal: a machine that started its own disk for months begins with
// the best loader when it is to start the RAM system again.
func TestTrailLocal(t *testing.T) {
	tr := newTrail()
	now := epoch
	start := func(p Path) (all, starts int) {
		now = now.Add(time.Hour)
		all = tr.start(known, httpBoot, xid(byte(now.Hour())), true, now)
		starts, _ = tr.of(known, httpBoot)
		tr.sent(known, httpBoot, p) // the answer to DISCOVER
		tr.sent(known, httpBoot, p) // and to REQUEST
		return all, starts
	}
	for range 3 {
		start("")
	}
	if all, starts := start(UKI); all != 4 || starts != 1 {
		t.Errorf("start %d counts as %d for the ladder", all, starts)
	}
	if all, starts := start(Shim); all != 5 || starts != 2 {
		t.Errorf("start %d counts as %d for the ladder", all, starts)
	}
	tr.beyond(known)
	if all, starts := start(UKI); all != 1 || starts != 1 {
		t.Errorf("after it got beyond: start %d counts as %d", all, starts)
	}
}
