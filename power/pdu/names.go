package pdu

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"smelt/power"
)

// checkNames holds the outlets' names on the PDU against their nodes, once for
// each outlet until the PDU restarts or is replaced: the wrong outlet is the
// wrong machine. It returns notes for outlets that nobody named.
func (s *session) checkNames(outlets []Outlet) (notes []string, err error) {
	if s.unit.cfg.Names == "ignore" {
		return nil, nil
	}
	var look []Outlet
	var oids []string
	for _, o := range outlets {
		if _, done := s.unit.names[o.Number]; done || o.Node == "" {
			continue
		}
		if !s.model.Label.set() {
			notes = append(notes, fmt.Sprintf("%s: where a %s keeps outlet names is not known, so the name was not checked", o, s.model.Name))
			s.unit.names[o.Number] = ""
			continue
		}
		oid, err := s.model.Label.at(o.Number)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", o, err)
		}
		look, oids = append(look, o), append(oids, oid)
	}
	if len(look) == 0 {
		return notes, nil
	}
	values, err := s.get(oids...)
	if err != nil {
		return nil, fmt.Errorf("names of outlets: %w", err)
	}
	for i, o := range look {
		name := text(values[i])
		note, err := s.unit.named(o, name)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", o, err)
		}
		if note != "" {
			notes = append(notes, o.String()+": "+note)
		}
		s.unit.names[o.Number] = name
	}
	return notes, nil
}

// named decides about one name.
func (u *Unit) named(o Outlet, name string) (note string, err error) {
	if hasWord(name, o.Node) || o.Place != "" && hasWord(name, o.Place) {
		return "", nil
	}
	for _, other := range u.cfg.Nodes {
		if other != o.Node && hasWord(name, other) {
			return "", fmt.Errorf("%w: the PDU calls it %q, and that is node %s, not %s: correct the outlet's number in the site file or its name on the PDU", power.ErrMismatch, name, other, o.Node)
		}
	}
	if unnamed(name) {
		return fmt.Sprintf("the PDU calls it %q, so nothing confirms that it feeds %s", name, o.Node), nil
	}
	return "", fmt.Errorf("%w: the PDU calls it %q, not %s: wrong outlet, or an old name; correct it on the PDU, or set names: ignore for this PDU", power.ErrMismatch, name, o.Node)
}

// factory is how vendors name outlets: "Outlet 3", "OUTLET3", "Master_Outlet_3",
// "TowerA_InfeedB_Outlet3", "Outlet A3", "3".
var factory = regexp.MustCompile(`(?i)^(?:(?:master|linked|tower|infeed|cord|unit|link|bank|branch)[ _.-]*[a-z0-9]?[ _.-]+)*(?:(?:outlet|receptacle|socket|plug|out|rcp)[ _#.-]*[a-z]{0,2}[ _.-]*)?[0-9]*$`)

// unnamed tells a name that no person gave.
func unnamed(name string) bool { return factory.MatchString(name) }

// hasWord tells whether name has word in it, so that rig-1 is in "rig-1 left"
// and not in "rig-10". Some PDUs take no dash, others put _ between words.
func hasWord(name, word string) bool {
	if word == "" {
		return false
	}
	name, word = strings.ToLower(name), strings.ToLower(word)
	in := func(name string) bool {
		return slices.Contains(strings.FieldsFunc(name, func(r rune) bool {
			return !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '.')
		}), word)
	}
	return in(name) || in(strings.ReplaceAll(name, "_", "-"))
}
