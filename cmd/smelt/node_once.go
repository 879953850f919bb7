package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"smelt/internal/api"
	"smelt/inventory"
)

// onceVerb is a boot that an operator asks of a node.
type onceVerb struct {
	verb, short, example string
	life                 time.Duration
}

func newNodeRescue(o *options) *cobra.Command {
	return newNodeOnce(o, onceVerb{
		verb: inventory.BootRescue, life: 4 * time.Hour,
		short: "Boot a node once into the RAM system, to log in by ssh; its disks are read-only",
		example: "  smelt node rescue rig-01                    # with the keys that site.yaml names under rescue\n" +
			"  smelt node rescue rig-01 --for 1h --write    # its disks can be written\n  smelt node rescue rig-01 --end",
	})
}

func newNodeMemtest(o *options) *cobra.Command {
	return newNodeOnce(o, onceVerb{
		verb: inventory.BootMemtest, life: 24 * time.Hour,
		short:   "Boot a node once into a memory test (memtest86+)",
		example: "  smelt node memtest rig-01 --for 8h    # what it finds is on its screen and its serial line\n  smelt node memtest rig-01 --end",
	})
}

func newNodeOnce(o *options, v onceVerb) *cobra.Command {
	var life time.Duration
	var reason, confirm string
	var write, end, stay, dry bool
	c := &cobra.Command{
		Use: v.verb + " NODE", Short: v.short, Example: v.example, Args: exactly("NODE"), ValidArgsFunction: o.nodeNames,
		RunE: func(c *cobra.Command, args []string) error {
			node := args[0]
			params := map[string]string{"reason": reason}
			done := v.verb + " ended"
			if end {
				params["end"] = "yes"
			} else {
				if life < time.Minute || life > inventory.MaxOnce {
					return usageError{fmt.Sprintf("%s for %s: a minute at least, %s at most", v.verb, life, inventory.MaxOnce), fmt.Sprintf("smelt node %s %s --for %s", v.verb, node, v.life)}
				}
				params["for"] = life.String()
				done = fmt.Sprintf("boots %s with its next start, until %s", v.verb, time.Now().Add(life).Local().Format("2006-01-02 15:04"))
				if !stay {
					params["restart"] = "yes"
				}
				if write {
					params["write"] = "yes"
				}
				if v.verb == inventory.BootRescue {
					done += ". Where to log in: smelt node show " + node
				}
			}
			if !dry {
				if err := confirmed(c, confirm, node, fmt.Sprintf("%s restarts %s.", v.verb, node)); err != nil {
					return err
				}
				params["confirm"] = node
			}
			return o.ask(c, dry, node, v.verb, params, done)
		},
	}
	f := c.Flags()
	f.DurationVar(&life, "for", v.life, "how long: it ends then, whatever it is doing")
	f.StringVar(&reason, "reason", "", "why")
	f.BoolVar(&end, "end", false, "end it now")
	f.BoolVar(&stay, "no-restart", false, "do not restart it: somebody else does")
	f.StringVar(&confirm, "confirm", "", "the node's name, instead of typing it")
	f.BoolVarP(&dry, "dry-run", "n", false, "only say what would be done")
	if v.verb == inventory.BootRescue {
		f.BoolVar(&write, "write", false, "let its disks be written")
	}
	return c
}

// approveMemory approves a node that runs from memory: there is no disk to choose.
func approveMemory(o *options, c *cobra.Command, n inventory.Node, params map[string]string, confirm string, dry bool) error {
	node := string(n.ID)
	fmt.Fprintf(c.ErrOrStderr(), "%s at %s is %s. It will run its image from memory; no disk of it is touched.\n", node, dash(string(n.Spec.Position)), n.State)
	if n.Hardware == nil {
		return fmt.Errorf("%s was never inspected (%w): smelt node show %s", node, api.ErrConflict, node)
	}
	if dry {
		return say(c, nil, "Would approve %s (dry run: nothing was done)", node)
	}
	if err := confirmed(c, confirm, node, "Approving "+node+" restarts it."); err != nil {
		return err
	}
	params["hardware"], params["confirm"] = n.Hardware.Digest(), node
	return o.ask(c, false, node, "approve", params, "approved. Watch it with: smelt node events "+node+" --follow")
}
