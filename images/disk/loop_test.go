package disk

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"smelt/images"
	"smelt/images/gpt"
)

// loop is a real block device.
func loop(t testing.TB, size int64, partitions bool) string {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("SMELT_TEST_NO_SKIP") == "1" {
			t.Fatal("loop devices need root")
		}
		t.Skip("loop devices need root")
	}
	file := dirty(t, size)
	args := []string{"--find", "--show"}
	if partitions {
		args = append(args, "--partscan")
	}
	out, err := exec.Command(tool(t, "losetup"), append(args, file)...).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup: %v\n%s", err, out)
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command(tool(t, "losetup"), "-d", dev).CombinedOutput(); err != nil {
			t.Errorf("losetup -d %s: %v\n%s", dev, err, out)
		}
	})
	return dev
}

func TestWriteToBlockDevice(t *testing.T) {
	s := newSite(t, 6)
	dev := loop(t, s.m.Size+3*images.ChunkSize, false)
	r, err := Write(t.Context(), dev, s.m, s.fetch, Options{ReadBack: true})
	if err != nil {
		t.Fatal(err)
	}
	same(t, s, dev)
	if r.ReadBack != s.m.Size {
		t.Errorf("%+v", r)
	}
	// Somebody else's disk.
	held, err := openDevice(dev)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if _, err := Write(t.Context(), dev, s.m, s.fetch, Options{}); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a disk in use: %v", err)
	}
	if _, err := Wipe(t.Context(), dev, Metadata, nil); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a disk in use: %v", err)
	}
}

func TestWipe(t *testing.T) {
	const size = 48 * mib
	// Signatures wherever they hide, over the old tenant's data.
	prepare := func(t *testing.T, path string) {
		t.Helper()
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		table := gpt.Table{Disk: gpt.GUID{1}, Parts: []gpt.Part{
			{Number: 1, Type: gpt.Linux, ID: gpt.GUID{2}, First: 2048, Last: 16383},
			{Number: 2, Type: gpt.Linux, ID: gpt.GUID{3}, First: 65536, Last: 90111},
		}}
		if err := table.Write(f, size); err != nil {
			t.Fatal(err)
		}
		for _, m := range []magic{
			{"", 2048 * 512, "bluestore block device"},
			{"", 90112*512 - 128<<10, "\x0c\xb1\xba\x00\x00\x00\x00\x00"}, // ZFS label 3 of partition 2
			{"", 65536*512 + 512, "LABELONE\x01\x00\x00\x00\x00\x00\x00\x00aaaabbbbLVM2 001"},
		} {
			if _, err := f.WriteAt([]byte(m.text), m.at); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
		got := kinds(t, f, size)
		want := []string{"gpt", "ceph_bluestore (partition 1)", "LVM2_member (partition 2)", "zfs_member (partition 2)"}
		if !slices.Equal(got, want) {
			t.Fatalf("prepared %q, want %q", got, want)
		}
	}
	for _, on := range []string{"file", "loop device"} {
		for _, level := range []Level{Metadata, Discard, Overwrite} {
			t.Run(on+" "+level.String(), func(t *testing.T) {
				path := ""
				if on == "file" {
					path = dirty(t, size)
				} else {
					path = loop(t, size, false)
				}
				prepare(t, path)
				var last int64
				w, err := Wipe(t.Context(), path, level, func(done, total int64) {
					if done < last || total != size {
						t.Errorf("progress %d of %d after %d", done, total, last)
					}
					last = done
				})
				if err != nil || w.Reached != level {
					t.Fatalf("%+v, %v", w, err)
				}
				b := contents(t, path)
				if level == Metadata {
					if w.Zeros || !bytes.Contains(b, []byte("old tenant")) {
						t.Error("metadata alone took the data too")
					}
				} else if !w.Zeros || bytes.Contains(b, []byte("old tenant")) || last != size {
					t.Errorf("the old tenant's data is left: %+v, %d", w, last)
				}
				if found := kinds(t, memory(b), size); found != nil {
					t.Errorf("%q is left", found)
				}
			})
		}
	}
	path := dirty(t, size)
	before := contents(t, path)
	w, err := Wipe(t.Context(), path, Secure, nil)
	if !errors.Is(err, ErrWeaker) || w.Reached != 0 {
		t.Errorf("secure: %+v, %v", w, err)
	}
	if !bytes.Equal(before, contents(t, path)) {
		t.Error("a refused wipe touched the disk")
	}
}

func TestLevels(t *testing.T) {
	for l := Metadata; l <= Secure; l++ {
		if got, err := ParseLevel(l.String()); err != nil || got != l {
			t.Errorf("%v: %v, %v", l, got, err)
		}
	}
	for _, s := range []string{"", "none", "Discard", "shred"} {
		if _, err := ParseLevel(s); err == nil {
			t.Errorf("%q is a level", s)
		}
	}
}

// The whole way of an agent: write an image to a bigger disk, grow it, mount it.
func TestGrow(t *testing.T) {
	const small, large = 48 * mib, 96 * mib
	raw := filepath.Join(t.TempDir(), "root")
	if err := os.WriteFile(raw, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(raw, 40*mib); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(tool(t, "mke2fs"), "-q", "-F", "-t", "ext4", "-b", "4096", raw).CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v\n%s", err, out)
	}
	d := memory(make([]byte, small))
	copy(d[4*mib:], contents(t, raw))
	copy(d, "boot code")
	table := gpt.Table{Disk: gpt.GUID{1}, Parts: []gpt.Part{
		{Number: 1, Type: gpt.BIOSBoot, ID: gpt.GUID{2}, First: 2048, Last: 4095},
		{Number: 3, Type: gpt.Linux, ID: gpt.GUID{3}, First: 8192, Last: 8192 + 40*2048 - 1, Name: "root"},
	}}
	if err := table.Write(d, small); err != nil {
		t.Fatal(err)
	}

	dev := loop(t, large, true)
	f, err := os.OpenFile(dev, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(d); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := Reread(dev); err != nil && !errors.Is(err, unix.EINVAL) {
		t.Fatal(err)
	}
	part := partitionNode(t, dev, Partition{Number: 3, Offset: 4 * mib, Size: 40 * mib})
	mnt := t.TempDir()
	if err := unix.Mount(part, mnt, "ext4", 0, ""); err != nil {
		t.Fatalf("mount %s: %v", part, err)
	}
	defer func() {
		if err := unix.Unmount(mnt, 0); err != nil {
			t.Error(err)
		}
	}()
	// Mounted, as in the installed system.
	p, err := Grow(dev)
	if err != nil {
		t.Fatal(err)
	}
	if p.Number != 3 || p.Offset+p.Size < large-2*mib || p.Name != "root" {
		t.Errorf("grown %+v", p)
	}
	if err := GrowFilesystem(mnt, part); errors.Is(err, unix.EPERM) && !resourceful(t) {
		// A container's root may lack CAP_SYS_RESOURCE. The end-to-end test of
		// images/build grows a root filesystem in a machine.
		t.Log("not grown:", err)
	} else if err != nil {
		t.Fatal(err)
	} else {
		var st unix.Statfs_t
		if err := unix.Statfs(mnt, &st); err != nil {
			t.Fatal(err)
		}
		if got := int64(st.Blocks) * st.Bsize; got < large*8/10 {
			t.Errorf("the filesystem has %d bytes", got)
		}
	}
	again, err := Grow(dev)
	if err != nil || again != p {
		t.Errorf("twice: %+v, %v", again, err)
	}
	g, err := os.Open(dev)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	head := make([]byte, 9)
	if _, err := g.ReadAt(head, 0); err != nil || string(head) != "boot code" {
		t.Errorf("boot code is %q, %v", head, err)
	}
	// A foreign tool agrees with the table.
	if out, err := exec.Command(tool(t, "sgdisk"), "--verify", dev).CombinedOutput(); err != nil || !strings.Contains(string(out), "No problems found") {
		t.Errorf("sgdisk: %v\n%s", err, out)
	}
}

// partitionNode is a partition's device. The kernel of a build machine may know
// no GPT, so it is told.
func partitionNode(t testing.TB, dev string, p Partition) string {
	t.Helper()
	part := PartitionPath(dev, p.Number)
	sys := "/sys/class/block/" + filepath.Base(part) + "/dev"
	if !exists(sys) {
		f, err := os.Open(dev)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		const blkpgAdd = 1
		if err := tellPartition(f, blkpgAdd, p); err != nil {
			t.Fatalf("add partition: %v", err)
		}
	}
	if exists(part) {
		return part
	}
	b, err := os.ReadFile(sys)
	if err != nil {
		t.Fatal(err)
	}
	var major, minor uint32
	if _, err := fmt.Sscanf(string(b), "%d:%d", &major, &minor); err != nil {
		t.Fatal(err)
	}
	node := filepath.Join(t.TempDir(), "part")
	if err := unix.Mknod(node, unix.S_IFBLK|0o600, int(unix.Mkdev(major, minor))); err != nil {
		t.Fatal(err)
	}
	return node
}

// resourceful says whether we have CAP_SYS_RESOURCE, which growing ext4 needs.
func resourceful(t testing.TB) bool {
	t.Helper()
	var data [2]unix.CapUserData
	if err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &data[0]); err != nil {
		t.Fatal(err)
	}
	return data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}

func TestPartitionPath(t *testing.T) {
	for disk, want := range map[string]string{"/dev/sda": "/dev/sda3", "/dev/nvme0n1": "/dev/nvme0n1p3", "/dev/vdb": "/dev/vdb3", "/dev/mmcblk0": "/dev/mmcblk0p3"} {
		if got := PartitionPath(disk, 3); got != want {
			t.Errorf("%s: %s", disk, got)
		}
	}
}
