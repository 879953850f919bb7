package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"

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

// authorise holds a destructive order against everything this machine can see
// for itself (DESIGN rules 2 and 3) and returns the disks as they are called
// now, in the order of d.disks. When it returns them the permit has been used.
// Until then nothing was written; any doubt is a refusal.
func (a *Agent) authorise(ctx context.Context, o api.Order, d destruction) ([]inventory.Disk, *refusal) {
	// Rule 1: the mode comes from how the machine was started.
	if a.c.Mode != Convert {
		return nil, refuse("permit", "this is not a conversion boot (mode %s): no disk can be written", a.c.Mode)
	}
	p, r := a.permitFor(ctx, o, d)
	if r != nil {
		return nil, r
	}
	disks, r := a.findDisks(d)
	if r != nil {
		return nil, r
	}
	if a.state.used(p.ID) {
		// Not even a server that says yes twice makes it count twice.
		return nil, refuse("permit", "permit %s was used before", p.ID)
	}
	err := a.client.call(ctx, http.MethodPost, api.PathPermit, api.PermitUse{ID: p.ID}, nil)
	switch {
	case final(err):
		return nil, refuse("permit", "the server does not let permit %s be used: %v", p.ID, err)
	case err != nil:
		// Whether it is used up now is unknown, so it is not used. The server
		// hands out another one if it is.
		return nil, refuse(undecided, "no answer about permit %s: %v", p.ID, err)
	}
	if err := a.state.use(p.ID); err != nil {
		return nil, refuse("other", "the use of permit %s cannot be noted: %v", p.ID, err)
	}
	return disks, nil
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

// findDisks looks at the disks as they are now and finds each named one,
// exactly once.
func (a *Agent) findDisks(d destruction) ([]inventory.Disk, *refusal) {
	found := a.c.System.Disks()
	var out []inventory.Disk
	for _, want := range d.disks {
		var same []inventory.Disk
		for _, f := range found {
			if want.Same(f.DiskID) {
				same = append(same, f)
			}
		}
		switch {
		case len(same) == 0:
			return nil, refuse("identity", "no disk here is the one with %s and %d bytes; here are: %s", want, want.Size, names(found))
		case len(same) > 1:
			return nil, refuse("identity", "%d disks answer to %s: %s", len(same), want, names(same))
		}
		f := same[0]
		if slices.ContainsFunc(out, func(o inventory.Disk) bool { return o.Name == f.Name }) {
			return nil, refuse("identity", "two disks of the order are the same one here: %s", names(same))
		}
		if f.InUse {
			return nil, refuse("disk", "disk %s (%s) is in use here", f.Name, f.DiskID)
		}
		foreign, err := foreignOn(a.device(f))
		if err != nil {
			return nil, refuse("disk", "disk %s (%s): %v", f.Name, f.DiskID, err)
		}
		for _, k := range foreign {
			if !slices.Contains(d.allow, k) {
				return nil, refuse("foreign-data", "disk %s (%s) holds %s, which the plan does not name", f.Name, f.DiskID, k)
			}
		}
		out = append(out, f)
	}
	return out, nil
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
func foreignOn(dev string) ([]string, error) {
	f, err := os.Open(dev)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Seek(0, 2)
	if err != nil {
		return nil, err
	}
	sigs, err := disk.Signatures(f, size)
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

// open lifts the kernel's write protection from disks and returns how to put
// it back.
func (a *Agent) open(disks []inventory.Disk) (func(), error) {
	var opened []string
	shut := func() {
		for _, n := range opened {
			if err := a.c.Seal(n); err != nil {
				a.log.Warn("disk is not read-only again", "disk", n, "err", err)
			}
		}
	}
	for _, d := range disks {
		if err := a.c.Unseal(d.Name); err != nil {
			shut()
			return nil, err
		}
		opened = append(opened, d.Name)
	}
	return shut, nil
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
