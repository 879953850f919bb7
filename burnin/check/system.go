package check

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"smelt/burnin"
)

// System looks at the installed system itself: whether it came up whole. It
// waits until systemd has started everything, and then wants no failed unit,
// the kernel of the image, a root file system that can be written and has met
// no errors, and, for an image with an NVIDIA driver, the module of that
// version in this very kernel.
//
// A module that answers ENODEV was taken by the kernel and found no card it can
// drive: on a machine without one that is a pass, so that a machine without any
// GPU can prove an image. "Invalid module format" and "Unknown symbol" never are.
//
// Limits: maxStartSeconds, the longest from the kernel's start to the last unit
// (default 300).
type System struct {
	Root string // folder that /proc and /sys are read below; "" is the machine
}

// ID implements burnin.Check.
func (System) ID() string { return burnin.System }

// nvidia is the PCI vendor (PCI ID repository).
const nvidia = "10de"

// needsCard are units that serve the cards and fail where there is none.
var needsCard = []string{"nvidia-persistenced.service", "nvidia-powerd.service", "nvidia-fabricmanager.service", "nvidia-cdi-refresh.service"}

// Run implements burnin.Check.
func (c System) Run(ctx context.Context, spec burnin.Spec, s burnin.Subject, rec burnin.Recorder) burnin.Result {
	r := begin(c.ID())
	r.WorkUnit = "units"
	want := burnin.Installed{}
	if s.Installed != nil {
		want = *s.Installed
	}

	state, err := c.started(ctx, rec)
	if err != nil {
		// What hangs is what people need to know, so it is said even though
		// the time is over.
		said, _ := tool(context.WithoutCancel(ctx), "systemctl", "list-jobs", "--no-legend", "--no-pager")
		r.Log = lines(said, 20)
		return errored(r, "the system is still %q: %v", state, err)
	}
	took, err := c.took(ctx)
	if err != nil {
		return errored(r, "how long the start took: %v", err)
	}
	r.Findings = append(r.Findings, atMost(burnin.Finding{
		Item: "system", Name: "time from the kernel's start until every unit was started", Value: took.Seconds(), Unit: " s", Cause: burnin.CauseSystem,
	}, limit(spec, "maxStartSeconds", 300)))

	rec.Progress(0.5, "looking at its units")
	if err := c.units(ctx, &r, s, want); err != nil {
		return errored(r, "the state of its units: %v", err)
	}
	if err := c.kernel(&r, want); err != nil {
		return errored(r, "its kernel: %v", err)
	}
	if err := c.root(&r); err != nil {
		return errored(r, "its root file system: %v", err)
	}
	if want.Driver != "" {
		rec.Progress(0.8, "loading the driver's module")
		c.driver(ctx, &r, s, want.Driver)
	}
	finish(ctx, &r, fmt.Sprintf("%s after %s, %.0f units, none failed", state, took.Round(100*time.Millisecond), r.Work))
	return r
}

// started waits until systemd has done what it started for. It polls: what
// waits inside systemctl for the end of a start is itself a unit's process.
func (c System) started(ctx context.Context, rec burnin.Recorder) (string, error) {
	for {
		// Exit codes are those of the state; "offline" is a machine without systemd.
		said, err := tool(ctx, "systemctl", "is-system-running")
		state := strings.TrimSpace(said)
		switch state {
		case "running", "degraded", "maintenance":
			return state, nil
		case "initializing", "starting":
		default:
			if ctx.Err() == nil {
				return state, fmt.Errorf("systemctl is-system-running: %w", cmpErr(err))
			}
		}
		rec.Progress(0, "waits until everything is started: "+state)
		select {
		case <-ctx.Done():
			return state, context.Cause(ctx)
		case <-time.After(500 * time.Millisecond):
		}
	}
}

func cmpErr(err error) error {
	if err == nil {
		return errors.New("an answer that is not known")
	}
	return err
}

// took is the time between the start of the kernel and of the last unit. What
// firmware needed before is not in it.
func (c System) took(ctx context.Context) (time.Duration, error) {
	said, err := tool(ctx, "systemctl", "show", "--property=FinishTimestampMonotonic", "--value")
	if err != nil {
		return 0, err
	}
	us, err := strconv.ParseInt(strings.TrimSpace(said), 10, 64)
	if err != nil || us <= 0 {
		return 0, fmt.Errorf("systemd says %q microseconds", strings.TrimSpace(said))
	}
	return time.Duration(us) * time.Microsecond, nil
}

// units finds what failed.
func (c System) units(ctx context.Context, r *burnin.Result, s burnin.Subject, want burnin.Installed) error {
	said, err := tool(ctx, "systemctl", "list-units", "--all", "--full", "--plain", "--no-legend", "--no-pager")
	if err != nil {
		return err
	}
	all := parseUnits(said)
	r.Work = float64(len(all))
	card := hasCard(s)
	failed, allowed := 0, 0
	for _, u := range all {
		if u.active != "failed" {
			continue
		}
		f := burnin.Finding{Item: "unit " + u.name, Name: "failed", Value: 1, Limit: "= 0", Status: burnin.Fail, Cause: burnin.CauseSystem,
			Fix: "look at what it said: journalctl -b -u " + u.name}
		switch {
		case slices.Contains(want.MayFail, u.name):
			f.Status, f.Fix, f.Limit = burnin.Skip, "", ""
			f.Name = "failed, which its class allows"
			allowed++
		case !card && slices.Contains(needsCard, u.name):
			f.Status, f.Fix, f.Limit = burnin.Skip, "", ""
			f.Name = "failed, which it does without a card"
			allowed++
		default:
			failed++
			if said, err := tool(ctx, "journalctl", "--boot", "--unit="+u.name, "--lines=12", "--output=cat", "--no-pager"); err == nil {
				for _, l := range lines(said, 12) {
					note(r, "%s: %s", u.name, l)
				}
			}
		}
		r.Findings = append(r.Findings, f)
	}
	r.Findings = append(r.Findings, atMost(burnin.Finding{Item: "system", Name: "failed units", Value: float64(failed), Cause: burnin.CauseSystem}, 0))
	return nil
}

type unit struct{ name, active string }

// parseUnits reads list-units --plain: UNIT LOAD ACTIVE SUB DESCRIPTION.
func parseUnits(said string) []unit {
	var out []unit
	for l := range strings.Lines(said) {
		if f := strings.Fields(l); len(f) >= 4 && strings.Contains(f[0], ".") {
			out = append(out, unit{f[0], f[2]})
		}
	}
	return out
}

// hasCard tells whether inspection found a real NVIDIA card.
func hasCard(s burnin.Subject) bool {
	for _, g := range s.Hardware.GPUs {
		if g.Vendor == nvidia && !g.Simulated {
			return true
		}
	}
	return false
}

// kernel compares what runs with what the image was made with: a node whose
// kernel was exchanged afterwards is not what was tested.
func (c System) kernel(r *burnin.Result, want burnin.Installed) error {
	running, ok := readLine(filepath.Join(c.Root, "/proc/sys/kernel/osrelease"))
	if !ok || running == "" {
		return errors.New("the kernel does not say its release")
	}
	f := burnin.Finding{Item: "kernel " + running, Name: "is the one of its image", Value: 1, Limit: "= 1", Status: burnin.Pass, Cause: burnin.CauseSystem}
	switch {
	case want.Kernel == "":
		f.Name, f.Status, f.Limit = "its image's kernel is not known here", burnin.Skip, ""
	case running != want.Kernel:
		f.Value, f.Status, f.Name = 0, burnin.Fail, "is not the one of its image, "+want.Kernel
		f.Fix = "write the image again"
	}
	r.Findings = append(r.Findings, f)
	return nil
}

// root wants a file system that can be written, and that met no errors.
func (c System) root(r *burnin.Result) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(filepath.Join("/", c.Root), &fs); err != nil {
		return err
	}
	ro := 0.0
	if fs.Flags&unix.ST_RDONLY != 0 {
		ro = 1
	}
	r.Findings = append(r.Findings, atMost(burnin.Finding{Item: "root file system", Name: "mounts that cannot be written", Value: ro, Cause: burnin.CauseSystem,
		Fix: "look at why the kernel made it read-only: journalctl -b -k"}, 0))
	counters, err := filepath.Glob(filepath.Join(c.Root, "/sys/fs/ext4/*/errors_count"))
	if err != nil {
		return err
	}
	for _, p := range counters {
		if n, ok := readInt(p); ok {
			r.Findings = append(r.Findings, atMost(burnin.Finding{Item: "file system on " + filepath.Base(filepath.Dir(p)), Name: "errors", Value: float64(n), Cause: burnin.CauseDisk}, 0))
		}
	}
	return nil
}

// driver wants the module of the image's driver in this kernel.
func (c System) driver(ctx context.Context, r *burnin.Result, s burnin.Subject, want string) {
	f := burnin.Finding{Item: "nvidia module", Name: "fits the kernel", Value: 1, Limit: "= 1", Status: burnin.Pass, Cause: burnin.CauseSystem}
	said, err := tool(ctx, "modprobe", "nvidia")
	card := hasCard(s)
	switch a := moduleAnswer(said, err); {
	case a == moduleLoaded:
	case a == moduleNoDevice && !card:
		f.Name = "fits the kernel; there is no card for it"
	case a == moduleNoDevice:
		f.Value, f.Status, f.Name = 0, burnin.Fail, "does not drive the card that is there"
		f.Fix = "this driver does not know the card: take a variant of the image whose driver does"
	default:
		f.Value, f.Status, f.Name = 0, burnin.Fail, "does not fit the kernel"
		f.Fix = "build the image again: kernel and module must be made for each other"
	}
	r.Findings = append(r.Findings, f)
	if f.Status == burnin.Fail {
		for _, l := range lines(said, 6) {
			note(r, "modprobe nvidia: %s", l)
		}
		// The reason is the kernel's to say.
		if said, err := tool(ctx, "journalctl", "--boot", "--dmesg", "--lines=2000", "--output=cat", "--no-pager"); err == nil {
			for l := range strings.Lines(said) {
				if strings.Contains(l, "nvidia") || strings.Contains(l, "NVRM") {
					note(r, "kernel: %s", strings.TrimSpace(l))
				}
			}
		}
	}

	version, ok := readLine(filepath.Join(c.Root, "/sys/module/nvidia/version"))
	if !ok {
		// Debian's module is called nvidia-current, and nvidia by an alias.
		for _, name := range []string{"nvidia", "nvidia-current"} {
			said, err := tool(ctx, "modinfo", "--field=version", name)
			if v := strings.TrimSpace(said); err == nil && v != "" {
				version = v
				break
			}
		}
	}
	v := burnin.Finding{Item: "nvidia module " + dash(version), Name: "is the version of its image's driver, " + want, Value: 1, Limit: "= 1", Status: burnin.Pass, Cause: burnin.CauseSystem}
	if version != want {
		v.Name = "is not the version of its image's driver, " + want
		v.Value, v.Status, v.Fix = 0, burnin.Fail, "build the image again: module and libraries must be of one version"
	}
	r.Findings = append(r.Findings, v)
}

func dash(s string) string {
	if s == "" {
		return "(none)"
	}
	return s
}

// What a kernel says to a module.
const (
	moduleRefused = iota
	moduleLoaded
	moduleNoDevice
)

// moduleAnswer reads what modprobe said. Its exit code is 1 whatever happened;
// the text is strerror's, in the C locale.
func moduleAnswer(said string, err error) int {
	switch {
	case err == nil:
		return moduleLoaded
	case strings.Contains(said, "Invalid module format"), strings.Contains(said, "Unknown symbol"), strings.Contains(said, "Exec format error"):
		return moduleRefused
	case strings.Contains(said, "No such device"):
		return moduleNoDevice
	}
	return moduleRefused
}

// maxSaid bounds what is kept of a tool's output.
const maxSaid = 1 << 20

// tool runs a program of the installed system and returns what it said on both
// outputs.
func tool(ctx context.Context, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, name, args...)
	c.Env = append(os.Environ(), "LC_ALL=C", "SYSTEMD_COLORS=0")
	c.WaitDelay = time.Second
	var b bytes.Buffer
	c.Stdout, c.Stderr = &b, &b
	err := c.Run()
	out := b.String()
	return out[:min(len(out), maxSaid)], err
}

// lines are the last n lines of s that say something.
func lines(s string, n int) []string {
	var out []string
	for l := range strings.Lines(s) {
		if l = strings.TrimSpace(l); l != "" {
			out = append(out, l)
		}
	}
	return out[max(0, len(out)-n):]
}
