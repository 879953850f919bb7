package pdu

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gosnmp/gosnmp"

	"smelt/internal/vbmc"
	"smelt/power"
)

// near tells whether a and b are the same to within a step of a coarse meter.
func near(a, b, step float64) bool { return math.Abs(a-b) <= step || math.IsNaN(a) && math.IsNaN(b) }

// Every family measures what the machines behind it draw, in its own steps.
func TestMeters(t *testing.T) {
	for _, model := range Models() {
		t.Run(model, func(t *testing.T) {
			t.Parallel()
			m := models[slices.IndexFunc(models, named(model))]
			var machine, idle vbmc.Switch
			const load = 312.4
			var draws atomic.Int64 // tenths of watts
			draws.Store(3124)
			outlets := []vbmc.Outlet{{Name: "rig-01", Power: &machine, Draw: func() float64 { return float64(draws.Load()) / 10 }}, {Name: "rig-02", Power: &idle, Watts: 90}}
			for range 22 {
				outlets = append(outlets, vbmc.Outlet{})
			}
			p := start(t, model, outlets...)
			u := unit(t, Config{Address: p.Addr().String()})
			if err := controller(t, Outlet{Unit: u, Number: 1}).Set(t.Context(), power.On); err != nil {
				t.Fatal(err)
			}
			before := p.Packets()
			all, err := u.Outlets(t.Context())
			if err != nil || len(all) != 24 {
				t.Fatalf("%d outlets, error %v", len(all), err)
			}
			packets := p.Packets() - before
			t.Logf("24 outlets in %d packets", packets)
			if packets > 14 {
				t.Errorf("%d packets for 24 outlets", packets)
			}
			want, none := float64(load), 0.0
			if m.Watts == nil {
				want, none = math.NaN(), math.NaN()
			}
			name := "rig-01"
			if !m.Label.set() {
				name = ""
			}
			for i, o := range all {
				if o.Number != i+1 {
					t.Fatalf("outlet %d is number %d", i+1, o.Number)
				}
			}
			if a := all[0]; a.State != power.On || a.Name != name || !near(a.Watts, want, 0.5) {
				t.Errorf("outlet 1: %+v, want %g W", a, want)
			}
			if b := all[1]; b.State != power.Off || !near(b.Watts, none, 0) {
				t.Errorf("outlet 2: %+v", b)
			}
			meters, err := u.Meters(t.Context())
			if err != nil || (len(meters) > 0) != (len(m.Meters) > 0) {
				t.Fatalf("meters %+v, error %v", meters, err)
			}
			for i, r := range meters {
				// The first half of the outlets is the first bank; the rest has no load.
				want := float64(load)
				if r.Level == "bank" && i == len(meters)-1 || r.Level == "phase or bank" && r.Index == "3" {
					want = 0
				}
				if !math.IsNaN(r.Watts) && !near(r.Watts, want, 5) || !math.IsNaN(r.Amps) && !near(r.Amps, want/230, 0.06) || !math.IsNaN(r.Volts) && r.Volts != 230 {
					t.Errorf("%+v, want %g W", r, want)
				}
				if l := r.Load(); !math.IsNaN(r.Volts+r.Amps) && !near(l, want, 12) {
					t.Errorf("%+v: load %g", r, l)
				}
			}
			// The load follows the machine.
			draws.Store(4710)
			r, err := controller(t, Outlet{Unit: u, Number: 1}, Outlet{Unit: u, Number: 2}).Readings(t.Context())
			if m.Watts == nil {
				if !errors.Is(err, power.ErrUnsupported) || !math.IsNaN(r.Watts) {
					t.Errorf("no meter: %+v, %v", r, err)
				}
			} else if err != nil || !near(r.Watts, 471, 0.5) || r.At.IsZero() {
				t.Errorf("readings %+v, error %v", r, err)
			}
		})
	}
}

// What is not measured is NaN and never 0.
func TestMissingReadings(t *testing.T) {
	var m vbmc.Switch
	p := start(t, "raritan", vbmc.Outlet{Power: &m, Watts: 300}, vbmc.Outlet{Power: &m, Watts: 250})
	u := unit(t, Config{Address: p.Addr().String()})
	c := controller(t, Outlet{Unit: u, Number: 1}, Outlet{Unit: u, Number: 2})
	if err := c.Set(t.Context(), power.On); err != nil {
		t.Fatal(err)
	}
	if r, err := c.Readings(t.Context()); err != nil || r.Watts != 550 {
		t.Errorf("readings %+v, error %v", r, err)
	}
	const watts, digits = enterprises + ".13742.6.5.4.3.1.4.1.2.5", enterprises + ".13742.6.3.5.4.1.7.1.2.5"
	for name, change := range map[string]func(*gosnmp.SnmpPDU){
		"gone":      func(v *gosnmp.SnmpPDU) { v.Type, v.Value = gosnmp.NoSuchInstance, nil },
		"minus one": func(v *gosnmp.SnmpPDU) { v.Type, v.Value = gosnmp.Integer, -1 },
		"words":     func(v *gosnmp.SnmpPDU) { v.Type, v.Value = gosnmp.OctetString, []byte("n/a") },
		"an OID":    func(v *gosnmp.SnmpPDU) { v.Type, v.Value = gosnmp.ObjectIdentifier, ".1.3.6" },
	} {
		for _, oid := range []string{watts, digits} {
			p.Mangle(func(_, reply *gosnmp.SnmpPacket) {
				for i := range reply.Variables {
					if strings.TrimPrefix(reply.Variables[i].Name, ".") == oid {
						change(&reply.Variables[i])
					}
				}
			})
			if r, err := c.Readings(t.Context()); err != nil || !math.IsNaN(r.Watts) {
				t.Errorf("%s of %s: readings %+v, error %v; want NaN", name, oid, r, err)
			}
			all, err := u.Outlets(t.Context())
			if err != nil || len(all) != 2 || all[0].Watts != 300 || !math.IsNaN(all[1].Watts) {
				t.Errorf("%s of %s: outlets %+v, error %v", name, oid, all, err)
			}
		}
	}
	p.Drop(true)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if r, err := c.Readings(ctx); err == nil || !math.IsNaN(r.Watts) {
		t.Errorf("a PDU that is gone: readings %+v, error %v", r, err)
	}
	none := start(t, "apc-rpdu", vbmc.Outlet{})
	if _, err := controller(t, Outlet{Unit: unit(t, Config{Address: none.Addr().String()}), Number: 1}).Readings(t.Context()); !errors.Is(err, power.ErrUnsupported) {
		t.Errorf("a PDU without meters: %v", err)
	}
}

// Values of a real PX2, as the tests of LibreNMS have them
// (tests/snmpsim/raritan-pdu.snmprec): mA and W, with their decimals.
func TestRecordedRaritan(t *testing.T) {
	const px = enterprises + ".13742.6."
	rows := map[string]gosnmp.SnmpPDU{}
	add := func(oid string, v uint) {
		rows[px+oid] = gosnmp.SnmpPDU{Name: "." + px + oid, Type: gosnmp.Gauge32, Value: v}
	}
	for outlet, v := range map[int][2]uint{1: {0, 0}, 3: {311, 68}, 10: {184, 35}} {
		for i, sensor := range []string{"1", "5"} {
			add(fmt.Sprintf("5.4.3.1.4.1.%d.%s", outlet, sensor), v[i])
			add(fmt.Sprintf("3.5.4.1.7.1.%d.%s", outlet, sensor), []uint{3, 0}[i])
		}
	}
	add("5.2.3.1.4.1.1.1", 680)
	add("5.2.3.1.4.1.1.4", 233)
	add("5.2.3.1.4.1.1.5", 138)
	add("5.2.3.1.4.1.1.23", 500) // Hz, which is no meter of ours
	for s, n := range map[string]uint{"1": 3, "4": 0, "5": 0, "23": 1} {
		add("3.3.4.1.7.1.1."+s, n)
	}
	m := models[slices.IndexFunc(models, named("raritan"))]
	for outlet, want := range map[int][2]float64{1: {0, 0}, 3: {0.311, 68}, 10: {0.184, 35}, 11: {math.NaN(), math.NaN()}} {
		if a, w := m.Amps.ofOutlet(rows, outlet), m.Watts.ofOutlet(rows, outlet); !near(a, want[0], 1e-9) || !near(w, want[1], 1e-9) {
			t.Errorf("outlet %d: %g A, %g W; want %v", outlet, a, w, want)
		}
	}
	if r := m.Meters[0].readings(rows); len(r) != 1 || r[0].Watts != 138 || !near(r[0].Amps, 0.68, 1e-9) || r[0].Volts != 233 || r[0].Load() != 138 {
		t.Errorf("inlet %+v", r)
	}
}

func TestLoad(t *testing.T) {
	nan := math.NaN()
	for _, c := range []struct {
		m    MeterReading
		want float64
	}{
		{MeterReading{Watts: 138, Amps: 0.68, Volts: 233}, 138},
		{MeterReading{Watts: nan, Amps: 2, Volts: 230}, 460},
		{MeterReading{Watts: nan, Amps: 2, Volts: nan}, nan},
		{MeterReading{Watts: 0, Amps: nan, Volts: nan}, 0},
	} {
		if got := c.m.Load(); !near(got, c.want, 0) {
			t.Errorf("%+v: load %g, want %g", c.m, got, c.want)
		}
	}
}
