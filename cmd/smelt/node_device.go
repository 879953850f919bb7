package main

import (
	"context"
	"strconv"

	"github.com/spf13/cobra"

	"smelt/internal/api"
	"smelt/inventory"
)

func newNodeSensors(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "sensors NODE", Short: "What the controller of a node measures: watts, degrees, fans", Args: exactly("NODE"), ValidArgsFunction: o.nodeNames,
		RunE: func(c *cobra.Command, args []string) error {
			return o.call(c, func(ctx context.Context, cl *api.Client) error {
				list, err := cl.Sensors(ctx, inventory.NodeID(args[0]))
				if err != nil {
					return err
				}
				l := listing{doc: list, cols: []string{"sensor", "value", "unit", "controller", "at"}, wide: 2}
				for _, s := range list.Items {
					l.rows = append(l.rows, []string{s.Name, strconv.FormatFloat(s.Value, 'f', -1, 64), s.Unit, list.Controller, list.At.Local().Format("15:04:05")})
				}
				return o.show(c, l)
			})
		},
	}
}

func newNodeEventLog(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "eventlog NODE", Short: "The event log that the controller of a node keeps itself", Args: exactly("NODE"), ValidArgsFunction: o.nodeNames,
		Long: `The event log that the controller of a node keeps itself (IPMI SEL, a Redfish
LogService). Its times are by the controller's own clock, which may be wrong.
What Smelt did with the node is in: smelt node events NODE`,
		RunE: func(c *cobra.Command, args []string) error {
			return o.call(c, func(ctx context.Context, cl *api.Client) error {
				log, err := cl.EventLog(ctx, inventory.NodeID(args[0]))
				if err != nil {
					return err
				}
				l := listing{doc: log, cols: []string{"id", "time", "severity", "sensor", "message"}}
				for _, e := range log.Items {
					at := "-"
					if !e.At.IsZero() {
						at = e.At.UTC().Format("2006-01-02 15:04:05Z")
					}
					l.rows = append(l.rows, []string{e.ID, at, dash(e.Severity), dash(e.Sensor), e.Message})
				}
				return o.show(c, l)
			})
		},
	}
}
