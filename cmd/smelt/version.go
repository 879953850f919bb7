package main

import (
	"runtime"

	"github.com/spf13/cobra"

	"smelt/internal/api"
)

func newVersion(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			return o.show(c, listing{
				doc:  map[string]any{"apiVersion": api.Version, "kind": "Version", "version": version, "go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH},
				cols: []string{"version", "go", "platform"}, wide: 2,
				rows: [][]string{{version, runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH}},
			})
		},
	}
}
