package check

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"smelt/burnin"
	"smelt/inventory"
)

// Disk writes a scratch file past the page cache, reads it back and compares
// every byte. It watches the error counter of the drive where there is one.
//
// Limits: bytes, how much is written and read (default 256 MiB); minMBps, the
// slowest sequential write and read that is accepted, in 10^6 bytes/s (no
// default).
type Disk struct{}

// ID implements burnin.Check.
func (Disk) ID() string { return burnin.Disk }

const diskBlock = 1 << 20

// Run implements burnin.Check.
func (d Disk) Run(ctx context.Context, spec burnin.Spec, s burnin.Subject, rec burnin.Recorder) burnin.Result {
	r := begin(d.ID())
	r.WorkUnit = "bytes verified"
	if s.Scratch == "" {
		return errored(r, "no scratch folder is named")
	}
	if err := os.MkdirAll(s.Scratch, 0o700); err != nil {
		return errored(r, "scratch folder: %v", err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(s.Scratch, &fs); err != nil {
		return errored(r, "scratch folder: %v", err)
	}
	size := int64(limit(spec, "bytes", 256<<20)) / diskBlock * diskBlock
	if room := int64(fs.Bavail) * fs.Bsize / 2; size > room {
		size = room / diskBlock * diskBlock
		r.Log = append(r.Log, fmt.Sprintf("the file system has room for %d MiB only", size>>20))
	}
	if size < diskBlock {
		return errored(r, "no room for a scratch file in %s", s.Scratch)
	}
	name, item, where := diskOf(s)
	errorsBefore := ioErrors(name)

	path := filepath.Join(s.Scratch, "burnin.scratch")
	_ = os.Remove(path) // of a run that was killed
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_DIRECT|unix.O_CLOEXEC, 0o600)
	if errors.Is(err, unix.EINVAL) {
		_ = os.Remove(path)
		return errored(r, "%s cannot be written past the page cache: nothing would be proven", s.Scratch)
	}
	if err != nil {
		return errored(r, "scratch file: %v", err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer os.Remove(path)
	defer f.Close()

	buf, want := aligned(diskBlock), make([]byte, diskBlock)
	var wrote, read, wrong, failed int64
	var writing, reading time.Duration
	for pass := uint64(0); ctx.Err() == nil && (pass == 0 || time.Since(r.Started) < spec.Duration); pass++ {
		began := time.Now()
		for off := int64(0); off < size && ctx.Err() == nil; off += diskBlock {
			noise(buf, pass, off)
			if _, err := f.WriteAt(buf, off); err != nil {
				failed++
				note(&r, "write at %d: %v", off, err)
				continue
			}
			wrote += diskBlock
			rec.Progress(frac(time.Since(r.Started), spec.Duration)*0.99, fmt.Sprintf("writing %d MiB, pass %d", size>>20, pass+1))
		}
		if err := f.Sync(); err != nil {
			failed++
			note(&r, "flush: %v", err)
		}
		took := time.Since(began)
		writing += took
		rec.Sample("disk write", "MB/s", float64(size)/1e6/took.Seconds())

		began = time.Now()
		for off := int64(0); off < size && ctx.Err() == nil; off += diskBlock {
			if _, err := f.ReadAt(buf, off); err != nil {
				failed++
				note(&r, "read at %d: %v", off, err)
				continue
			}
			if noise(want, pass, off); !bytes.Equal(buf, want) {
				wrong++
				note(&r, "the MiB at %d reads back differently", off)
			}
			read += diskBlock
			rec.Progress(frac(time.Since(r.Started), spec.Duration)*0.99, fmt.Sprintf("reading %d MiB back, pass %d", size>>20, pass+1))
		}
		took = time.Since(began)
		reading += took
		rec.Sample("disk read", "MB/s", float64(size)/1e6/took.Seconds())
	}
	r.Work = float64(read)
	find := func(name string, v float64, unit, cause string) burnin.Finding {
		return burnin.Finding{Item: item, Where: where, Name: name, Value: v, Unit: unit, Cause: cause}
	}
	r.Findings = append(r.Findings,
		atMost(find("blocks that read back differently", float64(wrong), "", burnin.CauseDisk), 0),
		atMost(find("failed reads and writes", float64(failed), "", burnin.CauseDisk), 0),
		atMost(find("errors counted by the driver", float64(ioErrors(name)-errorsBefore), "", burnin.CauseDisk), 0),
	)
	floor := limit(spec, "minMBps", 0)
	r.Findings = append(r.Findings,
		atLeast(find("write speed", speed(wrote, writing), " MB/s", burnin.CauseDiskSlow), floor),
		atLeast(find("read speed", speed(read, reading), " MB/s", burnin.CauseDiskSlow), floor),
	)
	finish(ctx, &r, fmt.Sprintf("%d MiB written and read back, every byte right", read>>20))
	return r
}

func speed(n int64, d time.Duration) float64 {
	if d <= 0 {
		return 0
	}
	return float64(n) / 1e6 / d.Seconds()
}

func note(r *burnin.Result, format string, args ...any) {
	if len(r.Log) < 20 {
		r.Log = append(r.Log, fmt.Sprintf(format, args...))
	}
}

// aligned returns n bytes that direct I/O takes.
func aligned(n int) []byte {
	b := make([]byte, n+4096)
	off := int(-uintptr(unsafe.Pointer(&b[0])) & 4095)
	return b[off : off+n : off+n]
}

// noise fills b with what belongs at off in this pass: nothing a drive could
// compress away or answer from a neighbour.
func noise(b []byte, pass uint64, off int64) {
	x := (uint64(off)+1)*0x9e3779b97f4a7c15 ^ (pass+1)<<40
	for i := 0; i+8 <= len(b); i += 8 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		binary.LittleEndian.PutUint64(b[i:], x)
	}
}

// diskOf finds the drive under the scratch folder: its kernel name, and how
// inspection called it.
func diskOf(s burnin.Subject) (name, item, where string) {
	var st unix.Stat_t
	if unix.Stat(s.Scratch, &st) != nil {
		return "", "disk", ""
	}
	dev, err := filepath.EvalSymlinks(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)))
	if err != nil {
		return "", "disk under " + s.Scratch, ""
	}
	if _, err := os.Stat(filepath.Join(dev, "partition")); err == nil {
		dev = filepath.Dir(dev)
	}
	name = filepath.Base(dev)
	for _, d := range s.Hardware.Disks {
		if d.Name == name {
			return name, "disk " + label(d), d.Path
		}
	}
	return name, "disk " + name, ""
}

func label(d inventory.Disk) string {
	if d.Serial != "" {
		return "S/N " + d.Serial
	}
	return d.Name
}

// ioErrors is the driver's count of failed commands; only SCSI and SATA keep
// one.
func ioErrors(name string) int64 {
	if name == "" {
		return 0
	}
	n, _ := readInt(filepath.Join("/sys/block", name, "device/ioerr_cnt"))
	return n
}
