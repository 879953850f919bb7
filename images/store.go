package images

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Store is a folder of images, addressed by content:
//
//	blobs/DIGEST      compressed images, and documents about them
//	manifests/DIGEST  signed manifests
//	names/TITLE       the digest a name stands for: of what was built here
//	channels/CHANNEL/TITLE  the same, of what was published (smelt/images/release)
//
// A file under its final name is complete: everything is written beside, synced
// and renamed. Processes may share the folder.
type Store struct {
	dir    string
	follow atomic.Pointer[following] // nil: names are of what was built here
}

// following is a site that takes published images only.
type following struct {
	channel string
	signers Signers
	good    sync.Map // Digest: signed by signers
}

// Errors that callers tell apart.
var (
	ErrNotFound = errors.New("no such image")
	ErrDamaged  = errors.New("the stored blob is damaged")
)

// OpenStore opens or makes the folder.
func OpenStore(dir string) (*Store, error) {
	s := &Store{dir: dir}
	for _, d := range []string{"blobs", "manifests", "names", "channels", "tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, fmt.Errorf("image store: %w", err)
		}
	}
	// What a killed build left: nobody writes one file for a day.
	old, err := filepath.Glob(filepath.Join(dir, "tmp", "*"))
	if err != nil {
		return nil, err
	}
	for _, f := range old {
		if i, err := os.Lstat(f); err == nil && time.Since(i.ModTime()) > 24*time.Hour {
			os.Remove(f)
		}
	}
	return s, nil
}

func (s *Store) blob(d Digest) string     { return filepath.Join(s.dir, "blobs", d.String()) }
func (s *Store) manifest(d Digest) string { return filepath.Join(s.dir, "manifests", d.String()) }

// Put stores a signed manifest and its blob, and gives the image the title of
// the manifest. The blob is refused unless it is what the manifest says; nil
// stands for a blob that is already there.
func (s *Store) Put(envelope []byte, blob io.Reader) (Digest, error) {
	d, err := s.Receive(envelope, blob)
	if err != nil {
		return d, err
	}
	m, err := s.Manifest(d)
	if err != nil {
		return d, err
	}
	return d, s.Name(m.Title(), d)
}

// Receive is Put for an image that somebody else built: no name stands for it.
func (s *Store) Receive(envelope []byte, blob io.Reader) (Digest, error) {
	m, d, err := unverified(envelope)
	if err != nil {
		return Digest{}, err
	}
	if blob != nil {
		err := s.create(s.blob(m.Blob), func(f *os.File) error {
			sum := sha256.New()
			n, err := io.Copy(io.MultiWriter(f, sum), io.LimitReader(blob, m.BlobLen+1))
			if err != nil {
				return err
			}
			if n != m.BlobLen || Digest(sum.Sum(nil)) != m.Blob {
				return fmt.Errorf("blob of %s is not the one its manifest names (%d bytes, want %d)", d.Short(), n, m.BlobLen)
			}
			return nil
		})
		if err != nil {
			return Digest{}, fmt.Errorf("image store: %w", err)
		}
	} else if i, err := os.Stat(s.blob(m.Blob)); err != nil || i.Size() != m.BlobLen {
		return Digest{}, fmt.Errorf("image store: blob of %s: %w", d.Short(), ErrNotFound)
	}
	// Built again, an image keeps the signatures it was given.
	if old, err := os.ReadFile(s.manifest(d)); err == nil {
		if envelope, err = merge(envelope, old); err != nil {
			return Digest{}, err
		}
	}
	return d, s.write(s.manifest(d), envelope)
}

// Has tells whether an image's blob is in the store, as long as it should be.
func (s *Store) Has(m Manifest) bool {
	i, err := os.Stat(s.blob(m.Blob))
	return err == nil && i.Size() == m.BlobLen
}

// OpenBlob opens an image's compressed file, or a document.
func (s *Store) OpenBlob(d Digest) (*os.File, error) {
	f, err := os.Open(s.blob(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("blob %s: %w", d.Short(), ErrNotFound)
	}
	return f, err
}

// Add compresses a raw disk image into the store, signs it and names it. m
// says what the bytes do not: Name, Arch, Created, Key, Root, Kernel and so on.
func (s *Store) Add(ctx context.Context, m Manifest, raw io.ReaderAt, size int64, key ed25519.PrivateKey, progress func(done int64)) (Digest, error) {
	f, err := os.CreateTemp(filepath.Join(s.dir, "tmp"), "blob-*")
	if err != nil {
		return Digest{}, fmt.Errorf("image store: %w", err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	c, err := Compress(ctx, f, raw, size, progress)
	if err != nil {
		return Digest{}, err
	}
	m.Size, m.Blob, m.BlobLen, m.Chunks = c.Size, c.Blob, c.BlobLen, c.Chunks
	envelope, err := Sign(m, key)
	if err != nil {
		return Digest{}, err
	}
	if err := s.commit(f, s.blob(m.Blob)); err != nil {
		return Digest{}, err
	}
	return s.Put(envelope, nil)
}

// MaxDocument is the longest document about an image that is stored or read.
const MaxDocument = 64 << 20

// PutDocument stores a document that a manifest will name: SBOM, Provenance.
func (s *Store) PutDocument(b []byte) (Digest, error) {
	if len(b) > MaxDocument {
		return Digest{}, fmt.Errorf("image store: a document of %d bytes, more than %d", len(b), MaxDocument)
	}
	d := Digest(sha256.Sum256(b))
	return d, s.write(s.blob(d), b)
}

// Document returns a document that a manifest names, verified.
func (s *Store) Document(d Digest) ([]byte, error) {
	f, err := os.Open(s.blob(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("document %s: %w", d.Short(), ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, MaxDocument+1))
	if err != nil {
		return nil, fmt.Errorf("document %s: %w", d.Short(), err)
	}
	if Digest(sha256.Sum256(b)) != d {
		return nil, fmt.Errorf("document %s: the stored file is damaged", d.Short())
	}
	return b, nil
}

// Resign replaces the signature of an image, whose digest stays.
func (s *Store) Resign(d Digest, key ed25519.PrivateKey) error {
	b, err := s.Envelope(d)
	if err != nil {
		return err
	}
	e, err := decodeEnvelope(b)
	if err != nil {
		return err
	}
	if b, err = seal(e.Payload, key); err != nil {
		return err
	}
	return s.write(s.manifest(d), b)
}

// Cosign adds the signature of key to those that an image has.
func (s *Store) Cosign(d Digest, key ed25519.PrivateKey) error {
	b, err := s.Envelope(d)
	if err != nil {
		return err
	}
	if b, err = cosign(b, key); err != nil {
		return err
	}
	return s.write(s.manifest(d), b)
}

// Name makes name stand for an image in the store.
func (s *Store) Name(name string, d Digest) error {
	if !nameForm.MatchString(name) {
		return fmt.Errorf("image name %q: want small letters, digits, dots and dashes", name)
	}
	if _, err := os.Stat(s.manifest(d)); err != nil {
		return fmt.Errorf("image %s: %w", d.Short(), ErrNotFound)
	}
	return s.write(filepath.Join(s.dir, "names", name), []byte(d.String()+"\n"))
}

// Follow makes the store resolve what is published in a channel, and only
// images that signers signed: a node would refuse any other.
func (s *Store) Follow(channel string, signers Signers) {
	s.follow.Store(&following{channel: channel, signers: signers})
}

var (
	channelForm = regexp.MustCompile(`^[a-z]{1,16}$`)
	prefixForm  = regexp.MustCompile(`^[0-9a-f]{6,64}$`)
)

// SetChannel makes a channel name these images, and no others.
func (s *Store) SetChannel(channel string, names map[string]Digest) error {
	if !channelForm.MatchString(channel) {
		return fmt.Errorf("channel %q: want small letters", channel)
	}
	dir := filepath.Join(s.dir, "channels", channel)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("image store: %w", err)
	}
	old, err := s.Channel(channel)
	if err != nil {
		return err
	}
	for name, d := range names {
		if !nameForm.MatchString(name) {
			return fmt.Errorf("image name %q: want small letters, digits, dots and dashes", name)
		}
		if old[name] == d {
			continue
		}
		if err := s.write(filepath.Join(dir, name), []byte(d.String()+"\n")); err != nil {
			return err
		}
	}
	for name := range old {
		if _, ok := names[name]; !ok {
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				return fmt.Errorf("image store: %w", err)
			}
		}
	}
	return nil
}

// Channel returns what a channel names.
func (s *Store) Channel(channel string) (map[string]Digest, error) {
	if !channelForm.MatchString(channel) {
		return nil, fmt.Errorf("channel %q: want small letters", channel)
	}
	return s.names(filepath.Join("channels", channel))
}

// names reads a folder of names.
func (s *Store) names(dir string) (map[string]Digest, error) {
	out := map[string]Digest{}
	files, err := os.ReadDir(filepath.Join(s.dir, dir))
	if errors.Is(err, fs.ErrNotExist) {
		return out, nil
	}
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	for _, f := range files {
		b, err := os.ReadFile(filepath.Join(s.dir, dir, f.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // taken away in between
		}
		if err != nil {
			return nil, fmt.Errorf("image store: %w", err)
		}
		if out[f.Name()], err = ParseDigest(strings.TrimSpace(string(b))); err != nil {
			return nil, fmt.Errorf("image name %s: %w", f.Name(), err)
		}
	}
	return out, nil
}

// Names returns what names stand for: those of the channel that is followed or
// else of what was built here, and those of all channels as CHANNEL/TITLE.
func (s *Store) Names() (map[string]Digest, error) {
	dir := "names"
	if f := s.follow.Load(); f != nil {
		dir = filepath.Join("channels", f.channel)
	}
	out, err := s.names(dir)
	if err != nil {
		return nil, err
	}
	channels, err := os.ReadDir(filepath.Join(s.dir, "channels"))
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	for _, c := range channels {
		names, err := s.names(filepath.Join("channels", c.Name()))
		if err != nil {
			return nil, err
		}
		for name, d := range names {
			out[c.Name()+"/"+name] = d
		}
	}
	return out, nil
}

// Resolve turns a name, a digest or a unique prefix of one into the digest of
// a manifest. A name wins over a prefix. Of a store that follows a channel it
// is signed by those that Follow named, or an error.
func (s *Store) Resolve(ref string) (Digest, error) {
	d, err := s.resolve(ref)
	f := s.follow.Load()
	if err != nil || f == nil {
		return d, err
	}
	if _, ok := f.good.Load(d); ok {
		return d, nil
	}
	b, err := s.Envelope(d)
	if err != nil {
		return Digest{}, err
	}
	if _, _, err := f.signers.Open(b); err != nil {
		return Digest{}, fmt.Errorf("image %q: %w; this site takes released images only: smelt image pull", ref, err)
	}
	f.good.Store(d, true)
	return d, nil
}

func (s *Store) resolve(ref string) (Digest, error) {
	names, err := s.Names()
	if err != nil {
		return Digest{}, err
	}
	if d, ok := names[ref]; ok {
		return d, nil
	}
	prefix := strings.TrimPrefix(ref, "sha256:")
	if !prefixForm.MatchString(prefix) {
		if f := s.follow.Load(); f != nil && !strings.Contains(ref, "/") {
			return Digest{}, fmt.Errorf("image %q: %w in channel %s; smelt image pull fetches what is published there", ref, ErrNotFound, f.channel)
		}
		return Digest{}, fmt.Errorf("image %q: %w; smelt image list shows what is there", ref, ErrNotFound)
	}
	all, err := s.digests()
	if err != nil {
		return Digest{}, err
	}
	var found []Digest
	for _, d := range all {
		if strings.HasPrefix(d.String(), prefix) {
			found = append(found, d)
		}
	}
	switch len(found) {
	case 0:
		return Digest{}, fmt.Errorf("image %q: %w; smelt image list shows what is there", ref, ErrNotFound)
	case 1:
		return found[0], nil
	}
	return Digest{}, fmt.Errorf("image %q: %d images begin so", ref, len(found))
}

// Manifest returns an image's manifest, unverified: agents verify for themselves.
func (s *Store) Manifest(d Digest) (Manifest, error) {
	b, err := s.Envelope(d)
	if err != nil {
		return Manifest{}, err
	}
	m, got, err := unverified(b)
	if err != nil {
		return Manifest{}, fmt.Errorf("image %s: %w", d.Short(), err)
	}
	if got != d {
		return Manifest{}, fmt.Errorf("image %s: the stored manifest is %s", d.Short(), got.Short())
	}
	return m, nil
}

// Envelope returns an image's signed manifest, for Open.
func (s *Store) Envelope(d Digest) ([]byte, error) {
	b, err := os.ReadFile(s.manifest(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("image %s: %w", d.Short(), ErrNotFound)
	}
	return b, err
}

// Blob opens an image's compressed file.
func (s *Store) Blob(m Manifest) (*os.File, error) {
	f, err := os.Open(s.blob(m.Blob))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("blob of image %s: %w", m.Name, ErrNotFound)
	}
	return f, err
}

// Verify reads the whole blob and holds it against the manifest. A damaged one
// is put aside: it is served to nobody, and a build or a pull makes it anew.
func (s *Store) Verify(d Digest) error {
	m, err := s.Manifest(d)
	if err != nil {
		return err
	}
	f, err := s.Blob(m)
	if err != nil {
		return err
	}
	defer f.Close()
	sum := sha256.New()
	n, err := io.Copy(sum, f)
	if err != nil {
		return fmt.Errorf("image %s: %w", d.Short(), err)
	}
	if n != m.BlobLen || Digest(sum.Sum(nil)) != m.Blob {
		if err := s.putAside(f); err != nil {
			return fmt.Errorf("image %s: %w, and cannot be removed: %w", d.Short(), ErrDamaged, err)
		}
		return fmt.Errorf("image %s: %w: build or fetch it again", d.Short(), ErrDamaged)
	}
	return nil
}

// putAside takes a damaged blob's name away, unless another file has it by now.
func (s *Store) putAside(f *os.File) error {
	ours, err := f.Stat()
	if err != nil {
		return err
	}
	now, err := os.Lstat(f.Name())
	if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(ours, now) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), filepath.Join(s.dir, "tmp", "damaged-"+filepath.Base(f.Name())))
}

// Entry is one image in a list.
type Entry struct {
	Digest Digest
	Names  []string
	Manifest
}

// List returns all images, newest first.
func (s *Store) List() ([]Entry, error) {
	all, err := s.digests()
	if err != nil {
		return nil, err
	}
	names, err := s.Names()
	if err != nil {
		return nil, err
	}
	named := map[Digest][]string{}
	for _, n := range slices.Sorted(maps.Keys(names)) {
		named[names[n]] = append(named[names[n]], n)
	}
	var list []Entry
	for _, d := range all {
		m, err := s.Manifest(d)
		if errors.Is(err, ErrEnvelope) || errors.Is(err, ErrManifest) {
			continue // of another version of Smelt: nobody here can use it
		}
		if err != nil {
			return nil, err
		}
		list = append(list, Entry{d, named[d], m})
	}
	slices.SortFunc(list, func(a, b Entry) int {
		if c := b.Created.Compare(a.Created); c != 0 {
			return c
		}
		return bytes.Compare(a.Digest[:], b.Digest[:])
	})
	return list, nil
}

// digests returns the digests of all manifests.
func (s *Store) digests() ([]Digest, error) {
	files, err := os.ReadDir(filepath.Join(s.dir, "manifests"))
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	var all []Digest
	for _, f := range files {
		if d, err := ParseDigest(f.Name()); err == nil {
			all = append(all, d)
		}
	}
	return all, nil
}

// Handler serves GET and HEAD of /manifest/DIGEST and /blob/DIGEST, with
// ranges. Nothing under a blob's URL ever changes, and nothing is secret, so any
// cache on the way may keep it. An image's manifest does not change either, but
// who signed it may: after a key was changed, a cache must not bring back what
// no node takes any more.
func (s *Store) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /manifest/{digest}", s.serve(s.manifest, "application/vnd.dsse.envelope.v1+json", ""))
	mux.HandleFunc("GET /blob/{digest}", s.serve(s.blob, "application/zstd", "public, max-age=31536000, immutable, no-transform"))
	return mux
}

// serve answers with a file; without a rule for caches they ask each time.
func (s *Store) serve(path func(Digest) string, contentType, caches string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		// A digest is the only part of the path that reaches the file system.
		d, err := ParseDigest(r.PathValue("digest"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		f, err := os.Open(path(d))
		if err != nil {
			http.Error(w, "no "+d.Short()+" here", http.StatusNotFound)
			return
		}
		defer f.Close()
		h := w.Header()
		h.Set("Content-Type", contentType)
		if caches != "" {
			h.Set("ETag", `"`+d.String()+`"`)
			h.Set("Cache-Control", caches)
			http.ServeContent(w, r, "", time.Time{}, f)
			return
		}
		sum := sha256.New()
		if _, err = io.Copy(sum, f); err == nil {
			_, err = f.Seek(0, io.SeekStart)
		}
		if err != nil {
			http.Error(w, "cannot read "+d.Short(), http.StatusInternalServerError)
			return
		}
		h.Set("ETag", `"`+Digest(sum.Sum(nil)).String()+`"`)
		h.Set("Cache-Control", "no-cache, no-transform")
		http.ServeContent(w, r, "", time.Time{}, f)
	}
}

// unverified decodes an envelope whose signature is somebody else's to check.
func unverified(b []byte) (Manifest, Digest, error) {
	e, err := decodeEnvelope(b)
	if err != nil {
		return Manifest{}, Digest{}, err
	}
	return decodeManifest(e.Payload)
}

// write replaces a small file in one step.
func (s *Store) write(path string, b []byte) error {
	err := s.create(path, func(f *os.File) error {
		_, err := f.Write(b)
		return err
	})
	if err != nil {
		return fmt.Errorf("image store: %w", err)
	}
	return nil
}

// create makes a file with what fill writes, or leaves nothing.
func (s *Store) create(path string, fill func(*os.File) error) error {
	f, err := os.CreateTemp(filepath.Join(s.dir, "tmp"), "new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone by then, when all went well
	defer f.Close()
	if err := fill(f); err != nil {
		return err
	}
	return s.commit(f, path)
}

// commit gives f, which the caller closes, its final name.
func (s *Store) commit(f *os.File, path string) error {
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
