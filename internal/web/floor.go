package web

import (
	"io"
	"slices"
	"sort"
	"strings"

	"smelt/internal/api"
	"smelt/inventory"
)

// A Floor is the whole site by place.
type Floor struct {
	Head
	Filter string // a state word, "stuck" or "held"; "" shows all
	Find   string
	Counts []Count
	Stuck  []api.NodeView // oldest first
	Waits  []Wait
	Rows   []Row
	Shown  int
	Total  int
}

// Count is one state and its nodes.
type Count struct {
	State inventory.State
	N     int
}

// Wait is what some nodes wait for, and on whom.
type Wait struct {
	On    string
	For   string
	Nodes []api.NodeView
	Link  string // where whoever must act can act
}

// Row is the positions that share a beginning: a rack, a shelf, a cell.
type Row struct {
	Name  string
	Nodes []api.NodeView
}

// Floor draws the floor. views come with the longest stuck first.
func (p *Pages) Floor(w io.Writer, h Head, views []api.NodeView, filter, find string) error {
	h.Title, h.Active = "Floor", "floor"
	f := Floor{Head: h, Filter: filter, Find: find, Total: len(views)}
	for _, st := range inventory.States() {
		if n := h.Site.Counts[st.String()]; n > 0 {
			f.Counts = append(f.Counts, Count{st, n})
		}
	}
	waits := map[string]*Wait{}
	for _, v := range views {
		if v.Stuck && len(f.Stuck) < 8 {
			f.Stuck = append(f.Stuck, v)
		}
		if v.WaitsOn == "operator" || v.WaitsOn == "technician" {
			k := v.WaitsOn + " " + v.WaitsFor
			if waits[k] == nil {
				waits[k] = &Wait{On: v.WaitsOn, For: v.WaitsFor, Link: "/tasks"}
				if v.WaitsOn == "operator" {
					waits[k].Link = "/queue"
				}
				switch {
				case v.Node.Hold != nil:
					waits[k].Link = "/?show=held"
				case v.Node.State == inventory.Expected:
					waits[k].Link = "/?show=expected"
				}
			}
			waits[k].Nodes = append(waits[k].Nodes, v)
		}
	}
	for _, x := range waits {
		f.Waits = append(f.Waits, *x)
	}
	sort.Slice(f.Waits, func(i, j int) bool {
		a, b := f.Waits[i], f.Waits[j]
		if len(a.Nodes) != len(b.Nodes) {
			return len(a.Nodes) > len(b.Nodes)
		}
		return a.On+a.For < b.On+b.For
	})
	shown := views
	if filter != "" || find != "" {
		shown = slices.DeleteFunc(slices.Clone(views), func(v api.NodeView) bool { return !matches(v, filter, find) })
	}
	f.Total = len(shown)
	for _, r := range rows(shown) {
		if f.Shown == cellsShown {
			break
		}
		r.Nodes = r.sorted()
		r.Nodes = r.Nodes[:min(len(r.Nodes), cellsShown-f.Shown)]
		f.Shown += len(r.Nodes)
		f.Rows = append(f.Rows, r)
	}
	return p.draw(w, "floor", f)
}

func matches(v api.NodeView, filter, find string) bool {
	n := v.Node
	switch filter {
	case "":
	case "stuck":
		if !v.Stuck {
			return false
		}
	case "held":
		if n.Hold == nil {
			return false
		}
	default:
		if n.State.String() != filter {
			return false
		}
	}
	if find == "" {
		return true
	}
	text := string(n.ID) + " " + string(n.Spec.Position) + " " + n.Spec.Class + " " + n.Spec.Serial
	for _, m := range n.MACs {
		text += " " + m.String()
	}
	return strings.Contains(strings.ToLower(text), strings.ToLower(find))
}

// rows groups nodes by their position up to the last dash: A1-U10 stands in
// row A1. Nodes without a position come last.
func rows(views []api.NodeView) []Row {
	byRow := map[string][]api.NodeView{}
	for _, v := range views {
		pos := string(v.Node.Spec.Position)
		row := pos
		if i := strings.LastIndex(pos, "-"); i > 0 {
			row = pos[:i]
		}
		byRow[row] = append(byRow[row], v)
	}
	var out []Row
	for name, nodes := range byRow {
		out = append(out, Row{name, nodes})
	}
	sort.Slice(out, func(i, j int) bool {
		if (out[i].Name == "") != (out[j].Name == "") {
			return out[j].Name == ""
		}
		return natural(out[i].Name, out[j].Name)
	})
	return out
}

// sorted is the nodes of a row in the order of their positions. Only the rows
// that are shown are sorted.
func (r Row) sorted() []api.NodeView {
	nodes := r.Nodes
	sort.SliceStable(nodes, func(i, j int) bool {
		a, b := nodes[i].Node, nodes[j].Node
		if a.Spec.Position != b.Spec.Position {
			return natural(string(a.Spec.Position), string(b.Spec.Position))
		}
		return a.ID < b.ID
	})
	return nodes
}

// natural orders U9 before U10.
func natural(a, b string) bool {
	for a != "" && b != "" {
		da, db := digits(a), digits(b)
		if da > 0 && db > 0 {
			na, nb := strings.TrimLeft(a[:da], "0"), strings.TrimLeft(b[:db], "0")
			if len(na) != len(nb) {
				return len(na) < len(nb)
			}
			if na != nb {
				return na < nb
			}
			a, b = a[da:], b[db:]
			continue
		}
		if a[0] != b[0] {
			return a[0] < b[0]
		}
		a, b = a[1:], b[1:]
	}
	return len(a) < len(b)
}

func digits(s string) int {
	i := 0
	for i < len(s) && s[i] >= '0' && s[i] <= '9' {
		i++
	}
	return i
}

// All is how many nodes the site has.
func (f Floor) All() int {
	sum := 0
	for _, c := range f.Counts {
		sum += c.N
	}
	return sum
}
