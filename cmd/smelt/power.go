package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"smelt/internal/api"
	"smelt/inventory"
)

func newPower(o *options) *cobra.Command {
	return group("power", "The power of machines and of the hall",
		newPowerStatus(o), newPowerBudget(o),
		powerVerb(o, "on", "Switch a node on, and confirm that it is on"),
		powerVerb(o, "off", "Switch a node off, hard, and confirm that it is off"),
		powerVerb(o, "softoff", "Ask the system of a node to shut down, and confirm that it is off"),
		powerVerb(o, "cycle", "Switch a node off and on, each confirmed"),
		newPowerHold(o), newPowerResume(o), newPowerBlackout(o), newPowerRelease(o),
		newPowerShed(o), newPowerCurtail(o), newPowerProve(o),
	)
}

// What people type for a verb elsewhere.
var aliases = map[string][]string{"softoff": {"soft-off", "soft"}}

// powerVerb is node power under the noun that people look for first.
func powerVerb(o *options, verb, short string) *cobra.Command {
	inner := newNodePower(o)
	c := &cobra.Command{
		Use: verb + " NODE", Short: short, Aliases: aliases[verb], Args: exactly("NODE"), ValidArgsFunction: o.nodeNames,
		RunE: func(c *cobra.Command, args []string) error { return inner.RunE(c, []string{args[0], verb}) },
	}
	c.Flags().AddFlagSet(inner.Flags())
	return c
}

func newPowerStatus(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "status [NODE...]", Short: "Each node: on or off as confirmed, what it draws, and what was taken from it for want of power",
		Args: atMost(1 << 20), ValidArgsFunction: o.nodeNames,
		Long: `Each node: on or off as it was confirmed last, what it draws and how old that
reading is, the state of its circuit, and what was taken from it for want of
power. Above the table: a hold, a blackout, a curtailment; below it: who cannot
be read, and why.`,
		RunE: func(c *cobra.Command, args []string) error {
			return o.call(c, func(ctx context.Context, cl *api.Client) error {
				v, err := cl.Power(ctx)
				if err != nil {
					return err
				}
				for _, line := range powerLines(v, time.Now()) {
					fmt.Fprintln(c.ErrOrStderr(), strings.Map(printable, line))
				}
				if v.Machines, err = machinesNamed(v.Machines, args); err != nil {
					return err
				}
				if err := o.show(c, powerListing(v, time.Now())); err != nil {
					return err
				}
				for _, line := range unreadLines(v.Machines) {
					fmt.Fprintln(c.ErrOrStderr(), strings.Map(printable, line))
				}
				return nil
			})
		},
	}
}

// machinesNamed are the machines of those names, all without a name.
func machinesNamed(all []api.MachinePower, names []string) ([]api.MachinePower, error) {
	if len(names) == 0 {
		return all, nil
	}
	var out []api.MachinePower
	for _, n := range names {
		i := slices.IndexFunc(all, func(m api.MachinePower) bool { return string(m.Node) == n })
		if i < 0 {
			return nil, usageError{fmt.Sprintf("there is no node %q", n), "smelt node list"}
		}
		out = append(out, all[i])
	}
	return out, nil
}

// unreadShown is how many machines that cannot be read are told of below a table.
const unreadShown = 5

// unreadLines say who cannot be read, and why.
func unreadLines(all []api.MachinePower) (out []string) {
	more := 0
	for _, m := range all {
		switch {
		case m.ReadError == "":
		case len(out) < unreadShown:
			out = append(out, fmt.Sprintf("%s cannot be read: %s", m.Node, m.ReadError))
		default:
			more++
		}
	}
	if more > 0 {
		out = append(out, fmt.Sprintf("%d more cannot be read: smelt power status -o wide", more))
	}
	return out
}

func powerListing(v api.PowerView, now time.Time) listing {
	circuit := map[string]string{}
	for _, l := range v.Levels {
		circuit[l.Name] = l.State
	}
	l := listing{doc: v, cols: []string{"node", "position", "power", "age", "watts", "read", "circuit", "circuit state", "taken", "nameplate", "learned", "by", "reading"}, wide: 4}
	for _, m := range v.Machines {
		watts, read, learned := "-", "-", "-"
		if !m.WattsAt.IsZero() {
			watts, read = fmt.Sprintf("%.0f", m.Watts), span(now.Sub(m.WattsAt))
		}
		if m.Learned > 0 {
			learned = fmt.Sprintf("%.0f", m.Learned)
		}
		age := "-"
		if !m.At.IsZero() {
			age = span(now.Sub(m.At))
		}
		var taken []string
		for _, s := range m.Shed {
			taken = append(taken, s.Do+" by "+s.By)
		}
		lie := m.Lie
		if lie != "" {
			watts += " NOT BELIEVED"
		}
		l.rows = append(l.rows, []string{
			string(m.Node), dash(string(m.Position)), m.On, age, watts, read, dash(m.Circuit), dash(circuit[m.Circuit]), dash(strings.Join(taken, ", ")),
			fmt.Sprintf("%.0f", m.Nameplate), learned, dash(m.Via), dash(cmp.Or(lie, m.ReadError)),
		})
	}
	return l
}

// powerLines tell what was decided about the power of the site.
func powerLines(v api.PowerView, now time.Time) []string {
	var out []string
	if b := v.Blackout; b != nil && b.Released.IsZero() {
		out = append(out, fmt.Sprintf("BLACKOUT since %s: %s; %d machines wait; next: smelt power release", b.At.Local().Format(time.TimeOnly), b.Why, len(b.Lost)))
	} else if b != nil && !b.Past(now) {
		out = append(out, fmt.Sprintf("after the blackout: %d of %d machines are back, %d need a person", len(b.Back), len(b.Lost), len(b.Failed)))
	}
	if h := v.Hold; h != nil {
		out = append(out, fmt.Sprintf("HELD by %s for %s: %s; next: smelt power resume", h.By, span(now.Sub(h.At)), h.Reason))
	}
	if c := v.Curtail; c != nil {
		out = append(out, curtailLine(*c, now))
	}
	return out
}

func curtailLine(c inventory.Curtailment, now time.Time) string {
	s := fmt.Sprintf("curtailed by %s: %s of %s are given back", c.By, inventory.Watts(c.Given()), inventory.Watts(c.Watts))
	switch {
	case c.Seen.IsZero():
		s += ", not measured yet"
	default:
		s += fmt.Sprintf(", measured %s ago", span(now.Sub(c.Seen)))
	}
	switch {
	case !c.Met.IsZero():
		s += fmt.Sprintf("; met after %s", span(c.Met.Sub(c.At)))
	case c.Late:
		s += fmt.Sprintf("; LATE: it was due at %s", c.Due.Local().Format(time.TimeOnly))
	default:
		s += fmt.Sprintf("; due at %s", c.Due.Local().Format(time.TimeOnly))
	}
	if !c.Until.IsZero() {
		s += "; until " + c.Until.Local().Format("2006-01-02 15:04")
	}
	return s
}

func newPowerBudget(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "budget", Short: "The power tree: what is granted, measured and free on each circuit", Args: exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			return o.call(c, func(ctx context.Context, cl *api.Client) error {
				v, err := cl.Power(ctx)
				if err != nil {
					return err
				}
				l := listing{
					doc:  map[string]any{"apiVersion": api.Version, "kind": "PowerBudget", "items": v.Levels},
					cols: []string{"circuit", "kind", "granted w", "measured w", "limit w", "free w", "state", "nodes", "parent", "why"}, wide: 2,
				}
				drawn := o.output == "table" || o.output == "wide"
				for _, x := range inTree(v.Levels) {
					name := x.level.Name
					if drawn {
						name = x.branch + name
					}
					measured := "-"
					if x.level.Measured > 0 {
						measured = fmt.Sprintf("%.0f", x.level.Measured)
					}
					l.rows = append(l.rows, []string{name, x.level.Kind, fmt.Sprintf("%.0f", x.level.Granted), measured, fmt.Sprintf("%.0f", x.level.Limit),
						fmt.Sprintf("%.0f", x.level.Free), x.level.State, fmt.Sprint(len(x.level.Holders)), dash(x.level.Parent), dash(x.level.Why)})
				}
				return o.show(c, l)
			})
		},
	}
}

type branch struct {
	branch string
	level  api.Level
}

// inTree puts every circuit below the one that feeds it, and draws the branches.
func inTree(levels []api.Level) []branch {
	below := map[string][]api.Level{}
	for _, l := range levels {
		below[l.Parent] = append(below[l.Parent], l)
	}
	var out []branch
	var walk func(parent, indent string)
	walk = func(parent, indent string) {
		for i, l := range below[parent] {
			mark, next := "├─ ", "│  "
			if i == len(below[parent])-1 {
				mark, next = "└─ ", "   "
			}
			if parent == "" {
				mark, next = "", ""
			}
			out = append(out, branch{indent + mark, l})
			if l.Name != "" {
				walk(l.Name, indent+next)
			}
		}
	}
	walk("", "")
	return out
}

// orderPower sends an order about the whole site, or only says what it would do.
func (o *options) orderPower(c *cobra.Command, dry bool, order string, params map[string]string, would, done string) error {
	return o.call(c, func(ctx context.Context, cl *api.Client) error {
		if dry {
			v, err := cl.Power(ctx)
			if err == nil {
				for _, line := range powerLines(v, time.Now()) {
					fmt.Fprintln(c.ErrOrStderr(), strings.Map(printable, line))
				}
			}
			return say(c, err, "Would %s (dry run: nothing was done)", would)
		}
		for k, v := range params {
			if v == "" {
				delete(params, k)
			}
		}
		_, err := cl.OrderPower(ctx, order, params)
		return say(c, err, "%s", done)
	})
}

func newPowerHold(o *options) *cobra.Command {
	var reason string
	var dry bool
	c := &cobra.Command{
		Use: "hold", Short: "Let nothing start on the whole site, and no burn-in begin another check", Args: exactly(),
		Long: `Let nothing start on the whole site, and no burn-in begin another check, until
smelt power resume. What runs goes on; what passed of a burn-in is kept. Disks
are another matter: see the global stop.`,
		RunE: func(c *cobra.Command, _ []string) error {
			if reason == "" {
				return usageError{"hold needs a reason: who comes next must know why", "smelt power hold --reason '...'"}
			}
			return o.orderPower(c, dry, api.PowerHold, map[string]string{"reason": reason}, "hold the power of the site", "Held. Nothing starts until: smelt power resume")
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why")
	c.Flags().BoolVarP(&dry, "dry-run", "n", false, "only say what would be done")
	return c
}

func newPowerResume(o *options) *cobra.Command {
	var dry bool
	c := &cobra.Command{
		Use: "resume", Short: "Lift a hold", Args: exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			return o.orderPower(c, dry, api.PowerResume, nil, "lift the hold", "The hold is lifted.")
		},
	}
	c.Flags().BoolVarP(&dry, "dry-run", "n", false, "only say what would be done")
	return c
}

func newPowerBlackout(o *options) *cobra.Command {
	var reason string
	var dry bool
	c := &cobra.Command{
		Use: "blackout", Short: "Say that power was lost, or the emergency stop pressed: nothing starts until it is released", Args: exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			if reason == "" {
				return usageError{"blackout needs a reason: what happened?", "smelt power blackout --reason 'emergency stop in hall A'"}
			}
			return o.orderPower(c, dry, api.PowerBlackout, map[string]string{"reason": reason}, "let nothing start until it is released", "Noted. Nothing starts until: smelt power release")
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "what happened")
	c.Flags().BoolVarP(&dry, "dry-run", "n", false, "only say what would be done")
	return c
}

func newPowerRelease(o *options) *cobra.Command {
	var dry bool
	var confirm string
	c := &cobra.Command{
		Use: "release", Short: "After a blackout: let the machines that had work start again, in order", Args: exactly(),
		Long: `After a blackout: let the machines that had work start again, those in service
first, one on each panel at a time, each confirmed before it counts. Before
that, look: is the supply steady, is every breaker as it should be, is nobody
working on a machine?`,
		RunE: func(c *cobra.Command, _ []string) error {
			if !dry {
				if err := confirmed(c, confirm, "release", "After this machines start by themselves."); err != nil {
					return err
				}
			}
			return o.orderPower(c, dry, api.PowerRelease, nil, "let machines start again, in order", "Released. Watch it with: smelt power status")
		},
	}
	c.Flags().StringVar(&confirm, "confirm", "", "the word release, instead of typing it")
	c.Flags().BoolVarP(&dry, "dry-run", "n", false, "only say what would be done")
	return c
}
