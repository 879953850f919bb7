package vbmc

import "strconv"

// A pduModel is a family of PDUs as its agent shows it, written from the named
// sources and not from the driver's data, so that a slip of the pen in one of
// them is found by the other. OIDs stand below 1.3.6.1.4.1.
type pduModel struct {
	object   string             // sysObjectID
	index    func(n int) string // of an outlet in tables
	switches func(n int) string // of an outlet among its switches; nil: index
	commands []pduCommand
	shows    string      // column of states
	words    map[any]int // true, false: on, off; willOn, willOff: a delayed command waits
	waits    string      // column: 1 a command waits, 2 none does
	name     string      // column of names
	watts    pduGauge
	decimals string // column of decimals of watts, below watts.suffix too
	meters   []pduMeter
}

// A pduCommand is what one value in one column does.
type pduCommand struct {
	column string
	word   int
	verb   verb
}

type verb int

const (
	_ verb = iota
	doOn
	doOff
	doReboot
	doOnLater
	doOffLater
	doCancel
	doBlink
)

// What a state column shows while a delayed command waits.
const (
	willOn  = "will be on"
	willOff = "will be off"
)

// A pduGauge shows a value in steps, or as text when it has no step.
type pduGauge struct {
	column string
	suffix string
	step   float64
}

// A pduMeter shows the sum of all outlets (part 0), of the first half of them
// (1) or of the second (2).
type pduMeter struct {
	oid  string
	unit byte // W, A or V
	step float64
	part int
	more string // where its number of decimals is
}

func number(n int) string { return strconv.Itoa(n) }

// below puts levels before the number of an outlet.
func below(levels string) func(int) string {
	return func(n int) string { return levels + "." + strconv.Itoa(n) }
}

const apc, rpdu2, eaton, px, sentry3, sentry4, geist, cps, liebert, aten, baytech = "318.1.1", apc + ".26", "534.6.6.7", "13742.6",
	"1718.3.2", "1718.4.1", "21239.5.2.3", "3808.1.1.3", "476.1.42.3.8", "21317.1.3.2.2.2", "4779.1.3.5"

var pduModels = map[string]pduModel{
	// PowerNet-MIB: sPDUOutletControlTable. The column of commands shows the state.
	"apc-masterswitch": {
		object: "318.1.3.4.2", index: number,
		commands: []pduCommand{{apc + ".4.4.2.1.3", 1, doOn}, {apc + ".4.4.2.1.3", 2, doOff}, {apc + ".4.4.2.1.3", 3, doReboot}, {apc + ".4.4.2.1.3", 5, doOnLater}, {apc + ".4.4.2.1.3", 6, doOffLater}},
		shows:    apc + ".4.4.2.1.3", words: map[any]int{true: 1, false: 2},
		waits: apc + ".4.4.2.1.2", name: apc + ".4.4.2.1.4",
	},
	// PowerNet-MIB: rPDUOutletControlTable, rPDUOutletStatusTable, rPDULoadStatusTable.
	"apc-rpdu": {
		object: "318.1.3.4.5", index: number,
		commands: []pduCommand{{apc + ".12.3.3.1.1.4", 1, doOn}, {apc + ".12.3.3.1.1.4", 2, doOff}, {apc + ".12.3.3.1.1.4", 3, doReboot}, {apc + ".12.3.3.1.1.4", 4, doOnLater}, {apc + ".12.3.3.1.1.4", 5, doOffLater}, {apc + ".12.3.3.1.1.4", 7, doCancel}},
		shows:    apc + ".12.3.5.1.1.4", words: map[any]int{true: 1, false: 2},
		waits: apc + ".12.3.5.1.1.5", name: apc + ".12.3.5.1.1.2",
		meters: []pduMeter{{apc + ".12.1.16.0", 'W', 1, 0, ""}, {apc + ".12.2.3.1.1.2.1", 'A', 0.1, 0, ""}, {apc + ".12.2.3.1.1.2.2", 'A', 0.1, 1, ""}, {apc + ".12.2.3.1.1.2.3", 'A', 0.1, 2, ""}},
	},
	// PowerNet-MIB: rPDU2OutletSwitchedControlTable and so on. States are the other
	// way round than commands.
	"apc-rpdu2": {
		object: "318.1.3.4.6", index: number,
		commands: []pduCommand{{rpdu2 + ".9.2.4.1.5", 1, doOn}, {rpdu2 + ".9.2.4.1.5", 2, doOff}, {rpdu2 + ".9.2.4.1.5", 3, doReboot}, {rpdu2 + ".9.2.4.1.5", 5, doOnLater}, {rpdu2 + ".9.2.4.1.5", 6, doOffLater}, {rpdu2 + ".9.2.4.1.5", 8, doCancel}},
		shows:    rpdu2 + ".9.2.3.1.5", words: map[any]int{true: 2, false: 1},
		waits: rpdu2 + ".9.2.3.1.6", name: rpdu2 + ".9.2.3.1.3", watts: pduGauge{rpdu2 + ".9.4.3.1.7", "", 1},
		meters: []pduMeter{
			{rpdu2 + ".4.3.1.5.1", 'W', 10, 0, ""},
			{rpdu2 + ".6.3.1.5.1", 'A', 0.1, 0, ""}, {rpdu2 + ".6.3.1.6.1", 'V', 1, 0, ""}, {rpdu2 + ".6.3.1.7.1", 'W', 10, 0, ""},
			{rpdu2 + ".8.3.1.5.1", 'A', 0.1, 1, ""}, {rpdu2 + ".8.3.1.5.2", 'A', 0.1, 2, ""},
		},
	},
	// EATON-EPDU-MIB: outletControlOffCmd, outletControlOnCmd: seconds, -1 cancels.
	"eaton": {
		object: eaton, index: below("0"),
		commands: []pduCommand{{eaton + ".6.6.1.4", 0, doOn}, {eaton + ".6.6.1.3", 0, doOff}, {eaton + ".6.6.1.5", 0, doReboot}, {eaton + ".6.6.1.4", 1, doOnLater}, {eaton + ".6.6.1.3", 1, doOffLater}, {eaton + ".6.6.1.4", -1, doCancel}, {eaton + ".6.6.1.3", -1, doCancel}},
		shows:    eaton + ".6.6.1.2", words: map[any]int{true: 1, false: 0, willOff: 2, willOn: 3},
		name: eaton + ".6.1.1.3", watts: pduGauge{eaton + ".6.5.1.3", "", 1},
		meters: []pduMeter{
			{eaton + ".3.4.1.4.0.1.1", 'W', 1, 0, ""},
			{eaton + ".5.3.1.3.0.1", 'V', 0.001, 1, ""}, {eaton + ".5.4.1.3.0.1", 'A', 0.001, 1, ""}, {eaton + ".5.5.1.3.0.1", 'W', 1, 1, ""},
			{eaton + ".5.3.1.3.0.2", 'V', 0.001, 2, ""}, {eaton + ".5.4.1.3.0.2", 'A', 0.001, 2, ""}, {eaton + ".5.5.1.3.0.2", 'W', 1, 2, ""},
		},
	},
	// PDU2-MIB: switchingOperation, outletSwitchingState, sensors of kind 5.
	"raritan": {
		object: px, index: below("1"),
		commands: []pduCommand{{px + ".4.1.2.1.2", 1, doOn}, {px + ".4.1.2.1.2", 0, doOff}, {px + ".4.1.2.1.2", 2, doReboot}},
		shows:    px + ".4.1.2.1.3", words: map[any]int{true: 7, false: 8},
		name: px + ".3.5.3.1.3", watts: pduGauge{px + ".5.4.3.1.4", ".5", 0.1}, decimals: px + ".3.5.4.1.7",
		meters: []pduMeter{{px + ".5.2.3.1.4.1.1.5", 'W', 1, 0, px + ".3.3.4.1.7.1.1.5"}, {px + ".5.2.3.1.4.1.1.4", 'V', 1, 0, px + ".3.3.4.1.7.1.1.4"}, {px + ".5.2.3.1.4.1.1.1", 'A', 0.001, 0, px + ".3.3.4.1.7.1.1.1"}},
	},
	// Sentry3-MIB: outletTable, infeedTable.
	"servertech3": {
		object: "1718.3", index: below("1.1"),
		commands: []pduCommand{{sentry3 + ".3.1.11", 1, doOn}, {sentry3 + ".3.1.11", 2, doOff}, {sentry3 + ".3.1.11", 3, doReboot}},
		shows:    sentry3 + ".3.1.5", words: map[any]int{true: 1, false: 0, willOff: 2, willOn: 3},
		name: sentry3 + ".3.1.3", watts: pduGauge{sentry3 + ".3.1.14", "", 1},
		meters: []pduMeter{{sentry3 + ".2.1.7.1.1", 'A', 0.01, 0, ""}, {sentry3 + ".2.1.11.1.1", 'V', 0.1, 0, ""}, {sentry3 + ".2.1.12.1.1", 'W', 1, 0, ""}},
	},
	// Sentry4-MIB: st4OutletControlTable, st4OutletMonitorTable, st4PhaseMonitorTable.
	"servertech4": {
		object: "1718.4", index: below("1.1"),
		commands: []pduCommand{{sentry4 + ".8.5.1.2", 1, doOn}, {sentry4 + ".8.5.1.2", 2, doOff}, {sentry4 + ".8.5.1.2", 3, doReboot}},
		shows:    sentry4 + ".8.5.1.1", words: map[any]int{true: 11, false: 10, willOn: 8, willOff: 9},
		name: sentry4 + ".8.2.1.3", watts: pduGauge{sentry4 + ".8.3.1.7", "", 1},
		meters: []pduMeter{{sentry4 + ".3.3.1.3.1.1", 'W', 1, 0, ""}, {sentry4 + ".5.3.1.3.1.1.1", 'V', 0.1, 0, ""}, {sentry4 + ".5.3.1.6.1.1.1", 'A', 0.01, 0, ""}, {sentry4 + ".5.3.1.8.1.1.1", 'W', 1, 0, ""}},
	},
	// VERTIV-V5-MIB: pduOutletSwitchTable, pduOutletMeterTable.
	"vertiv": {
		object: "21239.5.2", index: number,
		commands: []pduCommand{{geist + ".5.1.6", 2, doOn}, {geist + ".5.1.6", 4, doOff}, {geist + ".5.1.6", 6, doReboot}, {geist + ".5.1.6", 3, doOnLater}, {geist + ".5.1.6", 5, doOffLater}, {geist + ".5.1.6", 1, doCancel}},
		shows:    geist + ".5.1.4", words: map[any]int{true: 1, false: 2, willOff: 3, willOn: 4},
		name: geist + ".5.1.3", watts: pduGauge{geist + ".6.1.12", "", 1},
		meters: []pduMeter{{geist + ".1.1.9.1", 'W', 1, 0, ""}, {geist + ".2.1.4.1", 'V', 0.1, 0, ""}, {geist + ".2.1.8.1", 'A', 0.01, 0, ""}, {geist + ".2.1.12.1", 'W', 1, 0, ""}},
	},
	// CPS-MIB: ePDUOutletControlTable, ePDUOutletStatusTable, ePDULoadStatusTable.
	"cyberpower": {
		object: cps, index: number,
		commands: []pduCommand{{cps + ".3.3.1.1.4", 1, doOn}, {cps + ".3.3.1.1.4", 2, doOff}, {cps + ".3.3.1.1.4", 3, doReboot}, {cps + ".3.3.1.1.4", 4, doOnLater}, {cps + ".3.3.1.1.4", 5, doOffLater}, {cps + ".3.3.1.1.4", 7, doCancel}},
		shows:    cps + ".3.5.1.1.4", words: map[any]int{true: 1, false: 2},
		waits: cps + ".3.5.1.1.5", name: cps + ".3.5.1.1.2", watts: pduGauge{cps + ".3.5.1.1.8", "", 1},
		meters: []pduMeter{{cps + ".2.3.1.1.2.1", 'A', 0.1, 0, ""}},
	},
	// LIEBERT-GP-PDU-MIB: lgpPduRcpTable, lgpPduRbTable, lgpPduPsTable.
	"emerson": {
		object: "476.1.42", index: below("1.1"),
		commands: []pduCommand{{liebert + ".50.20.1.100", 1, doOn}, {liebert + ".50.20.1.100", 0, doOff}, {liebert + ".50.20.1.100", 2, doReboot}, {liebert + ".50.20.1.200", 2, doBlink}},
		shows:    liebert + ".50.20.1.95", words: map[any]int{true: 2, false: 1, willOn: 3, willOff: 0},
		name: liebert + ".50.20.1.10", watts: pduGauge{liebert + ".50.20.1.65", "", 1},
		meters: []pduMeter{{liebert + ".30.20.1.65.1.1", 'W', 1, 0, ""}, {liebert + ".40.20.1.115.1.1", 'W', 1, 1, ""}, {liebert + ".40.20.1.115.1.2", 'W', 1, 2, ""}, {liebert + ".40.20.1.130.1.1", 'A', 0.01, 1, ""}, {liebert + ".40.20.1.130.1.2", 'A', 0.01, 2, ""}},
	},
	// As programs for PE6108G, PE8108G and PE8208G have it: a scalar for each
	// outlet, from 2, and 10 is a table; measurements are text.
	"aten": {
		object: "21317.1.3.2", index: number,
		switches: func(n int) string {
			if n > 8 {
				n++
			}
			return strconv.Itoa(n+1) + ".0"
		},
		commands: []pduCommand{{aten + ".2", 2, doOn}, {aten + ".2", 1, doOff}, {aten + ".2", 4, doReboot}},
		shows:    aten + ".2", words: map[any]int{true: 2, false: 1, willOn: 3, willOff: 3},
		name: aten + ".2.10.1.2", watts: pduGauge{aten + ".2.1.1.4", "", 0},
		meters: []pduMeter{{aten + ".1.3.1.2.1", 'A', 0, 0, ""}, {aten + ".1.3.1.3.1", 'V', 0, 0, ""}},
	},
	// OpenStack Ironic, driver teltronix.
	"teltronix": {
		object: "23620.1.2", index: number,
		commands: []pduCommand{{"23620.1.2.2.1.4", 2, doOn}, {"23620.1.2.2.1.4", 1, doOff}},
		shows:    "23620.1.2.2.1.4", words: map[any]int{true: 2, false: 1},
	},
	// NUT, baytech-mib.c; Ironic, driver baytech_mrp27.
	"baytech": {
		object: "4779.1.3", index: below("1"),
		commands: []pduCommand{{baytech + ".3.1.3", 1, doOn}, {baytech + ".3.1.3", 0, doOff}, {baytech + ".3.1.3", 2, doReboot}},
		shows:    baytech + ".3.1.3", words: map[any]int{true: 1, false: 0, willOn: 2, willOff: 2},
		name:   baytech + ".3.1.4",
		meters: []pduMeter{{baytech + ".5.1.6.2.1", 'A', 0.1, 0, ""}, {baytech + ".5.1.8.2.1", 'V', 0.1, 0, ""}},
	},
}
