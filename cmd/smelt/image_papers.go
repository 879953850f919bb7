package main

import (
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"smelt/images"
)

// newImagePaper prints a document that an image's manifest names.
func newImagePaper(state *string, use, short string, which func(images.Manifest) images.Digest) *cobra.Command {
	return &cobra.Command{
		Use:   use + " IMAGE",
		Short: short,
		Args:  exactly("IMAGE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			st, err := images.OpenStore(filepath.Join(*state, "images"))
			if err != nil {
				return err
			}
			d, err := st.Resolve(args[0])
			if err != nil {
				return err
			}
			m, err := st.Manifest(d)
			if err != nil {
				return err
			}
			if which(m).IsZero() {
				return fmt.Errorf("image %s has no %s: build it again", d.Short(), use)
			}
			b, err := st.Document(which(m))
			if err != nil {
				return fmt.Errorf("%s of image %s: %w", use, d.Short(), err)
			}
			_, err = cmd.OutOrStdout().Write(append(b, '\n'))
			return err
		},
	}
}

func newImagePapers(state *string) []*cobra.Command {
	return []*cobra.Command{
		newImagePaper(state, "sbom", "Print an image's bill of materials (SPDX 2.3, JSON): its packages and files",
			func(m images.Manifest) images.Digest { return m.SBOM }),
		newImagePaper(state, "provenance", "Print what an image was built from, with what (in-toto, SLSA v1, JSON)",
			func(m images.Manifest) images.Digest { return m.Provenance }),
	}
}
