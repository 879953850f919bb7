package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"smelt/internal/lab"
)

// labImage is the image that the lab's nodes get.
const labImage = "debian-12-lab"

func newLab() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "lab",
		Short: "A whole site on this machine: QEMU machines, virtual BMCs, a PDU, Slurm",
		Long: `A whole site on this machine, in its own network namespace: the real smelt
serve, three QEMU machines with no Smelt on them (one behind an IPMI BMC, one
behind a Redfish BMC, one rig behind a PDU outlet), and a real slurmctld.
It needs root. Graphics cards cannot be had in QEMU: what stands for them is
labelled simulated everywhere.`,
	}
	var o lab.Options
	cmd.PersistentFlags().StringVar(&o.Dir, "dir", ".lab", "folder of the lab")
	cmd.PersistentFlags().StringVar(&o.UI, "ui", "127.0.0.1:8480", "loopback address for API and pages")

	var recipe, cache string
	build := func(cmd *cobra.Command) error {
		exe, err := os.Executable()
		if err != nil {
			return err
		}
		if o.Dir, err = filepath.Abs(o.Dir); err != nil {
			return err
		}
		o.Bin, o.Image = filepath.Dir(exe), labImage
		o.Out = cmd.OutOrStdout()
		o.Log = slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelWarn}))
		if err := os.MkdirAll(o.State(), 0o755); err != nil {
			return err
		}
		if o.Cache, err = filepath.Abs(cache); err != nil {
			return err
		}
		// Built by the same commands that people use. The server in the lab
		// reaches no mirror, so its kernel is fetched ahead.
		for _, args := range [][]string{
			{"image", "build", recipe, "--relock",
				"--state", o.State(), "--cache", o.Cache, "--bin", o.Bin, "--sim"},
			{"image", "kernel", "--cache", o.Cache},
		} {
			c := exec.CommandContext(cmd.Context(), exe, args...)
			c.Stderr = cmd.ErrOrStderr()
			if err := c.Run(); err != nil {
				return fmt.Errorf("smelt %s: %w", strings.Join(args[:2], " "), err)
			}
		}
		return nil
	}
	recipeFlags := func(c *cobra.Command) {
		c.Flags().StringVar(&recipe, "recipe", "images/recipes/debian-12-lab.yaml", "recipe of the lab's image")
		c.Flags().StringVar(&cache, "cache", ".cache", "folder for what is built once and used again")
	}

	var exit bool
	var timeout time.Duration
	demo := &cobra.Command{
		Use:   "demo",
		Short: "Convert three machines while you watch",
		Args:  exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			start := time.Now()
			if err := build(cmd); err != nil {
				return err
			}
			built := time.Since(start)
			l, err := lab.Up(ctx, o)
			if err != nil {
				return err
			}
			defer l.Close()
			fmt.Fprintf(o.Out, "\nPages: %s  (log in with the token in %s)\n\n", l.URL(), o.TokenFile())
			err = l.Demo(ctx, timeout)
			if err == nil {
				err = l.Cluster(ctx)
			}
			if ctx.Err() == nil {
				if serr := l.Summary(ctx, o.Out); serr != nil && err == nil {
					err = serr
				}
			}
			fmt.Fprintf(o.Out, "\nImage %s, conversion %s, together %s.\n",
				built.Round(time.Second), (time.Since(start) - built).Round(time.Second), time.Since(start).Round(time.Second))
			if err != nil {
				return fmt.Errorf("the demo did not end as it should: %w (logs: %s)", err, filepath.Join(o.Dir, "log"))
			}
			if exit {
				return nil
			}
			fmt.Fprintf(o.Out, "The lab stays up: %s\nTo take everything down: Ctrl-C here, or: sudo bin/smelt lab down\n", l.URL())
			<-ctx.Done()
			return nil
		},
	}
	demo.Flags().BoolVar(&exit, "exit", false, "take the lab down when the conversions ended")
	demo.Flags().DurationVar(&timeout, "limit", 25*time.Minute, "give up after this time")
	recipeFlags(demo)

	up := &cobra.Command{
		Use:   "up",
		Short: "Start the lab with its machines off, and keep it until Ctrl-C or lab down",
		Args:  exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := build(cmd); err != nil {
				return err
			}
			l, err := lab.Up(cmd.Context(), o)
			if err != nil {
				return err
			}
			defer l.Close()
			if err := l.PlugIn(cmd.Context()); err != nil {
				return err
			}
			fmt.Fprintf(o.Out, "The lab is up.\nPages: %s  (token in %s)\nTo use it from here:\n  export SMELT_SERVER=%s SMELT_TOKEN_FILE=%s\nTo take it down: Ctrl-C here, or: sudo bin/smelt lab down\n",
				l.URL(), o.TokenFile(), l.URL(), o.TokenFile())
			<-cmd.Context().Done()
			return nil
		},
	}
	recipeFlags(up)

	down := &cobra.Command{
		Use:   "down",
		Short: "Take the lab down: every process and namespace of it",
		Args:  exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), time.Minute)
			defer cancel()
			if _, err := lab.Owner(o.Dir); err != nil {
				fmt.Fprintln(cmd.ErrOrStderr(), err)
				return nil
			}
			return lab.Down(ctx, o.Dir)
		},
	}
	status := &cobra.Command{
		Use:   "status",
		Short: "Say whether a lab runs",
		Args:  exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			pid, err := lab.Owner(o.Dir)
			if err != nil {
				return errors.New(err.Error() + ": start one with: sudo bin/smelt lab demo")
			}
			fmt.Fprintf(cmd.OutOrStdout(), "a lab runs in %s (process %d), pages at http://%s\n", o.Dir, pid, o.UI)
			return nil
		},
	}
	cmd.AddCommand(demo, up, down, status)
	return cmd
}
