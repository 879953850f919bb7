package pxe

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"smelt/pxe/tftp"
)

// Names of the loaders that are handed to firmware when Files holds them. On
// Debian the package ipxe installs the first two under /usr/lib/ipxe.
const (
	LoaderBIOS  = "undionly.kpxe"
	LoaderUEFI  = "snponly.efi"
	LoaderARM64 = "snponly-arm64.efi"

	LoaderUKI      = "smelt.efi" // the RAM system as one EFI program, signed with the site's key
	LoaderUKIARM64 = "smelt-arm64.efi"
	LoaderShim     = "shimx64.efi" // signed with Microsoft's key; it asks for LoaderGRUB beside itself
	LoaderGRUB     = "grubx64.efi" // signed with Debian's key

	// LoaderLocal is an EFI program that starts the machine's own disk. When it
	// is served, a UEFI machine that is told to boot locally runs it instead of
	// leaving the choice to its firmware. GRUB makes one:
	//
	//	search --no-floppy --file --set=root /EFI/BOOT/BOOTX64.EFI
	//	chainloader /EFI/BOOT/BOOTX64.EFI
	//	boot
	//
	//	grub-mkimage -O x86_64-efi -p / -c that.cfg -o local.efi search search_fs_file chain boot part_gpt part_msdos fat
	LoaderLocal = "local.efi"
)

// Files is the content that machines may fetch, by name: a table of names and
// never a directory, so no request can walk out of it. Names do not tell upper
// from lower case, because firmware does not either. The zero value is empty
// and ready; it is safe for concurrent use.
type Files struct {
	mu      sync.RWMutex
	entries map[string]*entry
}

// entry is one file: bytes, or an open file that is never written through.
type entry struct {
	name string
	size int64
	when time.Time
	data []byte
	file *os.File // closed by the runtime once replaced and no longer read

	load   sync.Once
	loaded []byte // of file, if it is small and was asked for block by block
}

// Add serves data under name, in place of what had that name. The caller must
// not change data afterwards.
func (f *Files) Add(name string, data []byte) error {
	return f.add(&entry{name: name, size: int64(len(data)), when: time.Now(), data: data})
}

// AddFile serves the file at p under name. The file is opened once, here, and
// within its directory only: a link that leads out of it is refused, and a
// file that is later replaced on disk is served as it was until AddFile is
// called again, so that a machine never gets half of an upgrade.
func (f *Files) AddFile(name, p string) error {
	root, err := os.OpenRoot(filepath.Dir(p))
	if err != nil {
		return fmt.Errorf("boot file %s: %v", name, err)
	}
	defer root.Close()
	file, err := root.Open(filepath.Base(p))
	if err != nil {
		return fmt.Errorf("boot file %s: %v", name, err)
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", p)
	}
	if err == nil {
		err = f.add(&entry{name: name, size: info.Size(), when: info.ModTime(), file: file})
	}
	if err != nil {
		file.Close()
		return fmt.Errorf("boot file %s: %v", name, err)
	}
	return nil
}

func (f *Files) add(e *entry) error {
	key, err := cleanName(e.name)
	if err != nil {
		return err
	}
	if key != strings.ToLower(e.name) {
		return fmt.Errorf("boot file name %q: want a plain relative name such as %q", e.name, key)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.entries == nil {
		f.entries = make(map[string]*entry)
	}
	f.entries[key] = e
	return nil
}

// Has reports whether name is served.
func (f *Files) Has(name string) bool {
	_, ok := f.lookup(name)
	return ok
}

// Names returns the names that are served, sorted.
func (f *Files) Names() []string {
	f.mu.RLock()
	defer f.mu.RUnlock()
	names := make([]string, 0, len(f.entries))
	for _, e := range f.entries {
		names = append(names, e.name)
	}
	slices.Sort(names)
	return names
}

// lookup finds a file by whatever spelling a machine asked with.
func (f *Files) lookup(name string) (*entry, bool) {
	key, err := cleanName(name)
	if err != nil {
		return nil, false
	}
	f.mu.RLock()
	defer f.mu.RUnlock()
	e, ok := f.entries[key]
	return e, ok
}

// open returns the content at its start, independent of every other reader.
func (e *entry) open() io.ReadSeekCloser {
	if e.file == nil {
		return nopCloser{bytes.NewReader(e.data)}
	}
	// A second description of the very file that was registered, even if its
	// name is gone: with a file of its own the kernel can copy from disk to
	// socket (sendfile), which a section of a shared one cannot.
	if f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", e.file.Fd())); err == nil {
		return f
	}
	return nopCloser{io.NewSectionReader(e.file, 0, e.size)}
}

// maxLoaded holds any loader; kernels and initrds go by HTTP.
const maxLoaded = 16 << 20

// blocks returns the content for somebody who takes it in small pieces: a
// small file is in memory from the first time on, so that the disk holds up
// nobody afterwards.
func (e *entry) blocks() tftp.Content {
	if e.file == nil {
		return bytes.NewReader(e.data)
	}
	file := io.NewSectionReader(e.file, 0, e.size)
	e.load.Do(func() {
		if e.size > maxLoaded {
			return
		}
		data := make([]byte, e.size)
		if _, err := io.ReadFull(file, data); err == nil {
			e.loaded = data
		}
	})
	if e.loaded != nil {
		return bytes.NewReader(e.loaded)
	}
	return file
}

type nopCloser struct{ io.ReadSeeker }

func (nopCloser) Close() error { return nil }

// maxName bounds a file name from the network.
const maxName = 255

// cleanName turns what firmware sends into the key of a file: it uses
// backslashes (Windows loaders), leading and double slashes (shim asks
// "//grubx64.efi"), any case, and some PXE ROMs append the 0xff that ends the
// DHCP options to the name they read from option 67.
func cleanName(name string) (string, error) {
	for strings.HasSuffix(name, "\xff") {
		name = name[:len(name)-1]
	}
	if name == "" || len(name) > maxName {
		return "", fmt.Errorf("file name of %d bytes: want 1 to %d", len(name), maxName)
	}
	for i := range len(name) {
		if c := name[i]; c < 0x20 || c > 0x7e {
			return "", fmt.Errorf("file name %q: want printable ASCII", name)
		}
	}
	p := path.Clean("/" + strings.ReplaceAll(name, `\`, "/"))[1:]
	if p == "" {
		return "", fmt.Errorf("file name %q: names no file", name)
	}
	return strings.ToLower(p), nil
}
