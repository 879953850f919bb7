package main

import (
	"context"
	"math"
	"slices"
	"strconv"
	"strings"

	"smelt/internal/config"
	"smelt/internal/convert"
	"smelt/inventory"
	"smelt/power/pdu"
)

// meters are the PDUs as the conductor reads them: what flows in, and at which
// outlets. The circuits of a PDU are the one that has its name, and the banks
// below that in the order of site.yaml.
func meters(site *config.Site, units map[string]*pdu.Unit) []convert.PDU {
	var out []convert.PDU
	for _, p := range site.PDUs {
		u, parts := units[p.Name], circuitsOf(site, p.Name)
		m := convert.PDU{Name: p.Name, Feeds: map[int]inventory.NodeID{},
			Outlets: func(ctx context.Context) (map[int]float64, error) {
				list, err := u.Outlets(ctx)
				watts := map[int]float64{}
				for _, o := range list {
					watts[o.Number] = o.Watts
				}
				return watts, err
			}}
		if parts.whole != nil {
			m.Circuits = func(ctx context.Context) ([]convert.CircuitReading, error) {
				list, err := u.Meters(ctx)
				return parts.readings(list), err
			}
		}
		for _, n := range site.Nodes {
			for _, w := range n.Power {
				for _, o := range w.Outlets {
					if o.PDU == p.Name {
						m.Feeds[o.Outlet] = n.Name
					}
				}
			}
		}
		out = append(out, m)
	}
	return out
}

// pduCircuits are the circuits that the meters of one PDU are about.
type pduCircuits struct {
	whole *inventory.Circuit // nil: site.yaml has no circuit of that name
	banks []inventory.Circuit
}

func circuitsOf(site *config.Site, name string) (p pduCircuits) {
	for _, c := range site.Circuits {
		switch {
		case c.Name == name:
			p.whole = &c
		case c.Parent == name && c.Kind == "bank":
			p.banks = append(p.banks, c)
		}
	}
	return p
}

// readings says which circuit each meter is about. One that cannot be told
// apart says nothing: what is not measured counts as reserved.
func (p pduCircuits) readings(list []pdu.MeterReading) (out []convert.CircuitReading) {
	if p.whole == nil {
		return nil
	}
	count := map[string]int{}
	for _, m := range list {
		count[m.Level]++
	}
	// Amps alone are watts at the volts that site.yaml gives: never less.
	load := func(m pdu.MeterReading, volts float64) float64 {
		if w := m.Load(); !math.IsNaN(w) {
			return w
		}
		return m.Amps * volts
	}
	neutral := p.whole.Volts
	if p.whole.Phases == 3 {
		neutral /= math.Sqrt(3)
	}
	inlets := 0.0
	for _, m := range list {
		switch {
		case m.Level == "inlet" && p.whole.Phases == 3:
			inlets += m.Watts // amps of one line or of all, at volts between which two? NaN as below
			continue
		case m.Level == "inlet":
			inlets += load(m, p.whole.Volts) // NaN stays NaN: one that is not read is all not read
			continue
		}
		i, err := strconv.Atoi(m.Index[strings.LastIndexAny(m.Index, ".")+1:])
		if err != nil || i < 1 {
			continue
		}
		switch {
		case m.Level == "phase" && p.whole.Phases == 3 && i <= 3:
			out = append(out, convert.CircuitReading{Circuit: p.whole.Name, Line: "L" + strconv.Itoa(i), Watts: load(m, neutral)})
		case m.Level == "phase" && p.whole.Phases != 3 && count["phase"] == 1:
			out = append(out, convert.CircuitReading{Circuit: p.whole.Name, Watts: load(m, p.whole.Volts)})
		case m.Level == "bank" && i <= len(p.banks) && count["bank"] == len(p.banks):
			out = append(out, convert.CircuitReading{Circuit: p.banks[i-1].Name, Watts: load(m, p.banks[i-1].Volts)})
		}
	}
	if count["inlet"] > 0 {
		out = append(out, convert.CircuitReading{Circuit: p.whole.Name, Watts: inlets})
	}
	return slices.DeleteFunc(out, func(r convert.CircuitReading) bool { return math.IsNaN(r.Watts) })
}
