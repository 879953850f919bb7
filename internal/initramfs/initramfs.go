// Package initramfs makes the RAM system: the initial file system that a
// machine boots from the network, with smelt-agent as its only program.
//
// It is written in pure Go from the module tree of an unpacked Debian kernel
// package: no depmod, no cpio, no root. The same input gives the same bytes.
// It comes in two parts, which the kernel unpacks one after the other
// (Documentation/driver-api/early-userspace/buffer-format.rst): Base holds the
// kernel modules and changes only with the kernel, Overlay holds the agent and
// what it trusts.
package initramfs

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/u-root/u-root/pkg/cpio"
)

// Options says what goes in.
type Options struct {
	Modules string // root of the module tree: holds kernel/ and modules.builtin
	Release string // uname -r of the kernel
	Agent   string // path of a static smelt-agent
	Trust   Trust
}

// TrustPath is where the agent finds its Trust in the RAM system.
const TrustPath = "/etc/smelt/trust.json"

// Trust is the root of trust of an agent. It travels inside the RAM system and
// never on a kernel command line: whoever can change the one can change the
// agent too.
type Trust struct {
	SiteKey   []byte   `json:"siteKey"`             // ed25519: permits
	Pin       string   `json:"pin"`                 // SHA-256 of the server's SPKI, hexadecimal
	ImageKeys [][]byte `json:"imageKeys,omitempty"` // ed25519: image manifests; SiteKey when empty

	// ImageThreshold is how many of ImageKeys must have signed; 0 stands for 1.
	ImageThreshold int `json:"imageThreshold,omitempty"`
}

// Check tells what is wrong with t.
func (t Trust) Check() error {
	if len(t.SiteKey) != ed25519.PublicKeySize {
		return fmt.Errorf("trust: site key has %d bytes, want %d", len(t.SiteKey), ed25519.PublicKeySize)
	}
	if b, err := hex.DecodeString(t.Pin); err != nil || len(b) != 32 {
		return fmt.Errorf("trust: pin %q is not a SHA-256 in hexadecimal", t.Pin)
	}
	for i, k := range t.ImageKeys {
		if len(k) != ed25519.PublicKeySize {
			return fmt.Errorf("trust: image key %d has %d bytes, want %d", i, len(k), ed25519.PublicKeySize)
		}
	}
	if t.ImageThreshold < 0 || t.ImageThreshold > len(t.ImageKeys) {
		return fmt.Errorf("trust: %d of %d image keys must sign", t.ImageThreshold, len(t.ImageKeys))
	}
	return nil
}

// ReadTrust reads and checks what Overlay wrote.
func ReadTrust(file string) (Trust, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return Trust{}, err
	}
	t, err := ParseTrust(b)
	if err != nil {
		return t, fmt.Errorf("%s: %w", file, err)
	}
	return t, nil
}

// ParseTrust is ReadTrust of what was read.
func ParseTrust(b []byte) (Trust, error) {
	var t Trust
	if err := json.Unmarshal(b, &t); err != nil {
		return t, fmt.Errorf("trust: %v", err)
	}
	return t, t.Check()
}

// Build writes both parts as one file.
func Build(w io.Writer, o Options) error {
	if err := Base(w, o.Modules, o.Release); err != nil {
		return err
	}
	return Overlay(w, o.Agent, o.Trust)
}

// BaseName is a file name for what Base makes: another kernel or another choice
// of modules has another name, so that a folder can keep them.
func BaseName(release string) string {
	sum := sha256.Sum256([]byte("1 " + strings.Join(Wanted(), " "))) // 1: the layout below
	return fmt.Sprintf("initramfs-%s-%x.cpio.zst", release, sum[:4])
}

// Base writes the part with the kernel modules.
func Base(w io.Writer, modules, release string) error {
	tree, err := Scan(modules)
	if err != nil {
		return err
	}
	chosen, err := tree.Closure(Wanted())
	if err != nil {
		return err
	}
	a := newArchive(w)
	for _, d := range []string{"dev", "etc", "etc/smelt", "mnt", "proc", "root", "run", "sbin", "sys", "tmp", "var", "var/lib", "var/lib/smelt"} {
		a.dir(d)
	}
	// The kernel writes the first lines of /init there, before devtmpfs is mounted.
	a.record(cpio.CharDev("dev/console", 0o600, 5, 1))
	a.record(cpio.CharDev("dev/null", 0o666, 1, 3))
	root := "lib/modules/" + release
	for _, m := range chosen {
		b, err := os.ReadFile(m.File)
		if err != nil {
			return err
		}
		a.file(root+"/"+m.Path, b, 0o644)
	}
	a.file(root+"/modules.dep", depFile(tree, chosen), 0o644)
	a.file(root+"/modules.alias", aliasFile(chosen), 0o644)
	a.file(root+"/modules.builtin", tree.builtinFile(), 0o644)
	return a.close()
}

// Overlay writes the part with the agent.
func Overlay(w io.Writer, agent string, trust Trust) error {
	if err := trust.Check(); err != nil {
		return err
	}
	bin, err := os.ReadFile(agent)
	if err != nil {
		return err
	}
	if !bytes.HasPrefix(bin, []byte("\x7fELF")) {
		return fmt.Errorf("%s is no Linux program", agent)
	}
	t, err := json.Marshal(trust)
	if err != nil {
		return err
	}
	a := newArchive(w)
	a.dir("etc/smelt")
	a.dir("sbin")
	a.file("init", bin, 0o755)
	// The kernel asks for modules by running /sbin/modprobe: the agent is that too.
	a.record(cpio.Symlink("sbin/modprobe", "../init"))
	a.file(path.Clean(TrustPath)[1:], t, 0o600)
	return a.close()
}

// Extra writes a part with files of any name, which only root may read.
func Extra(w io.Writer, files map[string][]byte) error {
	a := newArchive(w)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		a.file(strings.TrimPrefix(path.Clean(name), "/"), files[name], 0o600)
	}
	return a.close()
}

// archive writes newc records with nothing in them that differs between two
// builds: no times, no owners, inode numbers by order.
type archive struct {
	z    *zstd.Encoder
	w    cpio.RecordWriter
	ino  uint64
	made map[string]bool
	err  error
}

func newArchive(w io.Writer) *archive {
	// One goroutine: the output of several depends on their timing. The
	// kernel's decoder takes windows of up to 128 MiB.
	z, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedBetterCompression))
	if err != nil {
		return &archive{err: err}
	}
	return &archive{z: z, w: cpio.Newc.Writer(z), made: map[string]bool{}}
}

func (a *archive) record(r cpio.Record) {
	if a.err != nil {
		return
	}
	a.ino++
	r.Ino, r.NLink = a.ino, 1
	a.err = a.w.WriteRecord(r)
}

func (a *archive) dir(name string) {
	if name == "." || a.made[name] {
		return
	}
	a.dir(path.Dir(name))
	a.made[name] = true
	a.record(cpio.Directory(name, 0o755))
}

func (a *archive) file(name string, b []byte, perm uint64) {
	a.dir(path.Dir(name))
	a.record(cpio.StaticRecord(b, cpio.Info{Name: name, Mode: cpio.S_IFREG | perm}))
}

func (a *archive) close() error {
	if a.z == nil {
		return a.err
	}
	if a.err == nil {
		a.err = cpio.WriteTrailer(a.w)
	}
	return errors.Join(a.err, a.z.Close())
}

func depFile(t *Tree, ms []*Module) []byte {
	var b bytes.Buffer
	for _, m := range ms {
		b.WriteString(m.Path + ":")
		for _, d := range t.Order(m) {
			b.WriteString(" " + d.Path)
		}
		b.WriteByte('\n')
	}
	return b.Bytes()
}

func aliasFile(ms []*Module) []byte {
	var lines []string
	for _, m := range ms {
		for _, a := range m.Aliases {
			lines = append(lines, "alias "+a+" "+m.Name+"\n")
		}
	}
	slices.Sort(lines)
	return []byte(joinLines(slices.Compact(lines)))
}

func joinLines(lines []string) string {
	var b bytes.Buffer
	for _, l := range lines {
		b.WriteString(l)
	}
	return b.String()
}
