package ramroot

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"smelt/internal/initramfs"
)

// Release is the running kernel's.
func Release() (string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", err
	}
	return unix.ByteSliceToString(u.Release[:]), nil
}

// Again is what the RAM system is made of that starts again on another kernel.
type Again struct {
	Agent string            // path of this program
	Trust initramfs.Trust   //
	Keep  map[string][]byte // files that it finds again
}

// Kernel leaves the image's own kernel and a RAM system for it in dir, made of
// the image's own modules, for a machine whose kernel is not the image's: a
// driver in the image is made for one kernel only.
func (t *Tree) Kernel(release, dir string, a Again) (kernel, initrd string, err error) {
	kernel, initrd = filepath.Join(dir, "vmlinuz"), filepath.Join(dir, "initrd")
	from, err := os.Open(filepath.Join(t.Image, "boot", "vmlinuz-"+release))
	if err != nil {
		return "", "", fmt.Errorf("the image's kernel: %w", err)
	}
	defer from.Close()
	if err := create(kernel, func(w io.Writer) error {
		_, err := io.Copy(w, from)
		return err
	}); err != nil {
		return "", "", err
	}
	err = create(initrd, func(w io.Writer) error {
		if err := initramfs.Base(w, filepath.Join(t.Image, "lib", "modules", release), release); err != nil {
			return fmt.Errorf("the image's modules: %w", err)
		}
		if err := initramfs.Overlay(w, a.Agent, a.Trust); err != nil {
			return err
		}
		return initramfs.Extra(w, a.Keep)
	})
	return kernel, initrd, err
}

func create(name string, fill func(io.Writer) error) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(fill(f), f.Close())
}
