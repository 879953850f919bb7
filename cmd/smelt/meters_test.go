package main

import (
	"fmt"
	"math"
	"testing"

	"smelt/internal/config"
	"smelt/inventory"
	"smelt/power/pdu"
)

// Each meter of a PDU is about the right circuit, or about none.
func TestMeterReadings(t *testing.T) {
	nan := math.NaN()
	one := inventory.Circuit{Name: "pdu-a1", Kind: "pdu", Volts: 230, Amps: 32, Phases: 1}
	three := inventory.Circuit{Name: "pdu-a1", Kind: "pdu", Volts: 400, Amps: 32, Phases: 3}
	b1 := inventory.Circuit{Name: "a1-left", Parent: "pdu-a1", Kind: "bank", Volts: 230, Phases: 1}
	b2 := inventory.Circuit{Name: "a1-right", Parent: "pdu-a1", Kind: "bank", Volts: 230, Phases: 1}
	m := func(level, index string, watts, amps, volts float64) pdu.MeterReading {
		return pdu.MeterReading{Level: level, Index: index, Watts: watts, Amps: amps, Volts: volts}
	}
	for _, tt := range []struct {
		name     string
		circuits []inventory.Circuit
		meters   []pdu.MeterReading
		want     string
	}{
		{"one phase", []inventory.Circuit{one}, []pdu.MeterReading{m("phase", "1", 1500, 7, 230)}, "[{pdu-a1  1500}]"},
		{"inlet and banks", []inventory.Circuit{one, b1, b2}, []pdu.MeterReading{m("inlet", "1", 1500, nan, nan), m("bank", "1", nan, 4, nan), m("bank", "2", nan, 2, nan)},
			"[{a1-left  920} {a1-right  460} {pdu-a1  1500}]"},
		{"three phases", []inventory.Circuit{three}, []pdu.MeterReading{m("phase", "1", 700, 3, 230), m("phase", "1.2", nan, 2, 230), m("phase", "3", nan, nan, nan)},
			"[{pdu-a1 L1 700} {pdu-a1 L2 460}]"},
		{"banks that site.yaml does not tell apart", []inventory.Circuit{one, b1}, []pdu.MeterReading{m("bank", "1", 1, nan, nan), m("bank", "2", 2, nan, nan)}, "[]"},
		{"two feeds, one of them unread", []inventory.Circuit{one}, []pdu.MeterReading{m("inlet", "1", 100, nan, nan), m("inlet", "2", nan, nan, nan)}, "[]"},
		{"an inlet of three phases that counts amps", []inventory.Circuit{three}, []pdu.MeterReading{m("inlet", "1", nan, 16, 400)}, "[]"},
		{"phases or banks", []inventory.Circuit{one}, []pdu.MeterReading{m("phase or bank", "1", 100, nan, nan)}, "[]"},
		{"no such circuit", []inventory.Circuit{b1}, []pdu.MeterReading{m("inlet", "1", 100, nan, nan)}, "[]"},
		{"no index", []inventory.Circuit{one}, []pdu.MeterReading{m("inlet", "", 100, nan, nan), m("phase", "x", 1, nan, nan)}, "[{pdu-a1  100}]"},
	} {
		got := circuitsOf(&config.Site{Circuits: tt.circuits}, "pdu-a1").readings(tt.meters)
		if s := fmt.Sprint(got); s != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, s, tt.want)
		}
	}
}
