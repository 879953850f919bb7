package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"smelt/internal/api"
	"smelt/inventory"
)

func newNodeLocate(o *options) *cobra.Command {
	var off bool
	var span time.Duration
	c := &cobra.Command{
		Use: "locate NODE", Short: "Make a node findable at the rack, and say what to look for", Args: exactly("NODE"), ValidArgsFunction: o.nodeNames,
		Long: `Make a node findable at the rack, by the best there is: the light of its chassis
or outlet; else, where an agent runs on it, a drive light that blinks and a
banner on its screen. It says what to look for, and ends by itself. No outlet is
switched, and a node that works gets nothing that its work could feel.`,
		Example: "  smelt node locate rig-01\n  smelt node locate rig-01 --for 1h\n  smelt node locate rig-01 --off",
		RunE: func(c *cobra.Command, args []string) error {
			if off && span != 0 {
				return usageError{"--off and --for exclude each other", ""}
			}
			return o.call(c, func(ctx context.Context, cl *api.Client) error {
				l, err := cl.Locate(ctx, inventory.NodeID(args[0]), !off, span)
				if err != nil || off {
					return say(c, err, "%s is no longer looked for", args[0])
				}
				if o.output != "table" {
					return o.show(c, locateListing(l))
				}
				return locateText(c, l)
			})
		},
	}
	c.Flags().BoolVar(&off, "off", false, "end it")
	c.Flags().DurationVar(&span, "for", 0, "how long; 10m when left out, 4h at most")
	return c
}

func locateListing(l api.Locating) listing {
	out := listing{doc: l, cols: []string{"way", "used", "look for"}}
	for _, w := range l.Ways {
		used := "yes"
		if w.Error != "" {
			used = "no"
		}
		out.rows = append(out.rows, []string{w.Way, used, w.Look + w.Error})
	}
	return out
}

func locateText(c *cobra.Command, l api.Locating) error {
	out := c.OutOrStdout()
	line := func(format string, args ...any) {
		fmt.Fprintln(out, strings.Map(printable, fmt.Sprintf(format, args...)))
	}
	used := l.Used()
	if len(used) == 0 {
		line("%s: nothing of it can be lit; %s", l.Node, l.Otherwise)
	} else {
		line("%s: look for this: %s", l.Node, used[0])
		for _, u := range used[1:] {
			line("also: %s", u)
		}
		line("until %s; to end it: smelt node locate %s --off", l.Until.Local().Format("15:04:05"), l.Node)
	}
	for _, w := range l.Ways {
		if w.Error != "" {
			fmt.Fprintf(c.ErrOrStderr(), "no %s: %s\n", w.Way, strings.Map(printable, w.Error))
		}
	}
	if len(used) == 0 {
		return errNegative
	}
	return nil
}
