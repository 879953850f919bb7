package web

import (
	"io"
	"math"

	"smelt/internal/api"
	"smelt/inventory"
)

// A Power page shows the power tree, what was decided about it, and the
// machines that gave way.
type Power struct {
	Head
	View  api.PowerView
	Can   api.CanGive // everything that could be given back within ten minutes
	Tree  []Branch
	Shed  []api.MachinePower
	Lying []api.MachinePower // whose readings are not believed
	More  int                // machines not shown
	On    int
	Blind int // on, and not measured
}

// A Branch is one circuit with its bars, in percent of its rating.
type Branch struct {
	api.Level
	Depth                       int
	Granted                     int
	Measured                    int
	Limit                       int
	GrantedW, MeasuredW, LimitW float64
	Machines                    int // that hang on it directly
}

// Power draws the power of the site.
func (p *Pages) Power(w io.Writer, h Head, v api.PowerView, can api.CanGive) error {
	h.Title, h.Active = "Power", "power"
	page := Power{Head: h, View: v, Can: can, Tree: tree(v.Levels)}
	direct := map[string]int{}
	for _, m := range v.Machines {
		direct[m.Circuit]++
		if m.On == "on" {
			page.On++
			if m.WattsAt.IsZero() || h.Now.Sub(m.WattsAt).Minutes() > 1 {
				page.Blind++
			}
		}
		switch {
		case len(m.Shed) > 0 && len(page.Shed) < shedShown:
			page.Shed = append(page.Shed, m)
		case len(m.Shed) > 0:
			page.More++
		}
		if m.Lie != "" && len(page.Lying) < shedShown {
			page.Lying = append(page.Lying, m)
		}
	}
	for i := range page.Tree {
		page.Tree[i].Machines = direct[page.Tree[i].Name]
	}
	return p.draw(w, "power", page)
}

// tree puts every circuit right after the one that feeds it. Levels come with
// parents first.
func tree(levels []api.Level) []Branch {
	below := map[string][]api.Level{}
	for _, l := range levels {
		below[l.Parent] = append(below[l.Parent], l)
	}
	var out []Branch
	var walk func(parent string, depth int)
	walk = func(parent string, depth int) {
		for _, l := range below[parent] {
			rating := l.Limit
			if l.Derate > 0 {
				rating = l.Limit / l.Derate
			}
			out = append(out, Branch{Level: l, Depth: min(depth, 4), Granted: share(l.Granted, rating), Measured: share(l.Measured, rating),
				Limit: share(l.Limit, rating), GrantedW: l.Granted, MeasuredW: l.Measured, LimitW: l.Limit})
			if l.Name != "" {
				walk(l.Name, depth+1)
			}
		}
	}
	walk("", 0)
	return out
}

// share is part of whole in percent, drawn at most to the end of the bar.
func share(part, whole float64) int {
	if !(whole > 0) || !(part > 0) {
		return 0
	}
	return int(math.Round(min(100, 100*part/whole)))
}

// Gave tells what share of a curtailment is given, 0 to 1.
func (p Power) Gave() float64 {
	c := p.View.Curtail
	if c == nil || !(c.Watts > 0) {
		return 0
	}
	return min(1, c.Given()/c.Watts)
}

// Dark is the blackout that waits for a person, or nil.
func (p Power) Dark() *inventory.Blackout {
	if b := p.View.Blackout; b != nil && b.Released.IsZero() {
		return b
	}
	return nil
}

// Returning is the blackout that machines come back from, or nil.
func (p Power) Returning() *inventory.Blackout {
	if b := p.View.Blackout; b != nil && !b.Released.IsZero() && !b.Past(p.Now) {
		return b
	}
	return nil
}

const shedShown = 40
