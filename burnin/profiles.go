package burnin

import (
	"fmt"
	"time"
)

// The checks that exist. A profile that names another one is not run.
const (
	System      = "system"
	CPU         = "cpu"
	Memory      = "memory"
	Disk        = "disk"
	Network     = "network"
	PCIe        = "pcie"
	Thermal     = "thermal"
	GPUPresence = "gpu-presence"
	GPUVRAM     = "gpu-vram"
	GPUCompute  = "gpu-compute"
)

// ImageProfile proves that an image comes up on a machine, and nothing about the
// machine: only a lab may use it.
const ImageProfile = "image"

// subjects says what each check tests, in words for a technician.
var subjects = map[string]string{
	System: "installed system",
	CPU:    "processor", Memory: "memory modules", Disk: "target disk", Network: "network port and cable",
	PCIe: "PCIe slots and risers", Thermal: "cooling",
	GPUPresence: "GPUs", GPUVRAM: "GPU memory", GPUCompute: "GPUs",
}

// KnownCheck tells whether id is a check that exists.
func KnownCheck(id string) bool { return subjects[id] != "" }

// Profiles returns the built-in profiles by name.
//
//   - image: the installed system only, for smelt image test; labs only.
//   - lab: every check in seconds, sized for an emulated machine with one CPU;
//     proves the path, not the hardware.
//   - host: as standard without GPU checks, for nodes whose class has none.
//   - quick: a quarter of an hour, after a repair.
//   - standard: two hours, the gate before a node joins.
//
// Limits are upper or lower bounds by their name. A limit that a profile does
// not set takes the default in the documentation of the check. The same limit
// name means the same in every check:
//
//	maxStartSeconds  longest start of the installed system, from its kernel on
//	share       part of the free memory (or free VRAM) that must be tested, 0 to 1
//	minMBps     slowest sequential write and read that is accepted, 10^6 bytes/s
//	minMbps     slowest transfer from the server that is accepted, 10^6 bit/s
//	bytes       how much the disk check writes and reads
//	maxCelsius  hottest steady temperature; for a GPU only when its own threshold is unknown
//	marginCelsius  how far below its own slowdown threshold a GPU must stay
//	maxCorrectable corrected PCIe errors (AER) during the run
//	minEfficiency  throughput of a card against the fastest of the same model in the node, 0 to 1
func Profiles() map[string]Profile {
	spec := func(id string, d, deadline time.Duration, limits map[string]float64) Spec {
		return Spec{ID: id, Required: true, Duration: d, Deadline: deadline, Limits: limits}
	}
	const (
		sec = time.Second
		min = time.Minute
	)
	// First: in a system that did not come up whole the other checks prove little.
	system := spec(System, 0, 15*min, map[string]float64{"maxStartSeconds": 300})
	// Emulated machines start slowly, on a busy host more so.
	slow := spec(System, 0, 15*min, map[string]float64{"maxStartSeconds": 900})
	image := Profile{Name: ImageProfile, Version: 1, Limit: 20 * min, Checks: []Spec{slow}}
	lab := Profile{Name: "lab", Version: 2, Limit: 30 * min, Checks: []Spec{
		slow,
		spec(CPU, 3*sec, min, nil),
		spec(Memory, 3*sec, min, map[string]float64{"share": 0.1}),
		spec(Disk, 4*sec, 2*min, map[string]float64{"bytes": 32 << 20, "minMBps": 1}),
		spec(Network, 3*sec, min, map[string]float64{"minMbps": 1}),
		spec(PCIe, 2*sec, min, map[string]float64{"maxCorrectable": 10}),
		// Emulated machines have no temperature sensor: not required here only.
		{ID: Thermal, Duration: 2 * sec, Deadline: min, Limits: map[string]float64{"maxCelsius": 90}},
		spec(GPUPresence, 2*sec, min, nil),
		spec(GPUVRAM, 4*sec, 2*min, map[string]float64{"share": 0.9, "marginCelsius": 5}),
		spec(GPUCompute, 4*sec, 2*min, map[string]float64{"marginCelsius": 5}),
	}}
	quick := Profile{Name: "quick", Version: 2, Limit: 30 * min, Checks: []Spec{
		system,
		spec(CPU, 2*min, 4*min, nil),
		spec(Memory, 2*min, 6*min, map[string]float64{"share": 0.8}),
		spec(Disk, min, 4*min, map[string]float64{"bytes": 1 << 30, "minMBps": 80}),
		spec(Network, 20*sec, 2*min, map[string]float64{"minMbps": 500}),
		spec(PCIe, 10*sec, min, map[string]float64{"maxCorrectable": 10}),
		spec(GPUPresence, 10*sec, min, nil),
		spec(GPUCompute, 5*min, 7*min, map[string]float64{"marginCelsius": 5, "minEfficiency": 0.9}),
		spec(GPUVRAM, 2*min, 4*min, map[string]float64{"share": 0.9, "marginCelsius": 5}),
		spec(Thermal, min, 3*min, map[string]float64{"maxCelsius": 90}),
	}}
	standard := Profile{Name: "standard", Version: 2, Limit: 3 * time.Hour, Checks: []Spec{
		system,
		spec(CPU, 15*min, 20*min, nil),
		spec(Memory, 20*min, 40*min, map[string]float64{"share": 0.9}),
		spec(Disk, 5*min, 15*min, map[string]float64{"bytes": 8 << 30, "minMBps": 80}),
		spec(Network, min, 5*min, map[string]float64{"minMbps": 500}),
		spec(PCIe, 10*sec, min, map[string]float64{"maxCorrectable": 10}),
		spec(GPUPresence, 10*sec, min, nil),
		spec(GPUCompute, 45*min, 50*min, map[string]float64{"marginCelsius": 5, "minEfficiency": 0.95}),
		// After the soak, because marginal GDDR fails hot.
		spec(GPUVRAM, 15*min, 20*min, map[string]float64{"share": 0.95, "marginCelsius": 5}),
		spec(Thermal, 5*min, 10*min, map[string]float64{"maxCelsius": 90}),
	}}
	host := Profile{Name: "host", Version: 2, Limit: 2 * time.Hour}
	for _, s := range standard.Checks {
		switch s.ID {
		case GPUPresence, GPUVRAM, GPUCompute:
		default:
			host.Checks = append(host.Checks, s)
		}
	}
	out := map[string]Profile{}
	for _, p := range []Profile{image, lab, host, quick, standard} {
		out[p.Name] = p
	}
	return out
}

// Validate says why p cannot be judged, or nil.
func (p Profile) Validate() error {
	seen := map[string]bool{}
	required := 0
	for _, s := range p.Checks {
		switch {
		case !KnownCheck(s.ID):
			return fmt.Errorf("profile %q asks for a check %q that does not exist", p.Name, s.ID)
		case seen[s.ID]:
			return fmt.Errorf("profile %q asks for %s twice", p.Name, s.ID)
		case s.Deadline <= 0 || s.Duration < 0 || s.Duration > s.Deadline:
			return fmt.Errorf("profile %q: %s runs %s with a deadline of %s", p.Name, s.ID, s.Duration, s.Deadline)
		}
		for name, v := range s.Limits {
			if !finite(v) {
				return fmt.Errorf("profile %q: limit %s of %s is %v", p.Name, name, s.ID, v)
			}
		}
		seen[s.ID] = true
		if s.Required {
			required++
		}
	}
	if required == 0 {
		return fmt.Errorf("profile %q requires no check: it could prove nothing", p.Name)
	}
	return nil
}
