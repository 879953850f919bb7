package disk

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Commands of SPC-4 and SBC-3.
const (
	scsiInquiry      = 0x12
	scsiRequestSense = 0x03
	scsiSanitize     = 0x48 // SBC-3 5.30
	scsiMaintenance  = 0xa3 // with reportOpcodes: REPORT SUPPORTED OPERATION CODES, SPC-4 6.35
	reportOpcodes    = 0x0c

	scsiGood      = 0x00
	scsiCheck     = 0x02 // CHECK CONDITION: the reason is in the sense data
	scsiShortTime = 30 * time.Second
)

// scsiCommand is a command and what came of it.
type scsiCommand struct {
	cdb     []byte
	data    []byte // to the drive if out, else from it
	out     bool
	timeout time.Duration

	status uint8
	sense  []byte
}

// sense is why a command was not carried out, SPC-4 4.5.
type sense struct {
	key, code, qualifier byte
	progress             float64 // where the sense key tells of one
}

func (s sense) Error() string {
	switch {
	case s.key == 5:
		return fmt.Sprintf("the drive refuses it (illegal request, %02x/%02x)", s.code, s.qualifier)
	case s.key == 2 && s.code == 4 && s.qualifier == 0x1b:
		return "the drive is sanitizing"
	}
	return fmt.Sprintf("the drive answers sense %x/%02x/%02x", s.key, s.code, s.qualifier)
}

// parseSense reads fixed and descriptor format.
func parseSense(b []byte) sense {
	var s sense
	var specific []byte
	switch {
	case len(b) >= 8 && (b[0]&0x7f == 0x72 || b[0]&0x7f == 0x73):
		s.key, s.code, s.qualifier = b[1]&0x0f, b[2], b[3]
		for d := b[8:]; len(d) >= 2 && len(d) >= 2+int(d[1]); d = d[2+int(d[1]):] {
			if d[0] == 0x02 && d[1] >= 6 {
				specific = d[4:7]
			}
		}
	case len(b) >= 14 && (b[0]&0x7f == 0x70 || b[0]&0x7f == 0x71):
		s.key, s.code, s.qualifier = b[2]&0x0f, b[12], b[13]
		if len(b) >= 18 {
			specific = b[15:18]
		}
	}
	if specific != nil && specific[0]&0x80 != 0 {
		s.progress = float64(binary.BigEndian.Uint16(specific[1:])) / 65536
	}
	return s
}

// send sends a command that is to end well.
func send(p port, c *scsiCommand) error {
	if c.timeout == 0 {
		c.timeout = scsiShortTime
	}
	if err := p.scsi(c); err != nil {
		return err
	}
	switch c.status {
	case scsiGood:
		return nil
	case scsiCheck:
		return parseSense(c.sense)
	}
	return fmt.Errorf("the drive answers status %#x", c.status)
}

// identifySCSI asks whatever is behind a SCSI device who it is: an ATA drive
// behind AHCI, a SAS adapter or a USB bridge, a SAS drive, or a volume of a
// RAID controller. Nil: it speaks no SCSI.
func identifySCSI(p port, unlock bool) (eraser, error) {
	inquiry := make([]byte, 96)
	if err := send(p, &scsiCommand{cdb: []byte{scsiInquiry, 0, 0, 0, byte(len(inquiry)), 0}, data: inquiry}); errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("ask the drive who it is: %w", err)
	}
	page := func(code byte) []byte {
		b := make([]byte, 252)
		if err := send(p, &scsiCommand{cdb: []byte{scsiInquiry, 1, code, 0, byte(len(b)), 0}, data: b}); err != nil || b[1] != code {
			return nil
		}
		return b
	}
	// SAT-3 10.3: an ATA drive behind a translation calls itself ATA, or has
	// the page of ATA information.
	if trimmed(inquiry[8:16]) == "ATA" || page(0x89) != nil {
		a, err := identifyATA(p, unlock)
		if err != nil {
			return nil, fmt.Errorf("%w: the adapter in between does not let the drive be spoken to (%v): connect it to a SATA port, or choose overwrite", ErrWeaker, err)
		}
		return a, nil
	}
	s := &scsiDrive{port: p, name: trimmed(inquiry[8:16]) + " " + trimmed(inquiry[16:32])}
	// Block Device Characteristics: 1 is no rotating medium (SBC-3 6.6.2).
	if b := page(0xb1); b != nil {
		s.flash = binary.BigEndian.Uint16(b[4:]) == 1
	}
	for _, action := range []byte{scsiOverwrite, scsiBlockErase, scsiCryptoErase} {
		s.has[action] = s.supports(action)
	}
	return s, nil
}

// Service actions of SANITIZE.
const (
	scsiOverwrite   = 1
	scsiBlockErase  = 2
	scsiCryptoErase = 3
)

// scsiDrive is a SAS drive, or what a RAID controller shows as one.
type scsiDrive struct {
	port  port
	name  string
	flash bool
	has   [4]bool
	last  erasure
}

// supports asks whether there is SANITIZE with a service action. A drive that
// cannot tell is taken to have none.
func (s *scsiDrive) supports(action byte) bool {
	b := make([]byte, 64)
	cdb := []byte{scsiMaintenance, reportOpcodes, 3, scsiSanitize, 0, action, 0, 0, 0, byte(len(b)), 0, 0}
	return send(s.port, &scsiCommand{cdb: cdb, data: b}) == nil && b[1]&7 == 3
}

// methods follows SP 800-88r1, tables.
func (s *scsiDrive) methods() (use []method, not []string, frozen bool) {
	add := func(action byte, name string, level Level) {
		if s.has[action] {
			use = append(use, method{name, level, func(ctx context.Context, d *drive, progress func(done, total int64)) error {
				return s.sanitize(ctx, d, action, progress)
			}})
		}
	}
	add(scsiBlockErase, "SCSI SANITIZE, block erase", Purge)
	add(scsiCryptoErase, "SCSI SANITIZE, cryptographic erase", Purge)
	if s.flash {
		add(scsiOverwrite, "SCSI SANITIZE, overwrite", Secure)
	} else {
		add(scsiOverwrite, "SCSI SANITIZE, overwrite", Purge)
	}
	if len(use) == 0 {
		not = append(not, s.name+" has no SANITIZE; a drive behind a RAID controller shows none of its own: set the controller to HBA (IT, JBOD) mode, or choose overwrite")
	}
	return use, not, false
}

func (s *scsiDrive) sanitize(ctx context.Context, d *drive, action byte, progress func(done, total int64)) error {
	const immediately = 1 << 7
	c := &scsiCommand{cdb: []byte{scsiSanitize, immediately | action, 0, 0, 0, 0, 0, 0, 0, 0}, timeout: 2 * time.Minute}
	if action == scsiOverwrite {
		// One pass of zeros: count 1, a pattern of four bytes.
		c.data, c.out = []byte{1, 0, 0, 4, 0, 0, 0, 0}, true
		c.cdb[8] = byte(len(c.data))
	}
	if err := send(s.port, c); err != nil {
		return err
	}
	e, err := d.begun(ctx, s, progress)
	if err != nil {
		return err
	}
	if e.failed {
		return errors.New("the drive could not finish it")
	}
	return send(s.port, &scsiCommand{cdb: make([]byte, 6)}) // TEST UNIT READY
}

func (s *scsiDrive) erasing() (erasure, error) {
	b := make([]byte, 252)
	if err := send(s.port, &scsiCommand{cdb: []byte{scsiRequestSense, 0, 0, 0, byte(len(b)), 0}, data: b}); err != nil {
		return erasure{}, fmt.Errorf("ask how far it is: %w", err)
	}
	at := parseSense(b)
	s.last = erasure{
		running: at.key == 2 && at.code == 0x04 && at.qualifier == 0x1b, // SANITIZE IN PROGRESS
		failed:  at.key == 3 && at.code == 0x31 && at.qualifier == 0x03, // SANITIZE COMMAND FAILED
		done:    at.progress,
	}
	return s.last, nil
}

func (s *scsiDrive) refuses() string {
	if s.last.failed {
		return "its last sanitize failed, and it shows its data to nobody until one succeeds"
	}
	return ""
}

var _ eraser = (*scsiDrive)(nil)
