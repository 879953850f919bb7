package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"smelt/internal/api"
)

func newTriage(o *options) *cobra.Command {
	return group("triage", "What machines are worth", newTriageReport(o))
}

func newTriageReport(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "report [NODE...]", Short: "Verdicts with reasons and parts; exit 3 when a named node is not worth converting as it is",
		Example: "  smelt triage report -o csv >triage.csv\n  smelt triage report rig-01 -o wide", ValidArgsFunction: o.nodeNames,
		RunE: func(c *cobra.Command, args []string) error {
			return o.call(c, func(ctx context.Context, cl *api.Client) error {
				list, err := cl.Nodes(ctx)
				if err != nil {
					return err
				}
				for _, a := range args {
					if !slices.ContainsFunc(list.Items, func(v api.NodeView) bool { return string(v.Node.ID) == a }) {
						return usageError{fmt.Sprintf("there is no node %q", a), "smelt node list"}
					}
				}
				type row struct {
					Node     string `json:"node"`
					Position string `json:"position"`
					Verdict  any    `json:"verdict"`
				}
				var docs []row
				l := listing{cols: []string{"node", "position", "target", "verdict", "in the way", "parts"}, wide: 1}
				negative := false
				for _, v := range list.Items {
					n := v.Node
					if len(args) > 0 && !slices.Contains(args, string(n.ID)) {
						continue
					}
					answer, target := "unknown", dash(n.Spec.Target)
					var missing, parts []string
					if vd := n.Verdict; vd != nil {
						answer, target = vd.Answer, vd.Target
						for _, r := range vd.Reasons {
							if !r.OK {
								missing = append(missing, strings.TrimSpace(fmt.Sprintf("%s %s (wants %s)", r.Item, r.Got, r.Want)))
							}
							if r.Part != "" {
								parts = append(parts, r.Part)
							}
						}
						if vd.Simulated {
							answer += " SIMULATED"
						}
					}
					negative = negative || len(args) > 0 && (n.Verdict == nil || n.Verdict.Answer != "convert")
					docs = append(docs, row{string(n.ID), string(n.Spec.Position), n.Verdict})
					l.rows = append(l.rows, []string{string(n.ID), dash(string(n.Spec.Position)), target, answer, dash(strings.Join(missing, "; ")), dash(strings.Join(parts, "; "))})
				}
				l.doc = map[string]any{"apiVersion": api.Version, "kind": "TriageReport", "items": docs}
				if err := o.show(c, l); err != nil {
					return err
				}
				if negative {
					return errNegative
				}
				return nil
			})
		},
	}
}
