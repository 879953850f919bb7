package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"smelt/internal/api"
	"smelt/power"
	"smelt/power/care"
)

func newBMC(o *options) *cobra.Command {
	return group("bmc", "The BMCs of nodes: what is wrong with them, passwords of their own, what they lie about",
		newBMCList(o), newBMCAudit(o), newBMCAdopt(o), newBMCOrder(o), newBMCQuirks(o))
}

func newBMCList(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "list [NODE...]", Short: "List the BMCs as they were last looked at; exit 3 if something is wrong with one",
		Long: `List the BMCs as they were last looked at. With -o wide also the firmware
of its other parts, its boot order, the key that each is held to, and since when
it is trusted: compare that with what the BMC's own page shows. A BMC that
answers with another key gets no password, and is listed as key-changed.`,
		Args: atMost(1 << 20), ValidArgsFunction: o.nodeNames,
		RunE: func(c *cobra.Command, args []string) error {
			return o.call(c, func(ctx context.Context, cl *api.Client) error {
				list, err := cl.BMCs(ctx)
				if err != nil {
					return err
				}
				if list.Items, err = chosen(list.Items, args); err != nil {
					return err
				}
				return o.showBMCs(c, list)
			})
		},
	}
}

// chosen are the BMCs of the named nodes, all without a name.
func chosen(all []api.BMC, names []string) ([]api.BMC, error) {
	if len(names) == 0 {
		return all, nil
	}
	var out []api.BMC
	for _, n := range names {
		i := slices.IndexFunc(all, func(b api.BMC) bool { return string(b.Node) == n })
		if i < 0 {
			return nil, usageError{fmt.Sprintf("node %q has no BMC that site.yaml names", n), "smelt bmc list"}
		}
		out = append(out, all[i])
	}
	return out, nil
}

func (o *options) showBMCs(c *cobra.Command, list api.BMCList) error {
	l := listing{doc: list, cols: []string{"node", "bmc", "model", "firmware", "adopted", "power back", "wrong", "looked", "other firmware", "boot order", "key", "trusted"}, wide: 4}
	wrong := false
	for _, b := range list.Items {
		looked, codes := "never", []string{}
		if !b.At.IsZero() {
			looked = span(time.Since(b.At)) + " ago"
		}
		for _, f := range b.Findings {
			codes = append(codes, f.Code)
		}
		wrong = wrong || len(codes) > 0
		var pins, words []string
		for _, k := range b.Keys {
			pins, words = append(pins, dash(k.Pin)), append(words, k.Word())
		}
		l.rows = append(l.rows, []string{string(b.Node), b.Via, dash(strings.TrimSpace(b.Vendor + " " + b.Model)), dash(b.Firmware["bmc"]), yes(b.Adopted), dash(b.Restore), dash(strings.Join(codes, " ")), looked,
			dash(otherFirmware(b.Firmware)), dash(strings.Join(b.Boot, " ")), dash(strings.Join(pins, " ")), dash(strings.Join(words, ", "))})
	}
	if err := o.show(c, l); err != nil {
		return err
	}
	if o.output == "table" || o.output == "wide" {
		for _, b := range list.Items {
			for _, f := range b.Findings {
				if err := say(c, nil, "%s: %s (%s): %s", b.Node, f.What, f.Code, dash(f.Fix)); err != nil {
					return err
				}
			}
		}
	}
	if wrong {
		return errNegative
	}
	return nil
}

// otherFirmware is every version but the BMC's own.
func otherFirmware(all map[string]string) string {
	var out []string
	for _, part := range slices.Sorted(maps.Keys(all)) {
		if part != "bmc" {
			out = append(out, part+" "+all[part])
		}
	}
	return strings.Join(out, ", ")
}

// eachBMC asks verb of one node after the other, and goes on after a refusal;
// show prints those that did it.
func (o *options) eachBMC(c *cobra.Command, args []string, all, dry bool, verb, doing string, params func(node string) (map[string]string, error), show func(*cobra.Command, api.BMCList) error) error {
	if all == (len(args) > 0) {
		return usageError{"name nodes, or give --all", "smelt bmc list"}
	}
	return o.call(c, func(ctx context.Context, cl *api.Client) error {
		list, err := cl.BMCs(ctx)
		if err != nil {
			return err
		}
		if list.Items, err = chosen(list.Items, args); err != nil {
			return err
		}
		var failed []error
		var names []string
		for _, b := range list.Items {
			p, err := params(string(b.Node))
			if err != nil {
				return err
			}
			if dry {
				if err := say(c, nil, "Would %s the BMC of %s (%s) (dry run: nothing was done)", doing, b.Node, b.Via); err != nil {
					return err
				}
				continue
			}
			fmt.Fprintf(c.ErrOrStderr(), "%s: %s ...\n", b.Node, b.Via)
			res, err := cl.Do(ctx, b.Node, verb, p)
			if err == nil && !res.Done {
				err = fmt.Errorf("%w: smelt bmc list %s", api.ErrPending, b.Node)
			}
			if err != nil {
				failed = append(failed, fmt.Errorf("%s: %w", b.Node, err))
				continue
			}
			names = append(names, string(b.Node))
		}
		if dry {
			return nil
		}
		if len(names) > 0 {
			if list, err = cl.BMCs(ctx); err != nil {
				return err
			}
			if list.Items, err = chosen(list.Items, names); err != nil {
				return err
			}
			if err := show(c, list); err != nil {
				failed = append(failed, err)
			}
		}
		return errors.Join(failed...)
	})
}

func newBMCAudit(o *options) *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use: "audit NODE... | --all", Short: "Look at BMCs: firmware, accounts, what they do when power comes back; exit 3 if something is wrong",
		Long:    "Look at BMCs with one login each: firmware, accounts, whether IPMI cipher suite 0 opens them without a password, and what they do when power comes back. Nothing is changed there.",
		Example: "  smelt bmc audit srv-01\n  smelt bmc audit --all -o json",
		Args:    atMost(1 << 20), ValidArgsFunction: o.nodeNames,
		RunE: func(c *cobra.Command, args []string) error {
			return o.eachBMC(c, args, all, false, "bmc-audit", "look at", func(string) (map[string]string, error) { return nil, nil }, o.showBMCs)
		},
	}
	c.Flags().BoolVar(&all, "all", false, "all nodes that have a BMC")
	return c
}

func newBMCAdopt(o *options) *cobra.Command {
	var vendor, confirm string
	var all, dry bool
	c := &cobra.Command{
		Use: "adopt NODE... | --all", Short: "Give BMCs passwords of their own, prove them, and make machines stay off when power comes back",
		Long: `Prove the credential that site.yaml names for a BMC, once; give its account a
random password that nobody else has; prove that one; keep it, encrypted, in the
state folder; and make the machine stay off when power comes back, so that
Smelt decides the order of starts. Safe to repeat, also after a crash.

With --default-of VENDOR the first login is the one that the maker prints in its
manual: one attempt, once a day, never on a BMC that was adopted.`,
		Example: "  smelt bmc adopt srv-01\n  smelt bmc adopt --all --confirm all\n  smelt bmc adopt srv-02 --default-of supermicro",
		Args:    atMost(1 << 20), ValidArgsFunction: o.nodeNames,
		RunE: func(c *cobra.Command, args []string) error {
			if vendor != "" {
				if _, err := care.DefaultOf(vendor); err != nil {
					return usageError{err.Error(), ""}
				}
				if all {
					return usageError{"a maker's credential is tried on nodes that you name", "smelt bmc adopt NODE --default-of " + vendor}
				}
			}
			what := "all"
			if !all && len(args) == 1 {
				what = args[0]
			}
			if !dry && (all || len(args) > 0) {
				if err := confirmed(c, confirm, what, "Adopting changes the password of the BMC's account. Who else uses it is locked out."); err != nil {
					return err
				}
			}
			return o.eachBMC(c, args, all, dry, "bmc-adopt", "adopt", func(node string) (map[string]string, error) {
				p := map[string]string{"confirm": node}
				if vendor != "" {
					p["vendor"] = vendor
				}
				return p, nil
			}, o.showBMCs)
		},
	}
	f := c.Flags()
	f.BoolVar(&all, "all", false, "all nodes that have a BMC")
	f.StringVar(&vendor, "default-of", "", "log in with the credential that this maker ships: "+vendors())
	f.StringVar(&confirm, "confirm", "", "the node's name (of several: all), instead of typing it")
	f.BoolVarP(&dry, "dry-run", "n", false, "only say what would be done")
	return c
}

func newBMCOrder(o *options) *cobra.Command {
	var first string
	var dry bool
	c := &cobra.Command{
		Use: "order NODE...", Short: "Put right the boot order of machines: the network first, or the disk",
		Long: `Put the network or the disk first in the machine's own boot order, keep the rest
as it is, and read it back. Installers and firmware updates lose entries of it.
Some firmware takes it over at its next start only. What it is now shows
smelt bmc audit NODE, then smelt bmc list NODE -o wide. IPMI cannot do this.`,
		Example: "  smelt bmc order srv-01\n  smelt bmc order srv-01 --first disk",
		Args:    atMost(1 << 20), ValidArgsFunction: o.nodeNames,
		RunE: func(c *cobra.Command, args []string) error {
			if first != power.Network.String() && first != power.Disk.String() {
				return usageError{fmt.Sprintf("--first %q: there is no such thing", first), "use network or disk"}
			}
			if len(args) == 0 {
				return usageError{"bmc order wants at least one NODE", "smelt bmc list"}
			}
			return o.eachBMC(c, args, false, dry, "bmc-order", "set the boot order of", func(string) (map[string]string, error) {
				return map[string]string{"first": first}, nil
			}, o.showBootOrders)
		},
	}
	c.Flags().StringVar(&first, "first", power.Network.String(), "network or disk")
	c.Flags().BoolVarP(&dry, "dry-run", "n", false, "only say what would be done")
	return c
}

func (o *options) showBootOrders(c *cobra.Command, list api.BMCList) error {
	l := listing{doc: list, cols: []string{"node", "bmc", "boot order"}}
	for _, b := range list.Items {
		l.rows = append(l.rows, []string{string(b.Node), b.Via, dash(strings.Join(b.Boot, ", "))})
	}
	return o.show(c, l)
}

func vendors() string {
	names := map[string]bool{}
	for _, d := range care.Defaults() {
		names[d.Vendor] = true
	}
	return strings.Join(slices.Sorted(maps.Keys(names)), ", ")
}

func newBMCQuirks(o *options) *cobra.Command {
	var learned bool
	c := &cobra.Command{
		Use: "quirks", Short: "What firmware is known to do other than its standard says; --learned: what this site's was caught at", Args: exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			if !learned {
				l := listing{doc: map[string]any{"apiVersion": api.Version, "kind": "QuirkList", "items": power.Quirks()},
					cols: []string{"vendor", "model", "firmware", "code", "what", "what smelt does", "source"}, wide: 2}
				for _, q := range power.Quirks() {
					l.rows = append(l.rows, []string{dash(q.Vendor), dash(q.Model), dash(q.Firmware), q.Code, q.What, q.Answer, q.Source})
				}
				return o.show(c, l)
			}
			return o.call(c, func(ctx context.Context, cl *api.Client) error {
				list, err := cl.BMCs(ctx)
				if err != nil {
					return err
				}
				l := listing{doc: map[string]any{"apiVersion": api.Version, "kind": "LearnedList", "items": list.Learned},
					cols: []string{"node", "controller", "code", "times", "last", "model", "firmware"}}
				for _, x := range list.Learned {
					l.rows = append(l.rows, []string{string(x.Node), x.Via, x.Code, fmt.Sprint(x.Times), x.Last.Local().Format(time.DateTime), dash(strings.TrimSpace(x.Vendor + " " + x.Model)), dash(x.BMC)})
				}
				return o.show(c, l)
			})
		},
	}
	c.Flags().BoolVar(&learned, "learned", false, "what controllers of this site were caught at")
	return c
}
