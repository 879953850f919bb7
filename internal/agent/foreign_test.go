package agent

import (
	"slices"
	"testing"

	"smelt/images/disk"
	"smelt/inventory"
)

// What the plan must name and what the agent refuses are the same kinds: a
// kind that only one of them knew would be destroyed unseen, or never.
func TestForeignKindsAgree(t *testing.T) {
	kinds := []string{"zfs_member", "LVM2_member", "linux_raid_member", "isw_raid_member", "ddf_raid_member", "ceph_bluestore",
		"BitLocker", "crypto_LUKS", "bcache", "VMFS_volume_member", "ext4", "xfs", "vfat", "gpt", "dos", "swap", "ntfs", "btrfs"}
	for _, k := range kinds {
		plan := slices.Contains(inventory.Disk{Signatures: []string{k}}.Foreign(), k)
		if agent := (disk.Signature{Kind: k}).Foreign(); agent != plan {
			t.Errorf("%s: foreign to the agent %v, to the plan %v", k, agent, plan)
		}
	}
}

// The words of the plan and of the agent for how thoroughly a disk is wiped are
// the same, in the same order.
func TestWipeLevelsAgree(t *testing.T) {
	for i, word := range inventory.WipeLevels {
		if l, err := disk.ParseLevel(word); err != nil || l != disk.Metadata+disk.Level(i) {
			t.Errorf("%s is level %d, %v", word, l, err)
		}
	}
	if n := disk.Purge - disk.Metadata + 1; int(n) != len(inventory.WipeLevels) {
		t.Errorf("%d levels, %d words", n, len(inventory.WipeLevels))
	}
}
