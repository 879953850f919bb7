package check

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"smelt/burnin"
	"smelt/inventory"
)

// PCIe holds the links of every function that inspection found against what
// both of their ends can do and against the class of the node, reads
// configuration space over and over to see functions that drop off the bus,
// and watches the error counters (AER) of each card and its port.
//
// Limits: maxCorrectable, the corrected errors of one function during the
// check (default 10). Uncorrected errors are never accepted.
type PCIe struct {
	Sys string // "" is /sys
}

// ID implements burnin.Check.
func (PCIe) ID() string { return burnin.PCIe }

// Run implements burnin.Check.
func (p PCIe) Run(ctx context.Context, spec burnin.Spec, s burnin.Subject, rec burnin.Recorder) burnin.Result {
	r := begin(p.ID())
	r.WorkUnit = "configuration reads"
	dir := filepath.Join(p.sys(), "bus/pci/devices")
	if _, err := os.Stat(dir); err != nil {
		return errored(r, "this machine has no PCI bus to look at: %v", err)
	}
	ends := map[string]bool{} // functions and ports whose counters are watched
	for _, f := range s.Hardware.PCI {
		ends[f.Address] = true
		if f.Port != nil {
			ends[f.Port.Address] = true
		}
	}
	for _, g := range s.Hardware.GPUs {
		ends[g.Address] = true
		if g.Port != nil {
			ends[g.Port.Address] = true
		}
	}
	if len(ends) == 0 {
		return errored(r, "inspection found no PCI function: there is nothing to compare with")
	}
	before := map[string]aer{}
	for a := range ends {
		before[a] = p.aer(a)
	}

	gone := map[string]bool{}
	var reads int64
	for round := 0; ctx.Err() == nil && (round == 0 || time.Since(r.Started) < spec.Duration); round++ {
		for _, f := range functions(s.Hardware) {
			if gone[f.Address] {
				continue
			}
			if err := p.answers(f); err != nil {
				gone[f.Address] = true
				note(&r, "%s: %v", f.Address, err)
				continue
			}
			reads++
		}
		rec.Progress(frac(time.Since(r.Started), spec.Duration)*0.99, fmt.Sprintf("reading %d functions", len(ends)))
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
	r.Work = float64(reads)

	gpus := map[string]inventory.GPU{}
	for _, g := range s.Hardware.GPUs {
		gpus[g.Address] = g
	}
	for _, f := range functions(s.Hardware) {
		g, isGPU := gpus[f.Address]
		item, where := "PCI device "+f.Address, ""
		if f.Port != nil {
			where = f.Port.Slot
		}
		if isGPU {
			item = "GPU " + f.Address
			if g.Slot != "" {
				where = g.Slot
			}
		}
		find := func(name string, v float64, unit, cause string) burnin.Finding {
			return burnin.Finding{Item: item, Where: where, Name: name, Value: v, Unit: unit, Cause: cause}
		}
		if gone[f.Address] {
			cause := burnin.CausePCIeErrors
			if isGPU {
				cause = burnin.CauseGPULost
			}
			r.Findings = append(r.Findings, atLeast(find("answers on the bus", 0, "", cause), 1))
			continue
		}
		dev, port := p.link(f.Address), inventory.PCILink{}
		if f.Port != nil {
			port = p.link(f.Port.Address)
		}
		able := narrower(dev.MaxWidth, port.MaxWidth)
		if isGPU && able > 0 {
			if want := s.Class.MinLinkWidth; want > 0 {
				// What the slot has, not what the card says: a card on an x1
				// riser calls one lane its maximum.
				w := atLeast(find("link width", float64(able), " lanes", burnin.CauseLinkWidth), float64(want))
				if port.MaxWidth > 0 && port.MaxWidth < want {
					w.Fix = fmt.Sprintf("move it to a slot with %d lanes or more", want)
				}
				r.Findings = append(r.Findings, w)
			} else {
				w := find("link width", float64(able), " lanes", "")
				w.Status = burnin.Pass
				r.Findings = append(r.Findings, w)
			}
		}
		if cur := narrower(dev.CurrentWidth, port.CurrentWidth); cur > 0 && able > 0 {
			// Width does not shrink when a link idles, only speed does.
			w := atLeast(find("lanes in use", float64(cur), " lanes", burnin.CauseLinkWidth), float64(able))
			if w.Status == burnin.Fail {
				w.Fix = "reseat it: both ends can do more"
			}
			r.Findings = append(r.Findings, w)
		}
		if v := slower(dev.MaxSpeed, port.MaxSpeed); v > 0 {
			w := find("link speed possible", v, " GT/s", "")
			w.Status = burnin.Pass
			r.Findings = append(r.Findings, w)
		}
		if f.Port != nil {
			r.Findings = append(r.Findings, p.errorFindings(find, spec, f.Port.Address, before)...)
		}
		r.Findings = append(r.Findings, p.errorFindings(find, spec, f.Address, before)...)
	}
	finish(ctx, &r, fmt.Sprintf("%d functions answered every time", len(functions(s.Hardware))))
	return r
}

func (p PCIe) sys() string {
	if p.Sys == "" {
		return "/sys"
	}
	return p.Sys
}

// functions are the ends of links: cards, not bridges.
func functions(h inventory.Hardware) []inventory.PCI {
	var out []inventory.PCI
	seen := map[string]bool{}
	for _, g := range h.GPUs {
		out, seen[g.Address] = append(out, g.PCI), true
	}
	for _, f := range h.PCI {
		if !seen[f.Address] && !strings.HasPrefix(f.Class, "06") {
			out, seen[f.Address] = append(out, f), true
		}
	}
	return out
}

// answers reads the identity from configuration space. A function that has
// dropped off the bus reads as all ones.
func (p PCIe) answers(f inventory.PCI) error {
	c, err := os.Open(filepath.Join(p.sys(), "bus/pci/devices", f.Address, "config"))
	if err != nil {
		return fmt.Errorf("it is gone: %v", err)
	}
	defer c.Close()
	var b [4]byte
	if _, err := c.ReadAt(b[:], 0); err != nil {
		return fmt.Errorf("it does not answer: %v", err)
	}
	got := fmt.Sprintf("%04x:%04x", binary.LittleEndian.Uint16(b[:]), binary.LittleEndian.Uint16(b[2:]))
	switch want := f.Vendor + ":" + f.Device; got {
	case want:
		return nil
	case "ffff:ffff":
		return fmt.Errorf("it fell off the bus")
	default:
		return fmt.Errorf("it is %s now, inspection found %s", got, want)
	}
}

func (p PCIe) link(addr string) inventory.PCILink {
	dir := filepath.Join(p.sys(), "bus/pci/devices", addr)
	width := func(f string) int {
		n, ok := readInt(filepath.Join(dir, f))
		if !ok || n < 1 || n > 32 { // 255 and 0: no link
			return 0
		}
		return int(n)
	}
	speed := func(f string) float64 {
		l, _ := readLine(filepath.Join(dir, f))
		v, _, _ := strings.Cut(l, " ")
		n, err := strconv.ParseFloat(v, 64)
		if err != nil || !(n > 0 && n < 1000) {
			return 0
		}
		return n
	}
	return inventory.PCILink{
		MaxWidth: width("max_link_width"), MaxSpeed: speed("max_link_speed"),
		CurrentWidth: width("current_link_width"), CurrentSpeed: speed("current_link_speed"),
	}
}

// narrower is the smaller of those that are known.
func narrower(a, b int) int {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

func slower(a, b float64) float64 {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

// aer is the error counters of one end of a link; known is false where the
// function keeps none.
type aer struct {
	correctable, uncorrectable int64
	known                      bool
}

// aer reads the totals (Documentation/ABI/testing/sysfs-bus-pci-devices-aer_stats).
func (p PCIe) aer(addr string) aer {
	var out aer
	total := func(file, name string) int64 {
		b, err := os.ReadFile(filepath.Join(p.sys(), "bus/pci/devices", addr, file))
		if err != nil {
			return 0
		}
		for l := range strings.Lines(string(b)) {
			if f := strings.Fields(l); len(f) == 2 && f[0] == name {
				n, err := strconv.ParseInt(f[1], 10, 64)
				if err == nil {
					out.known = true
					return n
				}
			}
		}
		return 0
	}
	out.correctable = total("aer_dev_correctable", "TOTAL_ERR_COR")
	out.uncorrectable = total("aer_dev_fatal", "TOTAL_ERR_FATAL") + total("aer_dev_nonfatal", "TOTAL_ERR_NONFATAL")
	return out
}

func (p PCIe) errorFindings(find func(string, float64, string, string) burnin.Finding, spec burnin.Spec, addr string, before map[string]aer) []burnin.Finding {
	now, was := p.aer(addr), before[addr]
	if !now.known {
		return nil
	}
	return []burnin.Finding{
		atMost(find("corrected link errors at "+addr, float64(now.correctable-was.correctable), "", burnin.CausePCIeErrors), limit(spec, "maxCorrectable", 10)),
		atMost(find("uncorrected link errors at "+addr, float64(now.uncorrectable-was.uncorrectable), "", burnin.CausePCIeErrors), 0),
	}
}
