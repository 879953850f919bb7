package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"smelt/internal/api"
	"smelt/inventory"
)

func newTask(o *options) *cobra.Command {
	return group("task", "Work for technicians: what to do, where, and what proves it",
		newTaskList(o), newTaskShow(o), newTaskDone(o))
}

func taskListing(doc any, tasks []inventory.Task) listing {
	l := listing{doc: doc, cols: []string{"task", "node", "verb", "what", "where", "open for", "why", "how", "proof"}, wide: 2}
	for _, t := range tasks {
		age := "done"
		if t.Open() {
			age = span(time.Since(t.Opened))
		}
		l.rows = append(l.rows, []string{t.ID, string(t.Node), t.Verb, t.What, t.Where, age, t.Why, dash(t.How), t.Proof})
	}
	return l
}

func newTaskList(o *options) *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use: "list [NODE]", Short: "List open tasks", Args: atMost(1), ValidArgsFunction: o.nodeNames,
		RunE: func(c *cobra.Command, args []string) error {
			return o.call(c, func(ctx context.Context, cl *api.Client) error {
				list, err := cl.Tasks(ctx)
				if err != nil {
					return err
				}
				list.Items = slices.DeleteFunc(list.Items, func(t inventory.Task) bool {
					return !all && !t.Open() || len(args) > 0 && string(t.Node) != args[0]
				})
				return o.show(c, taskListing(list, list.Items))
			})
		},
	}
	c.Flags().BoolVar(&all, "all", false, "done ones too")
	return c
}

func newTaskShow(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "show TASK", Short: "Show one task", Args: exactly("TASK"),
		RunE: func(c *cobra.Command, args []string) error {
			return o.call(c, func(ctx context.Context, cl *api.Client) error {
				list, err := cl.Tasks(ctx)
				if err != nil {
					return err
				}
				i := slices.IndexFunc(list.Items, func(t inventory.Task) bool { return t.ID == args[0] })
				if i < 0 {
					return usageError{fmt.Sprintf("there is no task %q", args[0]), "smelt task list --all"}
				}
				t := list.Items[i]
				if o.output != "table" && o.output != "wide" {
					return o.show(c, taskListing(map[string]any{"apiVersion": api.Version, "kind": "Task", "task": t}, []inventory.Task{t}))
				}
				fmt.Fprintln(c.OutOrStdout(), plain(fmt.Sprintf("%s\nwhy    %s\nhow    %s\nproof  %s\nopen   %v", t, t.Why, dash(t.How), t.Proof, t.Open())))
				return nil
			})
		},
	}
}

func newTaskDone(o *options) *cobra.Command {
	var note string
	var dry bool
	c := &cobra.Command{
		Use: "done TASK", Short: "Say that the work is done; its proof test follows", Args: exactly("TASK"),
		RunE: func(c *cobra.Command, args []string) error {
			if dry {
				return say(c, nil, "Would close task %s (dry run: nothing was done)", args[0])
			}
			return o.call(c, func(ctx context.Context, cl *api.Client) error {
				params := map[string]string{}
				if note != "" {
					params["outcome"] = note
				}
				_, err := cl.TaskDone(ctx, args[0], params)
				return say(c, err, "Task %s is noted as done; its proof test follows.", args[0])
			})
		},
	}
	c.Flags().StringVar(&note, "note", "", "what was found or done")
	c.Flags().BoolVarP(&dry, "dry-run", "n", false, "only say what would be done")
	return c
}
