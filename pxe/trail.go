package pxe

import (
	"container/list"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

const (
	// EDK2 and PXE ROMs repeat a DISCOVER after 4, 8, 16 and 32 s with the same
	// xid (PXE 2.1 section 2.2.3); two relays of one segment pass it on twice.
	sameAttempt = 90 * time.Second
	// A ROM may begin anew at once with another xid, which is no new start: no
	// firmware comes back from a loader, or a reset, as fast.
	atOnce = 3 * time.Second
	// iPXE asks for an address again when a loader of ours started it. How long
	// that loader took to arrive is a matter of the network.
	secondStage = 10 * time.Minute

	trailMachines = 16384 // the quietest forgotten first
)

// trail remembers of each machine how often its firmware started since it last
// got beyond a first loader, which it shows by fetching a script, a
// configuration or orders. It lives in memory: a restart of the server costs a
// machine a climb at most.
type trail struct {
	mu    sync.Mutex
	byMAC map[MAC]*list.Element // of *track
	age   list.List             // front: heard of last
}

// track is one machine. Its card may start by PXE and by HTTP in turn, from one
// boot entry after the other: each kind climbs its own ladder.
type track struct {
	mac   MAC
	kinds [httpBoot + 1]struct {
		xid    dhcpv4.TransactionID
		at     time.Time
		starts int
		local  int  // of these, up to the last that went to the machine's own disk: no loader failed
		sent   Path // what it was told to load
		worked Path // what last brought it beyond
	}
}

func newTrail() *trail { return &trail{byMAC: make(map[MAC]*list.Element)} }

// begins reports whether r can begin a start.
func (r *request) begins() bool { return r.kind == dhcpv4.MessageTypeDiscover }

// start notes a message of a boot client and returns the count of starts that
// it belongs to.
func (t *trail) start(mac MAC, c client, xid dhcpv4.TransactionID, begins bool, now time.Time) int {
	if c != ipxe && c != firmware && c != httpBoot {
		return 0
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	m := t.track(mac, begins)
	if m == nil {
		return 0
	}
	if c == ipxe {
		// By its DHCP the iPXE of a card cannot be told from one that we sent.
		for _, first := range []client{firmware, httpBoot} {
			if k := &m.kinds[first]; !k.at.IsZero() && now.Sub(k.at) < secondStage {
				return k.starts
			}
		}
	}
	k := &m.kinds[c]
	since := now.Sub(k.at)
	if begins && (k.at.IsZero() || since >= sameAttempt || k.xid != xid && since >= atOnce) {
		k.xid, k.at = xid, now
		k.starts++
	}
	return k.starts
}

// track finds or makes what is known of a machine.
func (t *trail) track(mac MAC, make bool) *track {
	el, ok := t.byMAC[mac]
	switch {
	case ok:
		t.age.MoveToFront(el)
	case !make:
		return nil
	default:
		el = t.age.PushFront(&track{mac: mac})
		t.byMAC[mac] = el
		if t.age.Len() > trailMachines {
			last := t.age.Back()
			delete(t.byMAC, t.age.Remove(last).(*track).mac)
		}
	}
	return el.Value.(*track)
}

// of returns what the choice of a loader depends on.
func (t *trail) of(mac MAC, c client) (starts int, worked Path) {
	t.mu.Lock()
	defer t.mu.Unlock()
	m := t.track(mac, false)
	if m == nil {
		return 0, ""
	}
	return m.kinds[c].starts - m.kinds[c].local, m.kinds[c].worked
}

// sent notes what a machine was told to load.
func (t *trail) sent(mac MAC, c client, p Path) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if m := t.track(mac, false); m != nil {
		k := &m.kinds[c]
		if k.sent = p; p == "" {
			k.local = k.starts
		}
	}
}

// beyond notes that a machine got beyond its first loader. What brought it
// there is what its next start begins with.
func (t *trail) beyond(mac MAC) {
	t.mu.Lock()
	defer t.mu.Unlock()
	m := t.track(mac, false)
	if m == nil {
		return
	}
	last := firmware
	if m.kinds[httpBoot].at.After(m.kinds[firmware].at) {
		last = httpBoot
	}
	if k := &m.kinds[last]; k.starts > 0 && k.sent != "" {
		k.worked = k.sent
	}
	for c := range m.kinds {
		m.kinds[c].starts, m.kinds[c].local = 0, 0
	}
}
