package inventory

import (
	"fmt"
	"strings"
)

// A DiskID is what stays the same when /dev/sdX changes: the facts by which a
// plan and a permit name a disk, and the agent finds it again.
type DiskID struct {
	Serial string `json:"serial,omitempty"`
	WWN    string `json:"wwn,omitempty"`
	Path   string `json:"path,omitempty"` // bus path from sysfs, for example pci-0000:00:05.0
	Size   int64  `json:"size"`
}

// Same tells whether a disk found now is the disk that was named: sizes are
// equal and known, every fact that names it is found again, and there is such
// a fact. A serial that many disks share (USB bridges answer "0123456789")
// names nothing.
func (d DiskID) Same(found DiskID) bool {
	if d.Size != found.Size || d.Size <= 0 {
		return false
	}
	named := false
	for _, f := range [][2]string{{d.Serial, found.Serial}, {d.WWN, found.WWN}, {d.Path, found.Path}} {
		if f[0] == "" {
			continue
		}
		if f[0] != f[1] {
			return false
		}
		named = named || !Junk(f[0])
	}
	return named
}

// A DiskRule says which disk of a machine an image goes to, when nobody names
// one. The zero value takes the largest internal disk.
type DiskRule struct {
	Bus      string // nvme, sata, ...; empty: any but usb
	Model    string // part of the model's name
	Smallest bool   // the smallest that is large enough, not the largest
}

// Fits tells whether the rule allows a disk. What can be pulled out, or hangs
// on USB, is a stick until a rule or a person says otherwise.
func (r DiskRule) Fits(d Disk) bool {
	if d.Bus == "usb" || d.Removable {
		if r.Bus != "usb" || d.Bus != "usb" {
			return false
		}
	}
	return (r.Bus == "" || r.Bus == d.Bus) && strings.Contains(strings.ToLower(d.Model), strings.ToLower(r.Model))
}

func (r DiskRule) String() string {
	var what []string
	if r.Bus != "" {
		what = append(what, r.Bus)
	}
	if r.Model != "" {
		what = append(what, fmt.Sprintf("%q", r.Model))
	}
	if len(what) == 0 {
		return "internal"
	}
	return strings.Join(what, " ")
}

func (d DiskID) String() string {
	switch {
	case d.Serial != "" && !Junk(d.Serial):
		return "disk with serial " + d.Serial
	case d.WWN != "":
		return "disk with WWN " + d.WWN
	case d.Path != "":
		return "disk at " + d.Path
	}
	return "nameless disk"
}

// Foreign are the signatures on d that say somebody may still need what is on
// it: storage that spans disks or machines, or that is locked. Rule 2 wants
// each of them named by the plan before it is destroyed. images/disk knows the
// same kinds, and a test keeps the two lists alike.
func (d Disk) Foreign() []string {
	var out []string
	for _, s := range d.Signatures {
		switch s {
		case "zfs_member", "LVM2_member", "linux_raid_member", "isw_raid_member", "ddf_raid_member", "ceph_bluestore",
			"BitLocker", "crypto_LUKS", "bcache", "VMFS_volume_member":
			out = append(out, s)
		}
	}
	return out
}
