package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"smelt/internal/api"
	"smelt/internal/config"
)

func newSecret(o *options) *cobra.Command {
	var state string
	c := group("secret", "Store the secrets that site.yaml names", newSecretSet(o, &state), newSecretList(o, &state))
	c.PersistentFlags().StringVar(&state, "state", "", "state folder, instead of that of the site file")
	return c
}

// secrets opens the secrets of the state folder. The site file need not name
// only secrets that exist: they are what is set here.
func (o *options) secrets(state string) (*config.Secrets, *config.Site, error) {
	var site *config.Site
	if state == "" {
		var err error
		if site, _, err = o.loadSite(nil); err != nil {
			return nil, nil, err
		}
		state = site.State
	}
	s, err := config.OpenSecrets(state)
	return s, site, err
}

func newSecretSet(o *options, state *string) *cobra.Command {
	var file string
	c := &cobra.Command{
		Use: "set NAME", Short: "Store or replace a secret; its value is read from stdin or a file, never from the command line",
		Example: "  smelt secret set bmc-srv-01 --from-file password.txt\n  pass show bmc/srv-01 | smelt secret set bmc-srv-01",
		Args:    exactly("NAME"),
		RunE: func(c *cobra.Command, args []string) error {
			in := c.InOrStdin()
			if file != "" {
				f, err := os.Open(file)
				if err != nil {
					return usageError{err.Error(), "give a file that can be read"}
				}
				defer f.Close()
				in = f
			} else if f, ok := in.(*os.File); ok && terminal(f) {
				return usageError{"the value would show on the terminal", "pipe it in, or use --from-file"}
			}
			b, err := io.ReadAll(io.LimitReader(in, config.MaxSecret+1))
			if err != nil {
				return fmt.Errorf("read the value: %w", err)
			}
			// An editor or echo adds one line end; a munge key is binary and has none to lose.
			if file == "" || bytes.Count(b, []byte("\n")) == 1 {
				b = bytes.TrimSuffix(bytes.TrimSuffix(b, []byte("\n")), []byte("\r"))
			}
			s, _, err := o.secrets(*state)
			if err != nil {
				return err
			}
			if err := s.Set(args[0], config.NewSecret(b)); err != nil {
				return usageError{err.Error(), ""}
			}
			return say(c, nil, "Secret %s is stored. Name it in the site file as {secret: %s}.", args[0], args[0])
		},
	}
	c.Flags().StringVar(&file, "from-file", "", "read the value from this file")
	return c
}

func newSecretList(o *options, state *string) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the names of secrets, and which the site file names and nobody set; exit 3 when one is missing", Args: exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			s, site, err := o.secrets(*state)
			if err != nil {
				return err
			}
			names, err := s.Names()
			if err != nil {
				return err
			}
			type row struct {
				Name  string `json:"name"`
				Set   bool   `json:"set"`
				Named bool   `json:"named"` // by the site file
			}
			var docs []row
			var used []string
			if site != nil {
				for _, r := range site.Secrets() {
					used = append(used, string(r))
				}
			}
			for _, n := range names {
				docs = append(docs, row{n, true, slices.Contains(used, n)})
			}
			missing := false
			for _, n := range used {
				if !slices.Contains(names, n) {
					docs = append(docs, row{n, false, true})
					missing = true
				}
			}
			l := listing{doc: map[string]any{"apiVersion": api.Version, "kind": "SecretList", "items": docs}, cols: []string{"secret", "set", "named by the site"}}
			for _, d := range docs {
				l.rows = append(l.rows, []string{d.Name, yes(d.Set), yes(d.Named)})
			}
			if err := o.show(c, l); err != nil {
				return err
			}
			if missing {
				return errNegative
			}
			return nil
		},
	}
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
