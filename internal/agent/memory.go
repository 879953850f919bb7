package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"smelt/images"
	"smelt/images/disk"
	"smelt/internal/api"
	"smelt/internal/initramfs"
	"smelt/internal/pid1"
	"smelt/internal/ramroot"
)

// Memory is what an image is run with in the RAM system.
type Memory struct {
	ramroot.Maker
	Agent   string       // path of this program
	Trust   []byte       // as it was read; see initramfs.TrustPath
	Command pid1.CmdLine // of this boot
	Cmdline string       // of the running kernel
}

// stateKept is where the agent on another kernel finds the state of this one.
const stateKept = "/etc/smelt/state.json"

// ram runs an image from memory: a root is made for process 1 to go on with, or
// the image's own kernel is loaded, on which this RAM system starts again.
func (a *Agent) ram(ctx context.Context, o api.Order) api.Result {
	w := o.RAM
	if w == nil || a.c.Mode != RAM {
		return failed("other", fmt.Errorf("this machine was not started to run an image from memory (mode %s)", a.c.Mode))
	}
	if w.Handoff.Node != a.node() {
		return failed("identity", fmt.Errorf("the handoff is for node %q, this is %q", w.Handoff.Node, a.node()))
	}
	want, err := images.ParseDigest(w.Manifest)
	if err != nil {
		return failed("other", err)
	}
	client := disk.NewClient() // plain HTTP is enough: every byte is verified
	defer client.CloseIdleConnections()
	from := &api.ImageOrder{Manifest: w.Manifest, Base: w.Base, Mirrors: w.Mirrors}
	var m images.Manifest
	if err := retry(ctx, 5, func() error {
		m, err = manifest(ctx, client, from, want, a.c.Images)
		return err
	}, notSigned); err != nil {
		if notSigned(err) {
			return failed("verify", err)
		}
		return failed("network", err)
	}
	release, err := ramroot.Release()
	if err != nil {
		return failed("other", err)
	}
	switch {
	case m.Kernel == "":
		return failed("other", fmt.Errorf("image %s does not say which kernel it is for", m.Title()))
	case m.Kernel != release && a.c.Memory.again():
		return failed("other", fmt.Errorf("this is kernel %s, started for image %s which is for %s", release, m.Title(), m.Kernel))
	}
	if err := ramroot.Fits(m); err != nil {
		return failed("memory", err)
	}
	began := time.Now()
	a.log.Info("loading the system into memory", "image", m.Title(), "bytes", m.Data())
	fetch, _, leave := a.sources(from, m, "", client)
	defer leave()
	tree, got, err := a.c.Memory.Make(ctx, m, fetch, func(p disk.Progress) {
		a.progress(o, 0.95*frac(p.Done, p.Total), "loading image "+m.Title()+" into memory", rate(p.Fetched, began))
	})
	if err != nil {
		return failed(causeOfWrite(err, w.Base), err)
	}
	if m.Kernel != release {
		err = a.onItsKernel(tree, m.Kernel)
		a.next = Kexec
	} else {
		err = leaveIn(tree.Root, Handed{w.Handoff, w.Base, a.c.Images})
		a.next = Switch
	}
	if err != nil {
		return failed("other", errors.Join(err, tree.Remove()))
	}
	a.log.Info("the system is in memory", "image", m.Title(), "kernel", m.Kernel, "next", a.next, "took", got.Elapsed.Round(time.Millisecond))
	return api.Result{OK: true}
}

func notSigned(err error) bool {
	return errors.Is(err, images.ErrUnsigned) || errors.Is(err, images.ErrEnvelope) || errors.Is(err, images.ErrManifest)
}

func leaveIn(dir string, h Handed) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	return leave(root, h)
}

// marked says that a kernel was started for an image: once is enough.
const marked = "smelt.kernel=image"

func (m *Memory) again() bool {
	for w := range strings.FieldsSeq(m.Cmdline) {
		if w == marked {
			return true
		}
	}
	return false
}

// onItsKernel loads the image's kernel with this RAM system. It goes on with
// this one's session, and fetches the image once more: what is in memory does
// not survive the kernel.
func (a *Agent) onItsKernel(t *ramroot.Tree, release string) error {
	trust, err := initramfs.ParseTrust(a.c.Memory.Trust)
	if err != nil {
		return err
	}
	state, err := os.ReadFile(a.state.path)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "smelt-kernel-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	kernel, initrd, err := t.Kernel(release, dir, ramroot.Again{Agent: a.c.Memory.Agent, Trust: trust, Keep: map[string][]byte{stateKept: state}})
	if err != nil {
		return err
	}
	if err := t.Remove(); err != nil {
		return err
	}
	words := append(append(pid1.Others(a.c.Memory.Cmdline), marked), a.c.Memory.Command.Args()...)
	return loadKernel(os.Open, kernel, initrd, strings.Join(words, " "))
}

// Resume puts the state of the RAM system that started this kernel where the
// agent looks for its own, unless there is one already.
func Resume(stateDir string) error {
	b, err := os.ReadFile(stateKept)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := os.MkdirAll(stateDir, 0o700); err != nil {
		return err
	}
	if err := writeFile(stateDir+"/state.json", b, 0o600); err != nil {
		return err
	}
	return os.Remove(stateKept)
}
