package release

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/config"
	"github.com/theupdateframework/go-tuf/v2/metadata/trustedmetadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/updater"
	"golang.org/x/sys/unix"

	"smelt/images"
	"smelt/images/remote"
)

// maxMetadata is the longest file of metadata that is read.
const maxMetadata = 8 << 20

// updateTime bounds the fetch of all metadata, a few kB as a rule.
const updateTime = 10 * time.Minute

// View is what the keys of a release say now.
type View struct {
	Signers  images.Signers // who signs manifests
	Root     int64          // version of root
	Version  int64          // of everything: rises with each publication
	Expires  time.Time      // believed until then
	Released map[images.Digest]string
	Channels map[Role]map[string]images.Digest // channel, title

	versions map[string]int64 // of the files that the snapshot names
	client   *Client          // whose view it is; nil: of nobody who remembers
}

// Client is the site's side. Dir keeps the newest metadata that was seen, so
// that nothing older is ever believed again, by a restarted server neither.
type Client struct {
	Dir  string        // made on first use
	Root []byte        // root metadata that trust begins with, of any version
	From remote.Remote // nil: only Signers is asked for
	now  func() time.Time
}

// seen is what a client knows, in one file: after a power cut its parts are of
// one moment. Pinned is the Root that trust began with, Files the newest
// verified metadata by name.
type seen struct {
	Pinned []byte            `json:"pinned"`
	Files  map[string][]byte `json:"files"`
}

const seenFile = "seen.json"

// Update fetches and verifies what is published. What was verified is kept
// even where a later step refuses, as TUF wants. A server that sends it slower
// than updateTime is as good as none: who is kept waiting learns nothing new.
func (c *Client) Update(ctx context.Context) (*View, error) {
	ctx, cancel := context.WithTimeout(ctx, updateTime)
	defer cancel()
	unlock, err := c.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	known, err := c.load()
	if err != nil {
		return nil, err
	}
	// The library writes without flushing, and takes what does not verify for
	// none: it works on a copy of what was verified here.
	work, err := os.MkdirTemp(c.Dir, "work-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)
	for name, b := range known.Files {
		if err := os.WriteFile(filepath.Join(work, name), b, 0o644); err != nil {
			return nil, err
		}
	}
	f := fetcher{ctx, c.From}
	cfg, err := config.New("release", known.Files["root.json"])
	if err != nil {
		return nil, err
	}
	cfg.LocalMetadataDir, cfg.LocalTargetsDir, cfg.Fetcher = work, work, f
	cfg.RootMaxLength, cfg.TimestampMaxLength, cfg.SnapshotMaxLength, cfg.TargetsMaxLength = maxMetadata, 1<<20, 1<<20, maxMetadata
	u, err := updater.New(cfg)
	if err != nil {
		return nil, explain("root.json", err)
	}
	if c.now != nil {
		u.UnsafeSetRefTime(c.now().UTC())
	}
	err = u.Refresh()
	if e := c.keep(known, work); e != nil {
		return nil, e
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.From, explain("metadata", err))
	}
	set := u.GetTrustedMetadataSet()
	v, err := readChannels(ctx, &set, func(ctx context.Context, name string, limit int64) ([]byte, error) {
		return remote.ReadAll(ctx, c.From, "metadata/"+name, limit)
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.From, err)
	}
	v.client = c
	return v, nil
}

// newest runs do unless a newer release was seen since this view of it: a pull
// takes as long as its images, and what another process learned meanwhile, of
// an image that was withdrawn perhaps, must not be undone.
func (v *View) newest(ctx context.Context, do func() error) error {
	if v.client == nil {
		return do()
	}
	unlock, err := v.client.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	known, err := v.client.load()
	if err != nil {
		return err
	}
	root, err := new(rootData).FromBytes(known.Files["root.json"])
	if err != nil {
		return err
	}
	version := v.Version
	if b := known.Files["snapshot.json"]; b != nil {
		snapshot, err := new(metadata.Metadata[metadata.SnapshotType]).FromBytes(b)
		if err != nil {
			return err
		}
		version = snapshot.Signed.Version
	}
	if root.Signed.Version > v.Root || version > v.Version {
		return fmt.Errorf("%w: release %d was seen while the images of %d were fetched; the channels stay as they are: smelt image pull", ErrConflict, version, v.Version)
	}
	return do()
}

// Signers returns who signs manifests by the newest root that was seen, without
// asking anybody.
func (c *Client) Signers() (images.Signers, error) {
	unlock, err := c.lock(context.Background())
	if err != nil {
		return images.Signers{}, err
	}
	defer unlock()
	known, err := c.load()
	if err != nil {
		return images.Signers{}, err
	}
	set, err := trustedmetadata.New(known.Files["root.json"])
	if err != nil {
		return images.Signers{}, explain("root.json", err)
	}
	return signers(set.Root, Release)
}

// Known returns who signs manifests on a site whose Client works in dir; false
// where none did yet.
func Known(dir string) (images.Signers, bool, error) {
	c := &Client{Dir: dir}
	known, err := c.read()
	if errors.Is(err, fs.ErrNotExist) {
		return images.Signers{}, false, nil
	}
	if err != nil {
		return images.Signers{}, false, err
	}
	c.Root = known.Pinned
	s, err := c.Signers()
	return s, true, err
}

// lock keeps two processes from undoing what the other one learned.
func (c *Client) lock(ctx context.Context) (func(), error) {
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(c.Dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// read reads what is known; fs.ErrNotExist where nothing is.
func (c *Client) read() (seen, error) {
	var known seen
	b, err := os.ReadFile(filepath.Join(c.Dir, seenFile))
	if err != nil {
		return known, err
	}
	if err := json.Unmarshal(b, &known); err != nil {
		return seen{}, c.damaged(err)
	}
	return known, nil
}

// load reads what is known, at first the root that is pinned, and holds all of
// it against the newest root.
func (c *Client) load() (seen, error) {
	known, err := c.read()
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := trustedmetadata.New(c.Root); err != nil {
			return seen{}, fmt.Errorf("the root that images.root names: %w", explain("root.json", err))
		}
		known = seen{Pinned: c.Root, Files: map[string][]byte{"root.json": c.Root}}
		return known, c.save(known)
	}
	if err != nil {
		return seen{}, err
	}
	if !bytes.Equal(known.Pinned, c.Root) {
		return seen{}, fmt.Errorf("%w: the root that images.root names is not the one this site began with (in %s). Newer roots are fetched and need no change of it. To begin anew with other keys, remove %s: it forgets what was seen before",
			ErrUntrusted, filepath.Join(c.Dir, seenFile), c.Dir)
	}
	if _, err := trustedmetadata.New(known.Files["root.json"]); err != nil {
		return seen{}, c.damaged(err)
	}
	for name, b := range known.Files {
		if name == "root.json" {
			continue
		}
		if err := verifies(known.Files["root.json"], name, b); err != nil {
			return seen{}, c.damaged(fmt.Errorf("%s: %v", name, err))
		}
	}
	return known, nil
}

func (c *Client) save(known seen) error {
	b, err := json.Marshal(known)
	if err != nil {
		return err
	}
	return replace(filepath.Join(c.Dir, seenFile), b)
}

func (c *Client) damaged(err error) error {
	return fmt.Errorf("%s: %w: %v. Restore it from a backup; without it the site forgets which versions it has seen", filepath.Join(c.Dir, seenFile), ErrDamaged, err)
}

// verifies tells whether a kept file is one that a root's keys signed, of
// whatever age.
func verifies(root []byte, name string, b []byte) error {
	r, err := new(rootData).FromBytes(root)
	if err != nil {
		return err
	}
	role := strings.TrimSuffix(name, ".json")
	switch role {
	case metadata.TIMESTAMP:
		m, err := new(timestampData).FromBytes(b)
		if err != nil {
			return err
		}
		return r.VerifyDelegate(role, m)
	case metadata.SNAPSHOT:
		m, err := new(metadata.Metadata[metadata.SnapshotType]).FromBytes(b)
		if err != nil {
			return err
		}
		return r.VerifyDelegate(role, m)
	case metadata.TARGETS:
		m, err := new(targetsData).FromBytes(b)
		if err != nil {
			return err
		}
		return r.VerifyDelegate(role, m)
	}
	return fmt.Errorf("%s is nothing that is kept", name)
}

// keep saves what was verified. Where a new root took a key away, what only
// that key signed goes: section 5.3.11, to recover from a key that was stolen
// and signed absurdly high versions.
func (c *Client) keep(before seen, work string) error {
	now := seen{Pinned: before.Pinned, Files: map[string][]byte{}}
	for _, name := range []string{"root.json", "timestamp.json", "snapshot.json", "targets.json"} {
		b, err := os.ReadFile(filepath.Join(work, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if name == "root.json" || verifies(now.Files["root.json"], name, b) == nil {
			now.Files[name] = b
		}
	}
	if maps.EqualFunc(before.Files, now.Files, bytes.Equal) {
		return nil
	}
	return c.save(now)
}

// fetcher lets the library read from a remote for as long as ctx lives.
type fetcher struct {
	ctx  context.Context
	from remote.Remote
}

// DownloadFile implements go-tuf's Fetcher.
func (f fetcher) DownloadFile(url string, limit int64, _ time.Duration) ([]byte, error) {
	name := path.Base(url)
	b, err := remote.ReadAll(f.ctx, f.from, "metadata/"+name, limit)
	// The next root is asked for until there is none. Some say so by forbidding
	// it (S3 without the right to list).
	if errors.Is(err, remote.ErrNotFound) || errors.Is(err, remote.ErrDenied) && strings.HasSuffix(name, ".root.json") {
		return nil, errors.Join(&metadata.ErrDownloadHTTP{StatusCode: 404, URL: url}, err)
	}
	return b, err
}

// readChannels reads what the channels say, and what all of it amounts to.
func readChannels(ctx context.Context, set *trustedmetadata.TrustedMetadata, get func(ctx context.Context, name string, limit int64) ([]byte, error)) (*View, error) {
	top := set.Targets[metadata.TARGETS]
	if top == nil {
		info, ok := set.Snapshot.Signed.Meta["targets.json"]
		if !ok {
			return nil, fmt.Errorf("targets.json: %w: the snapshot does not name it", ErrDamaged)
		}
		name := fileName(metadata.TARGETS, info.Version)
		b, err := get(ctx, name, maxMetadata)
		if err != nil {
			return nil, err
		}
		if top, err = set.UpdateTargets(b); err != nil {
			return nil, explain(name, err)
		}
	}
	keys, err := signers(set.Root, Release)
	if err != nil {
		return nil, err
	}
	v := &View{Signers: keys, Root: set.Root.Signed.Version, Version: set.Snapshot.Signed.Version, Expires: set.Timestamp.Signed.Expires, Channels: map[Role]map[string]images.Digest{}, versions: map[string]int64{}}
	for name, info := range set.Snapshot.Signed.Meta {
		v.versions[name] = info.Version
	}
	if v.Released, err = released(top); err != nil {
		return nil, err
	}
	for _, c := range Channels {
		info, ok := set.Snapshot.Signed.Meta[c.tuf()+".json"]
		if !ok {
			return nil, fmt.Errorf("%s.json: %w: the snapshot does not name it", c, ErrDamaged)
		}
		name := fileName(c.tuf(), info.Version)
		b, err := get(ctx, name, maxMetadata)
		if err != nil {
			return nil, err
		}
		m, err := set.UpdateDelegatedTargets(b, c.tuf(), metadata.TARGETS)
		if err != nil {
			return nil, explain(name, err)
		}
		titles, err := channelTitles(c, m)
		if err != nil {
			return nil, err
		}
		// Who may promote chooses among what was released, and makes nothing.
		for title, d := range titles {
			if t, ok := v.Released[d]; !ok || t != title {
				return nil, fmt.Errorf("%w: channel %s names %s for %s, which was never released as that or was withdrawn", ErrUntrusted, c, d.Short(), title)
			}
		}
		v.Channels[c] = titles
	}
	return v, nil
}

// released reads the targets manifests/DIGEST, with the titles of the images.
func released(m *targetsData) (map[images.Digest]string, error) {
	out := map[images.Digest]string{}
	for path, f := range m.Signed.Targets {
		d, err := images.ParseDigest(strings.TrimPrefix(path, "manifests/"))
		if err != nil || path != manifestPath(d) || !bytes.Equal(f.Hashes["sha256"], d[:]) {
			return nil, fmt.Errorf("release names %.100q: %w", path, ErrDamaged)
		}
		var custom struct {
			Title string `json:"title"`
		}
		if f.Custom != nil {
			if err := json.Unmarshal(*f.Custom, &custom); err != nil {
				return nil, fmt.Errorf("release names %.100q: %w: %v", path, ErrDamaged, err)
			}
		}
		out[d] = custom.Title
	}
	return out, nil
}

// channelTitles reads the targets CHANNEL/TITLE. What a channel says of any
// other path does not count.
func channelTitles(channel Role, m *targetsData) (map[string]images.Digest, error) {
	out := map[string]images.Digest{}
	for path, f := range m.Signed.Targets {
		title, ok := strings.CutPrefix(path, channelPath(channel, ""))
		if !ok || strings.Contains(title, "/") || len(f.Hashes["sha256"]) != len(images.Digest{}) {
			return nil, fmt.Errorf("channel %s names %.100q: %w", channel, path, ErrDamaged)
		}
		out[title] = images.Digest(f.Hashes["sha256"])
	}
	return out, nil
}

// explain says what a refusal of the library means and what to do about it.
func explain(what string, err error) error {
	var (
		expired  *metadata.ErrExpiredMetadata
		version  *metadata.ErrBadVersionNumber
		unsigned *metadata.ErrUnsignedMetadata
		value    *metadata.ErrValue
		length   *metadata.ErrLengthOrHashMismatch
		syntax   *json.SyntaxError
		kind     *json.UnmarshalTypeError
		wrong    *metadata.ErrRepository
	)
	switch {
	case errors.As(err, &expired):
		return fmt.Errorf("%w: %s. Its publisher renews it: smelt image publish (or this clock is wrong)", ErrExpired, expired.Msg)
	case errors.As(err, &version):
		return fmt.Errorf("%w: %s: %s. A mirror is behind, or somebody brings back an old release", ErrRollback, what, version.Msg)
	case errors.As(err, &unsigned):
		return fmt.Errorf("%w: %s: %s", ErrUntrusted, what, unsigned.Msg)
	case errors.As(err, &value):
		return fmt.Errorf("%w: %s: %s", ErrUntrusted, what, value.Msg)
	case errors.As(err, &wrong): // of another role, for example
		return fmt.Errorf("%w: %s: %s", ErrUntrusted, what, wrong.Msg)
	case errors.As(err, &length):
		return fmt.Errorf("%w: %s: %s", ErrDamaged, what, length.Msg)
	case errors.As(err, &syntax), errors.As(err, &kind), strings.Contains(err.Error(), "unexpected end of JSON"):
		return fmt.Errorf("%w: %s: %v", ErrDamaged, what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}
