package pid1

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Modules loads kernel modules from a tree that internal/initramfs made.
type Modules struct {
	root    string
	deps    map[string][]string // name -> paths to load, dependencies first
	aliases map[string][]alias  // by bus: what stands before the first colon
	builtin map[string]bool

	mu    sync.Mutex
	tried map[string]error
}

type alias struct{ pattern, name string }

// OpenModules reads the index of the running kernel's modules. On a machine
// without one (everything built in) nothing can be loaded and nothing fails.
func OpenModules() (*Modules, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return nil, err
	}
	return openModules(filepath.Join("/lib/modules", unix.ByteSliceToString(u.Release[:])))
}

func openModules(root string) (*Modules, error) {
	m := &Modules{root: root, deps: map[string][]string{}, aliases: map[string][]alias{}, builtin: map[string]bool{}, tried: map[string]error{}}
	read := func(name string, line func(string)) error {
		b, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			return err
		}
		for l := range strings.Lines(string(b)) {
			line(strings.TrimSpace(l))
		}
		return nil
	}
	err := errors.Join(
		read("modules.dep", func(l string) {
			p, rest, ok := strings.Cut(l, ":")
			if !ok {
				return
			}
			order := strings.Fields(rest)
			slices.Reverse(order)
			m.deps[moduleName(p)] = append(order, p)
		}),
		read("modules.alias", func(l string) {
			f := strings.Fields(l)
			if len(f) != 3 || f[0] != "alias" {
				return
			}
			bus, _, _ := strings.Cut(f[1], ":")
			m.aliases[bus] = append(m.aliases[bus], alias{f[1], f[2]})
		}),
		read("modules.builtin", func(l string) { m.builtin[moduleName(l)] = true }),
	)
	if errors.Is(err, fs.ErrNotExist) {
		return m, fmt.Errorf("no modules for this kernel: %w", err)
	}
	return m, err
}

func moduleName(path string) string {
	return strings.ReplaceAll(strings.TrimSuffix(filepath.Base(path), ".ko"), "-", "_")
}

// Resolve returns the modules that serve an alias (a device's modalias, or a
// name such as fs-ext4 that the kernel asks for).
func (m *Modules) Resolve(modalias string) []string {
	bus, _, _ := strings.Cut(modalias, ":")
	var out []string
	for _, a := range m.aliases[bus] {
		if !slices.Contains(out, a.name) && match(a.pattern, modalias) {
			out = append(out, a.name)
		}
	}
	return out
}

// Load loads a module and what it needs. A module is tried once.
func (m *Modules) Load(name string) error {
	name = strings.ReplaceAll(name, "-", "_")
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.builtin[name] {
		return nil
	}
	order, ok := m.deps[name]
	if !ok {
		return fmt.Errorf("module %s: not in the RAM system", name)
	}
	var err error
	for _, p := range order {
		n := moduleName(p)
		e, done := m.tried[n]
		if !done {
			e = insert(filepath.Join(m.root, p))
			m.tried[n] = e
		}
		// One that a soft dependency wanted may fail; the last one may not.
		if n == name {
			err = e
		}
	}
	if err != nil {
		return fmt.Errorf("module %s: %w", name, err)
	}
	return nil
}

func insert(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.FinitModule(int(f.Fd()), "", 0)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

// Modprobe serves the kernel, which runs /sbin/modprobe -q -- NAME when it
// misses a file system or an algorithm. It returns the exit code.
func Modprobe(args []string) int {
	m, err := OpenModules()
	if err != nil {
		return 1
	}
	code := 1
	for _, a := range args {
		if strings.HasPrefix(a, "-") {
			continue
		}
		names := m.Resolve(a)
		if _, ok := m.deps[strings.ReplaceAll(a, "-", "_")]; ok {
			names = append(names, a)
		}
		for _, n := range names {
			if m.Load(n) == nil {
				code = 0
			}
		}
	}
	return code
}

// Coldplug loads what the devices found so far ask for. It is repeated until
// nothing new appears, because a controller's driver makes new devices.
func (m *Modules) Coldplug(log *slog.Logger) {
	seen := map[string]bool{}
	for range 8 {
		fresh := 0
		// Devices below /sys/devices, as udevadm trigger finds them.
		for _, pattern := range []string{"/sys/bus/*/devices/*/modalias"} {
			files, err := filepath.Glob(pattern)
			if err != nil {
				continue
			}
			for _, f := range files {
				b, err := os.ReadFile(f)
				a := strings.TrimSpace(string(b))
				if err != nil || a == "" || seen[a] {
					continue
				}
				seen[a] = true
				fresh++
				m.Plug(a, log)
			}
		}
		if fresh == 0 {
			return
		}
	}
}

// Plug loads the modules of one device.
func (m *Modules) Plug(modalias string, log *slog.Logger) {
	for _, n := range m.Resolve(modalias) {
		// ENODEV is a driver that looked and found nothing for it.
		if err := m.Load(n); err != nil && !errors.Is(err, unix.ENODEV) {
			log.Warn("driver did not load", "module", n, "err", err)
		}
	}
}

// match tells whether s matches pattern, where * stands for any run of
// characters, ? for one, and [..] for one of a set (fnmatch without flags, as
// modprobe does it).
func match(pattern, s string) bool {
	for len(pattern) > 0 {
		switch pattern[0] {
		case '*':
			for len(pattern) > 0 && pattern[0] == '*' {
				pattern = pattern[1:]
			}
			if pattern == "" {
				return true
			}
			for i := range len(s) + 1 {
				if match(pattern, s[i:]) {
					return true
				}
			}
			return false
		case '[':
			end := strings.IndexByte(pattern, ']')
			if end < 0 || s == "" || !inSet(pattern[1:end], s[0]) {
				return false
			}
			pattern, s = pattern[end+1:], s[1:]
		case '?':
			if s == "" {
				return false
			}
			pattern, s = pattern[1:], s[1:]
		default:
			if s == "" || s[0] != pattern[0] {
				return false
			}
			pattern, s = pattern[1:], s[1:]
		}
	}
	return s == ""
}

func inSet(set string, c byte) bool {
	for i := 0; i < len(set); i++ {
		if i+2 < len(set) && set[i+1] == '-' {
			if set[i] <= c && c <= set[i+2] {
				return true
			}
			i += 2
			continue
		}
		if set[i] == c {
			return true
		}
	}
	return false
}
