package pxe

import (
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

// Rival is another DHCP or ProxyDHCP server that was heard on a network of
// ours. All of it is what packets say: labels, no proof.
type Rival struct {
	Network    string // name of the network it was heard on
	Interface  string
	MAC        MAC        // Ethernet source of its answers: its own, or its relay's; zero when only a machine named it
	Addr       netip.Addr // IP source of its answers
	Server     netip.Addr // server identifier (option 54)
	Relay      netip.Addr // giaddr: its answers come through this relay
	DHCP       bool       // gives addresses
	Proxy      bool       // says what to boot, and gives no address
	Offered    netip.Addr // the last address it gave
	Boots      []RivalBoot
	Vendor     string // vendor class (option 60)
	Program    string // what it seems to be; "" when nothing tells
	Expected   bool   // the site names it as the hall's own
	Alarm      string // what harm it does; "" when none is known
	First      time.Time
	Last       time.Time
	Count      int    // answers heard
	Refused    int    // of these, refusals (NAK)
	Gone       bool   // not heard for so long that the alarm is over
	next       string // what to do about it
	told       string // Alarm as it was told last
	answeredUs bool   // it answered a question of ours, so it is no mere forgery of the past
}

// RivalBoot is something that a rival gives to boot.
type RivalBoot struct {
	For    string // what our question said it was, such as "UEFI PXE"; "" for an answer to some machine
	File   string
	Server string // where the file is (siaddr or option 66)
	item   uint16 // of a boot menu, its first entry
}

const (
	// An attacker makes up servers for nothing.
	maxRivals     = 64 // on one interface
	maxRivalBoots = 8  // of one rival

	// rivalSilence ends an alarm. A server that is there answers at least our
	// own questions, so this is some of them missed.
	rivalSilence = 4 * rivalInterval
)

// Kind says what r does, in words.
func (r *Rival) Kind() string {
	switch {
	case r.Program == programSmelt:
		return "Smelt"
	case r.DHCP && r.Proxy:
		return "DHCP and ProxyDHCP"
	case r.Proxy:
		return "ProxyDHCP"
	case r.DHCP && len(r.Boots) > 0:
		return "DHCP with boot"
	}
	return "DHCP"
}

// Next says what to do about r; "" when nothing.
func (r *Rival) Next() string { return r.next }

// String names r in one line.
func (r *Rival) String() string {
	var b strings.Builder
	b.WriteString(r.Kind())
	b.WriteString(" server")
	if a := r.Server; a.IsValid() {
		fmt.Fprintf(&b, " %s", a)
	} else if r.Addr.IsValid() {
		fmt.Fprintf(&b, " %s", r.Addr)
	}
	if r.MAC != (MAC{}) {
		fmt.Fprintf(&b, " (%s)", r.MAC)
	}
	if r.Program != "" && r.Program != programSmelt {
		fmt.Fprintf(&b, ", seems to be %s", r.Program)
	}
	return b.String()
}

// Gives says what machines get from r to boot.
func (r *Rival) Gives() string {
	var parts []string
	for _, b := range r.Boots {
		parts = append(parts, b.String())
	}
	return strings.Join(parts, ", ")
}

func (b RivalBoot) String() string {
	s := b.File
	if s == "" {
		s = "a boot menu"
	}
	if b.Server != "" {
		s += " from " + b.Server
	}
	if b.For != "" {
		s += " to " + b.For
	}
	return s
}

type rivalKey struct {
	mac    MAC
	server netip.Addr
}

// rivals is what was heard on one interface.
type rivals struct {
	network Network // whose machines they take
	log     *slog.Logger
	told    func(Rival) // may be nil
	changes chan Rival  // alarms that begin, change and end

	mu      sync.Mutex
	known   map[rivalKey]*Rival
	asking  bool // a round of questions is under way: alarms wait for all of its answers
	flooded int  // servers that found no place
}

func newRivals(n Network, log *slog.Logger, told func(Rival)) *rivals {
	return &rivals{network: n, log: log, told: told, changes: make(chan Rival, 2*maxRivals), known: make(map[rivalKey]*Rival)}
}

// tell passes r on, unless the listener lags.
func (t *rivals) tell(r *Rival) {
	select {
	case t.changes <- r.copy():
	default:
	}
}

// hear notes an answer of another server. asked is what our question said we
// were, when it answers one of ours.
func (t *rivals) hear(from MAC, src netip.Addr, s *sighting, asked string, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	server := s.server
	if !server.IsValid() {
		server = src
	}
	r := t.get(rivalKey{from, server}, asked != "", now)
	if r == nil {
		return
	}
	r.Addr, r.Server, r.Last = src, s.server, now
	r.Count++
	r.answeredUs = r.answeredUs || asked != ""
	if s.giaddr.IsValid() {
		r.Relay = s.giaddr
	}
	if s.vendor != "" {
		r.Vendor = s.vendor
	}
	switch {
	case s.kind == nakMessage:
		r.DHCP = true
		r.Refused++
	case s.proxy, s.boots() && !s.yiaddr.IsValid():
		r.Proxy = true
	case s.yiaddr.IsValid():
		r.DHCP = true
		r.Offered = s.yiaddr
	default:
		r.DHCP = true // an answer to INFORM
	}
	if s.boots() {
		r.boot(RivalBoot{For: asked, File: s.file, Server: s.next, item: s.item})
	}
	if p := service(s); p != "" {
		r.Program = p
	} else if r.Program == "" {
		r.Program = writer(s)
	}
	t.judge(r)
}

// boot adds b unless it is known. A file takes the place of the menu that led
// to it.
func (r *Rival) boot(b RivalBoot) {
	for i := range r.Boots {
		have := &r.Boots[i]
		switch {
		case have.File == b.File && have.Server == b.Server && (have.For == b.For || b.For == ""):
			return
		case have.For == b.For && b.File == "":
			return
		case have.For == b.For && have.File == "":
			*have = b
			return
		}
	}
	if len(r.Boots) < maxRivalBoots {
		r.Boots = append(r.Boots, b)
	}
}

// named notes that a machine chose another server (option 54 of its REQUEST):
// the answer itself went to the machine alone.
func (t *rivals) named(server netip.Addr, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, r := range t.known {
		if r.Server == server {
			r.Last = now
			return
		}
	}
	r := t.get(rivalKey{server: server}, false, now)
	if r == nil {
		return
	}
	r.Server, r.DHCP, r.Last = server, true, now
	r.Count++
	t.judge(r)
}

// smelt notes another Smelt, whose question to rivals we heard.
func (t *rivals) smelt(from MAC, addr netip.Addr, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.get(rivalKey{from, addr}, false, now)
	if r == nil {
		return
	}
	r.Addr, r.Server, r.Last, r.Program = addr, addr, now, programSmelt
	r.Count++
	t.judge(r)
}

// get returns the rival of key, new if need be. It returns nil where there is
// no place: a flood of made-up servers neither grows the table nor pushes out
// what really answers.
func (t *rivals) get(key rivalKey, answered bool, now time.Time) *Rival {
	if r := t.known[key]; r != nil {
		return r
	}
	// A machine may have named it before it was heard.
	if r := t.known[rivalKey{server: key.server}]; r != nil {
		delete(t.known, rivalKey{server: key.server})
		r.MAC = key.mac
		t.known[key] = r
		return r
	}
	if len(t.known) >= maxRivals {
		t.expire(now)
	}
	if len(t.known) >= maxRivals {
		var oldest *Rival
		var at rivalKey
		for k, r := range t.known {
			if !r.answeredUs && !r.Expected && (oldest == nil || r.Last.Before(oldest.Last)) {
				oldest, at = r, k
			}
		}
		if oldest == nil || !answered {
			if t.flooded++; t.flooded == 1 {
				t.log.Warn("boot: more DHCP servers than any network has: somebody makes them up; switch on DHCP snooping on the switches",
					"interface", t.network.Interface, "servers", len(t.known))
			}
			return nil
		}
		delete(t.known, at)
	}
	r := &Rival{Network: t.network.Name, Interface: t.network.Interface, MAC: key.mac, First: now}
	t.known[key] = r
	return r
}

// From reports whether a machine fetches b from the address a.
func (b RivalBoot) From(a netip.Addr) bool {
	if u, err := url.Parse(b.File); err == nil && u.Host != "" {
		return u.Hostname() == a.String()
	}
	return b.Server == a.String()
}

// judge decides whether r does harm.
func (t *rivals) judge(r *Rival) {
	n := &t.network
	r.Expected = r.Server.IsValid() && slices.Contains(n.Servers, r.Server) || r.Addr.IsValid() && slices.Contains(n.Servers, r.Addr)
	elsewhere := slices.ContainsFunc(r.Boots, func(b RivalBoot) bool { return !b.From(n.Address.Addr()) })
	who := r.Server
	if !who.IsValid() {
		who = r.Addr
	}
	name := fmt.Sprintf("name it in site.yaml (networks: dhcpServers: [%s])", who)
	find := fmt.Sprintf("find %s in the address tables of the switches", r.MAC)
	r.Alarm, r.next = "", ""
	switch own := n.Address.Addr(); {
	case own.IsValid() && (r.Server == own || r.Addr == own):
		r.Alarm = "it answers under our own address " + own.String()
		r.next = find + ", and switch it off or give one of the two another address"
	case r.Expected && t.twin(r):
		r.Alarm = "it calls itself " + r.Server.String() + ", as the hall's own server at another hardware address does"
		r.next = find + ", and switch it off, unless it stands in for that server"
	case r.Expected:
	case r.Program == programSmelt:
		r.Alarm = "two Smelts answer the same machines"
		r.next = "stop one of them; if both are meant to be there, " + name
	case elsewhere:
		r.Alarm = "machines boot " + r.Gives() + " and do not reach Smelt"
		r.next = "switch it off, or stop it from answering machines that Smelt converts; if it must stay, " + name
	case len(n.Servers) > 0:
		r.Alarm = "it gives addresses, and is none of the hall's DHCP servers"
		r.next = "if it is one, " + name + "; else switch it off"
	case n.Mode == Authoritative || n.Mode == Relay:
		r.Alarm = "it gives addresses, and a machine takes whichever answer comes first"
		r.next = "switch it off; if it is the hall's own, " + name + " and set mode: proxy"
	}
	if !t.asking {
		t.announce(r)
	}
}

// twin reports whether the server that r says to be was heard from another
// machine first. A relay speaks for its server, and is none.
func (t *rivals) twin(r *Rival) bool {
	for _, o := range t.known {
		if o.Server == r.Server && r.Server.IsValid() && o.MAC != r.MAC && o.MAC != (MAC{}) && !o.Relay.IsValid() && !r.Relay.IsValid() && o.First.Before(r.First) {
			return true
		}
	}
	return false
}

// announce raises the alarm about r, unless it stands already.
func (t *rivals) announce(r *Rival) {
	if r.Alarm == r.told {
		return
	}
	if r.told == "" {
		t.log.Warn("boot: "+r.String()+": "+r.Alarm, "interface", t.network.Interface, "mac", r.MAC, "addr", r.Addr, "server", r.Server,
			"offered", r.Offered, "next", r.Next())
	}
	r.told = r.Alarm
	t.tell(r)
}

// ask begins a round of questions; settle ends it.
func (t *rivals) ask() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.asking = true
}

func (t *rivals) settle() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.asking = false
	for _, r := range t.known {
		t.announce(r)
	}
}

// expire forgets who was silent for long; mu is held.
func (t *rivals) expire(now time.Time) {
	for k, r := range t.known {
		if now.Sub(r.Last) < rivalSilence {
			continue
		}
		delete(t.known, k)
		r.Gone = true
		t.log.Info("boot: "+r.String()+" is not heard any more", "interface", t.network.Interface, "last", r.Last)
		if r.told != "" {
			t.tell(r)
		}
	}
	if len(t.known) < maxRivals/2 {
		t.flooded = 0
	}
}

// list returns who was heard of late, those that do harm first.
func (t *rivals) list(now time.Time) []Rival {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expire(now)
	out := make([]Rival, 0, len(t.known))
	for _, r := range t.known {
		out = append(out, r.copy())
	}
	slices.SortFunc(out, func(a, b Rival) int {
		if (a.Alarm == "") != (b.Alarm == "") {
			if a.Alarm != "" {
				return -1
			}
			return 1
		}
		if c := a.First.Compare(b.First); c != 0 {
			return c
		}
		return a.Server.Compare(b.Server)
	})
	return out
}

func (r *Rival) copy() Rival {
	c := *r
	c.Boots = slices.Clone(r.Boots)
	return c
}

// Rivals returns the other DHCP and ProxyDHCP servers that were heard of late
// on our networks, those that do harm first.
func (s *Server) Rivals() []Rival {
	var out []Rival
	for _, n := range s.networks {
		out = append(out, n.rivals.list(time.Now())...)
	}
	return out
}

// watchRivals makes a table for each network. What lies behind relays is not
// heard, and only named by machines.
func (s *Server) watchRivals(told func(Rival)) {
	for _, n := range s.networks {
		n.rivals = newRivals(n.Network, s.log, told)
	}
}
