package doctor

import (
	"slices"
	"strings"

	"smelt/pxe"
)

// way is one way that firmware starts.
type way struct {
	name   string
	tftp   bool // needs TFTP
	asked  string
	files  []string // all of them; of "a|b" one
	https  bool     // needs boot HTTPS
	unsure string   // what the machine itself must have
}

// ways are the boot modes that people ask about. Whatever starts, the rest
// comes by HTTP.
var ways = []way{
	{name: "BIOS, PXE ROM", tftp: true, asked: "BIOS PXE", files: []string{pxe.LoaderBIOS}},
	{name: "BIOS, iPXE ROM", asked: "BIOS PXE"},
	{name: "UEFI PXE", tftp: true, asked: "UEFI PXE", files: []string{pxe.LoaderUEFI}},
	{name: "UEFI HTTP", asked: "UEFI HTTP", files: []string{pxe.LoaderUKI + "|" + pxe.LoaderUEFI}},
	{name: "UEFI HTTPS", https: true, asked: "UEFI HTTP", files: []string{pxe.LoaderUKI + "|" + pxe.LoaderUEFI}, unsure: "each machine must have the site's boot CA enrolled: smelt secureboot export"},
	{name: "UEFI on ARM64", tftp: true, asked: "UEFI PXE", files: []string{pxe.LoaderARM64}},
	{name: "Secure Boot, vendor's keys", asked: "UEFI PXE", files: []string{pxe.LoaderShim, pxe.LoaderGRUB}},
	{name: "Secure Boot, site's key", asked: "UEFI HTTP", files: []string{pxe.LoaderUKI}, unsure: "each machine must have the site's key enrolled: smelt secureboot export"},
}

// modes says which ways work on the network of f with the files served.
func modes(f *facts, served map[string]service) []Mode {
	var out []Mode
	for _, w := range ways {
		works, why := w.judge(f, served)
		out = append(out, Mode{f.name, w.name, works, why})
	}
	return out
}

func (w way) judge(f *facts, served map[string]service) (works, why string) {
	var no, unsure []string
	add := func(list *[]string, why string) {
		if why != "" && !slices.Contains(*list, why) {
			*list = append(*list, why)
		}
	}
	add(&no, f.link)
	if f.mode == "observe" {
		add(&no, "mode is observe: nobody is answered")
	}
	add(&no, f.ports[67])
	add(&no, f.dropped)
	if w.tftp {
		add(&no, f.ports[69])
	}
	add(&no, f.http)
	if w.https {
		add(&no, f.https)
	}
	for _, choice := range w.files {
		why, maybe := "", false
		for name := range strings.SplitSeq(choice, "|") {
			s, known := served[name]
			if !known {
				s.why = name + " is not served"
			}
			if s.why == "" || s.unsure || why == "" {
				why, maybe = s.why, s.unsure
			}
			if why == "" {
				break
			}
		}
		if maybe {
			add(&unsure, why)
		} else {
			add(&no, why)
		}
	}
	if f.mode == "proxy" && f.looked && !f.hall {
		add(&no, "no DHCP server of the hall answers, so machines get no address")
	}
	if f.mode == "proxy" && f.ports[4011] != "" {
		add(&unsure, "some firmware asks port 4011: "+f.ports[4011])
	}
	for _, r := range f.rivals {
		if r.Alarm == "" {
			continue
		}
		if len(r.Boots) == 0 || slices.ContainsFunc(r.Boots, func(b pxe.RivalBoot) bool { return b.For == w.asked }) {
			add(&unsure, "whichever answers first wins: "+r.String())
		}
	}
	for _, name := range f.heard {
		add(&unsure, "whichever answers first wins: "+name)
	}
	if f.link == "" && !f.looked && f.mode != "relay" {
		add(&unsure, "other DHCP servers were not looked for")
	}
	add(&unsure, f.relays)
	add(&unsure, w.unsure)
	switch {
	case len(no) > 0:
		return "no", strings.Join(no, "; ")
	case len(unsure) > 0:
		return "unknown", strings.Join(unsure, "; ")
	}
	return "yes", "nothing stands in its way that can be seen from here"
}
