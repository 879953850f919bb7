package main

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"smelt/images"
	"smelt/images/build"
	"smelt/internal/convert"
	"smelt/internal/initramfs"
	"smelt/internal/secureboot"
	"smelt/internal/uki"
	"smelt/pxe"
)

// ramConfig says what the RAM system is made of.
type ramConfig struct {
	Dir        string // STATE/boot
	Cache      string
	Agent      string
	SiteKey    ed25519.PublicKey
	Pin        string
	Server     string         // https URL of the agents' API
	Boot       string         // http URL of boot HTTP
	SecureBoot secureboot.Key // signs what firmware starts
	Images     images.Signers // whose images nodes write; SiteKey alone when empty
	Files      *pxe.Files     // where it is served from, in place of what is there; nil: new
}

// ramSystem is what machines load from the network.
type ramSystem struct {
	Files *pxe.Files
	Boot  convert.BootFiles
}

// makeRAMSystem packs Debian's kernel, its modules, and the agent with what it
// trusts, in every form that a firmware may want. The modules are packed once
// for each kernel, the agent at each start.
func makeRAMSystem(ctx context.Context, c ramConfig) (ramSystem, error) {
	if c.Agent == "" {
		exe, err := os.Executable()
		if err != nil {
			return ramSystem{}, err
		}
		c.Agent = filepath.Join(filepath.Dir(exe), "smelt-agent")
	}
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return ramSystem{}, err
	}
	kernel, err := build.Kernel(ctx, c.Cache)
	if err != nil {
		return ramSystem{}, err
	}
	base := filepath.Join(c.Cache, initramfs.BaseName(kernel.Release))
	if _, err := os.Stat(base); errors.Is(err, fs.ErrNotExist) {
		if err := writeWhole(base, func(w io.Writer) error { return initramfs.Base(w, kernel.Modules, kernel.Release) }); err != nil {
			return ramSystem{}, err
		}
	} else if err != nil {
		return ramSystem{}, err
	}
	overlay := filepath.Join(c.Dir, "agent.cpio.zst")
	trust := initramfs.Trust{SiteKey: c.SiteKey, Pin: c.Pin, ImageThreshold: c.Images.Threshold}
	for _, k := range c.Images.Keys {
		trust.ImageKeys = append(trust.ImageKeys, k)
	}
	if err := writeWhole(overlay, func(w io.Writer) error { return initramfs.Overlay(w, c.Agent, trust) }); err != nil {
		return ramSystem{}, err
	}
	args := []string{"console=tty0", "console=ttyS0,115200", "panic=30", "quiet"}
	program, err := makeUKI(c, kernel, []string{base, overlay}, args)
	if err != nil {
		return ramSystem{}, err
	}
	loaders, err := makeLoaders(ctx, c)
	if err != nil {
		return ramSystem{}, err
	}
	files := c.Files
	if files == nil {
		files = new(pxe.Files)
	}
	for name, path := range map[string]string{"vmlinuz": kernel.Vmlinuz, "modules.cpio.zst": base, "agent.cpio.zst": overlay, pxe.LoaderUKI: program} {
		if err := files.AddFile(name, path); err != nil {
			return ramSystem{}, err
		}
	}
	for name, path := range loaders {
		if err := files.AddFile(name, path); err != nil {
			return ramSystem{}, err
		}
	}
	return ramSystem{files, convert.BootFiles{Kernel: "vmlinuz", Initrd: []string{"modules.cpio.zst", "agent.cpio.zst"}, Args: args}}, nil
}

// makeUKI makes the RAM system as one signed EFI program, unless the folder has
// the one of these very parts. Its arguments are the same for every machine and
// boot, so the agent asks for its orders (pid1.Asker).
func makeUKI(c ramConfig, kernel build.KernelFiles, initrd, args []string) (string, error) {
	stub, err := os.ReadFile(uki.Stub)
	if err != nil {
		return "", fmt.Errorf("%w (Debian's package systemd-boot-efi has it)", err)
	}
	p := uki.Parts{
		Stub:      stub,
		OSRelease: "ID=smelt\nPRETTY_NAME=\"Smelt RAM system\"\n",
		CmdLine:   strings.Join(append(args, "smelt.boot="+c.Boot, "smelt.server="+c.Server, "smelt.via="+string(pxe.UKI)), " "),
		Release:   kernel.Release,
	}
	if p.Kernel, err = os.ReadFile(kernel.Vmlinuz); err != nil {
		return "", err
	}
	for _, path := range initrd {
		b, err := os.ReadFile(path)
		if err != nil {
			return "", err
		}
		p.Initrd = append(p.Initrd, b...)
	}
	sum := sha256.New()
	for _, part := range [][]byte{p.Stub, []byte(p.OSRelease), []byte(p.CmdLine), []byte(p.Release), p.Initrd, p.Kernel, c.SecureBoot.Certificate()} {
		sum.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(part))))
		sum.Write(part)
	}
	path := filepath.Join(c.Dir, fmt.Sprintf("smelt-%x.efi", sum.Sum(nil)[:8]))
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return path, err
	}
	program, err := uki.Build(p)
	if err != nil {
		return "", err
	}
	old, err := filepath.Glob(filepath.Join(c.Dir, "smelt-*.efi"))
	if err != nil {
		return "", err
	}
	if err := writeSigned(path, program, c.SecureBoot); err != nil {
		return "", err
	}
	for _, o := range old {
		_ = os.Remove(o) // one of other parts; left behind it only takes room
	}
	return path, nil
}

// Debian's package ipxe.
const (
	undionly = "/usr/lib/ipxe/undionly.kpxe"
	snponly  = "/usr/lib/ipxe/snponly.efi"
)

// makeLoaders makes the first programs that firmware loads, by the names that
// they are served under.
func makeLoaders(ctx context.Context, c ramConfig) (map[string]string, error) {
	local, err := makeLocalLoader(ctx, c)
	if err != nil {
		return nil, err
	}
	ipxe, err := os.ReadFile(snponly)
	if err == nil {
		_, err = os.Stat(undionly)
	}
	if err != nil {
		return nil, fmt.Errorf("%w (Debian's package ipxe has it)", err)
	}
	signed := filepath.Join(c.Dir, pxe.LoaderUEFI)
	if err := writeSigned(signed, ipxe, c.SecureBoot); err != nil {
		return nil, err
	}
	return map[string]string{pxe.LoaderBIOS: undionly, pxe.LoaderUEFI: signed, pxe.LoaderLocal: local}, nil
}

// localLoader starts a UEFI machine's own disk: OVMF that is only told to go on
// tries IPv6 and HTTP for minutes before it comes to the disk. When there is
// nothing to start it ends, and firmware goes on.
const localLoader = `search --no-floppy --file --set=root /EFI/BOOT/BOOTX64.EFI
chainloader /EFI/BOOT/BOOTX64.EFI
boot
exit
`

func makeLocalLoader(ctx context.Context, c ramConfig) (string, error) {
	conf, plain, out := filepath.Join(c.Dir, "local.cfg"), filepath.Join(c.Dir, "local.unsigned"), filepath.Join(c.Dir, pxe.LoaderLocal)
	if err := os.WriteFile(conf, []byte(localLoader), 0o644); err != nil {
		return "", err
	}
	// Under Secure Boot GRUB wants somebody to vouch for each file. Shim is not
	// there, so the module tpm does, which measures it where there is a TPM; the
	// loader is then verified by firmware itself.
	said, err := exec.CommandContext(ctx, "grub-mkimage", "-O", "x86_64-efi", "--disable-shim-lock", "-p", "/", "-c", conf, "-o", plain,
		"search", "search_fs_file", "chain", "boot", "minicmd", "tpm", "part_gpt", "part_msdos", "fat").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("make %s with grub-mkimage (Debian's packages grub-common and grub-efi-amd64-bin): %w: %s", pxe.LoaderLocal, err, said)
	}
	program, err := os.ReadFile(plain)
	if err != nil {
		return "", err
	}
	return out, writeSigned(out, program, c.SecureBoot)
}

// writeSigned writes an EFI program with the site's signature.
func writeSigned(path string, program []byte, key secureboot.Key) error {
	signed, err := key.Sign(program)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return writeWhole(path, func(w io.Writer) error {
		_, err := w.Write(signed)
		return err
	})
}

// writeWhole writes a file that is whole or not there, after a power cut too:
// what has the name of its content is not made again.
func writeWhole(path string, write func(io.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	err = write(f)
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
