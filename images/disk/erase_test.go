package disk

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// wipe wipes a drive of the tests; time is not waited for.
func wipe(t *testing.T, d *drive, level Level) (Wiped, error) {
	t.Helper()
	var w Wiped
	var err error
	synctest.Test(t, func(t *testing.T) {
		var last int64
		w, err = d.wipe(t.Context(), level, func(done, total int64) {
			if total != d.size || done < 0 || done > total {
				t.Errorf("progress %d of %d", done, total)
			}
			last = done
		})
		_ = last
	})
	return w, err
}

// good holds a wipe against what the medium shows.
func good(t *testing.T, m *medium, w Wiped, err error, level Level, method string) {
	t.Helper()
	if err != nil || w.Reached != level || w.Method != method || w.Proofs < marks {
		t.Fatalf("%+v, %v; want %s by %s", w, err, level, method)
	}
	if m.old() {
		t.Error("the old tenant's data is left")
	}
	if found, err := Signatures(memory(m.data), int64(len(m.data))); err != nil || found != nil {
		t.Errorf("%v is left, %v", found, err)
	}
}

func bad(t *testing.T, w Wiped, err error, kind error, words ...string) {
	t.Helper()
	if w.Reached != 0 || !errors.Is(err, kind) {
		t.Fatalf("%+v, %v", w, err)
	}
	for _, s := range words {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("%q does not say %q", err, s)
		}
	}
}

func noted(t *testing.T, w Wiped, text string) {
	t.Helper()
	if !slices.ContainsFunc(w.Notes, func(n string) bool { return strings.Contains(n, text) }) {
		t.Errorf("no note of %q in %q", text, w.Notes)
	}
}

func TestNVMeSanitize(t *testing.T) {
	for _, tt := range []struct {
		name    string
		sanicap uint32
		want    string
		level   Level
	}{
		{"block erase before all others", 7, "NVMe Sanitize, block erase", Purge},
		{"crypto erase", 1 << 0, "NVMe Sanitize, crypto erase", Purge},
		{"overwrite of flash is no purge: format is", 1 << 2, "NVMe Format, user data erase", Purge},
		{"no sanitize", 0, "NVMe Format, user data erase", Purge},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newNVMe(t)
			f.sanicap = tt.sanicap
			w, err := wipe(t, f.drive(f), Purge)
			good(t, f.medium, w, err, tt.level, tt.want)
			if f.told("I/O refused") {
				t.Error("a drive that sanitizes was read or written")
			}
			if crypto := strings.Contains(tt.want, "crypto"); w.Zeros == crypto {
				t.Errorf("zeros: %t", w.Zeros)
			}
		})
	}
	f := newNVMe(t)
	f.sanicap, f.oacs = 1<<2, 0
	w, err := wipe(t, f.drive(f), Purge)
	bad(t, w, err, ErrWeaker, "overwrite is only secure", "no Format")
	if len(f.log) > 0 || !f.old() {
		t.Errorf("a drive that cannot be purged was told %q", f.log)
	}
	w, err = wipe(t, f.drive(f), Secure)
	good(t, f.medium, w, err, Secure, "NVMe Sanitize, overwrite")
}

// Drives that say what is not so.
func TestNVMeLies(t *testing.T) {
	f := newNVMe(t)
	f.lie["sanitize"] = true
	w, err := wipe(t, f.drive(f), Secure)
	good(t, f.medium, w, err, Purge, "NVMe Format, user data erase")
	noted(t, w, "NVMe Sanitize, block erase: the drive says it is done, and")
	noted(t, w, "NVMe Sanitize, crypto erase: the drive says it is done, and")

	f = newNVMe(t)
	f.lie["sanitize"], f.lie["format"] = true, true
	w, err = wipe(t, f.drive(f), Secure)
	bad(t, w, err, ErrWeaker, "still hold what they held", "NVMe Format, crypto erase")
	if !f.old() || f.told("format 0") {
		t.Errorf("it was told %q", f.log)
	}

	f = newNVMe(t)
	f.never = true
	f.oacs = 0
	w, err = wipe(t, f.drive(f), Secure)
	bad(t, w, err, ErrWeaker, "says that it was never sanitized")
	// The log tells of the sanitize of last year.
	f.state, f.command = sanitizeDone, 0x8<<4|sanitizeBlock
	w, err = wipe(t, f.drive(f), Secure)
	bad(t, w, err, ErrWeaker, "tells of another one")
	f.command = sanitizeBlock
	w, err = wipe(t, f.drive(f), Secure)
	bad(t, w, err, ErrWeaker, "still hold what they held")
	// A log from nowhere.
	f.state = 6
	w, err = wipe(t, f.drive(f), Secure)
	if err == nil || w.Reached != 0 {
		t.Errorf("%+v, %v", w, err)
	}

	// infra-controller#2820: a drive that refuses a crypto erase must not end
	// as one that was erased.
	f = newNVMe(t)
	f.sanicap = 0
	f.refuse["format"] = 0x002
	w, err = wipe(t, f.drive(f), Secure)
	bad(t, w, err, ErrWeaker, "status 0x2")
	if slices.Contains(f.log, "format 0") || !f.old() {
		t.Errorf("%q", f.log)
	}

	// One that discards nothing.
	f = newNVMe(t)
	f.keeps = true
	w, err = wipe(t, f.drive(f), Discard)
	if !errors.Is(err, ErrWeaker) || w.Reached != Metadata || !f.old() || !strings.Contains(err.Error(), "still hold what they held") {
		t.Errorf("%+v, %v", w, err)
	}
}

// The power goes in the middle: the drive goes on by itself and answers no
// read until it is done. The next agent waits for it.
func TestNVMePowerCut(t *testing.T) {
	f := newNVMe(t)
	f.takes = 50
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		d := f.drive(f)
		d.pause = time.Second
		w, err := d.wipe(ctx, Purge, func(done, total int64) {
			if done > total/2 {
				cancel()
			}
		})
		if !errors.Is(err, context.Canceled) || w.Reached != 0 || f.state != sanitizeRunning {
			t.Fatalf("%+v, %v", w, err)
		}
	})
	w, err := wipe(t, f.drive(f), Discard)
	if err != nil || w.Reached != Discard || f.told("I/O refused") {
		t.Fatalf("%+v, %v, %q", w, err, f.log)
	}

	// It failed meanwhile: a weaker wipe cannot reach the data, another
	// sanitize can.
	f = newNVMe(t)
	f.state, f.command, f.left, f.fail = sanitizeRunning, sanitizeBlock, 3, 1
	w, err = wipe(t, f.drive(f), Discard)
	bad(t, w, err, ErrWeaker, "shows its data to nobody", "choose secure or purge")
	w, err = wipe(t, f.drive(f), Secure)
	if err != nil || w.Reached != Purge || w.Proofs != 0 || f.old() {
		t.Fatalf("%+v, %v", w, err)
	}
	noted(t, w, "could not be looked at")

	// It fails each time. Format is refused by such a drive, and none is silent.
	f = newNVMe(t)
	f.fail = 9
	w, err = wipe(t, f.drive(f), Secure)
	bad(t, w, err, ErrWeaker, "could not finish it", "its last sanitize failed")
}

func TestNVMeStalls(t *testing.T) {
	f := newNVMe(t)
	f.takes = 1
	f.state, f.command, f.left = sanitizeRunning, sanitizeBlock, 1<<30
	f.never = true
	d := f.drive(stuck{f})
	d.pause = time.Minute
	w, err := wipe(t, d, Secure)
	if err == nil || !strings.Contains(err.Error(), "replace it") || w.Reached != 0 {
		t.Errorf("%+v, %v", w, err)
	}
}

// stuck is a drive whose sanitize never moves.
type stuck struct{ *fakeNVMe }

func (s stuck) nvme(c *nvmeCommand, b []byte) error {
	s.left = 1 << 30
	return s.fakeNVMe.nvme(c, b)
}

func TestNVMeFormat(t *testing.T) {
	if got := unsafe.Sizeof(nvmeCommand{}); got != 72 {
		t.Fatalf("struct nvme_passthru_cmd has 72 bytes, not %d", got)
	}
	for _, tt := range []struct {
		name       string
		oacs, fna  byte
		flbas, dps byte
		others     []uint32
		lie        bool
		want       int
		refused    string
	}{
		{name: "user data", oacs: 2, want: 1 << 9},
		{name: "keeps the format", oacs: 2, flbas: 0x33, dps: 0x0a, want: 1<<9 | 3 | 1<<4 | 2<<5 | 1<<8 | 1<<12},
		{name: "no format", oacs: 0xf5, refused: "has no Format"},
		{name: "all namespaces, alone", oacs: 2, fna: 3, want: 1 << 9},
		{name: "all namespaces, not alone", oacs: 2, fna: 2, others: []uint32{7}, refused: "1 other namespaces along"},
		{name: "own namespace of two", oacs: 2, others: []uint32{7}, want: 1 << 9},
	} {
		f := newNVMe(t)
		f.sanicap, f.oacs, f.fna, f.flbas, f.dps, f.others = 0, uint16(tt.oacs), tt.fna, tt.flbas, tt.dps, tt.others
		w, err := wipe(t, f.drive(f), Secure)
		if tt.refused != "" {
			bad(t, w, err, ErrWeaker, tt.refused)
		} else if good(t, f.medium, w, err, Purge, "NVMe Format, user data erase"); f.formal != tt.want {
			t.Errorf("%s: %#x, want %#x", tt.name, f.formal, tt.want)
		}
	}
	// Sanitize is for the whole drive.
	f := newNVMe(t)
	f.others, f.oacs = []uint32{2}, 0
	w, err := wipe(t, f.drive(f), Secure)
	bad(t, w, err, ErrWeaker, "other namespaces along")
}

func TestATAErase(t *testing.T) {
	const all = hasSanitize | hasCrypto | hasOverwrite | hasBlockErase
	for _, tt := range []struct {
		name               string
		flash              bool
		sanitize, security uint16
		policy, level      Level
		want               string // or why not
	}{
		{"block erase first", true, all, 0x21, Purge, Purge, "ATA SANITIZE, block erase"},
		{"crypto scramble", true, hasSanitize | hasCrypto, 0x21, Purge, Purge, "ATA SANITIZE, crypto scramble"},
		{"security erase of flash is no purge", true, 0, 0x21, Purge, 0, "ATA SECURITY ERASE, enhanced is only secure"},
		{"but it is secure", true, 0, 0x21, Secure, Secure, "ATA SECURITY ERASE, enhanced"},
		{"not enhanced", true, 0, 0x01, Secure, Secure, "ATA SECURITY ERASE"},
		{"enhanced on a magnetic disk is purge", false, 0, 0x21, Purge, Purge, "ATA SECURITY ERASE, enhanced"},
		{"not enhanced on a magnetic disk", false, 0, 0x01, Purge, 0, "is only secure"},
		{"overwrite of a magnetic disk", false, hasSanitize | hasOverwrite, 0x01, Purge, Purge, "ATA SANITIZE, overwrite"},
		{"overwrite of flash", true, hasSanitize | hasOverwrite, 0, Purge, 0, "overwrite is only secure"},
		{"nothing", false, 0, 0, Secure, 0, "the drive has no SECURITY ERASE"},
		{"a bit without the feature set", true, hasCrypto, 0, Secure, 0, "the drive has no SANITIZE DEVICE"},
		{"too many passwords", true, 0, 0x31, Secure, 0, "too many wrong passwords"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newATA(t, tt.flash)
			f.id[wordSanitize], f.id[wordSecurity] = tt.sanitize, tt.security
			w, err := wipe(t, f.drive(f), tt.policy)
			if tt.level == 0 {
				if bad(t, w, err, ErrWeaker, tt.want); len(f.log) > 0 || !f.old() {
					t.Errorf("it was told %q", f.log)
				}
				return
			}
			if good(t, f.medium, w, err, tt.level, tt.want); f.password != "" {
				t.Error("left with a password")
			}
		})
	}
}

func TestATAFrozen(t *testing.T) {
	f := newATA(t, true)
	f.id[wordSanitize] = 0
	f.id[wordSecurity] |= securityFrozen
	w, err := wipe(t, f.drive(f), Secure)
	bad(t, w, err, ErrFrozen, "SECURITY ERASE is frozen")
	if bad(t, w, err, ErrWeaker); !f.old() {
		t.Error("wiped nevertheless")
	}
	f.powerCycle() // the plug was pulled
	w, err = wipe(t, f.drive(f), Secure)
	good(t, f.medium, w, err, Secure, "ATA SECURITY ERASE, enhanced")

	// What freezes the password does not freeze SANITIZE.
	f = newATA(t, true)
	f.id[wordSecurity] |= securityFrozen
	w, err = wipe(t, f.drive(f), Secure)
	good(t, f.medium, w, err, Purge, "ATA SANITIZE, block erase")
	noted(t, w, "SECURITY ERASE is frozen")
}

func TestATALies(t *testing.T) {
	f := newATA(t, true)
	f.lie = true
	w, err := wipe(t, f.drive(f), Secure)
	bad(t, w, err, ErrWeaker, "ATA SANITIZE, block erase: the drive says it is done, and", "ATA SECURITY ERASE, enhanced: the drive says it is done, and")
	if f.password != "" {
		t.Error("left with a password")
	}
	f = newATA(t, true)
	f.id[wordSanitize] = 0
	f.keepsLock = true
	w, err = wipe(t, f.drive(f), Secure)
	bad(t, w, err, ErrWeaker, "locked as if it had not begun")
	if f.password != "" {
		t.Error("left with a password")
	}
}

// A sanitize that is over is not one that ended well.
func TestATAMute(t *testing.T) {
	f := newATA(t, true)
	f.mute, f.id[wordSecurity] = true, 0
	w, err := wipe(t, f.drive(f), Secure)
	bad(t, w, err, ErrWeaker, "does not say that it ended without error")
}

func TestATAPowerCut(t *testing.T) {
	for _, fixed := range []bool{false, true} {
		f := newATA(t, true)
		f.id[wordSanitize], f.cut = 0, true
		// The power goes: the machine is gone too, and nobody takes the password away.
		w, err := wipe(t, f.drive(off{f}), Secure)
		if err == nil || w.Reached != 0 || f.password != ataPassword || f.id[wordSecurity]&securityLocked == 0 || !f.old() {
			t.Fatalf("%+v, %v, password %q", w, err, f.password)
		}
		f.fixed = fixed
		if d := f.drive(f); fixed {
			if w, err = wipe(t, d, Overwrite); err != nil || w.Reached != Overwrite || f.old() || f.password != "" {
				t.Fatalf("%+v, %v", w, err)
			}
		} else {
			w, err = wipe(t, d, Secure)
			good(t, f.medium, w, err, Secure, "ATA SECURITY ERASE, enhanced")
		}

		// Somebody else's password.
		f = newATA(t, true)
		f.id[wordSanitize], f.password, f.fixed = 0, "their dog", fixed
		f.id[wordSecurity] |= securityEnabled
		f.powerCycle()
		w, err = wipe(t, f.drive(f), Secure)
		bad(t, w, err, ErrWeaker, "a password that Smelt does not know", "PSID")
		w, err = wipe(t, f.drive(f), Overwrite)
		bad(t, w, err, ErrWeaker, "locked with a password")
		if f.password != "their dog" || !f.old() {
			t.Error("changed")
		}

		// SANITIZE goes on by itself, and may fail meanwhile.
		f = newATA(t, true)
		f.running, f.left, f.fixed = ataBlockErase, 3, fixed
		f.fail = true
		w, err = wipe(t, f.drive(f), Purge)
		if err != nil || w.Reached != Purge || w.Proofs != 0 || f.old() {
			t.Fatalf("%+v, %v", w, err)
		}
	}
}

// off is a drive whose machine is gone once its power was cut: nothing of what
// follows reaches it.
type off struct{ *fakeATA }

func (o off) scsi(c *scsiCommand) error {
	if o.id[wordSecurity]&securityLocked != 0 {
		return unix.EIO
	}
	return o.fakeATA.scsi(c)
}

func TestSAS(t *testing.T) {
	for _, tt := range []struct {
		name          string
		has           [4]bool
		flash, noRSOC bool
		policy, level Level
		want          string
	}{
		{"block erase", [4]bool{2: true, 3: true}, true, false, Purge, Purge, "SCSI SANITIZE, block erase"},
		{"cryptographic erase", [4]bool{3: true}, false, false, Purge, Purge, "SCSI SANITIZE, cryptographic erase"},
		{"overwrite of a magnetic disk", [4]bool{1: true}, false, false, Purge, Purge, "SCSI SANITIZE, overwrite"},
		{"overwrite of flash", [4]bool{1: true}, true, false, Purge, 0, "only secure"},
		{"a RAID controller", [4]bool{}, false, false, Secure, 0, "SEAGATE ST4000NM0023 has no SANITIZE; a drive behind a RAID controller"},
		{"cannot tell", [4]bool{2: true}, false, true, Secure, 0, "set the controller to HBA"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newSAS(t)
			f.has, f.flash, f.rsoc = tt.has, tt.flash, !tt.noRSOC
			w, err := wipe(t, f.drive(f), tt.policy)
			if tt.level == 0 {
				bad(t, w, err, ErrWeaker, tt.want)
				return
			}
			good(t, f.medium, w, err, tt.level, tt.want)
		})
	}
	f := newSAS(t)
	f.has, f.lie = [4]bool{2: true}, true
	w, err := wipe(t, f.drive(f), Secure)
	bad(t, w, err, ErrWeaker, "still hold what they held")
	f.lie, f.fail = false, true
	w, err = wipe(t, f.drive(f), Secure)
	bad(t, w, err, ErrWeaker, "could not finish it")
	f.fail = false
	w, err = wipe(t, f.drive(f), Secure)
	if err != nil || w.Reached != Purge || f.old() {
		t.Errorf("%+v, %v", w, err)
	}
}

// A disk that speaks no language of drives, as virtio-blk.
func TestNoErase(t *testing.T) {
	m := newMedium(t)
	w, err := wipe(t, m.drive(m), Secure)
	if bad(t, w, err, ErrWeaker, "choose overwrite"); !m.old() {
		t.Error("wiped nevertheless")
	}
	m.discards = false
	w, err = wipe(t, m.drive(m), Discard)
	if !errors.Is(err, ErrWeaker) || w.Reached != Metadata || w.Method != "signatures cleared" {
		t.Errorf("%+v, %v", w, err)
	}
	m.discards = true
	w, err = wipe(t, m.drive(m), Discard)
	good(t, m, w, err, Discard, "discard")
}

// A drive with bad sectors is erased all the same; one on which nothing can be
// written is not said to be.
func TestBadSectors(t *testing.T) {
	f := newNVMe(t)
	w, err := wipe(t, f.drive(bad1in3{f}), Purge)
	if err != nil || w.Reached != Purge || f.old() || w.Proofs < marks/2 {
		t.Errorf("%+v, %v", w, err)
	}
	f = newNVMe(t)
	f.io = func() error { return unix.EIO }
	if w, err = wipe(t, f.drive(f), Purge); err == nil || w.Reached != 0 || len(f.log) > 0 {
		t.Errorf("%+v, %v, %q", w, err, f.log)
	}
	f = newNVMe(t)
	if w, err = wipe(t, f.drive(readOnly{f}), Purge); err == nil || !strings.Contains(err.Error(), "proven") || w.Reached != 0 || len(f.log) > 0 {
		t.Errorf("%+v, %v, %q", w, err, f.log)
	}
}

// bad1in3 has bad sectors, until it is erased, in every third megabyte.
type bad1in3 struct{ *fakeNVMe }

func (b bad1in3) bad(off int64) bool { return b.state != sanitizeDone && off>>20%3 == 1 && off > 8*mib }

func (b bad1in3) ReadAt(p []byte, off int64) (int, error) {
	if b.bad(off) {
		return 0, unix.EIO
	}
	return b.fakeNVMe.ReadAt(p, off)
}

func (b bad1in3) WriteAt(p []byte, off int64) (int, error) {
	if b.bad(off) {
		return 0, unix.EIO
	}
	return b.fakeNVMe.WriteAt(p, off)
}

// readOnly is a drive of zeros that is worn out.
type readOnly struct{ *fakeNVMe }

func (r readOnly) ReadAt(p []byte, _ int64) (int, error) { clear(p); return len(p), nil }
func (r readOnly) WriteAt([]byte, int64) (int, error)    { return 0, unix.EIO }

// What a drive offers is known before anything is approved.
func TestOffers(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if got := Offers(file); got != "" {
		t.Errorf("a file offers %q", got)
	}
	if Lost(file) || Settle(t.Context(), file, nil) != nil {
		t.Error("a file is lost")
	}
	best := func(p port) string {
		own, err := (&drive{port: p}).eraser(false)
		if err != nil {
			t.Fatal(err)
		}
		return offered(own)
	}
	frozen := newATA(t, true)
	frozen.id[wordSanitize] = 0
	frozen.id[wordSecurity] |= securityFrozen
	old := newATA(t, true)
	old.id[wordSanitize] = 0
	two := newNVMe(t)
	two.others, two.fna = []uint32{2}, 1
	for want, p := range map[string]port{
		"purge": newNVMe(t), "none": two, "": frozen, "secure": old,
	} {
		if got := best(p); got != want {
			t.Errorf("%T offers %q, want %q", p, got, want)
		}
	}
	if got := best(newMedium(t)); got != "none" {
		t.Errorf("a disk without a language offers %q", got)
	}
	// To look is to change nothing: not even a password of ours is taken away.
	locked := newATA(t, true)
	locked.password = ataPassword
	locked.id[wordSecurity] |= securityEnabled
	locked.powerCycle()
	if best(locked); locked.password != ataPassword || locked.id[wordSecurity]&securityLocked == 0 {
		t.Error("unlocked by a look")
	}
}

func FuzzSense(f *testing.F) {
	f.Add(fixedSense(2, 4, 0x1b))
	f.Add([]byte{0x72, 1, 0, 0x1d, 0, 0, 0, 14, 0x09, 12, 1, 4, 0, 0, 0, 1, 0, 0, 0, 0, 0x40, 0x51})
	f.Add([]byte{0x72, 2, 4, 0x1b, 0, 0, 0, 8, 2, 6, 0, 0, 0x80, 0x10, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		if s := parseSense(b); s.progress < 0 || s.progress >= 1 || s.key > 15 || s.Error() == "" {
			t.Errorf("%+v", s)
		}
		var tf taskfile
		if tf.registers(b) && len(b) < 8 {
			t.Error("registers from nothing")
		}
	})
}

// A command that answers after minutes is no silence: whoever watches the
// machine hears of it each second.
func TestSignOfLife(t *testing.T) {
	for name, takes := range map[string]time.Duration{"known": time.Minute, "unknown": 0} {
		synctest.Test(t, func(t *testing.T) {
			d := &drive{size: 1000, pause: time.Second}
			heard, last := 0, int64(0)
			err := d.meanwhile(takes, func(done, _ int64) {
				if heard++; done < last || done >= 1000 {
					t.Errorf("%s: %d after %d", name, done, last)
				}
				last = done
			}, func() error { time.Sleep(90*time.Second + time.Millisecond); return nil })
			if err != nil || heard != 90 || (last > 0) != (takes > 0) {
				t.Errorf("%s: %v, heard %d times, last %d", name, err, heard, last)
			}
		})
	}
}

// The kernel takes what is laid out as its own.
func TestLayouts(t *testing.T) {
	if got := unsafe.Sizeof(sgHeader{}); unsafe.Sizeof(uintptr(0)) == 8 && got != 88 {
		t.Errorf("struct sg_io_hdr has 88 bytes, not %d", got)
	}
	if got := unsafe.Offsetof(sgHeader{}.status); unsafe.Sizeof(uintptr(0)) == 8 && got != 64 {
		t.Errorf("its status is at 64, not %d", got)
	}
}
