package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"smelt/internal/api"
)

func newToken(o *options) *cobra.Command {
	return group("token", "Who may look, work and decide", newTokenAdd(o), newTokenList(o), newTokenRevoke(o))
}

func newTokenAdd(o *options) *cobra.Command {
	var role string
	c := &cobra.Command{
		Use: "add NAME", Short: "Make a token for somebody and print it, this once", Args: exactly("NAME"),
		Example: "  smelt token add ana --role technician >ana.token",
		RunE: func(c *cobra.Command, args []string) error {
			return o.call(c, func(ctx context.Context, cl *api.Client) error {
				g, err := cl.AddToken(ctx, args[0], role)
				if err != nil {
					return err
				}
				fmt.Fprintln(c.OutOrStdout(), g.Token)
				return say(c, nil, "This is the only time the token of %s (%s) is shown.", g.Name, g.Role)
			})
		},
	}
	c.Flags().StringVar(&role, "role", "viewer", "viewer, technician or operator")
	return c
}

func newTokenList(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List whose tokens there are", Args: exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			return o.call(c, func(ctx context.Context, cl *api.Client) error {
				list, err := cl.Tokens(ctx)
				if err != nil {
					return err
				}
				l := listing{doc: list, cols: []string{"name", "role", "created"}}
				for _, t := range list.Items {
					l.rows = append(l.rows, []string{t.Name, t.Role, t.Created.Local().Format("2006-01-02 15:04")})
				}
				return o.show(c, l)
			})
		},
	}
}

func newTokenRevoke(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "revoke NAME", Short: "Take a token away: it and its browser sessions end at once", Args: exactly("NAME"),
		RunE: func(c *cobra.Command, args []string) error {
			return o.call(c, func(ctx context.Context, cl *api.Client) error {
				return say(c, cl.RevokeToken(ctx, args[0]), "The token of %s is worth nothing now.", args[0])
			})
		},
	}
}
