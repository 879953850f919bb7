// Package triage says what a machine is worth for a target: convert it,
// upgrade it (with which part, in which place), take it apart for its cards,
// recycle it, or measure first. It knows cards by PCI id and boards by name
// from two tables, cards.csv and boards.csv.
//
// It decides from what inspection found and fails closed: a fact that a floor
// needs and that is missing makes the verdict unknown, never convert.
package triage

import (
	"fmt"
	"slices"
	"strings"

	"smelt/inventory"
)

// The answers of a verdict.
const (
	Convert = "convert"  // every floor is met
	Upgrade = "upgrade"  // the reasons name what to move, add or replace
	PartOut = "part-out" // its cards are good, its board can never feed them
	Recycle = "recycle"  // none of its cards meets the target
	Unknown = "unknown"  // facts are missing
)

// Expect is what the class of a node demands beyond the target.
type Expect struct {
	GPUs         int
	GPUModel     string
	MinLinkWidth int
	Slots        map[string]string // PCI address of a port or GPU -> label a technician can find
	Images       []Stack           // what the variants of its image bring; none: not known yet
}

// Judge holds hw against the floors of target and what its class expects. Each
// floor gives one reason, or one for each GPU that misses it.
func Judge(hw inventory.Hardware, target Target, class Expect) inventory.Verdict {
	j := judge{hw: hw, target: target, class: class}
	j.board, j.boardKnown = BoardByProduct(hw.Board.Product)
	j.findGPUs()
	j.count()
	j.model()
	j.vram()
	j.compute()
	j.links()
	j.driver()
	j.memory()
	j.cpu()
	j.disk()
	j.network()
	return j.verdict()
}

// fault is what a missed floor means for the machine.
type fault int

const (
	none    fault = iota
	missing       // a fact is missing
	host          // a part, a move or a setting helps
	dead          // the board can never do it
	card          // this GPU can never do it
)

type judge struct {
	hw         inventory.Hardware
	target     Target
	class      Expect
	board      Board
	boardKnown bool

	gpus    []gpu
	faults  []fault
	reasons []inventory.Reason
}

// gpu is a card in the machine with what the table knows of it.
type gpu struct {
	inventory.GPU
	card  Card
	known bool
	unfit bool // misses a floor by itself, in any machine
}

func (j *judge) say(f fault, r inventory.Reason) {
	r.OK = f == none
	j.faults = append(j.faults, f)
	j.reasons = append(j.reasons, r)
}

// findGPUs leaves out what a CPU or a BMC brings along.
func (j *judge) findGPUs() {
	for _, g := range j.hw.GPUs {
		c, known := CardByID(g.Vendor, g.Device)
		if g.Simulated { // a QEMU device that stands for a card: only its name tells which
			c, known = CardByModel(g.Model)
		}
		if known && c.Use == IGPU || !g.Simulated && g.Vendor != "10de" && g.Vendor != "1002" {
			continue
		}
		j.gpus = append(j.gpus, gpu{GPU: g, card: c, known: known})
	}
}

func (g gpu) name() string {
	switch {
	case g.known:
		return g.card.Model
	case g.Model != "":
		return g.Model
	}
	return g.Vendor + ":" + g.Device
}

// where is the place of g as a technician can find it.
func (j *judge) where(g gpu) string {
	if g.Slot != "" {
		return g.Slot
	}
	if l := j.class.Slots[g.Address]; l != "" {
		return l
	}
	_, port := j.link(g)
	for _, p := range []*inventory.Port{port, g.Port} {
		if p == nil {
			continue
		}
		if l := j.class.Slots[p.Address]; l != "" {
			return l
		}
		if p.Slot != "" {
			return "slot " + p.Slot
		}
	}
	return g.Address
}

func (j *judge) count() {
	want := max(j.target.GPUs, j.class.GPUs)
	if want == 0 {
		return
	}
	sim := slices.ContainsFunc(j.gpus, func(g gpu) bool { return g.Simulated })
	r := inventory.Reason{Item: "gpus", Want: fmt.Sprint(want), Got: fmt.Sprint(len(j.gpus)), Simulated: sim}
	switch {
	case j.unread("gpus"), j.unread("pci"):
		r.Got, r.Fix = "unknown", "inspect it again: its PCI bus could not be read"
		j.say(missing, r)
	case len(j.gpus) < want:
		r.Fix = fmt.Sprintf("find the %d that do not show: seat each card and riser, plug its power, enable \"Above 4G decoding\" in the BIOS setup; or fit them", want-len(j.gpus))
		r.Part = "GPU"
		j.say(host, r)
	default:
		j.say(none, r)
	}
}

// unread tells whether inspection could not read a fact.
func (j *judge) unread(fact string) bool { return slices.Contains(j.hw.Missing, fact) }

func (j *judge) model() {
	if j.class.GPUModel == "" {
		return
	}
	for _, g := range j.gpus {
		if foldModel(g.name()) == foldModel(j.class.GPUModel) || foldModel(g.Model) == foldModel(j.class.GPUModel) {
			continue
		}
		w := j.where(g)
		j.say(host, inventory.Reason{Item: "gpu-model", Want: j.class.GPUModel, Got: g.name(), Where: w, Simulated: g.Simulated,
			Fix: fmt.Sprintf("replace GPU %s in %s by a %s, or give the node another class", g.name(), w, j.class.GPUModel), Part: j.class.GPUModel})
	}
}

// size is the VRAM of g as read, or as the table knows it for certain.
func (g gpu) size() int64 {
	if g.VRAM > 0 {
		return g.VRAM
	}
	if g.known && len(g.card.VRAM) == 1 {
		return g.card.VRAM[0]
	}
	return 0
}

func (j *judge) vram() {
	floor := j.target.VRAM
	if floor == 0 || len(j.gpus) == 0 {
		return
	}
	j.each("vram", "at least "+size(floor)+" each", func(g gpu) (fault, inventory.Reason) {
		got := g.size()
		if got == 0 && g.known && len(g.card.VRAM) > 0 {
			// Sold with several sizes: the same answer with each will do.
			switch {
			case slices.Min(g.card.VRAM) >= floor:
				got = slices.Min(g.card.VRAM)
			case slices.Max(g.card.VRAM) < floor:
				got = slices.Max(g.card.VRAM)
			}
		}
		switch {
		case got == 0:
			return missing, inventory.Reason{Got: "unknown", Fix: "read its memory size with its driver: PCI does not tell it for " + g.name()}
		case got < floor/100*95: // a driver keeps some: a "24 GB" card shows less
			return card, inventory.Reason{Got: size(got), Fix: fmt.Sprintf("replace GPU %s in %s: its memory cannot grow", g.name(), j.where(g)), Part: "GPU"}
		}
		return none, inventory.Reason{Got: size(got)}
	})
}

func (j *judge) compute() {
	if len(j.gpus) == 0 || j.target.CC == 0 && j.target.Special {
		return
	}
	want := "a supported card"
	if j.target.CC > 0 {
		want = "compute capability " + capability(j.target.CC) + " or later"
	}
	j.each("compute", want, func(g gpu) (fault, inventory.Reason) {
		replace := fmt.Sprintf("replace GPU %s in %s, or choose a target that takes it", g.name(), j.where(g))
		switch {
		case !g.known:
			return missing, inventory.Reason{Got: "unknown card " + g.name(), Fix: unknownCard}
		case g.card.Use == None:
			return card, inventory.Reason{Got: g.card.Arch + ", of no use", Fix: replace, Part: "GPU"}
		case g.card.Use == Special && !j.target.Special:
			return card, inventory.Reason{Got: g.card.Arch + ", runs only kernels made for it", Fix: replace, Part: "GPU"}
		case g.card.CC < j.target.CC:
			return card, inventory.Reason{Got: g.card.Arch + " " + capability(g.card.CC), Fix: replace, Part: "GPU"}
		}
		return none, inventory.Reason{Got: strings.TrimSpace(g.card.Arch + " " + capability(g.card.CC))}
	})
}

const unknownCard = "this smelt does not know the card: update it, or send its PCI id"

func capability(cc int) string {
	if cc == 0 {
		return ""
	}
	return fmt.Sprintf("%d.%d", cc/10, cc%10)
}

// link is the link between the card and its slot: its end in the card and its
// end in the board. Radeons since Vega carry a PCIe switch of their own, whose
// inner link always shows full width: the real one is two bridges up.
func (j *judge) link(g gpu) (inventory.PCILink, *inventory.Port) {
	link, port := g.Link, g.Port
	for range 2 {
		if port == nil {
			break
		}
		i := slices.IndexFunc(j.hw.PCI, func(p inventory.PCI) bool { return p.Address == port.Address })
		if i < 0 || j.hw.PCI[i].Vendor != "1002" || !strings.HasPrefix(j.hw.PCI[i].Class, "0604") {
			break
		}
		link, port = j.hw.PCI[i].Link, j.hw.PCI[i].Port
	}
	if g.Simulated && g.known && port != nil {
		// QEMU's endpoints all claim one lane: the card that this one stands
		// for would use what the slot has, and the slot is real here.
		link = inventory.PCILink{MaxWidth: g.card.Width, CurrentWidth: min(g.card.Width, port.Link.MaxWidth)}
	}
	return link, port
}

// lane is the payload of one PCIe lane in GB/s at gts GT/s, after the line
// code (8b/10b up to 5 GT/s, 128b/130b above).
func lane(gts float64) float64 {
	if gts <= 5 {
		return gts * 0.8 / 8
	}
	return gts * 128 / 130 / 8
}

// links tells the cases apart: the card has too few lanes, the slot has, the
// link between them trained narrower than both can (a riser, a bad contact),
// or all is well.
func (j *judge) links() {
	need := max(j.target.LinkWidth, j.class.MinLinkWidth)
	if len(j.gpus) == 0 || need == 0 && j.target.LinkGBps == 0 {
		return
	}
	want := fmt.Sprintf("x%d", max(need, 1))
	if j.target.LinkGBps > 0 {
		want += fmt.Sprintf(", %.2f GB/s", j.target.LinkGBps)
	}
	j.each("pcie-link", want, func(g gpu) (fault, inventory.Reason) {
		link, port := j.link(g)
		w := j.where(g)
		dev := link.MaxWidth
		if dev == 0 && g.known {
			dev = g.card.Width
		}
		if dev == 0 || port == nil || port.Link.MaxWidth == 0 || link.CurrentWidth == 0 {
			return missing, inventory.Reason{Got: "unknown", Fix: "inspect it again: the PCIe link of GPU " + g.name() + " could not be read at both ends"}
		}
		slot, cur := port.Link.MaxWidth, link.CurrentWidth
		// An idle link slows down by design: what both ends can do counts.
		speed := link.MaxSpeed
		if speed == 0 || port.Link.MaxSpeed > 0 && port.Link.MaxSpeed < speed {
			speed = port.Link.MaxSpeed
		}
		if j.target.LinkGBps > 0 && speed == 0 {
			return missing, inventory.Reason{Got: fmt.Sprintf("x%d, speed unknown", cur), Fix: "inspect it again: the speed of the PCIe link could not be read"}
		}
		enough := func(width int) bool { return width >= need && float64(width)*lane(speed) >= j.target.LinkGBps }
		got := fmt.Sprintf("x%d (card x%d, slot x%d)", cur, dev, slot)
		switch {
		case enough(cur):
			return none, inventory.Reason{Got: got}
		case !enough(dev):
			return card, inventory.Reason{Got: got, Part: "GPU",
				Fix: fmt.Sprintf("replace GPU %s in %s: the card itself has x%d", g.name(), w, dev)}
		case !enough(slot):
			f := host
			if j.boardKnown && len(j.gpus) > j.board.Wide {
				f = dead
			}
			return f, inventory.Reason{Got: got, Fix: fmt.Sprintf("move GPU %s from %s (x%d) to an x%d slot", g.name(), w, slot, dev)}
		case cur == 1:
			return host, inventory.Reason{Got: got, Part: fmt.Sprintf("x%d riser", min(dev, slot)),
				Fix: fmt.Sprintf("plug GPU %s in %s straight into its slot, or replace its x1 riser by a shielded x%d one", g.name(), w, min(dev, slot))}
		}
		return host, inventory.Reason{Got: got,
			Fix: fmt.Sprintf("seat GPU %s in %s again and clean its contacts: the link uses %d of %d lanes", g.name(), w, cur, min(dev, slot))}
	})
	if slices.Contains(j.faults, dead) {
		j.say(dead, inventory.Reason{Item: "board", Want: fmt.Sprintf("%d wide slots", len(j.gpus)), Got: fmt.Sprintf("%d (%s)", j.board.Wide, j.board.Model),
			Fix:  fmt.Sprintf("move the cards to a server board: the %d other slots of %s have one lane", j.board.Narrow, j.board.Model),
			Part: "server board, CPU and memory"})
	}
}

func (j *judge) driver() {
	sim := false
	for _, g := range j.gpus {
		if !g.known {
			j.say(missing, inventory.Reason{Item: "driver", Want: "one driver for all cards", Got: "unknown card " + g.name(), Where: j.where(g), Simulated: g.Simulated, Fix: unknownCard})
			return
		}
		sim = sim || g.Simulated
	}
	cards, err := j.cards()
	if err != nil || len(cards) == 0 {
		return
	}
	driver, err := common(cards)
	if err != nil {
		for _, i := range misfits(cards) {
			g, w := j.gpus[i], j.where(j.gpus[i])
			j.say(host, inventory.Reason{Item: "driver", Want: "one driver for all cards", Got: err.Error(), Where: w, Simulated: g.Simulated,
				Fix: fmt.Sprintf("move GPU %s from %s to a machine of its own kind: no driver runs it together with the others", g.name(), w)})
		}
		return
	}
	j.say(none, inventory.Reason{Item: "driver", Want: "one driver for all cards", Got: driver, Simulated: sim})
	j.image(cards, sim)
}

func (j *judge) memory() {
	var vram int64
	for _, g := range j.gpus {
		vram += g.size()
	}
	want := max(j.target.RAM, int64(j.target.RAMPerVRAM*float64(vram)))
	if want == 0 {
		return
	}
	got := int64(0) // as fitted; the kernel keeps some of it
	for _, d := range j.hw.Memory.DIMMs {
		got += d.Size
	}
	got = max(got, j.hw.Memory.Total)
	r := inventory.Reason{Item: "ram", Want: size(want), Got: size(got)}
	switch {
	case got == 0 || j.unread("memory"):
		r.Got, r.Fix = "unknown", "inspect it again: its memory could not be read"
		j.say(missing, r)
	case got >= want/100*93: // without SMBIOS only the kernel's count is known
		j.say(none, r)
	case j.boardKnown && want > j.board.RAM:
		r.Fix = fmt.Sprintf("move the cards to another board: %s takes %s at most", j.board.Model, size(j.board.RAM))
		j.say(dead, r)
	default:
		r.Part = "memory, " + size(want-got)
		r.Fix = "add " + size(want-got) + " of memory"
		j.say(host, r)
	}
}

func (j *judge) cpu() {
	c := j.hw.CPU
	if want := max(j.target.Cores, int(j.target.CoresPerGPU*float64(len(j.gpus))+0.999)); want > 0 {
		r := inventory.Reason{Item: "cores", Want: fmt.Sprint(want), Got: fmt.Sprint(c.Cores)}
		switch {
		case c.Cores == 0 || j.unread("cpu"):
			r.Got, r.Fix = "unknown", "inspect it again: its CPU could not be read"
			j.say(missing, r)
		case c.Cores < want:
			r.Fix, r.Part = fmt.Sprintf("fit a CPU with %d cores or more in place of %s", want, c.Model), "CPU"
			j.say(host, r)
		default:
			j.say(none, r)
		}
	}
	if !j.target.AVX2 || j.hw.Firmware.Arch != "" && j.hw.Firmware.Arch != "amd64" {
		return
	}
	// Celerons and Pentiums of the mining boards have no AVX: the usual builds
	// of the frameworks end with SIGILL.
	r := inventory.Reason{Item: "avx2", Want: "yes", Got: "yes"}
	switch {
	case len(c.Flags) == 0 || j.unread("cpu"):
		r.Got, r.Fix = "unknown", "inspect it again: its CPU flags could not be read"
		j.say(missing, r)
	case !slices.Contains(c.Flags, "avx2"):
		r.Got, r.Fix, r.Part = "no", "fit a CPU with AVX2 in place of "+c.Model, "CPU"
		j.say(host, r)
	default:
		j.say(none, r)
	}
}

func (j *judge) disk() {
	if j.target.Disk == 0 {
		return
	}
	var largest int64
	for _, d := range j.hw.Disks {
		if !d.Removable && d.Bus != "usb" {
			largest = max(largest, d.Size)
		}
	}
	r := inventory.Reason{Item: "disk", Want: fmt.Sprintf("%.0f GB", float64(j.target.Disk)/1e9), Got: fmt.Sprintf("%.0f GB", float64(largest)/1e9)}
	switch {
	case j.unread("disks"):
		r.Got, r.Fix = "unknown", "inspect it again: its disks could not be read"
		j.say(missing, r)
	case largest < j.target.Disk:
		r.Part = "SSD, " + r.Want
		r.Fix = "fit a fixed disk of " + r.Want + " or more; a USB stick does not count"
		j.say(host, r)
	default:
		j.say(none, r)
	}
}

func (j *judge) network() {
	if j.target.Mbps == 0 {
		return
	}
	fastest := 0
	for _, n := range j.hw.NICs {
		fastest = max(fastest, n.Speed)
	}
	r := inventory.Reason{Item: "network", Want: fmt.Sprintf("%d Mbit/s", j.target.Mbps), Got: fmt.Sprintf("%d Mbit/s", fastest)}
	switch {
	case fastest == 0:
		r.Got, r.Fix = "unknown", "plug its cable in and inspect it again: no network link could be read"
		j.say(missing, r)
	case fastest < j.target.Mbps:
		r.Fix, r.Part = "replace the cable and use a faster switch port; else fit a faster network card", "network card"
		j.say(host, r)
	default:
		j.say(none, r)
	}
}

// each asks f for every GPU. Those that miss the floor get a reason of their
// own, with their place; if none does, one reason tells of all.
func (j *judge) each(item, want string, f func(gpu) (fault, inventory.Reason)) {
	var got []string
	sim, failed := false, false
	for i, g := range j.gpus {
		sim = sim || g.Simulated
		fault, r := f(g)
		r.Item, r.Want, r.Simulated = item, want, g.Simulated
		if fault == none {
			got = append(got, r.Got)
			continue
		}
		failed = true
		j.gpus[i].unfit = g.unfit || fault == card
		r.Where = j.where(g)
		j.say(fault, r)
	}
	if !failed {
		j.say(none, inventory.Reason{Item: item, Want: want, Got: summary(got), Simulated: sim})
	}
}

// summary is "6 x 10 GiB" for six equal facts.
func summary(facts []string) string {
	count := map[string]int{}
	for _, f := range facts {
		count[f]++
	}
	var out []string
	for i, f := range facts {
		switch {
		case slices.Contains(facts[:i], f):
		case count[f] > 1:
			out = append(out, fmt.Sprintf("%d x %s", count[f], f))
		default:
			out = append(out, f)
		}
	}
	return strings.Join(out, ", ")
}

func (j *judge) verdict() inventory.Verdict {
	v := inventory.Verdict{Target: j.target.Name, Reasons: j.reasons}
	fit := 0
	for _, g := range j.gpus {
		v.Simulated = v.Simulated || g.Simulated
		if !g.unfit {
			fit++
		}
	}
	has := func(f fault) bool { return slices.Contains(j.faults, f) }
	switch {
	case has(missing):
		v.Answer = Unknown
	case has(card) && fit == 0:
		v.Answer = Recycle
	case has(dead):
		v.Answer = PartOut
	case has(host) || has(card):
		v.Answer = Upgrade
	default:
		v.Answer = Convert
	}
	return v
}

// size writes bytes in GiB.
func size(n int64) string {
	s := fmt.Sprintf("%.1f", float64(n)/gib)
	return strings.TrimSuffix(s, ".0") + " GiB"
}
