package imagetest

import (
	"bytes"
	"encoding/xml"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"smelt/burnin"
	"smelt/internal/api"
	"smelt/inventory"
)

func TestConsoleLines(t *testing.T) {
	for raw, want := range map[string]string{
		"plain\r\nlines\r\n":                      "plain|lines|",
		"\x1b[2J\x1b[01;01HUEFI Shell v2.2\r\n":   "UEFI Shell v2.2|",
		"[\x1b[0;1;31mFAILED\x1b[0m] Failed.\r\n": "[FAILED] Failed.|",
		"\x1b]0;title\x07text":                    "text",
		"10%\r50%\r100%\n":                        "100%|",
		"bell\x07 and \xff":                       "bell? and",
		"\x1b":                                    "",
	} {
		if got := strings.Join(consoleLines(raw), "|"); got != want {
			t.Errorf("%q: %q, want %q", raw, got, want)
		}
	}
}

func FuzzConsole(f *testing.F) {
	f.Add("[\x1b[0;1;31mFAILED\x1b[0m] Failed to start x.service\r\n")
	f.Add("\x1b[2J\x1b[01;01HBdsDxe: failed to load Boot0001\r\n\r\rx")
	f.Add("[    1.2] Kernel panic - not syncing: VFS\x00\x9b31m\x1b]0;a")
	f.Fuzz(func(t *testing.T, raw string) {
		lines := consoleLines(raw)
		if want := strings.Count(raw, "\n"); len(lines) > want+1 {
			t.Fatalf("%d lines of %d", len(lines), want)
		}
		at, _, ok := blame(lines)
		if ok && (at < 0 || at >= len(lines)) {
			t.Fatalf("blames line %d of %d", at, len(lines))
		}
		out := excerpt("/x/console.log", lines, 0)
		if len(out) == 0 {
			t.Fatal("an excerpt that says nothing")
		}
		marked := 0
		for _, l := range out {
			if strings.HasPrefix(l, "> ") {
				marked++
			}
			for _, r := range l {
				if r < ' ' && r != '\t' || r >= 0x7f && r < 0xa0 {
					t.Fatalf("%q would move a cursor", l)
				}
			}
			if !utf8.ValidString(l) {
				t.Fatalf("%q", l)
			}
		}
		if ok && lines[at] != "" && marked != 1 {
			t.Fatalf("%d lines are marked", marked)
		}
		// The same text as a case of a JUnit file.
		r := Report{Image: raw, Cases: []Case{{Suite: raw, Name: raw, Status: Fail, Why: raw, Log: out}, {Suite: "s", Name: "n", Status: Skip, Why: raw}}}
		var b bytes.Buffer
		if err := r.WriteJUnit(&b); err != nil {
			t.Fatal(err)
		}
		if err := xml.Unmarshal(b.Bytes(), &junitSuites{}); err != nil {
			t.Fatalf("%v:\n%s", err, b.String())
		}
	})
}

// The sure kinds win over what comes of them, whatever the order.
func TestBlame(t *testing.T) {
	for _, tt := range []struct {
		name, console, want string
		fatal               bool
	}{
		{"panic", "[FAILED] Failed to start x.\n[ 3.1] Kernel panic - not syncing: VFS: Unable to mount root fs\n[ 3.2] ---[ end", "Unable to mount root", true},
		{"no root", "Begin: Running /scripts/local-block\nGave up waiting for root file system device.  Common problems:\n - Boot args\nALERT!  UUID=1 does not exist.  Dropping to a shell!\n(initramfs) ", "Gave up waiting for root", true},
		{"emergency", "[DEPEND] Dependency failed for local-fs.target\nYou are in emergency mode. After logging in", "You are in emergency mode", true},
		{"locked emergency", "Cannot open access to console, the root account is locked.", "root account is locked", true},
		{"grub", "error: file `/boot/vmlinuz' not found.\ngrub rescue> ", "error: file", true},
		{"unit", "Loading Linux 6.1.0-56-amd64 ...\n[FAILED] Failed to start broken.service - Broken.\nSee 'systemctl status broken.service' for details.", "[FAILED] Failed to start broken", false},
		{"nothing", "Booting from Hard Disk...\nBoot failed: not a bootable disk\n\nNo bootable device.", "Boot failed: not a bootable disk", false},
		{"clean", "Loading Linux 6.1.0-56-amd64 ...\nLoading initial ramdisk ...", "", false},
	} {
		lines := consoleLines(tt.console)
		at, fatal, ok := blame(lines)
		if ok != (tt.want != "") || ok && (!strings.Contains(lines[at], tt.want) || fatal != tt.fatal) {
			t.Errorf("%s: line %d of %q, fatal %v, found %v", tt.name, at, lines, fatal, ok)
		}
		out := strings.Join(excerpt("/logs/bios.serial.log", lines, 100), "\n")
		if tt.want != "" && !strings.Contains(out, "> bios.serial.log:"+strconv.Itoa(100+at+1)+": "+lines[at]) {
			t.Errorf("%s: the excerpt does not mark the line:\n%s", tt.name, out)
		}
	}
}

// machine is one that came as far as a state, with a console and a server's log.
func machine(t *testing.T, states []inventory.State, system *burnin.Result, console string) seen {
	t.Helper()
	dir := t.TempDir()
	s := seen{suite: BIOS, console: filepath.Join(dir, "bios.serial.log"), server: filepath.Join(dir, "serve.log"), mark: -1}
	at := time.Date(2026, 3, 4, 9, 0, 0, 0, time.UTC)
	s.view = api.NodeView{Node: inventory.Node{ID: BIOS}}
	for _, st := range states {
		at = at.Add(20 * time.Second)
		s.view.Events = append(s.view.Events, inventory.Event{Kind: inventory.KindMoved, To: st, At: at})
		s.view.Node.State = st
	}
	if system != nil {
		s.report = &burnin.Report{Results: []burnin.Result{*system}}
	}
	before := "iPXE of the RAM system\n[FAILED] this was before\n"
	s.mark = int64(len(before))
	for file, text := range map[string]string{s.console: before + console, s.server: "level=WARN msg=order node=bios err=x\nlevel=WARN node=uefi err=y\n"} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// found is what the check of the installed system reports; change spoils it.
func found(change func(*burnin.Result)) *burnin.Result {
	pass := func(item, name string, v float64, limit, unit string) burnin.Finding {
		return burnin.Finding{Item: item, Name: name, Value: v, Limit: limit, Unit: unit, Status: burnin.Pass}
	}
	r := &burnin.Result{ID: burnin.System, Status: burnin.Pass, Reason: "running after 28.4s", Work: 100, Findings: []burnin.Finding{
		pass("system", "time from the kernel's start until every unit was started", 28.4, "<= 900", " s"),
		pass("system", "failed units", 0, "<= 0", ""),
		pass("kernel 6.1.0-56-amd64", "is the one of its image", 1, "= 1", ""),
		pass("root file system", "mounts that cannot be written", 0, "<= 0", ""),
		pass("nvidia module", "fits the kernel; there is no card for it", 1, "= 1", ""),
	}}
	if change != nil {
		change(r)
	}
	return r
}

func TestCases(t *testing.T) {
	path := []inventory.State{inventory.Wiping, inventory.Imaging, inventory.Starting, inventory.BurningIn, inventory.Joining, inventory.InService}
	broken := append(slices.Clone(path[:4]), inventory.NeedsWork)
	fail := func(i int, log string) func(*burnin.Result) {
		return func(r *burnin.Result) {
			r.Status, r.Findings[i].Status = burnin.Fail, burnin.Fail
			r.Log = append(r.Log, log)
		}
	}
	for _, tt := range []struct {
		name   string
		states []inventory.State
		result *burnin.Result
		driver bool
		ready  time.Duration
		fails  []string // cases that fail
		errs   int      // cases that could not be tried
		said   string
	}{
		{"all good", path, found(nil), true, 0, nil, 0, ""},
		{"no driver", path, found(func(r *burnin.Result) { r.Findings = r.Findings[:4] }), false, 0, nil, 0, ""},
		{"driver promised, not looked at", path, found(func(r *burnin.Result) { r.Findings = r.Findings[:4] }), true, 0, nil, 1, ""},
		{"never installed", append(slices.Clone(path[:2]), inventory.NeedsWork), nil, false, 0, []string{"install"}, 5, "bios err=x"},
		{"never reported", path[:3], nil, false, 0, []string{"boot from disk"}, 4, "> bios.serial.log:4: [FAILED] Failed to start x"},
		{"too slow", path, found(nil), true, 10 * time.Second, []string{"boot from disk"}, 0, "at most 10s are allowed"},
		{"failed unit", broken, found(fail(1, "x.service: cannot open /etc/x")), true, 0, []string{"units", "in service"}, 0, "> x.service: cannot open /etc/x"},
		{"another kernel", broken, found(fail(2, "")), true, 0, []string{"kernel", "in service"}, 0, ""},
		{"module of another kernel", broken, found(fail(4, "modprobe nvidia: Exec format error")), true, 0, []string{"driver", "in service"}, 0, "Exec format error"},
		{"something else failed", broken, found(func(r *burnin.Result) {
			r.Findings = append(r.Findings, burnin.Finding{Item: "clock", Name: "is wrong", Status: burnin.Fail})
		}), true, 0, []string{"in service"}, 0, "clock is wrong"},
		{"no report", broken, nil, true, 0, nil, 5, "not looked at"},
		{"report without the check", broken, &burnin.Result{ID: burnin.CPU, Status: burnin.Pass}, true, 0, nil, 5, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := machine(t, tt.states, tt.result, "Loading Linux\n[\x1b[0;1;31mFAILED\x1b[0m] Failed to start x\n")
			if tt.name == "no report" && s.report != nil {
				t.Fatal("there is one")
			}
			r := Report{Cases: s.cases(tt.driver, tt.ready)}
			var fails []string
			all := ""
			for _, c := range r.Cases {
				if c.Status == Fail {
					fails = append(fails, c.Name)
				}
				if c.Why == "" {
					t.Errorf("%s says nothing", c.Name)
				}
				all += c.Why + "\n" + strings.Join(c.Log, "\n") + "\n"
			}
			if !slices.Equal(fails, tt.fails) || r.Count(Error) != tt.errs || !strings.Contains(all, tt.said) {
				t.Errorf("failed %q, %d not tried, want %q and %d, and %q in\n%s", fails, r.Count(Error), tt.fails, tt.errs, tt.said, all)
			}
			if r.OK() != (len(tt.fails)+tt.errs == 0) {
				t.Errorf("OK is %v", r.OK())
			}
			if strings.Contains(all, "this was before") && tt.states[len(tt.states)-1] != inventory.InService && len(tt.states) > 3 {
				t.Error("what the RAM system wrote is blamed on the installed one")
			}
		})
	}
	if (Report{}).OK() || (Report{Cases: []Case{{Status: Skip}}}).OK() {
		t.Error("nothing was tried, and that is fine")
	}
}

func TestRefused(t *testing.T) {
	refusal := []inventory.State{inventory.Wiping, inventory.Imaging, inventory.NeedsWork}
	for _, tt := range []struct {
		name    string
		states  []inventory.State
		failure *inventory.Failure
		want    Status
	}{
		{"refused", refusal, &inventory.Failure{Step: inventory.Imaging, Cause: "verify", Detail: "chunk 71"}, Pass},
		{"failed for another reason", refusal, &inventory.Failure{Step: inventory.Imaging, Cause: "network"}, Error},
		{"refused too early", []inventory.State{inventory.NeedsWork}, &inventory.Failure{Step: inventory.Wiping, Cause: "verify"}, Error},
		{"installed", []inventory.State{inventory.Wiping, inventory.Imaging, inventory.Starting, inventory.NeedsWork}, &inventory.Failure{Step: inventory.Starting, Cause: "verify"}, Fail},
	} {
		s := machine(t, tt.states, nil, "")
		s.view.Node.Failure = tt.failure
		if c := s.refused(); c.Status != tt.want || c.Why == "" {
			t.Errorf("%s: %s (%s), want %s", tt.name, c.Status, c.Why, tt.want)
		}
	}
}

func TestJUnit(t *testing.T) {
	r := Report{Image: "ai-node", Started: time.Date(2026, 3, 4, 9, 0, 0, 0, time.UTC), Took: 90 * time.Second, Cases: []Case{
		{Suite: "bios", Name: "boot from disk", Status: Pass, Why: "it did", Took: 28 * time.Second},
		{Suite: "bios", Name: "units", Status: Fail, Why: `unit "x" failed & <stayed>`, Log: []string{"> x: \x1b[31mno\x00"}},
		{Suite: "bios", Name: "driver", Status: Skip, Why: "the image has no driver"},
		{Suite: "uefi", Name: "install", Status: Error, Why: "not tried"},
	}}
	var b bytes.Buffer
	if err := r.WriteJUnit(&b); err != nil {
		t.Fatal(err)
	}
	var got junitSuites
	if err := xml.Unmarshal(b.Bytes(), &got); err != nil {
		t.Fatalf("%v\n%s", err, b.String())
	}
	if got.Tests != 4 || got.Failures != 1 || got.Errors != 1 || got.Skipped != 1 || len(got.Suites) != 2 || got.Time != "90.000" {
		t.Errorf("%+v", got)
	}
	bios := got.Suites[0]
	if bios.Tests != 3 || bios.Failures != 1 || bios.Errors != 0 || bios.Time != "28.000" || bios.Cases[0].Failure != nil || bios.Cases[0].Class != "image.ai-node.bios" {
		t.Errorf("%+v", bios)
	}
	if f := bios.Cases[1].Failure; f == nil || f.Message != `unit "x" failed & <stayed>` || !strings.Contains(f.Text, "> x: ?[31mno?") {
		t.Errorf("%+v", f)
	}
	if bios.Cases[2].Skipped == nil || got.Suites[1].Cases[0].Error == nil {
		t.Errorf("%+v", got)
	}
}
