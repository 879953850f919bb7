package agent

import (
	"context"
	"errors"
	"fmt"
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
	if r := a.authorise(ctx, o, destruction{action: api.OrderWipe, disks: w.Disks, allow: w.Allow}); r != nil {
		return failed(r.cause, r)
	}
	res := api.Result{OK: true, Evidence: map[string]string{}}
	for i, want := range w.Disks {
		one := a.with(ctx, want, w.Allow, func(h *held) api.Result {
			began := time.Now()
			got, err := disk.Wipe(ctx, h.path(), level, func(done, total int64) {
				a.progress(o, (float64(i)+frac(done, total))/float64(len(w.Disks)), "wiping "+h.Name+" ("+level.String()+")", rate(done, began))
			})
			// A weaker level than asked is reported and is a failure.
			if got.Reached != 0 {
				res.Wiped = append(res.Wiped, api.Wiped{Disk: want, Level: got.Reached.String(), Took: got.Elapsed})
			}
			if err != nil {
				return failed("disk", err)
			}
			res.Evidence["wipe "+want.String()] = fmt.Sprintf("%s, %d bytes, sample reads as zeros: %t", got.Reached, got.Bytes, got.Zeros)
			return api.Result{OK: true}
		})
		if !one.OK {
			one.Wiped = res.Wiped
			return one
		}
	}
	return res
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
