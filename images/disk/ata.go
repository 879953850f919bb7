package disk

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// Commands of ATA8-ACS-3.
const (
	ataIdentify        = 0xec // 7.12
	ataSanitize        = 0xb4 // 7.34
	ataSetPassword     = 0xf1 // 7.40
	ataUnlock          = 0xf2 // 7.41
	ataErasePrepare    = 0xf3 // 7.36
	ataEraseUnit       = 0xf4 // 7.37
	ataDisablePassword = 0xf6 // 7.35
)

// Features of SANITIZE DEVICE, and the key in its LBA field without which a
// drive does nothing.
const (
	ataSanitizeStatus = 0x0000
	ataCryptoScramble = 0x0011
	ataBlockErase     = 0x0012
	ataOverwrite      = 0x0014

	ataCryptoKey    = 0x43727970 // "Cryp"
	ataBlockKey     = 0x426b4572 // "BkEr"
	ataOverwriteKey = 0x4f57 << 32
)

// ataPassword locks a drive while it erases itself, as the command wants. It
// is no secret: a drive that lost power meanwhile is locked with it, and
// whoever finds it must be able to go on.
const ataPassword = "smelt"

// taskfile is an ATA command, and the registers that it left.
type taskfile struct {
	command byte
	feature uint16
	count   uint16
	lba     uint64
	data    []byte
	out     bool
	timeout time.Duration

	status, error byte
}

// ATA PASS-THROUGH (16), SAT-3 12.2.2.
const (
	ataPassThrough = 0x85
	protoNone      = 3 << 1
	protoIn        = 4 << 1
	protoOut       = 5 << 1
	protoExtend    = 1
	checkCondition = 1 << 5 // the registers come back in any case
	fromDrive      = 1 << 3
	inBlocks       = 1<<2 | 2 // the length is in blocks, in the count
)

// ata sends a command to an ATA drive, whatever adapter translates.
func ata(p port, t *taskfile) error {
	proto, flags := byte(protoNone), byte(checkCondition)
	if t.command == ataSanitize {
		proto |= protoExtend // a 48-bit command, the only one here
	}
	if len(t.data) > 0 {
		t.count = uint16(len(t.data) / 512)
		if proto, flags = protoIn, inBlocks|fromDrive; t.out {
			proto, flags = protoOut, inBlocks|checkCondition
		}
	}
	c := &scsiCommand{
		cdb: []byte{ataPassThrough, proto, flags,
			byte(t.feature >> 8), byte(t.feature), byte(t.count >> 8), byte(t.count),
			byte(t.lba >> 24), byte(t.lba), byte(t.lba >> 32), byte(t.lba >> 8), byte(t.lba >> 40), byte(t.lba >> 16),
			0x40, t.command, 0},
		data: t.data, out: t.out, timeout: t.timeout,
	}
	if c.timeout == 0 {
		c.timeout = scsiShortTime
	}
	if err := p.scsi(c); err != nil {
		return err
	}
	if c.status == scsiGood {
		t.status, t.error = 0x50, 0
		return nil
	}
	if c.status != scsiCheck {
		return fmt.Errorf("the drive answers status %#x", c.status)
	}
	if !t.registers(c.sense) {
		return parseSense(c.sense)
	}
	const failed, fault = 1 << 0, 1 << 5
	if t.status&(failed|fault) != 0 {
		return ataError{t.status, t.error, byte(t.lba)}
	}
	return nil
}

// registers takes the registers from an ATA Status Return descriptor (SAT-3
// 12.2.7), or from fixed format sense (table 171), which has fewer.
func (t *taskfile) registers(b []byte) bool {
	if len(b) < 8 {
		return false
	}
	switch b[0] & 0x7f {
	case 0x72, 0x73:
		for d := b[8:]; len(d) >= 2 && len(d) >= 2+int(d[1]); d = d[2+int(d[1]):] {
			if d[0] != 0x09 || d[1] < 12 {
				continue
			}
			t.error, t.status = d[3], d[13]
			t.count = uint16(d[4])<<8 | uint16(d[5])
			t.lba = uint64(d[10])<<40 | uint64(d[8])<<32 | uint64(d[6])<<24 | uint64(d[11])<<16 | uint64(d[9])<<8 | uint64(d[7])
			return true
		}
	case 0x70, 0x71:
		// Only of a command that failed: what a good one says would be cut off.
		if len(b) >= 12 && b[4]&1 != 0 {
			t.error, t.status = b[3], b[4]
			t.count, t.lba = uint16(b[6]), uint64(b[11])<<16|uint64(b[10])<<8|uint64(b[9])
			return true
		}
	}
	return false
}

// ataError is a command that the drive aborted.
type ataError struct{ status, error, reason byte }

func (e ataError) Error() string {
	if e.error&(1<<2) != 0 {
		return fmt.Sprintf("the drive aborts it (status %#02x, error %#02x, reason %d)", e.status, e.error, e.reason)
	}
	return fmt.Sprintf("the drive fails (status %#02x, error %#02x)", e.status, e.error)
}

// ataDrive is an ATA drive and what it says of itself.
type ataDrive struct {
	port port
	id   [256]uint16 // IDENTIFY DEVICE data, ACS-3 7.12.7
	last erasure
	// sanitized: the last sanitize operation ended without error.
	sanitized, sanitizeFrozen bool
}

func identifyATA(p port, unlock bool) (*ataDrive, error) {
	a := &ataDrive{port: p}
	if err := a.identify(); err != nil || !unlock || !a.security(securityEnabled) || a.security(securityFrozen) {
		return a, err
	}
	// A security erase of ours that lost power leaves the drive locked with our
	// password, which opens it and is taken away. Another's is not opened by it.
	if a.security(securityLocked) {
		if err := ata(p, &taskfile{command: ataUnlock, data: passwordBlock(false), out: true}); err != nil {
			return a, a.identify()
		}
	}
	_ = ata(p, &taskfile{command: ataDisablePassword, data: passwordBlock(false), out: true})
	return a, a.identify()
}

func (a *ataDrive) identify() error {
	b := make([]byte, 512)
	if err := ata(a.port, &taskfile{command: ataIdentify, data: b}); err != nil {
		return fmt.Errorf("identify: %w", err)
	}
	for i := range a.id {
		a.id[i] = binary.LittleEndian.Uint16(b[2*i:])
	}
	return nil
}

// Words of IDENTIFY DEVICE.
const (
	wordSanitize     = 59
	wordSecurity     = 128
	wordRotation     = 217
	wordEraseTime    = 89
	wordEnhancedTime = 90

	hasSanitize      = 1 << 12
	hasCrypto        = 1 << 13
	hasOverwrite     = 1 << 14
	hasBlockErase    = 1 << 15
	securitySupport  = 1 << 0
	securityEnabled  = 1 << 1
	securityLocked   = 1 << 2
	securityFrozen   = 1 << 3
	securityExpired  = 1 << 4
	securityEnhanced = 1 << 5
)

func (a *ataDrive) flash() bool            { return a.id[wordRotation] == 1 }
func (a *ataDrive) security(b uint16) bool { return a.id[wordSecurity]&b != 0 }
func (a *ataDrive) canSanitize(b uint16) bool {
	return a.id[wordSanitize]&hasSanitize != 0 && a.id[wordSanitize]&b != 0
}

// methods follows SP 800-88r1: table A-5 has the enhanced security erase of a
// magnetic disk as purge; table A-8 has any security erase of flash as clear.
func (a *ataDrive) methods() (use []method, not []string, frozen bool) {
	overwrite, enhanced := Purge, Purge
	if a.flash() {
		overwrite, enhanced = Secure, Secure
	}
	add := func(bit, feature uint16, key uint64, count uint16, name string, level Level) {
		if a.canSanitize(bit) && !a.sanitizeFrozen {
			use = append(use, method{name, level, func(ctx context.Context, d *drive, progress func(done, total int64)) error {
				return a.sanitize(ctx, d, taskfile{feature: feature, lba: key, count: count}, progress)
			}})
		}
	}
	add(hasBlockErase, ataBlockErase, ataBlockKey, 0, "ATA SANITIZE, block erase", Purge)
	add(hasCrypto, ataCryptoScramble, ataCryptoKey, 0, "ATA SANITIZE, crypto scramble", Purge)
	switch {
	case !a.canSanitize(hasBlockErase | hasCrypto | hasOverwrite):
		not = append(not, "the drive has no SANITIZE DEVICE")
	case a.sanitizeFrozen:
		frozen = true
		not = append(not, "SANITIZE DEVICE is frozen")
	}
	locks := false
	switch {
	case !a.security(securitySupport):
		not = append(not, "the drive has no SECURITY ERASE")
	case a.security(securityFrozen):
		frozen = true
		not = append(not, "SECURITY ERASE is frozen")
	case a.security(securityExpired):
		not = append(not, "SECURITY ERASE: too many wrong passwords since power-on")
	default:
		locks = true
	}
	if locks && a.security(securityEnhanced) {
		use = append(use, a.securityErase("ATA SECURITY ERASE, enhanced", true, enhanced))
	}
	add(hasOverwrite, ataOverwrite, ataOverwriteKey, 1, "ATA SANITIZE, overwrite", overwrite)
	if locks {
		use = append(use, a.securityErase("ATA SECURITY ERASE", false, Secure))
	}
	return use, not, frozen
}

func (a *ataDrive) sanitize(ctx context.Context, d *drive, t taskfile, progress func(done, total int64)) error {
	t.command, t.timeout = ataSanitize, 2*time.Minute
	if err := ata(a.port, &t); err != nil {
		return err
	}
	s, err := d.begun(ctx, a, progress)
	switch {
	case err != nil:
		return err
	case s.failed:
		return errors.New("the drive could not finish it")
	case !a.sanitized:
		return errors.New("the drive took the command and does not say that it ended without error")
	}
	return nil
}

func (a *ataDrive) erasing() (erasure, error) {
	if a.id[wordSanitize]&hasSanitize == 0 {
		return erasure{}, nil
	}
	t := &taskfile{command: ataSanitize, feature: ataSanitizeStatus}
	err := ata(a.port, t)
	var aborted ataError
	if errors.As(err, &aborted) && aborted.reason == 1 { // "sanitize command unsuccessful"
		a.last, a.sanitized = erasure{failed: true}, false
		return a.last, nil
	}
	if err != nil {
		return erasure{}, fmt.Errorf("sanitize status: %w", err)
	}
	a.last = erasure{running: t.count&(1<<14) != 0, done: float64(t.lba&0xffff) / 65536}
	a.sanitized, a.sanitizeFrozen = t.count&(1<<15) != 0, t.count&(1<<13) != 0
	return a.last, nil
}

func (a *ataDrive) refuses() string {
	switch {
	case a.last.failed:
		return "its last sanitize failed, and it shows its data to nobody until one succeeds"
	case a.security(securityLocked):
		return "it is locked with a password"
	}
	return ""
}

// securityErase is a command that answers when all is erased. Its drive is
// locked by a password from before it begins until it has ended.
func (a *ataDrive) securityErase(name string, enhanced bool, level Level) method {
	word := wordEraseTime
	if enhanced {
		word = wordEnhancedTime
	}
	takes := eraseTime(a.id[word])
	return method{name, level, func(_ context.Context, d *drive, progress func(done, total int64)) error {
		if err := a.identify(); err != nil {
			return err
		}
		ours := !a.security(securityEnabled)
		if ours {
			if err := ata(a.port, &taskfile{command: ataSetPassword, data: passwordBlock(false), out: true}); err != nil {
				return fmt.Errorf("set a password: %w", err)
			}
		}
		err := d.meanwhile(takes, progress, func() error {
			if err := ata(a.port, &taskfile{command: ataErasePrepare}); err != nil {
				return fmt.Errorf("prepare: %w", err)
			}
			return ata(a.port, &taskfile{command: ataEraseUnit, data: passwordBlock(enhanced), out: true, timeout: max(12*time.Hour, 3*takes)})
		})
		if err != nil && !ours {
			err = fmt.Errorf("it is locked with a password that Smelt does not know: %w; unlock it with its owner's password, or reset it with the PSID on its label", err)
		}
		if again := a.identify(); again != nil {
			return errors.Join(err, again)
		}
		if a.security(securityEnabled) {
			// ACS-3 7.37.4: a drive that erased itself has no password any more.
			// This one keeps it: not a drive to leave locked behind.
			if err == nil {
				err = errors.New("the drive says it is done, and is locked as if it had not begun")
			}
			if a.security(securityLocked) {
				_ = ata(a.port, &taskfile{command: ataUnlock, data: passwordBlock(false), out: true})
			}
			if off := ata(a.port, &taskfile{command: ataDisablePassword, data: passwordBlock(false), out: true}); off != nil {
				err = errors.Join(err, fmt.Errorf("its password (%q, a user's) could not be taken away: %w", ataPassword, off))
			}
			_ = a.identify()
		}
		return err
	}}
}

// passwordBlock is the data of the security commands: a user's password of
// security level high, so that a maker's master password still opens it.
func passwordBlock(enhanced bool) []byte {
	b := make([]byte, 512)
	if enhanced {
		b[0] = 1 << 1
	}
	copy(b[2:34], ataPassword)
	return b
}

// eraseTime reads words 89 and 90: units of two minutes; 0 if the drive does
// not say.
func eraseTime(w uint16) time.Duration {
	if w&(1<<15) != 0 {
		return time.Duration(w&^(1<<15)) * 2 * time.Minute
	}
	return time.Duration(w&0xff) * 2 * time.Minute
}

var _ eraser = (*ataDrive)(nil)
