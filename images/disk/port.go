package disk

import (
	"fmt"
	"io"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A port is how a drive is spoken to while it is wiped: as a row of bytes, and
// in its own language. A device file is one. The drives of the tests, some of
// which lie, are the others.
type port interface {
	// Reads and writes are of whole sectors and reach the drive, not a cache.
	io.ReaderAt
	io.WriterAt
	Sync() error
	// discard says that nothing in a range is needed. EOPNOTSUPP: it cannot be
	// told.
	discard(off, n int64) error
	// namespace is the NVMe namespace behind the device. ENOTTY: it is no NVMe
	// drive.
	namespace() (uint32, error)
	// nvme sends an admin command and waits for its end. A drive that refuses
	// it answers an nvmeStatus.
	nvme(c *nvmeCommand, data []byte) error
	// scsi sends a command and waits for its end. An answer other than GOOD is
	// in the command, not in the error. ENOTTY: the drive speaks no SCSI.
	scsi(c *scsiCommand) error
	// reread makes the kernel forget partitions that are gone.
	reread()
}

// blockPort is the port of a device, or of a file that stands for one.
type blockPort struct{ *device }

func (p blockPort) discard(off, n int64) error {
	if !p.block {
		return p.punch(off, n)
	}
	r := [2]uint64{uint64(off), uint64(n)}
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, p.Fd(), unix.BLKDISCARD, uintptr(unsafe.Pointer(&r))); e != 0 {
		return e
	}
	return nil
}

func (p blockPort) namespace() (uint32, error) {
	n, err := unix.IoctlRetInt(int(p.Fd()), nvmeIoctlID)
	return uint32(n), err
}

func (p blockPort) nvme(c *nvmeCommand, data []byte) error {
	var pin runtime.Pinner
	defer pin.Unpin()
	if len(data) > 0 {
		pin.Pin(&data[0])
		c.addr, c.dataLen = uint64(uintptr(unsafe.Pointer(&data[0]))), uint32(len(data))
	}
	status, _, e := unix.Syscall(unix.SYS_IOCTL, p.Fd(), nvmeIoctlAdmin, uintptr(unsafe.Pointer(c)))
	if e != 0 {
		return e
	}
	if status != 0 {
		return nvmeStatus(status)
	}
	return nil
}

// sgHeader is struct sg_io_hdr of scsi/sg.h.
type sgHeader struct {
	interfaceID             int32
	direction               int32
	cdbLen, senseMax        uint8
	iovecs                  uint16
	dataLen                 uint32
	data, cdb, sense        unsafe.Pointer
	timeout, flags          uint32
	packID                  int32
	user                    unsafe.Pointer
	status, masked, message uint8
	senseLen                uint8
	hostStatus, driver      uint16
	resid                   int32
	duration, info          uint32
}

const (
	sgIO       = 0x2285 // SG_IO
	sgNone     = -1     // SG_DXFER_NONE
	sgToDrive  = -2     // SG_DXFER_TO_DEV
	sgToMemory = -3     // SG_DXFER_FROM_DEV
)

func (p blockPort) scsi(c *scsiCommand) error {
	if !p.block {
		return unix.ENOTTY
	}
	var pin runtime.Pinner
	defer pin.Unpin()
	sense := make([]byte, 64)
	pin.Pin(&c.cdb[0])
	pin.Pin(&sense[0])
	h := sgHeader{
		interfaceID: 'S', direction: sgNone, cdbLen: uint8(len(c.cdb)), senseMax: uint8(len(sense)),
		cdb: unsafe.Pointer(&c.cdb[0]), sense: unsafe.Pointer(&sense[0]), timeout: uint32(c.timeout.Milliseconds()),
	}
	if len(c.data) > 0 {
		pin.Pin(&c.data[0])
		h.direction, h.data, h.dataLen = sgToMemory, unsafe.Pointer(&c.data[0]), uint32(len(c.data))
		if c.out {
			h.direction = sgToDrive
		}
	}
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, p.Fd(), sgIO, uintptr(unsafe.Pointer(&h))); e != 0 {
		return e
	}
	if h.hostStatus != 0 {
		return fmt.Errorf("the drive does not answer (host status %#x)", h.hostStatus)
	}
	c.status, c.sense = h.status, sense[:min(int(h.senseLen), len(sense))]
	return nil
}

func (p blockPort) reread() {
	if p.block {
		// A disk without partition scanning refuses; nothing depends on it.
		unix.IoctlSetInt(int(p.Fd()), unix.BLKRRPART, 0)
	}
}

var _ port = blockPort{}

// wholeSectors reads what is not aligned from what is.
type wholeSectors struct {
	port   port
	sector int64
	size   int64
}

// ReadAt reads through a buffer of whole sectors.
func (w wholeSectors) ReadAt(b []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(b)) > w.size {
		return 0, io.EOF
	}
	from := off / w.sector * w.sector
	to := (off + int64(len(b)) + w.sector - 1) / w.sector * w.sector
	buf := alignedBuffer(int(min(to, w.size) - from))
	if n, err := w.port.ReadAt(buf, from); err != nil && (err != io.EOF || n < len(buf)) {
		return 0, err
	}
	return copy(b, buf[off-from:]), nil
}
