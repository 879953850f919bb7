package disk

import (
	"context"
	"encoding/binary"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Admin commands of the NVM Express base specification 1.4, section 5, through
// linux/nvme_ioctl.h.
const (
	nvmeIoctlID    = 0x4e40     // NVME_IOCTL_ID: namespace of the device
	nvmeIoctlAdmin = 0xc0484e41 // NVME_IOCTL_ADMIN_CMD
	nvmeIdentify   = 0x06
	nvmeFormat     = 0x80

	// The largest drives erase for hours; the command must not be cut off.
	nvmeFormatTimeout = 6 * 60 * 60 * 1000 // ms
)

// nvmeCommand is struct nvme_passthru_cmd.
type nvmeCommand struct {
	opcode, flags               uint8
	_                           uint16
	nsid, cdw2, cdw3            uint32
	metadata, addr              uint64
	metadataLen, dataLen        uint32
	cdw10, cdw11, cdw12, cdw13  uint32
	cdw14, cdw15, timeout, resu uint32
}

// secureErase is the drive's own erase: Format NVM with a secure erase
// setting. Other drives are refused.
func (d *device) secureErase(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	nsid, err := unix.IoctlRetInt(int(d.Fd()), nvmeIoctlID)
	if err != nil {
		return fmt.Errorf("%w: only NVMe drives have an erase command that is supported; choose overwrite or discard", ErrWeaker)
	}
	identify := func(cns, nsid uint32) ([]byte, error) {
		b := make([]byte, 4096)
		err := d.nvme(&nvmeCommand{opcode: nvmeIdentify, nsid: nsid, cdw10: cns}, b)
		return b, err
	}
	controller, err := identify(1, 0)
	if err != nil {
		return fmt.Errorf("identify controller: %w", err)
	}
	namespace, err := identify(0, uint32(nsid))
	if err != nil {
		return fmt.Errorf("identify namespace: %w", err)
	}
	active, err := identify(2, 0)
	if err != nil {
		return fmt.Errorf("list namespaces: %w", err)
	}
	format, err := formatCommand(controller, namespace, active, uint32(nsid))
	if err != nil {
		return err
	}
	if err := d.nvme(&format, nil); err != nil {
		return fmt.Errorf("format: %w", err)
	}
	return nil
}

// formatCommand decides from what the drive says about itself. It keeps the
// sector format, and refuses to take another namespace along.
func formatCommand(controller, namespace, active []byte, nsid uint32) (nvmeCommand, error) {
	le := binary.LittleEndian
	oacs, fna := le.Uint16(controller[256:]), controller[524]
	if oacs&(1<<1) == 0 {
		return nvmeCommand{}, fmt.Errorf("%w: the drive has no Format NVM command; choose overwrite or discard", ErrWeaker)
	}
	if fna&(1<<0|1<<1) != 0 { // format, or erase, is for all namespaces
		if le.Uint32(active[4:]) != 0 {
			return nvmeCommand{}, fmt.Errorf("%w: the drive would erase its other namespaces too", ErrWeaker)
		}
	}
	const userData, crypto = 1, 2
	ses := uint32(userData)
	if fna&(1<<2) != 0 {
		ses = crypto // seconds, not hours
	}
	flbas, dps := uint32(namespace[26]), uint32(namespace[29])
	return nvmeCommand{
		opcode: nvmeFormat, nsid: nsid, timeout: nvmeFormatTimeout,
		// LBAF, metadata setting, protection type and place as they are; LBAFU.
		cdw10: flbas&0x0f | flbas>>4&1<<4 | dps&7<<5 | dps>>3&1<<8 | ses<<9 | flbas>>5&3<<12,
	}, nil
}

func (d *device) nvme(c *nvmeCommand, data []byte) error {
	if len(data) > 0 {
		c.addr, c.dataLen = uint64(uintptr(unsafe.Pointer(&data[0]))), uint32(len(data))
	}
	status, _, e := unix.Syscall(unix.SYS_IOCTL, d.Fd(), nvmeIoctlAdmin, uintptr(unsafe.Pointer(c)))
	if e != 0 {
		return e
	}
	if status != 0 {
		return fmt.Errorf("the drive answers status %#x", status)
	}
	return nil
}
