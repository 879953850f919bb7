package main

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"smelt/images"
	"smelt/images/release"
)

func newImagePromote(state *string) *cobra.Command {
	p := publisher{state: state}
	var ref string
	var dry bool
	c := p.flags(&cobra.Command{
		Use: "promote NAME CHANNEL", Short: "Make a name stand for an image in a channel: canary first, then stable",
		Long: `Make a name stand for an image in a channel. In canary it stands for the newest
image of that name in the store, in stable for what canary has; --image says
otherwise. A recipe's name stands for all its variants. With --key it is signed
at once, without it waits for smelt image trust sign.`,
		Example: "  smelt image promote ai-node canary --key ci.key\n  smelt image promote ai-node stable --key ben.key",
		Args:    exactly("NAME", "CHANNEL"),
		RunE: func(c *cobra.Command, args []string) error {
			channel, err := release.ParseChannel(args[1])
			if err != nil {
				return usageError{err.Error(), ""}
			}
			st, err := images.OpenStore(filepath.Join(*state, "images"))
			if err != nil {
				return err
			}
			r, err := p.open()
			if err != nil {
				return err
			}
			list, err := promoted(st, r, channel, args[0], ref)
			if err != nil {
				return err
			}
			for _, d := range list {
				m, err := st.Manifest(d)
				if err != nil {
					return err
				}
				if m.Name != args[0] && m.Title() != args[0] {
					return usageError{fmt.Sprintf("image %s is %s, not %s", d.Short(), m.Title(), args[0]), ""}
				}
				if dry {
					fmt.Fprintf(c.ErrOrStderr(), "would make %s/%s %s\n", channel, m.Title(), d.Short())
					continue
				}
				b, err := st.Envelope(d)
				if err != nil {
					return err
				}
				if err := r.Promote(channel, b); err != nil {
					return err
				}
				fmt.Fprintf(c.OutOrStdout(), "%s\t%s/%s\n", d, channel, m.Title())
			}
			if p.key != "" && !dry {
				key, err := p.readKey(c)
				if err != nil {
					return err
				}
				if err := r.Sign(channel, key); err != nil {
					return err
				}
			}
			return sayWaiting(c, r)
		},
	}, "file of the signing key, of the channel's role")
	c.Flags().StringVar(&ref, "image", "", "another image: a name or a digest in the store")
	c.Flags().BoolVar(&dry, "dry-run", false, "only say what would be promoted")
	return c
}

// promoted are the images that a name should stand for.
func promoted(st *images.Store, r *release.Repository, channel release.Role, name, ref string) ([]images.Digest, error) {
	if ref != "" || channel == release.Canary {
		if ref == "" {
			ref = name
		}
		return imagesOf(st, ref)
	}
	canary, err := r.Channel(release.Canary)
	if err != nil {
		return nil, err
	}
	var out []images.Digest
	for _, title := range slices.Sorted(maps.Keys(canary)) {
		if title == name || strings.HasPrefix(title, name+".") {
			out = append(out, canary[title])
		}
	}
	if len(out) == 0 {
		return nil, usageError{fmt.Sprintf("canary has no %s", name), fmt.Sprintf("smelt image promote %s canary; or give --image", name)}
	}
	return out, nil
}

func newImageWithdraw(state *string) *cobra.Command {
	p := publisher{state: state}
	c := p.flags(&cobra.Command{
		Use: "withdraw IMAGE", Short: "Take an image back: no site writes it any more, in whatever channel it is",
		Args: exactly("IMAGE"),
		RunE: func(c *cobra.Command, args []string) error {
			r, err := p.open()
			if err != nil {
				return err
			}
			released, err := r.Released()
			if err != nil {
				return err
			}
			var found []images.Digest
			for d := range released {
				if len(args[0]) >= 6 && strings.HasPrefix(d.String(), strings.TrimPrefix(args[0], "sha256:")) {
					found = append(found, d)
				}
			}
			if len(found) != 1 {
				return usageError{fmt.Sprintf("%d released images have a digest that begins with %q", len(found), args[0]), "give more of the digest: smelt image list"}
			}
			if err := r.Withdraw(found[0]); err != nil {
				return err
			}
			if p.key != "" {
				key, err := p.readKey(c)
				if err != nil {
					return err
				}
				if _, err := r.SignAll(key); err != nil && !errors.Is(err, release.ErrRole) {
					return err
				}
			}
			return sayWaiting(c, r)
		},
	}, "file of a signing key, of the role release or of a channel")
	return c
}
