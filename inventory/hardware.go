package inventory

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"slices"
)

// Hardware is what inspection found on a node. Sizes are bytes unless a field
// says otherwise. A fact that could not be read is the zero value and is named
// in Missing, so that triage can say "unknown" instead of guessing.
type Hardware struct {
	Board    Board    `json:"board"`
	Firmware Firmware `json:"firmware"`
	CPU      CPU      `json:"cpu"`
	Memory   Memory   `json:"memory"`
	Disks    []Disk   `json:"disks"`
	NICs     []NIC    `json:"nics"`
	GPUs     []GPU    `json:"gpus"`
	PCI      []PCI    `json:"pci,omitempty"`
	HasBMC   bool     `json:"hasBMC"`           // SMBIOS type 38 or /dev/ipmi0 present
	BMCMAC   *MAC     `json:"bmcMAC,omitempty"` // as the BMC itself tells over IPMI or Redfish
	Missing  []string `json:"missing,omitempty"`
}

// Board is the SMBIOS identity (types 0 to 3). Mining boards often carry
// factory strings that name no machine: see Junk and Identify.
type Board struct {
	SystemVendor  string `json:"systemVendor,omitempty"`
	SystemProduct string `json:"systemProduct,omitempty"`
	SystemSerial  string `json:"systemSerial,omitempty"`
	SystemUUID    string `json:"systemUUID,omitempty"`
	Vendor        string `json:"vendor,omitempty"`
	Product       string `json:"product,omitempty"`
	Serial        string `json:"serial,omitempty"`
	ChassisSerial string `json:"chassisSerial,omitempty"`
	BIOSVendor    string `json:"biosVendor,omitempty"`
	BIOSVersion   string `json:"biosVersion,omitempty"`
}

// Firmware is how the machine was started.
type Firmware struct {
	UEFI bool   `json:"uefi"`
	Arch string `json:"arch,omitempty"` // GOARCH word
}

// CPU describes all sockets together.
type CPU struct {
	Model   string   `json:"model,omitempty"`
	Cores   int      `json:"cores"` // physical
	Threads int      `json:"threads"`
	Flags   []string `json:"flags,omitempty"` // the ones triage asks for: avx avx2 avx512f aes
}

// Memory is what the kernel has, and what the boards say is fitted.
type Memory struct {
	Total int64  `json:"total"` // MemTotal of /proc/meminfo
	DIMMs []DIMM `json:"dimms,omitempty"`
}

// DIMM is one SMBIOS type 17 record that is fitted.
type DIMM struct {
	Locator string `json:"locator,omitempty"`
	Size    int64  `json:"size"`
	Serial  string `json:"serial,omitempty"`
	Part    string `json:"part,omitempty"`
}

// Disk is a whole block device. Name (sda) is for people only: plans name a
// disk by its DiskID.
type Disk struct {
	DiskID
	Name       string   `json:"name"`
	Model      string   `json:"model,omitempty"`
	Bus        string   `json:"bus,omitempty"` // nvme, sata, virtio, usb, ...
	Rotational bool     `json:"rotational,omitempty"`
	Removable  bool     `json:"removable,omitempty"`
	InUse      bool     `json:"inUse,omitempty"`      // mounted, swap or held
	Signatures []string `json:"signatures,omitempty"` // gpt, ext4, zfs_member, LVM2_member, ceph_bluestore, linux_raid_member, BitLocker
	Erase      string   `json:"erase,omitempty"`      // best level of wipe that the drive itself offers: purge, secure, none; empty: not known
}

// Offers tells whether the drive itself can be wiped to a level, as far as is
// known: the levels below secure are ours to do on any.
func (d Disk) Offers(level string) bool {
	want := slices.Index(WipeLevels, level)
	if d.Erase == "" || want < slices.Index(WipeLevels, "secure") {
		return true
	}
	return slices.Index(WipeLevels, d.Erase) >= want
}

// NIC is one network interface with a permanent address.
type NIC struct {
	Name   string `json:"name"`
	MAC    MAC    `json:"mac"`
	Driver string `json:"driver,omitempty"`
	Speed  int    `json:"speed,omitempty"` // Mbit/s, 0 unknown
	Link   bool   `json:"link,omitempty"`
	PCI    string `json:"pci,omitempty"`
}

// PCILink is a PCIe link as one end of it reports it (sysfs).
type PCILink struct {
	MaxWidth     int     `json:"maxWidth,omitempty"`
	MaxSpeed     float64 `json:"maxSpeed,omitempty"` // GT/s
	CurrentWidth int     `json:"currentWidth,omitempty"`
	CurrentSpeed float64 `json:"currentSpeed,omitempty"`
}

// PCI is one PCI function that triage or burn-in cares for.
type PCI struct {
	Address string  `json:"address"` // 0000:01:00.0
	Class   string  `json:"class"`   // six hexadecimal digits, 030000
	Vendor  string  `json:"vendor"`  // four hexadecimal digits
	Device  string  `json:"device"`
	SubVen  string  `json:"subsystemVendor,omitempty"`
	SubDev  string  `json:"subsystemDevice,omitempty"`
	Driver  string  `json:"driver,omitempty"`
	Link    PCILink `json:"link"`
	Port    *Port   `json:"port,omitempty"` // the upstream port, nil on a root bus
}

// Port is the upstream port of a device: the other end of its link. NVML
// cannot see an x1 riser, the port can (its MaxWidth is what the slot has).
type Port struct {
	Address string  `json:"address"`
	Slot    string  `json:"slot,omitempty"` // physical slot number, if the port has one
	Link    PCILink `json:"link"`
}

// GPU is a graphics or 3D controller. On a lab site Model and UUID may stand
// for a card that is not there: Simulated is then true and every result shown
// from it says so.
type GPU struct {
	PCI
	Model     string `json:"model,omitempty"`
	UUID      string `json:"uuid,omitempty"`
	VRAM      int64  `json:"vram,omitempty"`
	Slot      string `json:"slot,omitempty"` // label a technician can find
	Simulated bool   `json:"simulated,omitempty"`
}

// LinkWidth is the width this GPU can really use: the smaller of what the card
// and what its slot can do, 0 when neither is known. Of a simulated card only
// the slot counts: QEMU's endpoints all claim one lane.
func (g GPU) LinkWidth() int {
	w := g.Link.MaxWidth
	if g.Simulated {
		w = 0
	}
	if g.Port != nil && g.Port.Link.MaxWidth > 0 && (w == 0 || g.Port.Link.MaxWidth < w) {
		w = g.Port.Link.MaxWidth
	}
	return w
}

// Digest names this hardware: a report and a plan are valid only for the
// hardware they were made on. What may change from boot to boot is left out
// (link state, names, use, order of discovery, sticks and virtual media), and
// so is what differs between two kernels on one machine: installed memory is
// counted by its modules, or else by the next whole GiB above what the kernel
// left for itself.
func (h Hardware) Digest() string {
	type gpu struct{ Addr, Vendor, Device, Model, UUID string }
	type disk struct {
		Serial, WWN string
		Size        int64
	}
	var k struct {
		Board Board
		CPU   string
		GiB   int64
		DIMMs []DIMM
		GPUs  []gpu
		Disks []disk
		MACs  []string
	}
	k.Board, k.CPU, k.DIMMs = h.Board, h.CPU.Model, slices.Clone(h.Memory.DIMMs)
	if len(k.DIMMs) == 0 {
		k.GiB = (h.Memory.Total + 1<<30 - 1) >> 30
	}
	for _, g := range h.GPUs {
		k.GPUs = append(k.GPUs, gpu{g.Address, g.Vendor, g.Device, g.Model, g.UUID})
	}
	for _, d := range h.Disks {
		if !d.Removable {
			k.Disks = append(k.Disks, disk{d.Serial, d.WWN, d.Size})
		}
	}
	for _, n := range h.NICs {
		k.MACs = append(k.MACs, n.MAC.String())
	}
	slices.SortFunc(k.DIMMs, func(a, b DIMM) int {
		return cmp.Or(cmp.Compare(a.Locator, b.Locator), cmp.Compare(a.Serial, b.Serial), cmp.Compare(a.Part, b.Part), cmp.Compare(a.Size, b.Size))
	})
	slices.SortFunc(k.GPUs, func(a, b gpu) int { return cmp.Or(cmp.Compare(a.Addr, b.Addr), cmp.Compare(a.UUID, b.UUID)) })
	slices.SortFunc(k.Disks, func(a, b disk) int {
		return cmp.Or(cmp.Compare(a.Serial, b.Serial), cmp.Compare(a.WWN, b.WWN), cmp.Compare(a.Size, b.Size))
	})
	slices.Sort(k.MACs)
	b, err := json.Marshal(k)
	if err != nil {
		panic("inventory: hardware does not marshal: " + err.Error()) // plain structs always do
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// Salvage is what was saved from the machine before its first wipe.
type Salvage struct {
	MinerOS    string            `json:"minerOS,omitempty"` // HiveOS, RaveOS, ...
	WorkerName string            `json:"workerName,omitempty"`
	RigID      string            `json:"rigID,omitempty"`
	Pools      []string          `json:"pools,omitempty"` // hosts that it mined at; of a wallet nothing is kept
	Files      map[string]string `json:"files,omitempty"` // path -> content with secrets redacted
}

// Redacted stands in the files of a Salvage where something was taken out.
const Redacted = "REDACTED"
