package imagetest

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"smelt/burnin"
	"smelt/images"
	"smelt/internal/api"
	"smelt/internal/lab"
	"smelt/inventory"
)

// Options say what is tried, and how.
type Options struct {
	Lab      lab.Options // Image, its name in the lab's store, is set here
	Digest   images.Digest
	Manifest images.Manifest
	Firmware []string      // bios, uefi
	Memory   int           // MiB of each machine
	Disk     int64         // bytes; 0 is the next whole GiB above the image's size
	MayFail  []string      // units whose failure is accepted
	Tamper   bool          // also offer a damaged image
	KVM      bool          // run the machines on the host's processor
	Ready    time.Duration // longest from power on to the installed system's report; 0: any
	Logs     string        // folder that consoles and reports are kept in; empty: none
}

// How long a machine that does nothing is waited for. Emulated on a busy host,
// a boot that takes a second may take a minute.
const (
	startLimit = 20 * time.Minute // from power on to the installed system's report
	deadLimit  = 3 * time.Minute  // of a machine that should find nothing to boot
)

// Stage puts an image from one store into the store of a lab, signed by the
// lab's key. Its digest stays: only the signer changes, and the caller has
// verified the signature that it came with.
func Stage(from *images.Store, d images.Digest, m images.Manifest, state string, key ed25519.PrivateKey) error {
	to, err := images.OpenStore(filepath.Join(state, "images"))
	if err != nil {
		return err
	}
	envelope, err := from.Envelope(d)
	if err != nil {
		return err
	}
	blob, err := from.Blob(m)
	if err != nil {
		return err
	}
	defer blob.Close()
	if _, err := to.Put(envelope, blob); err != nil {
		return err
	}
	return to.Resign(d, key)
}

// Run tries the image that Stage put into the lab's store. An error says that
// it could not be tried; what was found out until then is in the report.
func Run(ctx context.Context, o Options) (r Report, err error) {
	r = NewReport(o)
	defer func() { r.Took = time.Since(r.Started) }()
	t := lab.Trial{Memory: o.Memory, DiskSize: o.Disk, MayFail: o.MayFail, KVM: o.KVM}
	if t.DiskSize == 0 {
		const gib = 1 << 30
		t.DiskSize = (o.Manifest.Size/gib + 1) * gib
	}
	want := map[inventory.NodeID]inventory.State{}
	for _, f := range o.Firmware {
		m := lab.TrialMachine{Name: inventory.NodeID(f), Disk: "nvme", NIC: "e1000e"}
		if f == UEFI {
			m = lab.TrialMachine{Name: inventory.NodeID(f), UEFI: true, Disk: "sata"}
		}
		t.Machines = append(t.Machines, m)
		want[inventory.NodeID(f)] = inventory.InService
	}
	if o.Tamper {
		t.Machines = append(t.Machines, lab.TrialMachine{Name: tampered})
		want[tampered] = inventory.NeedsWork
	}
	o.Lab.Image = o.Manifest.Title()
	l, err := lab.TryUp(ctx, o.Lab, t)
	if err != nil {
		return r, err
	}
	defer l.Close()
	if o.Logs != "" {
		defer func() { _ = l.CopyLogs(o.Logs) }() // what was found is worth more
	}
	blob := filepath.Join(o.Lab.State(), "images", "blobs", o.Manifest.Blob.String())
	if o.Tamper {
		if err := flip(blob, o.Manifest); err != nil {
			return r, err
		}
	}
	if err := l.PlugIn(ctx); err != nil {
		return r, err
	}
	w := &watch{l: l, o: o, asked: map[inventory.NodeID]bool{}, mark: map[inventory.NodeID]int64{}, began: map[inventory.NodeID]time.Time{}, ended: map[inventory.NodeID]string{}, blob: blob, damaged: o.Tamper}
	if err := l.Follow(ctx, want, func(v map[inventory.NodeID]api.NodeView) (bool, error) { return w.step(ctx, want, v) }); err != nil {
		return r, err
	}
	for _, f := range o.Firmware {
		s, err := w.seen(ctx, inventory.NodeID(f))
		if err != nil {
			return r, err
		}
		r.Cases = append(r.Cases, s.cases(o.Manifest.Driver != nil, o.Ready)...)
	}
	if o.Tamper {
		s, err := w.seen(ctx, tampered)
		if err != nil {
			return r, err
		}
		r.Cases = append(r.Cases, s.refused())
		dead, err := w.dead(ctx)
		if err != nil {
			return r, err
		}
		r.Cases = append(r.Cases, dead...)
	}
	return r, nil
}

// The firmware that an image is tried on; machines are named by it.
const (
	BIOS = "bios"
	UEFI = "uefi"
)

// tampered is the machine that is offered a damaged image.
const tampered inventory.NodeID = "tamper"

// watch follows the machines.
type watch struct {
	l       *lab.Lab
	o       Options
	asked   map[inventory.NodeID]bool
	mark    map[inventory.NodeID]int64     // length of the console when the machine was to boot from its disk
	began   map[inventory.NodeID]time.Time // when that was
	ended   map[inventory.NodeID]string    // why it is not waited for any more
	blob    string
	damaged bool
}

// step approves what is ready and tells whether all is over. The damaged image
// is offered first, and alone: no other node can have whole chunks of it then.
func (w *watch) step(ctx context.Context, want map[inventory.NodeID]inventory.State, views map[inventory.NodeID]api.NodeView) (bool, error) {
	over := func(id inventory.NodeID) bool {
		v, ok := views[id]
		return w.ended[id] != "" || ok && (v.Node.State == inventory.NeedsWork || v.Node.State == inventory.InService || inventory.Table[v.Node.State].Terminal())
	}
	if w.damaged && over(tampered) {
		if err := flip(w.blob, w.o.Manifest); err != nil { // back to what it was
			return false, err
		}
		w.damaged = false
	}
	done := true
	for id := range want {
		v, ok := views[id]
		if !ok {
			done = false
			continue
		}
		if n := v.Node; n.State == inventory.Inspected && n.Verdict != nil && !w.asked[id] && (id == tampered || !w.damaged) {
			w.asked[id] = true
			params := map[string]string{"confirm": string(id)}
			if n.Verdict.Answer != "convert" {
				params["force"] = "an image is tried on it" // a small machine is what is wanted here
			}
			if _, err := w.l.Client().Do(ctx, id, "approve", params); err != nil {
				return false, fmt.Errorf("approve %s: %w", id, err)
			}
		}
		if v.Node.State == inventory.Starting {
			w.starting(id)
		}
		done = done && over(id)
	}
	return done, nil
}

// starting looks at a machine that should come up from its own disk: there is
// no need to wait for one that has said that it will not.
func (w *watch) starting(id inventory.NodeID) {
	if _, ok := w.mark[id]; !ok {
		w.began[id] = time.Now()
		w.mark[id] = 0
		if i, err := os.Stat(w.l.Console(id)); err == nil {
			w.mark[id] = i.Size()
		}
	}
	s := seen{console: w.l.Console(id), mark: w.mark[id]}
	lines, _ := s.text()
	if at, fatal, ok := blame(lines); ok && fatal {
		w.ended[id] = "the installed system did not come up: " + clip(lines[at])
	} else if d := time.Since(w.began[id]); d > startLimit {
		w.ended[id] = fmt.Sprintf("the installed system did not report within %s", startLimit)
	}
}

// seen collects what became of a machine.
func (w *watch) seen(ctx context.Context, id inventory.NodeID) (seen, error) {
	s := seen{suite: string(id), console: w.l.Console(id), mark: -1, server: w.l.ServerLog(), ended: w.ended[id]}
	if at, ok := w.mark[id]; ok {
		s.mark = at
	}
	var err error
	if s.view, err = w.l.Client().Node(ctx, id); err != nil {
		return s, err
	}
	if len(s.view.Reports) > 0 {
		rep, err := w.l.Client().Report(ctx, id, s.view.Reports[0].ID)
		if err != nil {
			return s, err
		}
		s.report = &rep
		if w.o.Logs != "" {
			if err := keep(filepath.Join(w.o.Logs, string(id)+".report.html"), func(f io.Writer) error { return burnin.WriteHTML(f, rep) }); err != nil {
				return s, err
			}
		}
	}
	return s, nil
}

func keep(path string, write func(io.Writer) error) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Close())
}

// firstMiB holds the partition table and the boot code: without it nothing is
// bootable, and it is written last.
const firstMiB = 1 << 20

// dead proves that the machine which refused the image does not boot from its
// disk: the first MiB is zero, and neither firmware finds a system on it.
func (w *watch) dead(ctx context.Context) ([]Case, error) {
	if err := w.l.Unplug(ctx, tampered); err != nil {
		return nil, err
	}
	disk := w.l.Disk(tampered)
	f, err := os.Open(disk)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, firstMiB)
	if _, err := io.ReadFull(f, b); err != nil {
		return nil, err
	}
	zero := Case{Suite: "tamper", Name: "nothing bootable is on the disk", Status: Pass, Why: "its first MiB, written last, is zero"}
	if i := slices.IndexFunc(b, func(c byte) bool { return c != 0 }); i >= 0 {
		zero.Status, zero.Why = Fail, fmt.Sprintf("byte %d of the disk is not zero", i)
	}
	out := []Case{zero}
	for _, firmware := range w.o.Firmware {
		c := Case{Suite: "tamper", Name: "disk does not boot: " + firmware}
		console := filepath.Join(filepath.Dir(w.l.Console(tampered)), "tamper-"+firmware+".serial.log")
		limit, cancel := context.WithTimeout(ctx, deadLimit)
		began := time.Now()
		said, err := w.l.StartsFrom(limit, disk, firmware == UEFI, console, func(said string) bool { return nothing(said) != "" || booted(said) != "" })
		cancel()
		c.Took = time.Since(began)
		switch {
		case ctx.Err() != nil:
			return out, ctx.Err()
		case booted(said) != "":
			c.Status, c.Why = Fail, "it boots: "+booted(said)
		case nothing(said) != "":
			c.Status, c.Why = Pass, nothing(said)
		case errors.Is(err, context.DeadlineExceeded):
			c.Status, c.Why, c.Log = Error, fmt.Sprintf("firmware did not say within %s that it found nothing", deadLimit), excerpt(console, consoleLines(said), 0)
		default:
			return out, err
		}
		out = append(out, c)
	}
	return out, nil
}

// nothing is what firmware says when it finds no system: SeaBIOS, then OVMF.
func nothing(said string) string {
	return firstOf(said, "No bootable device", "Boot failed: not a bootable disk", "BdsDxe: No bootable option", "UEFI Interactive Shell", "Press ESC in")
}

// booted is what a system says first: GRUB, then Linux.
func booted(said string) string {
	return firstOf(said, "Linux version", "GNU GRUB", "Loading Linux", "Welcome to GRUB", "GRUB loading", "systemd[1]", "Debian GNU/Linux")
}

func firstOf(said string, words ...string) string {
	for _, l := range consoleLines(said) {
		for _, w := range words {
			if strings.Contains(l, w) {
				return clip(strings.TrimSpace(l))
			}
		}
	}
	return ""
}

// flip changes one bit in the middle of the image's data. Doing it twice
// undoes it.
func flip(path string, m images.Manifest) error {
	if err := os.Chmod(path, 0o600); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	// The middle of a frame in the middle: not one of its checks of form.
	var data []images.Chunk
	for _, c := range m.Chunks {
		if !c.Zero {
			data = append(data, c)
		}
	}
	if len(data) == 0 {
		return errors.New("the image has no data to damage")
	}
	c := data[len(data)/2]
	at := c.BlobOff + c.BlobLen/2
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		return err
	}
	b[0] ^= 0x10
	if _, err := f.WriteAt(b, at); err != nil {
		return err
	}
	return f.Sync()
}
