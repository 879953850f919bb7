package build

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"smelt/images/gpt"
)

// The disk: GRUB for BIOS in the second MiB, an ESP, and the root filesystem
// last, where a node can grow it. All begin at chunk boundaries but the first.
const (
	mib      = 1 << 20
	coreAt   = 1 * mib
	coreSize = 1 * mib
	espAt    = 4 * mib
	espSize  = 64 * mib
	rootAt   = espAt + espSize
)

// grubFolder is where the tools grub-pc-bin and grub-efi-amd64-bin put theirs.
const grubFolder = "usr/lib/grub"

// grubModules are all that grub.cfg needs, built in: nothing is loaded from
// the root filesystem.
var grubModules = []string{
	"part_gpt", "ext2", "fat", "search", "search_fs_uuid", "configfile", "normal", "linux", "echo", "test", "boot",
	"serial", "terminal", "minicmd", "ls", "cat", "halt", "reboot", "sleep", "true",
}

// ids are the identifiers on the disk, all derived from its key: the same
// recipe gives the same ids.
type ids struct {
	disk, core, esp, rootPart gpt.GUID
	root                      string // UUID of the filesystem
	fat                       uint32
}

func idsFrom(key string) ids {
	sum := func(what string) [32]byte { return sha256.Sum256([]byte(key + " " + what)) }
	guid := func(what string) gpt.GUID {
		d := sum(what)
		g := gpt.GUID(d[:16])
		g[7] = g[7]&0x0f | 0x40 // version 4, variant 1 (RFC 9562, 4.1), in disk order
		g[8] = g[8]&0x3f | 0x80
		return g
	}
	fat := sum("fat")
	return ids{
		disk: guid("disk"), core: guid("core"), esp: guid("esp"), rootPart: guid("part"), root: guid("root").String(),
		fat: binary.LittleEndian.Uint32(fat[:]),
	}
}

// assemble makes the disk image from a tree, and returns its size.
func (b *builder) assemble(ctx context.Context, tools, work, root, out string, id ids) (int64, error) {
	data, files, err := size(root)
	if err != nil {
		return 0, err
	}
	const journal = 64 // MiB: for the disk it grows on, and zeros cost nothing
	fs := (data + data/20 + 512*files + journal*mib + b.Recipe.Free + 4*mib - 1) &^ (4*mib - 1)
	disk := rootAt + fs + mib // the backup table is in the last MiB

	d, err := os.Create(out)
	if err != nil {
		return 0, err
	}
	defer d.Close()
	if err := d.Truncate(disk); err != nil {
		return 0, err
	}
	if err := needSpace(work, data+espSize, "the disk image"); err != nil {
		return 0, err
	}
	// mke2fs reads the tree as a tar: of a folder it copies the time of its
	// files' last change, which nobody can set.
	pr, pw := io.Pipe()
	walk := make(chan error, 1)
	go func() {
		err := writeTar(pw, root, b.Lock.Date)
		pw.CloseWithError(err)
		walk <- err
	}()
	_, err = command{name: "mke2fs", root: tools, stdin: pr, log: b.log, env: []string{b.epoch()}, args: []string{
		"-q", "-F", "-t", "ext4", "-L", "root", "-U", id.root, "-b", "4096", "-I", "256", "-i", "16384", "-m", "1",
		"-J", fmt.Sprintf("size=%d", journal),
		// The two features are newer than the GRUB of Debian 12, which a node's
		// owner may install.
		"-O", "^metadata_csum_seed,^orphan_file",
		// A file of zeros needs no inode table written, here or at first boot.
		"-E", fmt.Sprintf("offset=%d,hash_seed=%s,root_owner=0:0,lazy_itable_init=0,assume_storage_prezeroed=1", rootAt, id.root),
		"-d", "-", out, fmt.Sprintf("%dk", fs/1024),
	}}.run(ctx)
	pr.Close()
	if werr := <-walk; werr != nil && !errors.Is(werr, io.ErrClosedPipe) {
		return 0, fmt.Errorf("read the tree: %w", werr)
	}
	if err != nil {
		return 0, err
	}
	if _, err := (command{name: "e2fsck", root: tools, log: b.log, args: []string{"-fn", fmt.Sprintf("%s?offset=%d", out, rootAt)}}).run(ctx); err != nil {
		return 0, err
	}
	esp, core := filepath.Join(work, "esp.fat"), filepath.Join(work, "core.img")
	if err := b.grub(ctx, tools, work, core, esp, id); err != nil {
		return 0, err
	}
	if err := copySparse(d, core, coreAt); err != nil {
		return 0, err
	}
	if err := copySparse(d, esp, espAt); err != nil {
		return 0, err
	}
	if err := embedGrub(d, filepath.Join(tools, grubFolder, "i386-pc", "boot.img"), core); err != nil {
		return 0, err
	}
	t := gpt.Table{Disk: id.disk, Parts: []gpt.Part{
		{Number: 1, Type: gpt.BIOSBoot, ID: id.core, First: coreAt / 512, Last: (coreAt+coreSize)/512 - 1, Name: "BIOS boot"},
		{Number: 2, Type: gpt.ESP, ID: id.esp, First: espAt / 512, Last: rootAt/512 - 1, Name: "EFI system"},
		{Number: 3, Type: gpt.Linux, ID: id.rootPart, First: rootAt / 512, Last: (rootAt+fs)/512 - 1, Name: "root"},
	}}
	return disk, t.Write(d, disk)
}

// grub makes core.img for BIOS and an ESP with the UEFI loader at the path
// that firmware takes without a boot entry.
func (b *builder) grub(ctx context.Context, tools, work, core, esp string, id ids) error {
	early := filepath.Join(work, "early.cfg")
	// By UUID, so that any disk of any controller will do.
	if err := os.WriteFile(early, []byte("search --fs-uuid --set=root "+id.root+"\nset prefix=($root)/boot/grub\nconfigfile $prefix/grub.cfg\n"), 0o644); err != nil {
		return err
	}
	loader := filepath.Join(work, "BOOTX64.EFI")
	for _, t := range []struct {
		platform, out string
		modules       []string
	}{
		{"i386-pc", core, []string{"biosdisk"}},
		{"x86_64-efi", loader, []string{"efi_gop", "efi_uga"}},
	} {
		args := []string{"-O", t.platform, "-d", filepath.Join(tools, grubFolder, t.platform), "-o", t.out, "-p", "/boot/grub", "-c", early}
		if _, err := (command{name: "grub-mkimage", root: tools, log: b.log, args: append(append(args, grubModules...), t.modules...)}).run(ctx); err != nil {
			return err
		}
	}
	if err := os.Chtimes(loader, b.Lock.Date, b.Lock.Date); err != nil { // mcopy keeps it
		return err
	}
	if err := os.WriteFile(esp, nil, 0o644); err != nil {
		return err
	}
	if err := os.Truncate(esp, espSize); err != nil {
		return err
	}
	for _, c := range []command{
		{name: "mkfs.fat", root: tools, log: b.log, env: []string{b.epoch()}, args: []string{"--invariant", "-i", fmt.Sprintf("%08x", id.fat), "-F", "32", "-s", "1", "-n", "ESP", esp}},
		{name: "mmd", root: tools, log: b.log, env: []string{b.epoch()}, args: []string{"-i", esp, "::/EFI", "::/EFI/BOOT"}},
		{name: "mcopy", root: tools, log: b.log, env: []string{b.epoch()}, args: []string{"-i", esp, "-m", loader, "::/EFI/BOOT/BOOTX64.EFI"}},
	} {
		if _, err := c.run(ctx); err != nil {
			return err
		}
	}
	return nil
}

// embedGrub writes boot.img to the first sector and tells it where core.img
// is, and core.img how long it is, which is what grub-install does to a disk
// (grub-2.06: util/setup.c, include/grub/i386/pc/boot.h, grub-core/boot/i386/pc/diskboot.S).
func embedGrub(d *os.File, bootImg, core string) error {
	boot, err := os.ReadFile(bootImg)
	if err != nil {
		return err
	}
	i, err := os.Stat(core)
	if err != nil {
		return err
	}
	// It is loaded from 0x8200 on into conventional memory.
	if len(boot) != 512 || i.Size() > 480<<10 {
		return fmt.Errorf("GRUB does not fit: boot.img %d bytes, core.img %d", len(boot), i.Size())
	}
	le := binary.LittleEndian
	le.PutUint64(boot[0x5c:], coreAt/512) // GRUB_BOOT_MACHINE_KERNEL_SECTOR
	copy(boot[0x66:], "\x90\x90")         // DRIVE_CHECK: trust no BIOS to pass the drive in DL
	if _, err := d.WriteAt(boot[:440], 0); err != nil {
		return err
	}
	// One run: start, length without the first sector, segment.
	var list [12]byte
	le.PutUint64(list[:], coreAt/512+1)
	le.PutUint16(list[8:], uint16((i.Size()+511)/512-1))
	le.PutUint16(list[10:], 0x820)
	_, err = d.WriteAt(list[:], coreAt+512-int64(len(list)))
	return err
}

// copySparse copies what is not zero.
func copySparse(d *os.File, file string, at int64) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, mib)
	zero := make([]byte, mib)
	for {
		n, err := io.ReadFull(f, b)
		if n > 0 && string(b[:n]) != string(zero[:n]) {
			if _, err := d.WriteAt(b[:n], at); err != nil {
				return err
			}
		}
		at += int64(n)
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// grubConfig starts the one kernel that is there, with no menu.
func grubConfig(kernel, cmdline, root string) string {
	return fmt.Sprintf(`if serial --unit=0 --speed=115200; then
	terminal_input console serial
	terminal_output console serial
fi
set timeout=0
linux /boot/vmlinuz-%s root=UUID=%s ro %s
initrd /boot/initrd.img-%[1]s
boot
`, kernel, root, strings.TrimSpace(cmdline))
}
