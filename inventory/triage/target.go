package triage

import (
	"fmt"
	"strings"
)

const gib = 1 << 30

// A Target is a named use with its floors: what a machine must have to be
// worth converting for it. A zero floor asks nothing.
type Target struct {
	Name    string
	Version int // rises when a floor changes: a verdict is for one version

	GPUs        int     // at least
	VRAM        int64   // bytes on each GPU
	CC          int     // CUDA compute capability times ten
	Special     bool    // takes cards that need kernels made for them
	LinkWidth   int     // PCIe lanes to each GPU
	LinkGBps    float64 // PCIe bandwidth to each GPU, each way
	RAM         int64   // bytes
	RAMPerVRAM  float64 // of the VRAM of all GPUs together
	Cores       int
	CoresPerGPU float64
	AVX2        bool
	Disk        int64 // bytes on the largest fixed disk
	Mbps        int   // fastest network link
}

// targets are the built-in ones. The floors of vast are those of its public
// self-test, which differ between its versions; the others are ours.
var targets = []Target{
	{Name: "slurm-batch", Version: 1, GPUs: 1, VRAM: 6 * gib, CC: 60, LinkWidth: 1, RAM: 8 * gib, Cores: 2, Disk: 60e9},
	{Name: "k8s-inference", Version: 1, GPUs: 1, VRAM: 8 * gib, CC: 75, LinkWidth: 4, RAM: 16 * gib, Cores: 4, AVX2: true, Disk: 100e9, Mbps: 1000},
	{Name: "akash", Version: 1, GPUs: 1, VRAM: 8 * gib, CC: 61, LinkWidth: 4, RAM: 16 * gib, Cores: 4, CoresPerGPU: 1, AVX2: true, Disk: 100e9, Mbps: 1000},
	{Name: "vast", Version: 1, GPUs: 1, VRAM: 7 * gib, CC: 50, LinkGBps: 2.85, RAMPerVRAM: 0.95, CoresPerGPU: 2, AVX2: true, Disk: 100e9, Mbps: 1000},
	{Name: "train", Version: 1, GPUs: 2, VRAM: 16 * gib, CC: 80, LinkWidth: 8, RAMPerVRAM: 1, CoresPerGPU: 4, AVX2: true, Disk: 400e9, Mbps: 10000},
	{Name: "render", Version: 1, GPUs: 1, VRAM: 8 * gib, CC: 75, LinkWidth: 1, RAM: 16 * gib, Cores: 4, AVX2: true, Disk: 100e9},
	{Name: "lab", Version: 1, Special: true, LinkWidth: 1, RAM: gib / 2, Cores: 1, Disk: 1e9},
}

// Targets lists the built-in targets.
func Targets() []Target { return append([]Target(nil), targets...) }

// TargetNamed finds a built-in target.
func TargetNamed(name string) (Target, error) {
	var names []string
	for _, t := range targets {
		if t.Name == name {
			return t, nil
		}
		names = append(names, t.Name)
	}
	return Target{}, fmt.Errorf("unknown triage target %q: there are %s", name, strings.Join(names, ", "))
}
