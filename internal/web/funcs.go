package web

import (
	"fmt"
	"html/template"
	"slices"
	"sort"
	"strings"
	"time"

	"smelt/internal/api"
	"smelt/inventory"
)

var funcs = template.FuncMap{
	"ago": ago, "lasts": lasts, "proof": proof, "size": size, "watts": inventory.Watts, "pct": pct, "stamp": stamp,
	"mark": mark, "kindOf": kindOf, "link": link, "foreign": inventory.Disk.Foreign, "lower": strings.ToLower,
	"history": history, "boots": boots, "evidence": evidence, "bar": bar, "short": short, "join": strings.Join,
	"high":  func(size int) float64 { return 0.9 * float64(size) },
	"id":    api.NewID, // of an action: a form sent twice acts once
	"rate":  func(b float64) string { return size(int64(b)) + "/s" },
	"title": func(s string) string { return strings.ToUpper(s[:1]) + s[1:] },
	"spec":  func(v api.NodeView) string { return describe(v.Node) },
}

// span says a length of time in its two largest units.
func span(d time.Duration) string {
	if d < 0 {
		d = -d
	}
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 24*time.Hour:
		return two(int(d.Hours()), "h", int(d.Minutes())%60, "min")
	}
	return two(int(d.Hours())/24, "d", int(d.Hours())%24, "h")
}

func two(a int, unitA string, b int, unitB string) string {
	if b == 0 || a >= 10 {
		return fmt.Sprintf("%d %s", a, unitA)
	}
	return fmt.Sprintf("%d %s %d %s", a, unitA, b, unitB)
}

// proof says which test follows a task.
func proof(word string) string {
	switch word {
	case "reinspect":
		return "the machine is inspected again"
	case "burnin":
		return "burn-in runs again"
	case "dhcp":
		return "it must ask for an address"
	}
	return "no test follows"
}

// ago is a time as people read it.
func ago(now, t time.Time) template.HTML {
	switch {
	case t.IsZero():
		return "never"
	case t.After(now):
		return clock(t, "in "+span(t.Sub(now)))
	}
	return clock(t, span(now.Sub(t))+" ago")
}

// lasts is how long something lasts by now.
func lasts(now, t time.Time) template.HTML { return clock(t, span(now.Sub(t))) }

// clock puts the exact time behind words, for machines and for whoever points
// at them. words are ours, so nothing needs escaping.
func clock(t time.Time, words string) template.HTML {
	return template.HTML(fmt.Sprintf(`<time datetime="%s" title="%s">%s</time>`, t.UTC().Format(time.RFC3339), t.UTC().Format("2006-01-02 15:04:05 UTC"), words))
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") }

func size(b int64) string {
	f := float64(b)
	for _, u := range []string{"B", "KiB", "MiB", "GiB"} {
		if f < 1024 {
			return trim(f) + " " + u
		}
		f /= 1024
	}
	return trim(f) + " TiB"
}

func trim(f float64) string {
	if f >= 10 {
		return fmt.Sprintf("%.0f", f)
	}
	return strings.TrimSuffix(fmt.Sprintf("%.1f", f), ".0")
}

func pct(part float64) int { return int(part*100 + 0.5) }

// bar is part of whole as 0 to 1.
func bar(part, whole float64) float64 {
	if whole <= 0 {
		return 0
	}
	return min(part/whole, 1)
}

// marks are how a state is told without colour: letters, and by kindOf a shape.
var marks = map[inventory.State]string{
	inventory.Expected: "Ex", inventory.Discovered: "Di", inventory.Inspected: "In", inventory.Approved: "Ap",
	inventory.Wiping: "Wi", inventory.Imaging: "Im", inventory.Starting: "St", inventory.BurningIn: "Bu",
	inventory.Joining: "Jo", inventory.InService: "OK", inventory.ReVerifying: "Rv", inventory.Leaving: "Lv",
	inventory.NeedsWork: "!", inventory.Retired: "Rt", inventory.Rejected: "Rj",
}

func mark(s inventory.State) string { return marks[s] }

// kindOf sorts the states into what they ask of people: the shape and the
// colour of their marks.
func kindOf(s inventory.State) string {
	switch s {
	case inventory.Discovered, inventory.Inspected:
		return "ask" // diamond: somebody must decide
	case inventory.NeedsWork:
		return "fix" // triangle: somebody must go there
	case inventory.InService:
		return "ok" // disc
	case inventory.Retired, inventory.Rejected, inventory.Expected:
		return "off" // ring
	}
	return "run" // square: the machines are at it
}

// link says what a card can do, what its slot can do, and what therefore works.
func link(g inventory.GPU) string {
	if g.LinkWidth() == 0 {
		return "unknown"
	}
	s := fmt.Sprintf("x%d", g.LinkWidth())
	card, port := g.Link.MaxWidth, 0
	if g.Port != nil {
		port = g.Port.Link.MaxWidth
	}
	if port > 0 && card > 0 && port != card {
		s += fmt.Sprintf(" (card x%d, slot x%d)", card, port)
	}
	if g.Link.CurrentSpeed > 0 {
		s += fmt.Sprintf(" at %g GT/s", g.Link.CurrentSpeed)
	}
	return s
}

func short(digest string) string {
	if len(digest) > 12 {
		return digest[:12]
	}
	return digest
}

// history is the events of a node as people read them: newest first, and
// without those that only repeat.
func history(events []inventory.Event) []inventory.Event {
	var out []inventory.Event
	for i := len(events) - 1; i >= 0 && len(out) < 60; i-- {
		out = append(out, events[i])
	}
	return out
}

// boots is what the boot service told a node, newest first.
func boots(events []api.BootEvent) []api.BootEvent {
	out := slices.Clone(events)
	slices.Reverse(out)
	return out
}

// evidence is the map of an event in a fixed order.
func evidence(m map[string]string) []string {
	var out []string
	for k, v := range m {
		if len(v) > 120 {
			v = v[:120] + "..."
		}
		out = append(out, k+": "+v)
	}
	sort.Strings(out)
	return out
}

// describe is a machine in one line.
func describe(n inventory.Node) string {
	h := n.Hardware
	if h == nil {
		return n.Spec.Class
	}
	var parts []string
	gpus, order := map[string]int{}, []string{}
	for _, g := range h.GPUs {
		m := g.Model
		if m == "" {
			m = "card " + g.Vendor + ":" + g.Device
		}
		if gpus[m]++; gpus[m] == 1 {
			order = append(order, m)
		}
	}
	for _, m := range order {
		parts = append(parts, fmt.Sprintf("%d x %s", gpus[m], m))
	}
	if h.CPU.Model != "" {
		parts = append(parts, h.CPU.Model)
	}
	if h.Memory.Total > 0 {
		parts = append(parts, size(h.Memory.Total)+" RAM")
	}
	return strings.Join(parts, " · ")
}
