package convert

import (
	"slices"
	"strconv"

	"smelt/inventory"
)

// verdict holds hardware against the target of the node's class.
func (t *turn) verdict(hw inventory.Hardware) inventory.Verdict {
	class := t.Site.Classes[t.n.Spec.Class]
	v := inventory.Verdict{Target: class.Target, Answer: convertAnswer}
	need := func(r inventory.Reason) {
		if !r.OK {
			v.Answer = "upgrade"
		}
		v.Simulated = v.Simulated || r.Simulated
		v.Reasons = append(v.Reasons, r)
	}
	need(inventory.Reason{Item: "gpus", OK: len(hw.GPUs) >= class.GPUs, Want: strconv.Itoa(class.GPUs), Got: strconv.Itoa(len(hw.GPUs)),
		Fix: "check that every card is seated and powered"})
	for _, g := range hw.GPUs {
		w := g.LinkWidth()
		need(inventory.Reason{Item: "pcie-link", OK: w >= class.MinLinkWidth, Want: "x" + strconv.Itoa(class.MinLinkWidth),
			Got: "x" + strconv.Itoa(w), Where: g.Slot, Part: "GPU " + g.Model + " (" + g.Address + ")", Fix: "move it to a wider slot", Simulated: g.Simulated})
	}
	return v
}

// standIn puts the card that s names in the place of the device at its address.
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
	g.Link.MaxWidth, g.Link.MaxSpeed = 16, 16
}
