package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"smelt/images/disk"
	"smelt/internal/api"
	"smelt/inventory"
)

// device is the path of a disk.
func (a *Agent) device(d inventory.Disk) string {
	return filepath.Join("/", a.c.System.Root, "dev", d.Name)
}

// wipe clears the named disks, one after the other.
func (a *Agent) wipe(ctx context.Context, o api.Order) api.Result {
	w := o.Wipe
	if w == nil {
		return failed("other", errors.New("the order says nothing about what to wipe"))
	}
	level, err := disk.ParseLevel(w.Level)
	if err != nil {
		return failed("other", err)
	}
	d := destruction{action: api.OrderWipe, disks: w.Disks, allow: w.Allow}
	if r := a.settle(ctx, o, d); r != nil {
		return failed(r.cause, r)
	}
	if r := a.authorise(ctx, o, d); r != nil {
		return failed(r.cause, r)
	}
	res := api.Result{OK: true}
	for i, want := range w.Disks {
		one := a.with(ctx, want, w.Allow, func(h *held) api.Result {
			began := time.Now()
			got, err := disk.Wipe(ctx, h.path(), level, func(done, total int64) {
				a.progress(o, (float64(i)+frac(done, total))/float64(len(w.Disks)), "wiping "+h.Name+" ("+level.String()+")", rate(done, began))
			})
			res.Wiped = append(res.Wiped, inventory.Wiped{
				Disk: want, Model: h.Model, Bus: h.Bus, Level: got.Reached.String(), NIST: got.Reached.NIST(), Method: got.Method,
				Notes: got.Notes, Bytes: got.Bytes, Proofs: got.Proofs, Zeros: got.Zeros, Took: got.Elapsed,
			})
			if err != nil {
				return failed(causeOfWipe(err), err)
			}
			return api.Result{OK: true}
		})
		if !one.OK {
			one.Wiped = res.Wiped
			return one
		}
	}
	return res
}

// causeOfWipe is the word for why a disk is not wiped as it should be. A
// weaker level than asked is a failure like any other.
func causeOfWipe(err error) string {
	switch {
	case errors.Is(err, disk.ErrFrozen):
		return "frozen"
	case errors.Is(err, disk.ErrWeaker):
		return "level"
	}
	return "disk"
}

// tooLong is a wait after which the permit of the order is too old to begin.
const tooLong = time.Minute

// settle waits for drives that erase themselves since before a loss of power:
// they show nobody what is on them until they are done, which may take hours.
// It changes no data; what it finds out is looked at again by authorise, and
// like that it begins with an order that is allowed.
func (a *Agent) settle(ctx context.Context, o api.Order, d destruction) *refusal {
	if a.c.Mode != Convert {
		return nil // authorise says so
	}
	if _, r := a.permitFor(ctx, o, d); r != nil {
		return r
	}
	began := time.Now()
	for i, want := range d.disks {
		found, r := a.find(want)
		if r != nil {
			return r
		}
		f, err := os.Open(a.device(found))
		if err != nil {
			return refuse("disk", "disk %s (%s): %v", found.Name, found.DiskID, err)
		}
		err = disk.Settle(ctx, f, func(done, total int64) {
			a.progress(o, (float64(i)+frac(done, total))/float64(len(d.disks)), found.Name+" still erases itself", 0)
		})
		_ = f.Close()
		if err != nil {
			return refuse("disk", "disk %s (%s): %v", found.Name, found.DiskID, err)
		}
	}
	if waited := time.Since(began); waited > tooLong {
		return refuse(undecided, "the disks erased themselves for %s: the permit is too old", waited.Round(time.Second))
	}
	return nil
}

func frac(done, total int64) float64 {
	if total <= 0 {
		return 0
	}
	return float64(done) / float64(total)
}

func rate(done int64, since time.Time) float64 {
	if s := time.Since(since).Seconds(); s > 0.2 {
		return float64(done) / s
	}
	return 0
}
