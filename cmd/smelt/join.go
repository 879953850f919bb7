package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"smelt/internal/api"
	"smelt/inventory"
)

func newJoin(o *options) *cobra.Command {
	return group("join", "Nodes and the cluster", newJoinStatus(o),
		nodeVerb(o, "leave", "Take a node out of the cluster once its jobs have ended", "leaves the cluster", false, true))
}

func newJoinStatus(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "status [NODE]", Short: "How far nodes are on their way into the cluster", Args: atMost(1), ValidArgsFunction: o.nodeNames,
		RunE: func(c *cobra.Command, args []string) error {
			return o.call(c, func(ctx context.Context, cl *api.Client) error {
				var views []api.NodeView
				if len(args) > 0 {
					v, err := cl.Node(ctx, inventory.NodeID(args[0]))
					if err != nil {
						return err
					}
					views = []api.NodeView{v}
				} else {
					list, err := cl.Nodes(ctx)
					if err != nil {
						return err
					}
					for _, v := range list.Items {
						switch v.Node.State {
						case inventory.Joining, inventory.InService, inventory.ReVerifying, inventory.Leaving:
							views = append(views, v)
						}
					}
				}
				l := listing{doc: api.NodeList{APIVersion: api.Version, Kind: "NodeList", Items: views}, cols: []string{"node", "state", "since", "report", "waits for", "last word of the cluster"}}
				for _, v := range views {
					report, word := "-", "-"
					if p := v.Node.Passed; p != nil {
						report = p.Report
						if p.Simulated {
							report += " SIMULATED"
						}
					}
					for _, e := range v.Events {
						if e.Actor == "cluster" && e.Reason != "" {
							word = e.Reason
						}
					}
					l.rows = append(l.rows, []string{string(v.Node.ID), v.Node.State.String(), span(time.Since(v.Node.Since)), report, v.WaitsFor, word})
				}
				return o.show(c, l)
			})
		},
	}
}
