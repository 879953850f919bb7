package pdu

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/gosnmp/gosnmp"

	"smelt/power"
)

// An OutletReading is one outlet as a PDU sees it.
type OutletReading struct {
	Number      int
	Name        string // as people named it on the PDU, or as the vendor did
	State       power.State
	Watts, Amps float64 // NaN where it is not measured
}

// A MeterReading is what a PDU measures above its outlets. What it does not
// measure is NaN.
type MeterReading struct {
	Level string // inlet, phase, bank, or "phase or bank" where the PDU counts both in one table
	Index string // which one, as the PDU counts
	Watts float64
	Amps  float64
	Volts float64 // as the PDU says it: line to line, or line to neutral
}

// Load is the load in watts: as measured, or else amps times volts, which is
// never less. NaN when neither is known.
func (m MeterReading) Load() float64 {
	if !math.IsNaN(m.Watts) {
		return m.Watts
	}
	return m.Amps * m.Volts
}

// Outlets reads every outlet of the PDU, ordered by number, in a few packets.
func (u *Unit) Outlets(ctx context.Context) ([]OutletReading, error) {
	var out []OutletReading
	err := u.with(ctx, func(s *session) error {
		m := s.model
		prefixes := []string{m.State.At.prefix}
		if m.Label.set() {
			prefixes = append(prefixes, m.Label.prefix)
		}
		if m.Pending != nil {
			prefixes = append(prefixes, m.Pending.At.prefix)
		}
		// Where the index goes on behind the outlet, a column holds every sensor of
		// every outlet: only ours are asked for.
		var sensors []*gauge
		for _, g := range []*gauge{m.Watts, m.Amps} {
			if g != nil && g.At.suffix != "" {
				sensors = append(sensors, g)
			} else {
				prefixes = append(prefixes, columns(g)...)
			}
		}
		rows, err := s.walk(prefixes...)
		if err != nil {
			return err
		}
		if err := s.sense(rows, sensors); err != nil {
			return err
		}
		found := map[int]OutletReading{}
		for oid, v := range rows {
			n, ok := m.State.At.number(oid)
			if !ok {
				continue
			}
			st, err := m.state(v)
			if err != nil {
				return fmt.Errorf("outlet %d: state: %w", n, err)
			}
			r := OutletReading{Number: n, State: st, Watts: m.Watts.ofOutlet(rows, n), Amps: m.Amps.ofOutlet(rows, n)}
			if m.Pending != nil {
				if p, err := whole(cell(rows, m.Pending.At, n)); err == nil && !slices.Contains(m.Pending.Idle, int(p)) {
					r.State = power.Unknown
				}
			}
			if m.Label.set() {
				r.Name = text(cell(rows, m.Label, n))
			}
			found[n] = r
		}
		for _, n := range slices.Sorted(maps.Keys(found)) {
			out = append(out, found[n])
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("outlets of %s: %w", u, err)
	}
	return out, nil
}

// sense adds what gauges measure at the outlets of rows.
func (s *session) sense(rows map[string]gosnmp.SnmpPDU, gs []*gauge) error {
	var oids []string
	for oid := range rows {
		n, ok := s.model.State.At.number(oid)
		for _, g := range gs {
			for _, c := range []column{g.At, g.Digits, g.Valid} {
				if at, err := c.at(n); ok && c.set() && err == nil {
					oids = append(oids, at)
				}
			}
		}
	}
	values, err := s.get(oids...)
	if err != nil {
		return err
	}
	for _, v := range values {
		if !missing(v) {
			rows[strings.TrimPrefix(v.Name, ".")] = v
		}
	}
	return nil
}

// Meters reads what the PDU measures above its outlets: inlets, phases, banks.
// A PDU without such meters has none; that is no error.
func (u *Unit) Meters(ctx context.Context) ([]MeterReading, error) {
	var out []MeterReading
	err := u.with(ctx, func(s *session) error {
		var prefixes []string
		for _, t := range s.model.Meters {
			prefixes = append(prefixes, columns(t.gauges()...)...)
		}
		if len(prefixes) == 0 {
			return nil
		}
		rows, err := s.walk(prefixes...)
		if err != nil {
			return err
		}
		for _, t := range s.model.Meters {
			out = append(out, t.readings(rows)...)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("meters of %s: %w", u, err)
	}
	return out, nil
}

// readings makes a reading of each index that any of m's columns has.
func (m meter) readings(rows map[string]gosnmp.SnmpPDU) []MeterReading {
	indices := map[string]bool{}
	for _, g := range m.gauges() {
		for oid := range rows {
			if i, ok := g.At.index(oid); ok {
				if _, err := parseOID(i); err == nil {
					indices[i] = true
				}
			}
		}
	}
	var out []MeterReading
	for _, i := range slices.SortedFunc(maps.Keys(indices), func(a, b string) int {
		x, _ := parseOID(a)
		y, _ := parseOID(b)
		return slices.Compare(x, y)
	}) {
		at := func(g *gauge) float64 {
			if g == nil {
				return math.NaN()
			}
			return g.value(rows, g.At.prefix+"."+i+g.At.suffix)
		}
		r := MeterReading{m.Level, i, at(m.Watts), at(m.Amps), at(m.Volts)}
		if !math.IsNaN(r.Watts) || !math.IsNaN(r.Amps) {
			out = append(out, r)
		}
	}
	return out
}

// columns are what must be walked for gauges.
func columns(gs ...*gauge) []string {
	var out []string
	for _, g := range gs {
		if g == nil {
			continue
		}
		for _, c := range []column{g.At, g.Digits, g.Valid} {
			if c.set() {
				out = append(out, c.prefix)
			}
		}
	}
	return out
}

// cell is the value of a column for an outlet, one that missing knows when there
// is none.
func cell(rows map[string]gosnmp.SnmpPDU, c column, outlet int) gosnmp.SnmpPDU {
	oid, err := c.at(outlet)
	if v, ok := rows[oid]; ok && err == nil {
		return v
	}
	return gosnmp.SnmpPDU{Name: oid, Type: gosnmp.NoSuchInstance}
}

// ofOutlet is what g measured for an outlet, NaN when it did not.
func (g *gauge) ofOutlet(rows map[string]gosnmp.SnmpPDU, outlet int) float64 {
	if g == nil {
		return math.NaN()
	}
	oid, err := g.At.at(outlet)
	if err != nil {
		return math.NaN()
	}
	return g.value(rows, oid)
}

// mostDecimals bounds what a PDU may say of its decimals.
const mostDecimals = 9

// value is what g measured at oid, NaN when it did not or when that is no
// measurement: PDUs say -1 for a value that they do not have.
func (g *gauge) value(rows map[string]gosnmp.SnmpPDU, oid string) float64 {
	v, ok := rows[oid]
	if !ok {
		return math.NaN()
	}
	f, err := amount(v)
	if err != nil || f < 0 {
		return math.NaN()
	}
	if g.Scale > 0 {
		f *= g.Scale
	}
	if other, ok := g.At.swap(oid, g.Valid); g.Valid.set() && ok {
		if v, there := rows[other]; there {
			if n, err := whole(v); err != nil || n != 1 {
				return math.NaN()
			}
		}
	}
	if other, ok := g.At.swap(oid, g.Digits); g.Digits.set() && ok {
		n, err := whole(rows[other]) // without it the value could be off by powers of ten
		if err != nil || n < 0 || n > mostDecimals {
			return math.NaN()
		}
		f /= math.Pow10(int(n))
	}
	return f
}

// Readings is what all outlets together draw: NaN when one of them does not
// say, ErrUnsupported where the PDU measures no outlet.
func (c *Controller) Readings(ctx context.Context) (power.Readings, error) {
	r := power.Readings{Watts: math.NaN()}
	sum := 0.0
	for _, u := range c.units() {
		_, numbers := c.on(u)
		err := u.with(ctx, func(s *session) error {
			w, err := s.watts(numbers)
			sum += w
			return err
		})
		if err != nil {
			return r, fmt.Errorf("%s: %w", u, err)
		}
	}
	r.Watts, r.At = sum, time.Now()
	return r, nil
}

// watts is the sum of some outlets.
func (s *session) watts(outlets []int) (float64, error) {
	g := s.model.Watts
	if g == nil {
		return math.NaN(), fmt.Errorf("outlet watts of a %s: %w", s.model.Name, power.ErrUnsupported)
	}
	var oids []string
	for _, n := range outlets {
		for _, c := range []column{g.At, g.Digits, g.Valid} {
			if !c.set() {
				continue
			}
			oid, err := c.at(n)
			if err != nil {
				return math.NaN(), err
			}
			oids = append(oids, oid)
		}
	}
	values, err := s.get(oids...)
	if err != nil {
		return math.NaN(), fmt.Errorf("watts: %w", err)
	}
	rows := map[string]gosnmp.SnmpPDU{}
	for _, v := range values {
		if !missing(v) {
			rows[strings.TrimPrefix(v.Name, ".")] = v
		}
	}
	if len(rows) == 0 {
		return math.NaN(), fmt.Errorf("watts: this %s has no meter at outlets %v: %w", s.model.Name, outlets, power.ErrUnsupported)
	}
	sum := 0.0
	for _, n := range outlets {
		sum += g.ofOutlet(rows, n)
	}
	return sum, nil
}
