package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"smelt/images"
	"smelt/images/build"
)

func newImage(o *options) *cobra.Command {
	cmd := &cobra.Command{Use: "image", Short: "Build, list and verify OS images"}
	var state string
	cmd.PersistentFlags().StringVar(&state, "state", "/var/lib/smelt", "state folder of the site: its image store and its key")
	cmd.AddCommand(newImageBuild(&state), newImageList(&state), newImageVerify(&state), newImageKernel(), newImageTry(o, &state))
	cmd.AddCommand(newImageSign(&state), newImagePromote(&state), newImageWithdraw(&state), newImagePublish(&state), newImagePull(o), newImageTrust(o, &state))
	cmd.AddCommand(newImageLock(), newImageKey(), newImageDiff(o, &state))
	cmd.AddCommand(newImagePapers(&state)...)
	return cmd
}

func newImageList(state *string) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the images in the store",
		Args:  exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			st, err := images.OpenStore(filepath.Join(*state, "images"))
			if err != nil {
				return err
			}
			list, err := st.List()
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "DIGEST\tNAMES\tKERNEL\tDRIVER\tSIZE\tCREATED")
			for _, e := range list {
				driver := "-"
				if d := e.Manifest.Driver; d != nil {
					driver = d.Version + " " + d.Modules
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d MiB\t%s\n", e.Digest.Short(), strings.Join(e.Names, ","), e.Manifest.Kernel, driver,
					e.Manifest.Size>>20, e.Manifest.Created.Format(time.DateOnly))
			}
			return w.Flush()
		},
	}
}

// newImageKernel fetches ahead what serve needs, for servers that reach no
// mirror.
func newImageKernel() *cobra.Command {
	var cache string
	cmd := &cobra.Command{
		Use:   "kernel",
		Short: "Fetch the RAM system's kernel, Debian's loaders, a memory test and a rescue's tools into the cache, for a server without internet",
		Args:  exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			k, err := build.Kernel(cmd.Context(), cache)
			if err != nil {
				return err
			}
			if _, err := build.Loaders(cmd.Context(), cache); err != nil { // a site serves the others
				fmt.Fprintln(cmd.ErrOrStderr(), "smelt: no shim, no GRUB and no loader for 64-bit ARM:", err)
			}
			if _, err := build.Programs(cmd.Context(), cache); err != nil { // a site serves the rest
				fmt.Fprintln(cmd.ErrOrStderr(), "smelt: no memory test and no tools for a rescue:", err)
			}
			fmt.Fprintln(cmd.OutOrStdout(), k.Release)
			return nil
		},
	}
	cmd.Flags().StringVar(&cache, "cache", ".cache", "folder for what can be made again")
	return cmd
}
