package pxe

import (
	"container/list"
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// Event is one decision about one machine, for people: what it asked, what it
// was told, and why.
type Event struct {
	At      time.Time
	Machine Machine
	Kind    string // dhcp discover, dhcp request, ..., dhcp6 solicit, ..., tftp NAME, file NAME, script, orders
	Answer  string
	Why     string
	Times   int       // in a row, when it asked the same and got the same; At is the last of them
	Since   time.Time // the first of them
}

// Asked is what the machine did, in words for people.
func (e Event) Asked() string {
	kind, rest, _ := strings.Cut(e.Kind, " ")
	as := map[string]string{
		"bios": "its BIOS ", "uefi-pxe": "its UEFI firmware (PXE) ", "uefi-http": "its UEFI firmware (HTTP boot) ",
		"arm64": "its arm64 firmware ", "ipxe": "iPXE ", "other": "its firmware ",
	}[e.Machine.Firmware()]
	if as == "" {
		as = "its system "
	}
	switch kind {
	case "dhcp":
		return as + map[string]string{
			"discover": "looked for a DHCP server", "request": "asked for an address", "inform": "asked for settings",
			"decline": "found its address in use", "release": "gave its address back",
		}[rest]
	case "dhcp6":
		return as + map[string]string{
			"solicit": "looked for a DHCPv6 server", "request": "asked for an IPv6 address", "confirm": "asked whether its IPv6 address is right here",
			"renew": "asked to keep its IPv6 address", "rebind": "asked to keep its IPv6 address", "information-request": "asked for IPv6 settings",
			"decline": "found its IPv6 address in use", "release": "gave its IPv6 address back",
		}[rest]
	case "tftp":
		return "it fetched " + rest + " by TFTP"
	case "file":
		return "it fetched " + rest + " by HTTP"
	case "script":
		return "iPXE asked for its script"
	case "grub":
		return "GRUB asked what to do"
	case "orders":
		return "its RAM system asked for its orders"
	}
	return e.Kind
}

// Firmware names what asks: bios, uefi-pxe, uefi-http, arm64, ipxe, other, or
// "" for a system that does not boot.
func (m Machine) Firmware() string {
	switch {
	case m.Stage == 0:
		return ""
	case m.IPXE:
		return "ipxe"
	}
	switch m.Arch {
	case BIOS:
		return "bios"
	case UEFIx64, UEFIx64v9:
		return "uefi-pxe"
	case HTTPx64:
		return "uefi-http"
	case ARM64, HTTPARM64:
		return "arm64"
	}
	return "other"
}

const (
	recentEvents   = 20          // kept for each machine
	recentMachines = 8192        // kept in all: MACs cost an attacker nothing
	passing        = time.Minute // a machine that came back after this is no made-up MAC of a flood
)

// recorder keeps the last events of each machine and passes each on to an
// observer that can never hold up an answer.
type recorder struct {
	log     *slog.Logger
	observe func(Event)
	queue   chan Event
	stats   stats
	loud    *throttle // of the lines about boots

	mu   sync.Mutex
	byID map[MAC]*list.Element // of *history
	once list.List             // heard of during one exchange only; front: last
	back list.List             // came back; front: last
}

type history struct {
	mac    MAC
	events []Event // oldest first
	seen   Sighting
	back   bool // in recorder.back

	asked    time.Time // its first DISCOVER of this boot
	discover time.Time // its last
	ipxe     bool      // which iPXE sent
	firmware string    // that sent the first; "" once the boot came to an answer
}

func newRecorder(log *slog.Logger, observe func(Event)) *recorder {
	return &recorder{log: log, observe: observe, queue: make(chan Event, 1024), loud: newThrottle(rate{100, 5000}, 1), byID: make(map[MAC]*list.Element)}
}

// record logs e, keeps it, and hands it to the observer unless that one lags.
func (r *recorder) record(e Event) {
	level := slog.LevelDebug // an ordinary lease of an ordinary system
	if e.Machine.Stage != 0 {
		level = r.level(slog.LevelInfo, e.At)
	}
	r.log.Log(context.Background(), level, "boot: "+e.Kind, "mac", e.Machine.MAC, "addr", e.Machine.Addr, "arch", uint16(e.Machine.Arch),
		"ipxe", e.Machine.IPXE, "answer", e.Answer, "why", e.Why)

	r.count(e)
	r.mu.Lock()
	h := r.history(e)
	h.seen.add(e)
	r.boot(h, e)
	e.Times, e.Since = 1, e.At
	if n := len(h.events); n > 0 && h.events[n-1].same(e) {
		// One that waits asks every few seconds for hours: its history stays.
		e.Times, e.Since = h.events[n-1].Times+1, h.events[n-1].Since
		h.events = h.events[:n-1]
	}
	if len(h.events) == recentEvents {
		copy(h.events, h.events[1:])
		h.events = h.events[:recentEvents-1]
	}
	h.events = append(h.events, e)
	r.mu.Unlock()

	if r.observe != nil {
		select {
		case r.queue <- e:
		default: // the observer lags; Recent still has the event
		}
	}
}

// level is l while there are not too many lines: whoever makes up machines does
// not fill the disk.
func (r *recorder) level(l slog.Level, now time.Time) slog.Level {
	if !allow(r.loud, 0, now) {
		return slog.LevelDebug
	}
	return l
}

// history finds or makes the history of the machine of e. When there are too
// many, the quietest of those that never came back is forgotten first: a flood
// of made-up MACs pushes out itself.
func (r *recorder) history(e Event) *history {
	el, ok := r.byID[e.Machine.MAC]
	if !ok {
		h := &history{mac: e.Machine.MAC}
		r.byID[h.mac] = r.once.PushFront(h)
		if len(r.byID) > recentMachines {
			l := &r.once
			if l.Len() < recentMachines/8 { // a hall that is really that large: newcomers have a place too
				l = &r.back
			}
			delete(r.byID, l.Remove(l.Back()).(*history).mac)
		}
		return h
	}
	h := el.Value.(*history)
	switch {
	case h.back:
		r.back.MoveToFront(el)
	case e.At.Sub(h.seen.First) > passing:
		h.back = true
		r.once.Remove(el)
		r.byID[h.mac] = r.back.PushFront(h)
	default:
		r.once.MoveToFront(el)
	}
	return h
}

// count counts what was heard and what was answered.
func (r *recorder) count(e Event) {
	kind, rest, _ := strings.Cut(e.Kind, " ")
	answer, _, _ := strings.Cut(e.Answer, " ")
	if strings.Contains(rest, "unknown") {
		rest = "other" // a number that a machine made up makes no label
	}
	switch kind {
	case "dhcp":
		r.stats.dhcp.add(1, e.Machine.Network, rest)
		if answer == "offer" || answer == "ack" || answer == "nak" {
			r.stats.dhcp.add(1, e.Machine.Network, answer)
		}
	case "dhcp6":
		r.stats.dhcp.add(1, e.Machine.Network, rest+"6")
		if answer == "advertise" || answer == "reply" {
			r.stats.dhcp.add(1, e.Machine.Network, answer+"6")
		}
	case "script", "orders", "grub":
		r.stats.scripts.add(1, e.Answer)
	}
}

// same tells whether e and o differ in their time only.
func (e Event) same(o Event) bool {
	return e.Machine == o.Machine && e.Kind == o.Kind && e.Answer == o.Answer && e.Why == o.Why
}

func (r *recorder) recent(mac MAC) []Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	el, ok := r.byID[mac]
	if !ok {
		return nil
	}
	return append([]Event(nil), el.Value.(*history).events...)
}

// run feeds the observer until ctx ends.
func (r *recorder) run(ctx context.Context) error {
	if r.observe == nil {
		return nil
	}
	for {
		select {
		case e := <-r.queue:
			r.observe(e)
		case <-ctx.Done():
			return nil
		}
	}
}
