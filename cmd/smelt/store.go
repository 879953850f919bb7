package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"smelt/internal/api"
	"smelt/internal/config"
	"smelt/internal/store"
)

func newStore(o *options) *cobra.Command {
	return group("store", "The site's database", newStoreCheck(o))
}

// openStore opens the database of a site.
func openStore(ctx context.Context, s *config.Site) (*store.Store, error) {
	dsn := "sqlite:" + filepath.Join(s.State, "smelt.db")
	if ref := s.Store.Postgres; ref != "" {
		secrets, err := config.OpenSecrets(s.State)
		if err != nil {
			return nil, err
		}
		v, err := secrets.Get(string(ref))
		if err != nil {
			return nil, err
		}
		dsn = string(v.Reveal())
	}
	return store.Open(ctx, dsn)
}

func newStoreCheck(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "check", Short: "Read the whole database and replay every event: exit 3 when a node is not what its events make of it", Args: exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			site, path, err := o.loadSite(nil)
			if err != nil {
				return err
			}
			if _, err := os.Stat(filepath.Join(site.State, "smelt.db")); site.Store.Postgres == "" && err != nil {
				return usageError{fmt.Sprintf("there is no database in %s, the state folder of %s", site.State, path), "smelt serve makes it"}
			}
			st, err := openStore(c.Context(), site)
			if err != nil {
				return fmt.Errorf("%w; SQLite belongs to one process: stop smelt serve first, or check a copy", err)
			}
			defer st.Close()
			nodes, err := st.Nodes(c.Context())
			if err != nil {
				return err
			}
			if err := st.Check(c.Context()); err != nil {
				fmt.Fprintf(c.ErrOrStderr(), "smelt: %v; restore a backup, and keep this file for whoever looks into it\n", err)
				return errNegative
			}
			seq, err := st.LastSeq(c.Context())
			if err != nil {
				return err
			}
			return o.show(c, listing{
				doc:  map[string]any{"apiVersion": api.Version, "kind": "StoreCheck", "nodes": len(nodes), "events": seq, "ok": true},
				cols: []string{"check", "nodes", "events"}, rows: [][]string{{"ok", fmt.Sprint(len(nodes)), fmt.Sprint(seq)}},
			})
		},
	}
}
