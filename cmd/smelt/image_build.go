package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"smelt/images"
	"smelt/images/build"
)

func newImageBuild(state *string) *cobra.Command {
	var f recipeFlags
	var bin string
	var sim, dry bool
	cmd := &cobra.Command{
		Use:   "build RECIPE",
		Short: "Build the images of a recipe from their locks, sign them and put them into the store",
		Long: `Build the image of a recipe, or of each of its variants, from its lock file, sign
it with the site's key and put it into the store under its name. Every package is taken from the cache or
from where the lock says, and verified; the same lock gives the same image, bit
for bit. It needs root and a Debian host, which stays read-only to everything
that the recipe runs. What did not change is not built again.`,
		Example: "  sudo smelt image build images/recipes/debian-12-lab.yaml",
		Args:    exactly("RECIPE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			all, err := f.recipes(args[0])
			if err != nil {
				return err
			}
			extra, err := agentFiles(bin, sim)
			if err != nil {
				return err
			}
			// What is wrong with the last is said before the first is built.
			locks := make([]build.Lock, len(all))
			for i, r := range all {
				if f.own && !dry {
					if err := f.refit(cmd.Context(), r, cmd.ErrOrStderr()); err != nil {
						return err
					}
				}
				if locks[i], err = f.locked(r); err != nil {
					return err
				}
			}
			key, err := siteKey(*state)
			if err != nil {
				return err
			}
			st, err := images.OpenStore(filepath.Join(*state, "images"))
			if err != nil {
				return err
			}
			for i, r := range all {
				o := build.Options{Recipe: r, Lock: locks[i], Extra: extra, Cache: f.cache, Mirrors: f.mirrors, Out: st, Key: key}
				one := f.build
				if dry {
					one = sayPlan
				}
				if err := one(cmd, o); err != nil {
					return err
				}
			}
			return nil
		},
	}
	f.add(cmd)
	agentFlags(cmd, &bin, &sim)
	cmd.Flags().BoolVar(&f.own, "relock", false, "keep a lock in the cache, and make it anew where it fits no more or its packages are gone from the mirror")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "say what would be done, and do nothing")
	return cmd
}

// build builds one image, and prints its digest.
func (f *recipeFlags) build(cmd *cobra.Command, o build.Options) error {
	say := newStages(cmd.ErrOrStderr())
	o.Progress = say.show
	digest, info, err := build.Build(cmd.Context(), o)
	say.end()
	if f.own && errors.Is(err, build.ErrGone) {
		fmt.Fprintf(cmd.ErrOrStderr(), "smelt: %v\n", err)
		if err := f.relock(cmd.Context(), o.Recipe, false, cmd.ErrOrStderr()); err != nil {
			return err
		}
		if o.Lock, err = f.locked(o.Recipe); err != nil {
			return err
		}
		digest, info, err = build.Build(cmd.Context(), o)
		say.end()
	}
	if err != nil {
		return err
	}
	how := "built in " + info.Elapsed.Round(time.Second).String()
	if info.Hit {
		how = "nothing changed since it was built"
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "image %s %s: %s, kernel %s, %d MiB of data in %d MiB\n",
		o.Recipe.Title(), digest.Short(), how, info.Kernel, info.Data>>20, info.Compressed>>20)
	if info.Log != "" {
		fmt.Fprintf(cmd.ErrOrStderr(), "log: %s\n", info.Log)
	}
	fmt.Fprintln(cmd.OutOrStdout(), digest)
	return nil
}

// sayPlan says what a build would do.
func sayPlan(cmd *cobra.Command, o build.Options) error {
	p, err := o.Plan()
	if err != nil {
		return err
	}
	what := fmt.Sprintf("it would be built of %d packages, %d of which (%d MiB) are not in the cache", len(o.Lock.Packages), p.Fetch, p.Bytes>>20)
	if p.Hit {
		what = "it is there: nothing would be built"
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "image %s, as of %s: %s\n", o.Recipe.Title(), o.Lock.Date.Format(time.DateOnly), what)
	fmt.Fprintln(cmd.OutOrStdout(), p.Key)
	return nil
}

func agentFlags(cmd *cobra.Command, bin *string, sim *bool) {
	cmd.Flags().StringVar(bin, "bin", "", "folder with smelt-agent and smelt-gpu (default: where this program is)")
	cmd.Flags().BoolVar(sim, "sim", false, "add the simulated NVIDIA libraries, for a lab")
}

// agentFiles are ours in every image.
func agentFiles(bin string, sim bool) ([]build.Extra, error) {
	if bin == "" {
		exe, err := os.Executable()
		if err != nil {
			return nil, err
		}
		bin = filepath.Dir(exe)
	}
	files := []build.Extra{
		{Dest: "/usr/lib/smelt/smelt-agent", Host: filepath.Join(bin, "smelt-agent"), Mode: 0o755},
		{Dest: "/usr/lib/smelt/smelt-gpu", Host: filepath.Join(bin, "smelt-gpu"), Mode: 0o755},
	}
	if sim {
		for _, lib := range []string{"libnvidia-ml.so.1", "libcuda.so.1"} {
			files = append(files, build.Extra{Dest: "/usr/lib/smelt/sim/" + lib, Host: filepath.Join(bin, "sim", lib), Mode: 0o644})
		}
	}
	return files, nil
}

// stages shows the progress of a build: one line that is rewritten on a
// terminal, a line for each stage elsewhere.
type stages struct {
	out   io.Writer
	tty   bool
	last  string
	shown time.Time
}

func newStages(out io.Writer) *stages {
	f, ok := out.(*os.File)
	tty := false
	if ok {
		fi, err := f.Stat()
		tty = err == nil && fi.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb"
	}
	return &stages{out: out, tty: tty}
}

func (s *stages) show(p build.Progress) {
	now := time.Now()
	if s.tty {
		if now.Sub(s.shown) < 100*time.Millisecond && p.Stage == s.last {
			return
		}
		n := int(20 * p.Done)
		fmt.Fprintf(s.out, "\r\033[Kimage: %-9s [%s%s] %.60s", p.Stage, strings.Repeat("=", n), strings.Repeat(" ", 20-n), p.Line)
	} else if p.Stage != s.last || now.Sub(s.shown) >= 10*time.Second {
		fmt.Fprintf(s.out, "image: %-9s %3.0f%% %s\n", p.Stage, 100*p.Done, p.Line)
	} else {
		return
	}
	s.last, s.shown = p.Stage, now
}

func (s *stages) end() {
	if s.tty && s.last != "" {
		fmt.Fprint(s.out, "\r\033[K")
	}
}
