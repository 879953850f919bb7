package triage

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"smelt/inventory"
)

// captured makes hardware of a published lspci dump (see the first line of
// each file): GPUs with both ends of their link, and bridges. What lspci does
// not tell (memory, CPU, disk) is plenty.
func captured(t *testing.T, name, product string) inventory.Hardware {
	t.Helper()
	text, err := os.ReadFile("testdata/" + name + ".txt")
	if err != nil {
		t.Fatal(err)
	}
	head := regexp.MustCompile(`^([0-9a-f:.]+) .*?\[([0-9a-f]{4})\]: .*\[([0-9a-f]{4}):([0-9a-f]{4})\]`)
	link := regexp.MustCompile(`Speed ([0-9.]+)GT/s.*?, Width x([0-9]+)`)
	secondary := regexp.MustCompile(`secondary=([0-9a-f]{2})`)
	var devices []inventory.PCI
	bus := map[string]int{} // bus number -> index of the bridge to it
	for _, stanza := range strings.Split(string(text), "\n\n") {
		var p inventory.PCI
		for _, line := range strings.Split(stanza, "\n") {
			if m := head.FindStringSubmatch(line); m != nil {
				p.Address, p.Class, p.Vendor, p.Device = "0000:"+m[1], m[2]+"00", m[3], m[4]
			}
			if m := secondary.FindStringSubmatch(line); m != nil {
				bus[m[1]] = len(devices)
			}
			m := link.FindStringSubmatch(line)
			if m == nil {
				continue
			}
			speed, _ := strconv.ParseFloat(m[1], 64)
			width, _ := strconv.Atoi(m[2])
			if strings.Contains(line, "LnkCap:") {
				p.Link.MaxSpeed, p.Link.MaxWidth = speed, width
			} else if strings.Contains(line, "LnkSta:") {
				p.Link.CurrentSpeed, p.Link.CurrentWidth = speed, width
			}
		}
		if p.Address != "" {
			devices = append(devices, p)
		}
	}
	for i, p := range devices {
		if b, ok := bus[p.Address[5:7]]; ok {
			devices[i].Port = &inventory.Port{Address: devices[b].Address, Link: devices[b].Link}
		}
	}
	hw := inventory.Hardware{
		Board:    inventory.Board{Product: product},
		Firmware: inventory.Firmware{Arch: "amd64"},
		CPU:      inventory.CPU{Model: "EPYC 7252", Cores: 64, Threads: 128, Flags: []string{"avx", "avx2"}},
		Memory:   inventory.Memory{Total: 512 * gib},
		Disks:    []inventory.Disk{{DiskID: inventory.DiskID{Serial: "S3X0NB0K812345", Size: 1e12}, Bus: "nvme"}},
		NICs:     []inventory.NIC{{Speed: 10000}},
	}
	for _, p := range devices {
		if strings.HasPrefix(p.Class, "03") {
			hw.GPUs = append(hw.GPUs, inventory.GPU{PCI: p})
		} else {
			hw.PCI = append(hw.PCI, p)
		}
	}
	return hw
}

func target(t *testing.T, name string) Target {
	t.Helper()
	x, err := TargetNamed(name)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// missed lists "item where" of the reasons that are not OK.
func missed(v inventory.Verdict) []string {
	var out []string
	for _, r := range v.Reasons {
		if !r.OK {
			out = append(out, strings.TrimSpace(r.Item+" "+r.Where))
		}
	}
	return out
}

func wantVerdict(t *testing.T, v inventory.Verdict, answer string, misses ...string) {
	t.Helper()
	if v.Answer != answer || !slices.Equal(missed(v), misses) {
		t.Errorf("%s for %s, misses %q; want %s, misses %q\n%s", v.Answer, v.Target, missed(v), answer, misses, show(v))
	}
}

func show(v inventory.Verdict) string {
	var b strings.Builder
	for _, r := range v.Reasons {
		fmt.Fprintf(&b, "%+v\n", r)
	}
	return b.String()
}

func reason(t *testing.T, v inventory.Verdict, item string) inventory.Reason {
	t.Helper()
	for _, r := range v.Reasons {
		if r.Item == item && !r.OK {
			return r
		}
	}
	t.Fatalf("no missed %s in\n%s", item, show(v))
	return inventory.Reason{}
}

// A 3090 in the wide slot of a mining board, a 4070 in a narrow one.
func TestCapturedRigOfTwo(t *testing.T) {
	hw := captured(t, "asrock-h510_pro_btc+-40650318ec20", "H510 Pro BTC+")
	slots := map[string]string{"0000:00:01.0": "slot 1", "0000:00:1c.5": "slot 2"}
	wantVerdict(t, Judge(hw, target(t, "slurm-batch"), Expect{GPUs: 2, MinLinkWidth: 1, Slots: slots}), Convert)

	// The board has one wide slot for two cards that should have one each.
	v := Judge(hw, target(t, "slurm-batch"), Expect{GPUs: 2, MinLinkWidth: 8, Slots: slots})
	wantVerdict(t, v, PartOut, "pcie-link slot 2", "board")
	if r := reason(t, v, "pcie-link"); r.Fix != "move GPU RTX 4070 from slot 2 (x1) to an x16 slot" || r.Got != "x1 (card x16, slot x1)" {
		t.Errorf("%+v", r)
	}
	// On a board that the table does not know a move may help.
	hw.Board.Product = "X570 AORUS PRO"
	wantVerdict(t, Judge(hw, target(t, "slurm-batch"), Expect{MinLinkWidth: 8, Slots: slots}), Upgrade, "pcie-link slot 2")
	wantVerdict(t, Judge(hw, target(t, "vast"), Expect{Slots: slots}), Upgrade, "pcie-link slot 2") // 0.98 of 2.85 GB/s
}

// A riser in a wide slot, and a card in a narrow one: two different remedies.
func TestCapturedRisers(t *testing.T) {
	hw := captured(t, "biostar-tb250-btc_pro-6115325a21fc", "unheard-of")
	v := Judge(hw, Target{Name: "x", Version: 1, LinkWidth: 8, Special: true}, Expect{})
	wantVerdict(t, v, Upgrade, "pcie-link 0000:01:00.0", "pcie-link 0000:03:00.0")
	var fixes []string
	for _, r := range v.Reasons {
		if r.Item == "pcie-link" {
			fixes = append(fixes, r.Fix)
		}
	}
	if !strings.Contains(fixes[0], "replace its x1 riser") || !strings.HasPrefix(fixes[1], "move GPU") {
		t.Errorf("%q", fixes)
	}
}

// Radeons hide the slot behind a switch of their own; read without root there
// is no link at all. Neither may pass for x16.
func TestCapturedWithoutLinks(t *testing.T) {
	hw := captured(t, "asrock-h510_pro_btc+-3ffda6e4f986", "H510 Pro BTC+")
	v := Judge(hw, Target{Name: "x", Version: 1, LinkWidth: 1, Special: true}, Expect{GPUs: 6})
	if v.Answer != Unknown || len(missed(v)) != 6 {
		t.Errorf("%s: %q", v.Answer, missed(v))
	}
	// With the links as sysfs shows them: inside x16, to the slot x1.
	for i, p := range hw.PCI {
		switch p.Device {
		case "1478":
			hw.PCI[i].Link = inventory.PCILink{MaxWidth: 8, CurrentWidth: 1, MaxSpeed: 16}
			hw.PCI[i].Port.Link = inventory.PCILink{MaxWidth: 1, CurrentWidth: 1, MaxSpeed: 8}
		case "1479":
			hw.PCI[i].Link = inventory.PCILink{MaxWidth: 16, CurrentWidth: 16, MaxSpeed: 16}
		}
	}
	for i := range hw.GPUs {
		hw.GPUs[i].Link = inventory.PCILink{MaxWidth: 16, CurrentWidth: 16, MaxSpeed: 16}
		hw.GPUs[i].Port.Link = hw.GPUs[i].Link
	}
	v = Judge(hw, Target{Name: "x", Version: 1, LinkWidth: 4, Special: true}, Expect{GPUs: 6, Slots: map[string]string{"0000:00:1c.0": "riser 2"}})
	if v.Answer != PartOut || !slices.Contains(missed(v), "pcie-link riser 2") {
		t.Errorf("%s: %q", v.Answer, missed(v))
	}
}

func TestCapturedServer(t *testing.T) {
	hw := captured(t, "supermicro-sys-4028gr-tr-9d0dc8353202", "X10DRG-O+-CPU")
	v := Judge(hw, target(t, "slurm-batch"), Expect{})
	if v.Answer == Unknown || len(hw.GPUs) == 0 {
		t.Errorf("%s\n%s", v.Answer, show(v))
	}
	for _, r := range v.Reasons {
		if strings.Contains(r.Got, "1a03") {
			t.Errorf("the BMC's own graphics counts as a GPU: %+v", r)
		}
	}
}

// A rig of cards of which none is good enough for anything today.
func TestCapturedOldRig(t *testing.T) {
	hw := captured(t, "intel-btc-t37-f99d7d15e63a", "BTC-T37")
	tgt := target(t, "slurm-batch")
	tgt.LinkWidth = 0 // its links could not be read
	v := Judge(hw, tgt, Expect{})
	if v.Answer != Unknown { // the RX 470 was sold with 4 and 8 GB
		t.Errorf("%s: %q", v.Answer, missed(v))
	}
	for i := range hw.GPUs {
		hw.GPUs[i].VRAM = 4 * gib
	}
	if v = Judge(hw, tgt, Expect{}); v.Answer != Recycle {
		t.Errorf("%s: %q", v.Answer, missed(v))
	}
}

// good is a machine that meets every built-in target.
func good() inventory.Hardware {
	hw := inventory.Hardware{
		Firmware: inventory.Firmware{Arch: "amd64"},
		CPU:      inventory.CPU{Model: "EPYC 7252", Cores: 32, Threads: 64, Flags: []string{"avx", "avx2"}},
		Memory:   inventory.Memory{Total: 250 * gib},
		Disks:    []inventory.Disk{{DiskID: inventory.DiskID{Serial: "S3X0NB0K812345", Size: 1e12}, Bus: "nvme"}},
		NICs:     []inventory.NIC{{Speed: 10000}},
	}
	wide := inventory.PCILink{MaxWidth: 16, MaxSpeed: 16, CurrentWidth: 16, CurrentSpeed: 2.5}
	for i := range 4 {
		hw.GPUs = append(hw.GPUs, inventory.GPU{PCI: inventory.PCI{
			Address: fmt.Sprintf("0000:0%d:00.0", i+1), Class: "030000", Vendor: "10de", Device: "2204", Link: wide,
			Port: &inventory.Port{Address: fmt.Sprintf("0000:00:0%d.0", i+1), Slot: fmt.Sprint(i + 1), Link: wide},
		}})
	}
	return hw
}

func TestGoodMachineConverts(t *testing.T) {
	for _, tgt := range Targets() {
		wantVerdict(t, Judge(good(), tgt, Expect{GPUs: 4, GPUModel: "RTX 3090", MinLinkWidth: 16}), Convert)
	}
}

func TestFloors(t *testing.T) {
	for _, c := range []struct {
		name   string
		target string
		class  Expect
		spoil  func(*inventory.Hardware)
		answer string
		misses []string
	}{
		{"a card does not show", "slurm-batch", Expect{GPUs: 5}, func(*inventory.Hardware) {}, Upgrade, []string{"gpus"}},
		{"PCI not read", "slurm-batch", Expect{GPUs: 4}, func(h *inventory.Hardware) { h.Missing = []string{"gpus"}; h.GPUs = nil }, Unknown, []string{"gpus"}},
		{"no card at all", "slurm-batch", Expect{}, func(h *inventory.Hardware) { h.GPUs = nil }, Upgrade, []string{"gpus"}},
		{"another model", "slurm-batch", Expect{GPUModel: "RTX 3090"}, func(h *inventory.Hardware) { h.GPUs[1].Device = "2203" }, Upgrade, []string{"gpu-model slot 2"}},
		{"unknown card", "slurm-batch", Expect{}, func(h *inventory.Hardware) { h.GPUs[0].Device = "ffff"; h.GPUs[0].VRAM = 24 * gib }, Unknown, []string{"compute slot 1", "driver slot 1"}},
		{"one small card", "k8s-inference", Expect{}, func(h *inventory.Hardware) { h.GPUs[3].VRAM = 6 * gib }, Upgrade, []string{"vram slot 4"}},
		{"all cards small", "k8s-inference", Expect{}, func(h *inventory.Hardware) {
			for i := range h.GPUs {
				h.GPUs[i].VRAM = 6 * gib
			}
		}, Recycle, []string{"vram slot 1", "vram slot 2", "vram slot 3", "vram slot 4"}},
		{"mining card", "slurm-batch", Expect{}, func(h *inventory.Hardware) { h.GPUs[0].Device = "220d" }, Upgrade, []string{"compute slot 1"}},
		{"card of one lane by design", "slurm-batch", Expect{MinLinkWidth: 4}, func(h *inventory.Hardware) { h.GPUs[0].Link = inventory.PCILink{MaxWidth: 1, CurrentWidth: 1} }, Upgrade, []string{"pcie-link slot 1"}},
		{"badly seated", "train", Expect{}, func(h *inventory.Hardware) { h.GPUs[2].Link.CurrentWidth = 4 }, Upgrade, []string{"pcie-link slot 3"}},
		{"port not read", "train", Expect{}, func(h *inventory.Hardware) { h.GPUs[2].Port = nil }, Unknown, []string{"pcie-link 0000:03:00.0"}},
		{"link down", "train", Expect{}, func(h *inventory.Hardware) { h.GPUs[2].Link.CurrentWidth = 0 }, Unknown, []string{"pcie-link slot 3"}},
		{"NVIDIA beside AMD", "lab", Expect{}, func(h *inventory.Hardware) { h.GPUs[0].Vendor, h.GPUs[0].Device = "1002", "73ff" }, Upgrade, []string{"driver slot 1"}},
		{"generations without a common driver", "slurm-batch", Expect{}, func(h *inventory.Hardware) { h.GPUs[0].Device = "1b06"; h.GPUs[1].Device = "2b85" }, Upgrade, []string{"driver slot 2"}},
		{"generations with one", "slurm-batch", Expect{}, func(h *inventory.Hardware) { h.GPUs[0].Device = "1b06" }, Convert, nil},
		{"little memory", "vast", Expect{}, func(h *inventory.Hardware) { h.Memory.Total = 8 * gib }, Upgrade, []string{"ram"}},
		{"a board that cannot take enough", "vast", Expect{}, func(h *inventory.Hardware) { h.Memory.Total = 8 * gib; h.Board.Product = "H110 Pro BTC+" }, PartOut, []string{"ram"}},
		{"memory not read", "vast", Expect{}, func(h *inventory.Hardware) { h.Memory.Total = 0 }, Unknown, []string{"ram"}},
		{"two cores", "vast", Expect{}, func(h *inventory.Hardware) { h.CPU.Cores = 2 }, Upgrade, []string{"cores"}},
		{"cores not read", "vast", Expect{}, func(h *inventory.Hardware) { h.CPU.Cores = 0 }, Unknown, []string{"cores"}},
		{"Celeron", "k8s-inference", Expect{}, func(h *inventory.Hardware) { h.CPU.Flags = []string{"aes"} }, Upgrade, []string{"avx2"}},
		{"flags not read", "k8s-inference", Expect{}, func(h *inventory.Hardware) { h.CPU.Flags = nil }, Unknown, []string{"avx2"}},
		{"boots from a stick", "slurm-batch", Expect{}, func(h *inventory.Hardware) { h.Disks[0].Bus = "usb" }, Upgrade, []string{"disk"}},
		{"disks not read", "slurm-batch", Expect{}, func(h *inventory.Hardware) { h.Missing = []string{"disks"}; h.Disks = nil }, Unknown, []string{"disk"}},
		{"slow network", "train", Expect{}, func(h *inventory.Hardware) { h.NICs[0].Speed = 1000 }, Upgrade, []string{"network"}},
		{"no link", "vast", Expect{}, func(h *inventory.Hardware) { h.NICs[0].Speed = 0 }, Unknown, []string{"network"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			hw := good()
			c.spoil(&hw)
			v := Judge(hw, target(t, c.target), c.class)
			wantVerdict(t, v, c.answer, c.misses...)
			for _, r := range v.Reasons {
				if !r.OK && (r.Fix == "" || r.Want == "" || r.Got == "") {
					t.Errorf("a reason that helps nobody: %+v", r)
				}
			}
		})
	}
}

// A QEMU device that stands for a card has one lane of its own; the slot is
// what the lab makes of it. Everything said of it is marked.
func TestSimulated(t *testing.T) {
	lab := func(slot int) inventory.Hardware {
		hw := good()
		hw.GPUs = hw.GPUs[:1]
		g := &hw.GPUs[0]
		g.Vendor, g.Device, g.Model, g.VRAM, g.Simulated = "1b36", "0005", "NVIDIA GeForce RTX 3090", 24*gib, true
		g.Link = inventory.PCILink{MaxWidth: 1, MaxSpeed: 2.5, CurrentWidth: 1, CurrentSpeed: 2.5}
		g.Port.Link = inventory.PCILink{MaxWidth: slot, MaxSpeed: 8, CurrentWidth: 1, CurrentSpeed: 2.5}
		return hw
	}
	v := Judge(lab(16), target(t, "lab"), Expect{GPUs: 1, GPUModel: "RTX 3090", MinLinkWidth: 8})
	wantVerdict(t, v, Convert)
	if !v.Simulated {
		t.Error("the verdict does not say that its GPU is simulated")
	}
	for _, r := range v.Reasons {
		gpu := slices.Contains([]string{"gpus", "vram", "compute", "pcie-link", "driver"}, r.Item)
		if gpu != r.Simulated {
			t.Errorf("%s: simulated %t", r.Item, r.Simulated)
		}
	}
	v = Judge(lab(1), target(t, "lab"), Expect{GPUs: 1, MinLinkWidth: 8, Slots: map[string]string{"0000:00:01.0": "slot 2"}})
	wantVerdict(t, v, Upgrade, "pcie-link slot 2")
	if r := reason(t, v, "pcie-link"); !r.Simulated || r.Fix != "move GPU RTX 3090 from slot 2 (x1) to an x16 slot" {
		t.Errorf("%+v", r)
	}
	if Judge(good(), target(t, "lab"), Expect{}).Simulated {
		t.Error("a real machine is called simulated")
	}
}

func TestTables(t *testing.T) {
	seen := map[string]string{}
	for _, c := range Cards() {
		id := c.Vendor + ":" + c.Device
		if other, twice := seen[id]; twice {
			t.Errorf("%s is %s and %s", id, other, c.Model)
		}
		seen[id] = c.Model
		if !regexp.MustCompile(`^(10de|1002):[0-9a-f]{4}$`).MatchString(id) || c.Model == "" || c.Arch == "" {
			t.Errorf("%+v", c)
		}
		if !slices.Contains([]Use{Full, Special, None, IGPU}, c.Use) {
			t.Errorf("%s: use %q", c.Model, c.Use)
		}
		if c.Use == IGPU {
			continue
		}
		if len(c.VRAM) == 0 || c.Watts == 0 || c.Gen == 0 || !slices.Contains([]int{1, 4, 8, 16}, c.Width) || !slices.IsSorted(c.VRAM) {
			t.Errorf("%+v", c)
		}
		if nv := c.Vendor == "10de"; nv != (c.CC > 0) || nv != (c.Drivers.First > 0) || nv != (c.Drivers.Open || c.Drivers.Proprietary) {
			t.Errorf("%+v", c)
		}
		if c.CC > 0 && c.CC < 75 && (c.Drivers.Last != 580 || c.Drivers.Open) {
			t.Errorf("%s: cards before Turing end with the proprietary driver 580", c.Model)
		}
	}
	for _, name := range []string{"NVIDIA GeForce RTX 3090", "rtx3090", "RTX 3090"} {
		if c, ok := CardByModel(name); !ok || c.Device != "2204" {
			t.Errorf("%s: %+v", name, c)
		}
	}
	for _, c := range Cards() {
		if got, ok := CardByModel(c.Model); !ok || got.Model != c.Model {
			t.Errorf("%s is not found by its own name, but %+v", c.Model, got)
		}
	}
	for _, p := range []string{"H110 Pro BTC+", "h510 pro btc+", "B250 MINING EXPERT", "TB250-BTC", "TB250-BTC+", "TB250-BTC PRO", "BTC-T37", "B250-FinTech-CF"} {
		if b, ok := BoardByProduct(p); !ok || !b.Mining || b.Wide == 0 || b.Narrow == 0 || b.RAM == 0 {
			t.Errorf("%s: %+v", p, b)
		}
	}
	if a, _ := BoardByProduct("TB250-BTC"); a.Model == "Biostar TB250-BTC+" {
		t.Error("two boards that differ in a plus are one")
	}
	if _, err := TargetNamed("moon"); err == nil || !strings.Contains(err.Error(), "slurm-batch") {
		t.Errorf("unknown target: %v", err)
	}
}

// Whatever the machine, Judge ends, and says convert only when every reason is
// met and no fact was missing.
func TestConvertMeansEveryFloor(t *testing.T) {
	ids := []string{"2204", "2206", "1c03", "1b07", "220d", "2b85", "ffff"}
	rapid.Check(t, func(r *rapid.T) {
		hw := good()
		hw.GPUs = hw.GPUs[:rapid.IntRange(0, 4).Draw(r, "gpus")]
		width := func(name string) int { return rapid.SampledFrom([]int{0, 1, 4, 8, 16}).Draw(r, name) }
		for i := range hw.GPUs {
			g := &hw.GPUs[i]
			g.Device = rapid.SampledFrom(ids).Draw(r, "id")
			g.Link.MaxWidth, g.Link.CurrentWidth, g.Port.Link.MaxWidth = width("card"), width("now"), width("slot")
		}
		hw.Memory.Total = int64(rapid.IntRange(0, 64).Draw(r, "gib")) * gib
		hw.CPU.Cores = rapid.IntRange(0, 16).Draw(r, "cores")
		tgt := rapid.SampledFrom(Targets()).Draw(r, "target")
		v := Judge(hw, tgt, Expect{GPUs: rapid.IntRange(0, 4).Draw(r, "expected"), MinLinkWidth: width("class")})
		all := true
		for _, reason := range v.Reasons {
			all = all && reason.OK
		}
		if (v.Answer == Convert) != all {
			r.Fatalf("%s with %q", v.Answer, missed(v))
		}
		if !slices.Contains([]string{Convert, Upgrade, PartOut, Recycle, Unknown}, v.Answer) {
			r.Fatalf("answer %q", v.Answer)
		}
	})
}

func TestCommonDriver(t *testing.T) {
	pascal := Card{Vendor: "10de", Model: "old", Drivers: Drivers{First: 367, Last: 580, Proprietary: true}}
	ampere := Card{Vendor: "10de", Model: "mid", Drivers: Drivers{First: 455, Proprietary: true, Open: true}}
	later := Card{Vendor: "10de", Model: "new", Drivers: Drivers{First: 600, Proprietary: true, Open: true}}
	open := Card{Vendor: "10de", Model: "open", Drivers: Drivers{First: 570, Open: true}}
	radeon := Card{Vendor: "1002"}
	for _, c := range []struct {
		cards []Card
		want  string // "" for none
	}{
		{nil, "none needed"},
		{[]Card{pascal, pascal}, "proprietary, 580 at most"},
		{[]Card{ampere, later}, "open, current"},
		{[]Card{pascal, ampere}, "proprietary, 580 at most"},
		{[]Card{pascal, later}, ""},
		{[]Card{later, pascal}, ""},
		{[]Card{pascal, open}, ""},
		{[]Card{radeon}, "amdgpu"},
		{[]Card{radeon, ampere}, ""},
	} {
		got, err := common(c.cards)
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%v: %q, %v", c.cards, got, err)
		}
	}
}

// The rates of one lane as the PCI-SIG states them, in GB/s each way.
func TestLane(t *testing.T) {
	for gts, want := range map[float64]float64{2.5: 0.25, 5: 0.5, 8: 0.985, 16: 1.969, 32: 3.938} {
		if got := lane(gts); got < want-0.001 || got > want+0.001 {
			t.Errorf("%g GT/s: %.3f GB/s, want %.3f", gts, got, want)
		}
	}
}
