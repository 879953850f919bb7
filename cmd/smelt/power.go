package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"smelt/internal/api"
)

func newPower(o *options) *cobra.Command {
	return group("power", "Power states and the power budget", newPowerStatus(o), newPowerBudget(o))
}

func newPowerStatus(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "The last confirmed power state of each node, and who confirmed it", Args: exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			return o.call(c, func(ctx context.Context, cl *api.Client) error {
				list, err := cl.Nodes(ctx)
				if err != nil {
					return err
				}
				type row struct {
					Node  string `json:"node"`
					Power any    `json:"power"`
				}
				var docs []row
				l := listing{cols: []string{"node", "position", "power", "age", "circuit", "watts", "by", "detail"}, wide: 2}
				for _, v := range list.Items {
					p, age := v.Node.Power, "-"
					if !p.At.IsZero() {
						age = span(time.Since(p.At))
					}
					on := p.On
					if on == "" {
						on = "unknown"
					}
					docs = append(docs, row{string(v.Node.ID), p})
					l.rows = append(l.rows, []string{string(v.Node.ID), dash(string(v.Node.Spec.Position)), on, age, dash(v.Node.Spec.Circuit), fmt.Sprintf("%.0f", v.Node.Spec.Watts), dash(p.Via), p.Detail})
				}
				l.doc = map[string]any{"apiVersion": api.Version, "kind": "PowerStatus", "items": docs}
				return o.show(c, l)
			})
		},
	}
}

func newPowerBudget(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "budget", Short: "What is granted on each circuit, and what is free", Args: exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			return o.call(c, func(ctx context.Context, cl *api.Client) error {
				site, err := cl.Site(ctx)
				if err != nil {
					return err
				}
				l := listing{
					doc:  map[string]any{"apiVersion": api.Version, "kind": "PowerBudget", "items": site.Levels},
					cols: []string{"circuit", "kind", "granted w", "limit w", "free w", "nodes", "parent"}, wide: 1,
				}
				for _, x := range site.Levels {
					l.rows = append(l.rows, []string{x.Name, x.Kind, fmt.Sprintf("%.0f", x.Granted), fmt.Sprintf("%.0f", x.Limit), fmt.Sprintf("%.0f", x.Limit-x.Granted), fmt.Sprint(len(x.Holders)), dash(x.Parent)})
				}
				return o.show(c, l)
			})
		},
	}
}
