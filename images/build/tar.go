package build

import (
	"archive/tar"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// writeTar writes a tree as mke2fs reads it: by name, with numeric owners, and
// no time newer than date, so that the same files give the same bytes.
func writeTar(w io.Writer, root string, date time.Time) error {
	t := tar.NewWriter(w)
	type inode struct{ dev, ino uint64 }
	first := map[inode]string{}
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		name := "./" + rel
		if rel == "." {
			name = "./"
		}
		i, err := d.Info()
		if err != nil {
			return err
		}
		if i.Mode()&fs.ModeSocket != 0 {
			return nil
		}
		target := ""
		if i.Mode()&fs.ModeSymlink != 0 {
			if target, err = os.Readlink(p); err != nil {
				return err
			}
		}
		h, err := tar.FileInfoHeader(i, target)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		h.Name, h.Format = name, tar.FormatPAX
		if d.IsDir() && !strings.HasSuffix(h.Name, "/") {
			h.Name += "/"
		}
		h.Uname, h.Gname = "", ""
		h.AccessTime, h.ChangeTime = time.Time{}, time.Time{}
		h.ModTime = i.ModTime().Truncate(time.Second)
		if h.ModTime.After(date) {
			h.ModTime = date
		}
		if h.PAXRecords, err = xattrs(p); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if st, ok := i.Sys().(*syscall.Stat_t); ok && i.Mode().IsRegular() && st.Nlink > 1 {
			// Links to names outside of the tree, into the cache, are none here.
			k := inode{st.Dev, st.Ino}
			if to, ok := first[k]; ok {
				h.Typeflag, h.Linkname, h.Size, h.PAXRecords = tar.TypeLink, to, 0, nil
			} else {
				first[k] = name
			}
		}
		if err := t.WriteHeader(h); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if h.Typeflag != tar.TypeReg {
			return nil
		}
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := io.Copy(t, f); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return t.Close()
}

// xattrs returns the extended attributes of a file, such as capabilities, as
// tar carries them.
func xattrs(path string) (map[string]string, error) {
	buf := make([]byte, 4096)
	n, err := unix.Llistxattr(path, buf)
	if err == unix.ENOTSUP || n == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	all := map[string]string{}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		// What the build host's own kernel marks files with is not the image's.
		if name != "security.capability" && !strings.HasPrefix(name, "user.") {
			continue
		}
		v := make([]byte, 4096)
		n, err := unix.Lgetxattr(path, name, v)
		if err != nil {
			return nil, err
		}
		all["SCHILY.xattr."+name] = string(v[:n])
	}
	return all, nil
}
