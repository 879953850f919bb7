// Package imagetest tries an image the way a site uses it: real machines of a
// lab (QEMU) boot the RAM system from a real smelt serve, its agent writes the
// image onto their blank disks, and what then boots from the disk must report
// and prove itself. One machine is offered a damaged image, which must be
// refused and leave nothing that boots.
package imagetest

import (
	"encoding/xml"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"smelt/internal/api"
)

// Status is what became of a case.
type Status string

// The statuses. A case that could not be tried is Error, never Pass.
const (
	Pass  Status = "pass"
	Fail  Status = "fail"
	Skip  Status = "skip"  // does not apply, and says why
	Error Status = "error" // could not be tried
)

// Case is one thing that was tried.
type Case struct {
	Suite  string        `json:"suite"` // image, bios, uefi, tamper
	Name   string        `json:"name"`
	Status Status        `json:"status"`
	Why    string        `json:"why"` // one line
	Took   time.Duration `json:"took,omitempty"`
	Log    []string      `json:"log,omitempty"` // where to look, the blamed line marked with ">"
}

// Report is what a test of an image found.
type Report struct {
	APIVersion string        `json:"apiVersion"`
	Kind       string        `json:"kind"` // ImageTest
	Image      string        `json:"image"`
	Digest     string        `json:"digest"`
	Kernel     string        `json:"kernel,omitempty"`
	Started    time.Time     `json:"started"`
	Took       time.Duration `json:"took"`
	Cases      []Case        `json:"cases"`
}

// NewReport is a report in which nothing was tried yet.
func NewReport(o Options) Report {
	return Report{APIVersion: api.Version, Kind: "ImageTest", Image: o.Manifest.Title(), Digest: o.Digest.String(), Kernel: o.Manifest.Kernel, Started: time.Now().UTC()}
}

// OK tells whether the image is as it should be: something was tried, and
// nothing of it failed or could not be tried.
func (r Report) OK() bool {
	return slices.ContainsFunc(r.Cases, func(c Case) bool { return c.Status == Pass }) &&
		!slices.ContainsFunc(r.Cases, func(c Case) bool { return c.Status != Pass && c.Status != Skip })
}

// Count returns how many cases have a status.
func (r Report) Count(s Status) int {
	n := 0
	for _, c := range r.Cases {
		if c.Status == s {
			n++
		}
	}
	return n
}

// The JUnit form that GitHub, GitLab and Jenkins read (there is no standard;
// this is the common part of their schemas).
type (
	junitSuites struct {
		XMLName  xml.Name     `xml:"testsuites"`
		Name     string       `xml:"name,attr"`
		Tests    int          `xml:"tests,attr"`
		Failures int          `xml:"failures,attr"`
		Errors   int          `xml:"errors,attr"`
		Skipped  int          `xml:"skipped,attr"`
		Time     string       `xml:"time,attr"`
		Suites   []junitSuite `xml:"testsuite"`
	}
	junitSuite struct {
		Name      string      `xml:"name,attr"`
		Tests     int         `xml:"tests,attr"`
		Failures  int         `xml:"failures,attr"`
		Errors    int         `xml:"errors,attr"`
		Skipped   int         `xml:"skipped,attr"`
		Time      string      `xml:"time,attr"`
		Timestamp string      `xml:"timestamp,attr"`
		Cases     []junitCase `xml:"testcase"`
	}
	junitCase struct {
		Class   string        `xml:"classname,attr"`
		Name    string        `xml:"name,attr"`
		Time    string        `xml:"time,attr"`
		Failure *junitMessage `xml:"failure,omitempty"`
		Error   *junitMessage `xml:"error,omitempty"`
		Skipped *junitMessage `xml:"skipped,omitempty"`
		Out     string        `xml:"system-out,omitempty"`
	}
	junitMessage struct {
		Message string `xml:"message,attr"`
		Type    string `xml:"type,attr,omitempty"`
		Text    string `xml:",chardata"`
	}
)

// WriteJUnit writes r as a JUnit file.
func (r Report) WriteJUnit(w io.Writer) error {
	all := junitSuites{Name: "smelt image test " + r.Image, Time: seconds(r.Took),
		Tests: len(r.Cases), Failures: r.Count(Fail), Errors: r.Count(Error), Skipped: r.Count(Skip)}
	for _, c := range r.Cases {
		i := slices.IndexFunc(all.Suites, func(s junitSuite) bool { return s.Name == c.Suite })
		if i < 0 {
			i = len(all.Suites)
			all.Suites = append(all.Suites, junitSuite{Name: c.Suite, Timestamp: r.Started.Format("2006-01-02T15:04:05")})
		}
		s := &all.Suites[i]
		jc := junitCase{Class: "image." + r.Image + "." + c.Suite, Name: c.Name, Time: seconds(c.Took)}
		text := printable(strings.Join(c.Log, "\n"))
		m := &junitMessage{Message: printable(c.Why), Text: text}
		switch c.Status {
		case Fail:
			m.Type, jc.Failure = "verdict", m
			s.Failures++
		case Error:
			m.Type, jc.Error = "not tried", m
			s.Errors++
		case Skip:
			m.Text, jc.Skipped = "", m
			s.Skipped++
		default:
			jc.Out = printable(c.Why)
		}
		s.Tests++
		s.Cases = append(s.Cases, jc)
	}
	for i := range all.Suites {
		var d time.Duration
		for _, c := range r.Cases {
			if c.Suite == all.Suites[i].Name {
				d += c.Took
			}
		}
		all.Suites[i].Time = seconds(d)
	}
	if _, err := io.WriteString(w, xml.Header); err != nil {
		return err
	}
	enc := xml.NewEncoder(w)
	enc.Indent("", "  ")
	if err := enc.Encode(all); err != nil {
		return err
	}
	_, err := io.WriteString(w, "\n")
	return err
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.3f", d.Seconds()) }

// printable replaces what XML 1.0 cannot carry and what would move a cursor.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return r
		case r < ' ' || r >= 0x7f && r < 0xa0 || r == 0xfffe || r == 0xffff:
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}
