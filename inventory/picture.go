package inventory

import (
	"cmp"
	"fmt"
	"html"
	"slices"
	"strings"
	"time"
)

// Measures of the picture, in pixels.
const (
	picBoxX   = 230 // left edge of the column of states
	picBoxW   = 400
	picBoxH   = 44
	picRow    = 60
	picTop    = 78
	picWorkX  = 770 // left edge of needs-work
	picWorkW  = 210
	picLane   = 22 // between two lines on the left
	picWidth  = 1010
	picFooter = 46
)

// Picture draws Table as an SVG: the conversion as a column, what leads past a
// neighbour on the left, needs-work on the right. docs/lifecycle.svg is its
// output, which a test holds it to.
func Picture() string {
	column := slices.DeleteFunc(States(), func(s State) bool { return s == NeedsWork })
	row := map[State]int{}
	for i, s := range column {
		row[s] = i
	}
	mid := func(s State) int { return picTop + row[s]*picRow + picBoxH/2 }
	bottom := picTop + (len(column)-1)*picRow + picBoxH

	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	p(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="13">`, picWidth, bottom+picFooter)
	p(`<title>The life of a node</title>`)
	p(`<style>.flow{stroke:#1f6f43}.side{stroke:#667}.fail{stroke:#b3261e}.back{stroke:#1a56a8;stroke-dasharray:5 3}path{fill:none;stroke-width:1.6}</style>`)
	p(`<defs>`)
	for _, m := range [][2]string{{"flow", "#1f6f43"}, {"side", "#667"}, {"fail", "#b3261e"}, {"back", "#1a56a8"}} {
		p(`<marker id="%s" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto" markerUnits="userSpaceOnUse"><polygon points="0,0 8,4 0,8" fill="%s"/></marker>`, m[0], m[1])
	}
	p(`</defs>`)
	p(`<rect width="100%%" height="100%%" fill="#fff"/>`)
	p(`<text x="%d" y="32" font-size="20" font-weight="bold" fill="#222">The life of a node</text>`, picBoxX)
	p(`<text x="%d" y="54" fill="#555">Each state: what it waits for, who acts, and after how long it lists as stuck. Drawn from inventory.Table.</text>`, picBoxX)

	line := func(class, path string) { p(`<path class="%s" d="%s" marker-end="url(#%s)"/>`, class, path, class) }

	// Down the column.
	type edge struct{ from, to State }
	var others []edge
	for _, s := range column {
		for _, t := range Table[s].Next {
			switch {
			case t == NeedsWork:
			case row[t] == row[s]+1 && !Table[s].Terminal():
				x := picBoxX + picBoxW/2
				line("flow", fmt.Sprintf("M%d %d V%d", x, mid(s)+picBoxH/2, mid(t)-picBoxH/2))
			default:
				others = append(others, edge{s, t})
			}
		}
	}

	// Past neighbours, on the left: short ones near the column. Every line has
	// a lane of its own, and a place of its own on each box.
	span := func(e edge) int { return max(row[e.from], row[e.to]) - min(row[e.from], row[e.to]) }
	slices.SortStableFunc(others, func(a, b edge) int { return cmp.Compare(span(a), span(b)) })
	var lanes [][]edge
	port := map[State]int{}
	ends := map[State]int{}
	for _, e := range others {
		ends[e.from]++
		ends[e.to]++
	}
	place := func(s State) int {
		port[s]++
		return mid(s) - picBoxH/2 + picBoxH*port[s]/(ends[s]+1)
	}
	for _, e := range others {
		lane := 0
		for lane < len(lanes) && slices.ContainsFunc(lanes[lane], func(o edge) bool {
			return min(row[e.from], row[e.to]) <= max(row[o.from], row[o.to]) && min(row[o.from], row[o.to]) <= max(row[e.from], row[e.to])
		}) {
			lane++
		}
		if lane == len(lanes) {
			lanes = append(lanes, nil)
		}
		lanes[lane] = append(lanes[lane], e)
		x := picBoxX - picLane*(lane+1)
		line("side", fmt.Sprintf("M%d %d H%d V%d H%d", picBoxX, place(e.from), x, place(e.to), picBoxX))
	}

	// To needs-work and back.
	work := Table[NeedsWork]
	for _, s := range column {
		if slices.Contains(Table[s].Next, NeedsWork) {
			line("fail", fmt.Sprintf("M%d %d H%d", picBoxX+picBoxW, mid(s)-8, picWorkX))
		}
		if slices.Contains(work.Next, s) {
			line("back", fmt.Sprintf("M%d %d H%d", picWorkX, mid(s)+8, picBoxX+picBoxW))
		}
	}

	for _, s := range column {
		w := Table[s]
		fill, edge := "#eef6f0", "#1f6f43"
		if w.Terminal() {
			fill, edge = "#f1f1f4", "#667"
		}
		y := mid(s) - picBoxH/2
		p(`<rect x="%d" y="%d" width="%d" height="%d" rx="7" fill="%s" stroke="%s"/>`, picBoxX, y, picBoxW, picBoxH, fill, edge)
		p(`<text x="%d" y="%d" font-weight="bold" fill="#222">%s</text>`, picBoxX+12, y+18, s)
		p(`<text x="%d" y="%d" font-size="12" fill="#555" text-anchor="end">%s</text>`, picBoxX+picBoxW-12, y+18, waitText(w))
		p(`<text x="%d" y="%d" font-size="12" fill="#555">%s</text>`, picBoxX+12, y+35, html.EscapeString(w.For))
	}
	top := mid(column[1]) - picBoxH/2
	p(`<rect x="%d" y="%d" width="%d" height="%d" rx="7" fill="#fdf0ef" stroke="#b3261e"/>`, picWorkX, top, picWorkW, bottom-top)
	y := (top + bottom) / 2
	p(`<text x="%d" y="%d" font-weight="bold" fill="#222">%s</text>`, picWorkX+14, y-36, NeedsWork)
	p(`<text x="%d" y="%d" font-size="12" fill="#555">%s</text>`, picWorkX+14, y-18, waitText(work))
	for i, l := range wrap(work.For, 30) {
		p(`<text x="%d" y="%d" font-size="12" fill="#555">%s</text>`, picWorkX+14, y+16*i, html.EscapeString(l))
	}
	x := picBoxX
	for _, k := range [][2]string{{"flow", "the way in"}, {"side", "past a neighbour"}, {"fail", "a step failed"}, {"back", "repaired"}} {
		line(k[0], fmt.Sprintf("M%d %d h34", x, bottom+26))
		p(`<text x="%d" y="%d" font-size="12" fill="#555">%s</text>`, x+42, bottom+30, k[1])
		x += 165
	}
	p(`</svg>`)
	return b.String()
}

func waitText(w Waiting) string {
	if w.Terminal() {
		return "the end, until somebody brings it back"
	}
	return w.Actor + ", " + span(w.Deadline)
}

// span writes a deadline as people say it.
func span(d time.Duration) string {
	for _, u := range []struct {
		unit time.Duration
		name string
	}{{24 * time.Hour, "day"}, {time.Hour, "hour"}, {time.Minute, "minute"}} {
		if d%u.unit == 0 && d >= u.unit {
			n := int(d / u.unit)
			if n == 1 {
				return "1 " + u.name
			}
			return fmt.Sprintf("%d %ss", n, u.name)
		}
	}
	return d.String()
}

func wrap(s string, width int) []string {
	var lines []string
	for _, word := range strings.Fields(s) {
		if n := len(lines); n > 0 && len(lines[n-1])+1+len(word) <= width {
			lines[n-1] += " " + word
		} else {
			lines = append(lines, word)
		}
	}
	return lines
}
