package gpu

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
	"strconv"
	"strings"
	"testing"
)

// ptxMachine runs the embedded PTX text itself, one thread after the other:
// the instructions that kernels.ptx uses and no others. What ptxas accepts may
// still mean something else than we think; this says what it means.
type ptxMachine struct {
	text string
	base uint64 // address of mem[0]
	mem  []byte
	// stuck bits: or-ed into the 32-bit word at an address whenever it is read
	stuck map[uint64]uint32
	steps int
}

type ptxThread struct {
	m                          *ptxMachine
	reg                        map[string]uint64
	args                       []uint64
	ctaid, ntid, tid, nctaid_x uint64
}

// entry returns the instructions of a kernel and the index of each label.
func (m *ptxMachine) entry(name string) ([]string, map[string]int, error) {
	_, body, ok := strings.Cut(m.text, ".visible .entry "+name+"(")
	if !ok {
		return nil, nil, fmt.Errorf("no kernel %s", name)
	}
	_, body, _ = strings.Cut(body, "{")
	body, _, _ = strings.Cut(body, "\n}")
	var code []string
	labels := map[string]int{}
	for line := range strings.Lines(body) {
		line, _, _ = strings.Cut(line, "//")
		line = strings.TrimSpace(line)
		if label, ok := strings.CutSuffix(line, ":"); ok {
			labels[label] = len(code)
			continue
		}
		if line == "" || strings.HasPrefix(line, ".reg") {
			continue
		}
		ins, ok := strings.CutSuffix(line, ";")
		if !ok || strings.Contains(ins, ";") {
			return nil, nil, fmt.Errorf("line %q is not one instruction", line)
		}
		code = append(code, ins)
	}
	return code, labels, nil
}

func (m *ptxMachine) launch(name string, blocks, threads int, args ...uint64) error {
	code, labels, err := m.entry(name)
	if err != nil {
		return err
	}
	for b := range blocks {
		for t := range threads {
			th := &ptxThread{m: m, reg: map[string]uint64{}, args: args, ctaid: uint64(b), ntid: uint64(threads), tid: uint64(t), nctaid_x: uint64(blocks)}
			for pc := 0; pc >= 0 && pc < len(code); {
				m.steps++
				next, err := th.step(code[pc], pc, labels)
				if err != nil {
					return fmt.Errorf("%s: %s: %w", name, code[pc], err)
				}
				pc = next
			}
		}
	}
	return nil
}

func (m *ptxMachine) at(addr uint64, n int) ([]byte, error) {
	if addr < m.base || addr-m.base+uint64(n) > uint64(len(m.mem)) || addr%uint64(n) != 0 {
		return nil, fmt.Errorf("access of %d bytes at 0x%x", n, addr)
	}
	return m.mem[addr-m.base:][:n], nil
}

func (m *ptxMachine) load32(addr uint64) (uint32, error) {
	b, err := m.at(addr, 4)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint32(b) | m.stuck[addr], nil
}

func operands(s string) []string {
	var out []string
	depth, from := 0, 0
	for i, c := range s {
		switch c {
		case '{', '[':
			depth++
		case '}', ']':
			depth--
		case ',':
			if depth == 0 {
				out = append(out, strings.TrimSpace(s[from:i]))
				from = i + 1
			}
		}
	}
	return append(out, strings.TrimSpace(s[from:]))
}

func (t *ptxThread) value(s string) (uint64, error) {
	switch s {
	case "%ctaid.x":
		return t.ctaid, nil
	case "%ntid.x":
		return t.ntid, nil
	case "%tid.x":
		return t.tid, nil
	case "%nctaid.x":
		return t.nctaid_x, nil
	case "%smid":
		return t.ctaid % 3, nil
	}
	if v, ok := t.reg[s]; ok {
		return v, nil
	}
	if h, ok := strings.CutPrefix(s, "0f"); ok {
		return strconv.ParseUint(h, 16, 32)
	}
	v, err := strconv.ParseUint(s, 0, 64)
	if err != nil {
		return 0, fmt.Errorf("%s was never written", s)
	}
	return v, nil
}

func (t *ptxThread) addr(s string) (uint64, error) {
	reg, off, has := strings.Cut(strings.Trim(s, "[]"), "+")
	a, err := t.value(reg)
	if err != nil || !has {
		return a, err
	}
	o, err := strconv.ParseUint(off, 10, 64)
	return a + o, err
}

func (t *ptxThread) step(ins string, pc int, labels map[string]int) (int, error) {
	if pred, rest, ok := strings.Cut(ins, " "); ok && strings.HasPrefix(pred, "@") {
		v, ok := t.reg[pred[1:]]
		if !ok {
			return 0, fmt.Errorf("%s was never written", pred)
		}
		if v == 0 {
			return pc + 1, nil
		}
		ins = rest
	}
	op, rest, _ := strings.Cut(ins, " ")
	args := operands(rest)
	var v [5]uint64 // values of the source operands, where they are plain
	src := func(n int) error {
		for i := 1; i <= n; i++ {
			var err error
			if v[i], err = t.value(args[i]); err != nil {
				return err
			}
		}
		return nil
	}
	set := func(x uint64) (int, error) { t.reg[args[0]] = x; return pc + 1, nil }
	set32 := func(x uint32) (int, error) { return set(uint64(x)) }
	is := func(b bool) (int, error) {
		if b {
			return set(1)
		}
		return set(0)
	}
	f := func(x uint64) float32 { return math.Float32frombits(uint32(x)) }

	need := map[string]int{
		"mov.u32": 1, "mov.f32": 1, "mov.b32": 1, "cvta.to.global.u64": 1, "cvt.u64.u32": 1, "cvt.u32.u64": 1, "cvt.rn.f32.u32": 1, "not.b32": 1,
		"mul.wide.u32": 2, "add.u64": 2, "add.u32": 2, "shr.u64": 2, "shl.b64": 2, "shr.u32": 2, "shl.b32": 2, "xor.b32": 2, "or.b32": 2,
		"mul.lo.u32": 2, "mul.rn.f32": 2, "setp.ge.u64": 2, "setp.ge.u32": 2, "setp.eq.u32": 2, "setp.ne.u32": 2,
		"mad.lo.u32": 3, "fma.rn.f32": 3, "shf.l.wrap.b32": 3, "selp.b32": 3,
	}
	if n, ok := need[op]; ok {
		if len(args) != n+1 {
			return 0, fmt.Errorf("%d operands", len(args))
		}
		if err := src(n); err != nil {
			return 0, err
		}
	}
	switch op {
	case "ret":
		return -1, nil
	case "bra":
		to, ok := labels[args[0]]
		if !ok {
			return 0, fmt.Errorf("no label %s", args[0])
		}
		return to, nil
	case "ld.param.u64", "ld.param.u32":
		n, err := strconv.Atoi(strings.Trim(args[1], "[p]"))
		if err != nil || n >= len(t.args) {
			return 0, fmt.Errorf("no parameter %s", args[1])
		}
		return set(t.args[n])
	case "mov.u32", "mov.f32", "mov.b32", "cvta.to.global.u64", "cvt.u64.u32":
		return set(v[1])
	case "cvt.u32.u64":
		return set32(uint32(v[1]))
	case "cvt.rn.f32.u32":
		return set32(math.Float32bits(float32(uint32(v[1]))))
	case "not.b32":
		return set32(^uint32(v[1]))
	case "mul.wide.u32":
		return set(uint64(uint32(v[1])) * uint64(uint32(v[2])))
	case "add.u64":
		return set(v[1] + v[2])
	case "add.u32":
		return set32(uint32(v[1]) + uint32(v[2]))
	case "shr.u64":
		return set(v[1] >> v[2])
	case "shl.b64":
		return set(v[1] << v[2])
	case "shr.u32":
		return set32(uint32(v[1]) >> v[2])
	case "shl.b32":
		return set32(uint32(v[1]) << v[2])
	case "xor.b32":
		return set32(uint32(v[1]) ^ uint32(v[2]))
	case "or.b32":
		return set32(uint32(v[1]) | uint32(v[2]))
	case "mul.lo.u32":
		return set32(uint32(v[1]) * uint32(v[2]))
	case "mad.lo.u32":
		return set32(uint32(v[1])*uint32(v[2]) + uint32(v[3]))
	case "mul.rn.f32":
		return set32(math.Float32bits(f(v[1]) * f(v[2])))
	case "fma.rn.f32":
		return set32(math.Float32bits(fma32(f(v[1]), f(v[2]), f(v[3]))))
	case "shf.l.wrap.b32": // funnel shift; both halves equal make a rotation
		if args[1] != args[2] {
			return 0, fmt.Errorf("not a rotation")
		}
		return set32(bits.RotateLeft32(uint32(v[1]), int(v[3])))
	case "selp.b32":
		if v[3] != 0 {
			return set(v[1])
		}
		return set(v[2])
	case "setp.ge.u64":
		return is(v[1] >= v[2])
	case "setp.ge.u32":
		return is(uint32(v[1]) >= uint32(v[2]))
	case "setp.eq.u32":
		return is(uint32(v[1]) == uint32(v[2]))
	case "setp.ne.u32":
		return is(uint32(v[1]) != uint32(v[2]))
	case "st.global.cs.v4.u32", "st.global.u32", "st.global.u64":
		a, err := t.addr(args[0])
		if err != nil {
			return 0, err
		}
		size := 4
		if op == "st.global.u64" {
			size = 8
		}
		if strings.Contains(op, ".v4.") && a%16 != 0 {
			return 0, fmt.Errorf("unaligned vector at 0x%x", a)
		}
		for i, r := range operands(strings.Trim(args[1], "{}")) {
			x, err := t.value(r)
			if err != nil {
				return 0, err
			}
			b, err := t.m.at(a+uint64(4*i), size)
			if err != nil {
				return 0, err
			}
			if size == 8 {
				binary.LittleEndian.PutUint64(b, x)
			} else {
				binary.LittleEndian.PutUint32(b, uint32(x))
			}
		}
		return pc + 1, nil
	case "ld.volatile.global.v4.u32", "ld.volatile.global.u32":
		a, err := t.addr(args[1])
		if err != nil {
			return 0, err
		}
		for i, r := range operands(strings.Trim(args[0], "{}")) {
			x, err := t.m.load32(a + uint64(4*i))
			if err != nil {
				return 0, err
			}
			t.reg[r] = uint64(x)
		}
		return pc + 1, nil
	case "atom.global.add.u32":
		a, err := t.addr(args[1])
		if err != nil {
			return 0, err
		}
		b, err := t.m.at(a, 4)
		if err != nil {
			return 0, err
		}
		x, err := t.value(args[2])
		if err != nil {
			return 0, err
		}
		old := binary.LittleEndian.Uint32(b)
		binary.LittleEndian.PutUint32(b, old+uint32(x))
		return set32(old)
	}
	return 0, fmt.Errorf("unknown instruction")
}

func TestPTXMemory(t *testing.T) {
	const base, units = 0x7f0000000000, 1000 // not a multiple of the grid
	const errs = base + units*16
	m := &ptxMachine{text: kernelsPTX, base: base, mem: make([]byte, units*16+vramErrBuffer+8)}
	word := func(i int, k int) uint64 { return base + uint64(16*i+4*k) }
	count := func() (uint32, []vramError) {
		t.Helper()
		b := m.mem[units*16:]
		n := binary.LittleEndian.Uint32(b)
		var out []vramError
		for i := range min(int(n), vramRecords) {
			r := b[8+24*i:]
			out = append(out, vramError{binary.LittleEndian.Uint64(r), binary.LittleEndian.Uint32(r[8:]), binary.LittleEndian.Uint32(r[12:]), binary.LittleEndian.Uint32(r[16:]), binary.LittleEndian.Uint32(r[20:])})
		}
		clear(b[:vramErrBuffer])
		return n, out
	}
	run := func(name string, args ...uint64) {
		t.Helper()
		if err := m.launch(name, 3, 32, args...); err != nil {
			t.Fatal(err)
		}
	}
	const seed, comp = 0x5EED0001, 0xffffffff
	run("vram_fill", base, units, seed, 0)
	for i := range units {
		for k, want := range vramUnit(uint64(i), seed, 0) {
			if got, _ := m.load32(word(i, k)); got != want {
				t.Fatalf("unit %d word %d is %08x, want %08x", i, k, got, want)
			}
		}
	}
	run("vram_check", base, units, seed, 0, errs)
	run("vram_check", base, units, seed, comp, errs)
	if n, list := count(); n != 0 {
		t.Fatalf("%d errors in good memory: %+v", n, list)
	}
	// After two inversions it is as filled: each check wrote the complement.
	if got, _ := m.load32(word(7, 2)); got != vramUnit(7, seed, 0)[2] {
		t.Errorf("two inversions do not give the pattern back")
	}

	// Flips once: found with address, bits and word; stuck bits: in one of the
	// two inversions each.
	flip := map[uint64]uint32{word(3, 0): 1 << 0, word(500, 1): 1 << 31, word(501, 2): 0x00ff0000, word(999, 3): 1 << 13}
	for a, bit := range flip {
		b, _ := m.at(a, 4)
		binary.LittleEndian.PutUint32(b, binary.LittleEndian.Uint32(b)^bit)
	}
	run("vram_check", base, units, seed, 0, errs)
	n, list := count()
	if int(n) != len(flip) || len(list) != len(flip) {
		t.Fatalf("%d errors of %d: %+v", n, len(flip), list)
	}
	for _, e := range list {
		if e.want^e.got != flip[e.addr] || !e.stuck() {
			t.Errorf("error %+v, want bits %08x", e, flip[e.addr])
		}
	}
	run("vram_check", base, units, seed, comp, errs)
	if n, list := count(); n != 0 {
		t.Fatalf("the complement hides or repeats errors: %d %+v", n, list)
	}
	m.stuck = map[uint64]uint32{word(250, 0): 1 << 5, word(500, 2): 1 << 13, word(750, 3): 1 << 31}
	run("vram_check", base, units, seed, 0, errs)
	run("vram_check", base, units, seed, comp, errs)
	if n, list := count(); int(n) != len(m.stuck) {
		t.Fatalf("%d errors of %d stuck bits: %+v", n, len(m.stuck), list)
	}
	// More errors than records: all counted, none written outside.
	m.stuck = nil
	clear(m.mem[:units*16])
	run("vram_check", base, units, seed, 0, errs)
	if tail := m.mem[len(m.mem)-8:]; string(tail) != string(make([]byte, 8)) {
		t.Error("the records leave their buffer")
	}
	if n, _ := count(); n != units {
		t.Errorf("%d errors of %d", n, units)
	}
}

func TestPTXChain(t *testing.T) {
	const base, blocks, threads, steps = 0x10000, 3, 5, 64
	for _, reps := range []uint64{1, 3} {
		m := &ptxMachine{text: kernelsPTX, base: base, mem: make([]byte, 8*blocks)}
		if err := m.launch("fma_chain", blocks, threads, base, steps, reps); err != nil {
			t.Fatal(err)
		}
		want := chainSum(threads, steps) * uint32(reps)
		for b := range blocks {
			if sum, sm := le32(m.mem[8*b:]), le32(m.mem[8*b+4:]); sum != want || sm != uint32(b%3) {
				t.Errorf("block %d: sum %08x on SM %d, want %08x", b, sum, sm, want)
			}
		}
	}
}
