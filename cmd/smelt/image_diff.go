package main

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"smelt/images"
	"smelt/images/build"
	"smelt/internal/api"
)

func newImageDiff(o *options, state *string) *cobra.Command {
	var detailed bool
	cmd := &cobra.Command{
		Use:   "diff A B",
		Short: "Say what is different between two images: packages, files, kernel, sizes",
		Long: `Say what is different between two images of the store, as their bills of
materials have it: packages, kernel, driver and sizes, and with -o wide, json or
yaml each file as well.`,
		Example: "  smelt image diff stable canary\n  smelt image diff 2aa95d6dd0b0 debian-12-lab -o wide",
		Args:    exactly("A", "B"),
		RunE: func(cmd *cobra.Command, args []string) error {
			st, err := images.OpenStore(filepath.Join(*state, "images"))
			if err != nil {
				return err
			}
			var of [2]images.Digest
			for i, a := range args {
				if of[i], err = st.Resolve(a); err != nil {
					return err
				}
			}
			d, err := build.Compare(st, of[0], of[1])
			if err != nil {
				return err
			}
			l := listing{
				doc: map[string]any{
					"apiVersion": api.Version, "kind": "ImageDiff", "a": of[0], "b": of[1],
					"image": d.Facts, "packages": d.Packages, "files": d.Files,
				},
				cols: []string{"name", "what", "a", "b"},
			}
			row := func(what string, all []build.Change) {
				for _, c := range all {
					l.rows = append(l.rows, []string{c.Name, what, dash(c.Before), dash(c.After)})
				}
			}
			row("image", d.Facts)
			row("package", d.Packages)
			if o.output == "table" {
				row("files", byFolder(d.Files))
			} else {
				row("file", d.Files)
			}
			if err := o.show(cmd, l); err != nil {
				return err
			}
			if detailed && !d.Same() {
				return errChanges
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&detailed, "detailed-exitcode", false, "exit with 10 when there is a difference")
	return cmd
}

// byFolder counts changed files by the first two folders of their path.
func byFolder(files []build.Change) []build.Change {
	type count struct{ gone, changed, added int }
	counts, order := map[string]*count{}, []string(nil)
	for _, f := range files {
		parts := strings.SplitN(strings.TrimPrefix(f.Name, "/"), "/", 3)
		dir := "/" + strings.Join(parts[:min(2, len(parts)-1)], "/")
		c := counts[dir]
		if c == nil {
			c = &count{}
			counts[dir], order = c, append(order, dir)
		}
		switch {
		case f.After == "":
			c.gone++
		case f.Before == "":
			c.added++
		default:
			c.changed++
		}
	}
	var all []build.Change
	for _, dir := range order {
		c := counts[dir]
		change := build.Change{Name: dir}
		if c.gone > 0 {
			change.Before = fmt.Sprintf("%d gone", c.gone)
		}
		if c.changed+c.added > 0 {
			change.After = fmt.Sprintf("%d changed, %d new", c.changed, c.added)
		}
		all = append(all, change)
	}
	return all
}
