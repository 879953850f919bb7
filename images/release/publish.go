package release

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"

	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/theupdateframework/go-tuf/v2/metadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/trustedmetadata"

	"smelt/images"
	"smelt/images/remote"
)

// Publish turns what is staged and signed enough into published metadata, and
// signs with the online key that it is the newest. It refuses what a site
// would refuse. What still waits for signatures stays staged and is returned.
func (r *Repository) Publish(online ed25519.PrivateKey) (waiting []Signed, err error) {
	staged, err := r.Staged()
	if err != nil {
		return nil, err
	}
	ready := map[Role]bool{}
	for _, s := range staged {
		if s.Done {
			ready[s.Role] = true
		} else {
			waiting = append(waiting, s)
		}
	}
	files := map[string][]byte{} // name in metadata/
	meta := map[string]*metadata.MetaFiles{}
	roots, err := r.newest(metadata.ROOT)
	if err != nil {
		return waiting, err
	}
	for _, role := range []Role{Root, Release, Canary, Stable} {
		version, err := r.newest(role.tuf())
		if err != nil {
			return waiting, err
		}
		path := r.published(fileName(role.tuf(), version))
		if ready[role] {
			version++
			path = r.staged(role)
		}
		if version == 0 {
			return waiting, fmt.Errorf("%s: %w: %w", role, ErrUntrusted, missing(role, waiting))
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return waiting, err
		}
		files[fileName(role.tuf(), version)] = b
		if role == Root {
			roots = version
			continue
		}
		sum := sha256.Sum256(b)
		meta[role.tuf()+".json"] = &metadata.MetaFiles{Version: version, Length: int64(len(b)), Hashes: metadata.Hashes{"sha256": sum[:]}}
	}
	signer, err := signature.LoadED25519Signer(online)
	if err != nil {
		return waiting, err
	}
	snapshots, err := r.newest(metadata.SNAPSHOT)
	if err != nil {
		return waiting, err
	}
	snapshot := metadata.Snapshot(r.expires(Online))
	snapshot.Signed.Version, snapshot.Signed.Meta = snapshots+1, meta
	if _, err := snapshot.Sign(signer); err != nil {
		return waiting, err
	}
	sb, err := snapshot.ToBytes(true)
	if err != nil {
		return waiting, err
	}
	files[fileName(metadata.SNAPSHOT, snapshots+1)] = sb
	timestamp := metadata.Timestamp(r.expires(Online))
	timestamp.Signed.Version = 1
	if old, err := read[metadata.TimestampType](r.published("timestamp.json")); err == nil {
		timestamp.Signed.Version = old.Signed.Version + 1
	} else if !errors.Is(err, os.ErrNotExist) {
		return waiting, err
	}
	sum := sha256.Sum256(sb)
	timestamp.Signed.Meta = map[string]*metadata.MetaFiles{"snapshot.json": {Version: snapshots + 1, Length: int64(len(sb)), Hashes: metadata.Hashes{"sha256": sum[:]}}}
	if _, err := timestamp.Sign(signer); err != nil {
		return waiting, err
	}
	tb, err := timestamp.ToBytes(true)
	if err != nil {
		return waiting, err
	}
	if err := r.refuse(files, roots, tb); err != nil {
		return waiting, fmt.Errorf("a site would not take this: %w", err)
	}
	for name, b := range files {
		if err := replace(r.published(name), b); err != nil {
			return waiting, err
		}
	}
	if err := replace(r.published("timestamp.json"), tb); err != nil {
		return waiting, err
	}
	for role := range ready {
		if err := os.Remove(r.staged(role)); err != nil {
			return waiting, err
		}
	}
	return waiting, nil
}

func missing(role Role, waiting []Signed) error {
	for _, w := range waiting {
		if w.Role == role {
			return fmt.Errorf("%d of %d signed; next: smelt image trust sign --key FILE", w.Have, w.Need)
		}
	}
	return errors.New("nothing is staged for it")
}

// refuse reads files as a site would, from the first root on.
func (r *Repository) refuse(files map[string][]byte, roots int64, timestamp []byte) error {
	root := func(n int64) ([]byte, error) {
		if b := files[fileName(metadata.ROOT, n)]; b != nil {
			return b, nil
		}
		return os.ReadFile(r.published(fileName(metadata.ROOT, n)))
	}
	first, err := root(1)
	if err != nil {
		return err
	}
	set, err := trustedmetadata.New(first)
	if err != nil {
		return explain("root.json", err)
	}
	set.RefTime = r.now().UTC()
	for n := int64(2); n <= roots; n++ {
		b, err := root(n)
		if err != nil {
			return err
		}
		if _, err := set.UpdateRoot(b); err != nil {
			return explain(fileName(metadata.ROOT, n), err)
		}
	}
	if _, err := set.UpdateTimestamp(timestamp); err != nil {
		return explain("timestamp.json", err)
	}
	at := set.Timestamp.Signed.Meta["snapshot.json"].Version
	if _, err := set.UpdateSnapshot(files[fileName(metadata.SNAPSHOT, at)], false); err != nil {
		return explain("snapshot.json", err)
	}
	get := func(_ context.Context, name string, _ int64) ([]byte, error) { return files[name], nil }
	_, err = readChannels(context.Background(), set, get)
	return err
}

// Upload brings what is published, and the images that it releases, to where
// sites fetch it. Metadata goes last and the timestamp after everything else:
// a site sees the old state or the new one. An image that neither the store
// nor the remote has is an error.
func (r *Repository) Upload(ctx context.Context, st *images.Store, to remote.Remote, said func(string)) error {
	timestamp, err := os.ReadFile(r.published("timestamp.json"))
	if err != nil {
		return fmt.Errorf("nothing is published in %s yet: %w", r.dir, err)
	}
	if err := r.foreign(ctx, to, timestamp); err != nil {
		return err
	}
	root, err := r.rootBefore()
	if err != nil {
		return err
	}
	keys, err := signers(root, Release)
	if err != nil {
		return err
	}
	n, err := r.newest(metadata.TARGETS)
	if err != nil {
		return err
	}
	targets, err := read[metadata.TargetsType](r.published(fileName(metadata.TARGETS, n)))
	if err != nil {
		return err
	}
	exist, err := released(targets)
	if err != nil {
		return err
	}
	for d, title := range exist {
		if err := upload(ctx, d, keys, st, to, said); err != nil {
			return fmt.Errorf("image %s %s: %w", title, d.Short(), err)
		}
	}
	var names []string
	for n := int64(1); n <= root.Signed.Version; n++ {
		names = append(names, fileName(metadata.ROOT, n))
	}
	for _, tuf := range []string{metadata.TARGETS, Canary.tuf(), Stable.tuf(), metadata.SNAPSHOT} {
		n, err := r.newest(tuf)
		if err != nil {
			return err
		}
		names = append(names, fileName(tuf, n))
	}
	for _, name := range append(names, "timestamp.json") {
		b, err := os.ReadFile(r.published(name))
		if err != nil {
			return err
		}
		if old, err := remote.ReadAll(ctx, to, "metadata/"+name, maxMetadata); err == nil && bytes.Equal(old, b) {
			continue
		} else if err == nil && name != "timestamp.json" {
			return fmt.Errorf("%w: %s has another %s; begin from what is there: smelt image trust fetch", ErrConflict, to, name)
		} else if err != nil && !errors.Is(err, remote.ErrNotFound) {
			return err
		}
		if err := to.Put(ctx, "metadata/"+name, bytes.NewReader(b), int64(len(b))); err != nil {
			return err
		}
	}
	return nil
}

// foreign refuses to publish over what this folder has not seen.
func (r *Repository) foreign(ctx context.Context, to remote.Remote, ours []byte) error {
	b, err := remote.ReadAll(ctx, to, "metadata/timestamp.json", maxMetadata)
	if errors.Is(err, remote.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	their, err := new(timestampData).FromBytes(b)
	if err != nil {
		return fmt.Errorf("%s: timestamp.json: %w: %v", to, ErrDamaged, err)
	}
	mine, err := new(timestampData).FromBytes(ours)
	if err != nil {
		return err
	}
	if their.Signed.Version > mine.Signed.Version || their.Signed.Version == mine.Signed.Version && !bytes.Equal(b, ours) {
		return fmt.Errorf("%w: %s is at version %d, this folder at %d; begin from what is there: smelt image trust fetch", ErrConflict, to, their.Signed.Version, mine.Signed.Version)
	}
	return nil
}

// upload brings one image.
func upload(ctx context.Context, d images.Digest, keys images.Signers, st *images.Store, to remote.Remote, said func(string)) error {
	envelope, err := st.Envelope(d)
	if errors.Is(err, images.ErrNotFound) {
		if _, e := to.Size(ctx, manifestPath(d)); e == nil {
			return nil // somebody else brought it
		}
		return fmt.Errorf("neither the store nor %s has it: %w", to, err)
	}
	if err != nil {
		return err
	}
	m, _, err := keys.Open(envelope)
	if err != nil {
		return fmt.Errorf("%w; next: smelt image sign %s --key FILE", err, d.Short())
	}
	for _, blob := range []images.Digest{m.Blob, m.SBOM, m.Provenance} {
		if blob.IsZero() {
			continue
		}
		f, err := st.OpenBlob(blob)
		if err != nil {
			return err
		}
		i, err := f.Stat()
		if err == nil {
			var n int64
			if n, err = to.Size(ctx, blobPath(blob)); errors.Is(err, remote.ErrNotFound) || err == nil && n != i.Size() {
				said(fmt.Sprintf("%s: %s, %d MiB", m.Title(), blobPath(blob), i.Size()>>20))
				err = to.Put(ctx, blobPath(blob), f, i.Size())
			}
		}
		f.Close()
		if err != nil {
			return err
		}
	}
	if old, err := remote.ReadAll(ctx, to, manifestPath(d), images.MaxEnvelope); err == nil && bytes.Equal(old, envelope) {
		return nil
	} else if err != nil && !errors.Is(err, remote.ErrNotFound) {
		return err
	}
	said(fmt.Sprintf("%s: manifest %s", m.Title(), d.Short()))
	return to.Put(ctx, manifestPath(d), bytes.NewReader(envelope), int64(len(envelope)))
}

func blobPath(d images.Digest) string { return "blobs/" + d.String() }
