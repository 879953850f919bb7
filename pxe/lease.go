package pxe

import (
	"container/heap"
	"fmt"
	"net/netip"
	"sync"
	"time"
)

const (
	offerHold  = 30 * time.Second // an offer not taken up is forgotten: it was never promised
	brieflyFor = 10 * time.Second // the same for a machine nobody knows; EDK2 takes up an offer after 4 s
	quarantine = 10 * time.Minute // of an address that a client found in use (RFC 2131 section 4.3.3)
	maxPool    = 1 << 16          // addresses, to bound memory

	// Machines that nobody knows may have this share of a pool at once. What is
	// left is for machines of the site, and for those that had an address here.
	strangersShare = 80 // percent
)

// leaseState is what an address is to us.
type leaseState int

const (
	_        leaseState = iota
	offered             // held for a client for a moment; in memory only
	bound               // acknowledged, and durable before that
	released            // given back; kept, so that its client gets it again
	declined            // somebody unknown uses it
)

// lease ties an address of the pool to a machine. Machines are told apart by
// MAC and not by client identifier (option 61): firmware, iPXE, the RAM system
// and the installed system of one machine each send another one, and a machine
// that changes its address between two stages of one boot cannot be followed.
type lease struct {
	mac      MAC
	addr     netip.Addr
	state    leaseState
	until    time.Time
	seen     bool // mac had this address acknowledged, now or once
	stranger bool // given to, or declined by, no machine of the site: it counts against their share
	place    int  // in leases.ends
}

// held reports whether nobody else may have the address.
func (l *lease) held(now time.Time) bool { return l.state != released && now.Before(l.until) }

// leases is the address book of one network: fixed addresses, which need no
// memory, and a pool for every machine that nobody told us about.
type leases struct {
	subnet   netip.Prefix
	from, to netip.Addr
	fixed    map[MAC]netip.Addr
	owner    map[netip.Addr]MAC // the reverse of fixed
	journal  *journal

	known map[MAC]bool // machines of the site
	share int          // addresses that strangers may have at once

	mu        sync.Mutex
	byMAC     map[MAC]*lease
	byAddr    map[netip.Addr]*lease
	fresh     netip.Addr // no address from here on was ever used
	ends      [2]ends    // of the pool: what was only offered, and what was acknowledged once
	strangers int        // addresses that strangers had or declined when last looked at, or fewer
	looked    time.Time
	warned    time.Time
}

func newLeases(n Network, known map[MAC]bool, j *journal) *leases {
	l := &leases{
		subnet: n.machines(), from: n.Pool.From, to: n.Pool.To, fixed: n.Fixed, known: known, journal: j,
		owner: make(map[netip.Addr]MAC), byMAC: make(map[MAC]*lease), byAddr: make(map[netip.Addr]*lease), fresh: n.Pool.From,
	}
	needy := 0 // machines of the site that live from the pool
	for mac := range known {
		if _, ok := n.Fixed[mac]; !ok {
			needy++
		}
	}
	l.share = l.size() - min(needy, l.size()*(100-strangersShare)/100)
	for mac, a := range n.Fixed {
		l.owner[a] = mac
	}
	return l
}

// load takes over what the journal remembers. Addresses that the site has
// since taken out of the pool are left out: their holders are refused at
// renewal and get a new one.
func (l *leases) load(records []record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range records {
		if !l.inPool(r.Addr) && r.State != declined || !l.subnet.Contains(r.Addr) {
			continue
		}
		e := &lease{mac: r.MAC, addr: r.Addr, state: r.State, until: time.Unix(r.Until, 0), seen: true}
		if old := l.byMAC[r.MAC]; r.State == declined || old == nil || old.until.Before(e.until) {
			l.put(e)
		}
	}
}

// size is the number of addresses in the pool.
func (l *leases) size() int {
	if !l.from.IsValid() {
		return 0
	}
	return distance(l.from, l.to) + 1
}

// familiar reports whether mac is a machine of the site or has had an address
// here that nobody took since. While it takes up an offer it is familiar too.
func (l *leases) familiar(mac MAC, request bool) bool {
	if l.known[mac] {
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.byMAC[mac]
	return e != nil && (e.seen || request && e.state == offered)
}

func (l *leases) inPool(a netip.Addr) bool {
	return l.from.IsValid() && !a.Less(l.from) && !l.to.Less(a)
}

// quarantined reports whether somebody unknown was found to use a.
func (l *leases) quarantined(a netip.Addr, now time.Time) bool {
	e := l.byAddr[a]
	return e != nil && e.state == declined && e.held(now)
}

// current is the address that mac has or would be given again, if any.
func (l *leases) current(mac MAC, now time.Time) (netip.Addr, bool) {
	if a, ok := l.fixed[mac]; ok && !l.quarantined(a, now) {
		return a, true
	}
	if e := l.byMAC[mac]; e != nil && l.inPool(e.addr) {
		return e.addr, true
	}
	return netip.Addr{}, false
}

// lookup is current for those outside.
func (l *leases) lookup(mac MAC, now time.Time) netip.Addr {
	l.mu.Lock()
	defer l.mu.Unlock()
	a, _ := l.current(mac, now)
	return a
}

// holder is the machine that has the address now.
func (l *leases) holder(a netip.Addr, now time.Time) (MAC, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.holderLocked(a, now)
}

func (l *leases) holderLocked(a netip.Addr, now time.Time) (MAC, bool) {
	if mac, ok := l.owner[a]; ok {
		return mac, true
	}
	if e := l.byAddr[a]; e != nil && e.state != declined && e.held(now) {
		return e.mac, true
	}
	return MAC{}, false
}

// offer chooses an address for mac and holds it for a moment; fresh reports
// that the machine did not have it before. The order is that of RFC 2131
// section 4.3.1: the one it has or had, the one it asks for, one that was never
// used, and last the one that has been free for longest.
func (l *leases) offer(mac MAC, want netip.Addr, now time.Time) (a netip.Addr, fresh bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if a, ok := l.current(mac, now); ok {
		if l.inPool(a) {
			l.hold(mac, a, now)
		}
		return a, false, nil
	}
	if !l.from.IsValid() {
		return netip.Addr{}, false, fmt.Errorf("no fixed address for this machine, and the network has no pool")
	}
	if !l.known[mac] && !l.room(now) {
		return netip.Addr{}, false, fmt.Errorf("machines that the site does not know have %d of the %d addresses %s-%s, the others are kept for those it knows: enlarge the pool, or enter the machine in the site", l.strangers, l.size(), l.from, l.to)
	}
	if l.inPool(want) && l.free(want, now) {
		l.hold(mac, want, now)
		return want, true, nil
	}
	for ; l.inPool(l.fresh); l.fresh = l.fresh.Next() {
		if l.byAddr[l.fresh] == nil && l.free(l.fresh, now) {
			l.hold(mac, l.fresh, now)
			return l.fresh, true, nil
		}
	}
	// Who only ever was offered an address has less of a claim to get it again.
	for _, q := range l.ends {
		if len(q) > 0 && !q[0].held(now) {
			a := q[0].addr
			l.hold(mac, a, now)
			return a, true, nil
		}
	}
	return netip.Addr{}, false, fmt.Errorf("all addresses %s-%s are taken: enlarge the pool, or give known machines fixed addresses", l.from, l.to)
}

// room reports whether one more stranger may have an address. Strangers that
// are gone are looked for once a second at most.
func (l *leases) room(now time.Time) bool {
	if l.strangers < l.share {
		return true
	}
	if since := now.Sub(l.looked); since >= 0 && since < time.Second {
		return false
	}
	l.looked, l.strangers = now, 0
	for _, e := range l.byAddr {
		if e.stranger = e.stranger && e.held(now); e.stranger {
			l.strangers++
		}
	}
	return l.strangers < l.share
}

// crowded says, once in a while, that strangers have most of the pool.
func (l *leases) crowded(now time.Time) (strangers, size int, warn bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	size = l.size()
	if l.strangers*100 < size*strangersShare || now.Sub(l.warned) < 10*time.Minute {
		return 0, 0, false
	}
	l.warned = now
	return l.strangers, size, true
}

// free reports whether a may be given to somebody who did not have it.
func (l *leases) free(a netip.Addr, now time.Time) bool {
	if _, ok := l.owner[a]; ok {
		return false
	}
	e := l.byAddr[a]
	return e == nil || !e.held(now)
}

// hold keeps a for mac until the client answers. A running lease is kept as it is.
func (l *leases) hold(mac MAC, a netip.Addr, now time.Time) {
	if e := l.byAddr[a]; e != nil && e.mac == mac && e.state == bound && e.held(now) {
		return
	}
	e := &lease{mac: mac, addr: a, state: offered, until: now.Add(offerHold), seen: l.had(mac, a)}
	if !e.seen && !l.known[mac] {
		e.until = now.Add(brieflyFor)
	}
	l.put(e)
}

// had reports whether mac once had a for good.
func (l *leases) had(mac MAC, a netip.Addr) bool {
	e := l.byAddr[a]
	return e != nil && e.mac == mac && e.seen
}

// put enters e and forgets what it replaces.
func (l *leases) put(e *lease) {
	if old := l.byAddr[e.addr]; old != nil {
		l.remove(old)
	}
	if e.state != declined {
		if old := l.byMAC[e.mac]; old != nil {
			l.remove(old)
			if old.addr.Less(l.fresh) {
				l.fresh = old.addr // it has no record any more: look at it again
			}
		}
		l.byMAC[e.mac] = e
		e.stranger = e.state != released && !l.known[e.mac]
	}
	l.byAddr[e.addr] = e
	if e.stranger {
		l.strangers++
	}
	if l.inPool(e.addr) {
		heap.Push(l.queue(e), e)
	}
}

func (l *leases) remove(e *lease) {
	delete(l.byAddr, e.addr)
	if l.byMAC[e.mac] == e {
		delete(l.byMAC, e.mac)
	}
	if e.stranger {
		l.strangers--
	}
	if l.inPool(e.addr) {
		heap.Remove(l.queue(e), e.place)
	}
}

func (l *leases) queue(e *lease) *ends {
	if e.seen {
		return &l.ends[1]
	}
	return &l.ends[0]
}

// ends is a heap of leases by their end.
type ends []*lease

func (q ends) Len() int           { return len(q) }
func (q ends) Less(i, j int) bool { return q[i].until.Before(q[j].until) }
func (q ends) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].place, q[j].place = i, j
}
func (q *ends) Push(e any) {
	l := e.(*lease)
	l.place = len(*q)
	*q = append(*q, l)
}
func (q *ends) Pop() any {
	old := *q
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	return e
}

// verdict on a DHCPREQUEST.
type verdict int

const (
	_ verdict = iota
	ack
	nak
	silent
)

// claim is what a DHCPREQUEST asks for, in the cases of RFC 2131 section 4.3.2.
type claim struct {
	mac     MAC
	addr    netip.Addr // option 50, or ciaddr
	renew   bool       // RENEWING, REBINDING: the client uses the address now
	reboot  bool       // INIT-REBOOT: it did before and asks whether it may
	unicast bool       // sent to us alone (RENEWING)
}

// request decides on c. For an ACK of a pool address the returned wait blocks
// until the lease is durable; the client must not hear of it before. Of what is
// known without a lease, it is nil.
func (l *leases) request(c claim, now time.Time, length time.Duration) (v verdict, why string, wait func() error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.subnet.Contains(c.addr) {
		if c.renew && !c.unicast {
			// REBINDING: it lives on another network of the same wire, and the
			// server of that one will answer.
			return silent, fmt.Sprintf("%s is not an address of this network %s; its own server may answer", c.addr, l.subnet), nil
		}
		return nak, fmt.Sprintf("%s is not an address of this network %s", c.addr, l.subnet), nil
	}
	mine, known := l.current(c.mac, now)
	if !known && !c.renew && !c.reboot && l.inPool(c.addr) && l.free(c.addr, now) && (l.known[c.mac] || l.room(now)) {
		// Offers are not durable: we may have restarted since. Leases are, so a
		// renewal of which nothing is known is refused below.
		mine, known = c.addr, true
	}
	switch {
	case known && mine == c.addr:
	case known:
		return nak, fmt.Sprintf("asks for %s, but its address is %s", c.addr, mine), nil
	default:
		if _, taken := l.holderLocked(c.addr, now); taken {
			return nak, fmt.Sprintf("%s belongs to another machine", c.addr), nil
		}
		if c.renew && (c.unicast || l.inPool(c.addr)) {
			return nak, fmt.Sprintf("no lease of %s is known for it", c.addr), nil
		}
		if !c.reboot && !c.renew {
			return nak, fmt.Sprintf("%s was not offered to it", c.addr), nil
		}
		// Another server may know it (RFC 2131 section 4.3.2).
		return silent, fmt.Sprintf("nothing is known of it and %s; another server may answer", c.addr), nil
	}
	if a, ok := l.fixed[c.mac]; ok && a == c.addr {
		return ack, "fixed address", nil // written in the site: nothing to remember
	}
	e := &lease{mac: c.mac, addr: c.addr, state: bound, until: now.Add(length), seen: true}
	l.put(e)
	// In the order of the decisions, hence under the lock; the disk is waited
	// for without it.
	return ack, "address of the pool", l.journal.append(record{MAC: e.mac, Addr: e.addr, State: e.state, Until: e.until.Unix()})
}

// decline quarantines an address its client found in use.
func (l *leases) decline(mac MAC, a netip.Addr, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if mine, ok := l.current(mac, now); !ok || mine != a {
		return false
	}
	// It counts as the decliner's: else a stranger who declines one address after
	// the other has them all.
	e := &lease{addr: a, state: declined, until: now.Add(quarantine), seen: true, stranger: !l.known[mac]}
	l.put(e)
	l.journal.append(record{Addr: a, State: declined, Until: e.until.Unix()})
	return true
}

// release gives an address back. Its record stays, so that the machine gets it
// again unless the pool runs short.
func (l *leases) release(mac MAC, a netip.Addr, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.byMAC[mac]
	if e == nil || e.addr != a || e.state == declined {
		return false
	}
	bound := e.state == bound
	l.put(&lease{mac: mac, addr: a, state: released, until: now, seen: e.seen})
	if bound {
		l.journal.append(record{MAC: mac, Addr: a, State: released, Until: now.Unix()})
	}
	return true
}

// withdraw forgets an offer whose client chose another server.
func (l *leases) withdraw(mac MAC, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e := l.byMAC[mac]; e != nil && e.state == offered {
		l.put(&lease{mac: mac, addr: e.addr, state: released, until: now, seen: e.seen})
	}
}
