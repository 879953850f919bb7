package pxe

import (
	"slices"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

const (
	// A switch port that runs STP holds back what a machine sends for 30 s after
	// the link came up (IEEE 802.1D forward delay, twice), and one that waits for
	// LACP about as long. Firmware counts the seconds that it asks already (RFC
	// 2131 table 1, secs), so the first DISCOVER we hear tells of those we did not.
	lateFrom = 8 * time.Second // two repeats of PXE 2.1 section 2.2.3
	lateTo   = 2 * time.Minute // more is a client that gets the field wrong, as some do

	lateQuiet    = 2 * time.Minute // unheard for so long, a machine starts anew
	lateKept     = 24 * time.Hour
	lateMachines = 1024
)

// A LateStart is a machine whose first question did not reach us: most often
// its switch port did not forward yet.
type LateStart struct {
	Network string
	MAC     MAC
	After   time.Duration // how long it had asked when we first heard it
	At      time.Time
}

// late remembers them.
type late struct {
	mu    sync.Mutex
	since time.Time // when we began to hear anything; zero: not yet
	byMAC map[MAC]LateStart
}

// hear looks at a message of a machine that was last heard at before.
func (l *late) hear(network string, r *request, before, now time.Time) {
	after := time.Duration(r.msg.NumSeconds) * time.Second
	if r.kind != dhcpv4.MessageTypeDiscover || r.machine.Stage == 0 || after < lateFrom || after > lateTo || now.Sub(before) < lateQuiet {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.since.IsZero() || now.Sub(l.since) < lateTo {
		return // it may have asked while we did not run
	}
	if l.byMAC == nil {
		l.byMAC = make(map[MAC]LateStart)
	}
	if _, known := l.byMAC[r.machine.MAC]; !known && len(l.byMAC) >= lateMachines {
		return
	}
	l.byMAC[r.machine.MAC] = LateStart{network, r.machine.MAC, after, now}
}

// begin notes that the ports are open.
func (l *late) begin(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.since = now
}

// list forgets what is old and returns the others, the last one first.
func (l *late) list(now time.Time) []LateStart {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []LateStart
	for mac, s := range l.byMAC {
		if now.Sub(s.At) > lateKept {
			delete(l.byMAC, mac)
			continue
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b LateStart) int { return b.At.Compare(a.At) })
	return out
}

// LateStarts returns the machines of the last day whose first questions did
// not reach us, the last one first.
func (s *Server) LateStarts() []LateStart { return s.late.list(time.Now()) }

// lastHeard is when a decision about mac was last recorded; zero: never.
func (r *recorder) lastHeard(mac MAC) time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	if el, ok := r.byID[mac]; ok {
		return el.Value.(*history).seen.Last
	}
	return time.Time{}
}
