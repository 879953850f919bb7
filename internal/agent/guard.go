package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"smelt/images/disk"
	"smelt/internal/api"
	"smelt/inventory"
)

// A refusal is why this machine does not do what it was told, with the word
// for it in a Result.
type refusal struct {
	cause string
	err   error
}

// undecided is the cause of a refusal that nobody is told of: the order is
// asked for again.
const undecided = "undecided"

func (r *refusal) Error() string { return r.err.Error() }

func refuse(cause, format string, args ...any) *refusal {
	return &refusal{cause, fmt.Errorf(format, args...)}
}

// destruction is what a destructive order asks for, in the words of its permit.
type destruction struct {
	action string // wipe or image
	disks  []inventory.DiskID
	image  string   // manifest digest, with image
	allow  []string // foreign signatures that the plan names
}

// permitAnswer is how long the server has to answer the question for a permit.
// Its clock runs on meanwhile, and a disk may be swapped.
const permitAnswer = 10 * time.Second

// maxConflicts is how often in one order a permit may be refused before that
// is a failure: the one that an order carried may have been used up by a
// question whose answer was lost. The same order asked for again carries a
// fresh one.
const maxConflicts = 3

// authorise holds a destructive order against everything this machine can see
// for itself (DESIGN rules 2 and 3). When it returns nil the permit has been
// used. Until then nothing was written; any doubt is a refusal.
//
// What it saw of the disks is not kept: hold looks again right before each is
// written, which may be hours later.
func (a *Agent) authorise(ctx context.Context, o api.Order, d destruction) *refusal {
	// Rule 1: the mode comes from how the machine was started.
	if a.c.Mode != Convert {
		return refuse("permit", "this is not a conversion boot (mode %s): no disk can be written", a.c.Mode)
	}
	p, r := a.permitFor(ctx, o, d)
	if r != nil {
		return r
	}
	if r := a.look(d); r != nil {
		return r
	}
	if a.state.used(p.ID) {
		// Not even a server that says yes twice makes it count twice.
		return refuse("permit", "permit %s was used before", p.ID)
	}
	asking, cancel := context.WithTimeout(ctx, permitAnswer)
	err := a.client.call(asking, http.MethodPost, api.PathPermit, api.PermitUse{ID: p.ID}, nil)
	cancel()
	switch {
	case hasStatus(err, http.StatusConflict):
		if a.putOff.conflicts++; a.putOff.conflicts > maxConflicts {
			return refuse("permit", "the server does not let permit %s be used, the %dth in this order: %v", p.ID, a.putOff.conflicts, err)
		}
		return refuse(undecided, "the server does not let permit %s be used: %v", p.ID, err)
	case err != nil:
		// Whether it is used up now is unknown, so it is not used. The server
		// hands out another one if it is.
		return refuse(undecided, "no answer about permit %s: %v", p.ID, err)
	}
	if err := a.state.use(p.ID); err != nil {
		return refuse("other", "the use of permit %s cannot be noted: %v", p.ID, err)
	}
	return nil
}

// permitFor opens the permit of an order and compares every field.
func (a *Agent) permitFor(ctx context.Context, o api.Order, d destruction) (inventory.Permit, *refusal) {
	none := inventory.Permit{}
	if o.Permit == nil {
		return none, refuse("permit", "the order to %s carries no permit", d.action)
	}
	now, known := a.clock.now()
	if !known {
		a.tick(ctx)
		if now, known = a.clock.now(); !known {
			return none, refuse("permit", "the server's time is unknown: whether the permit is still valid cannot be said")
		}
	}
	p, err := o.Permit.Open(a.c.SiteKey, now)
	if err != nil {
		return none, refuse("permit", "%v", err)
	}
	st := a.state.get()
	switch {
	case p.ID == "" || p.Plan == "":
		return none, refuse("permit", "the permit names no plan")
	case p.Node != st.Node:
		return none, refuse("permit", "the permit is for node %s, this is %s", p.Node, st.Node)
	case p.Agent != Fingerprint(a.state.public()):
		return none, refuse("permit", "the permit is for another agent")
	case p.Action != d.action:
		return none, refuse("permit", "the permit is to %s, the order is to %s", p.Action, d.action)
	case p.Image != d.image:
		return none, refuse("permit", "the permit is for image %.12s, the order for %.12s", p.Image, d.image)
	case p.Fence != o.Fence:
		return none, refuse("fence", "the permit has fence %d, the order %d", p.Fence, o.Fence)
	case p.Fence < st.Fence:
		return none, refuse("fence", "the permit has fence %d, this machine has seen %d", p.Fence, st.Fence)
	case len(d.disks) == 0:
		return none, refuse("identity", "the order names no disk")
	}
	for _, want := range d.disks {
		if !slices.Contains(p.Disks, want) {
			return none, refuse("permit", "the permit does not name the disk with %s", want)
		}
	}
	return p, nil
}

// look finds every disk of d as it is now, each a different one.
func (a *Agent) look(d destruction) *refusal {
	seen := map[string]inventory.DiskID{}
	for _, want := range d.disks {
		h, r := a.hold(want, d.allow)
		if r != nil {
			return r
		}
		_ = h.f.Close()
		if other, ok := seen[h.Name]; ok {
			return refuse("identity", "two disks of the order are the same one here: %s and %s are %s", other, want, names([]inventory.Disk{h.Disk}))
		}
		seen[h.Name] = want
	}
	return nil
}

// find looks at the disks as they are now and finds want, exactly once and
// used by nobody.
func (a *Agent) find(want inventory.DiskID) (inventory.Disk, *refusal) {
	sys := a.c.System
	sys.Signatures = nil // only of the one that is found, see hold
	found := sys.Disks()
	var same []inventory.Disk
	for _, f := range found {
		if want.Same(f.DiskID) {
			same = append(same, f)
		}
	}
	switch {
	case len(same) == 0:
		return inventory.Disk{}, refuse("identity", "no disk here is the one with %s and %d bytes; here are: %s", want, want.Size, names(found))
	case len(same) > 1:
		return inventory.Disk{}, refuse("identity", "%d disks answer to %s: %s", len(same), want, names(same))
	case same[0].InUse:
		return inventory.Disk{}, refuse("disk", "disk %s (%s) is in use here", same[0].Name, same[0].DiskID)
	}
	return same[0], nil
}

// held is a disk that was found, opened and then compared.
//
// A name such as sda says nothing: pull the disk, and the next one takes the
// name. A device number says no more than that, but the kernel gives it to
// nobody else while a file of it is open. So what is written is opened by
// path(), which names this very file and never another disk.
type held struct {
	inventory.Disk
	f *os.File
}

// path opens the device that is held, whatever is at its name by now.
func (h *held) path() string { return fmt.Sprintf("/proc/self/fd/%d", h.f.Fd()) }

// hold finds want and opens it for reading. What it returns was compared after
// it was opened, holds no foreign data but what allow names, and is to be
// closed when the disk is written.
func (a *Agent) hold(want inventory.DiskID, allow []string) (*held, *refusal) {
	d, r := a.find(want)
	if r != nil {
		return nil, r
	}
	f, err := os.Open(a.device(d))
	if err != nil {
		return nil, refuse("disk", "disk %s (%s): %v", d.Name, d.DiskID, err)
	}
	h := &held{d, f}
	if r := a.compare(h, want, allow); r != nil {
		_ = f.Close()
		return nil, r
	}
	return h, nil
}

// compare looks for want a second time: from now on the name cannot pass on
// unnoticed, because the device behind it is open.
func (a *Agent) compare(h *held, want inventory.DiskID, allow []string) *refusal {
	again, r := a.find(want)
	if r != nil {
		return r
	}
	if again.Name != h.Name {
		return refuse("identity", "%s was %s and is %s now", want, h.Name, again.Name)
	}
	if err := a.named(h); err != nil {
		return refuse("identity", "%s: %v", want, err)
	}
	foreign, err := foreignOn(h.f)
	if err != nil {
		return refuse("disk", "disk %s (%s): %v", h.Name, h.DiskID, err)
	}
	for _, k := range foreign {
		if !slices.Contains(allow, k) {
			return refuse("foreign-data", "disk %s (%s) holds %s, which the plan does not name", h.Name, h.DiskID, k)
		}
	}
	return nil
}

// named tells whether the device that is open is the one that the kernel
// describes, now, under its name.
func (a *Agent) named(h *held) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(h.f.Fd()), &st); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFBLK:
	case unix.S_IFREG:
		if a.c.System.Root != "" {
			return nil // a file that stands for a disk, in a folder that stands for a machine
		}
		fallthrough
	default:
		return fmt.Errorf("%s is no block device", h.Name)
	}
	b, err := os.ReadFile(filepath.Join("/", a.c.System.Root, "sys/class/block", h.Name, "dev"))
	if err != nil {
		return err
	}
	is := fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	if want := strings.TrimSpace(string(b)); is != want {
		return fmt.Errorf("device %s is open where %s has number %s", is, h.Name, want)
	}
	return nil
}

// with finds one disk of an authorised order again, lifts the kernel's write
// protection from it and from no other, writes it, and puts the protection
// back.
func (a *Agent) with(ctx context.Context, want inventory.DiskID, allow []string, write func(*held) api.Result) (res api.Result) {
	if err := ctx.Err(); err != nil {
		return failed("other", err)
	}
	h, r := a.hold(want, allow)
	if r != nil {
		return failed(r.cause, r)
	}
	defer h.f.Close()
	defer func() {
		// People know the disk by its name.
		res.Error = strings.ReplaceAll(res.Error, h.path(), a.device(h.Disk))
		err := a.c.Seal(h.Name)
		if err == nil {
			return
		}
		a.log.Warn("disk is not read-only again", "disk", h.Name, "err", err)
		if res.OK {
			res.OK, res.Cause, res.Error = false, "disk", fmt.Sprintf("disk %s (%s) is written and cannot be made read-only again: %v", h.Name, h.DiskID, err)
		}
	}()
	if err := a.c.Unseal(h.Name); err != nil {
		return failed("disk", err)
	}
	// Unseal goes by name: it must have been this disk that is writable now.
	if err := a.named(h); err != nil {
		return failed("identity", fmt.Errorf("%s: %v", want, err))
	}
	return write(h)
}

func names(ds []inventory.Disk) string {
	if len(ds) == 0 {
		return "none"
	}
	s := ""
	for i, d := range ds {
		if i > 0 {
			s += ", "
		}
		s += fmt.Sprintf("%s (%s, %d bytes)", d.Name, d.DiskID, d.Size)
	}
	return s
}

// foreignOn lists what on a disk may be somebody's data that this machine
// alone does not own. A disk that cannot be read is an error: nothing found
// must not mean could not look.
func foreignOn(f *os.File) ([]string, error) {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	sigs, err := disk.Signatures(f, size)
	if err != nil && disk.Lost(f) {
		return nil, nil // an erase of it began and failed: what was there is nobody's any more
	}
	if err != nil {
		return nil, err
	}
	var out []string
	for _, s := range sigs {
		if s.Foreign() && !slices.Contains(out, s.Kind) {
			out = append(out, s.Kind)
		}
	}
	return out, nil
}

// signatures names what is on a disk and its partitions, each kind once.
func signatures(r io.ReaderAt, size int64) ([]string, error) {
	sigs, err := disk.Signatures(r, size)
	var out []string
	for _, s := range sigs {
		if !slices.Contains(out, s.Kind) {
			out = append(out, s.Kind)
		}
	}
	return out, err
}

// causeOfWrite is the word for what went wrong while an image was written from
// base: it decides whether a person looks at a cable or at a disk.
func causeOfWrite(err error, base string) string {
	var onTheWay *url.Error
	switch {
	case errors.Is(err, disk.ErrCorrupt):
		return "verify"
	case errors.Is(err, disk.ErrReadBack), errors.Is(err, disk.ErrShort):
		return "disk"
	case errors.As(err, &onTheWay), errors.Is(err, io.ErrUnexpectedEOF), strings.Contains(err.Error(), base), strings.Contains(err.Error(), "nothing arrived"):
		return "network"
	}
	return "disk"
}
