package web

import (
	"io"

	"smelt/internal/api"
)

// A Network page shows the networks that machines boot on and who asks there.
type Network struct {
	Head
	Networks []api.NetworkView
	Filter   string // a verdict; "" shows all
	Verdicts []Verdict
	All      int
	Seen     []api.Sighting
	More     int // not shown
}

// Verdict is one verdict and how many machines have it.
type Verdict struct {
	Word string
	N    int
}

// Network draws the networks. seen comes with the machine heard last first.
func (p *Pages) Network(w io.Writer, h Head, networks []api.NetworkView, seen []api.Sighting, filter string) error {
	h.Title, h.Active = "Network", "network"
	n := Network{Head: h, Networks: networks, Filter: filter, All: len(seen)}
	count := map[string]int{}
	for _, s := range seen {
		count[s.Verdict]++
		switch {
		case filter != "" && s.Verdict != filter:
		case len(n.Seen) == seenShown:
			n.More++
		default:
			n.Seen = append(n.Seen, s)
		}
	}
	for _, word := range []string{api.SeenNode, api.SeenCandidate, api.SeenASIC, api.SeenUnknown} {
		if count[word] > 0 {
			n.Verdicts = append(n.Verdicts, Verdict{word, count[word]})
		}
	}
	return p.draw(w, "network", n)
}
