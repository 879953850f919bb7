package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"smelt/internal/api"
)

func newNetwork(o *options) *cobra.Command {
	return group("network", "The networks that machines boot on, and who asks there", newNetworkList(o), newNetworkSeen(o))
}

func newNetworkList(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the networks: mode, pool, rival DHCP servers, warnings", Args: exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			return o.call(c, func(ctx context.Context, cl *api.Client) error {
				list, err := cl.Networks(ctx)
				if err != nil {
					return err
				}
				l := listing{doc: list, cols: []string{"network", "mode", "interface", "pool used", "heard", "rivals", "warnings", "address", "subnet", "pool"}, wide: 3}
				for _, n := range list.Items {
					pool := "-"
					if n.Size > 0 {
						pool = fmt.Sprintf("%d of %d", n.Used, n.Size)
					}
					l.rows = append(l.rows, []string{n.Name, n.Mode, n.Interface, pool, fmt.Sprint(n.Heard), rivalCount(n.Rivals), fmt.Sprint(len(n.Warnings)), n.Address, dash(n.Subnet), dash(n.Pool)})
				}
				if err := o.show(c, l); err != nil || o.output != "table" && o.output != "wide" {
					return err
				}
				for _, n := range list.Items {
					for _, line := range networkLines(n, time.Now()) {
						fmt.Fprintln(c.OutOrStdout(), strings.Map(printable, line))
					}
				}
				return nil
			})
		},
	}
}

func rivalCount(rivals []api.Rival) string {
	harm := 0
	for _, r := range rivals {
		if r.Alarm != "" && !r.Gone {
			harm++
		}
	}
	if harm > 0 {
		return fmt.Sprintf("%d, %d ALARM", len(rivals), harm)
	}
	return fmt.Sprint(len(rivals))
}

// networkLines tell what the table has no room for.
func networkLines(n api.NetworkView, now time.Time) []string {
	var out []string
	for _, r := range n.Rivals {
		s := fmt.Sprintf("%s: %s, heard %s ago", n.Name, r.Name, span(now.Sub(r.Last)))
		for _, f := range []struct{ what, v string }{{"MAC", r.MAC}, {"address", r.Addr}, {"gives", r.Offered}, {"boots", strings.Join(r.Boots, ", ")}} {
			if f.v != "" {
				s += ", " + f.what + " " + f.v
			}
		}
		if r.Gone {
			s += " (gone)"
		}
		out = append(out, s)
		if r.Alarm != "" {
			out = append(out, "  "+r.Alarm)
		}
		if r.Next != "" {
			out = append(out, "  next: "+r.Next)
		}
	}
	for _, w := range n.Warnings {
		out = append(out, n.Name+": "+w)
	}
	return out
}

func newNetworkSeen(o *options) *cobra.Command {
	var network, verdict string
	verdicts := []string{api.SeenNode, api.SeenCandidate, api.SeenASIC, api.SeenUnknown}
	c := &cobra.Command{
		Use: "seen", Short: "List the machines that asked for an address or a boot, answered or not, the last one first",
		Long: `List the machines that asked for an address or a boot since the server
started, whether they were answered or not. Their verdict is
  node       it is a node
  candidate  its firmware boots from the network and it is no node yet
  asic       an ASIC miner: it is never offered a boot
  unknown    it only asks for an address`,
		Example: "  smelt network seen --verdict candidate\n  smelt network seen --network aisle-3 -o csv",
		Args:    exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			if verdict != "" && !slices.Contains(verdicts, verdict) {
				return usageError{fmt.Sprintf("there is no verdict %q", verdict), "use one of " + strings.Join(verdicts, ", ")}
			}
			return o.call(c, func(ctx context.Context, cl *api.Client) error {
				list, err := cl.Seen(ctx)
				if err != nil {
					return err
				}
				list.Items = slices.DeleteFunc(list.Items, func(s api.Sighting) bool {
					return network != "" && s.Network != network || verdict != "" && s.Verdict != verdict
				})
				l := listing{doc: list, cols: []string{"mac", "verdict", "network", "heard", "says", "got", "where", "first", "asks", "addr", "arch", "reason", "why"}, wide: 6}
				for _, s := range list.Items {
					arch := "-"
					if s.Boots {
						arch = fmt.Sprint(s.Arch)
					}
					v := s.Verdict
					if s.Node != "" {
						v += " " + string(s.Node)
					}
					l.rows = append(l.rows, []string{
						s.MAC.String(), v, dash(s.Network), span(time.Since(s.Last)) + " ago", dash(says(s)), dash(s.Got), dash(where(s)),
						s.First.Local().Format("2006-01-02 15:04"), fmt.Sprint(s.Asks), dash(s.Addr), arch, s.Reason, dash(s.Why),
					})
				}
				return o.show(c, l)
			})
		},
	}
	c.Flags().StringVar(&network, "network", "", "only machines on this network")
	c.Flags().StringVar(&verdict, "verdict", "", "only machines with this verdict: "+strings.Join(verdicts, ", "))
	return c
}

// says is what the machine calls itself.
func says(s api.Sighting) string {
	return strings.TrimSpace(s.Hostname + " " + s.Vendor)
}

// where is what a relay said of the machine's place.
func where(s api.Sighting) string {
	var out []string
	for _, v := range []string{s.Circuit, s.Remote} {
		if v != "" {
			out = append(out, v)
		}
	}
	if s.Relay != "" {
		out = append(out, "by relay "+s.Relay)
	}
	return strings.Join(out, " ")
}
