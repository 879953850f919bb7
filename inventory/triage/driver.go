package triage

import (
	"cmp"
	_ "embed"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"smelt/inventory"
)

// A Branch is a line of NVIDIA's drivers.
type Branch struct {
	Number int
	CUDA   CUDA // newest that it runs
	First  int  // compute capabilities, times ten, of the cards it runs
	Last   int
	Open   int // lowest that its open kernel modules run; 0: none
}

// CUDA is a version of the toolkit.
type CUDA struct{ Major, Minor int }

// ParseCUDA reads "12.9".
func ParseCUDA(s string) (CUDA, error) {
	var v CUDA
	if n, err := fmt.Sscanf(s, "%d.%d", &v.Major, &v.Minor); n != 2 || err != nil || v.String() != s || v.Major < 1 || v.Minor < 0 {
		return CUDA{}, fmt.Errorf("CUDA %q: want a version such as 12.9", s)
	}
	return v, nil
}

func (v CUDA) String() string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }

// Compare is negative when v is older than o.
func (v CUDA) Compare(o CUDA) int {
	return cmp.Or(cmp.Compare(v.Major, o.Major), cmp.Compare(v.Minor, o.Minor))
}

// lastCUDA is the last toolkit that makes code for a compute capability; zero
// for one that is still made for.
func lastCUDA(cc int) CUDA {
	switch {
	case cc < 50: // Kepler
		return CUDA{11, 8}
	case cc < 75: // Maxwell, Pascal, Volta
		return CUDA{12, 9}
	}
	return CUDA{}
}

//go:embed drivers.csv
var driversCSV string

// Branches returns the table of driver branches, oldest first.
var Branches = sync.OnceValue(func() []Branch {
	var out []Branch
	for _, r := range table(driversCSV) {
		b := Branch{Number: number(r["branch"]), Open: tenfold(r["open"])}
		var err error
		if b.CUDA, err = ParseCUDA(r["cuda"]); err != nil {
			panic("triage: " + err.Error())
		}
		first, last, _ := strings.Cut(r["cc"], "-")
		b.First, b.Last = tenfold(first), tenfold(last)
		out = append(out, b)
	}
	return out
})

// tenfold reads a compute capability; an empty column is 0.
func tenfold(s string) int {
	major, minor, _ := strings.Cut(s, ".")
	return number(major)*10 + number(minor)
}

// BranchNumbered finds a branch. One that is newer than all we know is like
// the newest: the burn-in shows whether that holds.
func BranchNumbered(n int) (Branch, error) {
	all := Branches()
	var known []string
	for _, b := range all {
		if b.Number == n {
			return b, nil
		}
		known = append(known, fmt.Sprint(b.Number))
	}
	newest := all[len(all)-1]
	if n > newest.Number {
		newest.Number = n
		return newest, nil
	}
	return Branch{}, fmt.Errorf("NVIDIA has no driver branch %d that is of use: there are %s", n, strings.Join(known, ", "))
}

// nvidia is the vendor of NVIDIA's cards, by its PCI id.
const nvidia = "10de"

// The kinds of kernel modules that a driver comes with.
const (
	OpenModules        = "open"
	ProprietaryModules = "proprietary"
)

// AutoModules says which kernel modules of a branch to build for cards: the
// open ones wherever the branch has them and none of the cards needs the
// others.
func AutoModules(branch int, cards []Card) (string, error) {
	b, err := BranchNumbered(branch)
	if err != nil {
		return "", err
	}
	if b.Open == 0 || slices.ContainsFunc(cards, func(c Card) bool { return c.CC > 0 && !c.Drivers.Open }) {
		return ProprietaryModules, nil
	}
	return OpenModules, nil
}

// A Stack is what an image brings for its GPUs.
type Stack struct {
	Image   string // its name, for the reasons
	Branch  int    // of NVIDIA's driver; 0: it has none
	Modules string // OpenModules or ProprietaryModules
	Toolkit CUDA   // what else is in it; zero: the driver alone
}

func (s Stack) String() string {
	what := "no GPU driver"
	if s.Branch > 0 {
		what = fmt.Sprintf("driver %d, %s modules", s.Branch, s.Modules)
	}
	if s.Image == "" {
		return what
	}
	return fmt.Sprintf("%s (%s)", s.Image, what)
}

// Check says why the parts of s do not go together.
func (s Stack) Check() error {
	if s.Branch == 0 {
		if s.Toolkit != (CUDA{}) {
			return fmt.Errorf("CUDA %s without a driver", s.Toolkit)
		}
		return nil
	}
	b, err := BranchNumbered(s.Branch)
	switch {
	case err != nil:
		return err
	case s.Modules != OpenModules && s.Modules != ProprietaryModules:
		return fmt.Errorf("kernel modules %q: want open or proprietary", s.Modules)
	case s.Modules == OpenModules && b.Open == 0:
		return fmt.Errorf("the open kernel modules of driver %d are a preview: take proprietary, or driver 560 or later", s.Branch)
	case s.Toolkit.Major > b.CUDA.Major:
		return fmt.Errorf("CUDA %s needs driver %d or later, not %d", s.Toolkit, firstFor(s.Toolkit), s.Branch)
	}
	return nil
}

// firstFor is the first branch that runs programs of a toolkit: within one
// major version any minor one will do.
func firstFor(v CUDA) int {
	for _, b := range Branches() {
		if b.CUDA.Major >= v.Major {
			return b.Number
		}
	}
	return Branches()[len(Branches())-1].Number + 1
}

// Runs says why s does not run a card, or nil.
func (s Stack) Runs(c Card) error {
	if c.Vendor != nvidia {
		return nil // amdgpu comes with the kernel
	}
	if s.Branch == 0 {
		return fmt.Errorf("%s needs NVIDIA's driver, and there is none in it", c.Model)
	}
	if err := s.Check(); err != nil {
		return err
	}
	last := lastCUDA(c.CC)
	switch {
	case s.Branch < c.Drivers.First:
		return fmt.Errorf("%s needs driver %d or later", c.Model, c.Drivers.First)
	case c.Drivers.Last > 0 && s.Branch > c.Drivers.Last:
		return fmt.Errorf("%s ends with driver %d", c.Model, c.Drivers.Last)
	case s.Modules == OpenModules && !c.Drivers.Open:
		return fmt.Errorf("%s takes the proprietary kernel modules only", c.Model)
	case s.Modules == ProprietaryModules && !c.Drivers.Proprietary:
		return fmt.Errorf("%s takes the open kernel modules only", c.Model)
	case last != (CUDA{}) && s.Toolkit.Major > last.Major:
		return fmt.Errorf("CUDA %s makes no code for %s: %s is the last that does", s.Toolkit, c.Model, last)
	}
	return nil
}

// Covers says why s does not run all the cards: one line for each that it
// leaves out.
func (s Stack) Covers(cards []Card) error {
	var why []string
	for _, c := range cards {
		if err := s.Runs(c); err != nil && !slices.Contains(why, err.Error()) {
			why = append(why, err.Error())
		}
	}
	if len(why) > 0 {
		return fmt.Errorf("%s: %s", s, strings.Join(why, "; "))
	}
	return nil
}

// Pick returns the place of the stack that runs all the cards: the newest
// driver, and of two equal ones the open modules. A machine without cards
// takes the stack with the least in it.
func Pick(stacks []Stack, cards []Card) (int, error) {
	best := -1
	var why []error
	better := func(a, b Stack) bool {
		if len(cards) == 0 {
			a, b = b, a
		}
		return cmp.Or(cmp.Compare(a.Branch, b.Branch), strings.Compare(b.Modules, a.Modules), strings.Compare(b.Image, a.Image)) > 0
	}
	for i, s := range stacks {
		if err := s.Covers(cards); err != nil {
			why = append(why, err)
			continue
		}
		if best < 0 || better(s, stacks[best]) {
			best = i
		}
	}
	switch {
	case best >= 0:
		return best, nil
	case len(stacks) == 0:
		return -1, errors.New("there is no image to choose from")
	}
	return -1, errors.Join(why...)
}

// PickFor is Pick for the cards of a machine. Simulated cards are only names:
// no driver will ever look for them, so an image without one will do.
func PickFor(stacks []Stack, hw inventory.Hardware) (int, error) {
	j := judge{hw: hw}
	j.findGPUs()
	cards, err := j.cards()
	if err != nil {
		return -1, err
	}
	return j.pick(stacks, cards)
}

// cards are the cards of the machine as the table knows them.
func (j *judge) cards() ([]Card, error) {
	var out []Card
	for _, g := range j.gpus {
		if !g.known {
			return nil, fmt.Errorf("unknown card %s: %s", g.name(), unknownCard)
		}
		out = append(out, g.card)
	}
	return out, nil
}

func (j *judge) pick(stacks []Stack, cards []Card) (int, error) {
	there := slices.ContainsFunc(j.gpus, func(g gpu) bool { return !g.Simulated })
	if i := slices.IndexFunc(stacks, func(s Stack) bool { return s.Branch == 0 }); i >= 0 && !there {
		return i, nil
	}
	return Pick(stacks, cards)
}

// image holds the cards against the variants of the image that the machine
// would get. What none of them runs is refused here, before anything is wiped.
func (j *judge) image(cards []Card, sim bool) {
	if len(j.class.Images) == 0 || max(j.target.GPUs, j.class.GPUs) == 0 {
		return
	}
	r := inventory.Reason{Item: "image", Want: "a driver in it for all cards", Simulated: sim}
	i, err := j.pick(j.class.Images, cards)
	if err != nil {
		r.Got = strings.ReplaceAll(err.Error(), "\n", "; ")
		r.Fix = "give the image's recipe a variant that runs these cards (gpu: " + wanted(cards) + "), build it, and inspect the machine again"
		j.say(host, r)
		return
	}
	r.Got = j.class.Images[i].String()
	j.say(none, r)
}

// wanted is the gpu section of a recipe that runs the cards, which have a
// common driver.
func wanted(cards []Card) string {
	newest := Branches()[len(Branches())-1].Number
	for _, c := range cards {
		if c.Drivers.Last > 0 {
			newest = min(newest, c.Drivers.Last)
		}
	}
	modules, err := AutoModules(newest, cards)
	if err != nil { // our own table
		panic("triage: " + err.Error())
	}
	return fmt.Sprintf("{branch: %q, modules: %s}", fmt.Sprint(newest), modules)
}

// common says which driver runs all the cards, or why none does.
func common(cards []Card) (driver string, err error) {
	if len(cards) == 0 {
		return "none needed", nil
	}
	var vendors []string
	all := Drivers{First: 0, Last: 0, Proprietary: true, Open: true}
	var oldest, newest Card
	for _, c := range cards {
		if !slices.Contains(vendors, c.Vendor) {
			vendors = append(vendors, c.Vendor)
		}
		d := c.Drivers
		if d.First >= all.First {
			all.First, newest = d.First, c
		}
		if d.Last > 0 && (all.Last == 0 || d.Last < all.Last) {
			all.Last, oldest = d.Last, c
		}
		all.Proprietary = all.Proprietary && d.Proprietary
		all.Open = all.Open && d.Open
	}
	if len(vendors) > 1 {
		return "", fmt.Errorf("cards of NVIDIA and AMD in one machine")
	}
	if vendors[0] != nvidia {
		return "amdgpu", nil
	}
	if all.Last > 0 && all.First > all.Last {
		return "", fmt.Errorf("%s needs driver %d or later, %s has none after %d", newest.Model, all.First, oldest.Model, all.Last)
	}
	module := "open"
	if !all.Open {
		module = "proprietary"
	}
	if !all.Open && !all.Proprietary {
		only := func(open bool) string {
			return cards[slices.IndexFunc(cards, func(c Card) bool { return c.Drivers.Open == open && c.Drivers.Proprietary == !open })].Model
		}
		return "", fmt.Errorf("%s takes the open kernel modules only, %s the proprietary ones only", only(true), only(false))
	}
	if all.Last > 0 {
		return fmt.Sprintf("%s, %d at most", module, all.Last), nil
	}
	return module + ", current", nil
}

// misfits are the places of the cards to take out so that the others have a
// common driver: of two kinds that do not go together, the fewer.
func misfits(cards []Card) []int {
	var out []int
	clash := func(i, k int) bool {
		if i == k || slices.Contains(out, i) || slices.Contains(out, k) {
			return false
		}
		_, err := common([]Card{cards[i], cards[k]})
		return err != nil
	}
	for {
		worst, most := -1, 0
		for i := range cards {
			n := 0
			for k := range cards {
				if clash(i, k) {
					n++
				}
			}
			if n > 0 && n >= most { // of equals the last: the first is what was here before
				worst, most = i, n
			}
		}
		if worst < 0 {
			slices.Sort(out)
			return out
		}
		out = append(out, worst)
	}
}
