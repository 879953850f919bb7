package pxe

import (
	"hash/maphash"
	"sync/atomic"
	"time"
)

// What one source may send us. In DHCP a machine that boots sends some twenty
// messages in as many seconds, in bursts of three or four.
var (
	machineRate = rate{4, 40}
	// Of machines that nobody knows, on one relay's circuit. On an access switch
	// that is a port; a relay on a router or a server names the interface, and
	// behind that may be a hall of 2,000 that power on at once.
	circuitRate = rate{2000, 10000}
	// Of questions by HTTP, from one address: a hundred rigs can stand behind one
	// NAT, and each that waits asks every ten seconds.
	clientRate = rate{20, 200}
	// Of machines that nobody knows, on one interface or through one relay that
	// names no circuits. It is more than two cores answer: a hall of 5,000 new
	// machines that all power on at once stays far below.
	strangerRate = rate{30000, 30000}
)

// limitCells is enough to keep the machines of a hall apart, in half a megabyte.
const limitCells = 1 << 16

// rate is so many messages a second, after a burst.
type rate struct{ second, burst int64 }

// throttle holds each source to a rate. It is a table of fixed size: sources
// that share a cell by chance share its rate, so that made-up sources cost no
// memory. A cell is the time at which it would be empty again (GCRA).
type throttle struct {
	rate  rate
	seed  maphash.Seed
	start time.Time
	cells []atomic.Int64
}

func newThrottle(r rate, cells int) *throttle {
	return &throttle{rate: r, seed: maphash.MakeSeed(), start: time.Now(), cells: make([]atomic.Int64, cells)}
}

// circuit is a source of messages behind a relay.
type circuit struct {
	relay [4]byte
	name  string
}

func allow[S comparable](l *throttle, source S, now time.Time) bool {
	cell := &l.cells[maphash.Comparable(l.seed, source)%uint64(len(l.cells))]
	each := int64(time.Second) / l.rate.second
	at, most := int64(now.Sub(l.start)), each*l.rate.burst
	for {
		old := cell.Load()
		next := at + each
		if old > at && old <= at+most { // beyond that the clock went back
			next = old + each
		}
		if next-at > most {
			return false
		}
		if cell.CompareAndSwap(old, next) {
			return true
		}
	}
}
