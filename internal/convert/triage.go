package convert

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"smelt/inventory"
	"smelt/inventory/triage"
)

// defaultTarget is for nodes whose class names none: the lowest floors that
// still make a useful member of a cluster.
const defaultTarget = "slurm-batch"

// verdict holds hardware against the target of the node and its class.
func (t *turn) verdict(hw inventory.Hardware) inventory.Verdict {
	class := t.Site.Classes[t.n.Spec.Class]
	name, target, err := t.target()
	if err != nil {
		return inventory.Verdict{Target: name, Answer: triage.Unknown,
			Reasons: []inventory.Reason{{Item: "target", Got: name, Fix: "check the target in site.yaml: " + err.Error()}}}
	}
	if cmp.Or(t.n.Spec.Root, class.Root) == inventory.RootRAM {
		target.Disk = 0 // it needs none
	}
	return triage.Judge(hw, target, triage.Expect{
		GPUs: class.GPUs, GPUModel: class.GPUModel, MinLinkWidth: class.MinLinkWidth, Slots: class.Slots,
		Images: t.imageStacks(),
	})
}

// target is what the node is converted for.
func (t *turn) target() (string, triage.Target, error) {
	name := cmp.Or(t.n.Spec.Target, t.Site.Classes[t.n.Spec.Class].Target, defaultTarget)
	target, err := triage.TargetNamed(name)
	return name, target, err
}

// verdictTasks makes work of each reason that a person can do something about.
// A fix begins with its verb.
func verdictTasks(v inventory.Verdict) []inventory.Task {
	verbs := map[string]string{"seat": "reseat", "find": "check", "fit": "plug", "inspect": "check", "read": "check", "update": "check", "add": "plug"}
	for _, w := range []string{"move", "reseat", "replace", "plug", "press", "check", "name"} {
		verbs[w] = w
	}
	var out []inventory.Task
	for _, r := range v.Reasons {
		if r.OK || r.Fix == "" {
			continue
		}
		first, rest, _ := strings.Cut(r.Fix, " ")
		verb, known := verbs[first]
		if !known || verb == "check" && first != "check" {
			verb, rest = "check", r.Item
		}
		what, _, _ := strings.Cut(rest, ":")
		why := fmt.Sprintf("%s is %s, %s wants %s", r.Item, cmp.Or(r.Got, "unknown"), v.Target, cmp.Or(r.Want, "more"))
		if r.Simulated {
			why += " (simulated)"
		}
		out = append(out, inventory.Task{Verb: verb, What: what, Where: r.Where, Why: why, How: r.Fix, Proof: "reinspect"})
	}
	return out
}

// standIn puts the card that s names in the place of the device at its address
// and labels it simulated. The slot is the real one of the emulated machine.
func standIn(hw *inventory.Hardware, s StandIn) {
	i := slices.IndexFunc(hw.GPUs, func(g inventory.GPU) bool { return g.Address == s.PCI })
	if i < 0 {
		j := slices.IndexFunc(hw.PCI, func(p inventory.PCI) bool { return p.Address == s.PCI })
		if j < 0 {
			return
		}
		i = len(hw.GPUs)
		hw.GPUs = append(hw.GPUs, inventory.GPU{PCI: hw.PCI[j]})
	}
	g := &hw.GPUs[i]
	g.Model, g.UUID, g.VRAM, g.Simulated = s.Model, s.UUID, s.VRAM, true
	card, ok := triage.CardByModel(s.Model)
	if !ok {
		return
	}
	g.Link = inventory.PCILink{MaxWidth: card.Width, CurrentWidth: card.Width, MaxSpeed: gts(card.Gen), CurrentSpeed: gts(card.Gen)}
	if g.Port != nil {
		g.Link.CurrentWidth = min(card.Width, g.Port.Link.MaxWidth)
	}
}

// gts is the speed of a PCIe generation in GT/s.
func gts(gen int) float64 {
	speeds := []float64{0, 2.5, 5, 8, 16, 32}
	if gen < 0 || gen >= len(speeds) {
		return 0
	}
	return speeds[gen]
}
