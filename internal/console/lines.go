package console

import (
	"strings"
	"time"
)

// A Line is one line of text of a console.
type Line struct {
	At   time.Time // when its first character came
	Text string    // harmless: no escapes, no control characters
	Mark bool      // the recorder said it, not the machine
}

// Lines is what entries look like as text. The last line may not have ended yet.
func Lines(entries []Entry) []Line {
	var out []Line
	var f Filter
	var now strings.Builder
	var at time.Time
	end := func() {
		out = append(out, Line{At: at, Text: now.String()})
		now.Reset()
		at = time.Time{}
	}
	for _, e := range entries {
		if e.Kind == Mark {
			if now.Len() > 0 {
				end()
			}
			f = Filter{}
			out = append(out, Line{At: e.At, Text: "-- smelt: " + e.Text() + " --", Mark: true})
			continue
		}
		for _, r := range string(f.Append(nil, e.Data)) {
			if at.IsZero() {
				at = e.At
			}
			if r == '\n' {
				end()
				continue
			}
			now.WriteRune(r)
		}
	}
	if now.Len() > 0 {
		end()
	}
	return out
}

// Text is what a single entry looks like as text. Where entries follow each
// other, Lines and a Filter over all of them cut no sequence apart.
func (e Entry) Text() string {
	var f Filter
	return string(f.Append(nil, e.Data))
}
