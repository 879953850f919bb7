package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"smelt/images"
	"smelt/images/release"
	"smelt/images/remote"
	"smelt/internal/config"
)

func newImagePull(o *options) *cobra.Command {
	var all, dry bool
	c := &cobra.Command{
		Use: "pull", Short: "Fetch the released images that the site file names, verified; exit 3 when what is published is refused",
		Long: `Fetch what the release keys say now, and the images that classes and nodes of
the site file name, from images.remote. smelt serve does the same by itself.`,
		Args: exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			site, _, err := o.loadSite(nil)
			if err != nil {
				return err
			}
			if site.Images == nil {
				return usageError{o.site + " has no images section: this site builds its images itself", "smelt image build; or add images: {remote: ..., root: ...}"}
			}
			secrets, err := config.OpenSecrets(site.State)
			if err != nil {
				return err
			}
			client, err := releaseClient(site, secrets)
			if err != nil {
				return err
			}
			st, err := images.OpenStore(filepath.Join(site.State, "images"))
			if err != nil {
				return err
			}
			v, err := client.Update(c.Context())
			if err != nil {
				return err
			}
			want := wanted(site)
			if all {
				want = func(release.Role, string) bool { return true }
			}
			if dry {
				for _, channel := range release.Channels {
					titles := v.Channels[channel]
					for _, title := range slices.Sorted(maps.Keys(titles)) {
						if want(channel, title) {
							fmt.Fprintf(c.OutOrStdout(), "%s\t%s/%s\n", titles[title], channel, title)
						}
					}
				}
				return nil
			}
			err = v.Pull(c.Context(), st, client.From, release.Channels, want, func(s string) { fmt.Fprintln(c.ErrOrStderr(), s) })
			return say(c, err, "Release %d of %s, believed until %s.", v.Version, client.From, v.Expires.Format(time.DateOnly))
		},
	}
	c.Flags().BoolVar(&all, "all", false, "every image of every channel, not only what the site file names")
	c.Flags().BoolVar(&dry, "dry-run", false, "verify, and only list what would be fetched")
	return c
}

// releaseClient is the site's side of its release keys.
func releaseClient(site *config.Site, secrets *config.Secrets) (*release.Client, error) {
	c := remote.Credentials{User: site.Images.User}
	if ref := site.Images.Password; ref != "" {
		s, err := secrets.Get(string(ref))
		if err != nil {
			return nil, err
		}
		c.Password = string(s.Reveal())
	}
	from, err := remote.Open(site.Images.Remote, c)
	if err != nil {
		return nil, fmt.Errorf("images.remote: %w", err)
	}
	root, err := os.ReadFile(site.Images.Root)
	if err != nil {
		return nil, fmt.Errorf("images.root, the root that trust in images begins with: %w; who publishes the images has it: smelt image publish --root FILE", err)
	}
	return &release.Client{Dir: trustDir(site.State), Root: root, From: from}, nil
}

// wanted are the images that the site file names: by NAME in the site's
// channel, by CHANNEL/NAME in another. A recipe's name has all its variants.
func wanted(site *config.Site) func(release.Role, string) bool {
	var names []string
	for _, c := range site.Classes {
		names = append(names, c.Image)
	}
	for _, n := range site.Nodes {
		names = append(names, n.Image)
	}
	return func(channel release.Role, title string) bool {
		for _, name := range names {
			if name == "" {
				continue
			}
			in, name, ok := strings.Cut(name, "/")
			if !ok {
				in, name = site.Images.Channel, in
			}
			if in == string(channel) && (title == name || strings.HasPrefix(title, name+".")) {
				return true
			}
		}
		return false
	}
}

// releaseTask keeps a site's images those that its release keys name.
type releaseTask struct {
	client *release.Client
	store  *images.Store
	site   *config.Site
	keys   images.Signers                                       // those that nodes boot with
	rekey  func(ctx context.Context, keys images.Signers) error // puts others into what nodes boot
	log    *slog.Logger
	ready  chan struct{}
}

func (t *releaseTask) String() string         { return "released images from " + t.client.From.String() }
func (t *releaseTask) Ready() <-chan struct{} { return t.ready }

// Run pulls at once and then at the site's pace; after a failure sooner. What
// was pulled before stays usable meanwhile: it was released and verified.
func (t *releaseTask) Run(ctx context.Context) error {
	close(t.ready)
	for {
		next := t.site.Images.Every
		if err := t.pull(ctx); err != nil && ctx.Err() == nil {
			next = min(next, time.Minute)
			t.log.Error("released images were not fetched: those that are here stay in use", "err", err, "again", next)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(next):
		}
	}
}

func (t *releaseTask) pull(ctx context.Context) error {
	v, err := t.client.Update(ctx)
	if err != nil {
		return err
	}
	if left := time.Until(v.Expires); left < 3*24*time.Hour {
		t.log.Warn("what is published about images ends soon: its publisher must run smelt image publish", "until", v.Expires)
	}
	if !reflect.DeepEqual(v.Signers, t.keys) {
		// Nodes first: a store that knows keys which its nodes do not know
		// would have them refuse what it plans.
		if err := t.rekey(ctx, v.Signers); err != nil {
			return fmt.Errorf("put the new release keys into what nodes boot: %w", err)
		}
		t.log.Info("release keys changed: nodes get the new ones with their next boot", "threshold", v.Signers.Threshold, "keys", len(v.Signers.Keys))
		t.keys = v.Signers
	}
	err = v.Pull(ctx, t.store, t.client.From, release.Channels, wanted(t.site), func(s string) { t.log.Info("released image", "what", s) })
	t.store.Follow(t.site.Images.Channel, v.Signers)
	return err
}

// follow makes st resolve what was released. It needs no network, so that a
// server without its remote starts all the same.
func follow(site *config.Site, secrets *config.Secrets, st *images.Store, log *slog.Logger) (*releaseTask, error) {
	client, err := releaseClient(site, secrets)
	if err != nil {
		return nil, err
	}
	keys, err := client.Signers()
	if err != nil {
		return nil, err
	}
	if len(keys.Keys) == 0 {
		return nil, errors.New("root names no release keys")
	}
	st.Follow(site.Images.Channel, keys)
	return &releaseTask{client: client, store: st, site: site, keys: keys, log: log, ready: make(chan struct{})}, nil
}
