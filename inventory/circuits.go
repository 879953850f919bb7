package inventory

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// circuitKinds are the levels of the power tree, from the utility down.
var circuitKinds = []string{"feed", "panel", "pdu", "bank", "outlet"}

// A CircuitFault is what is wrong with one circuit of a tree, or worth knowing.
type CircuitFault struct {
	Circuit int    // its place in the list
	Key     string // of site.yaml: amps, parent, ...
	Problem string
	Hint    string
}

// maxCircuit keeps sums of milliwatts far from the end of int64.
const maxCircuit = 1e10 // watts

// CheckCircuits says what is wrong with a power tree: nothing may be granted on
// one that is not sound.
func CheckCircuits(tree []Circuit) []CircuitFault {
	var out []CircuitFault
	at := make(map[string]int, len(tree))
	feeds := false
	for i, c := range tree {
		if _, twice := at[c.Name]; twice {
			out = append(out, CircuitFault{i, "name", fmt.Sprintf("circuit %q is there twice", c.Name), ""})
		}
		at[c.Name] = i
		feeds = feeds || c.Kind == "feed"
	}
	unsound := make([]bool, len(tree))
	for i, c := range tree {
		if key, problem, hint := rated(c); problem != "" {
			unsound[i] = true
			out = append(out, CircuitFault{i, key, problem, hint})
		}
	}
	for i, c := range tree {
		bad := func(key, hint, format string, args ...any) {
			out = append(out, CircuitFault{i, key, fmt.Sprintf(format, args...), hint})
		}
		if c.Parent == "" {
			if feeds && c.Kind != "feed" && !unsound[i] {
				bad("name", "add parent: the circuit that feeds it; its load is missing in the sums above it",
					"%s %s has no parent, and the tree has feeds", c.Kind, c.Name)
			}
			if c.Lines != "" {
				bad("lines", "remove it", "%s has no parent whose line %s could be", c.Name, c.Lines)
			}
			continue
		}
		j, ok := at[c.Parent]
		if !ok {
			bad("parent", "", "its parent %q does not exist", c.Parent)
			continue
		}
		if way := round(tree, at, i); way != "" {
			bad("parent", "give one of them another parent, or none", "circuits feed each other: %s", way)
			continue
		}
		if unsound[i] || unsound[j] {
			continue // what it says of itself is wrong: that comes first
		}
		if key, problem, hint := hangs(c, tree[j]); problem != "" {
			bad(key, hint, "%s", problem)
		}
	}
	if len(out) > 0 {
		return out
	}
	return overbooked(tree, at)
}

// overbooked finds circuits that carry nothing but what is reserved on those
// below them.
func overbooked(tree []Circuit, at map[string]int) (out []CircuitFault) {
	reserved := make(map[string]PerLine, len(tree))
	for _, c := range slices.Backward(ParentsFirst(tree)) {
		sum := reserved[c.Name]
		for i, mw := range c.Each(Milliwatts(c.Reserve)) {
			sum[i] += mw
		}
		if top := max(sum[0], sum[1], sum[2]); top >= c.Limit() {
			out = append(out, CircuitFault{at[c.Name], "reserve", fmt.Sprintf("reserve on %s and below it is %.0f W on a line, of %.0f W", c.Name, float64(top)/1000, float64(c.Limit())/1000),
				"reserve is in watts, on the line that has most of it"})
		}
		if c.Parent != "" {
			up := reserved[c.Parent]
			for i, mw := range c.Onto(tree[at[c.Parent]], sum) {
				up[i] += mw
			}
			reserved[c.Parent] = up
		}
	}
	return out
}

// rated checks what one circuit says of itself.
func rated(c Circuit) (key, problem, hint string) {
	switch {
	case c.Name == "":
		return "name", "it has no name", ""
	case !slices.Contains(circuitKinds, c.Kind):
		return "kind", fmt.Sprintf("kind %q: want one of %s", c.Kind, strings.Join(circuitKinds, ", ")), ""
	case !(c.Volts > 0): // NaN is not
		return "volts", fmt.Sprintf("volts is %v; it must be above 0", c.Volts), ""
	case !(c.Amps > 0):
		return "amps", fmt.Sprintf("amps is %v; it must be above 0", c.Amps), "write what stands on its breaker"
	case !(c.Derate > 0 && c.Derate <= 1):
		return "derate", fmt.Sprintf("derate %v is not above 0 and at most 1", c.Derate), "0.8 is usual for continuous load"
	case c.Phases != 1 && c.Phases != 3:
		return "phases", fmt.Sprintf("%d phases: want 1 or 3", c.Phases), ""
	case !(c.Volts*c.Amps < maxCircuit):
		return "amps", fmt.Sprintf("%v V and %v A are no rating", c.Volts, c.Amps), ""
	case !(c.Reserve >= 0):
		return "reserve", fmt.Sprintf("reserve is %v; it must not be below 0", c.Reserve), ""
	case !(c.Reserve < maxCircuit):
		return "reserve", fmt.Sprintf("reserve is %v", c.Reserve), "it is in watts"
	case c.Lines != "" && lineOf[c.Lines] == nil:
		return "lines", fmt.Sprintf("lines %q: want L1, L2, L3, L1-L2, L2-L3 or L3-L1", c.Lines), ""
	}
	return "", "", ""
}

// hangs checks c below its parent p.
func hangs(c, p Circuit) (key, problem, hint string) {
	if slices.Index(circuitKinds, c.Kind) < slices.Index(circuitKinds, p.Kind) {
		return "parent", fmt.Sprintf("%s %s is fed by a %s, %s", c.Kind, c.Name, p.Kind, p.Name), "from the top: " + strings.Join(circuitKinds, ", ")
	}
	if p.Phases == 1 {
		switch {
		case c.Phases == 3:
			return "phases", fmt.Sprintf("three phases below %s, which has one", p.Name), ""
		case c.Lines != "":
			return "lines", fmt.Sprintf("%s has one phase and no line %s", p.Name, c.Lines), "remove it"
		}
		return "", "", ""
	}
	on := lineOf[c.Lines]
	neutral := p.Volts / math.Sqrt(3)
	switch {
	case c.Phases == 3 && on != nil:
		return "lines", fmt.Sprintf("%s has three phases: it is on every line of %s", c.Name, p.Name), "remove it"
	case len(on) == 1 && !alike(c.Volts, neutral):
		return "lines", fmt.Sprintf("between %s and neutral of %s are %.0f V, %s has %v V", c.Lines, p.Name, neutral, c.Name, c.Volts),
			"volts of three phases are line to line; between two lines write L1-L2; behind a transformer leave lines out"
	case len(on) == 2 && !alike(c.Volts, p.Volts):
		return "lines", fmt.Sprintf("between the lines %s of %s are %v V, %s has %v V", c.Lines, p.Name, p.Volts, c.Name, c.Volts),
			"between a line and neutral write L1; behind a transformer leave lines out"
	}
	return "", "", ""
}

// round is the way from circuit i up and back to it, or "".
func round(tree []Circuit, at map[string]int, i int) string {
	way := []string{tree[i].Name}
	for c := tree[i]; c.Parent != "" && len(way) <= len(tree); {
		way = append(way, c.Parent)
		if c.Parent == tree[i].Name {
			return strings.Join(way, " <- ")
		}
		j, ok := at[c.Parent]
		if !ok {
			return ""
		}
		c = tree[j]
	}
	return ""
}

// CircuitHints says where a sound tree makes the sums larger than they need be.
func CircuitHints(tree []Circuit) []CircuitFault {
	phases := map[string]int{}
	for _, c := range tree {
		phases[c.Name] = c.Phases
	}
	var out []CircuitFault
	for i, c := range tree {
		if c.Phases == 1 && c.Lines == "" && phases[c.Parent] == 3 {
			out = append(out, CircuitFault{i, "name", fmt.Sprintf("%s is on a line of %s that is not named, so it counts in full on all three", c.Name, c.Parent),
				"add lines: L1, L2 or L3, or L1-L2, L2-L3 or L3-L1 between two"})
		}
	}
	return out
}

// ParentsFirst orders a sound tree so that each circuit stands after the one
// that feeds it, and otherwise as it was.
func ParentsFirst(tree []Circuit) []Circuit {
	out := make([]Circuit, 0, len(tree))
	done := map[string]bool{"": true}
	for before := -1; before < len(out) && len(out) < len(tree); {
		before = len(out)
		for _, c := range tree {
			if !done[c.Name] && done[c.Parent] {
				done[c.Name] = true
				out = append(out, c)
			}
		}
	}
	return out
}

// Path are the circuit of that name in a sound tree and those above it, up to
// the feed.
func Path(tree []Circuit, name string) []Circuit {
	at := make(map[string]int, len(tree))
	for i, c := range tree {
		at[c.Name] = i
	}
	var out []Circuit
	for i, ok := at[name]; ok && len(out) < len(tree); i, ok = at[tree[i].Parent] {
		out = append(out, tree[i])
	}
	return out
}

// TooSmall is the first circuit of a path that could not carry a machine of so
// many watts even alone.
func TooSmall(path []Circuit, watts float64) (Circuit, bool) {
	var load PerLine
	for i, c := range path {
		if i == 0 {
			load = c.Each(Milliwatts(watts))
		} else {
			load = path[i-1].Onto(c, load)
		}
		if max(load[0], load[1], load[2])+Milliwatts(c.Reserve) > c.Limit() {
			return c, true
		}
	}
	return Circuit{}, false
}
