package triage

import (
	"slices"
	"strings"
	"testing"

	"smelt/inventory"

	"pgregory.net/rapid"
)

func named(t *testing.T, models ...string) []Card {
	t.Helper()
	var out []Card
	for _, m := range models {
		c, ok := CardByModel(m)
		if !ok {
			t.Fatalf("no card %q", m)
		}
		out = append(out, c)
	}
	return out
}

func TestBranches(t *testing.T) {
	last := Branch{}
	for _, b := range Branches() {
		if b.Number <= last.Number || b.CUDA.Compare(last.CUDA) <= 0 || b.Last < last.Last || b.First < last.First || b.First >= b.Last {
			t.Errorf("%+v after %+v", b, last)
		}
		last = b
	}
	if b, err := BranchNumbered(last.Number + 15); err != nil || b.Number != last.Number+15 || b.CUDA != last.CUDA {
		t.Errorf("a branch of tomorrow: %+v, %v", b, err)
	}
	if _, err := BranchNumbered(536); err == nil || !strings.Contains(err.Error(), "535, 545") {
		t.Errorf("a branch that never was: %v", err)
	}
}

// What the two tables say of each other: a branch runs a card if its compute
// capability is among the branch's, from the card's first branch on.
func TestCardsAndBranchesAgree(t *testing.T) {
	for _, c := range Cards() {
		if c.Vendor != nvidia {
			continue
		}
		for _, b := range Branches() {
			modules := ProprietaryModules
			if !c.Drivers.Proprietary {
				modules = OpenModules
			}
			runs := Stack{Branch: b.Number, Modules: modules}.Runs(c) == nil
			if want := b.First <= c.CC && c.CC <= b.Last && b.Number >= c.Drivers.First; runs != want {
				t.Errorf("%s with %d: %t, the branch's compute capabilities say %t", c.Model, b.Number, runs, want)
			}
			if open := (Stack{Branch: b.Number, Modules: OpenModules}).Runs(c) == nil; open && c.CC < b.Open {
				t.Errorf("%s runs with the open modules of %d, which begin at %d", c.Model, b.Number, b.Open)
			}
		}
	}
}

func TestRuns(t *testing.T) {
	for _, c := range []struct {
		s    Stack
		card string
		why  string // "" runs
	}{
		{Stack{Branch: 535, Modules: "proprietary"}, "GTX 1080", ""},
		{Stack{Branch: 580, Modules: "proprietary"}, "GTX 1080", ""},
		{Stack{Branch: 580, Modules: "open"}, "GTX 1080", "proprietary kernel modules only"},
		{Stack{Branch: 590, Modules: "proprietary"}, "GTX 1080", "ends with driver 580"},
		{Stack{Branch: 615, Modules: "proprietary"}, "Tesla V100 PCIe 16GB", "ends with driver 580"},
		{Stack{Branch: 580, Modules: "open"}, "RTX 5090", ""},
		{Stack{Branch: 580, Modules: "proprietary"}, "RTX 5090", "open kernel modules only"},
		{Stack{Branch: 535, Modules: "proprietary"}, "RTX 5090", "needs driver 570 or later"},
		{Stack{Branch: 590, Modules: "open"}, "RTX 3090", ""},
		{Stack{Branch: 535, Modules: "open"}, "RTX 3090", "preview"},
		{Stack{Branch: 580, Modules: "open"}, "CMP 170HX", "proprietary kernel modules only"},
		{Stack{Branch: 580, Modules: "proprietary", Toolkit: CUDA{12, 9}}, "GTX 1080", ""},
		{Stack{Branch: 580, Modules: "proprietary", Toolkit: CUDA{13, 0}}, "GTX 1080", "12.9 is the last"},
		{Stack{Branch: 570, Modules: "open", Toolkit: CUDA{13, 0}}, "RTX 3090", "needs driver 580"},
		{Stack{Branch: 535, Modules: "proprietary", Toolkit: CUDA{12, 8}}, "RTX 3090", ""}, // minor version compatibility
		{Stack{Branch: 580, Modules: "both"}, "RTX 3090", "want open or proprietary"},
		{Stack{}, "RTX 3090", "none in it"},
		{Stack{}, "RX 6600", ""},
	} {
		err := c.s.Runs(named(t, c.card)[0])
		if (err == nil) != (c.why == "") || err != nil && !strings.Contains(err.Error(), c.why) {
			t.Errorf("%s on %s: %v, want %q", c.card, c.s, err, c.why)
		}
	}
	if (Stack{Toolkit: CUDA{12, 0}}).Check() == nil {
		t.Error("a toolkit without a driver passes")
	}
}

func TestAutoModules(t *testing.T) {
	for _, c := range []struct {
		branch int
		cards  []string
		want   string
	}{
		{535, nil, "proprietary"}, {580, nil, "open"}, {580, []string{"RTX 3090", "RX 6600"}, "open"}, {580, []string{"RTX 3090", "GTX 1080"}, "proprietary"},
	} {
		if got, err := AutoModules(c.branch, named(t, c.cards...)); got != c.want || err != nil {
			t.Errorf("%+v: %s, %v", c, got, err)
		}
	}
	if _, err := AutoModules(12, nil); err == nil {
		t.Error("branch 12")
	}
}

func TestCUDA(t *testing.T) {
	for _, s := range []string{"", "12", "12.", "12.9.1", "012.9", "12.9 ", "-1.0", "12.-1", "a.b"} {
		if v, err := ParseCUDA(s); err == nil {
			t.Errorf("%q is CUDA %s", s, v)
		}
	}
	if v, err := ParseCUDA("12.10"); err != nil || v.Compare(CUDA{12, 9}) <= 0 || v.Compare(CUDA{13, 0}) >= 0 {
		t.Errorf("%v, %v", v, err)
	}
}

var variants = []Stack{
	{Image: "ai-node.r535", Branch: 535, Modules: "proprietary"},
	{Image: "ai-node.r580", Branch: 580, Modules: "proprietary"},
	{Image: "ai-node.r580-open", Branch: 580, Modules: "open"},
	{Image: "ai-node.r590-open", Branch: 590, Modules: "open"},
}

func TestPick(t *testing.T) {
	for _, c := range []struct {
		stacks []Stack
		cards  []string
		want   string // image, or what the error says
	}{
		{variants, []string{"RTX 3090"}, "ai-node.r590-open"},
		{variants[:3], []string{"RTX 3090"}, "ai-node.r580-open"},
		{variants, []string{"GTX 1080 Ti", "RTX 3090"}, "ai-node.r580"},
		{variants[:1], []string{"P104-100"}, "ai-node.r535"},
		{variants, []string{"RTX 5090"}, "ai-node.r590-open"},
		{variants[:2], []string{"RTX 5090"}, "ai-node.r535 (driver 535, proprietary modules): RTX 5090 needs driver 570 or later\nai-node.r580 (driver 580, proprietary modules): RTX 5090 takes the open kernel modules only"},
		{variants, nil, "ai-node.r535"},
		{variants, []string{"RX 6600"}, "ai-node.r590-open"},
		{nil, nil, "no image"},
	} {
		cards := named(t, c.cards...)
		i, err := Pick(c.stacks, cards)
		switch {
		case err != nil && !strings.Contains(err.Error(), c.want):
			t.Errorf("%v: %v", c.cards, err)
		case err == nil && c.stacks[i].Image != c.want:
			t.Errorf("%v: %s, want %s", c.cards, c.stacks[i].Image, c.want)
		}
		// The order in which they are known decides nothing.
		if r := slices.Clone(c.stacks); err == nil {
			slices.Reverse(r)
			if k, err := Pick(r, cards); err != nil || r[k] != c.stacks[i] {
				t.Errorf("%v: reversed it is %v, %v", c.cards, k, err)
			}
		}
	}
}

// Whatever the cards: what is picked runs each of them, and where nothing is
// picked no stack runs all.
func TestPickRunsEveryCard(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		cards := rapid.SliceOfN(rapid.SampledFrom(Cards()), 0, 5).Draw(r, "cards")
		stacks := rapid.SliceOfN(rapid.SampledFrom(append([]Stack{{Image: "plain"}}, variants...)), 1, 4).Draw(r, "stacks")
		i, err := Pick(stacks, cards)
		if err == nil && stacks[i].Covers(cards) != nil {
			r.Fatal(stacks[i].Covers(cards))
		}
		if err != nil && slices.ContainsFunc(stacks, func(s Stack) bool { return s.Covers(cards) == nil }) {
			r.Fatal(err)
		}
		// Where there is no common driver, none of a hundred branches is one,
		// and what is left after the misfits are gone has one.
		one := slices.DeleteFunc(slices.Clone(cards), func(c Card) bool { return c.Use == IGPU })
		if _, err := common(one); err != nil {
			for _, b := range Branches() {
				for _, m := range []string{OpenModules, ProprietaryModules} {
					if (Stack{Branch: b.Number, Modules: m}).Covers(one) == nil && !slices.ContainsFunc(one, func(c Card) bool { return c.Vendor != nvidia }) {
						r.Fatalf("%d %s runs what has no common driver: %v", b.Number, m, err)
					}
				}
			}
		}
		out := misfits(one)
		var left []Card
		for i, c := range one {
			if !slices.Contains(out, i) {
				left = append(left, c)
			}
		}
		if _, err := common(left); err != nil {
			r.Fatalf("without its misfits: %v", err)
		}
	})
}

func TestMisfits(t *testing.T) {
	for _, c := range []struct {
		cards []string
		want  []int
	}{
		{[]string{"GTX 1080", "GTX 1080", "RTX 5090"}, []int{2}},
		{[]string{"RTX 5090", "GTX 1080", "GTX 1080"}, []int{0}},
		{[]string{"GTX 1080", "RTX 5090"}, []int{1}},
		{[]string{"RTX 3090", "RX 6600", "RTX 3090", "RTX 3090"}, []int{1}},
		{[]string{"RTX 3090", "GTX 1080"}, nil},
	} {
		if got := misfits(named(t, c.cards...)); !slices.Equal(got, c.want) {
			t.Errorf("%v: %v, want %v", c.cards, got, c.want)
		}
	}
}

func TestPickFor(t *testing.T) {
	hw := good()
	if i, err := PickFor(variants, hw); err != nil || variants[i].Image != "ai-node.r590-open" {
		t.Errorf("%d, %v", i, err)
	}
	plain := []Stack{{Image: "lab"}}
	if _, err := PickFor(plain, hw); err == nil || !strings.Contains(err.Error(), "RTX 3090 needs NVIDIA's driver") {
		t.Errorf("real cards without a driver: %v", err)
	}
	hw.GPUs[0].Device = "ffff"
	if _, err := PickFor(variants, hw); err == nil || !strings.Contains(err.Error(), "unknown card 10de:ffff") {
		t.Errorf("unknown card: %v", err)
	}
	for i := range hw.GPUs {
		hw.GPUs[i].Simulated, hw.GPUs[i].Model = true, "RTX 3090"
	}
	if i, err := PickFor(plain, hw); i != 0 || err != nil {
		t.Errorf("simulated cards need no driver: %v", err)
	}
}

// A node whose image cannot run its cards is refused before anything is wiped;
// the reason names the cards and what to do.
func TestImageInVerdict(t *testing.T) {
	hw := good()
	tgt := target(t, "slurm-batch")
	v := Judge(hw, tgt, Expect{Images: variants})
	wantVerdict(t, v, Convert)
	if !strings.Contains(show(v), "ai-node.r590-open (driver 590, open modules)") {
		t.Error(show(v))
	}
	for i := range hw.GPUs {
		hw.GPUs[i].Device = "2b85"
	}
	v = Judge(hw, tgt, Expect{Images: variants[:2]})
	wantVerdict(t, v, Upgrade, "image")
	r := reason(t, v, "image")
	for _, want := range []string{"RTX 5090", "ai-node.r535", "ai-node.r580"} {
		if !strings.Contains(r.Got, want) {
			t.Errorf("%q does not say %s", r.Got, want)
		}
	}
	if !strings.Contains(r.Fix, `gpu: {branch: "610", modules: open}`) {
		t.Error(r.Fix)
	}
	hw.GPUs[0].Device = "1b06" // together with a 5090: no image will ever do
	v = Judge(hw, tgt, Expect{Images: variants})
	wantVerdict(t, v, Upgrade, "driver slot 1")
	if r := reason(t, v, "driver"); !strings.Contains(r.Got, "GTX 1080 Ti") || !strings.Contains(r.Got, "RTX 5090") || !strings.HasPrefix(r.Fix, "move GPU GTX 1080 Ti from slot 1") {
		t.Errorf("%+v", r)
	}
	for i := range hw.GPUs {
		hw.GPUs[i].Device = "1b06"
	}
	v = Judge(hw, tgt, Expect{Images: variants[3:]})
	if r := reason(t, v, "image"); !strings.Contains(r.Fix, `gpu: {branch: "580", modules: proprietary}`) {
		t.Error(r.Fix)
	}
	// A card that only shows a picture needs no driver where no GPU is asked for.
	wantVerdict(t, Judge(hw, target(t, "lab"), Expect{Images: []Stack{{Image: "plain"}}}), Convert)
	var none inventory.Hardware
	if v := Judge(none, tgt, Expect{Images: variants}); v.Answer == Convert {
		t.Error("a machine without cards converts for a target that wants one")
	}
}
