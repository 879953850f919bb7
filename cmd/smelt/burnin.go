package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"smelt/burnin"
	"smelt/internal/api"
	"smelt/inventory"
)

func newBurnin(o *options) *cobra.Command {
	run := nodeVerb(o, "reverify", "Burn in a node in service again; the cluster gives it no work meanwhile", "is re-verified", false, false)
	run.Use = "run NODE"
	return group("burnin", "Burn-in runs and reports", run, newBurninReport(o))
}

func newBurninReport(o *options) *cobra.Command {
	var html string
	c := &cobra.Command{
		Use: "report NODE [ID]", Short: "Show a burn-in report, the newest without an ID; exit 3 unless it is a PASS",
		Example: "  smelt burnin report rig-01\n  smelt burnin report rig-01 --html report.html",
		Args: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return exactly("NODE")(c, args)
			}
			return atMost(2)(c, args)
		},
		ValidArgsFunction: o.nodeNames,
		RunE: func(c *cobra.Command, args []string) error {
			return o.call(c, func(ctx context.Context, cl *api.Client) error {
				node := inventory.NodeID(args[0])
				id := ""
				if len(args) > 1 {
					id = args[1]
				} else {
					list, err := cl.Reports(ctx, node)
					if err != nil {
						return err
					}
					if len(list.Items) == 0 {
						return usageError{fmt.Sprintf("%s has no burn-in report yet", node), "smelt node show " + args[0]}
					}
					id = list.Items[0].ID
				}
				r, err := cl.Report(ctx, node, id)
				if err != nil {
					return err
				}
				if html != "" {
					if err := writeReport(html, r); err != nil {
						return err
					}
				}
				if err := o.showReport(c, r); err != nil {
					return err
				}
				if r.Verdict.Answer != burnin.PASS {
					return errNegative
				}
				return nil
			})
		},
	}
	c.Flags().StringVar(&html, "html", "", "also write it as one HTML file")
	return c
}

func writeReport(path string, r burnin.Report) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := burnin.WriteHTML(f, r); err != nil {
		f.Close()
		return fmt.Errorf("write %s: %w", path, err)
	}
	return f.Close()
}

func (o *options) showReport(c *cobra.Command, r burnin.Report) error {
	l := listing{
		doc:  map[string]any{"apiVersion": api.Version, "kind": "BurninReport", "report": r},
		cols: []string{"check", "status", "why", "work"}, wide: 1,
	}
	for _, x := range r.Results {
		status := x.Status.String()
		if x.Simulated {
			status += " SIMULATED"
		}
		l.rows = append(l.rows, []string{x.ID, status, x.Reason, fmt.Sprintf("%g %s", x.Work, x.WorkUnit)})
	}
	if o.output == "table" || o.output == "wide" {
		note := ""
		if r.Verdict.Simulated {
			note = " SIMULATED"
		}
		out := c.OutOrStdout()
		fmt.Fprintln(out, plain(fmt.Sprintf("%s%s  %s  %s, profile %s", r.Verdict.Answer, note, r.ID, r.Node, r.Profile.Name)))
		for _, x := range r.Verdict.Reasons {
			fmt.Fprintln(out, "  "+plain(x))
		}
		for _, x := range r.Verdict.Repairs {
			fmt.Fprintln(out, plain(fmt.Sprintf("  %s %s at %s: %s", x.Verb, x.What, x.Where, x.Why)))
		}
	}
	return o.show(c, l)
}
