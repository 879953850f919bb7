package pxe

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// respond decides on one DHCP message. It returns no answer when there is none
// to give; the event says why either way.
func (s *Server) respond(ctx context.Context, n *network, r *request, now time.Time) (*answer, Event) {
	e := Event{At: now, Machine: r.machine, Kind: r.asked()}
	no := func(format string, args ...any) (*answer, Event) {
		e.Answer, e.Why = "none", fmt.Sprintf(format, args...)
		return nil, e
	}
	mac := r.machine.MAC
	r.machine.Network, r.machine.Relay = n.Name, r.giaddr
	if n.gives() {
		r.machine.Addr = n.leases.lookup(mac, now)
	} else {
		r.machine.Addr = n.overhear(r)
	}
	e.Machine = r.machine
	if n.Mode == Observe {
		return no("this network is only observed")
	}
	if why := n.rules.refuses(mac, r.machine.Vendor); why != "" {
		s.recorder.stats.dropped.add(1, "dhcp", "denied")
		return no("%s", why)
	}
	r.machine.Starts = s.started(r, now)
	e.Machine = r.machine
	if n.Mode == Proxy || r.boot {
		return s.respondBoot(ctx, n, r, e)
	}

	switch r.kind {
	case dhcpv4.MessageTypeDecline:
		if !n.leases.decline(mac, r.want, now) {
			return no("declines %s, which is not its address", r.want)
		}
		s.log.Log(ctx, s.recorder.level(slog.LevelWarn, now), "boot: an address is in use by an unknown machine", "addr", r.want, "found by", mac, "interface", n.Interface)
		return no("%s is in use by somebody else: not given out for %s", r.want, quarantine)
	case dhcpv4.MessageTypeRelease:
		if r.server.IsValid() && r.server != r.serverID(n) {
			return no("gives back an address of another server")
		}
		if !n.leases.release(mac, r.ciaddr, now) {
			return no("gives back %s, which is not its address", r.ciaddr)
		}
		return no("gave back %s", r.ciaddr)
	case dhcpv4.MessageTypeDiscover, dhcpv4.MessageTypeRequest, dhcpv4.MessageTypeInform:
	default:
		return no("a server has no answer to this")
	}

	if r.kind == dhcpv4.MessageTypeRequest && r.server.IsValid() && r.server != r.serverID(n) {
		n.leases.withdraw(mac, now)
		return no("it chose the server %s", r.server)
	}
	if r.kind == dhcpv4.MessageTypeInform && !n.leases.subnet.Contains(r.ciaddr) {
		return no("informs from %s, which is not an address of this network", r.ciaddr)
	}

	decided, boot := s.decide(ctx, r)
	if decided.Action == Ignore {
		return no("to be ignored: %s", decided.Why)
	}

	switch r.kind {
	case dhcpv4.MessageTypeDiscover:
		a, err := s.offer(ctx, n, r, now)
		if err != nil {
			s.recorder.stats.dropped.add(1, "dhcp", "no address")
			return no("%v", err)
		}
		e.Machine.Addr = a
		msg, what := s.reply(n, r, decided, dhcpv4.MessageTypeOffer, a)
		e.Answer, e.Why = "offer "+a.String(), what+boot
		return &answer{msg: msg, to: destination(n, r, a)}, e
	case dhcpv4.MessageTypeInform:
		msg, what := s.reply(n, r, decided, dhcpv4.MessageTypeAck, netip.Addr{})
		e.Answer, e.Why = "ack", what+boot
		return &answer{msg: msg, to: destination(n, r, netip.Addr{})}, e
	}

	c := claim{mac: mac, addr: r.want, unicast: r.unicast}
	switch {
	case r.server.IsValid(): // SELECTING
		if !r.want.IsValid() {
			return no("accepts an offer but names no address (option 50)")
		}
	case r.want.IsValid() && !r.ciaddr.IsValid():
		c.reboot = true
	case r.ciaddr.IsValid():
		c.renew = true
		c.addr = r.ciaddr
	default:
		return no("asks for no address")
	}
	v, why, wait := n.leases.request(c, now, n.LeaseTime)
	switch v {
	case ack:
		e.Machine.Addr = c.addr
		msg, what := s.reply(n, r, decided, dhcpv4.MessageTypeAck, c.addr)
		e.Answer, e.Why = "ack "+c.addr.String(), why+", "+what+boot
		return &answer{msg: msg, to: destination(n, r, c.addr), durable: wait}, e
	case nak:
		e.Answer, e.Why = "nak", why
		return &answer{msg: refuse(n, r, why), to: refusal(n, r)}, e
	}
	return no("%s", why)
}

// decide asks what a boot client is to do, and returns that with a line for the
// record. The zero Boot is of plain clients, and of those not decided on: with
// a lease and a loader such a one reaches the script, which can show why it
// waits and ask again; without, it would fall through to whatever its firmware
// tries next.
func (s *Server) decide(ctx context.Context, r *request) (Boot, string) {
	if r.client == plain4 {
		return Boot{}, ""
	}
	b, err := s.ask(ctx, r.machine, askAddressTime)
	if err != nil {
		return Boot{}, fmt.Sprintf("; undecided (%v), the script will ask again", err)
	}
	return b, fmt.Sprintf("; %s: %s", b.Action, b.Why)
}

// offer chooses an address that nobody seems to use.
func (s *Server) offer(ctx context.Context, n *network, r *request, now time.Time) (netip.Addr, error) {
	for range 4 { // probes, each takes its time: the client repeats its question
		a, fresh, err := n.leases.offer(r.machine.MAC, r.want, now)
		if strangers, size, warn := n.leases.crowded(now); warn {
			s.log.Warn("boot: the pool fills with machines that the site does not know", "network", n.Name, "pool", n.Pool, "strangers", strangers, "of", size)
		}
		if err != nil || !fresh || n.prober == nil || r.giaddr.IsValid() {
			return a, err
		}
		by, used := n.prober.inUse(ctx, a)
		if !used || by == r.machine.MAC {
			return a, nil
		}
		n.leases.decline(r.machine.MAC, a, now)
		s.log.Log(ctx, s.recorder.level(slog.LevelWarn, now), "boot: an address of the pool is in use by an unknown machine", "addr", a, "by", by, "interface", n.Interface)
	}
	return netip.Addr{}, errors.New("the next addresses of the pool are all in use by unknown machines")
}
