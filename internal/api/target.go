package api

import (
	"cmp"
	"slices"

	"smelt/inventory"
)

// A Target is a disk that an image could go to. Whoever approves sends Key as
// the parameter "target": the disk that a person saw is then the disk that is
// wiped, or the approval is refused. No rule on the server picks another.
type Target struct {
	inventory.Disk
	Key string // serial, WWN or path: the first that only this disk has
}

// Targets splits the disks of a machine into those that a conversion may write,
// those without foreign data first and then by size, and those it never does:
// removable ones, those on USB, and what the inspection system itself uses.
func Targets(h *inventory.Hardware) (targets []Target, spared []inventory.Disk) {
	if h == nil {
		return nil, nil
	}
	for _, d := range h.Disks {
		key := ""
		for _, of := range []func(inventory.Disk) string{
			func(d inventory.Disk) string { return d.Serial },
			func(d inventory.Disk) string { return d.WWN },
			func(d inventory.Disk) string { return d.Path },
		} {
			// Cheap disks share serials: a key must name one disk.
			same := func(o inventory.Disk) bool { return of(o) == of(d) }
			if of(d) != "" && slices.IndexFunc(h.Disks, same) == lastIndex(h.Disks, same) {
				key = of(d)
				break
			}
		}
		if d.Removable || d.Bus == "usb" || d.InUse || d.Size <= 0 || key == "" {
			spared = append(spared, d)
			continue
		}
		targets = append(targets, Target{d, key})
	}
	slices.SortStableFunc(targets, func(a, b Target) int {
		return cmp.Or(cmp.Compare(len(a.Foreign()), len(b.Foreign())), cmp.Compare(b.Size, a.Size))
	})
	return targets, spared
}

func lastIndex(list []inventory.Disk, f func(inventory.Disk) bool) int {
	for i := len(list) - 1; i >= 0; i-- {
		if f(list[i]) {
			return i
		}
	}
	return -1
}
