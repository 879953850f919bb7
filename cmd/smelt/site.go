package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"smelt/burnin"
	"smelt/internal/api"
	"smelt/internal/config"
	"smelt/inventory"
	"smelt/inventory/triage"
	"smelt/power/pdu"
)

func newSite(o *options) *cobra.Command {
	return group("site", "Check the site file, and stop or resume the site",
		newSiteValidate(o), newSiteSchema(), newSitePlan(o), newSiteStop(o), newSiteResume(o))
}

// known are the words of a site file that other packages define.
func known() config.Known {
	k := config.Known{Profiles: slices.Sorted(maps.Keys(burnin.Profiles())), LabOnly: []string{burnin.ImageProfile}, PDUModels: pdu.Models()}
	for _, t := range triage.Targets() {
		k.Targets = append(k.Targets, t.Name)
	}
	return k
}

// loadSite reads the site file that --site or the argument names.
func (o *options) loadSite(args []string) (*config.Site, string, error) {
	path := o.site
	if len(args) > 0 {
		path = args[0]
	}
	s, err := config.Load(path, known())
	var bad config.Errors
	if err != nil && !errors.As(err, &bad) {
		return nil, path, usageError{err.Error(), "give the path of a site file"}
	}
	return s, path, err
}

func newSiteValidate(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "validate [FILE]", Short: "Say what is wrong with a site file",
		Example: "  smelt site validate\n  smelt site validate hall-b.yaml -o json",
		Args:    atMost(1),
		RunE: func(c *cobra.Command, args []string) error {
			s, path, err := o.loadSite(args)
			var bad config.Errors
			if errors.As(err, &bad) {
				l := listing{doc: map[string]any{"apiVersion": api.Version, "kind": "SiteErrors", "items": bad}, cols: []string{"where", "path", "problem", "hint"}}
				for _, e := range bad {
					l.rows = append(l.rows, []string{fmt.Sprintf("%s:%d:%d", e.File, e.Line, e.Column), e.Path, e.Problem, e.Hint})
				}
				if o.output != "table" && o.output != "wide" {
					if err := o.show(c, l); err != nil {
						return err
					}
				}
				return bad
			}
			if err != nil {
				return err
			}
			for _, h := range s.Hints {
				fmt.Fprintf(c.ErrOrStderr(), "hint: %v\n", h)
			}
			return o.show(c, listing{
				doc:  map[string]any{"apiVersion": api.Version, "kind": "SiteSummary", "hints": s.Hints, "site": s.Name, "file": path, "nodes": len(s.Nodes), "classes": len(s.Classes), "circuits": len(s.Circuits), "secrets": s.Secrets(), "lab": s.Lab},
				cols: []string{"site", "nodes", "classes", "circuits", "networks"},
				rows: [][]string{{s.Name, fmt.Sprint(len(s.Nodes)), fmt.Sprint(len(s.Classes)), fmt.Sprint(len(s.Circuits)), fmt.Sprint(len(s.Networks))}},
			})
		},
	}
}

func newSiteSchema() *cobra.Command {
	return &cobra.Command{
		Use: "schema", Short: "Print the JSON Schema of a site file, for editors",
		Example: "  smelt site schema >site.schema.json",
		Args:    exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			enc := json.NewEncoder(c.OutOrStdout())
			enc.SetIndent("", "  ")
			return enc.Encode(config.Schema())
		},
	}
}

// A difference is one line of a plan.
type difference struct {
	Sign   string           `json:"sign"` // + - ~
	Node   inventory.NodeID `json:"node"`
	Detail string           `json:"detail"`
}

func newSitePlan(o *options) *cobra.Command {
	var detailed bool
	c := &cobra.Command{
		Use: "plan [FILE]", Short: "Compare a site file with what the server knows",
		Long: "Compare the nodes of a site file with those of the server:\n  +  not known to the server yet\n  ~  known, but other than the file says\n  -  on the server and not in the file; it is kept: retire it by hand",
		Args: atMost(1),
		RunE: func(c *cobra.Command, args []string) error {
			s, _, err := o.loadSite(args)
			if err != nil {
				return err
			}
			var diff []difference
			err = o.call(c, func(ctx context.Context, cl *api.Client) error {
				list, err := cl.Nodes(ctx)
				diff = compare(s, list)
				return err
			})
			if err != nil {
				return err
			}
			l := listing{doc: map[string]any{"apiVersion": api.Version, "kind": "SitePlan", "items": diff}, cols: []string{"node", "", "what"}}
			for _, d := range diff {
				l.rows = append(l.rows, []string{string(d.Node), d.Sign, d.Detail})
			}
			if err := o.show(c, l); err != nil {
				return err
			}
			if len(diff) > 0 && detailed {
				return errChanges
			}
			return nil
		},
	}
	c.Flags().BoolVar(&detailed, "detailed-exitcode", false, "exit 10 when there are differences")
	return c
}

// compare says how a site file and the server differ.
func compare(s *config.Site, list api.NodeList) []difference {
	out := []difference{}
	stored := map[inventory.NodeID]inventory.Node{}
	for _, v := range list.Items {
		stored[v.Node.ID] = v.Node
	}
	for _, n := range s.Nodes {
		have, ok := stored[n.Name]
		delete(stored, n.Name)
		switch changes := changed(have.Spec, n.Spec); {
		case !ok:
			out = append(out, difference{"+", n.Name, fmt.Sprintf("%s at %s", n.Class, n.Position)})
		case len(changes) > 0:
			out = append(out, difference{"~", n.Name, strings.Join(changes, ", ")})
		}
	}
	for _, id := range slices.Sorted(maps.Keys(stored)) {
		if have := stored[id]; have.Spec.Name != "" { // machines nobody expected are in the queue, not in the file
			out = append(out, difference{"-", id, fmt.Sprintf("%s at %s", have.State, have.Spec.Position)})
		}
	}
	return out
}

// changed lists the fields of two specs that differ.
func changed(have, want inventory.Spec) []string {
	fields := func(s inventory.Spec) map[string]any {
		b, err := json.Marshal(s)
		if err != nil {
			panic("smelt: a spec does not marshal: " + err.Error()) // plain structs always do
		}
		m := map[string]any{}
		if err := json.Unmarshal(b, &m); err != nil {
			panic("smelt: a spec does not unmarshal: " + err.Error())
		}
		return m
	}
	a, b := fields(have), fields(want)
	keys := map[string]bool{}
	for k := range a {
		keys[k] = true
	}
	for k := range b {
		keys[k] = true
	}
	var out []string
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		x, y := fmt.Sprint(a[k]), fmt.Sprint(b[k])
		if x != y {
			out = append(out, fmt.Sprintf("%s: %s -> %s", k, strings.Replace(x, "<nil>", "none", 1), strings.Replace(y, "<nil>", "none", 1)))
		}
	}
	return out
}

func newSiteStop(o *options) *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use: "stop", Short: "Set the global stop: nothing is wiped or written until it is lifted",
		Args: exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			if reason == "" {
				return usageError{"the global stop needs a reason", "smelt site stop --reason '...'"}
			}
			return o.call(c, func(ctx context.Context, cl *api.Client) error {
				_, err := cl.Stop(ctx, true, reason)
				return say(c, err, "The global stop is set. Lift it with: smelt site resume")
			})
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why")
	return c
}

func newSiteResume(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "resume", Short: "Lift the global stop",
		Args: exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			return o.call(c, func(ctx context.Context, cl *api.Client) error {
				_, err := cl.Stop(ctx, false, "")
				return say(c, err, "The global stop is lifted.")
			})
		},
	}
}

// say tells the user on stderr that something is done.
func say(c *cobra.Command, err error, format string, args ...any) error {
	if err == nil {
		fmt.Fprintln(c.ErrOrStderr(), plain(fmt.Sprintf(format, args...)))
	}
	return err
}
