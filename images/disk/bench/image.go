package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"smelt/images"
)

// published is an image in each of the forms that the tools take: URLs, but
// for what ends in File and the manifest, which a node has got before.
type published struct {
	kind                          string
	manifest                      string // Smelt's
	raw, zst, bmap, qcow2, qcow2z string
	rawFile, bmapFile             string
	data, blobLen                 int64
}

// measure runs the tools on one image, in turn, so that a noisy neighbour
// disturbs them all.
func measure(ctx context.Context, dir string, size int64, kind, only string, rounds int, mbs int64) (outcome, error) {
	dir, err := os.MkdirTemp(dir, kind+"-*")
	if err != nil {
		return outcome{}, err
	}
	defer os.RemoveAll(dir)
	var made prepared
	if err := ask(ctx, &made, "publish", dir, strconv.FormatInt(size, 10), kind); err != nil {
		return outcome{}, err
	}
	p, stop, err := serve(dir, kind, size, made)
	if err != nil {
		return outcome{}, err
	}
	defer stop()
	dev, free, err := newDisk(dir, size)
	if err != nil {
		return outcome{}, err
	}
	defer free()
	// Once without measuring: the file system notes that the file is written.
	if _, err := fio(ctx, dev, size); err != nil {
		return outcome{}, err
	}
	if mbs > 0 {
		unbound, err := bound(dev, mbs*1e6)
		if err != nil {
			return outcome{}, err
		}
		defer unbound()
	}
	o := outcome{kind: kind, size: size, data: p.data, blob: p.blobLen, mbs: mbs}
	for _, t := range tools {
		if selected(t.name, only) && t.pipe(p, dev) != nil {
			o.rows = append(o.rows, row{tool: t, same: true})
		}
	}
	for round := range rounds {
		for i := range o.rows {
			r := &o.rows[i]
			if r.failed != "" {
				continue
			}
			// fio measures the limit and makes the disk dirty. After holes were
			// punched its first pass is slower: it gives the file its blocks back.
			if kind == "sparse" {
				if err := preallocate(filepath.Join(dir, "disk"), size); err != nil {
					return o, err
				}
			}
			limit, err := fio(ctx, dev, size)
			if err != nil {
				return o, err
			}
			// A tool that hangs is ended: qemu-img's HTTP does, now and then.
			limited, cancel := context.WithTimeout(ctx, time.Minute+time.Duration(size>>26)*time.Second)
			s, err := runs(limited, r.pipe(p, dev))
			if limited.Err() != nil && ctx.Err() == nil {
				err = fmt.Errorf("did not end: %w", err)
			}
			cancel()
			if ctx.Err() != nil {
				return o, ctx.Err()
			}
			if err != nil {
				r.failed = err.Error()
				fmt.Fprintf(os.Stderr, "%s: %v\n", r.name, err)
				continue
			}
			s.limit = limit
			r.samples = append(r.samples, s)
			var same bool
			if err := ask(ctx, &same, "equal", dev, filepath.Join(dir, "raw"), strconv.FormatInt(size, 10)); err != nil {
				return o, err
			}
			r.same = r.same && same
			fmt.Fprintf(os.Stderr, "%s, round %d: %-40s %6.2f s, %6.2f CPU s, fio before %.2f s, same: %v\n",
				o, round+1, r.name, s.took.Seconds(), s.cpu.Seconds(), limit.Seconds(), same)
		}
	}
	return o, nil
}

func selected(name, only string) bool {
	return only == "" || slices.ContainsFunc(strings.Split(only, ","), func(s string) bool { return strings.HasPrefix(name, s) })
}

// unit is how much noise is made: a longer image is it again and again, so that
// the server has everything in memory and reads nothing from the disk that is
// measured. No tool here looks back that far.
const unit = 1 << 30

// prepared is what publish tells.
type prepared struct {
	Blob          images.Digest
	Data, BlobLen int64
}

// publish makes an image and its published forms in dir.
func publish(ctx context.Context, dir string, size int64, kind string) error {
	raw := filepath.Join(dir, "raw")
	made := size
	var err error
	switch kind {
	case "incompressible":
		made = min(size, unit)
		err = writeNoise(raw, made)
	case "sparse":
		err = writeSystem(ctx, raw, size)
	default:
		err = fmt.Errorf("no image is called %q", kind)
	}
	if err != nil {
		return err
	}
	store, err := images.OpenStore(filepath.Join(dir, "store"))
	if err != nil {
		return err
	}
	f, err := os.Open(raw)
	if err != nil {
		return err
	}
	defer f.Close()
	began := time.Now()
	d, err := store.Add(ctx, images.Manifest{Name: "bench", Arch: "amd64", Created: began.UTC()}, f, made,
		ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)), nil)
	if err != nil {
		return err
	}
	m, err := store.Manifest(d)
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "%s: %d MiB, %d MiB of data, %d MiB in the store after %.1f s\n", kind, made>>20, m.Data()>>20, m.BlobLen>>20, time.Since(began).Seconds())
	if m, err = again(m, size); err != nil {
		return err
	}
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "manifest.json"), b, 0o600); err != nil {
		return err
	}
	if kind == "sparse" {
		for _, c := range [][]string{
			{"bmaptool", "-q", "create", "-o", raw + ".bmap", raw},
			{"qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, raw + ".qcow2"},
			{"qemu-img", "convert", "-c", "-W", "-m", "4", "-o", "compression_type=zstd", "-f", "raw", "-O", "qcow2", raw, raw + "z.qcow2"},
		} {
			if out, err := exec.CommandContext(ctx, c[0], c[1:]...).CombinedOutput(); err != nil {
				return fmt.Errorf("%s: %w\n%s", c[0], err, out)
			}
		}
	}
	return json.NewEncoder(os.Stdout).Encode(prepared{m.Blob, m.Data(), m.BlobLen})
}

// again returns the manifest of an image that is m's several times.
func again(m images.Manifest, size int64) (images.Manifest, error) {
	if size%m.Size != 0 {
		return m, fmt.Errorf("%d MiB are no multiple of %d MiB", size>>20, m.Size>>20)
	}
	one, blob := m.Chunks, m.BlobLen
	for m.Size < size {
		for _, c := range one {
			c.Offset += m.Size
			c.BlobOff += m.BlobLen
			m.Chunks = append(m.Chunks, c)
		}
		m.Size += int64(len(one)) * images.ChunkSize
		m.BlobLen += blob
	}
	return m, m.Validate()
}

// serve serves what publish made to all tools alike, by sendfile.
func serve(dir, kind string, size int64, made prepared) (published, func(), error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return published{}, nil, err
	}
	raw, blob := filepath.Join(dir, "raw"), filepath.Join(dir, "store", "blobs", made.Blob.String())
	mux := http.NewServeMux()
	mux.Handle("/raw", repeated{raw, size})
	mux.Handle("/raw.zst", repeated{blob, made.BlobLen})
	mux.Handle("/", http.FileServer(http.Dir(dir)))
	srv := &http.Server{Handler: mux}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	base := "http://" + l.Addr().String()
	return published{
			kind: kind, data: made.Data, blobLen: made.BlobLen, manifest: filepath.Join(dir, "manifest.json"),
			raw: base + "/raw", zst: base + "/raw.zst", bmap: base + "/raw.bmap", qcow2: base + "/raw.qcow2", qcow2z: base + "/rawz.qcow2",
			rawFile: raw, bmapFile: raw + ".bmap",
		}, func() {
			srv.Close()
			if e := <-served; !errors.Is(e, http.ErrServerClosed) {
				fmt.Fprintln(os.Stderr, "server:", e)
			}
		}, nil
}

// repeated serves a file as often after itself as makes size, with ranges.
type repeated struct {
	path string
	size int64
}

func (f repeated) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	file, err := os.Open(f.path)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer file.Close()
	i, err := file.Stat()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if i.Size() == f.size {
		http.ServeContent(w, r, "", time.Time{}, file)
		return
	}
	off, end, status := int64(0), f.size, http.StatusOK
	if s, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes="); ok {
		from, to, _ := strings.Cut(s, "-")
		off, err = strconv.ParseInt(from, 10, 64)
		if last, e := strconv.ParseInt(to, 10, 64); e == nil {
			end = min(last+1, f.size)
		}
		if err != nil || off >= end {
			http.Error(w, "range", http.StatusRequestedRangeNotSatisfiable)
			return
		}
		status = http.StatusPartialContent
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", off, end-1, f.size))
	}
	w.Header().Set("Accept-Ranges", "bytes")
	w.Header().Set("Content-Length", strconv.FormatInt(end-off, 10))
	w.WriteHeader(status)
	if r.Method == http.MethodHead {
		return
	}
	for off < end {
		at := off % i.Size()
		n := min(end-off, i.Size()-at)
		if _, err := file.Seek(at, io.SeekStart); err != nil {
			return
		}
		if _, err := io.CopyN(w, file, n); err != nil {
			return // the tool has gone
		}
		off += n
	}
}

// writeNoise makes an image that no compressor shortens.
func writeNoise(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, 4<<20)
	var seed [32]byte
	r := rand.NewChaCha8(seed)
	for off := int64(0); off < size; off += int64(len(b)) {
		r.Read(b)
		if _, err := f.Write(b[:min(int64(len(b)), size-off)]); err != nil {
			return err
		}
	}
	return f.Sync()
}

// writeSystem makes the file system of an installed machine, a tenth full: this
// machine's programs, libraries and documents.
func writeSystem(ctx context.Context, path string, size int64) error {
	tree := path + ".tree"
	defer os.RemoveAll(tree)
	left := size / 10
	for _, top := range []string{"/usr/bin", "/usr/sbin", "/usr/lib", "/usr/share"} {
		err := filepath.WalkDir(top, func(p string, e fs.DirEntry, err error) error {
			if err != nil || left <= 0 {
				return err
			}
			to := filepath.Join(tree, p)
			if e.IsDir() {
				return os.MkdirAll(to, 0o755)
			}
			if !e.Type().IsRegular() {
				return nil
			}
			i, err := e.Info()
			if err != nil {
				return err
			}
			left -= i.Size()
			if os.Link(p, to) == nil {
				return nil
			}
			return copyFile(to, p)
		})
		if err != nil {
			return err
		}
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(path, size); err != nil {
		return err
	}
	// What mke2fs leaves out it would leave to the first mount.
	out, err := exec.CommandContext(ctx, "mke2fs", "-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=1", "-d", tree, path).CombinedOutput()
	if err != nil {
		return fmt.Errorf("mke2fs: %w\n%s", err, out)
	}
	return nil
}

func copyFile(to, from string) error {
	r, err := os.Open(from)
	if err != nil {
		return err
	}
	defer r.Close()
	w, err := os.Create(to)
	if err != nil {
		return err
	}
	defer w.Close()
	if _, err := io.Copy(w, r); err != nil {
		return err
	}
	return w.Close()
}

func preallocate(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, size); err != nil {
		return fmt.Errorf("%d MiB for the disk: %w", size>>20, err)
	}
	return nil
}

// newDisk returns a loop device with direct I/O on a preallocated file.
func newDisk(dir string, size int64) (path string, free func(), err error) {
	path = filepath.Join(dir, "disk")
	if err := preallocate(path, size); err != nil {
		return "", nil, err
	}
	out, err := exec.Command("losetup", "--find", "--show", "--direct-io=on", path).Output()
	if err != nil {
		return "", nil, fmt.Errorf("losetup: %w: the bench needs a loop device, and root", err)
	}
	loop := strings.TrimSpace(string(out))
	return loop, func() {
		// Not with the bench's context: that is over when it is interrupted.
		if out, err := exec.Command("losetup", "-d", loop).CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "losetup -d %s: %v\n%s", loop, err, out)
		}
	}, nil
}

// throttle is where the kernel takes a device's limits for everybody, writeback
// included (cgroup v1, Documentation/admin-guide/cgroup-v1/blkio-controller.rst).
const throttle = "/sys/fs/cgroup/blkio/blkio.throttle.write_bps_device"

// bound makes the device as slow as a slower one.
func bound(dev string, bytesPerSecond int64) (free func(), err error) {
	number, err := os.ReadFile("/sys/block/" + filepath.Base(dev) + "/dev")
	if err != nil {
		return nil, err
	}
	set := func(n int64) error {
		return os.WriteFile(throttle, fmt.Appendf(nil, "%s %d", strings.TrimSpace(string(number)), n), 0o644)
	}
	if err := set(bytesPerSecond); err != nil {
		return nil, fmt.Errorf("slow %s down: %w", dev, err)
	}
	return func() {
		if err := set(0); err != nil {
			fmt.Fprintf(os.Stderr, "%s stays slow: %v\n", dev, err)
		}
	}, nil
}

// equal compares the disk, not what the kernel remembers of it, with the image.
func equal(dev, raw string, size int64) (bool, error) {
	d, err := os.OpenFile(dev, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return false, err
	}
	defer d.Close()
	r, err := os.Open(raw)
	if err != nil {
		return false, err
	}
	defer r.Close()
	i, err := r.Stat()
	if err != nil {
		return false, err
	}
	var g errgroup.Group
	const piece = 4 << 20
	n := int64(runtime.NumCPU())
	differs := errors.New("differs")
	for k := range n {
		g.Go(func() error {
			a, err := unix.Mmap(-1, 0, piece, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE) // aligned
			if err != nil {
				return err
			}
			defer unix.Munmap(a)
			b := make([]byte, piece)
			for off := k * piece; off < size; off += n * piece {
				l := min(piece, size-off)
				if _, err := d.ReadAt(a[:l], off); err != nil {
					return err
				}
				if _, err := r.ReadAt(b[:l], off%i.Size()); err != nil {
					return err
				}
				if !bytes.Equal(a[:l], b[:l]) {
					return differs
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err == differs {
		return false, nil
	} else if err != nil {
		return false, err
	}
	return true, nil
}
