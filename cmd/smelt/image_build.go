package main

import (
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
	var cache, bin, variant string
	var sim bool
	cmd := &cobra.Command{
		Use:   "build RECIPE",
		Short: "Build the image of a recipe, sign it and put it into the store",
		Long: `Build the image of a recipe, sign it with the site's key and put it into the
store under the recipe's name. It needs root and a Debian host; the host stays
read-only to everything the recipe runs. What did not change is not built again.`,
		Example: "  sudo smelt image build images/recipes/debian-12-lab.yaml",
		Args:    exactly("RECIPE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			recipe, err := recipeOf(args[0], variant)
			if err != nil {
				return err
			}
			if bin == "" {
				exe, err := os.Executable()
				if err != nil {
					return err
				}
				bin = filepath.Dir(exe)
			}
			key, err := siteKey(*state)
			if err != nil {
				return err
			}
			st, err := images.OpenStore(filepath.Join(*state, "images"))
			if err != nil {
				return err
			}
			say := newStages(cmd.ErrOrStderr())
			digest, info, err := build.Build(cmd.Context(), build.Options{
				Recipe: recipe, Extra: agentFiles(bin, sim), Cache: cache, Out: st, Key: key, Progress: say.show,
			})
			say.end()
			if err != nil {
				return err
			}
			how := "built in " + info.Elapsed.Round(time.Second).String()
			if info.Hit {
				how = "nothing changed since it was built"
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "image %s %s: %s, kernel %s, %d MiB of data in %d MiB\n",
				recipe.Title(), digest.Short(), how, info.Kernel, info.Data>>20, info.Compressed>>20)
			fmt.Fprintln(cmd.OutOrStdout(), digest)
			return nil
		},
	}
	cmd.Flags().StringVar(&cache, "cache", ".cache", "folder for what can be made again")
	cmd.Flags().StringVar(&bin, "bin", "", "folder with smelt-agent and smelt-gpu (default: where this program is)")
	cmd.Flags().StringVar(&variant, "variant", "", "which of the recipe's images, where it has variants")
	cmd.Flags().BoolVar(&sim, "sim", false, "add the simulated NVIDIA libraries, for a lab")
	return cmd
}

// recipeOf reads the recipe of one image.
func recipeOf(file, variant string) (build.Recipe, error) {
	r, err := build.ParseRecipe(file)
	if err != nil {
		return r, err
	}
	return r.Image(variant)
}

// agentFiles are ours in every image.
func agentFiles(bin string, sim bool) []build.Extra {
	files := []build.Extra{
		{Dest: "/usr/lib/smelt/smelt-agent", Host: filepath.Join(bin, "smelt-agent"), Mode: 0o755},
		{Dest: "/usr/lib/smelt/smelt-gpu", Host: filepath.Join(bin, "smelt-gpu"), Mode: 0o755},
	}
	if sim {
		for _, lib := range []string{"libnvidia-ml.so.1", "libcuda.so.1"} {
			files = append(files, build.Extra{Dest: "/usr/lib/smelt/sim/" + lib, Host: filepath.Join(bin, "sim", lib), Mode: 0o644})
		}
	}
	return files
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
