package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"smelt/internal/api"
	"smelt/inventory"
)

func newNodeWipe(o *options) *cobra.Command {
	var level, disk, confirm string
	var allow []string
	var dry bool
	c := &cobra.Command{
		Use: "wipe NODE", Short: "Wipe a node that leaves the site: all its internal disks, with a certificate; then it is retired",
		Long: "Wipe all internal disks of a node, or one of them, sign a certificate, and retire the node. Nothing is written to it afterwards. " +
			"A drive that cannot be wiped as thoroughly as --level says is a failure, never a weaker wipe.\n\n" +
			"Levels: metadata (signatures only), discard, overwrite (NIST SP 800-88r1: clear), secure (the drive's own erase), purge (only erases that NIST SP 800-88r1 calls purge).",
		Example: "  smelt node wipe rig-01 --level purge --confirm=rig-01\n  smelt certificate show rig-01 >rig-01.wipe.json",
		Args:    exactly("NODE"), ValidArgsFunction: o.nodeNames,
		RunE: func(c *cobra.Command, args []string) error {
			if level != "" && !slices.Contains(inventory.WipeLevels, level) {
				return usageError{fmt.Sprintf("there is no wipe level %q", level), "use one of " + strings.Join(inventory.WipeLevels, ", ")}
			}
			var n inventory.Node
			err := o.call(c, func(ctx context.Context, cl *api.Client) error {
				v, err := cl.Node(ctx, inventory.NodeID(args[0]))
				n = v.Node
				return err
			})
			if err != nil {
				return err
			}
			targets, spared := api.Targets(n.Hardware)
			if len(targets) == 0 {
				return fmt.Errorf("%s is %s and has no internal disk that could be wiped (%w): smelt node show %s", args[0], n.State, api.ErrConflict, args[0])
			}
			if disk != "" && !slices.ContainsFunc(targets, func(t api.Target) bool { return t.Key == disk }) {
				return usageError{fmt.Sprintf("%s has no internal disk %q", args[0], disk), "smelt node show " + args[0]}
			}
			diskLines(c.ErrOrStderr(), n, targets, spared, func(t api.Target) bool { return disk == "" || t.Key == disk })
			if dry {
				return say(c, nil, "Would wipe and retire %s (dry run: nothing was done)", args[0])
			}
			if err := confirmed(c, confirm, args[0], "Wiping "+args[0]+" destroys what is marked, and retires it."); err != nil {
				return err
			}
			// The server refuses when the hardware is no longer what was shown here.
			return o.ask(c, false, args[0], "wipe", map[string]string{
				"wipe": level, "target": disk, "allow": strings.Join(allow, ","), "hardware": n.Hardware.Digest(), "confirm": args[0],
			}, "will be wiped and retired. Then: smelt certificate show "+args[0])
		},
	}
	f := c.Flags()
	f.StringVar(&level, "level", "", "metadata, discard, overwrite, secure or purge; that of its class when left out")
	f.StringVar(&disk, "disk", "", "wipe this disk alone: its serial, WWN or path")
	f.StringSliceVar(&allow, "allow", nil, "foreign data that may be wiped too, for example zfs_member")
	f.StringVar(&confirm, "confirm", "", "the node's name, instead of typing it")
	f.BoolVarP(&dry, "dry-run", "n", false, "only say what would be done")
	return c
}
