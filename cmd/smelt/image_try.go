package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"smelt/images"
	"smelt/internal/imagetest"
	"smelt/internal/lab"
)

// tryFlags are what smelt image test may be told.
type tryFlags struct {
	cache, bin, dir, logs, junit string
	accel                        string
	firmware, mayFail            []string
	memory                       int
	disk                         int64 // GiB
	tamper                       bool
	ready, limit                 time.Duration
}

func newImageTry(o *options, state *string) *cobra.Command {
	var f tryFlags
	cmd := &cobra.Command{
		Use:   "test IMAGE",
		Short: "Try an image on QEMU machines by the path that real ones go; exit 3 when it is not as it should be",
		Long: `Try an image on QEMU machines by the path that real ones go: a real smelt
serve boots the RAM system on a blank machine for each kind of firmware (BIOS
with an NVMe drive and an Intel network card, UEFI with a SATA drive), its agent
writes the image, the machine boots from its own disk, and the installed
system must report and prove itself: kernel, failed units, root file system, the
driver's module (a machine without a card accepts that it finds none), time to
ready. One more machine is offered the image with one flipped byte, must refuse
it, and must not boot afterwards.

It needs root for a network namespace, Debian's qemu-system-x86, ovmf and ipxe,
and neither KVM nor a GPU. Exit codes: 0 the image is as it should be, 3 it is
not, 1 it could not be tried, 2 wrong usage, 6 out of time.`,
		Example: "  sudo smelt image test debian-12-lab\n  sudo smelt image test ai-node --firmware uefi --junit junit.xml --logs image-test",
		Args:    exactly("IMAGE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.check(o); err != nil {
				return err
			}
			return f.run(cmd, o, *state, args[0])
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&f.cache, "cache", ".cache", "folder for what can be made again")
	fl.StringVar(&f.bin, "bin", "", "folder with smelt-agent (default: where this program is)")
	fl.StringVar(&f.dir, "dir", "", "folder to work in; needs room for the image, its copy and the written disks (default: a new one below TMPDIR, removed at the end)")
	fl.StringVar(&f.logs, "logs", "", "folder that consoles, the server's log and the burn-in reports are kept in")
	fl.StringVar(&f.junit, "junit", "", "file that the result is written to in JUnit's form, for a CI system")
	fl.StringSliceVar(&f.firmware, "firmware", []string{imagetest.BIOS, imagetest.UEFI}, "bios, uefi or both")
	fl.StringSliceVar(&f.mayFail, "may-fail", nil, "systemd unit whose failure is accepted; may be given again")
	fl.StringVar(&f.accel, "accel", "tcg", "tcg emulates the machines and runs anywhere; kvm is several times faster and needs /dev/kvm")
	fl.IntVar(&f.memory, "memory", 1024, "memory of each machine, MiB")
	fl.Int64Var(&f.disk, "disk", 0, "size of each disk, GiB (default: what the image needs)")
	fl.BoolVar(&f.tamper, "tamper", true, "also offer the image with one flipped byte")
	fl.DurationVar(&f.ready, "ready", 0, "longest time from power on to the installed system's report; 0 is any")
	fl.DurationVar(&f.limit, "limit", 30*time.Minute, "give up after this time")
	return cmd
}

func (f *tryFlags) check(o *options) error {
	if o.output != "table" && o.output != "json" {
		return usageError{fmt.Sprintf("-o %s: a test has a table or json", o.output), "--junit FILE writes the form for CI systems"}
	}
	slices.Sort(f.firmware)
	f.firmware = slices.Compact(f.firmware)
	for _, w := range f.firmware {
		if w != imagetest.BIOS && w != imagetest.UEFI {
			return usageError{fmt.Sprintf("--firmware %s: want bios, uefi or both", w), ""}
		}
	}
	if f.accel == "kvm" {
		// That the device is there says little: containers often may not open it.
		k, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
		if err != nil {
			return usageError{fmt.Sprintf("--accel kvm: %v", err), "leave it out: the machines are emulated then"}
		}
		k.Close()
	}
	switch {
	case f.accel != "tcg" && f.accel != "kvm":
		return usageError{fmt.Sprintf("--accel %s: want tcg or kvm", f.accel), ""}
	case len(f.firmware) == 0:
		return usageError{"--firmware names none: want bios, uefi or both", ""}
	case f.memory < 512:
		return usageError{fmt.Sprintf("--memory %d: the RAM system needs 512 MiB", f.memory), ""}
	case f.disk < 0:
		return usageError{fmt.Sprintf("--disk %d: want GiB", f.disk), ""}
	}
	return nil
}

func (f *tryFlags) run(cmd *cobra.Command, o *options, state, ref string) error {
	ctx, cancel := context.WithTimeout(cmd.Context(), f.limit)
	defer cancel()
	from, err := images.OpenStore(filepath.Join(state, "images"))
	if err != nil {
		return err
	}
	digest, err := from.Resolve(ref)
	if err != nil {
		return asUsage(err)
	}
	m, err := from.Manifest(digest)
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("image test needs root to make a network namespace: run it with sudo")
	}
	if m.Arch != "amd64" {
		return usageError{fmt.Sprintf("image %s is for %s: only amd64 can be tried here", m.Title(), m.Arch), ""}
	}
	began := time.Now()
	whole := imagetest.Case{Suite: "image", Name: "signature and chunks", Status: imagetest.Pass, Why: "signed, and every chunk is what the manifest says"}
	if err := verifyStored(from, state, digest); err != nil {
		whole.Status, whole.Why = imagetest.Fail, err.Error()
	}
	whole.Took = time.Since(began)

	exe, err := os.Executable()
	if err != nil {
		return err
	}
	if f.bin == "" {
		f.bin = filepath.Dir(exe)
	}
	dir := f.dir
	if dir == "" {
		if dir, err = os.MkdirTemp("", "smelt-image-test-"); err != nil {
			return err
		}
		defer os.RemoveAll(dir)
	}
	lo := lab.Options{UI: "127.0.0.1:0", Out: cmd.ErrOrStderr(), Log: slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelWarn}))}
	for _, p := range []struct {
		to   *string
		path string
	}{{&lo.Dir, dir}, {&lo.Bin, f.bin}, {&lo.Cache, f.cache}} {
		if *p.to, err = filepath.Abs(p.path); err != nil {
			return err
		}
	}
	r := imagetest.Report{}
	if whole.Status == imagetest.Pass {
		if r, err = f.try(ctx, cmd, exe, lo, from, digest, m); err != nil {
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				err = fmt.Errorf("not done after %s (%w)", f.limit, context.DeadlineExceeded)
			}
			err = fmt.Errorf("image %s could not be tried to the end: %w", m.Title(), err)
		}
	} else {
		r = imagetest.NewReport(imagetest.Options{Digest: digest, Manifest: m})
	}
	r.Cases = append([]imagetest.Case{whole}, r.Cases...)
	if err != nil {
		r.Cases = append(r.Cases, imagetest.Case{Suite: "image", Name: "tried to the end", Status: imagetest.Error, Why: err.Error()})
	}
	if f.junit != "" {
		if werr := keepFile(f.junit, r.WriteJUnit); werr != nil {
			return errors.Join(err, werr)
		}
	}
	if serr := f.show(cmd, o, r); serr != nil {
		return errors.Join(err, serr)
	}
	if err != nil {
		return err
	}
	if !r.OK() {
		return errNegative
	}
	return nil
}

// try stages the image into a state folder of its own and runs the test there.
func (f *tryFlags) try(ctx context.Context, cmd *cobra.Command, exe string, lo lab.Options, from *images.Store, d images.Digest, m images.Manifest) (imagetest.Report, error) {
	opts := imagetest.Options{Lab: lo, Digest: d, Manifest: m, Firmware: f.firmware, Memory: f.memory, Disk: f.disk << 30, MayFail: f.mayFail,
		Tamper: f.tamper, KVM: f.accel == "kvm", Ready: f.ready, Logs: f.logs}
	if err := os.MkdirAll(lo.State(), 0o755); err != nil {
		return imagetest.NewReport(opts), err
	}
	key, err := siteKey(lo.State())
	if err != nil {
		return imagetest.NewReport(opts), err
	}
	if err := imagetest.Stage(from, d, m, lo.State(), key); err != nil {
		return imagetest.NewReport(opts), err
	}
	// The server of the lab reaches no mirror.
	c := exec.CommandContext(ctx, exe, "image", "kernel", "--cache", lo.Cache)
	c.Stderr = cmd.ErrOrStderr()
	if err := c.Run(); err != nil {
		return imagetest.NewReport(opts), fmt.Errorf("smelt image kernel: %w", err)
	}
	return imagetest.Run(ctx, opts)
}

// verifyStored holds an image against the signatures that the site's nodes
// want, and every chunk of it against the manifest.
func verifyStored(st *images.Store, state string, d images.Digest) error {
	signers, err := siteSigners(state)
	if err != nil {
		return err
	}
	envelope, err := st.Envelope(d)
	if err != nil {
		return err
	}
	if _, _, err := signers.Open(envelope); err != nil {
		return err
	}
	return st.Verify(d)
}

// show writes what was found: the cases to stdout, where to look to stderr.
func (f *tryFlags) show(cmd *cobra.Command, o *options, r imagetest.Report) error {
	l := listing{doc: r, cols: []string{"case", "status", "took", "why"}}
	for _, c := range r.Cases {
		took := "-"
		if c.Took > 0 {
			took = c.Took.Round(100 * time.Millisecond).String()
		}
		why, _, _ := strings.Cut(c.Why, "\n")
		l.rows = append(l.rows, []string{c.Suite + "/" + c.Name, string(c.Status), took, why})
	}
	if err := o.show(cmd, l); err != nil {
		return err
	}
	w := cmd.ErrOrStderr()
	for _, c := range r.Cases {
		if c.Status != imagetest.Fail && c.Status != imagetest.Error || len(c.Log) == 0 {
			continue
		}
		fmt.Fprintf(w, "\n%s/%s: %s\n", c.Suite, c.Name, c.Why)
		for _, line := range c.Log {
			fmt.Fprintf(w, "  %s\n", line)
		}
	}
	fmt.Fprintf(w, "\nimage %s %s: %d passed, %d failed, %d could not be tried, %d skipped, in %s\n", r.Image, r.Digest[:min(12, len(r.Digest))],
		r.Count(imagetest.Pass), r.Count(imagetest.Fail), r.Count(imagetest.Error), r.Count(imagetest.Skip), r.Took.Round(time.Second))
	if f.logs != "" {
		fmt.Fprintf(w, "whole logs: %s\n", f.logs)
	}
	return nil
}

func keepFile(path string, write func(io.Writer) error) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Close())
}

// asUsage makes a name that is not there the mistake of who wrote it.
func asUsage(err error) error {
	if errors.Is(err, images.ErrNotFound) {
		return usageError{err.Error(), ""}
	}
	return err
}
