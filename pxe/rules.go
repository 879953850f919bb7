package pxe

import (
	"errors"
	"fmt"
	"strings"
)

// OUI is the first half of a hardware address: who made the card.
type OUI [3]byte

func (o OUI) String() string { return fmt.Sprintf("%02x:%02x:%02x", o[0], o[1], o[2]) }

// Match names machines by one thing they say of themselves: exactly one of
// MAC, OUI and Vendor is set. All three are labels that anybody can copy: a
// rule keeps order on a network, it keeps nobody out who wants in.
type Match struct {
	MAC    MAC
	OUI    OUI
	Vendor string // of option 60; * stands for any text
	Name   string // what the site calls it, for the explanation; may be empty
}

func (m Match) String() string {
	s := ""
	switch {
	case m.MAC != (MAC{}):
		s = "MAC " + m.MAC.String()
	case m.OUI != (OUI{}):
		s = "OUI " + m.OUI.String()
	default:
		s = fmt.Sprintf("vendor class %q", m.Vendor)
	}
	if m.Name != "" {
		s += " of " + m.Name
	}
	return s
}

// Rules say whom a network answers. Without Allow that is everybody, with an
// Allow that is empty but not nil nobody; Deny wins.
type Rules struct {
	Allow, Deny []Match
}

// refuses returns why a machine is not answered, or "" when it is.
func (r *rules) refuses(mac MAC, vendor string) string {
	if m := r.deny.find(mac, vendor); m != nil {
		return "denied: " + m.String()
	}
	if r.allow != nil && r.allow.find(mac, vendor) == nil {
		return "not allowed: no rule of this network names it"
	}
	return ""
}

// refusesMAC is refuses where a machine does not say what it calls itself, as
// in HTTP.
func (r *rules) refusesMAC(mac MAC) string {
	if r.allow != nil && len(r.allow.vendors) > 0 {
		return (&rules{deny: r.deny}).refuses(mac, "")
	}
	return r.refuses(mac, "")
}

// rules are Rules in a form that is quick with a whole hall of addresses.
type rules struct{ allow, deny *matches }

type matches struct {
	macs    map[MAC]*Match
	ouis    map[OUI]*Match
	vendors []*Match
}

func newRules(r Rules) (rules, error) {
	allow, err := newMatches(r.Allow)
	if err != nil {
		return rules{}, fmt.Errorf("allow: %v", err)
	}
	deny, err := newMatches(r.Deny)
	if err != nil {
		return rules{}, fmt.Errorf("deny: %v", err)
	}
	return rules{allow, deny}, nil
}

func newMatches(list []Match) (*matches, error) {
	if list == nil {
		return nil, nil
	}
	out := &matches{macs: make(map[MAC]*Match), ouis: make(map[OUI]*Match)}
	for i := range list {
		m, n := &list[i], 0
		if m.MAC != (MAC{}) {
			out.macs[m.MAC] = m
			n++
		}
		if m.OUI != (OUI{}) {
			out.ouis[m.OUI] = m
			n++
		}
		if m.Vendor != "" {
			out.vendors = append(out.vendors, m)
			n++
		}
		if n != 1 {
			return nil, errors.New("a match names one of MAC, OUI and vendor class")
		}
	}
	return out, nil
}

func (l *matches) find(mac MAC, vendor string) *Match {
	if l == nil {
		return nil
	}
	if m := l.macs[mac]; m != nil {
		return m
	}
	if m := l.ouis[OUI(mac[:3])]; m != nil {
		return m
	}
	for _, m := range l.vendors {
		if wildcard(m.Vendor, vendor) {
			return m
		}
	}
	return nil
}

// wildcard reports whether s is pattern, in which * stands for any text.
func wildcard(pattern, s string) bool {
	parts := strings.Split(pattern, "*")
	first, parts := parts[0], parts[1:]
	if len(parts) == 0 {
		return s == pattern
	}
	s, ok := strings.CutPrefix(s, first)
	if !ok {
		return false
	}
	end := parts[len(parts)-1]
	for _, p := range parts[:len(parts)-1] {
		if _, s, ok = strings.Cut(s, p); !ok {
			return false
		}
	}
	return strings.HasSuffix(s, end)
}
