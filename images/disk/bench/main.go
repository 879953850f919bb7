// Bench measures how fast an image gets onto a disk: the chunk writer over
// loopback HTTP, which decompresses and verifies every chunk, against dd of the
// raw image to the same disk in the same run. Its last line is JSON.
//
//	go run ./images/disk/bench [-size MiB] [-data MiB] [-dir DIR]
package main

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"smelt/images"
	"smelt/images/disk"
)

func main() {
	size := flag.Int64("size", 1536, "size of the image, MiB")
	data := flag.Int64("data", 400, "of that, data; MiB")
	dir := flag.String("dir", "", "folder for image and disk (default: a temporary one)")
	rounds := flag.Int("rounds", 3, "runs of each; the best counts")
	flag.Parse()
	if err := run(*dir, *size<<20, *data<<20, *rounds); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(dir string, size, data int64, rounds int) (err error) {
	if dir, err = os.MkdirTemp(dir, "smelt-bench-*"); err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	ctx := context.Background()

	raw := filepath.Join(dir, "raw")
	if err := writeRaw(raw, size, data); err != nil {
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
	d, err := store.Add(ctx, images.Manifest{Name: "bench", Arch: "amd64", Created: began.UTC()}, f, size,
		ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)), nil)
	if err != nil {
		return err
	}
	m, err := store.Manifest(d)
	if err != nil {
		return err
	}
	fmt.Printf("image: %d MiB, %d MiB of data, %d MiB compressed in %.1f s\n", size>>20, m.Data()>>20, m.BlobLen>>20, time.Since(began).Seconds())

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: store.Handler()}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	defer func() {
		srv.Close()
		if e := <-served; !errors.Is(e, http.ErrServerClosed) {
			err = errors.Join(err, e)
		}
	}()

	target, kind, free, err := newDisk(dir, size)
	if err != nil {
		return err
	}
	defer free()
	fmt.Println("disk:", kind)
	fetch := disk.HTTP(&http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16}}, fmt.Sprintf("http://%s/blob/%s", l.Addr(), m.Blob))

	var write, dd time.Duration
	for i := range rounds {
		// In turn, so that a noisy neighbour disturbs both.
		t := time.Now()
		out, err := exec.Command("dd", "if="+raw, "of="+target, "bs=4M", "oflag=direct", "conv=notrunc,fsync", "status=none").CombinedOutput()
		if err != nil {
			return fmt.Errorf("dd: %v\n%s", err, out)
		}
		b := time.Since(t)
		r, err := disk.Write(ctx, target, m, fetch, disk.Options{})
		if err != nil {
			return err
		}
		fmt.Printf("round %d: dd %.2f s, write %.2f s\n", i+1, b.Seconds(), r.Elapsed.Seconds())
		if dd == 0 || b < dd {
			dd = b
		}
		if write == 0 || r.Elapsed < write {
			write = r.Elapsed
		}
	}
	mbs := func(t time.Duration) float64 { return float64(size) / 1e6 / t.Seconds() }
	return json.NewEncoder(os.Stdout).Encode(map[string]any{
		"bench": "images",
		"results": map[string]float64{
			"write_vs_dd": round(dd.Seconds() / write.Seconds()), // above 1: faster than dd
			"write_mb_s":  round(mbs(write)),
			"dd_mb_s":     round(mbs(dd)),
		},
	})
}

func round(f float64) float64 { return float64(int64(f*100+0.5)) / 100 }

// writeRaw makes something like an OS image: data that compresses about 3:1 in
// the front of every 64 MiB, zeros behind.
func writeRaw(path string, size, data int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return err
	}
	const stride = 64 << 20
	run := data / ((size + stride - 1) / stride) &^ 4095
	r := rand.New(rand.NewPCG(1, 2))
	words := make([]byte, 64<<10)
	for i := range words {
		words[i] = byte(r.Uint32())
	}
	b := make([]byte, run)
	for off := int64(0); off < size; off += stride {
		for i := 0; i < len(b); {
			n := 8 + r.IntN(56)
			if r.IntN(3) == 0 { // something new
				for j := i; j < min(i+n/2, len(b)); j++ {
					b[j] = byte(r.Uint32())
				}
				n /= 2
			} else { // something again
				copy(b[i:min(i+n, len(b))], words[r.IntN(len(words)-64):])
			}
			i += n
		}
		if _, err := f.WriteAt(b[:min(run, size-off)], off); err != nil {
			return err
		}
	}
	return f.Sync()
}

// newDisk returns a loop device on a preallocated file, or that file where
// there are no loop devices.
func newDisk(dir string, size int64) (path, kind string, free func(), err error) {
	path = filepath.Join(dir, "disk")
	f, err := os.Create(path)
	if err != nil {
		return "", "", nil, err
	}
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, size); err != nil {
		return "", "", nil, err
	}
	out, err := exec.Command("losetup", "--find", "--show", "--direct-io=on", path).Output()
	if err != nil {
		return path, "preallocated file", func() {}, nil
	}
	loop := strings.TrimSpace(string(out))
	return loop, "loop device on a preallocated file", func() {
		if out, err := exec.Command("losetup", "-d", loop).CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "losetup -d %s: %v\n%s", loop, err, out)
		}
	}, nil
}
