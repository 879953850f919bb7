package ramroot

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"smelt/images"
	"smelt/images/disk"
	"smelt/images/gpt"
)

// alone moves the test into mounts of its own, which end with it.
func alone(t *testing.T) {
	t.Helper()
	why := ""
	if os.Geteuid() != 0 {
		why = "mounts need root"
	} else if _, err := os.Stat("/dev/loop-control"); err != nil {
		why = err.Error()
	}
	if why != "" && os.Getenv("SMELT_TEST_NO_SKIP") == "1" {
		t.Fatal(why)
	} else if why != "" {
		t.Skip(why)
	}
	runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
}

const uuid = "0f0e0d0c-0b0a-0908-0706-050403020100"

// image is a small image with a root file system in its last partition.
func image(t *testing.T) (m images.Manifest, blob []byte) {
	t.Helper()
	tree := t.TempDir()
	for name, text := range map[string]string{"etc/fstab": "UUID=" + uuid + " / ext4 defaults 0 1\n", "etc/hostname": "node\n", "sbin/init": "#!/bin/sh\n"} {
		if err := os.MkdirAll(filepath.Join(tree, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(tree, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	raw := filepath.Join(t.TempDir(), "raw")
	const size = 24 << 20
	f, err := os.Create(raw)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	table := gpt.Table{Disk: gpt.MustGUID(uuid), Parts: []gpt.Part{
		{Number: 1, Type: gpt.BIOSBoot, ID: gpt.MustGUID("11111111-2222-3333-4444-555555555555"), First: 2048, Last: 4095, Name: "bios"},
		{Number: 2, Type: gpt.Linux, ID: gpt.MustGUID("21111111-2222-3333-4444-555555555555"), First: 4096, Last: gpt.LastUsable(size) / 2048 * 2048, Name: "root"},
	}}
	if err := table.Write(f, size); err != nil {
		t.Fatal(err)
	}
	mke2fs := exec.Command("mke2fs", "-q", "-F", "-t", "ext4", "-U", uuid, "-d", tree, "-E", "offset=2097152", raw, "20480k")
	mke2fs.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	if out, err := mke2fs.CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v: %s", err, out)
	}
	var b bytes.Buffer
	if m, err = images.Compress(t.Context(), &b, f, size, nil); err != nil {
		t.Fatal(err)
	}
	m.Name, m.Arch, m.Root, m.Kernel = "test", "amd64", uuid, "6.1.0-56-amd64"
	return m, b.Bytes()
}

func from(blob []byte) disk.Fetch {
	return func(_ context.Context, off, n int64) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(blob[off : off+n])), nil
	}
}

func maker(t *testing.T) Maker {
	t.Helper()
	return Maker{Dir: filepath.Join(t.TempDir(), "image"), Root: filepath.Join(t.TempDir(), "root"), Load: func(string) error { return nil }}
}

// TestMake: the root is the image's, what is written to it is not in the image,
// it mounts no disk, and its memory can be given back.
func TestMake(t *testing.T) {
	alone(t)
	m, blob := image(t)
	k := maker(t)
	tree, _, err := k.Make(t.Context(), m, from(blob), nil)
	if err != nil {
		t.Fatal(err)
	}
	read := func(dir, name string) string {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
		}
		return string(b)
	}
	if s := read(tree.Root, "etc/fstab"); strings.Contains(s, "UUID=") {
		t.Errorf("it mounts a disk: %q", s)
	}
	if s := read(tree.Root, "etc/udev/rules.d/00-smelt-memory.rules"); !strings.Contains(s, "--setro") {
		t.Errorf("disks that appear late can be written: %q", s)
	}
	if err := os.WriteFile(filepath.Join(tree.Root, "etc/hostname"), []byte("rig-1\n"), 0o644); err != nil {
		t.Error(err)
	}
	if s := read(tree.Root, "etc/hostname") + read(tree.Image, "etc/hostname"); s != "rig-1\nnode\n" {
		t.Errorf("host names %q", s)
	}
	if err := os.WriteFile(filepath.Join(tree.Image, "etc/hostname"), nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("the image was written: %v", err)
	}
	// A second try replaces the first.
	if tree, _, err = k.Make(t.Context(), m, from(blob), nil); err != nil {
		t.Fatal(err)
	}
	if s := read(tree.Root, "etc/hostname"); s != "node\n" {
		t.Errorf("made anew it holds %q", s)
	}
	if err := tree.Remove(); err != nil {
		t.Fatal(err)
	}
	if mounts := read("/proc/self", "mounts"); strings.Contains(mounts, k.Dir) || strings.Contains(mounts, k.Root) {
		t.Errorf("what was mounted stays:\n%s", mounts)
	}
}

// TestSpoiled: an image that is not what its manifest says is no root, and
// leaves nothing.
func TestSpoiled(t *testing.T) {
	alone(t)
	m, blob := image(t)
	for what, spoil := range map[string]func(m *images.Manifest, b []byte) []byte{
		"one byte": func(m *images.Manifest, b []byte) []byte {
			for _, c := range m.Chunks {
				if !c.Zero {
					b[c.BlobOff+c.BlobLen/3] ^= 1 // the checksum at a frame's end would change nothing
				}
			}
			return b
		},
		"no partitions": func(m *images.Manifest, _ []byte) []byte { return noTable(t, m) },
	} {
		m := m
		b := spoil(&m, bytes.Clone(blob))
		k := maker(t)
		if _, _, err := k.Make(t.Context(), m, from(b), nil); err == nil {
			t.Errorf("%s: it is a root", what)
		}
		mounts, err := os.ReadFile("/proc/self/mounts")
		if err != nil || strings.Contains(string(mounts), k.Dir) {
			t.Errorf("%s: its memory is not given back", what)
		}
	}
}

func noTable(t *testing.T, m *images.Manifest) []byte {
	t.Helper()
	var b bytes.Buffer
	plain := bytes.Repeat([]byte("smelt"), 1<<20)
	n, err := images.Compress(t.Context(), &b, bytes.NewReader(plain), int64(len(plain))/512*512, nil)
	if err != nil {
		t.Fatal(err)
	}
	n.Name, n.Arch, n.Root, n.Kernel = m.Name, m.Arch, m.Root, m.Kernel
	*m = n
	return b.Bytes()
}

func TestFits(t *testing.T) {
	m := images.Manifest{Name: "big", Chunks: []images.Chunk{{Length: 1 << 50}, {Length: 1 << 50, Zero: true}}}
	if err := Fits(m); !errors.Is(err, ErrMemory) || !strings.Contains(err.Error(), "MiB") {
		t.Errorf("a petabyte fits: %v", err)
	}
	m.Chunks = m.Chunks[1:] // zeros take no memory
	if err := Fits(m); err != nil {
		t.Error(err)
	}
	for _, text := range []string{"", "MemTotal: 5 kB\n", "MemAvailable: x kB\n"} {
		f := filepath.Join(t.TempDir(), "meminfo")
		if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if n, err := available(f); err == nil {
			t.Errorf("%q says %d", text, n)
		}
	}
}
