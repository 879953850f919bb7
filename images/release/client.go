package release

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
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

// View is what the keys of a release say now.
type View struct {
	Signers  images.Signers // who signs manifests
	Root     int64          // version of root
	Version  int64          // of everything: rises with each publication
	Expires  time.Time      // believed until then
	Released map[images.Digest]string
	Channels map[Role]map[string]images.Digest // channel, title

	versions map[string]int64 // of the files that the snapshot names
}

// Client is the site's side. Dir keeps the newest metadata that was seen, so
// that nothing older is ever believed again, by a restarted server neither.
type Client struct {
	Dir  string        // made on first use
	Root []byte        // root metadata that trust begins with, of any version
	From remote.Remote // nil: only Signers is asked for
	now  func() time.Time
}

// The files of Dir. pinned is the Root that trust began with.
var kept = []string{"root.json", "timestamp.json", "snapshot.json", "targets.json"}

const pinned = "pinned.json"

// Update fetches and verifies what is published. What was verified is kept
// even where a later step refuses, as TUF wants.
func (c *Client) Update(ctx context.Context) (*View, error) {
	unlock, err := c.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	root, err := c.root()
	if err != nil {
		return nil, err
	}
	// The library writes without flushing. It works on a copy; what it verified
	// is then put in place to survive a power cut.
	work, err := os.MkdirTemp(c.Dir, "work-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)
	for _, name := range kept[1:] {
		b, err := os.ReadFile(filepath.Join(c.Dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		// It takes a damaged file for none, and would believe anything old then.
		if !json.Valid(b) {
			return nil, c.damaged(name)
		}
		if err := os.WriteFile(filepath.Join(work, name), b, 0o644); err != nil {
			return nil, err
		}
	}
	f := fetcher{ctx, c.From}
	cfg, err := config.New("release", root)
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
	if e := c.keep(work); e != nil {
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
	return v, nil
}

// Signers returns who signs manifests by the newest root that was seen, without
// asking anybody.
func (c *Client) Signers() (images.Signers, error) {
	unlock, err := c.lock(context.Background())
	if err != nil {
		return images.Signers{}, err
	}
	defer unlock()
	b, err := c.root()
	if err != nil {
		return images.Signers{}, err
	}
	set, err := trustedmetadata.New(b)
	if err != nil {
		return images.Signers{}, explain("root.json", err)
	}
	return signers(set.Root, Release)
}

// Known returns who signs manifests on a site whose Client works in dir; false
// where none did yet.
func Known(dir string) (images.Signers, bool, error) {
	b, err := os.ReadFile(filepath.Join(dir, pinned))
	if errors.Is(err, fs.ErrNotExist) {
		return images.Signers{}, false, nil
	}
	if err != nil {
		return images.Signers{}, false, err
	}
	s, err := (&Client{Dir: dir, Root: b}).Signers()
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

// root returns the newest root that was seen, at first the one that is pinned.
func (c *Client) root() ([]byte, error) {
	old, err := os.ReadFile(filepath.Join(c.Dir, pinned))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if _, err := trustedmetadata.New(c.Root); err != nil {
			return nil, fmt.Errorf("the root that images.root names: %w", explain("root.json", err))
		}
		// pinned.json goes last: with it the folder has a root.
		if err := replace(filepath.Join(c.Dir, "root.json"), c.Root); err != nil {
			return nil, err
		}
		return c.Root, replace(filepath.Join(c.Dir, pinned), c.Root)
	case err != nil:
		return nil, err
	case !bytes.Equal(old, c.Root):
		return nil, fmt.Errorf("%w: the root that images.root names is not the one this site began with (%s). Newer roots are fetched and need no change of it. To begin anew with other keys, remove %s: it forgets what was seen before",
			ErrUntrusted, filepath.Join(c.Dir, pinned), c.Dir)
	}
	b, err := os.ReadFile(filepath.Join(c.Dir, "root.json"))
	if err != nil || !json.Valid(b) {
		return nil, errors.Join(err, c.damaged("root.json"))
	}
	return b, nil
}

func (c *Client) damaged(name string) error {
	return fmt.Errorf("%s in %s: %w: restore it from a backup; removed, the folder forgets which versions it has seen", name, c.Dir, ErrDamaged)
}

// keep puts what was verified in place, each file whole, root first.
func (c *Client) keep(work string) error {
	for _, name := range kept {
		b, err := os.ReadFile(filepath.Join(work, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if old, err := os.ReadFile(filepath.Join(c.Dir, name)); err == nil && bytes.Equal(old, b) {
			continue
		}
		if err := replace(filepath.Join(c.Dir, name), b); err != nil {
			return err
		}
	}
	return nil
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
