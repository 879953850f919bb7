package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"smelt/images"
	"smelt/images/release"
	"smelt/images/remote"
)

func newImagePublish(state *string) *cobra.Command {
	p := publisher{state: state}
	var root string
	var dry bool
	c := p.flags(&cobra.Command{
		Use: "publish REMOTE", Short: "Bring what is signed to where sites fetch it, and say that it is the newest",
		Long: `Bring released images and what is signed about them to where sites fetch them.
REMOTE is a folder that a web server serves, s3://HOST/BUCKET/PREFIX or
oci://HOST/REPOSITORY (s3+http:// and oci+http:// without TLS). User and password
come from SMELT_REMOTE_USER and SMELT_REMOTE_PASSWORD, or AWS_ACCESS_KEY_ID and
AWS_SECRET_ACCESS_KEY.

Sites believe what is published for two weeks: run this at least weekly, also
when nothing changed.`,
		Example: "  smelt image publish s3://s3.example/images --key online.key",
		Args:    exactly("REMOTE"),
		RunE: func(c *cobra.Command, args []string) error {
			to, err := remote.Open(args[0], remoteCredentials())
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
			if dry {
				return sayWaiting(c, r)
			}
			key, err := p.readKey(c)
			if err != nil {
				return err
			}
			waiting, err := r.Publish(key)
			if err != nil {
				return err
			}
			if err := r.Upload(c.Context(), st, to, func(s string) { fmt.Fprintln(c.ErrOrStderr(), s) }); err != nil {
				return err
			}
			if root != "" {
				b, err := r.FirstRoot()
				if err != nil {
					return err
				}
				if err := os.WriteFile(root, b, 0o644); err != nil {
					return err
				}
			}
			now, err := r.Published(release.Online)
			if err != nil {
				return err
			}
			for _, w := range waiting {
				fmt.Fprintf(c.ErrOrStderr(), "%s was not published: %d of %d signatures\n", w.Role, w.Have, w.Need)
			}
			fmt.Fprintf(c.OutOrStdout(), "%s\tversion %d, believed until %s\n", to, now.Version, now.Expires.Format("2006-01-02"))
			return nil
		},
	}, "file of the online key")
	c.Flags().StringVar(&root, "root", "", "also write the root that sites begin with to this file: images.root of site.yaml")
	c.Flags().BoolVar(&dry, "dry-run", false, "only say what is staged")
	return c
}
