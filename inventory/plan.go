package inventory

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// A Plan is what a conversion will do to a node, fixed at approval. Digest
// covers every other field; permits name it.
type Plan struct {
	Run       string   `json:"run"`
	Image     string   `json:"image"` // manifest digest, hexadecimal; none if WipeOnly
	ImageName string   `json:"imageName,omitempty"`
	Profile   string   `json:"profile"`
	Wipe      string   `json:"wipe"` // one of WipeLevels
	Disks     []DiskID `json:"disks"`
	Target    DiskID   `json:"target"`             // the disk the image goes to
	ReadBack  bool     `json:"readBack,omitempty"` // read the whole disk again after writing
	Root      string   `json:"root,omitempty"`     // RootRAM: the image runs from memory, and no disk is named; empty: from Target
	Start     string   `json:"start,omitempty"`    // StartKexec: the first start goes past the firmware; empty: by a restart
	Cluster   string   `json:"cluster,omitempty"`
	Hardware  string   `json:"hardware"` // Hardware.Digest at approval
	Allow     []string `json:"allow,omitempty"`
	WipeOnly  bool     `json:"wipeOnly,omitempty"` // wipe it, and retire it: nothing is written afterwards
	Digest    string   `json:"digest"`
}

// Where a system runs from, and how it is started first.
const (
	RootRAM    = "ram"
	StartKexec = "kexec"
)

// Seal fills Digest from the other fields.
func (p Plan) Seal() Plan {
	p.Digest = ""
	b, err := json.Marshal(p)
	if err != nil {
		panic("inventory: plan does not marshal: " + err.Error())
	}
	sum := sha256.Sum256(b)
	p.Digest = hex.EncodeToString(sum[:])
	return p
}

// Check says why p must not be carried out, or nil: it is changed since Seal,
// or does not name exactly what it will destroy.
func (p Plan) Check() error {
	switch {
	case p.Digest == "" || p.Seal().Digest != p.Digest:
		return errors.New("the plan is not sealed or was changed since")
	case p.Run == "" || (p.Image == "") != p.WipeOnly:
		return errors.New("the plan names no run or no image, or an image for a node that is only wiped")
	case p.Hardware == "":
		return errors.New("the plan does not say for which hardware it was made")
	case p.Root == RootRAM && (len(p.Disks) > 0 || p.Target != DiskID{} || p.WipeOnly):
		return errors.New("the plan runs the image from memory and names a disk all the same")
	case p.Root == RootRAM:
		return nil
	case p.Root != "":
		return fmt.Errorf("the plan says that the system runs from %q", p.Root)
	case len(p.Disks) == 0:
		return errors.New("the plan names no disk")
	case !slices.Contains(p.Disks, p.Target):
		return fmt.Errorf("the image goes to %s, which is not among the disks of the plan", p.Target)
	}
	for i, d := range p.Disks {
		if !d.Same(d) {
			return fmt.Errorf("the plan names a disk by nothing that tells it from another (%s, %d bytes)", d, d.Size)
		}
		for _, o := range p.Disks[:i] {
			if d.Same(o) || o.Same(d) {
				return fmt.Errorf("the plan cannot tell %s from %s", d, o)
			}
		}
	}
	return nil
}
