package burnin

import (
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"smelt/inventory"
)

// Causes that Judge has words for. A check may set another one: then its Fix
// says what to do.
const (
	CauseGPULost     = "gpu-lost"     // fell off the bus
	CauseGPUMissing  = "gpu-missing"  // not on the bus or not known to the driver
	CauseGPUMismatch = "gpu-mismatch" // another card than inspection found
	CauseLinkWidth   = "link-width"
	CauseLinkSpeed   = "link-speed"
	CausePCIeErrors  = "pcie-errors"
	CauseVRAM        = "vram"
	CauseCompute     = "compute"
	CauseSlow        = "slow"
	CauseHot         = "hot"
	CausePower       = "power"
	CauseCPU         = "cpu"
	CauseMemory      = "memory"
	CauseDisk        = "disk"
	CauseDiskSlow    = "disk-slow"
	CauseNetwork     = "network"
	CauseSystem      = "system" // the installed system, not a part of the machine
)

// verbs are what a technician can do with hands; tasks use the same words.
var verbs = []string{"move", "reseat", "replace", "plug", "press", "check", "clean"}

// remedies: the first thing to try for each cause. part goes around the name
// of the item; a Fix of the finding that begins with one of the verbs wins
// over verb, because the check saw more.
var remedies = map[string]struct{ verb, part, why string }{
	CauseGPULost:     {"reseat", "%s", "it fell off the bus under load"},
	CauseGPUMissing:  {"reseat", "%s", "it was found before and cannot be seen now"},
	CauseGPUMismatch: {"check", "%s", "it is not the card that was found there before"},
	CauseLinkWidth:   {"move", "%s", "its link is too narrow"},
	CauseLinkSpeed:   {"reseat", "%s", "its link is too slow"},
	CausePCIeErrors:  {"reseat", "%s and its riser", "its link makes errors"},
	CauseVRAM:        {"replace", "%s", "its memory returned wrong data"},
	CauseCompute:     {"replace", "%s", "it computed wrong results"},
	CauseSlow:        {"check", "power plugs and cooler of %s", "it is slower than it should be"},
	CauseHot:         {"check", "fans and heat sink of %s", "it gets too hot"},
	CausePower:       {"plug", "power cables of %s", "it is not getting its power"},
	CauseCPU:         {"check", "cooler and seat of %s", "it computed wrong results"},
	CauseMemory:      {"reseat", "%s", "it returned wrong data"},
	CauseDisk:        {"replace", "%s", "it returned wrong data or errors"},
	CauseDiskSlow:    {"check", "cable of %s", "it is too slow"},
	CauseNetwork:     {"check", "cable of %s", "the network is too slow or loses data"},
	CauseSystem:      {"check", "installed system: %s", "it did not come up as its image should"},
}

// String is the repair as a sentence: "Reseat GPU RTX 3090 in slot 2: it fell
// off the bus under load".
func (r Repair) String() string {
	s := r.Verb + " " + r.What
	if r.Where != "" {
		s += " " + preposition(r.Where) + " " + r.Where
	}
	if r.Why != "" {
		s += ": " + r.Why
	}
	first, n := utf8.DecodeRuneInString(s)
	return string(unicode.ToUpper(first)) + s[n:]
}

func preposition(place string) string {
	if strings.HasPrefix(place, "slot ") || strings.HasPrefix(place, "bay ") {
		return "in"
	}
	return "at"
}

func (r Repair) same(o Repair) bool {
	return r.Verb == o.Verb && r.What == o.What && r.Where == o.Where
}

// repairOf turns a failed finding into work for a human. Where is a place
// inside the machine; whoever shows it puts the machine's position before it.
func repairOf(r Report, f Finding) Repair {
	what, where := f.Item, place(f.Where)
	if g, ok := gpuOf(r.Hardware, f.Item); ok {
		what = "GPU " + ShortModel(g.Model)
		if g.Model == "" {
			what = "GPU"
		}
		if where == "" {
			where = place(g.Slot)
		}
		if where == "" && g.Port != nil && g.Port.Slot != "" {
			where = place(g.Port.Slot)
		}
		if where == "" {
			where = "PCI " + g.Address
		}
	}
	if what == "" {
		what = "machine"
	}
	rep := Repair{Verb: "check", What: what, Where: where, Why: f.String()}
	if rem, ok := remedies[f.Cause]; ok {
		rep.Verb, rep.What, rep.Why = rem.verb, fmt.Sprintf(rem.part, what), rem.why
		if f.Cause != CauseGPULost && f.Cause != CauseGPUMissing {
			rep.Why += " (" + strings.TrimPrefix(f.String(), f.Item+" ") + ")"
		}
	}
	// A bare verb in Fix is taken over; a whole instruction goes after the why.
	if verb, rest, _ := strings.Cut(f.Fix, " "); f.Fix != "" {
		if v := strings.ToLower(verb); slices.Contains(verbs, v) {
			rep.Verb = v
			if v != "check" && v != "plug" && v != "clean" {
				rep.What = what
			}
		}
		if strings.TrimSpace(rest) != "" {
			rep.Why += "; " + f.Fix
		}
	}
	return rep
}

func subjectOf(check string) string {
	if s := subjects[check]; s != "" {
		return s
	}
	return "machine"
}

// place makes a slot label readable: a bare "2" is "slot 2".
func place(label string) string {
	label = strings.TrimSpace(label)
	if label == "" || strings.ContainsAny(label, " :") {
		return label
	}
	if len(label) <= 3 {
		return "slot " + label
	}
	return label
}

// gpuOf finds the card that an item like "GPU 0000:01:00.0" is about.
func gpuOf(h inventory.Hardware, item string) (inventory.GPU, bool) {
	for _, g := range h.GPUs {
		if g.Address != "" && strings.Contains(strings.ToLower(item), strings.ToLower(g.Address)) {
			return g, true
		}
	}
	return inventory.GPU{}, false
}

// ShortModel is the name of a card as people say it: "RTX 3090".
func ShortModel(m string) string {
	for _, p := range []string{"NVIDIA ", "GeForce ", "Tesla "} {
		m = strings.TrimPrefix(m, p)
	}
	return m
}
