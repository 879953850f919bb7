package disk

import (
	"context"
	"encoding/binary"
	"fmt"
	"strings"
	"time"
)

// Admin commands of the NVM Express base specification 1.4, section 5, through
// linux/nvme_ioctl.h.
const (
	nvmeIoctlID    = 0x4e40     // NVME_IOCTL_ID: namespace of the device
	nvmeIoctlAdmin = 0xc0484e41 // NVME_IOCTL_ADMIN_CMD
	nvmeGetLog     = 0x02
	nvmeIdentify   = 0x06
	nvmeFormat     = 0x80
	nvmeSanitize   = 0x84

	nvmeSanitizeLog = 0x81 // 5.14.1.16.2

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

// nvmeStatus is why a drive did not carry out a command: status code type and
// status code of section 4.6.1.2, without "do not retry" and "more".
type nvmeStatus uint16

func (s nvmeStatus) Error() string {
	names := map[nvmeStatus]string{
		0x001: "it does not know the command", 0x002: "it does not know a field of the command", 0x00c: "command sequence error",
		0x01c: "its last sanitize failed", 0x01d: "it is sanitizing", 0x109: "it has no such log", 0x10a: "it takes no such format",
	}
	if n := names[s&0x7ff]; n != "" {
		return fmt.Sprintf("the drive refuses: %s (status %#x)", n, uint16(s))
	}
	return fmt.Sprintf("the drive refuses with status %#x", uint16(s))
}

// nvmeDrive is an NVMe drive and what it says of itself.
type nvmeDrive struct {
	port      port
	nsid      uint32
	oacs      uint16
	fna       byte
	sanicap   uint32
	namespace []byte // Identify Namespace
	others    int    // other namespaces on the drive
	last      erasure
}

func identifyNVMe(p port, nsid uint32) (*nvmeDrive, error) {
	ask := func(what string, cns, nsid uint32) ([]byte, error) {
		b := make([]byte, 4096)
		if err := p.nvme(&nvmeCommand{opcode: nvmeIdentify, nsid: nsid, cdw10: cns}, b); err != nil {
			return nil, fmt.Errorf("identify %s: %w", what, err)
		}
		return b, nil
	}
	controller, err := ask("controller", 1, 0)
	if err != nil {
		return nil, err
	}
	namespace, err := ask("namespace", 0, nsid)
	if err != nil {
		return nil, err
	}
	list, err := ask("list of namespaces", 2, 0)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	n := &nvmeDrive{port: p, nsid: nsid, namespace: namespace,
		oacs: le.Uint16(controller[256:]), fna: controller[524], sanicap: le.Uint32(controller[328:])}
	if n.oacs&(1<<3) != 0 { // it can have namespaces that are attached nowhere
		if all, err := ask("list of allocated namespaces", 0x10, 0); err == nil {
			list = all
		}
	}
	for i := 0; i < len(list); i += 4 {
		id := le.Uint32(list[i:])
		if id == 0 {
			break
		}
		if id != nsid {
			n.others++
		}
	}
	return n, nil
}

// Secure erase settings of Format NVM, 5.23.
const (
	sesUserData = 1
	sesCrypto   = 2
)

// Actions of Sanitize, 5.24.
const (
	sanitizeBlock     = 2
	sanitizeOverwrite = 3
	sanitizeCrypto    = 4
)

// methods puts sanitize before format, which may leave what the drive keeps
// aside, and an erase of the cells before one of the key alone, whose worth
// depends on a cipher that nobody outside has seen. SP 800-88r1, table A-8,
// names Format NVM as purge; it is older than Sanitize, which does more. Of an
// overwrite on flash it says nothing.
func (n *nvmeDrive) methods() (use []method, not []string, frozen bool) {
	if n.others > 0 && (n.sanicap&7 != 0 || n.fna&3 != 0) {
		not = append(not, fmt.Sprintf("an erase of the whole drive would take its %d other namespaces along", n.others))
	}
	for _, s := range []struct {
		bit    uint32
		action uint32
		name   string
		level  Level
	}{
		{1 << 1, sanitizeBlock, "NVMe Sanitize, block erase", Purge},
		{1 << 0, sanitizeCrypto, "NVMe Sanitize, crypto erase", Purge},
		{1 << 2, sanitizeOverwrite | 1<<4, "NVMe Sanitize, overwrite", Secure}, // one pass
	} {
		if n.sanicap&s.bit != 0 && n.others == 0 {
			use = append(use, method{s.name, s.level, func(ctx context.Context, d *drive, progress func(done, total int64)) error {
				return n.sanitize(ctx, d, s.action, progress)
			}})
		}
	}
	if n.sanicap&7 == 0 {
		not = append(not, "the drive has no Sanitize")
	}
	switch {
	case n.oacs&(1<<1) == 0:
		not = append(not, "the drive has no Format NVM")
	case n.fna&(1<<0|1<<1) != 0 && n.others > 0: // format, or erase, is for all namespaces
	default:
		use = append(use, n.format("NVMe Format, user data erase", sesUserData))
		if n.fna&(1<<2) != 0 {
			use = append(use, n.format("NVMe Format, crypto erase", sesCrypto))
		}
	}
	return use, not, false
}

// format keeps the sector format.
func (n *nvmeDrive) format(name string, ses uint32) method {
	flbas, dps := uint32(n.namespace[26]), uint32(n.namespace[29])
	return method{name, Purge, func(_ context.Context, d *drive, progress func(done, total int64)) error {
		return d.meanwhile(0, progress, func() error {
			return n.port.nvme(&nvmeCommand{
				opcode: nvmeFormat, nsid: n.nsid, timeout: nvmeFormatTimeout,
				// LBAF, metadata setting, protection type and place as they are; LBAFU.
				cdw10: flbas&0x0f | flbas>>4&1<<4 | dps&7<<5 | dps>>3&1<<8 | ses<<9 | flbas>>5&3<<12,
			}, nil)
		})
	}}
}

// sanitize starts a sanitize operation and waits for its end. It is a
// restricted one: should it fail, the drive shows its data to nobody until
// another one succeeds.
func (n *nvmeDrive) sanitize(ctx context.Context, d *drive, cdw10 uint32, progress func(done, total int64)) error {
	if err := n.port.nvme(&nvmeCommand{opcode: nvmeSanitize, cdw10: cdw10, timeout: uint32(time.Minute.Milliseconds())}, nil); err != nil {
		return err
	}
	s, err := d.begun(ctx, n, progress)
	if err != nil {
		return err
	}
	if s.failed {
		return fmt.Errorf("the drive could not finish it")
	}
	log, err := n.sanitizeLog()
	if err != nil {
		return err
	}
	switch {
	case log.status() == sanitizeNever:
		return fmt.Errorf("the drive took the command and says that it was never sanitized")
	case log.command != cdw10:
		return fmt.Errorf("the drive took the command and tells of another one (%#x)", log.command)
	}
	return nil
}

// States of the sanitize status log, 5.14.1.16.2.
const (
	sanitizeNever   = 0
	sanitizeDone    = 1
	sanitizeRunning = 2
	sanitizeFailed  = 3
	sanitizeNotFree = 4 // done, and not deallocated although that was asked for
)

type sanitizeLog struct {
	progress, state uint16
	command         uint32 // CDW10 of the last one
}

func (l sanitizeLog) status() uint16 { return l.state & 7 }

func (n *nvmeDrive) sanitizeLog() (sanitizeLog, error) {
	b := make([]byte, 512)
	err := n.port.nvme(&nvmeCommand{opcode: nvmeGetLog, nsid: 0xffffffff, cdw10: uint32(len(b)/4-1)<<16 | nvmeSanitizeLog}, b)
	if err != nil {
		return sanitizeLog{}, fmt.Errorf("read the sanitize log: %w", err)
	}
	le := binary.LittleEndian
	return sanitizeLog{le.Uint16(b), le.Uint16(b[2:]), le.Uint32(b[4:])}, nil
}

func (n *nvmeDrive) erasing() (erasure, error) {
	if n.sanicap&7 == 0 {
		return erasure{}, nil
	}
	log, err := n.sanitizeLog()
	if err != nil {
		return erasure{}, err
	}
	n.last = erasure{running: log.status() == sanitizeRunning, failed: log.status() == sanitizeFailed, done: float64(log.progress) / 65536}
	if s := log.status(); s > sanitizeNotFree {
		return n.last, fmt.Errorf("the sanitize log tells of a state %d that there is none of", s)
	}
	return n.last, nil
}

func (n *nvmeDrive) refuses() string {
	if n.last.failed {
		return "its last sanitize failed, and it shows its data to nobody until one succeeds"
	}
	return ""
}

var _ eraser = (*nvmeDrive)(nil)

// trimmed is text of a fixed width without what fills it up.
func trimmed(b []byte) string { return strings.TrimSpace(strings.Trim(string(b), "\x00")) }
