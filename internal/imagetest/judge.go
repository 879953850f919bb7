package imagetest

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"smelt/burnin"
	"smelt/internal/api"
	"smelt/inventory"
)

// seen is what became of one machine, as the server and the machine's serial
// port tell it.
type seen struct {
	suite   string
	view    api.NodeView   // the last, with events
	report  *burnin.Report // of its burn-in; nil when there was none
	console string         // file of its serial port
	mark    int64          // where in it the boot from its own disk begins; -1: there was none
	server  string         // file of the server's log
	ended   string         // why nothing more was awaited, unless the node came to its end by itself
}

// text are the lines of the serial port since the boot from disk, or all, and
// the number of lines before them.
func (s seen) text() (lines []string, first int) {
	b, err := os.ReadFile(s.console)
	if err != nil {
		return nil, 0
	}
	at := min(max(s.mark, 0), int64(len(b)))
	return consoleLines(string(b[at:])), strings.Count(string(b[:at]), "\n")
}

// entered is when the node came into a state first.
func (s seen) entered(st inventory.State) time.Time {
	for _, e := range s.view.Events {
		if e.Kind == inventory.KindMoved && e.To == st {
			return e.At
		}
	}
	return time.Time{}
}

func (s seen) between(a, b inventory.State) time.Duration {
	from, to := s.entered(a), s.entered(b)
	if from.IsZero() || to.IsZero() {
		return 0
	}
	return to.Sub(from)
}

// failure says in one line what the server says of it.
func (s seen) failure() string {
	n := s.view.Node
	switch {
	case n.Failure != nil && n.Failure.Detail != "":
		return fmt.Sprintf("%s failed: %s: %s", n.Failure.Step, n.Failure.Cause, n.Failure.Detail)
	case n.Failure != nil:
		return fmt.Sprintf("%s failed: %s", n.Failure.Step, n.Failure.Cause)
	case s.ended != "":
		return s.ended
	}
	return fmt.Sprintf("it stayed %s, waiting for %s", n.State, s.view.WaitsFor)
}

// log is the excerpt for a machine that did not come as far as it should.
func (s seen) log() []string {
	lines, first := s.text()
	out := excerpt(s.console, lines, first)
	if b, err := os.ReadFile(s.server); err == nil {
		var about []string
		for l := range strings.Lines(string(b)) {
			if strings.Contains(l, string(s.view.Node.ID)) && (strings.Contains(l, "level=WARN") || strings.Contains(l, "level=ERROR")) {
				about = append(about, "  serve.log: "+clip(strings.TrimSpace(l)))
			}
		}
		out = append(out, about[max(0, len(about)-5):]...)
	}
	return out
}

// parts are the cases that the check of the installed system makes, by the
// items of its findings.
var parts = []struct {
	name  string
	items []string // prefixes
	said  bool     // the log of the check and the console say why
}{
	{"kernel", []string{"kernel "}, false},
	{"units", []string{"unit ", "system failed units"}, true},
	{"root file system", []string{"root file system", "file system on "}, true},
	{"driver", []string{"nvidia module"}, true},
	{"time to ready", []string{"system time"}, true},
}

// cases judges one machine that got the image as it is. A driver is wanted
// where the image says that it has one.
func (s seen) cases(driver bool, ready time.Duration) []Case {
	install := Case{Suite: s.suite, Name: "install", Status: Pass, Took: s.between(inventory.Wiping, inventory.Starting),
		Why: "written and verified by the agent onto a blank disk"}
	boot := Case{Suite: s.suite, Name: "boot from disk", Status: Pass, Took: s.between(inventory.Starting, inventory.BurningIn),
		Why: "the installed agent reported from its own disk"}
	out := []Case{install, boot}
	skip := func(why string) []Case {
		for _, p := range parts {
			if p.name != "driver" || driver {
				out = append(out, Case{Suite: s.suite, Name: p.name, Status: Error, Why: why})
			}
		}
		return out
	}
	switch {
	case s.entered(inventory.Starting).IsZero():
		out[0].Status, out[0].Why, out[0].Log = Fail, s.failure(), s.log()
		out[1].Status, out[1].Why = Error, "it was not installed"
		return skip("it was not installed")
	case s.entered(inventory.BurningIn).IsZero():
		out[1].Status, out[1].Why, out[1].Log = Fail, s.failure(), s.log()
		return skip("the installed system did not report")
	case ready > 0 && out[1].Took > ready:
		out[1].Status, out[1].Why = Fail, fmt.Sprintf("it took %s to report, at most %s are allowed", span(out[1].Took), span(ready))
		out[1].Log = s.log()
	}
	res, ok := s.result()
	if !ok {
		return skip("the installed system was not looked at: " + s.failure())
	}
	claimed := map[int]bool{}
	for _, p := range parts {
		c := Case{Suite: s.suite, Name: p.name, Status: Error, Why: "the installed system said nothing of it: " + res.Reason}
		var bad, good []string
		for i, f := range res.Findings {
			if !slices.ContainsFunc(p.items, func(item string) bool { return strings.HasPrefix(f.Item+" "+f.Name, item) }) {
				continue
			}
			claimed[i] = true
			if f.Status == burnin.Fail || f.Status == burnin.Error {
				bad = append(bad, says(f))
			} else {
				good = append(good, says(f))
			}
			if p.name == "time to ready" {
				c.Took = time.Duration(f.Value * float64(time.Second))
			}
		}
		switch {
		case len(bad) > 0:
			c.Status, c.Why = Fail, strings.Join(bad, "; ")
			if p.said {
				for _, l := range res.Log {
					c.Log = append(c.Log, "> "+clip(l))
				}
				lines, first := s.text()
				c.Log = append(c.Log, excerpt(s.console, lines, first)...)
			}
		case len(good) > 0:
			c.Status, c.Why = Pass, strings.Join(good, "; ")
		case p.name == "driver" && !driver:
			c.Status, c.Why = Skip, "the image has no driver"
		}
		out = append(out, c)
	}
	// What else was found, or kept it from its end, is not lost.
	rest := Case{Suite: s.suite, Name: "in service", Status: Pass, Why: "every check passed"}
	var bad []string
	for i, f := range res.Findings {
		if !claimed[i] && f.Status != burnin.Pass && f.Status != burnin.Skip {
			bad = append(bad, f.String())
		}
	}
	if s.view.Node.State != inventory.InService {
		rest.Status, rest.Why, rest.Log = Fail, strings.Join(append([]string{s.failure()}, bad...), "; "), s.log()
	}
	return append(out, rest)
}

func (s seen) result() (burnin.Result, bool) {
	if s.report == nil {
		return burnin.Result{}, false
	}
	i := slices.IndexFunc(s.report.Results, func(r burnin.Result) bool { return r.ID == burnin.System })
	if i < 0 {
		return burnin.Result{}, false
	}
	return s.report.Results[i], true
}

// refused judges the machine that was offered a damaged image.
func (s seen) refused() Case {
	c := Case{Suite: "tamper", Name: "one flipped byte is refused", Took: s.between(inventory.Wiping, inventory.NeedsWork)}
	f := s.view.Node.Failure
	switch {
	case !s.entered(inventory.Starting).IsZero():
		c.Status, c.Why = Fail, "the damaged image was installed"
	case f != nil && f.Step == inventory.Imaging && f.Cause == "verify":
		c.Status, c.Why = Pass, f.Detail
	default:
		// It may have failed for any reason: that is no proof.
		c.Status, c.Why, c.Log = Error, s.failure(), s.log()
	}
	return c
}

// says is a finding in words: a yes or no is in its name.
func says(f burnin.Finding) string {
	s := f.Item + " " + f.Name
	switch {
	case f.Unit != "":
		s = fmt.Sprintf("%s %s: %.1f%s", f.Item, f.Name, f.Value, f.Unit)
	case f.Limit == "<= 0":
		s = fmt.Sprintf("%s: %.0f %s", f.Item, f.Value, f.Name)
	}
	if f.Status == burnin.Fail && f.Fix != "" {
		s += " (" + f.Fix + ")"
	}
	return s
}

func span(d time.Duration) string { return d.Round(100 * time.Millisecond).String() }
