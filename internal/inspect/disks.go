package inspect

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"smelt/inventory"
)

// diskName is what a whole disk is called: SCSI and SATA, NVMe namespaces,
// virtio, Xen, eMMC. Loop, RAM, optical and stacked devices are no disks, nor
// are the boot areas of eMMC.
var diskName = regexp.MustCompile(`^(sd[a-z]+|nvme\d+n\d+|vd[a-z]+|xvd[a-z]+|mmcblk\d+)$`)

// Disks lists the whole disks as they are now. The agent calls it again right
// before it writes.
func (s System) Disks() []inventory.Disk {
	used := s.used()
	var out []inventory.Disk
	for _, name := range s.names("sys/block") {
		if !diskName.MatchString(name) {
			continue
		}
		d := s.disk(name)
		if d.Size == 0 {
			continue // a reader without a card
		}
		parts := s.partitions(name)
		d.InUse = s.inUse(used, name) || slices.ContainsFunc(parts, func(p string) bool { return s.inUse(used, p) })
		if s.Signatures != nil {
			a := s.ask(d)
			if a.err != nil {
				a.sigs = append(a.sigs, Unreadable)
			}
			d.Signatures, d.Erase = a.sigs, a.erase
		}
		out = append(out, d)
	}
	// Kernel names change between boots and kernels; where a disk is plugged in
	// does not.
	slices.SortStableFunc(out, func(a, b inventory.Disk) int { return strings.Compare(a.Path, b.Path) })
	return out
}

// Unreadable stands among the signatures of a disk whose contents cannot be
// looked at: nothing found must not mean could not look.
const Unreadable = "unreadable"

func (s System) disk(name string) inventory.Disk {
	dir := filepath.Join("sys/block", name)
	d := inventory.Disk{Name: name}
	if n, ok := s.number(dir, "size"); ok && n > 0 && n < 1<<53 {
		d.Size = n * 512 // always 512, whatever the disk's own block size is
	}
	d.Model = strings.Join(strings.Fields(s.line(dir, "device/model")), " ")
	d.Rotational = s.line(dir, "queue/rotational") == "1"
	d.Removable = s.line(dir, "removable") == "1"
	real, err := s.link(dir)
	if err != nil {
		return d
	}
	d.Path, d.Bus = s.busPath(real)
	switch d.Bus {
	case "nvme":
		d.Serial, d.WWN = s.line(dir, "device/serial"), s.line(dir, "wwid")
	case "virtio":
		d.Serial = s.line(dir, "serial")
	case "mmc":
		d.Serial = s.line(dir, "device/serial")
	default:
		if b, err := s.read(dir, "device/vpd_pg80"); err == nil {
			d.Serial = vpdSerial(b)
		}
		d.WWN = s.line(dir, "device/wwid")
		if d.Serial == "" && d.Bus == "usb" {
			d.Serial = s.usbSerial(real)
		}
	}
	// Only names that a maker gave out; "t10.ATA ..." repeats model and serial.
	if !strings.HasPrefix(d.WWN, "naa.") && !strings.HasPrefix(d.WWN, "eui.") && !strings.HasPrefix(d.WWN, "uuid.") {
		d.WWN = ""
	}
	return d
}

// vpdSerial reads the Unit Serial Number page (SPC-4 7.8.17).
func vpdSerial(b []byte) string {
	if len(b) < 4 || b[1] != 0x80 {
		return ""
	}
	n := int(binary.BigEndian.Uint16(b[2:]))
	return clean(string(b[4:min(4+n, len(b))]))
}

func (s System) usbSerial(devpath string) string {
	for p := devpath; len(p) > len("/sys/devices"); p = filepath.Dir(p) {
		if s.exists(p, "idVendor") {
			return s.line(p, "serial")
		}
	}
	return ""
}

var (
	ataPort   = regexp.MustCompile(`/(ata\d+)/`)
	scsiAddr  = regexp.MustCompile(`/(host(\d+))/.*/(\d+):(\d+):(\d+):(\d+)/block/`)
	usbPort   = regexp.MustCompile(`/usb\d+/(?:[^/]+/)*?\d+-([0-9.]+)/[^/]*:\d+\.\d+/`)
	nvmeSpace = regexp.MustCompile(`/nvme\d+(?:c\d+)?n(\d+)$`)
)

// busPath makes a name for where a disk is plugged in, like udev's path_id: it
// holds no number that the kernel counts up while it finds devices.
func (s System) busPath(devpath string) (path, bus string) {
	pci := lastPCI(devpath)
	path = "platform"
	if pci != "" {
		path = "pci-" + pci
	}
	switch {
	case strings.Contains(devpath, "/usb") && usbPort.MatchString(devpath):
		m := usbPort.FindStringSubmatch(devpath)
		return path + "-usb-" + m[1] + lun(devpath), "usb"
	case ataPort.MatchString(devpath):
		port := ataPort.FindStringSubmatch(devpath)[1]
		up := devpath[:strings.Index(devpath, "/"+port+"/")]
		n := s.line(up, port, "ata_port", port, "port_no")
		if n == "" {
			n = strings.TrimPrefix(port, "ata")
		}
		return path + "-ata-" + n + lun(devpath), "sata"
	case strings.Contains(devpath, "/nvme"):
		if m := nvmeSpace.FindStringSubmatch(devpath); m != nil {
			path += "-nvme-" + m[1]
		}
		return path, "nvme"
	case scsiAddr.MatchString(devpath):
		m := scsiAddr.FindStringSubmatch(devpath)
		host := s.hostOffset(devpath, m[1], m[2])
		bus = "scsi"
		switch {
		case strings.Contains(devpath, "/end_device-"):
			bus = "sas"
		case strings.Contains(devpath, "/virtio"):
			bus = "virtio-scsi"
		}
		return path + "-scsi-" + host + ":" + m[4] + ":" + m[5] + ":" + m[6], bus
	case strings.Contains(devpath, "/virtio"):
		return path, "virtio"
	case strings.Contains(devpath, "/mmc_host/"):
		return path + "-mmc", "mmc"
	}
	return path, ""
}

func lun(devpath string) string {
	m := scsiAddr.FindStringSubmatch(devpath)
	if m == nil || m[4] == "0" && m[5] == "0" && m[6] == "0" {
		return ""
	}
	return "-" + m[4] + ":" + m[5] + ":" + m[6]
}

// hostOffset counts a SCSI host from the first host of its controller: host
// numbers themselves depend on the order of discovery.
func (s System) hostOffset(devpath, host, num string) string {
	n, err := strconv.Atoi(num)
	if err != nil {
		return "0"
	}
	up := devpath[:strings.Index(devpath, "/"+host+"/")]
	first := n
	for _, e := range s.names(up) {
		if v, err := strconv.Atoi(strings.TrimPrefix(e, "host")); err == nil && strings.HasPrefix(e, "host") && v < first {
			first = v
		}
	}
	return strconv.Itoa(n - first)
}

// partitions lists the partitions the kernel sees on a disk.
func (s System) partitions(disk string) []string {
	var out []string
	for _, n := range s.names("sys/block", disk) {
		if strings.HasPrefix(n, disk) && s.exists("sys/block", disk, n, "partition") {
			out = append(out, n)
		}
	}
	return out
}

// lookFor bounds the look at one disk: a dying one answers after minutes of
// retries, and the machine must be heard of before that.
const lookFor = 20 * time.Second

// answer is what a disk says of itself.
type answer struct {
	sigs  []string
	err   error // of reading them
	erase string
}

func (s System) ask(d inventory.Disk) answer {
	f, err := os.Open(s.path("dev", d.Name))
	if err != nil {
		return answer{err: err}
	}
	c := make(chan answer, 1)
	go func() {
		defer f.Close() // the read may outlive us; so does its file
		var a answer
		if s.Erase != nil {
			a.erase = s.Erase(f)
		}
		a.sigs, a.err = s.Signatures(f, d.Size)
		c <- a
	}()
	select {
	case a := <-c:
		return a
	case <-time.After(lookFor):
		return answer{err: fmt.Errorf("no answer within %v", lookFor)}
	}
}

// used lists the device numbers and names that are mounted or swapped to.
func (s System) used() map[string]bool {
	out := map[string]bool{}
	if b, err := s.read("proc/self/mountinfo"); err == nil {
		for l := range strings.Lines(string(b)) {
			if f := strings.Fields(l); len(f) > 2 {
				out[f[2]] = true // major:minor
			}
			// btrfs and others mount under a number of their own: take the source too.
			if _, rest, ok := strings.Cut(l, " - "); ok {
				if f := strings.Fields(rest); len(f) > 1 && strings.HasPrefix(f[1], "/dev/") {
					out[strings.TrimPrefix(f[1], "/dev/")] = true
				}
			}
		}
	}
	if b, err := s.read("proc/swaps"); err == nil {
		for l := range strings.Lines(string(b)) {
			if f := strings.Fields(l); len(f) > 0 && strings.HasPrefix(f[0], "/dev/") {
				out[strings.TrimPrefix(f[0], "/dev/")] = true
			}
		}
	}
	return out
}

func (s System) inUse(used map[string]bool, name string) bool {
	dir := filepath.Join("sys/class/block", name)
	return used[name] || used[s.line(dir, "dev")] || len(s.names(dir, "holders")) > 0
}
