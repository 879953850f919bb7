package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"smelt/internal/api"
)

// options are the flags that several nouns share.
type options struct {
	output    string
	server    string
	tokenFile string
	timeout   time.Duration
	site      string // path of site.yaml
}

const (
	defaultServer = "http://127.0.0.1:8480"
	defaultToken  = "/var/lib/smelt/operator.token"
)

// env is the value of an environment variable, or what stands for it.
func env(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

func newRoot() *cobra.Command {
	o := &options{}
	root := group("smelt", "Turn mining rigs and bare servers into validated nodes of an AI cluster",
		newSite(o), newNode(o), newNetwork(o), newTask(o), newTriage(o), newBurnin(o), newCertificate(o), newPower(o), newBMC(o), newJoin(o),
		newSecret(o), newSecureBoot(o), newToken(o), newStore(o), newVersion(o),
		newServe(o), newImage(o), newLab(), newDoctor(o), newSupport(o),
	)
	root.SilenceErrors, root.SilenceUsage = true, true
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageError{err.Error(), c.CommandPath() + " --help"}
	})
	f := root.PersistentFlags()
	f.StringVarP(&o.output, "output", "o", "table", "table, wide, json, yaml, name or csv")
	f.StringVar(&o.server, "server", env("SMELT_SERVER", defaultServer), "address of the server (SMELT_SERVER)")
	f.StringVar(&o.tokenFile, "token-file", env("SMELT_TOKEN_FILE", defaultToken), "file that holds your token (SMELT_TOKEN_FILE)")
	f.DurationVar(&o.timeout, "timeout", 60*time.Second, "how long to wait for the server")
	f.StringVar(&o.site, "site", "site.yaml", "the site file, for commands that read it")
	root.PersistentPreRunE = func(*cobra.Command, []string) error { return o.checkOutput() }
	return root
}

// group is a noun: it has verbs and does nothing itself.
func group(use, short string, verbs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use: use, Short: short,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			next := c.CommandPath() + " --help"
			if s := c.SuggestionsFor(args[0]); len(s) > 0 {
				next = c.CommandPath() + " " + s[0]
			}
			return usageError{fmt.Sprintf("%s has no command %q", c.CommandPath(), args[0]), next}
		},
		RunE: func(c *cobra.Command, _ []string) error {
			c.SetOut(c.ErrOrStderr())
			if err := c.Help(); err != nil {
				return err
			}
			return usageError{c.CommandPath() + " needs a command", ""}
		},
		SuggestionsMinimumDistance: 2,
	}
	c.AddCommand(verbs...)
	return c
}

// exactly wants the named arguments, no more and no fewer.
func exactly(names ...string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) == len(names) {
			return nil
		}
		if len(names) == 0 {
			return usageError{fmt.Sprintf("%s takes no argument, got %q", c.CommandPath(), args[0]), c.CommandPath() + " --help"}
		}
		return usageError{fmt.Sprintf("%s wants %s, got %d arguments", c.CommandPath(), strings.Join(names, " "), len(args)), c.CommandPath() + " --help"}
	}
}

// atMost wants up to n arguments.
func atMost(n int) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) <= n {
			return nil
		}
		return usageError{fmt.Sprintf("%s takes at most %d arguments, got %d", c.CommandPath(), n, len(args)), c.CommandPath() + " --help"}
	}
}

// client connects to the server with the token of the user.
func (o *options) client() (*api.Client, error) {
	b, err := os.ReadFile(o.tokenFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no token file %s (%w): give --token-file, or ask an operator for: smelt token add NAME", o.tokenFile, api.ErrDenied)
	}
	if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("the token file %s cannot be read by this user (%w): give --token-file with one of your own", o.tokenFile, api.ErrDenied)
	}
	if err != nil {
		return nil, fmt.Errorf("the token file: %w", err)
	}
	return api.NewClient(o.server, strings.TrimSpace(string(b)), nil)
}

// call runs f against the server within the timeout.
func (o *options) call(c *cobra.Command, f func(context.Context, *api.Client) error) error {
	cl, err := o.client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(c.Context(), o.timeout)
	defer cancel()
	err = f(ctx, cl)
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%s did not answer within %s (%w): is smelt serve running there? look at: journalctl -u smelt", o.server, o.timeout, context.DeadlineExceeded)
	}
	return err
}

// confirmed makes sure that somebody means the named thing: by --confirm, or by
// typing the name on a terminal.
func confirmed(c *cobra.Command, flag, name, what string) error {
	switch {
	case flag == name:
		return nil
	case flag != "":
		return usageError{fmt.Sprintf("--confirm says %q, but this is about %s: nothing was done", flag, name), ""}
	}
	in, ok := c.InOrStdin().(*os.File)
	if !ok || !terminal(in) {
		return usageError{what, "repeat it with --confirm=" + name}
	}
	fmt.Fprintf(c.ErrOrStderr(), "%s\nType %s to go on: ", what, name)
	var typed string
	if _, err := fmt.Fscanln(in, &typed); err != nil || typed != name {
		return usageError{"that is not its name: nothing was done", ""}
	}
	return nil
}

func terminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// nodeNames completes the names of nodes from the server.
func (o *options) nodeNames(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	var out []string
	_ = o.call(c, func(ctx context.Context, cl *api.Client) error { // no server, no suggestions
		list, err := cl.Nodes(ctx)
		for _, v := range list.Items {
			out = append(out, string(v.Node.ID)+"\t"+v.Node.State.String())
		}
		return err
	})
	return out, cobra.ShellCompDirectiveNoFileComp
}
