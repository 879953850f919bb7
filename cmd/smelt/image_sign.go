package main

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"smelt/images"
	"smelt/images/release"
)

func newImageSign(state *string) *cobra.Command {
	p := publisher{state: state}
	var all, dry bool
	c := p.flags(&cobra.Command{
		Use: "sign IMAGE...", Short: "Release images with an offline key: sign their manifests, and that they exist",
		Long: `Release images with an offline key of the role release. A recipe's name stands
for all its variants. Where two of three people must sign, each runs this; then
smelt image promote and smelt image publish bring the images to the sites.
Without a release folder nothing of this is needed: an image is signed with the
site's key when it is built.`,
		Example: "  smelt image sign ai-node --key anna.key",
		Args:    cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if all == (len(args) > 0) {
				return usageError{c.CommandPath() + " wants images, or --all for every one that is released", "smelt image list"}
			}
			st, err := images.OpenStore(filepath.Join(*state, "images"))
			if err != nil {
				return err
			}
			r, err := p.open()
			if err != nil {
				return err
			}
			var list []images.Digest
			if all {
				released, err := r.Released()
				if err != nil {
					return err
				}
				list = slices.SortedFunc(maps.Keys(released), func(a, b images.Digest) int { return strings.Compare(a.String(), b.String()) })
			}
			for _, ref := range args {
				found, err := imagesOf(st, ref)
				if err != nil {
					return err
				}
				list = append(list, found...)
			}
			key, err := p.readKey(c)
			if err != nil {
				return err
			}
			if err := r.Check(release.Release, key); err != nil {
				return err
			}
			for _, d := range list {
				// Nobody signs what they do not have, or what is damaged.
				if err := st.Verify(d); err != nil {
					return err
				}
				m, err := st.Manifest(d)
				if err != nil {
					return err
				}
				if dry {
					fmt.Fprintf(c.ErrOrStderr(), "would sign %s %s\n", m.Title(), d.Short())
					continue
				}
				if err := r.SignImage(st, d, key); err != nil {
					return fmt.Errorf("image %s %s: %w", m.Title(), d.Short(), err)
				}
				fmt.Fprintf(c.OutOrStdout(), "%s\t%s\n", d, m.Title())
			}
			return sayWaiting(c, r)
		},
	}, "file of the signing key, of the role release")
	c.Flags().BoolVar(&all, "all", false, "every image that is released: after a key was changed")
	c.Flags().BoolVar(&dry, "dry-run", false, "only say what would be signed")
	return c
}

// imagesOf finds the images that a reference stands for: one, or the variants
// of a recipe.
func imagesOf(st *images.Store, ref string) ([]images.Digest, error) {
	titles, err := st.Titles(ref)
	if err != nil {
		return nil, err
	}
	var out []images.Digest
	for _, title := range titles {
		d, err := st.Resolve(title)
		if err != nil {
			return nil, err
		}
		m, err := st.Manifest(d)
		if err != nil {
			return nil, err
		}
		// ai.next may be a recipe of its own, and no variant of ai.
		if (title == ref || m.Name == ref) && !slices.Contains(out, d) {
			out = append(out, d)
		}
	}
	if len(out) > 0 {
		return out, nil
	}
	d, err := st.Resolve(ref)
	if err != nil {
		return nil, err
	}
	return []images.Digest{d}, nil
}
