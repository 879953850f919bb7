package build

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// needSpace refuses to begin what would end in a full disk.
func needSpace(dir string, bytes int64, what string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	if free := int64(st.Bavail) * st.Bsize; free < bytes {
		return fmt.Errorf("%w: %s needs about %d MiB in %s, where %d are free: make room, or name another folder by --cache",
			errFull, what, bytes/mib, dir, free/mib)
	}
	return nil
}

func copyFile(from, to string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	t, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer t.Close()
	if _, err := io.Copy(t, f); err != nil {
		return err
	}
	return t.Close()
}
