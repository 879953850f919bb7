package disk

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// The drives of the tests. Each takes the commands of its kind as the bytes
// that a real one gets, keeps its state through a loss of power, and can be
// told to lie.

// medium is the bytes of a drive, and what it does to them.
type medium struct {
	t    testing.TB
	data []byte
	io   func() error // why it answers no read and no write now
	// what it was told
	log      []string
	discards bool
	keeps    bool // it takes a discard and does nothing
}

func newMedium(t testing.TB) *medium {
	m := &medium{t: t, data: bytes.Repeat([]byte("old tenant's data; "), 32*mib/19+1)[:32*mib], discards: true, io: func() error { return nil }}
	copy(m.data[1080:], "\x53\xef") // an ext2
	return m
}

func (m *medium) said(format string, args ...any) {
	m.log = append(m.log, fmt.Sprintf(format, args...))
}

func (m *medium) access(b []byte, off int64) error {
	if off%512 != 0 || len(b)%512 != 0 || off < 0 || off+int64(len(b)) > int64(len(m.data)) {
		m.t.Errorf("%d bytes at %d", len(b), off)
		return unix.EINVAL
	}
	return m.io()
}

func (m *medium) ReadAt(b []byte, off int64) (int, error) {
	if err := m.access(b, off); err != nil {
		return 0, err
	}
	return copy(b, m.data[off:]), nil
}

func (m *medium) WriteAt(b []byte, off int64) (int, error) {
	if err := m.access(b, off); err != nil {
		return 0, err
	}
	return copy(m.data[off:], b), nil
}

func (m *medium) Sync() error { return m.io() }
func (m *medium) reread()     {}

func (m *medium) discard(off, n int64) error {
	switch {
	case !m.discards:
		return unix.EOPNOTSUPP
	case !m.keeps:
		clear(m.data[off : off+n])
	}
	return nil
}

func (m *medium) namespace() (uint32, error)      { return 0, unix.ENOTTY }
func (m *medium) nvme(*nvmeCommand, []byte) error { return unix.ENOTTY }
func (m *medium) scsi(*scsiCommand) error         { return unix.ENOTTY }
func (m *medium) old() bool                       { return bytes.Contains(m.data, []byte("tenant's data")) }
func (m *medium) erase()                          { clear(m.data) }
func (m *medium) forget()                         { rand.Read(m.data) } // the key is gone: noise
func (m *medium) drive(p port) *drive {
	return &drive{port: p, size: int64(len(m.data)), sector: 512, pause: 1}
}
func (m *medium) told(what string) bool { return slices.Contains(m.log, what) }

// fakeNVMe is an NVMe drive.
type fakeNVMe struct {
	*medium
	oacs          uint16
	fna           byte
	sanicap       uint32
	flbas, dps    byte
	others        []uint32
	lie           map[string]bool // what it says that it did, and does not
	refuse        map[string]nvmeStatus
	fail          int // sanitizes that end in failure
	takes         int // looks at the log until a sanitize is done
	state         uint16
	command, left uint32
	never         bool // the log never changes
	formal        int
}

func newNVMe(t testing.TB) *fakeNVMe {
	f := &fakeNVMe{medium: newMedium(t), oacs: 1 << 1, fna: 1 << 2, sanicap: 7, takes: 5, lie: map[string]bool{}, refuse: map[string]nvmeStatus{}}
	f.io = func() error {
		if f.state == sanitizeRunning || f.state == sanitizeFailed {
			f.said("I/O refused")
			return unix.EIO
		}
		return nil
	}
	return f
}

func (f *fakeNVMe) namespace() (uint32, error) { return 1, nil }

func (f *fakeNVMe) nvme(c *nvmeCommand, b []byte) error {
	le := binary.LittleEndian
	switch c.opcode {
	case nvmeIdentify:
		switch c.cdw10 {
		case 0:
			b[26], b[29] = f.flbas, f.dps
		case 1:
			le.PutUint16(b[256:], f.oacs)
			b[524] = f.fna
			le.PutUint32(b[328:], f.sanicap)
		case 2, 0x10:
			le.PutUint32(b, 1)
			for i, n := range f.others {
				le.PutUint32(b[4*i+4:], n)
			}
		default:
			return nvmeStatus(0x002)
		}
	case nvmeGetLog:
		if c.cdw10 != 127<<16|nvmeSanitizeLog || c.nsid != 0xffffffff || len(b) != 512 {
			f.t.Errorf("log %#x of %#x", c.cdw10, c.nsid)
		}
		if f.state == sanitizeRunning {
			f.tick()
		}
		le.PutUint16(b, uint16(65535-65535*int(f.left)/max(f.takes, 1)))
		le.PutUint16(b[2:], f.state)
		le.PutUint32(b[4:], f.command)
	case nvmeSanitize:
		name := map[uint32]string{sanitizeBlock: "block", sanitizeCrypto: "crypto", sanitizeOverwrite | 1<<4: "overwrite"}[c.cdw10]
		f.said("sanitize %s", name)
		if s := f.refuse[name]; s != 0 || name == "" {
			return s
		}
		if !f.never {
			f.state, f.command, f.left = sanitizeRunning, c.cdw10, uint32(f.takes)
		}
	case nvmeFormat:
		f.said("format %d", c.cdw10>>9&7)
		if f.state == sanitizeFailed {
			return nvmeStatus(0x01c)
		}
		if s := f.refuse["format"]; s != 0 {
			return s
		}
		f.formal = int(c.cdw10)
		switch {
		case f.lie["format"] || c.cdw10>>9&7 == 0:
		case c.cdw10>>9&7 == sesCrypto:
			f.forget()
		default:
			f.erase()
		}
	default:
		return nvmeStatus(0x001)
	}
	return nil
}

// tick is a moment of a sanitize, which a loss of power does not end.
func (f *fakeNVMe) tick() {
	if f.left > 0 {
		f.left--
		return
	}
	if f.state = sanitizeDone; f.fail > 0 {
		f.fail--
		f.state = sanitizeFailed
		return
	}
	switch {
	case f.lie["sanitize"]:
	case f.command&7 == sanitizeCrypto:
		f.forget()
	default:
		f.erase()
	}
}

// fakeATA is a SATA drive behind a SCSI translation.
type fakeATA struct {
	*medium
	id        [256]uint16
	password  string
	prepared  bool
	lie       bool
	keepsLock bool // stays locked after an erase
	cut       bool // loses power in the middle of the next security erase
	fail      bool // the next sanitize ends in failure
	mute      bool // it never says that a sanitize ended without error
	takes     int
	running   uint16 // the feature of the sanitize under way
	left      int
	failed    bool
	done      bool
	fixed     bool // its translation answers in fixed format sense
}

func newATA(t testing.TB, flash bool) *fakeATA {
	f := &fakeATA{medium: newMedium(t), takes: 4}
	f.id[wordSanitize] = hasSanitize | hasCrypto | hasOverwrite | hasBlockErase
	f.id[wordSecurity] = securitySupport | securityEnhanced
	f.id[wordEraseTime], f.id[wordEnhancedTime] = 1, 1<<15|2
	f.id[wordRotation] = 7200
	if flash {
		f.id[wordRotation] = 1
	}
	f.io = func() error {
		if f.running != 0 || f.failed || f.id[wordSecurity]&securityLocked != 0 {
			return unix.EIO
		}
		return nil
	}
	return f
}

// powerCycle is what any drive with a password does.
func (f *fakeATA) powerCycle() {
	f.prepared, f.cut = false, false
	f.id[wordSecurity] &^= securityFrozen
	if f.password != "" {
		f.id[wordSecurity] |= securityLocked
	}
}

func (f *fakeATA) scsi(c *scsiCommand) error {
	switch c.cdb[0] {
	case scsiInquiry:
		if c.cdb[1]&1 != 0 {
			c.status, c.sense = scsiCheck, fixedSense(5, 0x24, 0)
			return nil
		}
		copy(c.data[8:], "ATA     Some SSD 870     ")
		return nil
	case ataPassThrough:
	default:
		c.status, c.sense = scsiCheck, fixedSense(5, 0x20, 0)
		return nil
	}
	b := c.cdb
	if len(b) != 16 {
		f.t.Fatalf("%d bytes of command", len(b))
	}
	t := taskfile{command: b[14], feature: uint16(b[3])<<8 | uint16(b[4]), count: uint16(b[5])<<8 | uint16(b[6]),
		lba: uint64(b[11])<<40 | uint64(b[9])<<32 | uint64(b[7])<<24 | uint64(b[12])<<16 | uint64(b[10])<<8 | uint64(b[8])}
	proto := map[byte]byte{ataIdentify: 4, ataSetPassword: 5, ataUnlock: 5, ataEraseUnit: 5, ataDisablePassword: 5, ataErasePrepare: 3, ataSanitize: 3}
	if b[1]>>1 != proto[t.command] || (t.command == ataSanitize) != (b[1]&1 != 0) {
		f.t.Errorf("command %#x by protocol %d", t.command, b[1]>>1)
	}
	if proto[t.command] != 3 && (len(c.data) != 512 || t.count != 1 || b[2]&7 != 6 || (b[2]&fromDrive != 0) == c.out) {
		f.t.Errorf("command %#x with %d bytes, count %d, flags %#x", t.command, len(c.data), t.count, b[2])
	}
	reason, ok := f.ata(&t, c.data)
	if t.command == ataIdentify {
		return nil // good, without registers
	}
	status, abort := byte(0x50), byte(0)
	if !ok {
		status, abort = 0x51, 1<<2
		t.lba = uint64(reason)
	}
	c.status = scsiCheck
	if f.fixed && !ok {
		c.sense = fixedSense(11, 0, 0)
		c.sense[3], c.sense[4], c.sense[9] = abort, status, reason
		return nil
	}
	l := t.lba
	c.sense = []byte{0x72, 1, 0, 0x1d, 0, 0, 0, 14, 0x09, 12, 1, abort, byte(t.count >> 8), byte(t.count),
		byte(l >> 24), byte(l), byte(l >> 32), byte(l >> 8), byte(l >> 40), byte(l >> 16), 0x40, status}
	return nil
}

// ata carries out a command, or tells the reason why not.
func (f *fakeATA) ata(t *taskfile, data []byte) (reason byte, ok bool) {
	security := &f.id[wordSecurity]
	has := func(bits uint16) bool { return *security&bits != 0 }
	key := func() string { return string(bytes.TrimRight(data[2:34], "\x00")) }
	prepared := f.prepared
	f.prepared = false
	switch t.command {
	case ataIdentify:
		for i, w := range f.id {
			binary.LittleEndian.PutUint16(data[2*i:], w)
		}
		return 0, true
	case ataSanitize:
		return f.sanitize(t)
	}
	if f.running != 0 || has(securityFrozen) {
		return 0, false
	}
	switch t.command {
	case ataSetPassword:
		if has(securityLocked) || data[0] != 0 || data[1] != 0 {
			return 0, false
		}
		f.password = key()
		*security |= securityEnabled
	case ataUnlock:
		if key() != f.password {
			return 0, false
		}
		*security &^= securityLocked
	case ataDisablePassword:
		if has(securityLocked) || key() != f.password {
			return 0, false
		}
		f.password = ""
		*security &^= securityEnabled
	case ataErasePrepare:
		f.prepared = true
	case ataEraseUnit:
		f.said("security erase, enhanced %t", data[0]&2 != 0)
		switch {
		case !prepared || key() != f.password || !has(securityEnabled):
			return 0, false
		case f.cut:
			clear(f.data[:len(f.data)/2])
			f.powerCycle()
			return 0, false
		case !f.lie:
			f.erase()
		}
		if !f.keepsLock {
			f.password = ""
			*security &^= securityEnabled | securityLocked
		}
	default:
		return 0, false
	}
	return 0, true
}

func (f *fakeATA) sanitize(t *taskfile) (reason byte, ok bool) {
	has := map[uint16]uint16{ataCryptoScramble: hasCrypto, ataBlockErase: hasBlockErase, ataOverwrite: hasOverwrite}[t.feature]
	keys := map[uint16]uint64{ataCryptoScramble: ataCryptoKey, ataBlockErase: ataBlockKey, ataOverwrite: ataOverwriteKey}
	switch {
	case f.id[wordSanitize]&hasSanitize == 0:
		return 0, false
	case t.feature == ataSanitizeStatus:
		if f.running != 0 {
			if f.left--; f.left < 0 {
				f.finish()
			}
		}
		if f.failed {
			return 1, false
		}
		t.count, t.lba = 0, 0xffff
		if f.running != 0 {
			t.count, t.lba = 1<<14, uint64(65535-65535*f.left/f.takes)
		} else if f.done && !f.mute {
			t.count = 1 << 15
		}
		return 0, true
	case f.id[wordSanitize]&has == 0 || t.lba != keys[t.feature] || f.running != 0:
		return 2, false
	}
	f.said("sanitize %#x", t.feature)
	f.running, f.left, f.done, f.failed = t.feature, f.takes, false, false
	return 0, true
}

func (f *fakeATA) finish() {
	switch {
	case f.fail:
		f.failed, f.fail = true, false
	case f.lie:
		f.done = true
	case f.running == ataCryptoScramble:
		f.forget()
		f.done = true
	default:
		f.erase()
		f.done = true
	}
	f.running = 0
}

// fixedSense is sense data of 18 bytes.
func fixedSense(key, code, qualifier byte) []byte {
	b := make([]byte, 18)
	b[0], b[2], b[7], b[12], b[13] = 0x70, key, 10, code, qualifier
	return b
}

// fakeSAS is a SAS drive, or a volume of a RAID controller.
type fakeSAS struct {
	*medium
	has     [4]bool
	flash   bool
	rsoc    bool // it can tell which commands it has
	lie     bool
	running byte
	left    int
	failed  bool
	fail    bool
}

func newSAS(t testing.TB) *fakeSAS {
	f := &fakeSAS{medium: newMedium(t), rsoc: true}
	f.io = func() error {
		if f.running != 0 || f.failed {
			return unix.EIO
		}
		return nil
	}
	return f
}

func (f *fakeSAS) scsi(c *scsiCommand) error {
	refuse := func(code byte) error {
		c.status, c.sense = scsiCheck, fixedSense(5, code, 0)
		return nil
	}
	switch c.cdb[0] {
	case scsiInquiry:
		switch {
		case c.cdb[1]&1 == 0:
			copy(c.data[8:], "SEAGATE ST4000NM0023    ")
		case c.cdb[2] == 0xb1:
			c.data[1], c.data[3] = 0xb1, 0x3c
			binary.BigEndian.PutUint16(c.data[4:], 7200)
			if f.flash {
				c.data[5], c.data[4] = 1, 0
			}
		default:
			return refuse(0x24)
		}
	case scsiMaintenance:
		if !f.rsoc || c.cdb[1] != reportOpcodes {
			return refuse(0x20)
		}
		if c.data[1] = 1; c.cdb[3] == scsiSanitize && f.has[c.cdb[5]&3] {
			c.data[1] = 3
		}
	case scsiSanitize:
		action := c.cdb[1] & 0x1f
		f.said("sanitize %d", action)
		if c.cdb[1]&0x80 == 0 || !f.has[action&3] || action == scsiOverwrite && (!c.out || !bytes.Equal(c.data, []byte{1, 0, 0, 4, 0, 0, 0, 0}) || c.cdb[8] != 8) {
			return refuse(0x24)
		}
		f.running, f.left, f.failed = action, 4, false
	case scsiRequestSense:
		if f.running != 0 {
			if f.left--; f.left < 0 {
				switch {
				case f.fail:
					f.failed = true
				case f.lie:
				case f.running == scsiCryptoErase:
					f.forget()
				default:
					f.erase()
				}
				f.running = 0
			}
		}
		var b []byte
		switch {
		case f.running != 0: // descriptor format, with progress
			b = []byte{0x72, 2, 0x04, 0x1b, 0, 0, 0, 8, 0x02, 6, 0, 0, 0x80, byte(0xff - 0x30*f.left), 0, 0}
		case f.failed:
			b = fixedSense(3, 0x31, 0x03)
		default:
			b = fixedSense(0, 0, 0)
		}
		copy(c.data, b)
	case 0: // TEST UNIT READY
		if f.failed {
			c.status, c.sense = scsiCheck, fixedSense(3, 0x31, 0x03)
		}
	default:
		return refuse(0x20)
	}
	return nil
}

var (
	_ port = (*medium)(nil)
	_ port = (*fakeNVMe)(nil)
	_ port = (*fakeATA)(nil)
	_ port = (*fakeSAS)(nil)
)
