package config

import (
	"fmt"
	"slices"
	"strings"

	"smelt/inventory"
)

// circuits reads the power tree. What it must hold to is said by
// inventory.CheckCircuits; here is where in the file.
func (p *parser) circuits(raw []rawCircuit) []string {
	where := map[string]int{}
	var names []string
	for _, r := range raw {
		p.word(r.Name)
		p.unique(where, r.Name.at, "circuit", r.Name.v)
		names = append(names, r.Name.v)
	}
	tree := make([]inventory.Circuit, len(raw))
	for i, r := range raw {
		p.refer(r.Parent, "circuit", names)
		c := inventory.Circuit{Name: r.Name.v, Parent: r.Parent.v, Kind: r.Kind.v, Volts: r.Volts.v, Amps: r.Amps.v, Phases: 1, Derate: 0.8,
			Lines: r.Lines.v, Reserve: r.Reserve.v}
		if r.Phases.set() {
			c.Phases = r.Phases.v
		}
		if r.Derate.set() {
			c.Derate = r.Derate.v
		}
		tree[i] = c
	}
	for _, f := range inventory.CheckCircuits(tree) {
		// What was said of a value already is not said twice.
		if a := raw[f.Circuit].key(f.Key); !slices.ContainsFunc(p.errs, func(e Error) bool { return e.Path == a.path }) {
			p.fail(a, f.Hint, "%s", f.Problem)
		}
	}
	if slices.ContainsFunc(p.errs, func(e Error) bool { return strings.HasPrefix(e.Path, "circuits") }) {
		return names
	}
	for _, f := range inventory.CircuitHints(tree) {
		p.hint(raw[f.Circuit].key(f.Key), f.Hint, "%s", f.Problem)
	}
	p.site.Circuits = inventory.ParentsFirst(tree)
	return names
}

// key is where a key of the circuit stands, or the circuit when it does not.
func (r rawCircuit) key(name string) at {
	k := map[string]at{"name": r.Name.at, "kind": r.Kind.at, "parent": r.Parent.at, "volts": r.Volts.at, "amps": r.Amps.at,
		"phases": r.Phases.at, "derate": r.Derate.at, "lines": r.Lines.at, "reserve": r.Reserve.at}[name]
	if !k.set() {
		return r.at
	}
	return k
}

// hint notes what is no mistake and worth knowing.
func (p *parser) hint(a at, hint, format string, args ...any) {
	p.site.Hints = append(p.site.Hints, Error{File: p.file, Line: a.line, Column: a.col, Path: a.path, Problem: fmt.Sprintf(format, args...), Hint: hint})
}

// fedTwice names the circuits that a machine with several supplies draws from and
// does not count on: it counts on one, and may draw all that it needs from each.
func (p *parser) fedTwice(r rawNode, n Node) {
	on := inventory.Path(p.site.Circuits, n.Circuit)
	if len(on) == 0 {
		return // that is said elsewhere
	}
	var told []string
	for _, w := range n.Power {
		for _, o := range w.Outlets {
			is := func(c inventory.Circuit) bool { return c.Name == o.PDU }
			if slices.Contains(told, o.PDU) || slices.ContainsFunc(on, is) || !slices.ContainsFunc(p.site.Circuits, is) {
				continue
			}
			told = append(told, o.PDU)
			p.hint(r.Circuit.at, fmt.Sprintf("add %.0f W to the reserve of circuit %s: when the other supply fails, this one carries all of it; or correct circuit", n.Watts, o.PDU),
				"node %s has an outlet on %s too, and counts on circuit %s alone", n.Name, o.PDU, n.Circuit)
		}
	}
}

// onCircuit checks that a node can be reserved for where it hangs.
func (p *parser) onCircuit(r rawNode, n Node, classed bool) {
	switch {
	case r.Circuit.v == "":
		if len(p.site.Circuits) > 0 {
			p.hint(r.at, "add circuit: the one its power supplies are plugged in",
				"node %s is on no circuit: what it draws is missing in every sum", n.Name)
		}
		return
	case classed && n.Watts == 0:
		p.fail(r.Circuit.at, "add watts to its class or to the node", "node %s hangs on circuit %s without a nameplate power: nothing could be reserved for it", n.Name, n.Circuit)
		return
	}
	if c, small := inventory.TooSmall(inventory.Path(p.site.Circuits, n.Circuit), n.Watts); small {
		p.fail(r.Circuit.at, "correct its watts or where it is plugged in", "node %s takes %v W, more than %s %s can carry for long (%.0f W on a line)",
			n.Name, n.Watts, c.Kind, c.Name, float64(c.Limit())/1000-c.Reserve)
	}
}
