package main

import (
	"crypto/ed25519"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"smelt/images"
	"smelt/images/release"
)

func newImageVerify(state *string) *cobra.Command {
	var keys []string
	var threshold int
	c := &cobra.Command{
		Use:   "verify IMAGE",
		Short: "Verify who signed an image, and every chunk of it; exit 3 when it is not good",
		Long: `Verify an image's signatures and every chunk of it. The signatures that count
are those that the site's nodes want: of the release keys where the site pulls
released images, of the site's own key where it builds them, or of --key.`,
		Args: exactly("IMAGE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			st, err := images.OpenStore(filepath.Join(*state, "images"))
			if err != nil {
				return err
			}
			d, err := st.Resolve(args[0])
			if err != nil {
				return err
			}
			signers := images.Signers{Threshold: threshold}
			for _, f := range keys {
				k, err := release.ReadPublicKey(f)
				if err != nil {
					return usageError{err.Error(), ""}
				}
				signers.Keys = append(signers.Keys, k)
			}
			if len(keys) == 0 {
				if cmd.Flags().Changed("threshold") {
					return usageError{"--threshold counts the keys of --key, and there are none", "name them: --key FILE,FILE"}
				}
				if signers, err = siteSigners(*state); err != nil {
					return err
				}
			}
			if err := signers.Check(); err != nil {
				return usageError{err.Error(), ""}
			}
			envelope, err := st.Envelope(d)
			if err != nil {
				return err
			}
			if _, _, err := signers.Open(envelope); err != nil {
				return err
			}
			if err := st.Verify(d); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "image %s: signature and every chunk verified\n", d.Short())
			return nil
		},
	}
	c.Flags().StringSliceVar(&keys, "key", nil, "public keys whose signatures count, instead of the site's")
	c.Flags().IntVar(&threshold, "threshold", 1, "how many of --key must have signed")
	return c
}

// trustDir is where a site keeps the newest it knows of a release.
func trustDir(state string) string { return filepath.Join(state, "trust") }

// siteSigners are those whose signatures the nodes of a site want.
func siteSigners(state string) (images.Signers, error) {
	s, ok, err := release.Known(trustDir(state))
	if err != nil || ok {
		return s, err
	}
	key, err := siteKey(state)
	if err != nil {
		return s, err
	}
	return images.Signers{Keys: []ed25519.PublicKey{key.Public().(ed25519.PublicKey)}}, nil
}
