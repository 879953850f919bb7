package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"smelt/images/build"
)

// recipeFlags are those of every verb that takes a recipe.
type recipeFlags struct {
	variant, lock, cache string
	own                  bool // the lock is kept in the cache
	mirrors              map[string]string
}

func (f *recipeFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.variant, "variant", "", "which of the recipe's images, where it has variants")
	cmd.Flags().StringVar(&f.lock, "lock", "", "the lock file (default: beside the recipe, named like the image)")
	cmd.Flags().StringVar(&f.cache, "cache", ".cache", "folder for what can be made again")
	cmd.Flags().StringToStringVar(&f.mirrors, "mirror", nil, "another address of a source, as NAME=URL; does not change the image")
}

func (f *recipeFlags) lockFile(r build.Recipe) string {
	if f.lock != "" {
		return f.lock
	}
	if f.own {
		return filepath.Join(f.cache, r.Title()+".lock")
	}
	return r.LockPath()
}

// recipes reads a recipe: the variant that was asked for, or all.
func (f *recipeFlags) recipes(file string) ([]build.Recipe, error) {
	r, err := build.ParseRecipe(file)
	if err != nil {
		return nil, usageError{err.Error(), ""}
	}
	if f.variant == "" {
		if all := r.Images(); f.lock == "" || len(all) == 1 {
			return all, nil
		}
		return nil, usageError{"--lock names one file, and the recipe has several images", "--variant"}
	}
	one, err := r.Image(f.variant)
	if err != nil {
		return nil, usageError{err.Error(), ""}
	}
	return []build.Recipe{one}, nil
}

// recipe reads the recipe of one image.
func (f *recipeFlags) recipe(file string) (build.Recipe, error) {
	r, err := build.ParseRecipe(file)
	if err != nil {
		return r, usageError{err.Error(), ""}
	}
	if r, err = r.Image(f.variant); err != nil {
		return r, usageError{err.Error(), "--variant"}
	}
	return r, nil
}

// locked reads the lock of one image, which must fit its recipe.
func (f *recipeFlags) locked(r build.Recipe) (build.Lock, error) {
	l, err := build.ParseLock(f.lockFile(r))
	if errors.Is(err, fs.ErrNotExist) {
		return l, usageError{fmt.Sprintf("image %s is not locked: there is no %s", r.Title(), f.lockFile(r)), f.command(r) + ", or build with --relock"}
	}
	if err == nil {
		err = l.Fits(r)
	}
	if err != nil {
		return l, usageError{err.Error(), f.command(r)}
	}
	return l, nil
}

// command is how to lock.
func (f *recipeFlags) command(r build.Recipe) string {
	s := "smelt image lock " + r.Path()
	if f.lock != "" {
		s += " --lock " + f.lock
	}
	if r.Variant != "" {
		s += " --variant " + r.Variant
	}
	return s
}

// relock resolves a recipe and writes its lock file.
func (f *recipeFlags) relock(ctx context.Context, r build.Recipe, dry bool, say io.Writer) error {
	file := f.lockFile(r)
	v := build.Resolver{Cache: f.cache, Mirrors: f.mirrors, Warn: func(s string) { fmt.Fprintln(say, "smelt:", s) }}
	fmt.Fprintf(say, "lock: %s: asking %d sources\n", r.Title(), len(r.Sources))
	l, err := v.Resolve(ctx, r)
	if err != nil {
		return err
	}
	old, err := build.ParseLock(file)
	if err != nil {
		old = build.Lock{}
	}
	var size, installed int64
	for _, p := range l.Packages {
		size += p.Size
		installed += p.Installed << 10
	}
	fmt.Fprintf(say, "lock: %s: %d packages, %d MiB, %d MiB installed, as of %s\n", r.Title(), len(l.Packages), size>>20, installed>>20,
		l.Date.Format("2006-01-02 15:04 UTC"))
	changes := build.PackageChanges(old.Packages, l.Packages)
	if len(old.Packages) > 0 {
		for _, c := range changes {
			fmt.Fprintf(say, "lock: %s: %s\n", r.Title(), c)
		}
		if len(changes) == 0 {
			fmt.Fprintf(say, "lock: %s: no package changed\n", r.Title())
		}
	}
	if dry {
		return nil
	}
	return replaceFile(file, l.Encode())
}

// replaceFile writes a file in one step.
func replaceFile(file string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+"-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone by then, when all went well
	defer f.Close()
	if _, err := f.Write(b); err != nil {
		return err
	}
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return os.Rename(f.Name(), file)
}

func newImageLock() *cobra.Command {
	var f recipeFlags
	var dry bool
	cmd := &cobra.Command{
		Use:   "lock RECIPE",
		Short: "Choose the exact packages of a recipe's images",
		Long: `Ask the recipe's sources, as they are now, for every package of its images: the
name, version, digest and place of each, and of the tools that make the disk.
They go into one lock file for each image, beside the recipe, which belongs into
version control with it. An image is built from its lock and nothing else. The
tools are of Debian 13: a mirror that stands in for debian has both.

Kernel, modules and driver are held against each other. Needs no root.`,
		Example: "  smelt image lock images/recipes/debian-12-lab.yaml\n  smelt image lock ai-node.yaml --mirror debian=http://mirror.site/debian --dry-run",
		Args:    exactly("RECIPE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			all, err := f.recipes(args[0])
			if err != nil {
				return err
			}
			whole, err := build.ParseRecipe(args[0])
			if err != nil {
				return err
			}
			if _, err := checkCards(cmd, whole); err != nil {
				return err
			}
			for _, r := range all {
				if err := f.relock(cmd.Context(), r, dry, cmd.ErrOrStderr()); err != nil {
					return err
				}
				if !dry {
					fmt.Fprintln(cmd.OutOrStdout(), f.lockFile(r))
				}
			}
			return nil
		},
	}
	f.add(cmd)
	cmd.Flags().BoolVar(&dry, "dry-run", false, "say what would change, and write nothing")
	return cmd
}

func newImageKey() *cobra.Command {
	var f recipeFlags
	var bin string
	var sim bool
	cmd := &cobra.Command{
		Use:   "key RECIPE",
		Short: "Print what an image follows from, as one digest: the key for a cache of a CI",
		Long: `Print the content key of an image: a digest of its recipe, its lock, Smelt's own
programs and the version of the builder. Images with the same key are the same,
so a CI need not build what it has under that key.`,
		Args: exactly("RECIPE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := f.recipe(args[0])
			if err != nil {
				return err
			}
			l, err := f.locked(r)
			if err != nil {
				return err
			}
			extra, err := agentFiles(bin, sim)
			if err != nil {
				return err
			}
			key, err := build.Key(r, l, extra)
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), key)
			return nil
		},
	}
	f.add(cmd)
	agentFlags(cmd, &bin, &sim)
	return cmd
}

// refit makes the lock that is missing or fits no more.
func (f *recipeFlags) refit(ctx context.Context, r build.Recipe, say io.Writer) error {
	l, err := build.ParseLock(f.lockFile(r))
	if err == nil {
		err = l.Fits(r)
	}
	if err == nil {
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		fmt.Fprintf(say, "lock: %v\n", err)
	}
	if err := os.MkdirAll(filepath.Dir(f.lockFile(r)), 0o755); err != nil {
		return err
	}
	return f.relock(ctx, r, false, say)
}
