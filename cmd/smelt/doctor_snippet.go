package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"smelt/internal/doctor"
)

func newDoctorSnippet(o *options) *cobra.Command {
	var network string
	c := &cobra.Command{
		Use:   "snippet KIND",
		Short: "Print ready configuration for a DHCP server or a switch, filled from the site file",
		Long: `Print ready configuration for what stands around Smelt, with the addresses of
the site file. KIND is one of
  ` + strings.Join(doctor.Snippets(), ", "),
		Example:   "  smelt doctor snippet dnsmasq >/etc/dnsmasq.d/smelt.conf\n  smelt doctor snippet cisco-ios --network aisle-3",
		Args:      exactly("KIND"),
		ValidArgs: doctor.Snippets(),
		RunE: func(c *cobra.Command, args []string) error {
			site, _, err := o.loadSite(nil)
			if err != nil {
				return err
			}
			text, err := doctor.Snippet(args[0], site, network)
			if err != nil {
				return usageError{err.Error(), ""}
			}
			fmt.Fprint(c.OutOrStdout(), text)
			return nil
		},
	}
	c.Flags().StringVar(&network, "network", "", "only this network of the site")
	return c
}
