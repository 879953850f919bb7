package convert

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"smelt/inventory"
	"smelt/inventory/triage"
)

// approval is what whoever approves may choose; empty fields follow spec and class.
type approval struct {
	run     string
	image   string
	profile string
	wipe    string
	target  string   // serial, WWN or path of the disk the image goes to
	disks   string   // "all": wipe every internal disk, not only the target
	allow   []string // foreign signatures that may be destroyed
	force   string   // reason to convert against the verdict
	seen    string   // digest of the hardware that whoever approves looked at
	only    bool     // wipe it and retire it
	level   string   // of the wipe, decided
}

func approvalOf(id string, node inventory.NodeID, p map[string]string) approval {
	// The run follows from the intent: carrying it out twice is one run.
	sum := sha256.Sum256([]byte(id + "\x00" + string(node)))
	a := approval{run: "r" + hex.EncodeToString(sum[:5]), image: p["image"], profile: p["profile"], wipe: p["wipe"],
		target: p["target"], disks: p["disks"], force: p["force"], seen: p["hardware"]}
	if s := p["allow"]; s != "" {
		a.allow = strings.Split(s, ",")
	}
	return a
}

// plan says what a conversion of the node would do, or why there can be none.
func (t *turn) plan(a approval) (inventory.Plan, error) {
	n := t.n
	class := t.Site.Classes[n.Spec.Class]
	switch {
	case n.Hardware == nil:
		return inventory.Plan{}, fmt.Errorf("it was never inspected")
	case n.Verdict == nil && !a.only:
		return inventory.Plan{}, fmt.Errorf("it has no verdict yet")
	case !a.only && n.Verdict.Answer != triage.Convert && a.force == "":
		return inventory.Plan{}, fmt.Errorf("its verdict is %s; to convert it all the same give force with a reason", n.Verdict.Answer)
	case a.seen != "" && a.seen != n.Hardware.Digest():
		return inventory.Plan{}, fmt.Errorf("its hardware is not what was looked at any more: look again")
	case busyWith(n, t.at) != "":
		return inventory.Plan{}, errors.New(busyWith(n, t.at))
	case n.Spec.Protect:
		return inventory.Plan{}, fmt.Errorf("it is protected in site.yaml")
	case n.Hold != nil:
		return inventory.Plan{}, fmt.Errorf("it is held by %s: %s", n.Hold.Owner, n.Hold.Reason)
	}
	if own, err := t.installedSaid(); err != nil {
		return inventory.Plan{}, err
	} else if own {
		return inventory.Plan{}, fmt.Errorf("what is known of its disks is what the system on one of them said: inspect it again: smelt node reinspect %s", n.ID)
	}
	p := inventory.Plan{Run: a.run, Allow: a.allow, Hardware: n.Hardware.Digest(), Wipe: cmp.Or(a.wipe, class.Wipe, "discard"), WipeOnly: a.only}
	if !slices.Contains(inventory.WipeLevels, p.Wipe) {
		return inventory.Plan{}, fmt.Errorf("wipe %q: want one of %s", p.Wipe, strings.Join(inventory.WipeLevels, ", "))
	}
	a.level = p.Wipe
	if a.only {
		var err error
		if p.Target, p.Disks, err = choose(n.Hardware.Disks, a, inventory.DiskRule{}, 0); err != nil {
			return inventory.Plan{}, err
		}
		return p.Seal(), nil
	}
	p.Cluster = t.Site.Cluster
	p.ImageName = cmp.Or(a.image, n.Spec.Image, class.Image)
	p.Profile = cmp.Or(a.profile, n.Spec.Profile, class.Profile)
	if p.ImageName == "" {
		return inventory.Plan{}, fmt.Errorf("neither it nor its class names an image; give image=NAME")
	}
	v, err := t.variantFor(p.ImageName, a.force != "")
	if err != nil {
		return inventory.Plan{}, err
	}
	p.Image = v.digest.String()
	if v.name == p.ImageName {
		p.ImageName = v.stack.Image // with its variant
	}
	if p.Profile == "" {
		return inventory.Plan{}, fmt.Errorf("neither it nor its class names a burn-in profile; give profile=NAME")
	}
	if _, ok := t.Site.Profiles[p.Profile]; !ok {
		return inventory.Plan{}, fmt.Errorf("there is no burn-in profile %q", p.Profile)
	}
	if got := n.Hardware.Firmware.Arch; got != "" && got != v.arch {
		return inventory.Plan{}, fmt.Errorf("image %s is for %s, it is %s", p.ImageName, v.arch, got)
	}
	if p.Root = cmp.Or(n.Spec.Root, class.Root); p.Root == inventory.RootRAM {
		return t.planRAM(p, v.digest)
	}
	p.Start = class.Start
	p.ReadBack = class.ReadBack
	if p.Target, p.Disks, err = choose(n.Hardware.Disks, a, class.Disk, v.size); err != nil {
		return inventory.Plan{}, err
	}
	return p.Seal(), nil
}

// installedSaid tells whether the last inspection came from a system on the
// node's own disk: which disk is in use there says nothing about which may be
// written.
func (t *turn) installedSaid() (bool, error) {
	h, err := t.all()
	if err != nil {
		return false, err
	}
	for i := len(h) - 1; i >= 0; i-- {
		if h[i].Kind == inventory.KindInspected {
			return h[i].Evidence["mode"] == modeInstalled, nil
		}
	}
	return false, nil
}

// choose picks the disk for the image and the disks to wipe: the one that is
// named, or by the class's rule, which is the largest internal one unless it
// says otherwise. A removable disk or one on USB is taken only when it is named,
// or when the rule wants USB. A disk in use is no disk to pass over: the plan
// would silently take another.
func choose(disks []inventory.Disk, a approval, rule inventory.DiskRule, size int64) (target inventory.DiskID, wipe []inventory.DiskID, err error) {
	named := func(d inventory.Disk) bool {
		return a.target != "" && (a.target == d.Serial || a.target == d.WWN || a.target == d.Path)
	}
	var fit []inventory.Disk
	for _, d := range disks {
		stick := (d.Removable || d.Bus == "usb") && !rule.Fits(d)
		if stick && !named(d) || d.Size <= 0 || !d.Same(d.DiskID) {
			continue
		}
		if d.InUse && (a.target == "" || named(d) || a.disks == "all") {
			return target, nil, fmt.Errorf("its %s was in use when it was inspected: inspect it again: smelt node reinspect", d.DiskID)
		}
		fit = append(fit, d)
	}
	// Stable, by size and then by name of the fact: the same disks give the same plan.
	slices.SortStableFunc(fit, func(x, y inventory.Disk) int {
		bySize := cmp.Compare(y.Size, x.Size)
		if rule.Smallest {
			// What is too small for the image comes last.
			bySize = cmp.Or(cmp.Compare(small(x, size), small(y, size)), -bySize)
		}
		return cmp.Or(bySize, cmp.Compare(x.Path, y.Path), cmp.Compare(x.Serial, y.Serial))
	})
	takes := func(d inventory.Disk) bool { return named(d) || a.target == "" && rule.Fits(d) }
	i := slices.IndexFunc(fit, takes)
	switch {
	case i < 0 && a.target != "":
		return target, nil, fmt.Errorf("no disk that could be written is named %q", a.target)
	case i < 0 && len(fit) > 0:
		return target, nil, fmt.Errorf("it has no %s disk, which its class wants for the image; name another with target", rule)
	case i < 0:
		return target, nil, fmt.Errorf("it has no internal disk that could be written")
	case a.target != "" && slices.IndexFunc(fit[i+1:], named) >= 0:
		return target, nil, fmt.Errorf("it has several disks named %q: name the one by its path", a.target)
	}
	if fit[i].Size < size {
		return target, nil, fmt.Errorf("its %s has %d bytes, the image needs %d", fit[i].DiskID, fit[i].Size, size)
	}
	chosen := fit[i : i+1]
	if a.disks == "all" {
		chosen = fit
	}
	for _, d := range chosen {
		for _, s := range d.Foreign() {
			if !slices.Contains(a.allow, s) {
				return target, nil, fmt.Errorf("its %s carries %s: if that may be destroyed, give allow=%s", d.DiskID, s, s)
			}
		}
		if level := a.level; !d.Offers(level) {
			return target, nil, fmt.Errorf("its %s cannot be wiped to %s, the drive's own erase reaches %s: give wipe=overwrite, or take it out and destroy it", d.DiskID, level, d.Erase)
		}
		wipe = append(wipe, d.DiskID)
	}
	return fit[i].DiskID, wipe, nil
}

// small is 1 for a disk that is too small.
func small(d inventory.Disk, size int64) int {
	if d.Size < size {
		return 1
	}
	return 0
}
