package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"smelt/internal/api"
	"smelt/inventory"
)

func newPowerShed(o *options) *cobra.Command {
	var do, reason string
	var dry bool
	words := []string{inventory.ShedCap, inventory.ShedPause, inventory.ShedOff, "undo"}
	c := &cobra.Command{
		Use: "shed NODE...", Short: "Take power from nodes, or give it back", ValidArgsFunction: o.nodeNames,
		Long: `Take power from nodes, or give it back. --do is
  cap      its cards draw less (burn-ins and machines in service)
  pause    its burn-in waits; what passed stays passed
  softoff  it is asked to shut down; only where no work would be lost
  undo     everything that was taken from it comes back
An outlet is never cut.`,
		Example: "  smelt power shed rig-07 rig-08 --do pause --reason 'breaker B2 runs hot'\n  smelt power shed rig-07 rig-08 --do undo",
		Args: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{"power shed wants at least one NODE", c.CommandPath() + " --help"}
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			if !slices.Contains(words, do) {
				return usageError{fmt.Sprintf("--do %q: there is no such thing", do), "use one of " + strings.Join(words, ", ")}
			}
			var failed []error
			for _, node := range args {
				failed = append(failed, o.ask(c, dry, node, "shed", map[string]string{"do": do, "reason": reason}, do+": ordered; what it draws then: smelt power status"))
			}
			return errors.Join(failed...)
		},
	}
	c.Flags().StringVar(&do, "do", "", "cap, pause, softoff or undo")
	c.Flags().StringVar(&reason, "reason", "", "why")
	c.Flags().BoolVarP(&dry, "dry-run", "n", false, "only say what would be done")
	return c
}

func newPowerCurtail(o *options) *cobra.Command {
	var watts, until, reason string
	var within time.Duration
	var dry, end, wait bool
	c := &cobra.Command{
		Use: "curtail", Short: "Give power back for a while: burn-ins pause, cards are capped, idle machines shut down", Args: exactly(),
		Long: `Give power back for a while. Burn-ins are paused, the newest first; nothing new
starts; cards of machines in service are capped; machines without work are shut
down. All of it comes back at the end, and nothing of a burn-in that passed or
of an image that is written is lost. It is refused when the site cannot give
that much in that time. --dry-run shows what would give how much.`,
		Example: "  smelt power curtail --watts 20kW --within 10m --until 16:00\n  smelt power curtail --watts 20kW --dry-run\n  smelt power curtail --end",
		RunE: func(c *cobra.Command, _ []string) error {
			if end {
				return o.orderPower(c, dry, api.PowerCurtailEnd, nil, "end the curtailment", "It is over. What was taken comes back.")
			}
			w, err := parseWatts(watts)
			if err != nil {
				return err
			}
			stop, err := parseUntil(until, time.Now())
			if err != nil {
				return err
			}
			return o.call(c, func(ctx context.Context, cl *api.Client) error {
				can, err := cl.CanGive(ctx, w, within)
				if err != nil {
					return err
				}
				if dry {
					if err := o.show(c, giveListing(can)); err != nil {
						return err
					}
					if !can.Enough {
						fmt.Fprintf(c.ErrOrStderr(), "The site could give back %s of %s within %s.\n", inventory.Watts(can.Watts), inventory.Watts(w), within)
						if can.Unmeasured > 0 {
							fmt.Fprintf(c.ErrOrStderr(), "%d machines are on and not measured: what they could give does not count.\n", can.Unmeasured)
						}
						return errNegative
					}
					return say(c, nil, "Would give back about %s (dry run: nothing was done)", inventory.Watts(can.Watts))
				}
				params := map[string]string{"watts": strconv.FormatFloat(w, 'f', -1, 64), "within": within.String(), "reason": reason}
				if reason == "" {
					delete(params, "reason")
				}
				if !stop.IsZero() {
					params["until"] = stop.UTC().Format(time.RFC3339)
				}
				if _, err := cl.OrderPower(ctx, api.PowerCurtail, params); err != nil {
					return err
				}
				if wait {
					return awaitGiven(ctx, c, cl)
				}
				v, err := cl.Power(ctx)
				if err == nil && v.Curtail != nil {
					fmt.Fprintln(c.ErrOrStderr(), strings.Map(printable, curtailLine(*v.Curtail, time.Now())))
				}
				return say(c, err, "%d machines give way. Watch it with: smelt power status", len(can.Steps))
			})
		},
	}
	f := c.Flags()
	f.StringVar(&watts, "watts", "", "how much, for example 20kW or 800W")
	f.DurationVar(&within, "within", 10*time.Minute, "given back by then")
	f.StringVar(&until, "until", "", "ends by itself: a time of today or tomorrow (16:00), or RFC 3339; else with --end")
	f.StringVar(&reason, "reason", "", "why")
	f.BoolVar(&end, "end", false, "end the curtailment")
	f.BoolVar(&wait, "wait", false, "until it is measured to be given back (raise --timeout)")
	f.BoolVarP(&dry, "dry-run", "n", false, "only say what would be done")
	return c
}

// awaitGiven waits until meters show that the power is given back.
func awaitGiven(ctx context.Context, c *cobra.Command, cl *api.Client) error {
	said := time.Time{}
	for {
		v, err := cl.Power(ctx)
		if err != nil && ctx.Err() == nil {
			return err
		}
		if ctx.Err() != nil {
			return notYet(ctx)
		}
		cur := v.Curtail
		switch {
		case cur == nil:
			return fmt.Errorf("somebody ended it (%w)", api.ErrConflict)
		case !cur.Met.IsZero():
			return say(c, nil, "%s", curtailLine(*cur, time.Now()))
		case cur.Late:
			fmt.Fprintln(c.ErrOrStderr(), strings.Map(printable, curtailLine(*cur, time.Now())))
			return errNegative
		}
		if time.Since(said) >= 10*time.Second {
			said = time.Now()
			fmt.Fprintln(c.ErrOrStderr(), strings.Map(printable, curtailLine(*cur, said)))
		}
		select {
		case <-ctx.Done():
			return notYet(ctx)
		case <-time.After(time.Second):
		}
	}
}

// notYet ends a wait that took longer than --timeout: the curtailment goes on.
func notYet(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("%w: not given back yet, and it goes on: smelt power status", api.ErrPending)
	}
	return ctx.Err()
}

func giveListing(can api.CanGive) listing {
	l := listing{doc: can, cols: []string{"node", "do", "watts"}}
	for _, s := range can.Steps {
		l.rows = append(l.rows, []string{string(s.Node), s.Do, fmt.Sprintf("%.0f", s.Watts)})
	}
	return l
}

// parseWatts reads 800, 800W, 20kW or 1.5MW.
func parseWatts(s string) (float64, error) {
	number, factor := strings.TrimSpace(s), 1.0
	for _, u := range []struct {
		unit   string
		factor float64
	}{{"MW", 1e6}, {"kW", 1e3}, {"KW", 1e3}, {"kw", 1e3}, {"W", 1}, {"w", 1}} {
		if n, ok := strings.CutSuffix(number, u.unit); ok {
			number, factor = strings.TrimSpace(n), u.factor
			break
		}
	}
	w, err := strconv.ParseFloat(number, 64)
	if err != nil || !(w > 0 && w*factor < 1e9) {
		return 0, usageError{fmt.Sprintf("--watts %q: want a power above 0, for example 20kW", s), "smelt power curtail --watts 20kW --dry-run"}
	}
	return w * factor, nil
}

// parseUntil reads the next 16:00, or a whole time. "" is no end.
func parseUntil(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if t, err := time.ParseInLocation("15:04", s, now.Location()); err == nil {
		at := time.Date(now.Year(), now.Month(), now.Day(), t.Hour(), t.Minute(), 0, 0, now.Location())
		if !at.After(now) {
			at = at.AddDate(0, 0, 1)
		}
		return at, nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil || !t.After(now) {
		return time.Time{}, usageError{fmt.Sprintf("--until %q: want a time to come, for example 16:00", s), ""}
	}
	return t, nil
}

func newPowerProve(o *options) *cobra.Command {
	var all, dry bool
	c := &cobra.Command{
		Use: "prove NODE | --all", Short: "Prove which outlets feed a node, by changing its load", ValidArgsFunction: o.nodeNames,
		Long: `Prove which outlets feed a node: its burn-in is paused for a moment, or the
node is switched on where it is off, and the outlets that move are compared with
site.yaml. A mismatch is a task for a person. An outlet is never switched. The
check that runs begins again; allow some minutes for each node (--timeout).`,
		Args: func(c *cobra.Command, args []string) error {
			if all != (len(args) == 0) || len(args) > 1 {
				return usageError{"power prove wants one NODE, or --all", c.CommandPath() + " --help"}
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			if !c.Flags().Changed("timeout") {
				o.timeout = 5 * time.Minute
			}
			if !all {
				return o.prove(c, dry, args[0])
			}
			var nodes []string
			err := o.call(c, func(ctx context.Context, cl *api.Client) error {
				list, err := cl.Nodes(ctx)
				for _, v := range list.Items {
					if v.Node.State == inventory.BurningIn || v.Node.Power.On == "off" && v.Node.Hold == nil && v.Node.State != inventory.InService {
						nodes = append(nodes, string(v.Node.ID))
					}
				}
				return err
			})
			if err != nil {
				return err
			}
			fmt.Fprintf(c.ErrOrStderr(), "%d nodes burn in or are off; the others cannot be proven now.\n", len(nodes))
			// One after the other: two loads that change at once prove neither.
			var failed []error
			for _, node := range nodes {
				if err := o.prove(c, dry, node); err != nil {
					if c.Context().Err() != nil {
						return c.Context().Err()
					}
					if err.Error() != "" {
						complain(c.ErrOrStderr(), fmt.Errorf("%s: %w", node, err))
					}
					failed = append(failed, err)
				}
			}
			if len(failed) > 0 {
				return errNegative
			}
			return nil
		},
	}
	c.Flags().BoolVar(&all, "all", false, "every node that burns in or is off, one after the other")
	c.Flags().BoolVarP(&dry, "dry-run", "n", false, "only say what would be done")
	return c
}

// prove proves one node and says what came of it.
func (o *options) prove(c *cobra.Command, dry bool, node string) error {
	if dry {
		return o.ask(c, true, node, "prove", nil, "")
	}
	return o.call(c, func(ctx context.Context, cl *api.Client) error {
		if _, err := cl.Do(ctx, inventory.NodeID(node), "prove", nil); err != nil {
			return err
		}
		v, err := cl.Node(ctx, inventory.NodeID(node))
		if err != nil {
			return err
		}
		for _, e := range slices.Backward(v.Events) {
			if e.Evidence["mark"] == "wiring" {
				fmt.Fprintln(c.OutOrStdout(), strings.Map(printable, node+" "+e.Reason))
				if e.Evidence["wiring"] != "proven" {
					return errNegative
				}
				return nil
			}
		}
		return fmt.Errorf("%s: the server says done and has no proof: smelt node events %s", node, node)
	})
}
