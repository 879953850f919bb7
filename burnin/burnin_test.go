package burnin

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"smelt/inventory"
)

// testReport is a passing run of a rig with two GPUs on a real site.
func testReport(profile string) Report {
	h := inventory.Hardware{
		Board:  inventory.Board{Vendor: "ASUSTeK", Product: "B250 MINING EXPERT", Serial: "190653710000123", BIOSVendor: "American Megatrends", BIOSVersion: "1010"},
		CPU:    inventory.CPU{Model: "Intel(R) Celeron(R) G3930", Cores: 2, Threads: 2},
		Memory: inventory.Memory{Total: 8 << 30},
		Disks:  []inventory.Disk{{DiskID: inventory.DiskID{Serial: "S4EWNX0N123456", Size: 250059350016}, Model: "Samsung SSD 860"}},
		GPUs: []inventory.GPU{
			{PCI: inventory.PCI{Address: "0000:01:00.0", Vendor: "10de", Device: "2204", Link: inventory.PCILink{MaxWidth: 16, CurrentWidth: 16}}, Model: "NVIDIA GeForce RTX 3090", UUID: "GPU-7d1f6a0e-9a4e-4d0b-8f4d-0a3f0e4e7a11", VRAM: 24 << 30, Slot: "1"},
			{PCI: inventory.PCI{Address: "0000:02:00.0", Vendor: "10de", Device: "2204", Link: inventory.PCILink{MaxWidth: 16, CurrentWidth: 8}}, Model: "NVIDIA GeForce RTX 3090", UUID: "GPU-0c2a4f11-55aa-43c1-9a77-d07e1f3b9c22", VRAM: 24 << 30, Slot: "2"},
		},
	}
	start := time.Date(2026, 3, 4, 9, 0, 0, 0, time.UTC)
	r := Report{
		ID: "bi-20260304-090000-rig-007", Node: "rig-007", Position: "A3-S2", Profile: Profiles()[profile],
		Hardware: h, HWDigest: h.Digest(), Image: strings.Repeat("ab12", 16), Kernel: "6.1.0-28-amd64", Driver: "550.163.01", Agent: "0.1.0",
		Started: start, Finished: start.Add(28 * time.Second),
	}
	for _, s := range r.Profile.Checks {
		res := Result{ID: s.ID, Status: Pass, Reason: "within limits", Work: 12.5, WorkUnit: "GB", Started: start, Took: 3 * time.Second}
		if strings.HasPrefix(s.ID, "gpu-") {
			for _, g := range h.GPUs {
				item := "GPU " + g.Address
				switch s.ID {
				case GPUPresence:
					res.Findings = append(res.Findings, Finding{Item: item, Where: g.Slot, Name: "present", Value: 1, Limit: "= 1", Status: Pass})
				case GPUVRAM:
					res.Findings = append(res.Findings, Finding{Item: item, Where: g.Slot, Name: "memory errors", Value: 0, Limit: "= 0", Status: Pass})
				case GPUCompute:
					res.Findings = append(res.Findings,
						Finding{Item: item, Where: g.Slot, Name: "wrong blocks", Value: 0, Limit: "= 0", Status: Pass},
						Finding{Item: item, Where: g.Slot, Name: "temperature", Value: 71, Unit: "C", Limit: "<= 83", Status: Pass})
				}
			}
		} else {
			res.Findings = []Finding{{Item: s.ID, Name: "errors", Value: 0, Limit: "= 0", Status: Pass}}
		}
		r.Results = append(r.Results, res)
	}
	for i, g := range h.GPUs {
		temp := Series{Name: "GPU " + g.Address + " temperature", Unit: "C", Check: GPUCompute}
		power := Series{Name: "GPU " + g.Address + " power", Unit: "W", Check: GPUCompute}
		for n := range 60 {
			at := float64(n) / 2
			temp.T, temp.V = append(temp.T, at), append(temp.V, 71-35*math.Exp(-at/(6+float64(i))))
			power.T, power.V = append(power.T, at), append(power.V, 340+8*math.Sin(at*2))
		}
		r.Series = append(r.Series, temp, power)
	}
	return r
}

func (r *Report) set(id string, change func(*Result)) {
	for i := range r.Results {
		if r.Results[i].ID == id {
			change(&r.Results[i])
		}
	}
}

func (r *Report) drop(id string) {
	r.Results = slices.DeleteFunc(r.Results, func(res Result) bool { return res.ID == id })
}

func TestJudge(t *testing.T) {
	lost := func(r *Report) {
		r.set(GPUCompute, func(res *Result) {
			res.Status, res.Reason = Fail, "GPU 0000:02:00.0 was lost"
			res.Findings = append(res.Findings, Finding{Item: "GPU 0000:02:00.0", Name: "on the bus", Value: 0, Limit: "= 1", Status: Fail, Cause: CauseGPULost})
		})
	}
	tests := []struct {
		name    string
		change  func(*Report)
		want    Answer
		reason  string // part of some reason
		repairs []string
	}{
		{"all pass", func(*Report) {}, PASS, "10 checks passed", nil},
		{"required check missing", func(r *Report) { r.drop(Disk) }, INCONCLUSIVE, "disk did not run", nil},
		{"required check skipped", func(r *Report) {
			r.set(Disk, func(res *Result) { res.Status, res.Reason, res.Findings = Skip, "no disk", nil })
		}, INCONCLUSIVE, "disk was skipped, and it is required: no disk", nil},
		{"required check errored", func(r *Report) {
			r.set(Network, func(res *Result) { res.Status, res.Reason, res.Findings = Error, "no route", nil })
		}, INCONCLUSIVE, "network could not run, and it is required: no route", nil},
		{"status forgotten", func(r *Report) { r.set(CPU, func(res *Result) { res.Status = 0 }) }, INCONCLUSIVE, "no status", nil},
		{"no results", func(r *Report) { r.Results = nil }, INCONCLUSIVE, "gpu-vram did not run", nil},
		{"lost card", lost, REPAIR, "was lost", []string{"Reseat GPU RTX 3090 in slot 2: it fell off the bus under load"}},
		{"lost card fails two checks, one repair", func(r *Report) {
			lost(r)
			r.set(GPUVRAM, func(res *Result) {
				res.Status = Fail
				res.Findings[1] = Finding{Item: "GPU 0000:02:00.0", Name: "on the bus", Value: 0, Limit: "= 1", Status: Fail, Cause: CauseGPULost}
			})
		}, REPAIR, "gpu-vram failed", []string{"Reseat GPU RTX 3090 in slot 2: it fell off the bus under load"}},
		{"failure beats missing", func(r *Report) { lost(r); r.drop(Disk) }, REPAIR, "disk did not run", []string{"Reseat GPU RTX 3090 in slot 2: it fell off the bus under load"}},
		{"fail without findings", func(r *Report) {
			r.set(Memory, func(res *Result) { res.Status, res.Reason, res.Findings = Fail, "3 words differ", nil })
		}, REPAIR, "memory failed: 3 words differ", []string{"Check memory modules: 3 words differ"}},
		{"bad VRAM", func(r *Report) {
			r.set(GPUVRAM, func(res *Result) {
				res.Status, res.Findings[0].Status, res.Findings[0].Value, res.Findings[0].Cause = Fail, Fail, 3, CauseVRAM
			})
		}, REPAIR, "memory errors 3", []string{"Replace GPU RTX 3090 in slot 1: its memory returned wrong data (memory errors 3, limit = 0)"}},
		{"fix of the check wins", func(r *Report) {
			r.set(PCIe, func(res *Result) {
				res.Status = Fail
				res.Findings = []Finding{{Item: "GPU 0000:02:00.0", Name: "link width", Value: 1, Limit: ">= 8", Status: Fail, Cause: CauseLinkWidth, Fix: "reseat it: card and slot can do x16"}}
			})
		}, REPAIR, "link width 1", []string{"Reseat GPU RTX 3090 in slot 2: its link is too narrow (link width 1, limit >= 8); reseat it: card and slot can do x16"}},
		{"pass with a failing finding", func(r *Report) { r.set(Disk, func(res *Result) { res.Findings[0].Status = Fail }) }, REPAIR, "disk failed", []string{"Check disk: disk errors 0, limit = 0"}},
		{"pass that contradicts its limit", func(r *Report) { r.set(GPUCompute, func(res *Result) { res.Findings[1].Value = 90 }) }, REPAIR, "which it calls a pass", []string{"Check GPU RTX 3090 in slot 1: GPU 0000:01:00.0 temperature 90 C, limit <= 83"}},
		{"error with a failing finding", func(r *Report) {
			r.set(Disk, func(res *Result) {
				res.Status, res.Reason = Error, "ran out of time"
				res.Findings = []Finding{{Item: "disk S/N X", Name: "read errors", Value: 2, Limit: "= 0", Status: Fail, Cause: CauseDisk}}
			})
		}, REPAIR, "disk failed", []string{"Replace disk S/N X: it returned wrong data or errors (read errors 2, limit = 0)"}},
		{"skip with a failing finding", func(r *Report) {
			r.set(Disk, func(res *Result) { res.Status, res.Findings[0].Status = Skip, Fail })
		}, REPAIR, "disk failed", []string{"Check disk: disk errors 0, limit = 0"}},
		{"zero work", func(r *Report) { r.set(GPUCompute, func(res *Result) { res.Work = 0 }) }, REPAIR, "did no work", []string{"Check GPUs: within limits; it did no work"}},
		{"NaN work", func(r *Report) { r.set(CPU, func(res *Result) { res.Work = math.NaN() }) }, REPAIR, "NaN", []string{"Check processor: within limits; the work it did is NaN"}},
		{"infinite finding", func(r *Report) {
			r.set(CPU, func(res *Result) { res.Findings[0].Value = math.Inf(1); res.Findings[0].Limit = "" })
		}, REPAIR, "+Inf", []string{"Check cpu: cpu errors +Inf"}},
		{"NaN sample", func(r *Report) { r.Series[0].V[5] = math.NaN() }, REPAIR, "temperature read NaN", []string{"Check GPUs: within limits; GPU 0000:01:00.0 temperature read NaN"}},
		{"finding not measured", func(r *Report) { r.set(CPU, func(res *Result) { res.Findings[0].Status = 0 }) }, INCONCLUSIVE, "could not be measured", nil},
		{"everything skipped inside a pass", func(r *Report) { r.set(CPU, func(res *Result) { res.Findings[0].Status = Skip }) }, INCONCLUSIVE, "everything in it was skipped", nil},
		{"past its deadline", func(r *Report) { r.set(CPU, func(res *Result) { res.Took = 2 * time.Hour }) }, INCONCLUSIVE, "deadline", nil},
		{"twice", func(r *Report) { r.Results = append(r.Results, r.Results[0]) }, INCONCLUSIVE, "system has 2 results", nil},
		{"twice, one failed", func(r *Report) {
			r.Results = append(r.Results, Result{ID: CPU, Status: Fail, Reason: "wrong sums"})
		}, REPAIR, "cpu failed: wrong sums", []string{"Check processor: wrong sums"}},
		{"unknown check", func(r *Report) {
			r.Results = append(r.Results, Result{ID: "gpu-magic", Status: Pass, Work: 1})
		}, INCONCLUSIVE, `"gpu-magic"`, nil},
		{"profile with unknown check", func(r *Report) {
			r.Profile.Checks = append(slices.Clone(r.Profile.Checks), Spec{ID: "gpu-magic", Deadline: time.Second})
		}, INCONCLUSIVE, "does not exist", nil},
		{"profile that requires nothing", func(r *Report) { r.Profile.Checks, r.Results = nil, nil }, INCONCLUSIVE, "requires no check", nil},
		{"other hardware", func(r *Report) { r.Hardware.GPUs[0].UUID = "GPU-other" }, INCONCLUSIVE, "other hardware", nil},
		{"no image", func(r *Report) { r.Image = "" }, INCONCLUSIVE, "image", nil},
		{"no node", func(r *Report) { r.Node = "" }, INCONCLUSIVE, "node", nil},
		{"simulated on a real site", func(r *Report) { r.set(GPUVRAM, func(res *Result) { res.Simulated = true }) }, INCONCLUSIVE, "gpu-vram was simulated", nil},
		{"simulated failure on a real site", func(r *Report) {
			lost(r)
			r.set(GPUCompute, func(res *Result) { res.Simulated = true })
		}, INCONCLUSIVE, "gpu-compute was simulated", nil},
		{"simulated hardware on a real site", func(r *Report) { r.Hardware.GPUs[0].Simulated = true }, INCONCLUSIVE, "GPU 0000:01:00.0 is simulated", nil},
		{"simulated in a lab", func(r *Report) { r.Lab = true; r.set(GPUVRAM, func(res *Result) { res.Simulated = true }) }, PASS, "simulated parts", nil},
		{"simulated failure in a lab", func(r *Report) {
			lost(r)
			r.Lab = true
			r.set(GPUCompute, func(res *Result) { res.Simulated = true })
		}, REPAIR, "lost", []string{"Reseat GPU RTX 3090 in slot 2: it fell off the bus under load (simulated)"}},
		{"hot", func(r *Report) {
			r.set(GPUCompute, func(res *Result) {
				res.Status = Fail
				res.Findings[3] = Finding{Item: "GPU 0000:02:00.0", Name: "temperature", Value: 96.5, Unit: "C", Limit: "<= 83", Status: Fail, Cause: CauseHot}
			})
		}, REPAIR, "96.5", []string{"Check fans and heat sink of GPU RTX 3090 in slot 2: it gets too hot (temperature 96.5 C, limit <= 83)"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := testReport("standard")
			tt.change(&r)
			v := Judge(r)
			if v.Answer != tt.want {
				t.Errorf("answer %s, want %s; reasons %q", v.Answer, tt.want, v.Reasons)
			}
			if !slices.ContainsFunc(v.Reasons, func(s string) bool { return strings.Contains(s, tt.reason) }) {
				t.Errorf("no reason says %q: %q", tt.reason, v.Reasons)
			}
			var got []string
			for _, rep := range v.Repairs {
				got = append(got, rep.String())
			}
			if !slices.Equal(got, tt.repairs) {
				t.Errorf("repairs\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(tt.repairs, "\n"))
			}
		})
	}
}

func TestJudgeOptional(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Report)
		want   Answer
	}{
		{"missing", func(r *Report) { r.drop(Thermal) }, PASS},
		{"skipped", func(r *Report) { r.set(Thermal, func(res *Result) { res.Status = Skip }) }, PASS},
		{"error", func(r *Report) { r.set(Thermal, func(res *Result) { res.Status = Error }) }, PASS},
		{"fail", func(r *Report) { r.set(Thermal, func(res *Result) { res.Status = Fail }) }, REPAIR},
	} {
		r := testReport("lab") // thermal is not required there
		tt.change(&r)
		if v := Judge(r); v.Answer != tt.want {
			t.Errorf("%s: %s, want %s: %q", tt.name, v.Answer, tt.want, v.Reasons)
		}
	}
}

func TestJudgeIgnoresStoredVerdict(t *testing.T) {
	r := testReport("quick")
	r.drop(CPU)
	r.Verdict = Verdict{Answer: PASS}
	if v := Judge(r); v.Answer != INCONCLUSIVE {
		t.Errorf("answer %s", v.Answer)
	}
}

func genFinding(t *rapid.T) Finding {
	return Finding{
		Item:   rapid.SampledFrom([]string{"GPU 0000:01:00.0", "GPU 0000:02:00.0", "disk", ""}).Draw(t, "item"),
		Name:   "n",
		Value:  rapid.SampledFrom([]float64{0, 1, -1, 7, math.NaN(), math.Inf(1), math.Inf(-1)}).Draw(t, "value"),
		Limit:  rapid.SampledFrom([]string{"", "= 0", ">= 1", "< 5", "<= 2 C", "some"}).Draw(t, "limit"),
		Status: Status(rapid.IntRange(0, 5).Draw(t, "fstatus")),
		Cause:  rapid.SampledFrom([]string{"", CauseGPULost, CauseVRAM, "strange"}).Draw(t, "cause"),
		Fix:    rapid.SampledFrom([]string{"", "reseat it", "Replace", "pray"}).Draw(t, "fix"),
	}
}

func genResult(t *rapid.T) Result {
	ids := []string{CPU, Memory, Disk, Network, PCIe, Thermal, GPUPresence, GPUVRAM, GPUCompute, "gpu-magic", ""}
	return Result{
		ID:        rapid.SampledFrom(ids).Draw(t, "id"),
		Status:    Status(rapid.SampledFrom([]int{0, 1, 1, 1, 1, 2, 3, 4, 9}).Draw(t, "status")),
		Reason:    "r",
		Findings:  rapid.SliceOfN(rapid.Custom(genFinding), 0, 3).Draw(t, "findings"),
		Work:      rapid.SampledFrom([]float64{1, 1, 1, 0, -1, math.NaN(), math.Inf(1)}).Draw(t, "work"),
		Took:      rapid.SampledFrom([]time.Duration{0, time.Second, 100 * time.Hour}).Draw(t, "took"),
		Simulated: rapid.IntRange(0, 5).Draw(t, "sim") == 0,
	}
}

// realPass is the property's own, naive word for "really passed".
func realPass(r Report, res Result, s Spec) bool {
	if res.Status != Pass || !(res.Work > 0) || math.IsInf(res.Work, 0) || res.Took > s.Deadline || res.Simulated && !r.Lab {
		return false
	}
	measured := len(res.Findings) == 0
	for _, f := range res.Findings {
		switch f.Status {
		case Pass:
			measured = true
			if math.IsNaN(f.Value) || math.IsInf(f.Value, 0) ||
				f.Limit == "= 0" && f.Value != 0 || f.Limit == ">= 1" && f.Value < 1 || f.Limit == "< 5" && f.Value >= 5 {
				return false
			}
		case Skip:
		default:
			return false
		}
	}
	return measured
}

func TestJudgeNeverPassesUnproven(t *testing.T) {
	passes := 0
	rapid.Check(t, func(t *rapid.T) {
		r := testReport(rapid.SampledFrom([]string{"lab", "quick", "standard", "host"}).Draw(t, "profile"))
		r.Lab = rapid.Bool().Draw(t, "lab")
		for range rapid.IntRange(0, 3).Draw(t, "changes") {
			i := rapid.IntRange(0, max(0, len(r.Results)-1)).Draw(t, "at")
			switch rapid.IntRange(0, 2).Draw(t, "how") {
			case 0:
				r.Results = append(r.Results, genResult(t))
			case 1:
				if len(r.Results) > 0 {
					id := r.Results[i].ID
					r.Results[i] = genResult(t)
					r.Results[i].ID = id
				}
			case 2:
				if len(r.Results) > 0 {
					r.Results = slices.Delete(r.Results, i, i+1)
				}
			}
		}
		v := Judge(r)
		if v.Answer != PASS && v.Answer != REPAIR && v.Answer != INCONCLUSIVE {
			t.Fatalf("answer %q", v.Answer)
		}
		if len(v.Reasons) == 0 {
			t.Fatal("no reason")
		}
		if (v.Answer == REPAIR) != (len(v.Repairs) > 0) {
			t.Fatalf("%s with repairs %v", v.Answer, v.Repairs)
		}
		if v.Answer == PASS {
			passes++
			for _, s := range r.Profile.Checks {
				n := 0
				for _, res := range r.Results {
					if res.ID == s.ID {
						n++
						if s.Required && !realPass(r, res, s) {
							t.Fatalf("PASS although required %s is %+v", s.ID, res)
						}
					}
				}
				if s.Required && n != 1 {
					t.Fatalf("PASS although %s has %d results", s.ID, n)
				}
			}
		}
		// A failure more never improves the verdict, and always asks for a repair.
		bad := genResult(t)
		bad.Status, bad.Simulated = Fail, false
		for _, g := range r.Hardware.GPUs {
			if g.Simulated {
				t.Fatal("test report has simulated hardware")
			}
		}
		worse := r
		worse.Results = slices.Insert(slices.Clone(r.Results), rapid.IntRange(0, len(r.Results)).Draw(t, "where"), bad)
		if w := Judge(worse); w.Answer != REPAIR {
			t.Fatalf("%s with a failure more is %s", v.Answer, w.Answer)
		}
		// Nothing of what is judged is changed, and the same report judges the same.
		if again := Judge(r); fmt.Sprint(again) != fmt.Sprint(v) {
			t.Fatalf("judged twice: %v, %v", v, again)
		}
	})
	if passes == 0 {
		t.Error("no random report passed: the property was not tried")
	}
}

func TestProfiles(t *testing.T) {
	ps := Profiles()
	for name, p := range ps {
		if p.Name != name {
			t.Errorf("profile %q is called %q", name, p.Name)
		}
		if err := p.Validate(); err != nil {
			t.Error(err)
		}
		var total time.Duration
		for _, s := range p.Checks {
			total += s.Duration
		}
		if total >= p.Limit {
			t.Errorf("%s: checks take %s of %s", name, total, p.Limit)
		}
		if name == "lab" && total >= 30*time.Second {
			t.Errorf("lab takes %s", total)
		}
	}
	// A caller that changes what it got must not change the next caller's.
	ps["lab"].Checks[0].Required = false
	if !Profiles()["lab"].Checks[0].Required {
		t.Error("Profiles hands out shared state")
	}
	for _, id := range []string{System, CPU, Memory, Disk, Network, PCIe, Thermal, GPUPresence, GPUVRAM, GPUCompute} {
		if !slices.ContainsFunc(ps["standard"].Checks, func(s Spec) bool { return s.ID == id && s.Required }) {
			t.Errorf("standard does not require %s", id)
		}
	}
}
