package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"smelt/internal/api"
	"smelt/inventory"
)

func newNode(o *options) *cobra.Command {
	return group("node", "Look at nodes and act on them",
		newNodeList(o), newNodeShow(o), newNodeApprove(o), newNodeWipe(o), newNodePower(o), newNodeEvents(o), newNodeLocate(o), newNodeConsole(o), newNodeSensors(o), newNodeEventLog(o), newNodeRescue(o), newNodeMemtest(o),
		nodeVerb(o, "reject", "Reject a node: it is offered nothing but its own disk", "rejected", true, false),
		nodeVerb(o, "hold", "Hold a node: nothing touches it until it is released", "held", true, false),
		nodeVerb(o, "release", "Lift a hold", "released", false, false),
		nodeVerb(o, "reinspect", "Inspect a node again", "will be inspected again", false, false),
		nodeVerb(o, "retire", "Retire a node for good", "retired", false, true),
	)
}

func newNodeList(o *options) *cobra.Command {
	var state string
	var stuck bool
	c := &cobra.Command{
		Use: "list", Short: "List nodes: state, since when, what they wait for and on whom",
		Example: "  smelt node list\n  smelt node list --state needs-work -o wide\n  smelt node list --stuck -o name",
		Args:    exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			return o.call(c, func(ctx context.Context, cl *api.Client) error {
				list, err := cl.Nodes(ctx)
				if err != nil {
					return err
				}
				if state != "" {
					st, err := inventory.ParseState(state)
					if err != nil {
						return usageError{err.Error(), "states are " + states()}
					}
					list.Items = slices.DeleteFunc(list.Items, func(v api.NodeView) bool { return v.Node.State != st })
				}
				if stuck {
					list.Items = slices.DeleteFunc(list.Items, func(v api.NodeView) bool { return !v.Stuck })
				}
				return o.show(c, nodeListing(list))
			})
		},
	}
	c.Flags().StringVar(&state, "state", "", "only nodes in this state")
	c.Flags().BoolVar(&stuck, "stuck", false, "only nodes past the deadline of their state")
	return c
}

func states() string {
	var out []string
	for _, s := range inventory.States() {
		out = append(out, s.String())
	}
	return strings.Join(out, ", ")
}

func nodeListing(list api.NodeList) listing {
	l := listing{doc: list, cols: []string{"node", "position", "state", "since", "who", "waits for", "progress", "class", "power", "verdict", "mac", "image"}, wide: 5}
	for _, v := range list.Items {
		n := v.Node
		state := n.State.String()
		if v.Stuck {
			state += " STUCK"
		}
		if n.Hold != nil {
			state += " HELD"
		}
		if v.Simulated {
			state += " SIMULATED"
		}
		verdict, mac := "-", "-"
		if n.Verdict != nil {
			verdict = n.Verdict.Answer
		}
		if len(n.MACs) > 0 {
			mac = n.MACs[0].String()
		}
		l.rows = append(l.rows, []string{
			string(n.ID), dash(string(n.Spec.Position)), state, span(time.Since(n.Since)), v.WaitsOn, v.WaitsFor, dash(doing(v.Progress)),
			dash(n.Spec.Class), dash(n.Power.On), verdict, mac, dash(short(n.Image)),
		})
	}
	return l
}

func doing(p *api.Progress) string {
	if p == nil {
		return ""
	}
	return strings.TrimSpace(fmt.Sprintf("%.0f%% %s", p.Done*100, p.Doing))
}

func short(digest string) string {
	if len(digest) > 12 {
		return digest[:12]
	}
	return digest
}

func newNodeShow(o *options) *cobra.Command {
	var boots bool
	c := &cobra.Command{
		Use: "show NODE", Short: "Show one node with its history", Args: exactly("NODE"), ValidArgsFunction: o.nodeNames,
		Example: "  smelt node show rig-01\n  smelt node show rig-01 --boot    # why did this machine get this?\n  smelt node show 7QX2             # the code on its screen",
		RunE: func(c *cobra.Command, args []string) error {
			return o.call(c, func(ctx context.Context, cl *api.Client) error {
				v, err := cl.Node(ctx, inventory.NodeID(args[0]))
				if err != nil {
					return err
				}
				if o.output == "table" || o.output == "wide" {
					return describe(c.OutOrStdout(), v, o.output == "wide", boots)
				}
				l := nodeListing(api.NodeList{Items: []api.NodeView{v}})
				l.doc = v
				return o.show(c, l)
			})
		},
	}
	c.Flags().BoolVar(&boots, "boot", false, "every network boot event that is remembered, not the last 10")
	return c
}

// describe tells one node as text.
func describe(out io.Writer, v api.NodeView, all, boots bool) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	line := func(key, format string, args ...any) {
		fmt.Fprintf(w, "%s\t%s\n", key, strings.Map(printable, fmt.Sprintf(format, args...)))
	}
	n := v.Node
	line("node", "%s", n.ID)
	if v.Code != "" {
		line("code", "%s", v.Code)
	}
	line("position", "%s", dash(string(n.Spec.Position)))
	line("state", "%s for %s", n.State, span(time.Since(n.Since)))
	line("waits for", "%s (%s)", v.WaitsFor, v.WaitsOn)
	if !n.Deadline.IsZero() {
		note := ""
		if v.Stuck {
			note = ", passed"
		}
		line("deadline", "%s%s", n.Deadline.Local().Format("2006-01-02 15:04"), note)
	}
	if v.Try != "" {
		line("try next", "%s", v.Try)
	}
	if p := doing(v.Progress); p != "" {
		line("progress", "%s", p)
	}
	if p := n.Power; p.On != "" {
		line("power", "%s, confirmed %s ago by %s", p.On, span(time.Since(p.At)), dash(p.Via))
		if p.Detail != "" {
			line("", "%s", p.Detail)
		}
	}
	if n.Spec.Circuit != "" {
		line("circuit", "%s", n.Spec.Circuit)
	}
	for _, s := range n.Shed {
		line("taken", "%s", s)
	}
	for _, k := range v.Keys {
		line("key", "%s %s (%s)", dash(k.Pin), k.Word(), k.Via)
		if k.Other != "" {
			line("", "another key answers now and is refused: %s", k.Other)
		}
	}
	if n.Hold != nil {
		line("held", "by %s: %s", n.Hold.Owner, n.Hold.Reason)
	}
	if b := n.Once; b != nil {
		line("asked for", "%s by %s until %s %s", b.Boot, b.By, b.Until.Local().Format("2006-01-02 15:04"), b.Reason)
	}
	if n.Root == inventory.RootRAM {
		line("runs from", "memory: it loads its image at each start, and no disk is touched")
	}
	if n.Failure != nil {
		line("failed", "%s: %s %s", n.Failure.Step, n.Failure.Cause, n.Failure.Detail)
	}
	if v.Simulated {
		line("simulated", "some of its cards are not there: results prove nothing outside a lab")
	}
	if h := n.Hardware; h != nil {
		line("board", "%s %s %s", h.Board.Vendor, h.Board.Product, h.Board.Serial)
		for _, g := range h.GPUs {
			model := g.Model
			if model == "" {
				model = g.Vendor + ":" + g.Device
			}
			width := "unknown"
			if g.LinkWidth() > 0 {
				width = fmt.Sprintf("x%d", g.LinkWidth())
			}
			line("card", "%s %s at %s, link %s", dash(g.Slot), model, g.Address, width)
		}
		for _, d := range h.Disks {
			line("disk", "%s %d GB %s (%s), found on it: %s%s", d.Name, d.Size/1e9, d.Model, d.DiskID, dash(strings.Join(d.Signatures, ", ")), ownErase(d))
		}
	}
	if was := n.Salvage; was != nil {
		line("was", "%s worker %s; saved %s (secrets redacted)", was.MinerOS, was.WorkerName, strings.Join(slices.Sorted(maps.Keys(was.Files)), ", "))
	}
	if n.Verdict != nil {
		line("verdict", "%s for %s", n.Verdict.Answer, n.Verdict.Target)
		for _, r := range n.Verdict.Reasons {
			if !r.OK || all {
				line("", "%s: %s, wants %s. %s", r.Item, r.Got, r.Want, r.Fix)
			}
		}
	}
	for _, t := range v.Tasks {
		if t.Open() {
			line("task", "%s: %s (%s)", t.ID, t, t.Why)
		}
	}
	for _, w := range v.Wipes {
		line("wiped", "certificate %s %s", w.ID, w.At.Local().Format("2006-01-02 15:04"))
	}
	for _, r := range v.Reports {
		line("report", "%s %s %s", r.ID, r.Answer, r.At.Local().Format("2006-01-02 15:04"))
	}
	trace := v.Boot
	if !boots && len(trace) > 10 {
		trace = trace[len(trace)-10:]
	}
	for _, e := range trace {
		line("boot", "%s", bootLine(e))
	}
	events := v.Events
	if !all && len(events) > 10 {
		events = events[len(events)-10:]
	}
	for _, e := range events {
		line("event", "%s", eventLine(e))
	}
	return w.Flush()
}

// ownErase says how a drive can erase itself.
func ownErase(d inventory.Disk) string {
	if d.Erase == "" {
		return ""
	}
	return "; erases itself: " + d.Erase
}

// bootLine says what the machine asked, what it got, and why.
func bootLine(e api.BootEvent) string {
	s := fmt.Sprintf("%s %s: %s", e.At.Local().Format("2006-01-02 15:04:05"), e.Asked, e.Answer)
	if e.Why != "" {
		s += "; " + e.Why
	}
	if e.Times > 1 {
		s += fmt.Sprintf(" (%d times in %s)", e.Times, span(e.At.Sub(e.Since)))
	}
	return s
}

func eventLine(e inventory.Event) string {
	what := string(e.Kind)
	if e.To != 0 {
		what = e.To.String()
	}
	return fmt.Sprintf("%s %s by %s %s", e.At.Local().Format("2006-01-02 15:04:05"), what, e.Actor, e.Reason)
}

// ask sends an action on a node, or only says what it would send.
func (o *options) ask(c *cobra.Command, dry bool, node, verb string, params map[string]string, done string) error {
	maps.DeleteFunc(params, func(_, v string) bool { return v == "" })
	return o.call(c, func(ctx context.Context, cl *api.Client) error {
		if dry {
			v, err := cl.Node(ctx, inventory.NodeID(node))
			return say(c, err, "Would %s %s, which is %s (dry run: nothing was done)", verb, node, v.Node.State)
		}
		_, err := cl.Do(ctx, inventory.NodeID(node), verb, params)
		return say(c, err, "%s %s", node, done)
	})
}

func newNodeApprove(o *options) *cobra.Command {
	var image, profile, wipe, target, force, confirm string
	var allow []string
	var all, dry bool
	c := &cobra.Command{
		Use: "approve NODE", Short: "Approve the conversion of a node: a disk of it will be wiped",
		Example: "  smelt node approve rig-01                     # shows the disks and asks for the name\n  smelt node approve rig-01 --confirm=rig-01    # in a script",
		Args:    exactly("NODE"), ValidArgsFunction: o.nodeNames,
		RunE: func(c *cobra.Command, args []string) error {
			var n inventory.Node
			err := o.call(c, func(ctx context.Context, cl *api.Client) error {
				v, err := cl.Node(ctx, inventory.NodeID(args[0]))
				n = v.Node
				return err
			})
			if err != nil {
				return err
			}
			if n.Spec.Root == inventory.RootRAM {
				if wipe != "" || target != "" || all || len(allow) > 0 {
					return usageError{args[0] + " runs from memory: there is no disk to choose or to wipe", "smelt node approve " + args[0]}
				}
				return approveMemory(o, c, n, map[string]string{"image": image, "profile": profile, "force": force}, confirm, dry)
			}
			w := c.ErrOrStderr()
			targets, spared := api.Targets(n.Hardware)
			if len(targets) == 0 {
				return fmt.Errorf("%s is %s and has no disk that could take an image (%w): smelt node show %s", args[0], n.State, api.ErrConflict, args[0])
			}
			if target == "" {
				target = targets[0].Key
			}
			if !slices.ContainsFunc(targets, func(t api.Target) bool { return t.Key == target }) {
				return usageError{fmt.Sprintf("%s has no disk %q that could take an image", args[0], target), "smelt node show " + args[0]}
			}
			diskLines(w, n, targets, spared, func(t api.Target) bool { return all || t.Key == target })
			if dry {
				return say(c, nil, "Would approve %s (dry run: nothing was done)", args[0])
			}
			if err := confirmed(c, confirm, args[0], "Approving "+args[0]+" wipes what is marked."); err != nil {
				return err
			}
			// The server refuses when the hardware is no longer what was shown here.
			params := map[string]string{
				"image": image, "profile": profile, "wipe": wipe, "target": target, "force": force,
				"allow": strings.Join(allow, ","), "hardware": n.Hardware.Digest(), "confirm": args[0],
			}
			if all {
				params["disks"] = "all"
			}
			return o.ask(c, false, args[0], "approve", params, "approved. Watch it with: smelt node events "+args[0]+" --follow")
		},
	}
	f := c.Flags()
	f.StringVar(&image, "image", "", "another image than its class has")
	f.StringVar(&profile, "profile", "", "another burn-in profile than its class has")
	f.StringVar(&wipe, "wipe", "", "another way to wipe than its class has: metadata, discard, overwrite, secure or purge")
	f.StringVar(&target, "target", "", "disk for the image: its serial, WWN or path; the largest one without foreign data when left out")
	f.BoolVar(&all, "all-disks", false, "wipe its other internal disks too")
	f.StringSliceVar(&allow, "allow", nil, "foreign data that may be wiped too, for example zfs_member")
	f.StringVar(&force, "force", "", "reason to convert it against its verdict")
	f.StringVar(&confirm, "confirm", "", "the node's name, instead of typing it")
	f.BoolVarP(&dry, "dry-run", "n", false, "only say what would be done")
	return c
}

// diskLines says what would become of each disk of a node.
func diskLines(w io.Writer, n inventory.Node, targets []api.Target, spared []inventory.Disk, wiped func(api.Target) bool) {
	fmt.Fprintf(w, "%s at %s is %s. Its disks:\n", n.ID, dash(string(n.Spec.Position)), n.State)
	for _, t := range targets {
		what := "left alone"
		if wiped(t) {
			what = "WILL BE WIPED"
		}
		diskLine(w, t.Disk, what)
	}
	for _, d := range spared {
		diskLine(w, d, "never touched")
	}
}

func diskLine(w io.Writer, d inventory.Disk, what string) {
	fmt.Fprintln(w, strings.Map(printable, fmt.Sprintf("  %-13s %s %d GB %s, %s, found on it: %s%s", what, d.Name, d.Size/1e9, d.Model, d.DiskID, dash(strings.Join(d.Signatures, ", ")), ownErase(d))))
}

func newNodePower(o *options) *cobra.Command {
	var confirm string
	var dry, force bool
	verbs := []string{"on", "off", "softoff", "cycle"}
	c := &cobra.Command{
		Use: "power NODE on|off|softoff|cycle", Short: "Switch a node, and confirm that it switched", Args: exactly("NODE", "VERB"),
		ValidArgsFunction: func(c *cobra.Command, args []string, s string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return verbs, cobra.ShellCompDirectiveNoFileComp
			}
			return o.nodeNames(c, args, s)
		},
		RunE: func(c *cobra.Command, args []string) error {
			node, verb := args[0], args[1]
			if verb == "soft-off" || verb == "soft" {
				verb = "softoff"
			}
			if !slices.Contains(verbs, verb) {
				next := "use one of " + strings.Join(verbs, ", ")
				if verb == "status" {
					next = "smelt power status " + node
				}
				return usageError{fmt.Sprintf("power has no verb %q", verb), next}
			}
			params := map[string]string{"verb": verb}
			if force {
				params["force"] = "yes"
			}
			if verb != "on" && !dry {
				if err := confirmed(c, confirm, node, "Power "+verb+" stops what runs on "+node+"."); err != nil {
					return err
				}
				params["confirm"] = node
			}
			return o.ask(c, dry, node, "power", params, "power "+verb+": confirmed")
		},
	}
	c.Flags().StringVar(&confirm, "confirm", "", "the node's name, instead of typing it")
	c.Flags().BoolVar(&force, "force", false, "even if that cuts short a wipe, an image, a test or jobs")
	c.Flags().BoolVarP(&dry, "dry-run", "n", false, "only say what would be done")
	return c
}

// nodeVerb is an action on a node that needs at most a reason or the node's name.
func nodeVerb(o *options, verb, summary, done string, needReason, needName bool) *cobra.Command {
	var reason, confirm string
	var dry bool
	c := &cobra.Command{
		Use: verb + " NODE", Short: summary, Args: exactly("NODE"), ValidArgsFunction: o.nodeNames,
		RunE: func(c *cobra.Command, args []string) error {
			params := map[string]string{"reason": reason}
			if needReason && reason == "" {
				return usageError{verb + " needs a reason: who comes next must know why", fmt.Sprintf("smelt node %s %s --reason '...'", verb, args[0])}
			}
			if needName && !dry {
				if err := confirmed(c, confirm, args[0], summary+": "+args[0]+"."); err != nil {
					return err
				}
				params["confirm"] = args[0]
			}
			return o.ask(c, dry, args[0], verb, params, done)
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why")
	c.Flags().BoolVarP(&dry, "dry-run", "n", false, "only say what would be done")
	if needName {
		c.Flags().StringVar(&confirm, "confirm", "", "the node's name, instead of typing it")
	}
	return c
}

func newNodeEvents(o *options) *cobra.Command {
	var follow bool
	c := &cobra.Command{
		Use: "events [NODE]", Short: "Print the events of a node, or watch those of the site",
		Example: "  smelt node events rig-01\n  smelt node events --follow\n  smelt node events rig-01 --follow -o json",
		Args:    atMost(1), ValidArgsFunction: o.nodeNames,
		RunE: func(c *cobra.Command, args []string) error {
			var node inventory.NodeID
			if len(args) > 0 {
				node = inventory.NodeID(args[0])
			} else if !follow {
				return usageError{"name a node, or watch all of them", "smelt node events --follow"}
			}
			print := func(e inventory.Event) error {
				if o.output == "json" { // one document a line: a stream has no end
					return json.NewEncoder(c.OutOrStdout()).Encode(e)
				}
				_, err := fmt.Fprintln(c.OutOrStdout(), string(e.Node), strings.Map(printable, eventLine(e)))
				return err
			}
			var seq uint64
			err := o.call(c, func(ctx context.Context, cl *api.Client) error {
				if node == "" {
					site, err := cl.Site(ctx)
					seq = site.Seq
					return err
				}
				v, err := cl.Node(ctx, node)
				for _, e := range v.Events {
					if err := print(e); err != nil {
						return err
					}
					seq = e.Seq
				}
				return err
			})
			if err != nil || !follow {
				return err
			}
			cl, err := o.client()
			if err != nil {
				return err
			}
			err = cl.Events(c.Context(), seq, func(n api.Notice) error {
				if n.Event == nil || node != "" && n.Event.Node != node {
					return nil
				}
				return print(*n.Event)
			})
			if errors.Is(err, context.Canceled) {
				return err // an interrupt is how watching ends
			}
			return err
		},
	}
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on with new events")
	return c
}
