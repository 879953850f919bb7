package gpu

import (
	_ "embed"
	"math"
	"math/bits"
)

//go:embed kernels.ptx
var kernelsPTX string

// The shape of fma_chain. Chains is fixed by the kernel text.
const (
	chainThreads = 128
	chainSteps   = 512
	chainChains  = 4
)

var chainC = [chainChains]float32{-1.8515625, -1.8828125, -1.9140625, -1.9453125}

// chainFold is what one thread of fma_chain adds to the sum of its block for
// each repetition.
func chainFold(thread, steps int) uint32 {
	var z [chainChains]float32
	for k := range z {
		z[k] = float32(thread*chainChains+k+1) * (1.0 / 512)
	}
	var h uint32
	for i := 0; i < steps; i += 8 {
		for range 8 {
			for k := range z {
				z[k] = fma32(z[k], z[k], chainC[k])
			}
		}
		for k := range z {
			h = bits.RotateLeft32(h, 5) ^ math.Float32bits(z[k])
		}
	}
	return h
}

// chainSum is the golden sum of a block of fma_chain after one repetition; r
// repetitions give r times it, modulo 2^32.
func chainSum(threads, steps int) uint32 {
	var sum uint32
	for t := range threads {
		sum += chainFold(t, steps)
	}
	return sum
}

// fma32 is x*y+z with one rounding, as fma.rn.f32. The product is exact in
// float64; the sum is rounded to odd first (Boldo and Melquiond 2008), which
// makes the second rounding to float32 the only one that counts.
func fma32(x, y, z float32) float32 {
	p := float64(x) * float64(y)
	c := float64(z)
	s := p + c
	t := s - p
	e := (p - (s - t)) + (c - t) // exact error of the sum (Knuth)
	if e != 0 {
		if b := math.Float64bits(s); b&1 == 0 {
			if (e > 0) == (s > 0) {
				b++
			} else {
				b--
			}
			s = math.Float64frombits(b)
		}
	}
	return float32(s)
}

// vramUnit is the pattern of unit i of vram_fill.
func vramUnit(i uint64, seed, inv uint32) [4]uint32 {
	x := uint32(i) ^ seed
	x += uint32(i>>32) * 0x9E3779B9
	x ^= x >> 16
	x *= 0x85EBCA6B
	x ^= x >> 13
	x *= 0xC2B2AE35
	x ^= x >> 16
	x ^= inv
	return [4]uint32{x, ^x, bits.RotateLeft32(x, 8), bits.RotateLeft32(^x, 16)}
}

// The error buffer of vram_check.
const (
	vramRecords   = 64
	vramErrBuffer = 8 + 24*vramRecords
)

// A vramError is one unit of 16 bytes that did not hold what was written.
type vramError struct {
	addr              uint64 // of the first wrong word, as the card sees it
	want, got, reread uint32
	sm                uint32
}

// stuck tells whether reading again gave the same: a cell, not the transfer.
func (e vramError) stuck() bool { return e.reread == e.got }
