package pxe

import (
	"slices"
	"strings"
	"time"
)

// A Sighting is a machine that was heard, whether it boots or not and whether
// it was answered or not. All of it is what packets say: labels, no proof.
type Sighting struct {
	Machine Machine // what it last said of itself; what it left out this time stays
	Boots   bool    // its firmware asked to boot from the network
	First   time.Time
	Last    time.Time
	Asks    int
	Got     string // the last answer
	Why     string
}

func (s *Sighting) add(e Event) {
	if s.First.IsZero() {
		s.First = e.At
	}
	s.Last = e.At
	kind, _, _ := strings.Cut(e.Kind, " ")
	if kind == "tftp" || kind == "file" {
		return // they follow from an answer, and say nothing of who asked
	}
	s.Asks++
	s.Got, s.Why = e.Answer, e.Why
	was := s.Machine
	s.Machine = e.Machine
	m := &s.Machine
	if m.Stage == 0 || m.IPXE {
		// The system that runs, and iPXE, do not say what the firmware is.
		m.Arch = was.Arch
		if !s.Boots {
			m.Arch = e.Machine.Arch
		}
	}
	s.Boots = s.Boots || m.Stage != 0
	for _, f := range []struct{ now, before *string }{
		{&m.Network, &was.Network}, {&m.UUID, &was.UUID}, {&m.Serial, &was.Serial}, {&m.Vendor, &was.Vendor},
		{&m.Hostname, &was.Hostname}, {&m.Circuit, &was.Circuit}, {&m.Remote, &was.Remote},
	} {
		if *f.now == "" {
			*f.now = *f.before
		}
	}
	if !m.Addr.IsValid() {
		m.Addr = was.Addr
	}
	if !m.Relay.IsValid() && kind != "dhcp" {
		m.Relay = was.Relay // only a DHCP message says whether a relay is between
	}
}

// Heard returns how many machines are remembered of each network.
func (s *Server) Heard() map[string]int {
	r := s.recorder
	r.mu.Lock()
	defer r.mu.Unlock()
	out := map[string]int{}
	for mac, el := range r.byID {
		if mac != (MAC{}) {
			out[el.Value.(*history).seen.Machine.Network]++
		}
	}
	return out
}

// Sightings returns every machine that is remembered, the one heard last first.
func (s *Server) Sightings() []Sighting {
	r := s.recorder
	r.mu.Lock()
	out := make([]Sighting, 0, len(r.byID))
	for mac, el := range r.byID {
		if mac != (MAC{}) {
			out = append(out, el.Value.(*history).seen)
		}
	}
	r.mu.Unlock()
	slices.SortFunc(out, func(a, b Sighting) int { return b.Last.Compare(a.Last) })
	return out
}
