package web

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"smelt/internal/api"
	"smelt/inventory"
)

var now = time.Date(2026, 11, 22, 9, 41, 0, 0, time.UTC)

func ptr[T any](v T) *T { return &v }

func gpu(slot int, model string, vram int64, port int, sim bool) inventory.GPU {
	return inventory.GPU{
		PCI: inventory.PCI{
			Address: fmt.Sprintf("0000:%02x:00.0", slot), Class: "030000", Vendor: "10de", Device: "2204",
			Link: inventory.PCILink{MaxWidth: 16, MaxSpeed: 16, CurrentWidth: port, CurrentSpeed: 2.5},
			Port: &inventory.Port{Address: fmt.Sprintf("0000:00:1c.%d", slot-1), Link: inventory.PCILink{MaxWidth: port, MaxSpeed: 8}},
		},
		Model: model, VRAM: vram << 30, Slot: fmt.Sprintf("riser %d", slot), Simulated: sim,
		UUID: fmt.Sprintf("GPU-5a1d0c%02d-77e2-4b0e-9f5e-3b1f6d2a9c%02d", slot, slot),
	}
}

func hardware(cards int, model string, vram int64, port int, sim bool) *inventory.Hardware {
	h := &inventory.Hardware{
		Board:    inventory.Board{Vendor: "ASRock", Product: "H110 Pro BTC+", Serial: "M80-B6019400873", BIOSVendor: "American Megatrends", BIOSVersion: "P1.60"},
		Firmware: inventory.Firmware{UEFI: true, Arch: "amd64"},
		CPU:      inventory.CPU{Model: "Intel Celeron G3930", Cores: 2, Threads: 2},
		Memory:   inventory.Memory{Total: 8 << 30},
		Disks: []inventory.Disk{
			{Name: "sda", Model: "KINGSTON SA400S37240G", Bus: "sata", DiskID: inventory.DiskID{Serial: "50026B7782A9F1C3", Path: "pci-0000:00:17.0-ata-1", Size: 240057409536}, Signatures: []string{"gpt", "ext4", "vfat"}},
			{Name: "sdb", Model: "WDC WD10EZEX-08WN4A0", Bus: "sata", Rotational: true, DiskID: inventory.DiskID{Serial: "WD-WCC6Y4HT7N2E", Size: 1000204886016}, Signatures: []string{"zfs_member"}},
			{Name: "sdc", Model: "SanDisk Ultra Fit", Bus: "usb", Removable: true, DiskID: inventory.DiskID{Serial: "4C530001230528113475", Size: 15376318464}, Signatures: []string{"vfat"}},
		},
		NICs: []inventory.NIC{{Name: "enp2s0", MAC: inventory.MAC{0x70, 0x85, 0xc2, 0x4b, 0x19, 0x3e}, Driver: "r8169", Speed: 1000, Link: true, PCI: "0000:02:00.0"}},
	}
	for i := range cards {
		h.GPUs = append(h.GPUs, gpu(i+1, model, vram, port, sim))
	}
	return h
}

// hall is a site as it looks in the middle of a conversion.
func hall() (Head, []api.NodeView, []inventory.Task) {
	var views []api.NodeView
	counts := map[string]int{}
	add := func(id, pos string, st inventory.State, age time.Duration, edit func(*api.NodeView)) {
		n := inventory.Node{ID: inventory.NodeID(id), State: st, Since: now.Add(-age), Version: 4, Spec: inventory.Spec{Name: inventory.NodeID(id), Position: inventory.Position(pos), Class: "rig-6x3080"}}
		if d := inventory.Table[st].Deadline; d > 0 {
			n.Deadline = n.Since.Add(d)
		}
		v := api.NodeView{Node: n, WaitsFor: inventory.Table[st].For, WaitsOn: inventory.Table[st].Actor}
		if edit != nil {
			edit(&v)
		}
		if v.Stuck = v.Node.Stuck(now); v.Stuck {
			v.Try = strings.ReplaceAll(inventory.Table[st].Try, "NODE", id)
		}
		counts[st.String()]++
		views = append(views, v)
	}
	doing := func(done float64, what string, rate float64) func(*api.NodeView) {
		return func(v *api.NodeView) { v.Progress = &api.Progress{Order: "o", Done: done, Doing: what, Rate: rate} }
	}
	for i := 1; i <= 6; i++ {
		add(fmt.Sprintf("srv-%02d", i), fmt.Sprintf("A1-U%d", 4*i+2), inventory.InService, time.Duration(i*9)*time.Hour, nil)
	}
	add("srv-07", "A2-U10", inventory.BurningIn, 190*time.Minute, doing(0.62, "gpu-compute, card 3 of 4", 0))
	add("srv-08", "A2-U14", inventory.Imaging, 4*time.Minute, doing(0.41, "writing debian-12-ai", 512e6))
	add("srv-09", "A2-U18", inventory.Wiping, 30*time.Second, doing(0.08, "discarding 3.8 TB", 0))
	add("srv-10", "A2-U22", inventory.Joining, 2*time.Minute, nil)
	add("srv-11", "A2-U26", inventory.Approved, 11*time.Minute, func(v *api.NodeView) { v.WaitsFor = "a start slot on circuit pdu-a2" })
	add("srv-12", "A2-U30", inventory.InService, 50*time.Hour, func(v *api.NodeView) {
		v.Node.Hold = &inventory.Hold{Owner: "operator", By: "mara", Reason: "keeps the licence dongle until Friday", At: now.Add(-26 * time.Hour)}
		v.WaitsFor, v.WaitsOn = "the hold to be lifted: keeps the licence dongle until Friday", "operator"
	})
	add("rig-01", "A3-S1", inventory.InService, 70*time.Hour, func(v *api.NodeView) { v.Simulated = true })
	add("rig-02", "A3-S2", inventory.NeedsWork, 3*time.Hour, func(v *api.NodeView) {
		v.Node.Hardware = hardware(6, "RTX 3080", 10, 1, false)
		v.Node.Failure = &inventory.Failure{Step: inventory.BurningIn, Cause: "gpu-lost", Detail: "card 4 fell off the bus after 11 min of load"}
	})
	add("rig-03", "A3-S3", inventory.Inspected, 25*time.Minute, func(v *api.NodeView) {
		v.Node.Hardware = hardware(6, "RTX 3080", 10, 1, false)
		v.Node.Verdict = &inventory.Verdict{Target: "slurm-batch", Answer: "upgrade", Reasons: []inventory.Reason{
			{Item: "cards", OK: true, Want: "6", Got: "6"}, {Item: "memory of a card", OK: true, Want: "8 GiB", Got: "10 GiB"},
			{Item: "PCIe link", Want: "x4", Got: "x1", Where: "riser 1 to riser 6", Fix: "An x1 riser starves training; batch inference that stays on the card is fine."},
			{Item: "RAM", Want: "32 GiB", Got: "8 GiB", Fix: "Add 2 x 16 GiB DDR4 UDIMM.", Part: "2 x 16 GiB DDR4"},
		}}
		v.Node.Salvage = &inventory.Salvage{MinerOS: "HiveOS", WorkerName: "hall-a-rig-03", RigID: "4471920", Files: map[string]string{"/hive-config/rig.conf": "WORKER_NAME=\"hall-a-rig-03\"\nRIG_PASSWD=[redacted]\nFARM_ID=118233\n"}}
	})
	add("new-7085c24b193e", "", inventory.Inspected, 8*time.Minute, func(v *api.NodeView) {
		v.Node.Spec = inventory.Spec{}
		v.Node.Hardware = hardware(2, "RTX 3090", 24, 16, true)
		v.Simulated = true
		v.Node.Hardware.Disks = v.Node.Hardware.Disks[:1]
		v.Node.Verdict = &inventory.Verdict{Target: "slurm-batch", Answer: "convert", Simulated: true, Reasons: []inventory.Reason{
			{Item: "memory of a card", OK: true, Want: "8 GiB", Got: "24 GiB", Simulated: true}, {Item: "PCIe link", OK: true, Want: "x4", Got: "x16"}}}
	})
	add("new-001e67a4c0d1", "", inventory.Discovered, 41*time.Minute, nil)
	add("rig-04", "A3-S4", inventory.Starting, 47*time.Minute, nil)
	add("rig-05", "A3-S5", inventory.Expected, 90*time.Hour, nil)
	add("rig-06", "A3-S6", inventory.Retired, 400*time.Hour, nil)
	tasks := []inventory.Task{
		{ID: "t-4f1c", Node: "rig-02", Verb: "reseat", What: "GPU RTX 3080 (0000:04:00.0)", Where: "A3-S2, riser 4", Why: "It fell off the bus after 11 min of load.", How: "Switch the rig off at the wall first. Fourth card from the left: pull riser and card, look at the contacts, push both home until they click.", Proof: "burnin", Opened: now.Add(-3 * time.Hour)},
		{ID: "t-88a0", Node: "rig-05", Verb: "plug", What: "network cable", Where: "A3-S5", Why: "Expected for 3 days; it never asked for an address.", Proof: "dhcp", Opened: now.Add(-30 * time.Hour)},
		{ID: "t-11b2", Node: "srv-03", Verb: "replace", What: "fan 2", Where: "A1-U14", Why: "0 rpm under load.", Proof: "burnin", Opened: now.Add(-52 * time.Hour), DoneAt: now.Add(-49 * time.Hour), DoneBy: "technician:ana", Outcome: "PASS"},
	}
	for i := range views {
		if len(views[i].Node.MACs) == 0 && views[i].Node.Hardware != nil {
			views[i].Node.MACs = []inventory.MAC{views[i].Node.Hardware.NICs[0].MAC}
		}
	}
	h := Head{
		User: "mara", Role: "operator", MayWork: true, MayRule: true, Now: now,
		Site: api.SiteView{Name: "hall-a", Version: "v0.1.0", Counts: counts, OpenTasks: 2, Seq: 4711, Levels: []api.Level{
			{Circuit: inventory.Circuit{Name: "feed-a", Kind: "feed"}, Granted: 18400, Limit: 34918},
			{Circuit: inventory.Circuit{Name: "pdu-a1", Kind: "pdu", Parent: "feed-a"}, Granted: 5600, Limit: 5888},
			{Circuit: inventory.Circuit{Name: "pdu-a2", Kind: "pdu", Parent: "feed-a"}, Granted: 3100, Limit: 5888},
		}},
	}
	// As the server sorts them: the longest stuck first.
	var stuck, rest []api.NodeView
	for _, v := range views {
		if v.Stuck {
			stuck = append(stuck, v)
		} else {
			rest = append(rest, v)
		}
	}
	return h, append(stuck, rest...), tasks
}

// wire is what the boot service heard.
func wire() ([]api.NetworkView, []api.Sighting) {
	networks := []api.NetworkView{
		{Name: "aisle-3", Mode: "authoritative", Interface: "eno2", Address: "10.20.0.1/16", Pool: "10.20.200.1-10.20.200.250", Used: 231, Size: 250, Heard: 214,
			Warnings: []string{"231 of 250 addresses of the pool are given: make it larger in site.yaml (networks: pool), or machines that nobody named get none"},
			Rivals: []api.Rival{{Name: "ProxyDHCP server 10.20.9.9 (52:54:00:9a:11:02), seems to be HiveOS", Type: "ProxyDHCP", MAC: "52:54:00:9a:11:02", Addr: "10.20.9.9",
				Boots: []string{"hiveos/pxelinux.0 from 10.20.9.9 to BIOS PXE"}, Alarm: "it tells machines to boot its own files", Next: "switch it off, or stop it from answering machines that Smelt converts", First: now.Add(-time.Hour), Last: now.Add(-40 * time.Second)}}},
		{Name: "asic-hall", Mode: "observe", Interface: "eno3", Address: "10.30.0.2/16", Heard: 1190},
	}
	var seen []api.Sighting
	add := func(mac inventory.MAC, verdict, reason string, s api.Sighting) {
		s.MAC, s.Verdict, s.Reason, s.First, s.Last = mac, verdict, reason, now.Add(-3*time.Hour), now.Add(-time.Duration(len(seen)*17)*time.Second)
		seen = append(seen, s)
	}
	add(inventory.MAC{0x70, 0x85, 0xc2, 0x4b, 0x19, 0x3e}, api.SeenNode, "node rig-02 is needs-work", api.Sighting{Network: "aisle-3", Node: "rig-02", Boots: true, Arch: 7, Vendor: "PXEClient:Arch:00007:UNDI:003000", Got: "ack 10.20.1.2", Why: "renewed, snponly.efi by TFTP; kernel: node rig-02 needs work: inspection", Circuit: "sw3/ge-0/0/17", Remote: "sw3", Relay: "10.21.0.1"})
	add(inventory.MAC{0xa8, 0xa1, 0x59, 1, 2, 3}, api.SeenCandidate, "its firmware boots from the network, and it is no node: inspection would say what it is worth", api.Sighting{Network: "asic-hall", Boots: true, Vendor: "PXEClient:Arch:00000:UNDI:002001", Got: "none", Why: "this network is only observed"})
	add(inventory.MAC{0xe0, 0xa5, 9, 0x1c, 0x77, 0x20}, api.SeenASIC, "Bitmain Antminer: an ASIC miner computes one hash and nothing else; it cannot be converted", api.Sighting{Network: "asic-hall", Hostname: "antMiner", Vendor: "udhcp 1.20.2", Got: "none", Why: "this network is only observed"})
	add(inventory.MAC{0, 0x11, 0x32, 9, 8, 7}, api.SeenUnknown, "it asks for an address and never to boot: perhaps another device, or a system on its own disk", api.Sighting{Network: "aisle-3", Hostname: `<img src=x>`, Got: "ack 10.20.200.4", Why: "renewed, plain lease"})
	for i := range 60 {
		add(inventory.MAC{0xe0, 0xa5, 9, 0, 1, byte(i)}, api.SeenASIC, "Bitmain Antminer: an ASIC miner computes one hash and nothing else; it cannot be converted", api.Sighting{Network: "asic-hall", Hostname: "antMiner", Vendor: "udhcp 1.20.2", Got: "none", Why: "this network is only observed"})
	}
	return networks, seen
}

func find(views []api.NodeView, id string) api.NodeView {
	for _, v := range views {
		if string(v.Node.ID) == id {
			return v
		}
	}
	panic("no node " + id)
}

// draws is every page with the realistic hall.
func draws(t testing.TB) map[string]func(io.Writer) error {
	t.Helper()
	p, err := New()
	if err != nil {
		t.Fatal(err)
	}
	h, views, tasks := hall()
	var queue []api.NodeView
	for _, id := range []string{"rig-03", "new-7085c24b193e", "new-001e67a4c0d1"} {
		queue = append(queue, find(views, id))
	}
	rig := find(views, "rig-02")
	rig.Node.Report, rig.LastSeen, rig.Addr = "b-20261122-0641", now.Add(-3*time.Hour), "10.20.1.2"
	rig.Try, rig.Code = "smelt task list rig-02", "7QX2"
	rig.Node.Power = inventory.PowerFact{On: "on", Via: "pdu pdu-a1 outlet 3", At: now.Add(-3 * time.Hour)}
	rig.Tasks = tasks[:1]
	rig.Reports = []api.ReportRef{{ID: "b1", Answer: "REPAIR", At: now.Add(-3 * time.Hour), HTML: "/api/v1/reports/rig-02/b1.html", JSON: "/api/v1/reports/rig-02/b1.json"}}
	rig.Spent = map[string]string{"burning-in": "3h10m0s", "imaging": "6m12s", "wiping": "41s"}
	rig.Node.Plan = ptr(inventory.Plan{Run: "r1", Image: strings.Repeat("9f3c", 16), ImageName: "debian-12-ai", Wipe: "discard", Profile: "standard", Disks: []inventory.DiskID{rig.Node.Hardware.Disks[0].DiskID}})
	for i, e := range []inventory.Event{
		{Kind: inventory.KindMoved, To: inventory.Discovered, Actor: "system", Reason: "asked for an address from 70:85:c2:4b:19:3e"},
		{Kind: inventory.KindInspected, Actor: "agent"},
		{Kind: inventory.KindMoved, To: inventory.Inspected, Actor: "system", Reason: "verdict convert for slurm-batch"},
		{Kind: inventory.KindMoved, To: inventory.Approved, Actor: "operator:mara", Reason: "approve by operator:mara", Evidence: map[string]string{"run": "r1", "image": "debian-12-ai"}},
		{Kind: inventory.KindPower, Actor: "system", Reason: "cycle confirmed", Evidence: map[string]string{"verb": "cycle", "controller": "pdu pdu-a1 outlet 3", "before": "on", "after": "on", "took": "14.2s"}},
		{Kind: inventory.KindMoved, To: inventory.Wiping, Actor: "system", Reason: "agent enrolled, permit issued"},
		{Kind: inventory.KindMoved, To: inventory.Imaging, Actor: "agent", Reason: "1 disk wiped: discard"},
		{Kind: inventory.KindMoved, To: inventory.BurningIn, Actor: "agent", Reason: "started from its own disk"},
		{Kind: inventory.KindMoved, To: inventory.NeedsWork, Actor: "system", Reason: "card 4 fell off the bus after 11 min of load"},
	} {
		e.Node, e.Version, e.At = "rig-02", uint64(i+1), now.Add(-9*time.Hour+time.Duration(i)*40*time.Minute)
		rig.Events = append(rig.Events, e)
	}
	for i, e := range []api.BootEvent{
		{Kind: "dhcp discover", Firmware: "uefi-pxe", Asked: "its UEFI firmware (PXE) looked for a DHCP server", Answer: "offer 10.20.1.2", Why: "snponly.efi by TFTP; kernel: node rig-02 is discovered: inspection"},
		{Kind: "dhcp request", Firmware: "uefi-pxe", Asked: "its UEFI firmware (PXE) asked for an address", Answer: "ack 10.20.1.2", Why: "offered before, snponly.efi by TFTP; kernel: node rig-02 is discovered: inspection"},
		{Kind: "tftp snponly.efi", Asked: "it fetched snponly.efi by TFTP", Answer: "sent", Why: "301568 bytes in 212ms"},
		{Kind: "script", Firmware: "ipxe", Asked: "iPXE asked for its script", Answer: "kernel", Why: "node rig-02 is discovered: inspection"},
		{Kind: "file vmlinuz", Firmware: "ipxe", Asked: "it fetched vmlinuz by HTTP", Answer: "sent", Why: "GET of 8193600 bytes in 91ms"},
		{Kind: "script", Firmware: "ipxe", Asked: "iPXE asked for its script", Answer: "hold", Why: "not decided: the store is away", Times: 14},
	} {
		e.At, e.MAC, e.Network = now.Add(-9*time.Hour+time.Duration(i)*3*time.Second), inventory.MAC{0x70, 0x85, 0xc2, 0x4b, 0x19, 0x3e}, "provisioning"
		e.Times, e.Since = max(e.Times, 1), e.At.Add(-2*time.Minute)
		rig.Boot = append(rig.Boot, e)
	}
	worker := h
	worker.MayRule, worker.User, worker.Role = false, "ana", "technician"
	lab := h
	lab.Site.Lab, lab.Site.Stop = true, true
	lab.Problem = &api.Problem{Detail: "its disk with serial WD-WCC6Y4HT7N2E carries zfs_member: if that may be destroyed, give allow=zfs_member", Next: "smelt node show rig-03"}
	networks, seen := wire()
	rivalled := h
	rivalled.Site.Alarms = []string{"ProxyDHCP server 10.20.9.9 (52:54:00:9a:11:02), seems to be HiveOS on network aisle-3: it tells machines to boot its own files"}
	burning := find(views, "srv-07")
	burning.Locating = &api.Locating{Node: "srv-07", Place: "A1-U14", By: "technician:ana", Until: now.Add(9 * time.Minute), Ways: []api.LocateWay{
		{Way: "light", Look: "the chassis LED of A1-U14 is lit or blinks"}, {Way: "screen", Look: "the screen of A1-U14 says LOCATE and beeps"}, {Way: "disk-light", Error: "the machine works"}}}
	rig.Console = &api.ConsoleState{Is: "open"}
	booting := find(views, "new-001e67a4c0d1")
	booting.Boot = rig.Boot
	return map[string]func(io.Writer) error{
		"floor": func(w io.Writer) error { return p.Floor(w, h, views, "", "") },
		"node": func(w io.Writer) error {
			return p.Node(w, h, rig, &Console{Lines: consoleText, Seq: 7, Shot: true})
		},
		"booting": func(w io.Writer) error { return p.Node(w, h, booting, nil) },
		"burning": func(w io.Writer) error { return p.Node(w, h, burning, nil) },
		"rig":     func(w io.Writer) error { return p.Node(w, lab, find(views, "rig-03"), nil) },
		"queue":   func(w io.Writer) error { return p.Queue(w, h, queue) },
		"tasks":   func(w io.Writer) error { return p.Tasks(w, worker, tasks) },
		"clear":   func(w io.Writer) error { return p.Tasks(w, worker, tasks[2:]) },
		"network": func(w io.Writer) error { return p.Network(w, rivalled, networks, seen, "") },
		"power": func(w io.Writer) error {
			return p.Power(w, h, powerDay(), api.CanGive{Watts: 11800, Steps: make([]inventory.CurtailStep, 14)})
		},
		"dark":    func(w io.Writer) error { return p.Power(w, h, powerNight(), api.CanGive{}) },
		"alarmed": func(w io.Writer) error { return p.Floor(w, rivalled, views, "", "") },
		"login":   func(w io.Writer) error { return p.Login(w, Login{Next: "/"}) },
		"empty": func(w io.Writer) error {
			return p.Floor(w, Head{User: "mara", Role: "operator", Now: now}, nil, "", "")
		},
	}
}

// powerDay is a full hall on a bad afternoon: one circuit is shed, power is given
// back and comes late, a meter lies, and somebody holds the site.
func powerDay() api.PowerView {
	level := func(name, parent, kind string, volts, amps float64, phases int, granted, measured float64, state, why string) api.Level {
		limit := volts * amps * 0.8
		if phases == 3 {
			limit *= 1.7320508
		}
		return api.Level{Circuit: inventory.Circuit{Name: name, Parent: parent, Kind: kind, Volts: volts, Amps: amps, Phases: phases, Derate: 0.8},
			Granted: granted, Measured: measured, Limit: limit, Free: max(0, limit-granted), State: state, Why: why}
	}
	v := api.PowerView{Draw: 71200, Measured: 68400, Levels: []api.Level{
		level("feed-a", "", "feed", 400, 250, 3, 121400, 68400, "ok", ""),
		level("panel-a-east", "feed-a", "panel", 400, 63, 3, 34800, 31100, "full", "34800 of 34918 W are granted on a line"),
		level("pdu-a-east-rack-12-lower", "panel-a-east", "pdu", 230, 32, 1, 5880, 6710, "shedding", "a line carries 6710 of its 7360 W"),
		level("bank-1", "pdu-a-east-rack-12-lower", "bank", 230, 16, 1, 2940, 0, "ok", ""),
		level("panel-a-west", "feed-a", "panel", 400, 63, 3, 21000, 19400, "ok", ""),
	}}
	v.Levels[4].Unknown = 1240
	v.Hold = &inventory.PowerHold{By: "operator:mara", Reason: "people at the busbar of row B", At: now.Add(-12 * time.Minute)}
	v.Curtail = &inventory.Curtailment{By: "schedule:evening", Why: "schedule", Watts: 20000, At: now.Add(-14 * time.Minute), Due: now.Add(-4 * time.Minute),
		Until: now.Add(3 * time.Hour), Base: 81000, Draw: 71200, Seen: now.Add(-9 * time.Second), Late: true}
	for i, m := range []api.MachinePower{
		{Node: "srv-07", Shed: []inventory.Shed{{Do: inventory.ShedPause, By: "budget", At: now.Add(-3 * time.Minute), Why: "pdu-a-east-rack-12-lower carries 6710 of its 7360 W"}}},
		{Node: "rig-02", Shed: []inventory.Shed{{Do: inventory.ShedCap, By: "curtailment", At: now.Add(-14 * time.Minute), Why: "20 kW are given back: schedule"}}},
		{Node: "rig-03", Lie: "it says that it draws 90000 W, more than four times its nameplate of 1800 W"},
		{Node: "rig-04"},
	} {
		m.Circuit, m.On, m.State = "bank-1", "on", inventory.BurningIn
		if i > 0 {
			m.WattsAt = now.Add(-10 * time.Second)
		}
		v.Machines = append(v.Machines, m)
	}
	return v
}

// powerNight is the same hall after its feed was lost.
func powerNight() api.PowerView {
	v := api.PowerView{Draw: 121400, Levels: powerDay().Levels[:2]}
	v.Levels[1].State, v.Levels[1].Why = "held", "after the blackout of 04:12 nothing starts before a person releases it"
	v.Blackout = &inventory.Blackout{At: now.Add(-40 * time.Minute), By: "system", Why: "9 of 10 machines lost power within 12 s", Lost: make([]inventory.NodeID, 1816)}
	return v
}

var consoleText = strings.Split(`-- smelt: connected --
[   11.412207] pcieport 0000:00:1c.3: AER: Multiple Uncorrected (Fatal) error message received from 0000:04:00.0
[   11.412391] nvidia 0000:04:00.0: PCIe Bus Error: severity=Uncorrected (Fatal), type=Transaction Layer
[   11.413018] NVRM: GPU at PCI:0000:04:00: GPU-5c3a0a1e-7f7e-3f3c-9a55-0b8f2a6a6c11
[   11.413020] NVRM: Xid (PCI:0000:04:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.
[   11.413022] NVRM: GPU 0000:04:00.0: GPU has fallen off the bus.
[   12.000000] systemd[1]: Started smelt-agent.service - Smelt agent.

Debian GNU/Linux 12 rig-02 ttyS0

rig-02 login: `, "\n")

// Pages are small, complete, and ask nobody else for anything.
func TestPages(t *testing.T) {
	p, err := New()
	if err != nil {
		t.Fatal(err)
	}
	var shared int
	for _, a := range p.assets {
		shared += len(a.Data)
	}
	for name, draw := range draws(t) {
		var b bytes.Buffer
		if err := draw(&b); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if n := b.Len() + shared; n > 60<<10 {
			t.Errorf("%s has %d bytes with style and script", name, n)
		}
		html := b.String()
		if !strings.HasSuffix(strings.TrimSpace(html), "</html>") {
			t.Errorf("%s is cut off", name)
		}
		for _, bad := range []string{"http://", "https://", "style=", "onclick", "<no value>", "%!"} {
			if strings.Contains(strings.ReplaceAll(html, "http://www.w3.org/2000/svg", ""), bad) {
				t.Errorf("%s holds %q", name, bad)
			}
		}
		for _, form := range regexp.MustCompile(`(?s)<form method="post" action="/(?:nodes|tasks).*?</form>`).FindAllString(html, -1) {
			if !strings.Contains(form, `name="id" value="`) {
				t.Errorf("%s: a form without an id would act twice on a bad network: %.120s", name, form)
			}
		}
	}
}

// What the page of a queue offers is what api.Targets says, and nothing that is
// removable can be chosen.
func TestApprovalNamesDisks(t *testing.T) {
	var b bytes.Buffer
	if err := draws(t)["queue"](&b); err != nil {
		t.Fatal(err)
	}
	html := b.String()
	for _, want := range []string{`name="target" value="WD-WCC6Y4HT7N2E"`, `name="target" value="50026B7782A9F1C3"`, `name="allow" value="zfs_member"`, `pattern="rig-03"`, `name="force" required`, "SIMULATED"} {
		if !strings.Contains(html, want) {
			t.Errorf("the queue lacks %s", want)
		}
	}
	if strings.Contains(html, `value="4C530001230528113475"`) {
		t.Error("a removable disk can be chosen")
	}
}

// A floor of 24,000 nodes is still one small page.
func TestManyNodes(t *testing.T) {
	p, err := New()
	if err != nil {
		t.Fatal(err)
	}
	h, _, _ := hall()
	views := make([]api.NodeView, 24000)
	for i := range views {
		views[i].Node = inventory.Node{ID: inventory.NodeID(fmt.Sprintf("n%05d", i)), State: inventory.InService, Since: now, Spec: inventory.Spec{Position: inventory.Position(fmt.Sprintf("R%d-U%d", i/40, i%40))}}
		views[i].Stuck = i%3 == 0
	}
	var b bytes.Buffer
	start := time.Now()
	if err := p.Floor(&b, h, views, "", ""); err != nil {
		t.Fatal(err)
	}
	t.Logf("24,000 nodes: %d bytes in %v", b.Len(), time.Since(start))
	if b.Len() > 60<<10 {
		t.Errorf("the page has %d bytes", b.Len())
	}
	b.Reset()
	start = time.Now()
	defer func() { t.Logf("finding one of them: %v", time.Since(start)) }()
	if err := p.Floor(&b, h, views, "", "n12345"); err != nil || !strings.Contains(b.String(), "R308-U25") || strings.Contains(b.String(), "n12346") {
		t.Errorf("finding one node: %v", err)
	}
}

func TestNatural(t *testing.T) {
	order := []string{"A1-U2", "A1-U10", "A2-U1", "A10-U1", "A10-U01b"}
	for i := 1; i < len(order); i++ {
		if !natural(order[i-1], order[i]) || natural(order[i], order[i-1]) {
			t.Errorf("%s does not come before %s", order[i-1], order[i])
		}
	}
}

// Every text colour on every ground it is used on has a contrast of 7 to 1
// (WCAG 2.2, 1.4.6), in both themes.
func TestContrast(t *testing.T) {
	css, err := assetFiles.ReadFile("assets/smelt.css")
	if err != nil {
		t.Fatal(err)
	}
	themes := regexp.MustCompile(`:root\{([^}]*)\}`).FindAllStringSubmatch(string(css), -1)
	if len(themes) != 2 {
		t.Fatalf("%d themes", len(themes))
	}
	for i, m := range themes {
		c := map[string]string{}
		for decl := range strings.SplitSeq(m[1], ";") {
			if k, v, ok := strings.Cut(decl, ":"); ok {
				c[strings.TrimPrefix(k, "--")] = v
			}
		}
		for fg, grounds := range map[string][]string{
			"text": {"bg", "panel", "bad-bg", "good-bg", "hold-bg"}, "quiet": {"bg", "panel"}, "bad": {"bg", "panel", "bad-bg"},
			"run": {"bg", "panel"}, "ok": {"bg", "panel"}, "ask": {"bg", "panel"}, "accent": {"panel"}, "on-accent": {"accent"}, "sim": {"sim-bg", "bg", "panel"},
		} {
			for _, bg := range grounds {
				if r := contrast(t, c[fg], c[bg]); r < 7 {
					t.Errorf("theme %d: %s on %s has %.1f", i, fg, bg, r)
				}
			}
		}
	}
}

func contrast(t *testing.T, a, b string) float64 {
	l := func(hex string) float64 {
		hex = strings.TrimPrefix(hex, "#")
		if len(hex) == 3 {
			hex = string([]byte{hex[0], hex[0], hex[1], hex[1], hex[2], hex[2]})
		}
		v, err := strconv.ParseUint(hex, 16, 32)
		if err != nil || len(hex) != 6 {
			t.Fatalf("colour %q", hex)
		}
		lin := func(c uint64) float64 {
			x := float64(c&255) / 255
			if x <= 0.04045 {
				return x / 12.92
			}
			return math.Pow((x+0.055)/1.055, 2.4)
		}
		return 0.2126*lin(v>>16) + 0.7152*lin(v>>8) + 0.0722*lin(v)
	}
	x, y := l(a), l(b)
	return (max(x, y) + 0.05) / (min(x, y) + 0.05)
}

// chromium is the browser's path; without one the test is skipped, or fails
// where nothing may be skipped.
func chromium(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil && os.Getenv("SMELT_TEST_NO_SKIP") == "1" {
		t.Fatal(err)
	}
	if err != nil {
		t.Skip("needs chromium")
	}
	return path
}

// browse runs Chromium on a page of a fresh profile and returns what it prints.
func browse(t *testing.T, path, size, url string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	profile, err := os.MkdirTemp("", "smelt-screen-") // Chromium's children may outlive it a moment: not t.TempDir
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(profile)
	cmd := exec.CommandContext(ctx, path, append([]string{"--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
		"--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
		"--user-data-dir=" + profile, "--window-size=" + size}, append(args, url)...)...)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v", url, err)
	}
	return string(out)
}

// showroom serves the realistic pages; with measure, each carries a script that
// writes what is too small or too wide into its title.
func showroom(t *testing.T, measure bool) *httptest.Server {
	t.Helper()
	p, err := New()
	if err != nil {
		t.Fatal(err)
	}
	pages := draws(t)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := strings.TrimPrefix(r.URL.Path, "/")
		if a, ok := p.Asset(strings.TrimPrefix(name, "assets/")); ok {
			w.Header().Set("Content-Type", a.Type)
			w.Write(a.Data)
			return
		}
		draw := pages[name]
		if draw == nil {
			http.NotFound(w, r)
			return
		}
		var b bytes.Buffer
		if err := draw(&b); err != nil {
			t.Error(err)
		}
		if measure {
			fmt.Fprint(&b, measuring)
		}
		w.Write(b.Bytes())
	}))
	t.Cleanup(srv.Close)
	return srv
}

// A link inside a sentence is exempt (WCAG 2.2, 2.5.8); the input of a label is
// as large as its label.
const measuring = `<script>addEventListener("load", () => {
 const bad = [];
 for (const d of document.querySelectorAll("details")) d.open = true;
 if (document.documentElement.scrollWidth > innerWidth) bad.push("page is " + document.documentElement.scrollWidth + " wide");
 for (const e of document.querySelectorAll("button, select, summary, nav a, .waits a, .stuck a, .cell, label.pick, label.check, input:not([type=hidden]):not([type=radio]):not([type=checkbox])")) {
  const r = e.getBoundingClientRect(), want = e.classList.contains("big") && innerWidth < 640 ? 64 : 48;
  if (r.height < want - .5) bad.push(e.tagName + " " + e.className + " '" + e.textContent.trim().slice(0, 20) + "' " + Math.round(r.height));
 }
 document.title = "measured: " + (bad.join(" | ") || "fine");
})</script>`

// On a phone nothing is wider than the screen, and what a glove must hit is
// 48 pixels high, 64 for the main button.
func TestTargets(t *testing.T) {
	path := chromium(t)
	srv := showroom(t, true)
	for _, name := range []string{"floor", "node", "queue", "tasks", "network", "power", "dark"} {
		dom := browse(t, path, "500,900", srv.URL+"/"+name, "--dump-dom") // headless Chromium is at least 500 wide
		_, title, _ := strings.Cut(dom, "<title>")
		title, _, _ = strings.Cut(title, "</title>")
		if title != "measured: fine" {
			t.Errorf("%s: %s", name, title)
		}
	}
}

// Screens draws every page with Chromium into the folder SMELT_SCREENS, for
// people to look at.
func TestScreens(t *testing.T) {
	path, out := chromium(t), os.Getenv("SMELT_SCREENS")
	names := []string{"floor", "node", "booting", "burning", "rig", "queue", "tasks", "clear", "network", "power", "dark", "alarmed", "login", "empty"}
	if out == "" { // not asked for: see that it can be done
		out, names = t.TempDir(), []string{"tasks"}
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		t.Fatal(err)
	}
	kinds := map[string]string{"phone": "390,1700"}
	if len(names) > 1 {
		kinds["desktop"] = "1280,1500"
	}
	srv := showroom(t, false)
	for _, name := range names {
		for kind, size := range kinds {
			file := filepath.Join(out, name+"-"+kind+".png")
			browse(t, path, size, srv.URL+"/"+name, "--screenshot="+file)
			if fi, err := os.Stat(file); err != nil || fi.Size() < 5000 {
				t.Errorf("%s %s: no picture (%v)", name, kind, err)
			}
		}
	}
}
