package release

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sigstore/sigstore/pkg/signature"
	"go.uber.org/goleak"

	"smelt/images"
	"smelt/images/remote"
	"smelt/images/remote/remotetest"
)

func TestMain(m *testing.M) {
	pause, workFactor = time.Millisecond, 10
	goleak.VerifyTestMain(m)
}

func key(seed byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize))
}

func public(k ed25519.PrivateKey) ed25519.PublicKey { return k.Public().(ed25519.PublicKey) }

// The keys of a publisher: two people release, one machine is online.
var (
	rootKey, root2          = key(1), key(2)
	releaseKey, releaseKey2 = key(3), key(4)
	canaryKey, stableKey    = key(5), key(6)
	onlineKey, strangerKey  = key(7), key(9)
)

func policy() map[Role]Keys {
	of := func(n int, keys ...ed25519.PrivateKey) Keys {
		var k Keys
		for _, p := range keys {
			k.Public = append(k.Public, public(p))
		}
		k.Threshold = n
		return k
	}
	return map[Role]Keys{
		Root: of(1, rootKey, root2), Release: of(2, releaseKey, releaseKey2),
		Canary: of(1, canaryKey), Stable: of(1, stableKey), Online: of(1, onlineKey),
	}
}

// publisher is one who builds, signs and publishes into a folder.
type publisher struct {
	t     *testing.T
	repo  *Repository
	store *images.Store
	to    remote.Folder
	now   time.Time
}

func newPublisher(t *testing.T) *publisher {
	t.Helper()
	dir := t.TempDir()
	p := &publisher{t: t, to: remote.Folder(filepath.Join(dir, "remote")), now: time.Now()}
	var err error
	if p.store, err = images.OpenStore(filepath.Join(dir, "images")); err != nil {
		t.Fatal(err)
	}
	if p.repo, err = NewRepository(filepath.Join(dir, "release"), policy()); err != nil {
		t.Fatal(err)
	}
	p.repo.now = func() time.Time { return p.now }
	p.signAll(rootKey, releaseKey, releaseKey2, canaryKey, stableKey)
	return p
}

func (p *publisher) signAll(keys ...ed25519.PrivateKey) {
	p.t.Helper()
	for _, k := range keys {
		if _, err := p.repo.SignAll(k); err != nil {
			p.t.Fatal(err)
		}
	}
}

// build makes an image with other contents for each seed.
func (p *publisher) build(name string, seed uint64) images.Digest {
	p.t.Helper()
	raw := make([]byte, images.ChunkSize+1<<20)
	r := rand.NewChaCha8([32]byte{byte(seed)})
	if _, err := io.ReadFull(r, raw[:1<<20]); err != nil {
		p.t.Fatal(err)
	}
	doc, err := p.store.PutDocument(fmt.Appendf(nil, "bill of materials of %s %d", name, seed))
	if err != nil {
		p.t.Fatal(err)
	}
	m := images.Manifest{Name: name, Arch: "amd64", Created: time.Unix(int64(seed), 0).UTC(), Key: "0badcafe", SBOM: doc}
	d, err := p.store.Add(p.t.Context(), m, bytes.NewReader(raw), int64(len(raw)), key(200), nil)
	if err != nil {
		p.t.Fatal(err)
	}
	return d
}

// release signs an image with every key that it needs.
func (p *publisher) release(d images.Digest, keys ...ed25519.PrivateKey) {
	p.t.Helper()
	for _, k := range keys {
		if err := p.repo.SignImage(p.store, d, k); err != nil {
			p.t.Fatal(err)
		}
	}
}

func (p *publisher) envelope(d images.Digest) []byte {
	p.t.Helper()
	b, err := p.store.Envelope(d)
	if err != nil {
		p.t.Fatal(err)
	}
	return b
}

func (p *publisher) promote(c Role, d images.Digest, k ed25519.PrivateKey) {
	p.t.Helper()
	if err := p.repo.Promote(c, p.envelope(d)); err != nil {
		p.t.Fatal(err)
	}
	p.signAll(k)
}

func (p *publisher) publish() {
	p.t.Helper()
	waiting, err := p.repo.Publish(onlineKey)
	if err != nil || len(waiting) > 0 {
		p.t.Fatalf("publish: %v, still waiting: %v", err, waiting)
	}
	if err := p.repo.Upload(p.t.Context(), p.store, p.to, func(string) {}); err != nil {
		p.t.Fatal(err)
	}
}

func (p *publisher) root() []byte {
	p.t.Helper()
	b, err := os.ReadFile(filepath.Join(p.repo.dir, "metadata", "1.root.json"))
	if err != nil {
		p.t.Fatal(err)
	}
	return b
}

// site is a server that follows the publisher.
type site struct {
	Client
	store *images.Store
}

func newSite(t *testing.T, p *publisher) *site {
	t.Helper()
	dir := t.TempDir()
	st, err := images.OpenStore(filepath.Join(dir, "images"))
	if err != nil {
		t.Fatal(err)
	}
	return &site{Client{Dir: filepath.Join(dir, "trust"), Root: p.root(), From: p.to, now: func() time.Time { return p.now }}, st}
}

// copy is the same site at another place.
func (s *site) copy(t *testing.T) *site {
	t.Helper()
	dir := copyDir(t, filepath.Dir(s.Dir))
	st, err := images.OpenStore(filepath.Join(dir, "images"))
	if err != nil {
		t.Fatal(err)
	}
	keys, err := s.Signers()
	if err != nil {
		t.Fatal(err)
	}
	st.Follow("stable", keys)
	return &site{Client{Dir: filepath.Join(dir, "trust"), Root: s.Root, From: s.From, now: s.now}, st}
}

func (s *site) pull(ctx context.Context) error {
	v, err := s.Update(ctx)
	if err != nil {
		return err
	}
	s.store.Follow("stable", v.Signers)
	return v.Pull(ctx, s.store, s.From, Channels, func(Role, string) bool { return true }, func(string) {})
}

// copyDir keeps what a folder holds, as an attacker may.
func copyDir(t *testing.T, from string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return to
}

func TestFromBuildToSite(t *testing.T) {
	p := newPublisher(t)
	first, second := p.build("ai-node", 1), p.build("ai-node", 2)
	p.release(first, releaseKey, releaseKey2)
	p.release(second, releaseKey, releaseKey2)
	p.promote(Stable, first, stableKey)
	p.promote(Canary, second, canaryKey)
	p.publish()

	s := newSite(t, p)
	if err := s.pull(t.Context()); err != nil {
		t.Fatal(err)
	}
	for ref, want := range map[string]images.Digest{"ai-node": first, "stable/ai-node": first, "canary/ai-node": second, second.Short(): second} {
		if d, err := s.store.Resolve(ref); err != nil || d != want {
			t.Errorf("%s is %s, %v; want %s", ref, d.Short(), err, want.Short())
		}
	}
	for _, d := range []images.Digest{first, second} {
		if err := s.store.Verify(d); err != nil {
			t.Error(err)
		}
		m, err := s.store.Manifest(d)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := s.store.Document(m.SBOM); err != nil || !bytes.HasPrefix(b, []byte("bill of materials of ai-node ")) {
			t.Errorf("bill of materials: %q, %v", b, err)
		}
	}

	// What is built on the site itself is not released, whatever it is called.
	raw := make([]byte, 1<<20)
	d, err := s.store.Add(t.Context(), images.Manifest{Name: "ai-node", Arch: "amd64"}, bytes.NewReader(raw), 1<<20, key(200), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s.store.Resolve("ai-node"); err != nil || got != first {
		t.Errorf("ai-node became %s, %v", got.Short(), err)
	}
	if _, err := s.store.Resolve(d.String()); !errors.Is(err, images.ErrUnsigned) {
		t.Errorf("an image that was not released: %v", err)
	}

	// Promoted, and later withdrawn.
	p.promote(Stable, second, stableKey)
	p.publish()
	if err := s.pull(t.Context()); err != nil {
		t.Fatal(err)
	}
	if d, err := s.store.Resolve("ai-node"); err != nil || d != second {
		t.Errorf("promoted: %s, %v", d.Short(), err)
	}
	if err := p.repo.Withdraw(second); err != nil {
		t.Fatal(err)
	}
	p.signAll(releaseKey, releaseKey2, canaryKey, stableKey)
	p.publish()
	if err := s.pull(t.Context()); err != nil {
		t.Fatal(err)
	}
	if d, err := s.store.Resolve("ai-node"); !errors.Is(err, images.ErrNotFound) {
		t.Errorf("withdrawn: %s, %v", d.Short(), err)
	}
}

// What is published can be had from a registry and from S3 as from a folder.
func TestThroughServers(t *testing.T) {
	for name, server := range map[string]func(*testing.T) string{"registry": remotetest.Registry, "s3": remotetest.S3} {
		t.Run(name, func(t *testing.T) {
			to, err := remote.Open(server(t), remotetest.Credentials)
			if err != nil {
				t.Fatal(err)
			}
			p := newPublisher(t)
			d := p.build("ai-node", 1)
			p.release(d, releaseKey, releaseKey2)
			p.promote(Stable, d, stableKey)
			for range 2 { // the second brings nothing but a new timestamp
				if _, err := p.repo.Publish(onlineKey); err != nil {
					t.Fatal(err)
				}
				if err := p.repo.Upload(t.Context(), p.store, to, func(string) {}); err != nil {
					t.Fatal(err)
				}
			}
			s := newSite(t, p)
			s.From = to
			for range 2 {
				if err := s.pull(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if got, err := s.store.Resolve("ai-node"); err != nil || got != d {
				t.Errorf("%s, %v", got.Short(), err)
			}
			if err := s.store.Verify(d); err != nil {
				t.Error(err)
			}
			p.now = p.now.Add(Online.lifetime() + time.Hour)
			if err := s.pull(t.Context()); !errors.Is(err, ErrExpired) {
				t.Errorf("two weeks later: %v", err)
			}
		})
	}
}

// A connection that breaks in the middle of a blob is taken up again there.
func TestResumes(t *testing.T) {
	p := newPublisher(t)
	d := p.build("ai-node", 1)
	p.release(d, releaseKey, releaseKey2)
	p.promote(Stable, d, stableKey)
	p.publish()
	s := newSite(t, p)
	weak := &breaks{Remote: p.to, after: 300 << 10}
	s.From = weak
	if err := s.pull(t.Context()); err != nil {
		t.Fatal(err)
	}
	m, err := s.store.Manifest(d)
	if err != nil {
		t.Fatal(err)
	}
	if weak.sent > m.BlobLen+weak.after || weak.opened < 3 {
		t.Errorf("%d bytes of %d were sent in %d pieces", weak.sent, m.BlobLen, weak.opened)
	}
	if err := s.store.Verify(d); err != nil {
		t.Error(err)
	}
	s = newSite(t, p)
	s.From = &breaks{Remote: p.to}
	if err := s.pull(t.Context()); err == nil {
		t.Error("a remote that never sends a byte was enough")
	}
}

// A pull takes as long as its images: another process may know better by then.
func TestPullUndoesNothingNewer(t *testing.T) {
	p := newPublisher(t)
	first, second := p.build("ai-node", 1), p.build("ai-node", 2)
	p.release(first, releaseKey, releaseKey2)
	p.release(second, releaseKey, releaseKey2)
	p.promote(Stable, first, stableKey)
	p.publish()
	s := newSite(t, p)
	slow, err := s.Update(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p.promote(Stable, second, stableKey)
	p.publish()
	if err := s.pull(t.Context()); err != nil {
		t.Fatal(err)
	}
	err = slow.Pull(t.Context(), s.store, s.From, Channels, func(Role, string) bool { return true }, func(string) {})
	if !errors.Is(err, ErrConflict) {
		t.Errorf("an older view is pulled after a newer one: %v", err)
	}
	if d, err := s.store.Resolve("ai-node"); err != nil || d != second {
		t.Errorf("ai-node is %s, %v; want %s", d.Short(), err, second.Short())
	}
	if err := s.pull(t.Context()); err != nil {
		t.Error(err)
	}
}

// breaks is a remote whose blobs break off.
type breaks struct {
	remote.Remote
	after, sent int64
	opened      int
}

func (b *breaks) Get(ctx context.Context, name string, off int64) (io.ReadCloser, error) {
	body, err := b.Remote.Get(ctx, name, off)
	if err != nil || !strings.HasPrefix(name, "blobs/") {
		return body, err
	}
	if i, err := b.Size(ctx, name); err == nil && i < 1<<10 {
		return body, nil // a document
	}
	b.opened++
	return struct {
		io.Reader
		io.Closer
	}{&counted{io.MultiReader(io.LimitReader(body, b.after), broken{}), &b.sent}, body}, nil
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errors.New("connection reset by peer") }

type counted struct {
	io.Reader
	n *int64
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.Reader.Read(b)
	*c.n += int64(n)
	return n, err
}

// Who may say what: every way to publish with too few or the wrong keys.
func TestWhoMay(t *testing.T) {
	p := newPublisher(t)
	d := p.build("ai-node", 1)
	if err := p.repo.Promote(Stable, p.envelope(d)); err == nil {
		t.Error("an image that was never released was promoted")
	}
	if _, err := p.repo.Publish(strangerKey); !errors.Is(err, ErrUntrusted) {
		t.Errorf("published by a stranger: %v", err)
	}
	for role, k := range map[Role]ed25519.PrivateKey{Release: stableKey, Stable: canaryKey, Canary: onlineKey, Root: releaseKey} {
		if err := p.repo.Sign(role, k); !errors.Is(err, ErrRole) {
			t.Errorf("%s signed by another role's key: %v", role, err)
		}
	}
	if _, err := p.repo.SignAll(strangerKey); !errors.Is(err, ErrRole) {
		t.Errorf("a stranger signs: %v", err)
	}
	p.publish()

	// One of the two who release is not enough, twice neither.
	p.release(d, releaseKey)
	p.signAll(releaseKey)
	waiting, err := p.repo.Publish(onlineKey)
	if err != nil || len(waiting) != 1 || waiting[0].Role != Release || waiting[0].Have != 1 || waiting[0].Need != 2 {
		t.Fatalf("%+v, %v", waiting, err)
	}
	s := newSite(t, p)
	if v, err := s.Update(t.Context()); err != nil || len(v.Released) != 0 {
		t.Errorf("released by one: %v, %v", v, err)
	}
	// Its metadata by both, its manifest by one: found before anything is uploaded.
	p.signAll(releaseKey2)
	if _, err := p.repo.Publish(onlineKey); err != nil {
		t.Fatal(err)
	}
	if err := p.repo.Upload(t.Context(), p.store, p.to, func(string) {}); !errors.Is(err, images.ErrUnsigned) {
		t.Errorf("uploaded: %v", err)
	}
	if _, err := p.to.Size(t.Context(), manifestPath(d)); !errors.Is(err, remote.ErrNotFound) {
		t.Errorf("its manifest is there: %v", err)
	}
	if err := p.store.Cosign(d, releaseKey2); err != nil {
		t.Fatal(err)
	}
	if err := p.repo.Upload(t.Context(), p.store, p.to, func(string) {}); err != nil {
		t.Fatal(err)
	}

	// The stable key alone: it can sign that stable names any image, but a site
	// takes only what was released, under the title it was released as.
	evil := p.build("evil", 66)
	_, ed, f, err := target(p.envelope(evil))
	if err != nil {
		t.Fatal(err)
	}
	m, _, err := p.repo.targets(Stable)
	if err != nil {
		t.Fatal(err)
	}
	m.Signed.Targets["stable/ai-node"] = f
	m.Signed.Version++
	m.ClearSignatures()
	if err := p.repo.write(Stable, m); err != nil {
		t.Fatal(err)
	}
	p.signAll(stableKey)
	if _, err := p.repo.Publish(onlineKey); !errors.Is(err, ErrUntrusted) || !strings.Contains(err.Error(), ed.Short()) {
		t.Errorf("stable names what was never released: %v", err)
	}
}

// What a mirror, or who owns it, can do.
func TestSiteRefuses(t *testing.T) {
	p := newPublisher(t)
	d := p.build("ai-node", 1)
	p.release(d, releaseKey, releaseKey2)
	p.promote(Stable, d, stableKey)
	p.publish()
	before := copyDir(t, string(p.to)) // version 1
	next := p.build("ai-node", 2)
	p.release(next, releaseKey, releaseKey2)
	p.promote(Stable, next, stableKey)
	p.publish()
	meta := filepath.Join(string(p.to), "metadata")

	change := func(name string, f func(b []byte) []byte) func(dir string) {
		return func(dir string) {
			path := filepath.Join(dir, name)
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, f(b), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	cut := func(b []byte) []byte { return b[:len(b)/2] }
	file := func(name string) func([]byte) []byte {
		return func([]byte) []byte {
			b, err := os.ReadFile(filepath.Join(meta, name))
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
	}
	m, err := p.store.Manifest(next)
	if err != nil {
		t.Fatal(err)
	}
	asleep := newSite(t, p)
	asleep.From = remote.Folder(before)
	if err := asleep.pull(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		do   func(dir string)
		want error
	}{
		"timestamp cut off":     {change("metadata/timestamp.json", cut), ErrDamaged},
		"empty timestamp":       {change("metadata/timestamp.json", func([]byte) []byte { return nil }), ErrDamaged},
		"snapshot cut off":      {change("metadata/2.snapshot.json", cut), ErrDamaged},
		"targets cut off":       {change("metadata/2.targets.json", cut), ErrDamaged},
		"channel cut off":       {change("metadata/2.stable.json", cut), ErrDamaged},
		"endless timestamp":     {change("metadata/timestamp.json", func(b []byte) []byte { return append(b, bytes.Repeat([]byte(" "), 1<<20)...) }), nil},
		"timestamp by nobody":   {change("metadata/timestamp.json", func(b []byte) []byte { return bytes.ReplaceAll(b, []byte(`"sig": "`), []byte(`"sig": "00`)) }), ErrUntrusted},
		"timestamp's version":   {change("metadata/timestamp.json", func(b []byte) []byte { return bytes.Replace(b, []byte(`"version": 2`), []byte(`"version": 9`), 1) }), ErrUntrusted},
		"a role in another's":   {change("metadata/timestamp.json", file("2.snapshot.json")), ErrUntrusted},
		"canary's for stable":   {change("metadata/2.stable.json", file("1.canary.json")), ErrDamaged},
		"old stable":            {change("metadata/2.stable.json", file("1.stable.json")), ErrDamaged},
		"another root":          {func(dir string) { write(t, filepath.Join(dir, "metadata/2.root.json"), p.root()) }, ErrRollback},
		"root by a stranger":    {func(dir string) { write(t, filepath.Join(dir, "metadata/2.root.json"), strangersRoot(t)) }, ErrUntrusted},
		"nothing there":         {func(dir string) { os.RemoveAll(filepath.Join(dir, "metadata")) }, remote.ErrNotFound},
		"manifest cut off":      {change("manifests/"+next.String(), cut), images.ErrEnvelope},
		"manifest of another":   {change("manifests/"+next.String(), func([]byte) []byte { return p.envelope(d) }), ErrUntrusted},
		"manifest signed once":  {change("manifests/"+next.String(), func(b []byte) []byte { return only(t, b, 1) }), images.ErrUnsigned},
		"blob cut off":          {change("blobs/"+m.Blob.String(), cut), ErrDamaged},
		"blob flipped":          {change("blobs/"+m.Blob.String(), func(b []byte) []byte { b[len(b)/2] ^= 1; return b }), nil},
		"bill of materials":     {change("blobs/"+m.SBOM.String(), func(b []byte) []byte { b[0] ^= 1; return b }), ErrDamaged},
		"blob is not there":     {func(dir string) { os.Remove(filepath.Join(dir, "blobs", m.Blob.String())) }, remote.ErrNotFound},
		"manifest is not there": {func(dir string) { os.Remove(filepath.Join(dir, "manifests", next.String())) }, remote.ErrNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			// It knows version 1, and the image of then.
			s := asleep.copy(t)
			dir := copyDir(t, string(p.to))
			tt.do(dir)
			s.From = remote.Folder(dir)
			err := s.pull(t.Context())
			if err == nil || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("%v, want %v", err, tt.want)
			}
			if d2, err := s.store.Resolve("ai-node"); err != nil || d2 != d {
				t.Errorf("ai-node became %s, %v", d2.Short(), err)
			}
			if left, err := os.ReadDir(filepath.Join(s.Dir)); err != nil || slices.ContainsFunc(left, func(e fs.DirEntry) bool { return e.IsDir() }) {
				t.Errorf("left behind: %v, %v", left, err)
			}
			// With an honest mirror it goes on.
			s.From = p.to
			if err := s.pull(t.Context()); err != nil {
				t.Error(err)
			}
			if d2, err := s.store.Resolve("ai-node"); err != nil || d2 != next {
				t.Errorf("afterwards: %s, %v", d2.Short(), err)
			}
		})
	}

	t.Run("rolled back", func(t *testing.T) {
		s := newSite(t, p)
		if err := s.pull(t.Context()); err != nil {
			t.Fatal(err)
		}
		// Another process, which knows only what the folder holds.
		again := &site{Client{Dir: s.Dir, Root: p.root(), From: remote.Folder(before), now: s.now}, s.store}
		if err := again.pull(t.Context()); !errors.Is(err, ErrRollback) {
			t.Errorf("an old release: %v", err)
		}
		if d2, err := s.store.Resolve("ai-node"); err != nil || d2 != next {
			t.Errorf("ai-node became %s, %v", d2.Short(), err)
		}
		// Damage to what was seen must not make it forget.
		for how, damage := range map[string]func([]byte) []byte{
			"half":  func(b []byte) []byte { return b[:len(b)/2] },
			"empty": func([]byte) []byte { return nil },
			// Of the file, or of each signature in it.
			"changed": func(b []byte) []byte {
				if c := bytes.ReplaceAll(b, []byte(`"sig": "`), []byte(`"sig": "00`)); !bytes.Equal(b, c) {
					return c
				}
				return b[1:]
			},
		} {
			path := filepath.Join(s.Dir, seenFile)
			good, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			write(t, path, damage(bytes.Clone(good)))
			if err := again.pull(t.Context()); !errors.Is(err, ErrDamaged) {
				t.Errorf("%s, and an old release: %v", how, err)
			}
			write(t, path, good)
			known, err := s.read()
			if err != nil || len(known.Files) != 4 {
				t.Fatal(known, err)
			}
			for name, b := range known.Files {
				known.Files[name] = damage(bytes.Clone(b))
				if err := s.save(known); err != nil {
					t.Fatal(err)
				}
				if err := again.pull(t.Context()); !errors.Is(err, ErrDamaged) {
					t.Errorf("%s %s, and an old release: %v", how, name, err)
				}
				known.Files[name] = b
			}
			write(t, path, good)
		}
		if err := s.pull(t.Context()); err != nil {
			t.Error(err)
		}
	})

	t.Run("expired", func(t *testing.T) {
		s := newSite(t, p)
		late := p.now.Add(Online.lifetime() + time.Hour)
		s.now = func() time.Time { return late }
		if err := s.pull(t.Context()); !errors.Is(err, ErrExpired) {
			t.Errorf("a timestamp held back: %v", err)
		}
		late = p.now.Add(Root.lifetime() + time.Hour)
		if err := s.pull(t.Context()); !errors.Is(err, ErrExpired) {
			t.Errorf("a root of last year: %v", err)
		}
	})

	t.Run("another beginning", func(t *testing.T) {
		s := newSite(t, p)
		if err := s.pull(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.Root = strangersRoot(t)
		if err := s.pull(t.Context()); !errors.Is(err, ErrUntrusted) || !strings.Contains(err.Error(), s.Dir) {
			t.Errorf("another root in the site's file: %v", err)
		}
		s = newSite(t, p)
		s.Root = cut(p.root())
		if err := s.pull(t.Context()); !errors.Is(err, ErrDamaged) {
			t.Errorf("half a root in the site's file: %v", err)
		}
	})
}

// signRoot adds a signature.
func signRoot(t *testing.T, m *rootData, k ed25519.PrivateKey) {
	t.Helper()
	s, err := signature.LoadED25519Signer(k)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Sign(s); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

// strangersRoot is whole and signed, by keys that nobody knows.
func strangersRoot(t *testing.T) []byte {
	t.Helper()
	keys := policy()
	keys[Root] = Keys{[]ed25519.PublicKey{public(strangerKey)}, 1}
	r, err := NewRepository(filepath.Join(t.TempDir(), "r"), keys)
	if err != nil {
		t.Fatal(err)
	}
	m, _, err := r.root()
	if err != nil {
		t.Fatal(err)
	}
	m.Signed.Version = 2
	if err := r.write(Root, m); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(r.staged(Root))
	if err != nil {
		t.Fatal(err)
	}
	signed, err := new(rootData).FromBytes(b)
	if err != nil {
		t.Fatal(err)
	}
	signRoot(t, signed, strangerKey)
	b, err = signed.ToBytes(false)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// only keeps the first n release signatures of an envelope.
func only(t *testing.T, b []byte, n int) []byte {
	t.Helper()
	var e map[string]json.RawMessage
	var sigs []struct {
		KeyID string `json:"keyid"`
		Sig   []byte `json:"sig"`
	}
	if err := errors.Join(json.Unmarshal(b, &e), json.Unmarshal(e["signatures"], &sigs)); err != nil {
		t.Fatal(err)
	}
	kept := sigs[:0]
	for _, s := range sigs {
		release := s.KeyID == images.KeyID(public(releaseKey)) || s.KeyID == images.KeyID(public(releaseKey2))
		if release {
			if n == 0 {
				continue
			}
			n--
		}
		kept = append(kept, s)
	}
	var err error
	if e["signatures"], err = json.Marshal(kept); err != nil {
		t.Fatal(err)
	}
	out, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// A key leaves: what only it signed is refused, what was signed again is not,
// and a site that was asleep through all of it catches up.
func TestKeysChange(t *testing.T) {
	p := newPublisher(t)
	d := p.build("ai-node", 1)
	p.release(d, releaseKey, releaseKey2)
	p.promote(Stable, d, stableKey)
	p.publish()
	s, asleep := newSite(t, p), newSite(t, p)
	for _, s := range []*site{s, asleep} {
		if err := s.pull(t.Context()); err != nil {
			t.Fatal(err)
		}
	}

	// The second releaser's key is lost: another takes its place.
	fresh := key(44)
	if err := p.repo.SetKeys(Release, []ed25519.PublicKey{public(fresh)}, []string{images.KeyID(public(releaseKey2))}, 0); err != nil {
		t.Fatal(err)
	}
	p.signAll(rootKey, releaseKey)
	if err := p.repo.Sign(Release, releaseKey2); !errors.Is(err, ErrRole) {
		t.Errorf("the lost key still signs: %v", err)
	}
	// A root that is published before what it makes invalid is signed again
	// would leave sites with nothing.
	if _, err := p.repo.Publish(onlineKey); !errors.Is(err, ErrUntrusted) {
		t.Errorf("published half of a change: %v", err)
	}
	p.signAll(fresh)
	if _, err := p.repo.Publish(onlineKey); err != nil {
		t.Fatal(err)
	}
	if err := p.repo.Upload(t.Context(), p.store, p.to, func(string) {}); !errors.Is(err, images.ErrUnsigned) {
		t.Errorf("an image that the lost key signed was uploaded: %v", err)
	}
	if err := p.store.Cosign(d, fresh); err != nil {
		t.Fatal(err)
	}
	if err := p.repo.Upload(t.Context(), p.store, p.to, func(string) {}); err != nil {
		t.Fatal(err)
	}
	if err := s.pull(t.Context()); err != nil {
		t.Fatal(err)
	}
	keys, err := s.Signers()
	if err != nil || len(keys.Keys) != 2 || keys.Threshold != 2 {
		t.Fatalf("%+v, %v", keys, err)
	}
	for _, k := range keys.Keys {
		if k.Equal(public(releaseKey2)) {
			t.Error("the site still trusts the lost key")
		}
	}
	if got, err := s.store.Resolve("ai-node"); err != nil || got != d {
		t.Errorf("after the change: %v, %v", got, err)
	}

	// Root and channel keys change, and the online key.
	for role, k := range map[Role]ed25519.PrivateKey{Root: key(21), Stable: key(26), Online: key(27)} {
		var old []string
		now, err := p.repo.Keys(role)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range now.Keys {
			old = append(old, images.KeyID(o))
		}
		if err := p.repo.SetKeys(role, []ed25519.PublicKey{public(k)}, old, 1); err != nil {
			t.Fatal(err)
		}
	}
	p.signAll(rootKey, key(21), releaseKey, fresh, key(26))
	if _, err := p.repo.Publish(onlineKey); !errors.Is(err, ErrUntrusted) {
		t.Errorf("the old online key publishes: %v", err)
	}
	if _, err := p.repo.Publish(key(27)); err != nil {
		t.Fatal(err)
	}
	if err := p.repo.Upload(t.Context(), p.store, p.to, func(string) {}); err != nil {
		t.Fatal(err)
	}
	// Cut off after the new root: it goes on from there.
	half := copyDir(t, string(p.to))
	if err := os.Remove(filepath.Join(half, "metadata", "timestamp.json")); err != nil {
		t.Fatal(err)
	}
	s.From = remote.Folder(half)
	if err := s.pull(t.Context()); !errors.Is(err, remote.ErrNotFound) {
		t.Errorf("without a timestamp: %v", err)
	}
	s.From = p.to
	for _, s := range []*site{s, asleep} {
		if err := s.pull(t.Context()); err != nil {
			t.Error(err)
		}
		if v, err := s.Update(t.Context()); err != nil || v.Root != 3 {
			t.Errorf("%+v, %v", v, err)
		}
	}

	// A threshold that nobody can meet would lock everybody out.
	if err := p.repo.SetKeys(Stable, nil, nil, 2); err == nil {
		t.Error("two of one must sign")
	}
	if err := p.repo.SetKeys(Canary, nil, []string{images.KeyID(public(canaryKey))}, 0); err == nil {
		t.Error("nobody may sign canary")
	}
}

// Two publish from copies of one folder: the second is told.
func TestPublishersCollide(t *testing.T) {
	p := newPublisher(t)
	p.publish()
	other := *p
	other.repo = &Repository{dir: copyDir(t, p.repo.dir), now: p.repo.now}
	behind := *p
	behind.repo = &Repository{dir: copyDir(t, p.repo.dir), now: p.repo.now}
	d := p.build("ai-node", 1)
	p.release(d, releaseKey, releaseKey2)
	p.publish()
	if err := behind.repo.Upload(t.Context(), p.store, p.to, func(string) {}); !errors.Is(err, ErrConflict) {
		t.Errorf("an old release was put over a new one: %v", err)
	}
	if _, err := other.repo.Publish(onlineKey); err != nil {
		t.Fatal(err)
	}
	if err := other.repo.Upload(t.Context(), p.store, p.to, func(string) {}); !errors.Is(err, ErrConflict) {
		t.Errorf("published over another: %v", err)
	}
}

// Power may go between any two files that Publish writes.
func TestPublishIsCutOff(t *testing.T) {
	p := newPublisher(t)
	d := p.build("ai-node", 1)
	p.release(d, releaseKey, releaseKey2)
	staged := copyDir(t, filepath.Join(p.repo.dir, "staged"))
	p.publish()
	// Everything was written, nothing of what was staged taken away.
	if err := os.CopyFS(filepath.Join(p.repo.dir, "staged"), os.DirFS(staged)); err != nil {
		t.Fatal(err)
	}
	if s, err := p.repo.Staged(); err != nil || len(s) != 0 {
		t.Errorf("staged: %v, %v", s, err)
	}
	p.promote(Stable, d, stableKey)
	p.publish()
	s := newSite(t, p)
	if err := s.pull(t.Context()); err != nil {
		t.Error(err)
	}
	if got, err := s.store.Resolve("ai-node"); err != nil || got != d {
		t.Errorf("%v, %v", got, err)
	}
}

func TestKeyFiles(t *testing.T) {
	dir := t.TempDir()
	for name, pass := range map[string]string{"plain": "", "sealed": "correct horse"} {
		file := filepath.Join(dir, name)
		pub, err := NewKey(file, pass)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := NewKey(file, pass); !errors.Is(err, fs.ErrExist) {
			t.Errorf("%s was overwritten: %v", name, err)
		}
		if i, err := os.Stat(file); err != nil || i.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, i.Mode(), err)
		}
		k, err := ReadKey(file, func() (string, error) { return pass, nil })
		if err != nil || !public(k).Equal(pub) {
			t.Errorf("%s: %v", name, err)
		}
		if got, err := ReadPublicKey(file + ".pub"); err != nil || !got.Equal(pub) {
			t.Errorf("%s.pub: %v", name, err)
		}
		if _, err := ReadPublicKey(file); err == nil {
			t.Errorf("%s was taken for a public key", name)
		}
	}
	if _, err := ReadKey(filepath.Join(dir, "sealed"), func() (string, error) { return "wrong", nil }); err == nil {
		t.Error("a wrong passphrase opens the key")
	}
	b, err := os.ReadFile(filepath.Join(dir, "sealed"))
	if err != nil || bytes.Contains(b, []byte("PRIVATE KEY")) {
		t.Errorf("the sealed key is readable: %v", err)
	}
}
