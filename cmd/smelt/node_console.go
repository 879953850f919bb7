package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"smelt/internal/api"
	"smelt/internal/console"
	"smelt/inventory"
)

func newNodeConsole(o *options) *cobra.Command {
	k := &consoleFlags{options: o}
	c := &cobra.Command{
		Use: "console NODE", Short: "A node's serial console: what it said, what it says, and typing into it", Args: exactly("NODE"), ValidArgsFunction: o.nodeNames,
		Long: `A node's serial console through its BMC. The server records it always: the last
megabyte is there also when the node is dead.

On a terminal, what you type goes to the machine, until you type Ctrl-] or, at
the start of a line, "~.". Elsewhere, and with --watch, nothing is typed. What
the machine sends is cleaned of everything that could make your terminal act:
--raw leaves it as it is. That you typed is an event; what you typed is not.`,
		Example: `  smelt node console rig-01
  smelt node console rig-01 --log --since 1h
  smelt node console rig-01 --log -o wide      # with the time of each line
  smelt node console rig-01 --screen rig-01.png`,
		RunE: func(c *cobra.Command, args []string) error {
			node := inventory.NodeID(args[0])
			switch {
			case k.log && (k.watch || k.take), k.watch && k.take, k.screen != "" && (k.log || k.watch || k.take):
				return usageError{"--log, --watch, --take and --screen exclude each other", c.CommandPath() + " --help"}
			case k.screen != "":
				return k.picture(c, node)
			case k.log:
				return k.printLog(c, node)
			}
			return k.live(c, node)
		},
	}
	f := c.Flags()
	f.BoolVar(&k.log, "log", false, "print what was recorded, and end")
	f.DurationVar(&k.since, "since", 0, "only what is not older than this")
	f.BoolVar(&k.raw, "raw", false, "as the machine sent it, escape sequences and all: only for machines you trust")
	f.BoolVar(&k.watch, "watch", false, "type nothing")
	f.BoolVar(&k.take, "take", false, "type although somebody else does")
	f.StringVar(&k.screen, "screen", "", "write a picture of its screen into this file (- for stdout), where its BMC can")
	return c
}

type consoleFlags struct {
	*options
	log, raw, watch, take bool
	since                 time.Duration
	screen                string
}

// lastLines is how much of the past a live console begins with.
const lastLines = 24

func (k *consoleFlags) ask() api.ConsoleAsk { return api.ConsoleAsk{Since: k.since, Raw: true} }

// entries are wire entries as they were recorded.
func entries(items []api.ConsoleEntry) []console.Entry {
	out := make([]console.Entry, 0, len(items))
	for _, i := range items {
		out = append(out, entry(i))
	}
	return out
}

func entry(i api.ConsoleEntry) console.Entry {
	e := console.Entry{Seq: i.Seq, At: i.At, Kind: console.Output, Data: i.Raw}
	if i.Mark {
		e.Kind, e.Data = console.Mark, []byte(i.Text)
	}
	return e
}

func (k *consoleFlags) printLog(c *cobra.Command, node inventory.NodeID) error {
	return k.call(c, func(ctx context.Context, cl *api.Client) error {
		log, err := cl.Console(ctx, node, k.ask())
		if err != nil {
			return err
		}
		out := c.OutOrStdout()
		if k.raw && k.output == "table" {
			for _, e := range log.Items {
				if _, err := out.Write(e.Raw); err != nil {
					return err
				}
			}
			return nil
		}
		lines := console.Lines(entries(log.Items))
		if k.output == "table" {
			for _, l := range lines {
				fmt.Fprintln(out, l.Text)
			}
			return k.told(c, log)
		}
		if !k.raw {
			for i := range log.Items {
				log.Items[i].Raw = nil
			}
		}
		l := listing{doc: log, cols: []string{"time", "text"}}
		for _, x := range lines {
			l.rows = append(l.rows, []string{x.At.Local().Format("2006-01-02 15:04:05"), x.Text})
		}
		return k.show(c, l)
	})
}

// told says on stderr when there is nothing to see.
func (k *consoleFlags) told(c *cobra.Command, log api.ConsoleLog) error {
	switch {
	case len(log.Items) > 0:
	case log.State.Is == "none":
		fmt.Fprintf(c.ErrOrStderr(), "Nothing is recorded: %s; next: where its BMC speaks IPMI too, name that as a second way under power: in site.yaml\n", strings.Map(printable, log.State.Why))
	default:
		fmt.Fprintf(c.ErrOrStderr(), "Nothing was recorded yet; the console is %s\n", consoleState(log.State))
	}
	return nil
}

func consoleState(s api.ConsoleState) string {
	text := s.Is
	if s.Why != "" {
		text += " (" + strings.Map(printable, s.Why) + ")"
	}
	if !s.Next.IsZero() {
		text += ", tried again at " + s.Next.Local().Format(time.TimeOnly)
	}
	if s.Typing != "" {
		text += "; " + s.Typing + " types"
	}
	return text
}

// live shows the last lines and goes on.
func (k *consoleFlags) live(c *cobra.Command, node inventory.NodeID) error {
	var past api.ConsoleLog
	err := k.call(c, func(ctx context.Context, cl *api.Client) (err error) {
		past, err = cl.Console(ctx, node, k.ask())
		return err
	})
	if err != nil {
		return err
	}
	cl, err := k.client()
	if err != nil {
		return err
	}
	ask := k.ask()
	if n := len(past.Items); n > 0 {
		ask.After = past.Items[n-1].Seq
	}
	in, interactive := c.InOrStdin().(*os.File)
	interactive = interactive && terminal(in) && !k.watch && k.output == "table"
	out, note := c.OutOrStdout(), c.ErrOrStderr()
	if k.output == "json" { // one document a line: a stream has no end
		enc := json.NewEncoder(out)
		for _, e := range past.Items {
			if err := enc.Encode(k.plain(e)); err != nil {
				return err
			}
		}
		return k.watching(c, cl.FollowConsole(c.Context(), node, ask, func(n api.ConsoleNotice) error {
			if n.Entry == nil {
				return nil
			}
			return enc.Encode(k.plain(*n.Entry))
		}))
	}
	lines := console.Lines(entries(past.Items))
	for _, l := range lines[max(0, len(lines)-lastLines):] {
		fmt.Fprintln(out, l.Text)
	}
	fmt.Fprintf(note, "-- console of %s: %s --\n", node, consoleState(past.State))
	ctx, cancel := context.WithCancel(c.Context())
	defer cancel()
	var typing <-chan error
	if interactive {
		fmt.Fprintln(note, "-- what you type goes to the machine; to leave: Ctrl-], or ~. at the start of a line --")
		restore, err := rawKeys(in)
		if err != nil {
			return err
		}
		defer restore()
		typing = k.typeInto(ctx, cl, node, in, cancel)
	}
	w := &consoleWriter{out: out, note: note, raw: k.raw, filter: console.Filter{Moves: interactive}}
	if interactive {
		defer w.leave()
	}
	err = cl.FollowConsole(ctx, node, ask, w.notice)
	if interactive && c.Context().Err() == nil {
		cancel()
		if terr := <-typing; terr != nil {
			return terr
		}
		if errors.Is(err, context.Canceled) {
			return nil // left by the keyboard
		}
	}
	return k.watching(c, err)
}

// watching: an interrupt is how looking on ends.
func (k *consoleFlags) watching(c *cobra.Command, err error) error {
	if errors.Is(err, context.Canceled) && c.Context().Err() != nil {
		return c.Context().Err()
	}
	return err
}

func (k *consoleFlags) plain(e api.ConsoleEntry) api.ConsoleEntry {
	if !k.raw {
		e.Raw = nil
	}
	return e
}

// consoleWriter shows a stream on a terminal.
type consoleWriter struct {
	out, note io.Writer
	raw       bool
	filter    console.Filter
	state     string
	other     bool // the machine went to the other screen of the terminal
}

// plainAgain undoes what a machine may do to a terminal by drawing: colours,
// hidden text and cursor, margins, keys (DECSTR; those again that not every
// terminal counts to it).
const plainAgain = "\x1b[!p\x1b[0m\x1b[?25h\x1b[?7h\x1b[?1l"

// leave gives the terminal back as it was.
func (w *consoleWriter) leave() {
	if w.other {
		io.WriteString(w.out, "\x1b[?1049l")
	}
	io.WriteString(w.out, plainAgain)
}

// show draws, and remembers which screen it is on.
func (w *consoleWriter) show(b []byte) error {
	for _, mode := range []string{"\x1b[?47", "\x1b[?1047", "\x1b[?1049"} {
		if on, off := bytes.LastIndex(b, []byte(mode+"h")), bytes.LastIndex(b, []byte(mode+"l")); on != off {
			w.other = on > off
		}
	}
	_, err := w.out.Write(b)
	return err
}

func (w *consoleWriter) notice(n api.ConsoleNotice) error {
	switch {
	case n.State != nil:
		n.State.Typing = ""
		if s := consoleState(*n.State); s != w.state {
			if w.state != "" && n.State.Is != "waiting" && n.State.Is != "opening" {
				fmt.Fprintf(w.note, "\r\n-- %s --\r\n", s)
			}
			w.state = s
		}
	case n.Entry.Mark:
	case w.raw:
		return w.show(n.Entry.Raw)
	default:
		return w.show(w.filter.Append(nil, n.Entry.Raw))
	}
	return nil
}

// typeInto sends what is typed until it is left. What is typed while a request
// is on its way goes with the next one, in order.
func (k *consoleFlags) typeInto(ctx context.Context, cl *api.Client, node inventory.NodeID, in io.Reader, leave func()) <-chan error {
	session := api.NewID()
	keys := make(chan []byte, 64)
	go func() {
		defer close(keys)
		var l leaver
		buf := make([]byte, 1024)
		for {
			n, err := in.Read(buf)
			typed, left := l.keys(buf[:n])
			if len(typed) > 0 {
				select {
				case keys <- typed:
				case <-ctx.Done():
					return
				}
			}
			if left || err != nil {
				return
			}
		}
	}()
	ended := make(chan error, 1)
	go func() {
		defer leave()
		began := false
		err := func() error {
			for {
				var data []byte
				select {
				case b, ok := <-keys:
					if !ok {
						return nil
					}
					data = b
				case <-ctx.Done():
					return nil
				}
				for more := true; more && len(data) < 2048; {
					select {
					case b, ok := <-keys:
						data = append(data, b...)
						more = ok
					default:
						more = false
					}
				}
				err := cl.TypeConsole(ctx, node, api.ConsoleInput{Session: session, Data: data, Take: k.take})
				if err != nil && ctx.Err() == nil {
					return err
				}
				began = true
			}
		}()
		if began {
			bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			_ = cl.TypeConsole(bye, node, api.ConsoleInput{Session: session, End: true}) // the server ends it by itself, later
		}
		ended <- err
	}()
	return ended
}

// leaver finds what ends typing, as ssh(1) and telnet(1) have it: "~." at the
// start of a line ("~~" is one tilde), or Ctrl-].
type leaver struct{ within, tilde bool }

const ctrlBracket = 0x1d

// keys returns what of b goes to the machine, and whether the person leaves.
func (l *leaver) keys(b []byte) (typed []byte, leave bool) {
	for _, k := range b {
		switch {
		case k == ctrlBracket:
			return typed, true
		case l.tilde && k == '.':
			return typed, true
		case l.tilde:
			l.tilde = false
			typed = append(typed, '~')
			if k == '~' {
				l.within = true
				continue
			}
		case k == '~' && !l.within:
			l.tilde = true
			continue
		}
		l.within = k != '\r' && k != '\n'
		typed = append(typed, k)
	}
	return typed, false
}

// rawKeys makes a terminal hand each key over as it is pressed, Ctrl-C too.
// What is written still gets its line ends.
func rawKeys(f *os.File) (restore func(), err error) {
	was, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		return nil, err
	}
	t := *was
	t.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	t.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, &t); err != nil {
		return nil, err
	}
	return func() { _ = unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, was) }, nil
}

func (k *consoleFlags) picture(c *cobra.Command, node inventory.NodeID) error {
	if out, ok := c.OutOrStdout().(*os.File); k.screen == "-" && ok && terminal(out) {
		return usageError{"a picture does not go to a terminal", "smelt node console " + string(node) + " --screen FILE"}
	}
	return k.call(c, func(ctx context.Context, cl *api.Client) error {
		p, err := cl.Screen(ctx, node)
		if err != nil {
			return err
		}
		if k.screen == "-" {
			_, err = c.OutOrStdout().Write(p.Data)
			return err
		}
		// It may show a password: for this user alone.
		if err := os.WriteFile(k.screen, p.Data, 0o600); err != nil {
			return err
		}
		return say(c, nil, "%s: %s, %d bytes", k.screen, p.Type, len(p.Data))
	})
}
