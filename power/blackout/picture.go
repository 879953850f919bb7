package main

import (
	"fmt"
	"slices"
	"strings"

	"smelt/inventory"
	"smelt/power"
)

// A chart is a rectangle of the picture with seconds to the right and kilowatts
// upwards.
type chart struct {
	b          *strings.Builder
	x, y, w, h float64
	from, to   int     // seconds
	top        float64 // kW
}

func (c chart) px(second float64) float64 {
	return c.x + (second-float64(c.from))/float64(c.to-c.from)*c.w
}
func (c chart) py(kw float64) float64 { return c.y + c.h - kw/c.top*c.h }

func (c chart) f(format string, args ...any) { fmt.Fprintf(c.b, format, args...) }

// frame draws the axes; every is the distance of two marks, in seconds.
func (c chart) frame(title string, every int, clock func(int) string) {
	c.f("<text x=\"%.0f\" y=\"%.0f\" class=\"t\">%s</text>\n", c.x, c.y-10, title)
	for kw := 0.0; kw <= c.top; kw += 200 {
		c.f("<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" class=\"g\"/>", c.x, c.py(kw), c.x+c.w, c.py(kw))
		c.f("<text x=\"%.1f\" y=\"%.1f\" class=\"a\" text-anchor=\"end\">%.0f</text>\n", c.x-6, c.py(kw)+4, kw)
	}
	c.marks(every, clock)
}

func (c chart) marks(every int, clock func(int) string) {
	for s := c.from; s <= c.to; s++ {
		if (s-back)%every != 0 && every > 60 || (s-c.from-15)%every != 0 && every <= 60 {
			continue
		}
		c.f("<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" class=\"k\"/>", c.px(float64(s)), c.y+c.h, c.px(float64(s)), c.y+c.h+4)
		c.f("<text x=\"%.1f\" y=\"%.1f\" class=\"a\" text-anchor=\"middle\">%s</text>\n", c.px(float64(s)), c.y+c.h+17, clock(s))
	}
}

// areas stacks what machines draw by what they do: work at the bottom, starts on
// top.
func (c chart) areas(r result) {
	step := max(1, int(1.2*float64(c.to-c.from)/c.w))
	for p := starting; p < nPhases; p++ {
		var up, down []point
		for s := c.from; s <= c.to; s += step {
			d := r.draw[min(s, len(r.draw)-1)]
			below := 0.0
			for q := working; q > p; q-- {
				below += d[q]
			}
			up = append(up, point{c.px(float64(s)), c.py((below + d[p]) / 1000)})
			down = append(down, point{c.px(float64(s)), c.py(below / 1000)})
		}
		slices.Reverse(down)
		c.f("<polygon class=\"p%d\" points=\"%s %s\"/>\n", p, points(up), points(down))
	}
}

type point struct{ x, y float64 }

// points writes a line without the points that lie on it anyway.
func points(list []point) string {
	var out []string
	for i, p := range list {
		if i > 0 && i < len(list)-1 && list[i-1].y == p.y && list[i+1].y == p.y {
			continue
		}
		out = append(out, fmt.Sprintf("%.1f,%.1f", p.x, p.y))
	}
	return strings.Join(out, " ")
}

// limit draws a line at so many watts.
func (c chart) limit(w float64, class, text string) {
	c.f("<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" class=\"%s\"/>", c.x, c.py(w/1000), c.x+c.w, c.py(w/1000), class)
	if text != "" {
		c.f("<text x=\"%.1f\" y=\"%.1f\" class=\"a\" text-anchor=\"end\">%s</text>\n", c.x+c.w-4, c.py(w/1000)-5, text)
	}
}

// at marks a moment.
func (c chart) at(second int, text string) {
	x := c.px(float64(second))
	c.f("<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" class=\"m\"/>", x, c.y, x, c.y+c.h)
	c.f("<text x=\"%.1f\" y=\"%.1f\" class=\"a\">%s</text>\n", x+4, c.y+13, text)
}

var works = []struct{ work, name, class string }{
	{power.WorkService, "in service", "ws"}, {power.WorkConvert, "converting", "wc"}, {power.WorkBurnIn, "burning in", "wb"}, {power.WorkIdle, "idle", "wi"},
}

// starts draws a line for each start, in a row for each panel.
func (c chart) starts(r result) {
	row := c.h / 3
	for p := range 3 {
		c.f("<text x=\"%.1f\" y=\"%.1f\" class=\"a\" text-anchor=\"end\">panel %d</text>", c.x-6, c.y+row*float64(p)+row/2+4, p+1)
		c.f("<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" class=\"r\"/>\n", c.x, c.y+row*float64(p)+2, c.w, row-4)
	}
	for _, w := range works {
		c.f("<path class=\"%s\" d=\"", w.class)
		for _, s := range r.starts {
			if s.work == w.work {
				c.f("M%.1f %.1fv%.1f", c.px(float64(s.second)), c.y+row*float64(s.panel)+3, row-6)
			}
		}
		c.f("\"/>\n")
	}
}

// most is the longest that any circuit was above a mark, and how many were.
func most(m map[string]int) (circuits, longest int) {
	for _, n := range m {
		longest = max(longest, n)
	}
	return len(m), longest
}

// picture draws both ways of starting again.
func picture(alone, ordered result) string {
	var b strings.Builder
	feed := inventory.Circuit{Volts: 400, Amps: 1250, Phases: 3, Derate: 0.8}
	limit, rating := feed.Watts(), feed.Watts()/0.8
	minutes := func(s int) string { return fmt.Sprintf("%d min", (s-back)/60) }
	short := func(s int) string { return fmt.Sprintf("%d s", s-back) }

	fmt.Fprint(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 980 885" font-family="sans-serif" font-size="13">
<title>A hall of 500 machines after a blackout (simulated)</title>
<style>text{fill:#223}.h{font-size:17px;font-weight:bold}.t{font-size:14px;font-weight:bold}.a{font-size:11px;fill:#556}.g{stroke:#e3e6ea}.k{stroke:#889}.m{stroke:#223;stroke-dasharray:2 3}
.lim{stroke:#b7791f;stroke-width:1.5;stroke-dasharray:7 4}.rat{stroke:#b3261e;stroke-width:1.5}.r{fill:#f4f5f7}
.p1{fill:#b3261e}.p2{fill:#e8a33d}.p3{fill:#8fb8de}.p4{fill:#3f7d58}.ws{stroke:#3f7d58}.wc{stroke:#1a56a8}.wb{stroke:#d2691e}.wi{stroke:#8a8f98}path{stroke-width:1.6}</style>
<rect width="980" height="885" fill="#fff"/>
`)
	head := chart{b: &b}
	head.f("<text x=\"20\" y=\"28\" class=\"h\">A hall of 500 machines after a blackout (simulated)</text>\n")
	head.f("<text x=\"20\" y=\"48\" class=\"a\">Nameplate %.0f W each, on 3 panels, 21 PDUs and 125 banks. Of it a machine draws 150 %% for 3 s (start), 45 %% for 75 to 135 s (POST),</text>\n", nameplate)
	head.f("<text x=\"20\" y=\"63\" class=\"a\">60 %% for 40 s (boot), then 90 %%: a model, nothing of this was measured. Charts show kW of the whole hall.</text>\n")

	x := 20.0
	for p := starting; p < nPhases; p++ {
		head.f("<rect x=\"%.0f\" y=\"75\" width=\"11\" height=\"11\" class=\"p%d\"/><text x=\"%.0f\" y=\"85\" class=\"a\">%s</text>", x, p, x+16, phases[p].name)
		x += 66
	}
	head.f("<line x1=\"%.0f\" y1=\"81\" x2=\"%.0f\" y2=\"81\" class=\"rat\"/><text x=\"%.0f\" y=\"85\" class=\"a\">the feed's breaker, %.0f kW</text>", x, x+26, x+32, rating/1000)
	x += 190
	head.f("<line x1=\"%.0f\" y1=\"81\" x2=\"%.0f\" y2=\"81\" class=\"lim\"/><text x=\"%.0f\" y=\"85\" class=\"a\">80 %% of it, %.0f kW: what is granted at most</text>\n", x, x+26, x+32, limit/1000)

	close := chart{b: &b, x: 60, y: 132, w: 400, h: 190, from: back - 15, to: back + 225, top: 1000}
	close.frame("By themselves, when the mains return", 30, short)
	close.areas(alone)
	close.limit(limit, "lim", "")
	close.limit(rating, "rat", "")
	n, longest := most(alone.rated)
	nl, _ := most(alone.above)
	close.x, close.from, close.to = 550, release-15, release+225
	close.frame("In Smelt's order, from the release on", 30, short)
	close.areas(ordered)
	close.limit(limit, "lim", "")
	close.limit(rating, "rat", "")

	no, _ := most(ordered.above)
	text := chart{b: &b}
	lines := func(x int, list ...string) {
		for i, l := range list {
			text.f("<text x=\"%d\" y=\"%d\" class=\"a\">%s</text>\n", x, 362+15*i, l)
		}
	}
	lines(60, fmt.Sprintf("Peak %.0f kW: for %d s, %d circuits carry more than 80 %% of their rating,", alone.peak/1000, longest, nl),
		fmt.Sprintf("%d more than all of it. In the first 40 ms, which no meter sees, a machine", n),
		fmt.Sprintf("draws some %d times its current, and a panel carries %.1f times its rating:", inrush, alone.rush),
		"a breaker of curve B trips at 3 to 5 times.")
	lines(550, fmt.Sprintf("Peak %.0f kW, when all work: %d circuits ever carry more than 80 %%.", ordered.peak/1000, no),
		fmt.Sprintf("In the first 40 ms of a start a panel carries %.2f times its rating at most.", ordered.rush))

	whole := chart{b: &b, x: 60, y: 450, w: 890, h: 190, from: 0, to: seconds, top: 1000}
	whole.frame("In Smelt's order, all of it", 300, minutes)
	whole.areas(ordered)
	whole.limit(limit, "lim", "")
	whole.limit(rating, "rat", "")
	whole.at(dark, "")
	whole.at(back, "")
	whole.at(release, "dark; mains are back; a person releases the starts")

	rows := chart{b: &b, x: 60, y: 710, w: 890, h: 108, from: 0, to: seconds}
	rows.f("<text x=\"60\" y=\"698\" class=\"t\">Starts: one on a panel each 10 s; what was in service first, the oldest first</text>\n")
	rows.starts(ordered)
	rows.marks(300, minutes)
	x = 60
	for _, w := range works {
		rows.f("<path class=\"%s\" d=\"M%.0f 864v-12\" style=\"stroke-width:3\"/><text x=\"%.0f\" y=\"863\" class=\"a\">%s</text>", w.class, x, x+8, w.name)
		x += 92
	}
	rows.f("<text x=\"%.0f\" y=\"863\" class=\"a\">All work after %.0f min. %d machines never come: each is waited for 10 s, then passed over.</text>\n", x+10, float64(ordered.running-release)/60, neverComes)
	b.WriteString("</svg>\n")
	return b.String()
}
