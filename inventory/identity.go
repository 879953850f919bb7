package inventory

import (
	"fmt"
	"slices"
	"strings"
)

// A Match is how sure an Identity is.
type Match string

// The matches. Only Confirmed lets a destructive step happen (rule 2).
const (
	Confirmed    Match = "confirmed"    // two facts agree and none contradicts
	Weak         Match = "weak"         // nothing contradicts, but less than two facts agree
	Contradicted Match = "contradicted" // it is another machine, or an impossible one
)

// quorum is how many independent facts must agree.
const quorum = 2

// A Fact is one piece of evidence: what was expected and what was seen.
type Fact struct {
	Name string `json:"name"` // board-serial, chassis-serial, system-serial, bmc-mac, nic-macs, disks, site-serial, board-model, system-uuid, walk
	Want string `json:"want,omitempty"`
	Got  string `json:"got,omitempty"`
}

// Identity is the answer to "is this the machine that was approved?".
type Identity struct {
	Match      Match  `json:"match"`
	Agree      []Fact `json:"agree,omitempty"`
	Contradict []Fact `json:"contradict,omitempty"`
	Hints      []Fact `json:"hints,omitempty"` // told to people, counted for nothing
}

// Identify compares a machine as it is seen now with what site.yaml says
// (spec) and what was found at its last inspection (known, nil if never).
//
// Facts that count, each once: board, chassis and system serial (the same
// string in two of them is one fact), BMC MAC, the set of NIC MACs, the set of
// disks by serial or WWN, and a person's proof (WithProof). Junk counts for
// nothing. The system UUID is only a hint: firmware clones it, derives it from
// a NIC, and changes it. A board of another model contradicts, a board of the
// same model says nothing.
//
// A fact that is known but not seen now, or seen for the first time, neither
// agrees nor contradicts. docs/decisions/0002-identity-quorum.md says why.
func Identify(spec Spec, known *Hardware, seen Hardware) Identity {
	if known == nil {
		known = &Hardware{}
	}
	var i Identity
	i.serials(spec.Serial, known.Board, seen.Board)
	i.bmc(spec.BMCMAC, known.BMCMAC, seen.BMCMAC)
	i.nics(spec.MACs, known.NICs, seen.NICs)
	i.disks(known.Disks, seen.Disks)
	if a, b := model(known.Board), model(seen.Board); a != "" && b != "" && a != b {
		i.Contradict = append(i.Contradict, Fact{"board-model", a, b})
	}
	if a, b := known.Board.SystemUUID, seen.Board.SystemUUID; !Junk(a) && !Junk(b) {
		i.Hints = append(i.Hints, Fact{"system-uuid", a, b})
	}
	return i.judge()
}

// WithProof adds what a person established at the rack: a label scanned or a
// walk ("the lamp of A3-S2 lit up"). It counts as one fact and outweighs no
// contradiction.
func (i Identity) WithProof(what string) Identity {
	i.Agree = append(slices.Clone(i.Agree), Fact{Name: "walk", Got: what})
	return i.judge()
}

func (i Identity) judge() Identity {
	switch {
	case len(i.Contradict) > 0:
		i.Match = Contradicted
	case len(i.Agree) >= quorum:
		i.Match = Confirmed
	default:
		i.Match = Weak
	}
	return i
}

// Err is nil when i is Confirmed, or says what is missing or wrong.
func (i Identity) Err() error {
	switch i.Match {
	case Confirmed:
		return nil
	case Contradicted:
		var s []string
		for _, f := range i.Contradict {
			s = append(s, fmt.Sprintf("%s is %s, not %s", f.Name, f.Got, f.Want))
		}
		return refusal("this is another machine: " + strings.Join(s, "; "))
	}
	return refusal(fmt.Sprintf("its identity is not certain: %d of %d facts agree (%s); give its serial or MACs in site.yaml, inspect it again, or prove it at the rack",
		len(i.Agree), quorum, names(i.Agree)))
}

func names(facts []Fact) string {
	if len(facts) == 0 {
		return "none"
	}
	var s []string
	for _, f := range facts {
		s = append(s, f.Name)
	}
	return strings.Join(s, ", ")
}

// serials compares the three serial numbers of SMBIOS. site.yaml has one
// without saying which, often read off a sticker: it contradicts only when the
// firmware tells both of the serials that it can be.
func (i *Identity) serials(site string, known, seen Board) {
	fields := []struct{ name, want, got string }{
		{"board-serial", known.Serial, seen.Serial},
		{"chassis-serial", known.ChassisSerial, seen.ChassisSerial},
		{"system-serial", known.SystemSerial, seen.SystemSerial},
	}
	counted := map[string]bool{}
	agree := func(name, value string) {
		if !counted[value] {
			counted[value] = true
			i.Agree = append(i.Agree, Fact{name, value, value})
		}
	}
	for _, f := range fields {
		want, got := clean(f.want), clean(f.got)
		if got == "" {
			continue
		}
		if clean(site) == got || want == got {
			agree(f.name, got)
		} else if want != "" {
			i.Contradict = append(i.Contradict, Fact{f.name, f.want, f.got})
		}
	}
	board, chassis := clean(seen.Serial), clean(seen.ChassisSerial)
	if s := clean(site); s != "" && !counted[s] && board != "" && chassis != "" {
		i.Contradict = append(i.Contradict, Fact{"site-serial", site, board + " and " + chassis})
	}
}

// clean is a serial as it is compared, "" for junk.
func clean(s string) string {
	if Junk(s) {
		return ""
	}
	return strings.ToUpper(strings.TrimSpace(s))
}

func (i *Identity) bmc(site, known, seen *MAC) {
	if seen == nil {
		return
	}
	for _, want := range []*MAC{site, known} {
		if want != nil && *want != *seen {
			i.Contradict = append(i.Contradict, Fact{"bmc-mac", want.String(), seen.String()})
			return
		}
	}
	if site != nil || known != nil {
		i.Agree = append(i.Agree, Fact{"bmc-mac", seen.String(), seen.String()})
	}
}

// nics agrees when every expected address is there, and contradicts when none
// is. In between a card was added or taken: no evidence either way.
func (i *Identity) nics(site []MAC, known, seen []NIC) {
	var was, is []string
	for _, n := range known {
		was = append(was, n.MAC.String())
	}
	for _, n := range seen {
		is = append(is, n.MAC.String())
	}
	var listed []string
	for _, m := range site {
		listed = append(listed, m.String())
	}
	i.sets("nic-macs", [][]string{listed, was}, is)
}

// disks is like nics with the serial or WWN of each fixed disk.
func (i *Identity) disks(known, seen []Disk) {
	i.sets("disks", [][]string{diskNames(known)}, diskNames(seen))
}

func diskNames(disks []Disk) []string {
	var out []string
	for _, d := range disks {
		switch {
		case d.Removable:
		case !Junk(d.Serial):
			out = append(out, clean(d.Serial))
		case !Junk(d.WWN):
			out = append(out, clean(d.WWN))
		}
	}
	return out
}

// sets compares what is seen with each source that expects something.
func (i *Identity) sets(name string, wants [][]string, got []string) {
	if len(got) == 0 {
		return
	}
	sources, whole := 0, 0
	var example []string
	for _, want := range wants {
		if len(want) == 0 {
			continue
		}
		sources++
		found := 0
		for _, w := range want {
			if slices.Contains(got, w) {
				found++
			}
		}
		switch found {
		case 0:
			i.Contradict = append(i.Contradict, Fact{name, join(want), join(got)})
			return
		case len(want):
			whole++
			example = want
		}
	}
	if sources > 0 && whole == sources {
		i.Agree = append(i.Agree, Fact{name, join(example), join(got)})
	}
}

func join(s []string) string {
	s = slices.Clone(s)
	slices.Sort(s)
	return strings.Join(s, " ")
}
