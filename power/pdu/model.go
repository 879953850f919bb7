package pdu

import (
	"fmt"
	"slices"
	"strings"
)

// A model is where one family of PDUs keeps its outlets. An OID ends in the
// outlet number, after what the family puts before it.
//
// The OIDs and words come from the named MIBs and from drivers that ran on the
// real devices. Two families were driven here, as simulations: apc-rpdu and
// apc-rpdu2; the others were read, not run.
type model struct {
	name    string
	objects []string // prefixes of sysObjectID that belong to it

	on, off write // commands
	status  string
	isOn    []int
	isOff   []int
	label   string // outlet names, "" where not known
	watts   string // outlet watts, "" where there is no such meter
}

// A write is one value to one column.
type write struct {
	column string
	value  int
}

// at is the OID of a column for one outlet.
func at(column string, outlet int) string { return fmt.Sprintf("%s.%d", column, outlet) }

const (
	apc     = "1.3.6.1.4.1.318.1.1"
	apcKind = "1.3.6.1.4.1.318.1.3.4"
	eaton   = "1.3.6.1.4.1.534.6.6.7"
	raritan = "1.3.6.1.4.1.13742.6"
	sentry3 = "1.3.6.1.4.1.1718.3"
	sentry4 = "1.3.6.1.4.1.1718.4"
	vertiv  = "1.3.6.1.4.1.21239.5.2"
)

// one is a model whose commands are two words of one column.
func one(name, control string, on, off int, status string, isOn, isOff int, objects ...string) model {
	return model{
		name: name, objects: objects, on: write{control, on}, off: write{control, off},
		status: status, isOn: []int{isOn}, isOff: []int{isOff},
	}
}

func (m model) with(label, watts string) model {
	m.label, m.watts = label, watts
	return m
}

// models lists every family. The words of commands and of states are often
// not the same: an rPDU2 switches on with 1 and says 2 when it is on.
var models = []model{
	// PowerNet-MIB: sPDUOutletCtl; OpenStack Ironic, driver apc_masterswitch.
	one("apc-masterswitch", apc+".4.4.2.1.3", 1, 2, apc+".4.4.2.1.3", 1, 2,
		apcKind+".1", apcKind+".2", apcKind+".3").with(apc+".4.5.2.1.3", ""),
	// PowerNet-MIB: rPDUOutletControlOutletCommand, rPDUOutletStatusOutletState
	// (AP79xx); 4 to 7 are delayed and pending.
	one("apc-rpdu", apc+".12.3.3.1.1.4", 1, 2, apc+".12.3.5.1.1.4", 1, 2,
		apcKind+".5").with(apc+".12.3.5.1.1.2", ""),
	// PowerNet-MIB: rPDU2OutletSwitchedControlCommand, rPDU2OutletSwitchedStatusState
	// (AP8xxx, sysObjectID seen on an AP8932): state words are inverted.
	one("apc-rpdu2", apc+".26.9.2.4.1.5", 1, 2, apc+".26.9.2.3.1.5", 2, 1,
		apcKind+".6").with(apc+".26.9.2.3.1.3", apc+".26.9.4.3.1.7"),
	// EATON-EPDU-MIB: outletControlOffCmd and OnCmd take a delay, 0 is now; the
	// index begins with the strapping index, 0 on a PDU that stands alone.
	{
		name: "eaton", objects: []string{eaton},
		on: write{eaton + ".6.6.1.4.0", 0}, off: write{eaton + ".6.6.1.3.0", 0},
		status: eaton + ".6.6.1.2.0", isOn: []int{1}, isOff: []int{0},
	},
	// PDU2-MIB (PX2, PX3): switchingOperation, outletSwitchingState.
	one("raritan", raritan+".4.1.2.1.2.1", 1, 0, raritan+".4.1.2.1.3.1", 7, 8,
		raritan).with(raritan+".3.5.3.1.3.1", ""),
	// Sentry3-MIB: outletControlAction, outletStatus; tower and infeed 1.
	one("servertech3", sentry3+".2.3.1.11.1.1", 1, 2, sentry3+".2.3.1.5.1.1", 1, 0,
		sentry3).with(sentry3+".2.3.1.3.1.1", ""),
	// Sentry4-MIB: st4OutletControlAction, st4OutletControlState; unit and cord 1.
	one("servertech4", sentry4+".1.8.5.1.2.1.1", 1, 2, sentry4+".1.8.5.1.1.1.1", 11, 10,
		sentry4).with("", sentry4+".1.8.3.1.9.1.1"),
	// VERTIV-V5-MIB (Geist): 2 is on, 4 is off; sonic-net/sonic-mgmt.
	one("vertiv", vertiv+".3.5.1.6", 2, 4, vertiv+".3.5.1.4", 1, 2,
		vertiv).with(vertiv+".3.5.1.3", vertiv+".3.6.1.12"),
	// CPS-MIB: ePDUOutletControlOutletCommand.
	one("cyberpower", "1.3.6.1.4.1.3808.1.1.3.3.3.1.1.4", 1, 2, "1.3.6.1.4.1.3808.1.1.3.3.3.1.1.4", 1, 2,
		"1.3.6.1.4.1.3808.1.1.3"),
	// Ironic, driver teltronix.
	one("teltronix", "1.3.6.1.4.1.23620.1.2.2.1.4", 2, 1, "1.3.6.1.4.1.23620.1.2.2.1.4", 2, 1,
		"1.3.6.1.4.1.23620"),
	// Ironic, driver baytech_mrp27; unit 1.
	one("baytech", "1.3.6.1.4.1.4779.1.3.5.3.1.3.1", 1, 0, "1.3.6.1.4.1.4779.1.3.5.3.1.3.1", 1, 0,
		"1.3.6.1.4.1.4779"),
}

// Models names every model that Config.Model may be.
func Models() []string {
	var names []string
	for _, m := range models {
		names = append(names, m.name)
	}
	return names
}

// under tells whether oid is prefix or below it.
func under(oid, prefix string) bool {
	return oid == prefix || strings.HasPrefix(oid, prefix+".")
}

// modelOf is the model that a sysObjectID belongs to.
func modelOf(object string) (model, bool) {
	for _, m := range models {
		if slices.ContainsFunc(m.objects, func(p string) bool { return under(object, p) }) {
			return m, true
		}
	}
	return model{}, false
}
