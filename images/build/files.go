package build

import (
	"crypto/sha1"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"smelt/images"
)

// A fileEntry is one file of an image as its bill of materials has it.
type fileEntry struct {
	path   string // absolute in the image
	sha1   [sha1.Size]byte
	sha256 images.Digest
	meta   string // -rwxr-xr-x 0:0, and where a link leads
}

// listFiles returns the files and links of a tree, by path.
func listFiles(root string) ([]fileEntry, error) {
	var all []fileEntry
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if !d.Type().IsRegular() && d.Type()&fs.ModeSymlink == 0 {
			return nil
		}
		i, err := d.Info()
		if err != nil {
			return err
		}
		e := fileEntry{path: strings.TrimPrefix(p, root), meta: i.Mode().String()}
		if st, ok := i.Sys().(*syscall.Stat_t); ok {
			e.meta += fmt.Sprintf(" %d:%d", st.Uid, st.Gid)
		}
		var src io.Reader
		if i.Mode().IsRegular() {
			f, err := os.Open(p)
			if err != nil {
				return err
			}
			defer f.Close()
			src = f
		} else {
			to, err := os.Readlink(p)
			if err != nil {
				return err
			}
			e.meta += " to " + to
			src = strings.NewReader(to)
		}
		one, two := sha1.New(), sha256.New()
		if _, err := io.Copy(io.MultiWriter(one, two), src); err != nil {
			return err
		}
		e.sha1, e.sha256 = [sha1.Size]byte(one.Sum(nil)), images.Digest(two.Sum(nil))
		all = append(all, e)
		return nil
	})
	return all, err
}
