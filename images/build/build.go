package build

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"smelt/images"
)

// Extra is a file of the build host that goes into the image after the
// packages: the agent, its helpers, its libraries. A change of one costs
// seconds, not minutes.
type Extra struct {
	Dest string // in the image
	Host string // on this machine
	Mode os.FileMode
}

// Options of Build. All are needed but Extra, Mirrors and Progress.
type Options struct {
	Recipe   Recipe
	Lock     Lock
	Extra    []Extra
	Mirrors  map[string]string // other addresses of sources, by name
	Cache    string            // folder for what can be made again
	Out      *images.Store     // takes the image
	Key      ed25519.PrivateKey
	Progress func(Progress)
}

// Progress is one step of a build.
type Progress struct {
	Stage string  // tools, fetch, packages, modules, rootfs, disk, compress
	Done  float64 // 0 to 1, of the stage
	Line  string  // for people
}

// Info says what Build did.
type Info struct {
	Hit        bool   // the image was there
	Packages   bool   // the tree of packages was cached
	Kernel     string // release
	Size       int64  // of the disk
	Data       int64  // bytes of it that are not zero chunks
	Compressed int64
	Elapsed    time.Duration
	Log        string // the file of all that the tools said; "" where nothing was built
}

// builder is one build; its Cache is absolute.
type builder struct {
	Options
	log *logFile
	env []string // more environment for what runs in the tree
}

// epoch tells tools the time to write (reproducible-builds.org/specs/source-date-epoch).
func (b *builder) epoch() string { return fmt.Sprintf("SOURCE_DATE_EPOCH=%d", b.Lock.Date.Unix()) }

// Build returns the image of a recipe, making what the cache lacks. Two builds
// of one key at the same time are one build.
func Build(ctx context.Context, o Options) (images.Digest, Info, error) {
	began := time.Now()
	d, info, err := build(ctx, o)
	if err != nil {
		return images.Digest{}, Info{}, fmt.Errorf("image %s: %w", o.Recipe.Title(), err)
	}
	info.Elapsed = time.Since(began)
	return d, info, nil
}

func build(ctx context.Context, o Options) (images.Digest, Info, error) {
	if len(o.Key) != ed25519.PrivateKeySize {
		return images.Digest{}, Info{}, errors.New("no key to sign it with")
	}
	if len(o.Recipe.images) > 0 {
		return images.Digest{}, Info{}, errors.New("the recipe has variants: each is built for itself")
	}
	key, err := Key(o.Recipe, o.Lock, o.Extra)
	if err != nil {
		return images.Digest{}, Info{}, err
	}
	if o.Cache, err = filepath.Abs(o.Cache); err != nil {
		return images.Digest{}, Info{}, err
	}
	if err := os.MkdirAll(o.Cache, 0o755); err != nil {
		return images.Digest{}, Info{}, err
	}
	b := &builder{Options: o}
	if d, info, ok := b.built(key); ok {
		return d, info, nil
	}
	unlock, err := flock(ctx, filepath.Join(o.Cache, "build.lock"))
	if err != nil {
		return images.Digest{}, Info{}, err
	}
	defer unlock()
	if d, info, ok := b.built(key); ok {
		return d, info, nil
	}
	if err := sweep(o.Cache); err != nil {
		return images.Digest{}, Info{}, err
	}
	if b.log, err = openLog(filepath.Join(o.Cache, "log"), o.Recipe.Title()); err != nil {
		return images.Digest{}, Info{}, err
	}
	d, info, err := b.build(ctx, key)
	b.log.close(err)
	info.Log = b.log.path
	if err != nil {
		return d, info, fmt.Errorf("%w\n(everything that was said: %s)", err, b.log.path)
	}
	return d, info, nil
}

// A Plan is what a build would do.
type Plan struct {
	Key   string
	Hit   bool  // nothing: the image is there
	Fetch int   // packages that the cache lacks
	Bytes int64 // of them
}

// Plan says what Build would do, and does nothing.
func (o Options) Plan() (Plan, error) {
	key, err := Key(o.Recipe, o.Lock, o.Extra)
	if err != nil {
		return Plan{}, err
	}
	p := Plan{Key: key}
	b := &builder{Options: o}
	if text, err := os.ReadFile(b.record(key)); err == nil {
		if d, err := images.ParseDigest(strings.TrimSpace(string(text))); err == nil {
			m, err := o.Out.Manifest(d)
			p.Hit = err == nil && m.Key == key && o.Out.Has(m)
		}
	}
	seen := map[images.Digest]bool{}
	for _, l := range slices.Concat(o.Lock.Packages, o.Lock.Compile, o.Lock.Tools) {
		if !p.Hit && !seen[l.SHA256] && !exists(filepath.Join(o.Cache, "debs", l.SHA256.String()+".deb")) {
			p.Fetch++
			p.Bytes += l.Size
		}
		seen[l.SHA256] = true
	}
	return p, nil
}

// Key is what an image follows from: recipe, lock, contents of the extra
// files, version of the builder. The same key gives the cached image.
func Key(r Recipe, l Lock, extra []Extra) (string, error) {
	if err := l.Fits(r); err != nil {
		return "", err
	}
	var keys []extraKey
	for _, e := range extra {
		if err := checkDest(e.Dest); err != nil {
			return "", err
		}
		d, err := fileDigest(e.Host)
		if err != nil {
			return "", fmt.Errorf("file for %s: %w", e.Dest, err)
		}
		keys = append(keys, extraKey{e.Dest, d, e.Mode})
	}
	slices.SortFunc(keys, func(a, b extraKey) int { return strings.Compare(a.Dest, b.Dest) })
	b := builder{Options: Options{Recipe: r, Lock: l}}
	return contentKey(b.stageKey(b.imageStage()), r.Title(), r.GPU, l.Digest(), r.Kernel, r.Cmdline, r.Free, keys), nil
}

// builderVersion is part of every key: raise it when the builder makes
// something else of the same recipe and lock.
const builderVersion = 4

func contentKey(parts ...any) string {
	b, err := json.Marshal(parts)
	if err != nil {
		panic("build: key: " + err.Error())
	}
	d := sha256.Sum256(b)
	return hex.EncodeToString(d[:])
}

type extraKey struct {
	Dest   string
	Digest images.Digest
	Mode   os.FileMode
}

func fileDigest(path string) (images.Digest, error) {
	f, err := os.Open(path)
	if err != nil {
		return images.Digest{}, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return images.Digest{}, err
	}
	return images.Digest(h.Sum(nil)), nil
}

func (b *builder) record(key string) string { return filepath.Join(b.Cache, "built", key) }

// built finds the image of a key in the store, and signs it again when the
// site's key is another one than then.
func (b *builder) built(key string) (images.Digest, Info, bool) {
	none := func() (images.Digest, Info, bool) { return images.Digest{}, Info{}, false }
	text, err := os.ReadFile(b.record(key))
	if err != nil {
		return none()
	}
	d, err := images.ParseDigest(strings.TrimSpace(string(text)))
	if err != nil {
		return none()
	}
	m, err := b.Out.Manifest(d)
	if err != nil || m.Key != key {
		return none()
	}
	if !b.Out.Has(m) || b.budget(m) != nil {
		return none()
	}
	env, err := b.Out.Envelope(d)
	if err != nil {
		return none()
	}
	if _, _, err := images.Open(env, b.Key.Public().(ed25519.PublicKey)); err != nil {
		if err := b.Out.Cosign(d, b.Key); err != nil {
			return none()
		}
	}
	if err := b.Out.Name(m.Title(), d); err != nil {
		return none()
	}
	b.tell("image", 1, "cached "+d.Short())
	return d, Info{Hit: true, Packages: true, Kernel: m.Kernel, Size: m.Size, Data: m.Data(), Compressed: m.BlobLen}, true
}

func (b *builder) build(ctx context.Context, key string) (images.Digest, Info, error) {
	fail := func(err error) (images.Digest, Info, error) { return images.Digest{}, Info{}, err }
	driver, err := b.Lock.driver(b.Recipe)
	if err != nil {
		return fail(err)
	}
	tools, err := b.tools(ctx)
	if err != nil {
		return fail(err)
	}
	tree, cached, err := b.tree(ctx, b.imageStage())
	if err != nil {
		return fail(err)
	}
	work, err := os.MkdirTemp(b.Cache, "disk-*")
	if err != nil {
		return fail(err)
	}
	defer os.RemoveAll(work)

	b.tell("rootfs", 0, "adding files")
	root := filepath.Join(work, "root")
	// Links, not copies: what is replaced below is removed first.
	if _, err := (command{name: "cp", args: []string{"-al", tree, root}, log: b.log}).run(ctx); err != nil {
		return fail(err)
	}
	kernel, err := kernelOf(root)
	if err != nil {
		return fail(err)
	}
	if err := b.modules(ctx, root, kernel); err != nil {
		return fail(err)
	}
	id := idsFrom(key)
	if err := b.overlay(root, kernel, id); err != nil {
		return fail(err)
	}

	b.tell("disk", 0, "filesystem and boot loaders")
	raw := filepath.Join(work, "disk.raw")
	size, err := b.assemble(ctx, tools, work, root, raw, id)
	if err != nil {
		return fail(err)
	}
	f, err := os.Open(raw)
	if err != nil {
		return fail(err)
	}
	defer f.Close()
	b.tell("compress", 0, "compressing and signing")
	m := images.Manifest{
		Name: b.Recipe.Name, Variant: b.Recipe.Variant, Arch: b.Recipe.Arch, Created: b.Lock.Date, Key: key,
		Root: id.root, Kernel: kernel, Driver: driver,
	}
	blob, err := os.Create(filepath.Join(work, "blob"))
	if err != nil {
		return fail(err)
	}
	defer blob.Close()
	c, err := images.Compress(ctx, blob, f, size, func(done int64) { b.tell("compress", float64(done)/float64(size), "compressing and signing") })
	if err != nil {
		return fail(err)
	}
	m.Size, m.Blob, m.BlobLen, m.Chunks = c.Size, c.Blob, c.BlobLen, c.Chunks
	if err := b.budget(m); err != nil {
		return fail(err)
	}
	if err := b.documents(&m, root, key); err != nil {
		return fail(err)
	}
	envelope, err := images.Sign(m, b.Key)
	if err != nil {
		return fail(err)
	}
	if _, err := blob.Seek(0, io.SeekStart); err != nil {
		return fail(err)
	}
	d, err := b.Out.Put(envelope, blob)
	if err != nil {
		return fail(err)
	}
	if err := os.MkdirAll(filepath.Dir(b.record(key)), 0o755); err != nil {
		return fail(err)
	}
	if err := os.WriteFile(b.record(key), []byte(d.String()+"\n"), 0o644); err != nil {
		return fail(err)
	}
	return d, Info{Packages: cached, Kernel: kernel, Size: size, Data: m.Data(), Compressed: m.BlobLen}, nil
}

// budget refuses an image that takes more than its recipe allows, and says what
// takes the most.
func (b *builder) budget(m images.Manifest) error {
	if b.Recipe.Budget == 0 || m.BlobLen <= b.Recipe.Budget {
		return nil
	}
	big := slices.SortedFunc(slices.Values(b.Lock.Packages), func(a, b Locked) int { return cmp.Compare(b.Installed, a.Installed) })
	var names []string
	for _, p := range big[:min(5, len(big))] {
		names = append(names, fmt.Sprintf("%s %d MiB", p.Name, p.Installed>>10))
	}
	return fmt.Errorf("%s: it takes %d MiB compressed, and its budgetMiB is %d; the largest packages, installed: %s",
		b.Recipe.path, (m.BlobLen+mib-1)/mib, b.Recipe.Budget/mib, strings.Join(names, ", "))
}

// kernelOf returns the release of the one kernel in a tree.
func kernelOf(root string) (string, error) {
	found, err := filepath.Glob(filepath.Join(root, "boot", "vmlinuz-*"))
	if err != nil {
		return "", err
	}
	if len(found) != 1 {
		return "", fmt.Errorf("the packages bring %d kernels, want one: is there one under kernel?", len(found))
	}
	release := strings.TrimPrefix(filepath.Base(found[0]), "vmlinuz-")
	if !exists(filepath.Join(root, "boot", "initrd.img-"+release)) {
		return "", fmt.Errorf("kernel %s has no initrd: is initramfs-tools in the recipe?", release)
	}
	return release, nil
}

// overlay adds what follows from the disk, then the extra files. It writes
// through an os.Root: a link in the tree cannot lead it to the host's files.
func (b *builder) overlay(root, kernel string, id ids) error {
	r, err := os.OpenRoot(root)
	if err != nil {
		return err
	}
	defer r.Close()
	put := func(dest string, mode os.FileMode, src io.Reader) error {
		p := strings.TrimPrefix(dest, "/")
		if err := r.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			return fmt.Errorf("%s in the image: %w", dest, err)
		}
		if err := r.RemoveAll(p); err != nil { // a hard link into the cache, perhaps
			return fmt.Errorf("%s in the image: %w", dest, err)
		}
		f, err := r.OpenFile(p, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode.Perm())
		if err != nil {
			return fmt.Errorf("%s in the image: %w", dest, err)
		}
		defer f.Close()
		if _, err := io.Copy(f, src); err != nil {
			return fmt.Errorf("%s in the image: %w", dest, err)
		}
		if err := f.Chmod(mode.Perm()); err != nil { // whatever our umask
			return err
		}
		return f.Close()
	}
	for _, f := range []File{
		{"/etc/fstab", 0o644, fmt.Sprintf("UUID=%s / ext4 defaults,noatime 0 1\n", id.root)},
		{"/boot/grub/grub.cfg", 0o644, grubConfig(kernel, b.Recipe.Cmdline, id.root)},
	} {
		if err := put(f.Path, f.Mode, strings.NewReader(f.Content)); err != nil {
			return err
		}
	}
	for _, e := range b.Extra {
		f, err := os.Open(e.Host)
		if err != nil {
			return err
		}
		err = put(e.Dest, e.Mode, f)
		f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func (b *builder) tell(stage string, done float64, line string) {
	if b.Progress != nil {
		b.Progress(Progress{stage, done, line})
	}
}
