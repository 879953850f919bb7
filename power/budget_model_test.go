package power_test

import (
	"fmt"
	"math"
	"math/cmplx"

	"pgregory.net/rapid"

	"smelt/inventory"
)

// A physical model of a hall, to hold the budget against: currents add as
// phasors here, which the budget does not do, and every load that the budget
// does not know the line of is on one that was drawn by lot.

// flows are the phasors of what flows on the lines of a circuit, in watts at the
// voltage of one line.
type flows [3]complex128

var turn = cmplx.Rect(1, -2*math.Pi/3) // from one line to the next

// onLine is a load between line i and neutral.
func onLine(i int, w float64) (f flows) {
	f[i] = complex(w, 0) * cmplx.Pow(turn, complex(float64(i), 0))
	return f
}

// between is a load between line i and the next: the current w/U flows along the
// voltage between them, and back on the other line.
func between(i int, w float64) (f flows) {
	v := cmplx.Pow(turn, complex(float64(i), 0)) - cmplx.Pow(turn, complex(float64(i+1), 0))
	v /= complex(cmplx.Abs(v), 0)
	f[i], f[(i+1)%3] = complex(w/math.Sqrt(3), 0)*v, -complex(w/math.Sqrt(3), 0)*v
	return f
}

// A site is a power tree and where its unnamed lines really are.
type site struct {
	tree   []inventory.Circuit
	parent []int
	lot    []int // 0 to 5: L1, L2, L3, L1-L2, L2-L3, L3-L1; for a transformer: even is wye to wye
}

// place puts w watts on c by lot.
func (s site) place(c inventory.Circuit, lot int, w float64) flows {
	switch {
	case c.Phases == 1:
		return flows{complex(w, 0)}
	case lot < 3:
		return onLine(lot, w)
	}
	return between(lot-3, w)
}

// up is what f, flowing through circuit i, puts on its parent.
func (s site) up(i int, f flows) flows {
	c, p := s.tree[i], s.tree[s.parent[i]]
	switch {
	case p.Phases == 1 && c.Volts < 0.8*p.Volts && s.lot[i] < 3: // one leg of it: the same amperes
		return flows{f[0] * complex(p.Volts/c.Volts, 0)}
	case p.Phases == 1:
		return f
	case c.Phases == 3 && (c.Volts > 0.8*p.Volts || s.lot[i]%2 == 0):
		return f
	case c.Phases == 3: // delta to wye
		r := complex(1/math.Sqrt(3), 0)
		return flows{(f[0] - f[2]) * r, (f[1] - f[0]) * r, (f[2] - f[1]) * r}
	}
	lot := s.lot[i]
	for n, name := range []string{"L1", "L2", "L3", "L1-L2", "L2-L3", "L3-L1"} {
		if c.Lines == name {
			lot = n
		}
	}
	// What is drawn in phase on one circuit stays so.
	return s.place(p, lot, cmplx.Abs(f[0]))
}

// sum is what flows where, given what flows into each circuit directly.
func (s site) sum(direct []flows) []flows {
	out := append([]flows(nil), direct...)
	for i := len(s.tree) - 1; i > 0; i-- {
		if s.parent[i] >= 0 {
			for l, x := range s.up(i, out[i]) {
				out[s.parent[i]][l] += x
			}
		}
	}
	return out
}

// over names a circuit on which f is above so much of its rating.
func (s site) over(f []flows, share func(inventory.Circuit) float64) (string, bool) {
	for i, c := range s.tree {
		for l, x := range f[i] {
			if w, most := cmplx.Abs(x), float64(c.Rating())/1000*share(c); w > most+1e-3 {
				return fmt.Sprintf("%s: %.3f W flow on L%d, %.3f may", c.Name, w, l+1, most), true
			}
		}
	}
	return "", false
}

func derated(c inventory.Circuit) float64 { return c.Derate }

// anySite draws a power tree: feeds of one or three phases, circuits on lines,
// between lines, on lines that are not named, behind transformers and on one leg.
func anySite(t *rapid.T) site {
	kinds := []string{"feed", "panel", "pdu", "bank", "outlet"}
	var s site
	for i := range rapid.IntRange(1, 7).Draw(t, "circuits") {
		c := inventory.Circuit{Name: fmt.Sprint("c", i), Kind: "feed", Volts: 400, Phases: 3, Derate: rapid.SampledFrom([]float64{0.8, 0.8, 0.4, 1}).Draw(t, "derate"),
			Amps: rapid.SampledFrom([]float64{6, 10, 16, 16.5, 32, 63}).Draw(t, "amps")}
		parent := -1
		if i == 0 && rapid.Bool().Draw(t, "one phase") {
			c.Phases, c.Volts = 1, rapid.SampledFrom([]float64{230, 240}).Draw(t, "volts")
		}
		if i > 0 {
			parent = rapid.IntRange(0, i-1).Draw(t, "parent")
			p := s.tree[parent]
			c.Parent, c.Kind = p.Name, p.Kind
			for n, k := range kinds {
				if k == p.Kind {
					c.Kind = kinds[min(n+1, 4)]
				}
			}
			switch how := rapid.IntRange(0, 6).Draw(t, "how"); {
			case p.Phases == 1:
				c.Phases, c.Volts = 1, p.Volts
				if how == 0 {
					c.Volts /= 2
				}
			case how == 0: // three phases again
				c.Volts = p.Volts
			case how == 1: // behind a transformer
				c.Volts = p.Volts / 2
			case how < 4:
				c.Phases, c.Volts = 1, p.Volts/math.Sqrt(3)
				c.Lines = rapid.SampledFrom([]string{"L1", "L2", "L3"}).Draw(t, "line")
			case how < 6:
				c.Phases, c.Volts = 1, p.Volts
				c.Lines = rapid.SampledFrom([]string{"L1-L2", "L2-L3", "L3-L1"}).Draw(t, "lines")
			default:
				c.Phases, c.Volts = 1, p.Volts/math.Sqrt(3)
			}
		}
		if rapid.IntRange(0, 3).Draw(t, "reserve") == 0 {
			c.Reserve = 20
		}
		s.tree, s.parent, s.lot = append(s.tree, c), append(s.parent, parent), append(s.lot, rapid.IntRange(0, 5).Draw(t, "lot"))
	}
	return s
}
