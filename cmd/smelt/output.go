package main

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"gopkg.in/yaml.v3"
)

var outputs = []string{"table", "wide", "json", "yaml", "name", "csv"}

func (o *options) checkOutput() error {
	if !slices.Contains(outputs, o.output) {
		return usageError{fmt.Sprintf("-o %s: there is no such format", o.output), "use one of " + strings.Join(outputs, ", ")}
	}
	return nil
}

// A listing is one answer in every form: a document for programs, rows for
// people.
type listing struct {
	doc  any      // carries apiVersion and kind
	cols []string // the last extra ones only in wide and csv
	wide int      // how many columns are extra
	rows [][]string
}

// show writes l to stdout in the format that was asked for. The first column
// is the name.
func (o *options) show(c *cobra.Command, l listing) error {
	out := c.OutOrStdout()
	switch o.output {
	case "json":
		b, err := json.MarshalIndent(l.doc, "", "  ")
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(out, "%s\n", escaped(b))
		return err
	case "yaml":
		b, err := json.Marshal(l.doc)
		if err != nil {
			return err
		}
		var v any
		if err := yaml.Unmarshal(escaped(b), &v); err != nil { // JSON is YAML
			return err
		}
		enc := yaml.NewEncoder(out)
		enc.SetIndent(2)
		defer enc.Close()
		return enc.Encode(v)
	case "name":
		for _, r := range l.rows {
			fmt.Fprintln(out, plain(r[0]))
		}
		return nil
	case "csv":
		w := csv.NewWriter(out)
		if err := w.Write(l.cols); err != nil {
			return err
		}
		for _, r := range l.rows {
			cells := make([]string, len(r))
			for i, cell := range r {
				cells[i] = plain(cell)
			}
			if err := w.Write(cells); err != nil {
				return err
			}
		}
		w.Flush()
		return w.Error()
	}
	n := len(l.cols)
	if o.output == "table" {
		n -= l.wide
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, strings.ToUpper(strings.Join(l.cols[:n], "\t")))
	for _, r := range l.rows {
		line := strings.Join(r[:n], "\t")
		fmt.Fprintln(w, strings.TrimRight(strings.Map(printable, line), "\t"))
	}
	return w.Flush()
}

// plain is text for a terminal: what machines and people wrote must not move
// the cursor, or worse.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' {
			return r
		}
		return printable(r)
	}, s)
}

// escaped is JSON without the control characters that it may hold as they are
// (RFC 8259, section 7, names those below 20h): terminals act on the others
// too, and YAML takes none.
func escaped(b []byte) []byte {
	var out []byte
	for _, r := range string(b) {
		if r >= 0x7f && r < 0xa0 {
			out = fmt.Appendf(out, `\u%04x`, r)
			continue
		}
		out = utf8.AppendRune(out, r)
	}
	return out
}

func printable(r rune) rune {
	if r != '\t' && (r < ' ' || r >= 0x7f && r < 0xa0) {
		return '?'
	}
	return r
}

// span says a length of time in its two largest units.
func span(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd%dh", int(d.Hours())/24, int(d.Hours())%24)
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
