package release

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/secure-systems-lab/go-securesystemslib/cjson"
	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"smelt/images"
	"smelt/images/remote"
)

type (
	rootData      = metadata.Metadata[metadata.RootType]
	targetsData   = metadata.Metadata[metadata.TargetsType]
	timestampData = metadata.Metadata[metadata.TimestampType]
)

// Repository is the publisher's folder: what is published, and what waits for
// signatures. It holds no key and nothing secret, so it may travel on a stick
// to where the keys are, and live in version control.
//
//	metadata/N.ROLE.json   published, N counts versions; timestamp.json has none
//	staged/ROLE.json       the next version, until enough keys of its role signed
type Repository struct {
	dir string
	now func() time.Time
}

// NewRepository begins a repository in dir: everything is staged, and waits to
// be signed.
func NewRepository(dir string, keys map[Role]Keys) (*Repository, error) {
	for _, role := range Roles {
		k := keys[role]
		if len(k.Public) == 0 || k.Threshold < 1 || k.Threshold > len(k.Public) {
			return nil, fmt.Errorf("%d of %d keys of %s must sign: give it keys, and at most as many as there are", k.Threshold, len(k.Public), role)
		}
	}
	for _, sub := range []string{"metadata", "staged"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return nil, err
		}
		if left, err := os.ReadDir(filepath.Join(dir, sub)); err != nil || len(left) > 0 {
			return nil, errors.Join(err, fmt.Errorf("%s holds a release folder already", dir))
		}
	}
	r := &Repository{dir: dir, now: time.Now}
	// Nothing counts before there is a root: it is written last.
	for _, c := range Channels {
		if err := r.write(c, metadata.Targets(r.expires(c))); err != nil {
			return nil, err
		}
	}
	t := metadata.Targets(r.expires(Release))
	t.Signed.Delegations = &metadata.Delegations{Keys: map[string]*metadata.Key{}, Roles: []metadata.DelegatedRole{}}
	for _, c := range Channels {
		t.Signed.Delegations.Roles = append(t.Signed.Delegations.Roles, metadata.DelegatedRole{
			Name: c.tuf(), KeyIDs: []string{}, Threshold: keys[c].Threshold, Terminating: true, Paths: []string{channelPath(c, "*")},
		})
		for _, k := range keys[c].Public {
			key, err := metadata.KeyFromPublicKey(k)
			if err != nil {
				return nil, err
			}
			if err := t.Signed.AddKey(key, c.tuf()); err != nil {
				return nil, err
			}
		}
	}
	if err := r.write(Release, t); err != nil {
		return nil, err
	}
	root := metadata.Root(r.expires(Root))
	for _, role := range []Role{Root, Release, Online} {
		for _, name := range role.inRoot() {
			root.Signed.Roles[name].Threshold = keys[role].Threshold
			for _, k := range keys[role].Public {
				key, err := metadata.KeyFromPublicKey(k)
				if err != nil {
					return nil, err
				}
				if err := root.Signed.AddKey(key, name); err != nil {
					return nil, err
				}
			}
		}
	}
	return r, r.write(Root, root)
}

// inRoot are the roles that root names keys for on behalf of r.
func (r Role) inRoot() []string {
	if r == Online {
		return []string{metadata.SNAPSHOT, metadata.TIMESTAMP}
	}
	return []string{r.tuf()}
}

// OpenRepository opens a release folder.
func OpenRepository(dir string) (*Repository, error) {
	r := &Repository{dir: dir, now: time.Now}
	if _, _, err := r.root(); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s is no release folder: begin one with: smelt image trust init", dir)
		}
		return nil, err
	}
	return r, nil
}

func (r *Repository) expires(role Role) time.Time {
	return r.now().Add(role.lifetime()).UTC().Truncate(time.Second)
}

func (r *Repository) staged(role Role) string {
	return filepath.Join(r.dir, "staged", role.tuf()+".json")
}

func (r *Repository) published(name string) string { return filepath.Join(r.dir, "metadata", name) }

// fileName is the name of a version of a role's metadata.
func fileName(tuf string, version int64) string {
	if tuf == metadata.TIMESTAMP {
		return tuf + ".json"
	}
	return strconv.FormatInt(version, 10) + "." + tuf + ".json"
}

// newest returns the number of the newest published version; 0 where there is none.
func (r *Repository) newest(tuf string) (int64, error) {
	files, err := os.ReadDir(filepath.Join(r.dir, "metadata"))
	if err != nil {
		return 0, err
	}
	var n int64
	for _, f := range files {
		if v, ok := strings.CutSuffix(f.Name(), "."+tuf+".json"); ok {
			if i, err := strconv.ParseInt(v, 10, 64); err == nil {
				n = max(n, i)
			}
		}
	}
	return n, nil
}

// read decodes a file of metadata.
func read[T metadata.Roles](path string) (*metadata.Metadata[T], error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	m, err := new(metadata.Metadata[T]).FromBytes(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %v", path, err)
	}
	return m, nil
}

func (r *Repository) root() (m *rootData, staged bool, err error) {
	return head[metadata.RootType](r, Root, func(m *rootData) int64 { return m.Signed.Version })
}

func (r *Repository) targets(role Role) (m *targetsData, staged bool, err error) {
	return head[metadata.TargetsType](r, role, func(m *targetsData) int64 { return m.Signed.Version })
}

// head is what is staged for a role, or else what is published.
func head[T metadata.Roles](r *Repository, role Role, version func(*metadata.Metadata[T]) int64) (*metadata.Metadata[T], bool, error) {
	newest, err := r.newest(role.tuf())
	if err != nil {
		return nil, false, err
	}
	m, err := read[T](r.staged(role))
	switch {
	case err == nil && version(m) == newest+1:
		return m, true, nil
	case err == nil && version(m) > newest:
		return nil, false, fmt.Errorf("%s is version %d, but %d is the newest that is published here: fetch what was published, or remove it", r.staged(role), version(m), newest)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, false, err
	}
	// What is staged and not newer was published before the power went.
	m, err = read[T](r.published(fileName(role.tuf(), newest)))
	return m, false, err
}

// write stages a role's metadata.
func (r *Repository) write(role Role, m interface{ ToBytes(bool) ([]byte, error) }) error {
	b, err := m.ToBytes(true)
	if err != nil {
		return err
	}
	return replace(r.staged(role), append(b, '\n'))
}

// changeTargets stages the next version of a role with what f changes. Nothing
// is staged, and no signature is lost, when f changes nothing.
func (r *Repository) changeTargets(role Role, f func(*metadata.TargetsType) error) error {
	m, staged, err := r.targets(role)
	if err != nil {
		return err
	}
	before, err := json.Marshal(m.Signed)
	if err != nil {
		return err
	}
	if err := f(&m.Signed); err != nil {
		return err
	}
	after, err := json.Marshal(m.Signed)
	if err != nil || bytes.Equal(before, after) {
		return err
	}
	return r.nextTargets(role, m, staged)
}

func (r *Repository) nextTargets(role Role, m *targetsData, staged bool) error {
	if !staged {
		m.Signed.Version++
	}
	m.Signed.Expires = r.expires(role)
	m.ClearSignatures()
	return r.write(role, m)
}

func (r *Repository) changeRoot(f func(*metadata.RootType) error) error {
	m, staged, err := r.root()
	if err != nil {
		return err
	}
	before, err := json.Marshal(m.Signed)
	if err != nil {
		return err
	}
	if err := f(&m.Signed); err != nil {
		return err
	}
	after, err := json.Marshal(m.Signed)
	if err != nil || bytes.Equal(before, after) {
		return err
	}
	return r.nextRoot(m, staged)
}

func (r *Repository) nextRoot(m *rootData, staged bool) error {
	if !staged {
		m.Signed.Version++
	}
	m.Signed.Expires = r.expires(Root)
	m.ClearSignatures()
	return r.write(Root, m)
}

// Renew stages a role as it is, to be signed for another of its lifetimes, or
// by other keys.
func (r *Repository) Renew(role Role) error {
	switch role {
	case Root:
		m, staged, err := r.root()
		if err != nil {
			return err
		}
		return r.nextRoot(m, staged)
	case Release, Canary, Stable:
		m, staged, err := r.targets(role)
		if err != nil {
			return err
		}
		return r.nextTargets(role, m, staged)
	case Online:
	}
	return nil // made anew each time something is published
}

// Release stages that the image of an envelope exists.
func (r *Repository) Release(envelope []byte) (images.Digest, error) {
	m, d, file, err := target(envelope)
	if err != nil {
		return d, err
	}
	custom, err := json.Marshal(map[string]string{"title": m.Title()})
	if err != nil {
		return d, err
	}
	file.Custom = (*json.RawMessage)(&custom)
	return d, r.changeTargets(Release, func(t *metadata.TargetsType) error {
		if t.Targets[manifestPath(d)] == nil {
			t.Targets[manifestPath(d)] = file
		}
		return nil
	})
}

// SignImage releases an image as far as one key can: it signs the manifest,
// and stages and signs that the image exists.
func (r *Repository) SignImage(st *images.Store, d images.Digest, key ed25519.PrivateKey) error {
	if err := r.Check(Release, key); err != nil {
		return err
	}
	if err := st.Cosign(d, key); err != nil {
		return err
	}
	b, err := st.Envelope(d)
	if err != nil {
		return err
	}
	if _, err := r.Release(b); err != nil {
		return err
	}
	return r.Sign(Release, key)
}

// Promote stages that a channel names the image of an envelope.
func (r *Repository) Promote(channel Role, envelope []byte) error {
	m, d, file, err := target(envelope)
	if err != nil {
		return err
	}
	released, err := r.Released()
	if err != nil {
		return err
	}
	if _, ok := released[d]; !ok {
		return fmt.Errorf("image %s %s was never released, or was withdrawn: smelt image sign %s", m.Title(), d.Short(), d.Short())
	}
	return r.changeTargets(channel, func(t *metadata.TargetsType) error {
		path := channelPath(channel, m.Title())
		if old := t.Targets[path]; old == nil || !old.Equal(*file) {
			t.Targets[path] = file
		}
		return nil
	})
}

// Withdraw stages that an image does not exist any more, in any channel.
func (r *Repository) Withdraw(d images.Digest) error {
	for _, c := range Channels {
		if err := r.changeTargets(c, func(t *metadata.TargetsType) error {
			for path, f := range t.Targets {
				if bytes.Equal(f.Hashes["sha256"], d[:]) {
					delete(t.Targets, path)
				}
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return r.changeTargets(Release, func(t *metadata.TargetsType) error {
		delete(t.Targets, manifestPath(d))
		return nil
	})
}

// target describes a manifest as TUF does a file.
func target(envelope []byte) (images.Manifest, images.Digest, *metadata.TargetFiles, error) {
	payload, err := images.Payload(envelope)
	if err != nil {
		return images.Manifest{}, images.Digest{}, nil, err
	}
	var m images.Manifest
	if err := json.Unmarshal(payload, &m); err != nil {
		return m, images.Digest{}, nil, err
	}
	f, err := metadata.TargetFile().FromBytes("manifest", payload, "sha256")
	if err != nil {
		return m, images.Digest{}, nil, err
	}
	return m, images.Digest(f.Hashes["sha256"]), f, m.Validate()
}

// Released returns the titles of all released images, staged ones too.
func (r *Repository) Released() (map[images.Digest]string, error) {
	m, _, err := r.targets(Release)
	if err != nil {
		return nil, err
	}
	return released(m)
}

// Channel returns what a channel names, staged or published.
func (r *Repository) Channel(channel Role) (map[string]images.Digest, error) {
	m, _, err := r.targets(channel)
	if err != nil {
		return nil, err
	}
	return channelTitles(channel, m)
}

// SetKeys stages other keys for a role: add, those whose images.KeyID begins
// with one of remove leave, and threshold of them sign when it is not 0. What
// the role said must then be signed by its new keys.
func (r *Repository) SetKeys(role Role, add []ed25519.PublicKey, remove []string, threshold int) error {
	edit := func(name string, ids []string, keys map[string]*metadata.Key, addKey func(*metadata.Key) error, drop func(string) error) (int, error) {
		for _, want := range remove {
			var found []string
			for _, id := range ids {
				if p, err := publicKey(keys[id]); err == nil && strings.HasPrefix(images.KeyID(p), want) {
					found = append(found, id)
				}
			}
			if len(found) != 1 {
				return 0, fmt.Errorf("%d keys of %s begin with %q: smelt image trust show lists them", len(found), name, want)
			}
			if err := drop(found[0]); err != nil {
				return 0, err
			}
			ids = slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return id == found[0] })
		}
		for _, p := range add {
			k, err := metadata.KeyFromPublicKey(p)
			if err != nil {
				return 0, err
			}
			if err := addKey(k); err != nil {
				return 0, err
			}
			if id, err := k.ID(); err == nil && !slices.Contains(ids, id) {
				ids = append(ids, id)
			}
		}
		return len(ids), nil
	}
	enough := func(n, threshold int) error {
		if threshold < 1 || threshold > n {
			return fmt.Errorf("%d of %d keys of %s must sign: give a --threshold that can be met", threshold, n, role)
		}
		return nil
	}
	if slices.Contains(Channels, role) {
		if err := r.changeTargets(Release, func(t *metadata.TargetsType) error {
			i := slices.IndexFunc(t.Delegations.Roles, func(d metadata.DelegatedRole) bool { return d.Name == role.tuf() })
			if i < 0 {
				return fmt.Errorf("there is no %s here", role)
			}
			d := &t.Delegations.Roles[i]
			n, err := edit(d.Name, d.KeyIDs, t.Delegations.Keys,
				func(k *metadata.Key) error { return t.AddKey(k, d.Name) },
				func(id string) error { return t.RevokeKey(id, d.Name) })
			if err != nil {
				return err
			}
			if threshold != 0 {
				d.Threshold = threshold
			}
			return enough(n, d.Threshold)
		}); err != nil {
			return err
		}
	} else if err := r.changeRoot(func(t *metadata.RootType) error {
		for _, name := range role.inRoot() {
			n, err := edit(name, t.Roles[name].KeyIDs, t.Keys,
				func(k *metadata.Key) error { return t.AddKey(k, name) },
				func(id string) error { return t.RevokeKey(id, name) })
			if err != nil {
				return err
			}
			if threshold != 0 {
				t.Roles[name].Threshold = threshold
			}
			if err := enough(n, t.Roles[name].Threshold); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return err
	}
	if role == Root {
		return nil
	}
	return r.Renew(role)
}

// keysOf returns who may sign a role, as what is staged says. A new root also
// needs the keys of the root before it.
func (r *Repository) keysOf(role Role) (images.Signers, error) {
	if slices.Contains(Channels, role) {
		t, _, err := r.targets(Release)
		if err != nil {
			return images.Signers{}, err
		}
		for _, d := range t.Signed.Delegations.Roles {
			if d.Name != role.tuf() {
				continue
			}
			s := images.Signers{Threshold: d.Threshold}
			for _, id := range d.KeyIDs {
				k, err := publicKey(t.Signed.Delegations.Keys[id])
				if err != nil {
					return s, fmt.Errorf("key %.16s of %s: %w", id, role, err)
				}
				s.Keys = append(s.Keys, k)
			}
			return s, s.Check()
		}
		return images.Signers{}, fmt.Errorf("there is no %s here", role)
	}
	m, _, err := r.root()
	if err != nil {
		return images.Signers{}, err
	}
	if role == Online {
		return signers(m, Role(metadata.TIMESTAMP))
	}
	return signers(m, role)
}

// rootBefore returns the published root, nil where there is none.
func (r *Repository) rootBefore() (*rootData, error) {
	n, err := r.newest(metadata.ROOT)
	if err != nil || n == 0 {
		return nil, err
	}
	return read[metadata.RootType](r.published(fileName(metadata.ROOT, n)))
}

// Signed says how far a staged role is.
type Signed struct {
	Role    Role
	Version int64
	Have    int // good signatures
	Need    int
	Done    bool // enough: it can be published
}

// Staged returns what waits to be published, signed enough or not.
func (r *Repository) Staged() ([]Signed, error) {
	var out []Signed
	for _, role := range Roles[:len(Roles)-1] {
		s, staged, err := r.progress(role)
		if err != nil {
			return nil, err
		}
		if staged {
			out = append(out, s)
		}
	}
	return out, nil
}

func (r *Repository) progress(role Role) (s Signed, staged bool, err error) {
	keys, err := r.keysOf(role)
	if err != nil {
		return s, false, err
	}
	s = Signed{Role: role, Need: max(keys.Threshold, 1)}
	var signed any
	var sigs []metadata.Signature
	if role == Root {
		m, st, err := r.root()
		if err != nil || !st {
			return s, false, err
		}
		signed, sigs, s.Version = m.Signed, m.Signatures, m.Signed.Version
	} else {
		m, st, err := r.targets(role)
		if err != nil || !st {
			return s, false, err
		}
		signed, sigs, s.Version = m.Signed, m.Signatures, m.Signed.Version
	}
	s.Have, err = count(keys, signed, sigs)
	s.Done = s.Have >= s.Need
	if err == nil && role == Root {
		before, e := r.rootBefore()
		if e != nil {
			return s, true, e
		}
		if before != nil {
			old, e := signers(before, Root)
			if e != nil {
				return s, true, e
			}
			n, e := count(old, signed, sigs)
			if e != nil {
				return s, true, e
			}
			if n < old.Threshold {
				s.Have, s.Need, s.Done = n, old.Threshold, false
			}
		}
	}
	return s, true, err
}

// count returns how many of keys signed.
func count(keys images.Signers, signed any, sigs []metadata.Signature) (int, error) {
	payload, err := cjson.EncodeCanonical(signed)
	if err != nil {
		return 0, err
	}
	n := 0
	for _, k := range keys.Keys {
		if slices.ContainsFunc(sigs, func(s metadata.Signature) bool { return ed25519.Verify(k, payload, s.Signature) }) {
			n++
		}
	}
	return n, nil
}

// Check is ErrRole where the signature of a key does not count for a role.
func (r *Repository) Check(role Role, key ed25519.PrivateKey) error {
	pub := key.Public().(ed25519.PublicKey)
	may, err := r.may(role, pub)
	if err != nil || may {
		return err
	}
	keys, err := r.keysOf(role)
	if err != nil {
		return err
	}
	var ids []string
	for _, k := range keys.Keys {
		ids = append(ids, images.KeyID(k))
	}
	return fmt.Errorf("%w: %s is not among the keys of %s (%s)", ErrRole, images.KeyID(pub), role, strings.Join(ids, " "))
}

// Sign signs what is staged for a role. It does nothing where nothing is, or
// key has signed.
func (r *Repository) Sign(role Role, key ed25519.PrivateKey) error {
	pub := key.Public().(ed25519.PublicKey)
	if err := r.Check(role, key); err != nil {
		return err
	}
	signer, err := signature.LoadED25519Signer(key)
	if err != nil {
		return err
	}
	one := images.Signers{Keys: []ed25519.PublicKey{pub}}
	if role == Root {
		m, staged, err := r.root()
		if err != nil || !staged {
			return err
		}
		if n, err := count(one, m.Signed, m.Signatures); err != nil || n > 0 {
			return err
		}
		if _, err := m.Sign(signer); err != nil {
			return err
		}
		return r.write(role, m)
	}
	m, staged, err := r.targets(role)
	if err != nil || !staged {
		return err
	}
	if n, err := count(one, m.Signed, m.Signatures); err != nil || n > 0 {
		return err
	}
	if _, err := m.Sign(signer); err != nil {
		return err
	}
	return r.write(role, m)
}

// may tells whether the signature of a key counts for a role.
func (r *Repository) may(role Role, pub ed25519.PublicKey) (bool, error) {
	has := func(s images.Signers) bool {
		return slices.ContainsFunc(s.Keys, func(k ed25519.PublicKey) bool { return k.Equal(pub) })
	}
	keys, err := r.keysOf(role)
	if err != nil || has(keys) {
		return err == nil, err
	}
	if role != Root {
		return false, nil
	}
	before, err := r.rootBefore()
	if err != nil || before == nil {
		return false, err
	}
	old, err := signers(before, Root)
	return err == nil && has(old), err
}

// SignAll signs everything staged that the key has a role for, and returns
// which roles these are.
func (r *Repository) SignAll(key ed25519.PrivateKey) ([]Role, error) {
	var out []Role
	any := false
	for _, role := range Roles[:len(Roles)-1] {
		may, err := r.may(role, key.Public().(ed25519.PublicKey))
		if err != nil {
			return out, err
		}
		if !may {
			continue
		}
		any = true
		_, staged, err := r.progress(role)
		if err != nil {
			return out, err
		}
		if staged {
			if err := r.Sign(role, key); err != nil {
				return out, err
			}
			out = append(out, role)
		}
	}
	if !any {
		return nil, fmt.Errorf("%w: %s is a key of no role that signs offline", ErrRole, images.KeyID(key.Public().(ed25519.PublicKey)))
	}
	return out, nil
}

// Keys returns who may sign a role, as what is staged says.
func (r *Repository) Keys(role Role) (images.Signers, error) { return r.keysOf(role) }

// Status is what is published for a role.
type Status struct {
	Version int64 // 0: nothing
	Expires time.Time
}

// Published returns what is published for a role.
func (r *Repository) Published(role Role) (s Status, err error) {
	tuf := role.tuf()
	if role == Online {
		tuf = metadata.SNAPSHOT
	}
	if s.Version, err = r.newest(tuf); err != nil || s.Version == 0 {
		return s, err
	}
	switch role {
	case Root:
		m, err := r.rootBefore()
		if err != nil {
			return s, err
		}
		s.Expires = m.Signed.Expires
	case Online:
		m, err := read[metadata.TimestampType](r.published("timestamp.json"))
		if err != nil {
			return s, err
		}
		s.Expires = m.Signed.Expires
	case Release, Canary, Stable:
		m, err := read[metadata.TargetsType](r.published(fileName(tuf, s.Version)))
		if err != nil {
			return s, err
		}
		s.Expires = m.Signed.Expires
	}
	return s, nil
}

// FirstRoot returns the root that sites begin with: images.root of site.yaml.
func (r *Repository) FirstRoot() ([]byte, error) {
	b, err := os.ReadFile(r.published(fileName(metadata.ROOT, 1)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errors.New("nothing is published here yet: smelt image publish")
	}
	return b, err
}

// Fetch begins a release folder from what is published, or brings it up to
// date: verified from root on, as a site does.
func Fetch(ctx context.Context, dir string, root []byte, from remote.Remote) error {
	for _, sub := range []string{"metadata", "staged"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return err
		}
	}
	seen, err := os.MkdirTemp(dir, "fetch-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(seen)
	c := Client{Dir: seen, Root: root, From: from}
	v, err := c.Update(ctx)
	if err != nil {
		return err
	}
	var names []string
	for n := int64(1); n <= v.Root; n++ {
		names = append(names, fileName(metadata.ROOT, n))
	}
	for _, tuf := range []string{metadata.TARGETS, Canary.tuf(), Stable.tuf()} {
		names = append(names, fileName(tuf, v.versions[tuf+".json"]))
	}
	for _, name := range append(names, fileName(metadata.SNAPSHOT, v.Version), "timestamp.json") {
		b, err := remote.ReadAll(ctx, from, "metadata/"+name, maxMetadata)
		if err != nil {
			return err
		}
		if err := replace(filepath.Join(dir, "metadata", name), b); err != nil {
			return err
		}
	}
	// Somebody may have published while we read, or a mirror mixes times: what
	// lies here now must hang together by itself.
	again := Client{Dir: filepath.Join(seen, "again"), Root: root, From: remote.Folder(dir)}
	_, err = again.Update(ctx)
	return err
}
