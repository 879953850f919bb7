package gpu

import (
	"math"
	"math/big"
	"testing"

	"pgregory.net/rapid"
)

// TestFMA32 holds fma32 against exact arithmetic.
func TestFMA32(t *testing.T) {
	check := func(t rapid.TB, x, y, z float32) {
		exact := new(big.Float).SetPrec(2000)
		exact.Mul(big.NewFloat(float64(x)).SetPrec(2000), big.NewFloat(float64(y)).SetPrec(2000))
		exact.Add(exact, big.NewFloat(float64(z)).SetPrec(2000))
		want, _ := exact.Float32()
		if got := fma32(x, y, z); got != want {
			t.Fatalf("fma(%x, %x, %x) = %x, want %x", x, y, z, got, want)
		}
	}
	// Where rounding twice goes wrong: the sum is just off the middle between
	// two float32, by less than float64 can hold.
	check(t, 1+1.0/(1<<12), 1+1.0/(1<<12), float32(math.Ldexp(1, -60)))
	check(t, 1+1.0/(1<<12), 1+1.0/(1<<12), -float32(math.Ldexp(1, -60)))
	rapid.Check(t, func(t *rapid.T) {
		f := rapid.Float32Range(-2, 2)
		check(t, f.Draw(t, "x"), f.Draw(t, "y"), f.Draw(t, "z"))
		// Products that end close to the middle of two float32.
		a := float32(1 + rapid.IntRange(0, 1<<12).Draw(t, "a")*2 + 1)
		b := float32(rapid.IntRange(1, 1<<12).Draw(t, "b")*2 + 1)
		check(t, a/(1<<12), b/(1<<12), float32(math.Ldexp(float64(rapid.IntRange(-3, 3).Draw(t, "c")), -rapid.IntRange(0, 90).Draw(t, "e"))))
	})
}

// TestGolden pins the sum that every correct card must give: a change of the
// kernel or of the arithmetic is a change of what we call correct.
func TestGolden(t *testing.T) {
	if got, want := chainSum(chainThreads, chainSteps), uint32(0xfbea8324); got != want {
		t.Errorf("golden sum %08x, want %08x", got, want)
	}
}

// TestChainStaysAlive: a chain that runs to a fixed point or a short cycle
// toggles nothing and tests nothing.
func TestChainStaysAlive(t *testing.T) {
	dead, chains, flips, steps := 0, 0, 0, 0
	for thread := range chainThreads {
		for k := range chainChains {
			z := float32(thread*chainChains+k+1) / 512
			seen := map[float32]bool{}
			for range chainSteps {
				next := fma32(z, z, chainC[k])
				if !(math.Abs(float64(next)) <= 2) {
					t.Fatalf("thread %d chain %d leaves its range: %v", thread, k, next)
				}
				for d := math.Float32bits(z) ^ math.Float32bits(next); d != 0; d &= d - 1 {
					flips++
				}
				steps++
				z = next
				seen[z] = true
			}
			chains++
			if len(seen) < chainSteps/2 {
				dead++
			}
		}
	}
	if mean := float64(flips) / float64(steps); mean < 10 {
		t.Errorf("%.1f bits flip per step", mean)
	}
	if dead > chains/20 {
		t.Errorf("%d of %d chains run in a short cycle", dead, chains)
	}
}

// TestChainSpreadsErrors: one wrong bit in one step of one chain must change
// the fold, almost whichever bit it is.
func TestChainSpreadsErrors(t *testing.T) {
	fold := func(thread, flipStep, chain, bit int) (h uint32) {
		var z [chainChains]float32
		for k := range z {
			z[k] = float32(thread*chainChains+k+1) / 512
		}
		for i := range chainSteps {
			for k := range z {
				z[k] = fma32(z[k], z[k], chainC[k])
				if i == flipStep && k == chain {
					z[k] = math.Float32frombits(math.Float32bits(z[k]) ^ 1<<bit)
				}
			}
			if i%8 == 7 {
				for k := range z {
					h = h<<5 | h>>27
					h ^= math.Float32bits(z[k])
				}
			}
		}
		return h
	}
	if fold(3, -1, 0, 0) != chainFold(3, chainSteps) {
		t.Fatal("the test folds differently")
	}
	missed, tried := 0, 0
	for thread := 0; thread < chainThreads; thread += 13 {
		for bit := range 23 {
			tried++
			if fold(thread, 100+bit, bit%chainChains, bit) == chainFold(thread, chainSteps) {
				missed++
				if bit >= 10 {
					t.Errorf("thread %d: a flip of bit %d leaves no trace", thread, bit)
				}
			}
		}
	}
	if missed > tried/10 {
		t.Errorf("%d of %d flips leave no trace", missed, tried)
	}
}

func TestSameModel(t *testing.T) {
	for _, tt := range []struct {
		inspected, nvml string
		want            bool
	}{
		{"GA102 [GeForce RTX 3090]", "NVIDIA GeForce RTX 3090", true},
		{"NVIDIA GeForce RTX 3090", "NVIDIA GeForce RTX 3090", true},
		{"RTX 3090", "NVIDIA GeForce RTX 3090", true},
		{"GA102 [GeForce RTX 3090]", "NVIDIA GeForce RTX 3090 Ti", false},
		{"GA106 [GeForce RTX 3060 Lite Hash Rate]", "NVIDIA GeForce RTX 3060", true},
		{"GP106 [GeForce GTX 1060 6GB]", "NVIDIA GeForce GTX 1060 6GB", true},
		{"GP106 [P106-100]", "P106-100", true},
		{"TU104 [GeForce RTX 2080 SUPER]", "NVIDIA GeForce RTX 2080", false},
		{"AD102 [GeForce RTX 4090]", "NVIDIA GeForce RTX 4090 D", false},
		{"GeForce RTX 309", "NVIDIA GeForce RTX 3090", false},
		{"", "NVIDIA GeForce RTX 3090", false},
	} {
		if got := sameModel(tt.inspected, tt.nvml); got != tt.want {
			t.Errorf("sameModel(%q, %q) = %v", tt.inspected, tt.nvml, got)
		}
	}
}
