package convert

import (
	"fmt"
	"slices"
	"strings"

	"smelt/inventory"
)

const hardwareChanged = "hardware-changed"

// proven tells whether the last PASS answers for the hardware and the image
// that the node has now. Only then may a cluster give it work.
func proven(n inventory.Node) bool {
	return n.Passed != nil && n.Hardware != nil && n.Image != "" &&
		n.Passed.Hardware == n.Hardware.Digest() && n.Passed.Image == n.Image
}

// asApproved tells whether the node has the hardware that its plan was made
// for. A node without a plan was approved for what it has.
func asApproved(n inventory.Node) bool {
	return n.Plan == nil || n.Hardware != nil && n.Hardware.Digest() == n.Plan.Hardware
}

// hardwareOf returns the hardware of an earlier inspection by its digest, or nil.
func (t *turn) hardwareOf(digest string) (*inventory.Hardware, error) {
	h, err := t.all()
	if err != nil {
		return nil, err
	}
	for i := len(h) - 1; i >= 0; i-- {
		if hw := h[i].Hardware; hw != nil && hw.Digest() == digest {
			return hw, nil
		}
	}
	return nil, nil
}

// failChanged fails the node because it is not the hardware of digest any
// more, with a task for everything that is missing.
func (t *turn) failChanged(digest string) error {
	was, err := t.hardwareOf(digest)
	if err != nil {
		return err
	}
	detail, tasks := changes(was, *t.n.Hardware)
	for i := range tasks {
		tasks[i].Proof = "reinspect"
		if t.n.Joined {
			// Inspection from the network is for nodes of no cluster: it burns
			// in again, and does so only as the hardware that was approved.
			tasks[i].Proof = "burnin"
		}
	}
	return t.fail(hardwareChanged, detail, tasks...)
}

// changes says what is different between two inspections of one machine, and
// what a person can do about it. was is nil when nobody remembers.
func changes(was *inventory.Hardware, is inventory.Hardware) (detail string, tasks []inventory.Task) {
	const why = "it was there when the hardware was approved"
	var said []string
	if was != nil {
		for _, g := range was.GPUs {
			name := fmt.Sprintf("GPU %s (%s)", g.Model, g.Address)
			i := slices.IndexFunc(is.GPUs, func(o inventory.GPU) bool { return o.Address == g.Address })
			switch {
			case i < 0:
				said = append(said, name+" is missing")
				tasks = append(tasks, inventory.Task{Verb: "reseat", What: name, Where: slotOf(g), Why: why})
			case is.GPUs[i].Model != g.Model || is.GPUs[i].Device != g.Device || is.GPUs[i].UUID != g.UUID:
				said = append(said, name+" is another card now")
			}
		}
		for _, d := range was.Disks {
			if d.Removable || slices.ContainsFunc(is.Disks, func(o inventory.Disk) bool { return o.Serial == d.Serial && o.WWN == d.WWN && o.Size == d.Size }) {
				continue
			}
			said = append(said, d.DiskID.String()+" is missing")
			tasks = append(tasks, inventory.Task{Verb: "reseat", What: d.DiskID.String(), Why: why})
		}
		if was.Memory.Total-is.Memory.Total >= 1<<30 {
			said = append(said, fmt.Sprintf("it had %d MiB of memory and has %d", was.Memory.Total>>20, is.Memory.Total>>20))
			tasks = append(tasks, inventory.Task{Verb: "check", What: "its memory modules", Why: why})
		}
	}
	detail = "its hardware is not what was approved"
	if len(said) > 0 {
		detail += ": " + strings.Join(said, "; ")
	}
	if len(tasks) == 0 {
		tasks = []inventory.Task{{Verb: "check", What: "what was changed in the machine since its approval", Why: detail}}
	}
	return detail, tasks
}

func slotOf(g inventory.GPU) string {
	if g.Slot == "" {
		return ""
	}
	return "slot " + g.Slot
}
