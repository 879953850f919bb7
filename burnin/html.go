package burnin

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"smelt/inventory"
)

//go:embed report.html
var reportHTML string

var reportPage = template.Must(template.New("report").Parse(reportHTML))

// WriteHTML writes r as one self-contained page: no script, no font, no image
// from elsewhere, readable on a phone and in black and white on paper. Status
// is always a word, never a colour alone, and everything simulated says so in
// its own row.
func WriteHTML(w io.Writer, r Report) error {
	if err := reportPage.Execute(w, newPage(r)); err != nil {
		return fmt.Errorf("report %q: page: %w", r.ID, err)
	}
	return nil
}

type page struct {
	Report
	Title    string
	Facts    []fact
	Identity []fact
	Checks   []checkRow
	Cards    []card
	Plots    []plotGroup
	Logs     []logText
	Measured bool // some finding is not about a card
	Required int
	Passed   int
}

type fact struct{ Name, Value string }

type checkRow struct {
	ID, Name, Reason, Work, Took string
	Status                       Status
	Required, Simulated          bool
	Ran                          bool
	Findings                     []findingRow
}

type findingRow struct {
	Finding
	Shown     string // value with unit
	Check     string
	Simulated bool
}

type card struct {
	Name, Slot, Address, UUID, VRAM, Link string
	Simulated                             bool
	Status                                Status
	Findings                              []findingRow
}

type logText struct {
	Check     string
	Lines     []string
	Simulated bool
}

type plotGroup struct {
	Check     string
	Simulated bool
	Plots     []plot
}

func newPage(r Report) page {
	p := page{Report: r, Title: "Burn-in of " + string(r.Node)}
	p.Facts = facts(
		"Node", string(r.Node), "Position", string(r.Position),
		"Profile", fmt.Sprintf("%s, version %d", r.Profile.Name, r.Profile.Version),
		"Started", stamp(r.Started), "Took", took(r.Finished.Sub(r.Started)),
		"Image", short(r.Image), "Kernel", r.Kernel, "GPU driver", r.Driver,
		"Hardware", short(r.HWDigest), "Agent", r.Agent, "Report", r.ID,
	)
	h := r.Hardware
	p.Identity = facts(
		"Board", strings.TrimSpace(h.Board.Vendor+" "+h.Board.Product),
		"Board serial", h.Board.Serial,
		"System", strings.TrimSpace(h.Board.SystemVendor+" "+h.Board.SystemProduct),
		"BIOS", strings.TrimSpace(h.Board.BIOSVendor+" "+h.Board.BIOSVersion),
		"Processor", cpuText(h.CPU), "Memory", bytesText(h.Memory.Total),
	)
	for _, d := range h.Disks {
		p.Identity = append(p.Identity, facts("Disk",
			strings.TrimSpace(d.Model+" "+bytesText(d.Size))+", "+d.DiskID.String())...)
	}

	required := map[string]bool{}
	for _, s := range r.Profile.Checks {
		required[s.ID] = s.Required
		if s.Required {
			p.Required++
		}
		if !slices.ContainsFunc(r.Results, func(res Result) bool { return res.ID == s.ID }) {
			p.Checks = append(p.Checks, checkRow{ID: s.ID, Name: checkName(s.ID), Required: s.Required, Status: Error, Reason: "did not run"})
		}
	}
	sims := map[string]bool{}
	for _, g := range h.GPUs {
		p.Cards = append(p.Cards, newCard(g))
	}
	for _, res := range r.Results {
		sim := r.simulated(res)
		sims[res.ID] = sims[res.ID] || sim
		a := assess(res, specOf(r.Profile, res.ID), r.Series)
		row := checkRow{
			ID: res.ID, Name: checkName(res.ID), Status: a.status, Reason: strings.Join(a.why, "; "),
			Took: took(res.Took), Required: required[res.ID], Simulated: sim, Ran: true,
		}
		if res.Work != 0 || res.WorkUnit != "" {
			row.Work = strings.TrimSpace(number(res.Work) + " " + res.WorkUnit)
		}
		if a.status == Pass && row.Required {
			p.Passed++
		}
		for _, f := range res.Findings {
			fr := findingRow{Finding: f, Shown: strings.TrimSpace(number(f.Value) + " " + f.Unit), Simulated: sim}
			if f.Status == Skip {
				fr.Shown = "–"
			}
			fr.Check = row.Name
			fr.Limit = strings.NewReplacer("<=", "≤", ">=", "≥").Replace(f.Limit)
			if f.Limit == "= 1" && f.Unit == "" && (f.Value == 0 || f.Value == 1) && f.Status != Skip {
				fr.Shown, fr.Limit = map[float64]string{0: "no", 1: "yes"}[f.Value], ""
			}
			if i := cardOf(p.Cards, f.Item); i >= 0 {
				p.Cards[i].Findings = append(p.Cards[i].Findings, fr)
				p.Cards[i].Simulated = p.Cards[i].Simulated || sim
				p.Cards[i].Status = worse(p.Cards[i].Status, f.Status)
				continue
			}
			row.Findings = append(row.Findings, fr)
			p.Measured = true
		}
		p.Checks = append(p.Checks, row)
		if len(res.Log) > 0 {
			p.Logs = append(p.Logs, logText{res.ID, res.Log, sim})
		}
	}
	for i := range p.Cards {
		if len(p.Cards[i].Findings) == 0 {
			p.Cards[i].Status = Error // nothing was measured on it
		}
	}
	// In the order of the profile, what is not in it last.
	order := func(id string) int {
		if i := slices.IndexFunc(r.Profile.Checks, func(s Spec) bool { return s.ID == id }); i >= 0 {
			return i
		}
		return len(r.Profile.Checks)
	}
	slices.SortStableFunc(p.Checks, func(a, b checkRow) int { return order(a.ID) - order(b.ID) })
	p.Plots = plots(r, sims)
	return p
}

func specOf(p Profile, id string) Spec {
	for _, s := range p.Checks {
		if s.ID == id {
			return s
		}
	}
	return Spec{ID: id}
}

// worse orders findings of a card: a failure, then what could not be measured.
func worse(a, b Status) Status {
	rank := map[Status]int{Skip: 1, Pass: 2, Error: 3, Fail: 4}
	if rank[b] >= rank[a] {
		return b
	}
	return a
}

func newCard(g inventory.GPU) card {
	c := card{Name: ShortModel(g.Model), Slot: place(g.Slot), Address: g.Address, UUID: g.UUID, VRAM: bytesText(g.VRAM), Simulated: g.Simulated}
	if c.Name == "" {
		c.Name = "GPU " + g.Vendor + ":" + g.Device
	}
	if c.Slot == "" && g.Port != nil {
		c.Slot = place(g.Port.Slot)
	}
	if w := g.LinkWidth(); w > 0 {
		c.Link = fmt.Sprintf("x%d", w)
	}
	return c
}

func cardOf(cards []card, item string) int {
	return slices.IndexFunc(cards, func(c card) bool {
		return c.Address != "" && strings.Contains(strings.ToLower(item), strings.ToLower(c.Address))
	})
}

func facts(pairs ...string) []fact {
	var out []fact
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			out = append(out, fact{pairs[i], pairs[i+1]})
		}
	}
	return out
}

func checkName(id string) string {
	switch id {
	case System:
		return "Installed system"
	case CPU:
		return "Processor"
	case Memory:
		return "Memory"
	case Disk:
		return "Disk"
	case Network:
		return "Network"
	case PCIe:
		return "PCIe links"
	case Thermal:
		return "Cooling"
	case GPUPresence:
		return "GPUs present"
	case GPUVRAM:
		return "GPU memory"
	case GPUCompute:
		return "GPU compute"
	}
	return id
}

func cpuText(c inventory.CPU) string {
	if c.Model == "" && c.Cores == 0 {
		return ""
	}
	return strings.TrimSpace(fmt.Sprintf("%s, %d cores", c.Model, c.Cores))
}

func bytesText(n int64) string {
	switch {
	case n <= 0:
		return ""
	case n >= 1<<30:
		return fmt.Sprintf("%.3g GiB", float64(n)/(1<<30))
	default:
		return fmt.Sprintf("%.3g MiB", float64(n)/(1<<20))
	}
}

func short(digest string) string {
	if len(digest) > 20 {
		return digest[:19] + "…"
	}
	return digest
}

func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02 15:04:05 UTC")
}

func took(d time.Duration) string {
	switch {
	case d <= 0:
		return ""
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

// A plot is one series as SVG. The box is in units that the page scales.
type plot struct {
	Name, Unit     string
	Line           string // points of the polyline
	Dot            bool   // one sample only
	DotX, DotY     string
	Limits         []mark
	YTicks, XTicks []tick
	Last, Peak     string
}

type mark struct {
	Y, TextY string
	Label    string
}

type tick struct{ At, Label string }

const (
	plotW, plotH             = 360.0, 170.0
	plotL, plotR, plotT, plB = 44.0, 8.0, 12.0, 22.0
	maxDrawn                 = 400 // points of one line
)

func plots(r Report, sims map[string]bool) []plotGroup {
	var out []plotGroup
	for _, s := range r.Series {
		if len(s.T) != len(s.V) {
			continue
		}
		p, ok := draw(s, limitsOf(r, s))
		if !ok {
			continue
		}
		i := slices.IndexFunc(out, func(g plotGroup) bool { return g.Check == s.Check })
		if i < 0 {
			i = len(out)
			out = append(out, plotGroup{Check: s.Check, Simulated: sims[s.Check]})
		}
		out[i].Plots = append(out[i].Plots, p)
	}
	return out
}

// limitsOf finds the limits of a series: those of the findings of the same
// check whose item and name make the name of the series.
func limitsOf(r Report, s Series) []float64 {
	var out []float64
	for _, res := range r.Results {
		if res.ID != s.Check {
			continue
		}
		for _, f := range res.Findings {
			if !strings.EqualFold(strings.TrimSpace(f.Item+" "+f.Name), s.Name) {
				continue
			}
			if _, bound, ok := f.bound(); ok && !slices.Contains(out, bound) {
				out = append(out, bound)
			}
		}
	}
	return out
}

func draw(s Series, limits []float64) (plot, bool) {
	shown := drawable(s).Thin(maxDrawn)
	t, v := shown.T, shown.V
	if len(v) == 0 {
		return plot{}, false
	}
	p := plot{Name: s.Name, Unit: s.Unit, Last: number(v[len(v)-1]), Peak: number(slices.Max(v))}
	lo, hi := slices.Min(v), slices.Max(v)
	for _, l := range limits {
		lo, hi = min(lo, l), max(hi, l)
	}
	step := niceStep((hi - lo) / 3)
	lo, hi = math.Floor(lo/step)*step, math.Ceil(hi/step)*step
	if hi == lo {
		lo, hi = lo-step, hi+step
	}
	t0, t1 := t[0], t[len(t)-1]
	if t1 <= t0 {
		t1 = t0 + 1
	}
	x := func(at float64) float64 { return plotL + (at-t0)/(t1-t0)*(plotW-plotL-plotR) }
	y := func(val float64) float64 { return plotT + (hi-val)/(hi-lo)*(plotH-plotT-plB) }
	var line strings.Builder
	for i := range t {
		fmt.Fprintf(&line, "%.1f,%.1f ", x(t[i]), y(v[i]))
	}
	p.Line = strings.TrimSpace(line.String())
	p.Dot = len(v) == 1
	p.DotX, p.DotY = fix(x(t[0])), fix(y(v[0]))
	for i := 0; i <= int(math.Round((hi-lo)/step)); i++ {
		val := lo + float64(i)*step
		p.YTicks = append(p.YTicks, tick{fix(y(val)), number(val)})
	}
	p.XTicks = []tick{{fix(x(t0)), clock(t0)}, {fix(x((t0 + t1) / 2)), clock((t0 + t1) / 2)}, {fix(x(t1)), clock(t1)}}
	for _, l := range limits {
		at := y(l)
		text := at - 4
		if text < plotT+8 {
			text = at + 11
		}
		p.Limits = append(p.Limits, mark{fix(at), fix(text), "limit " + number(l)})
	}
	return p, true
}

func fix(v float64) string { return strconv.FormatFloat(v, 'f', 1, 64) }

func clock(s float64) string {
	if s < 100 {
		return strconv.FormatFloat(math.Round(s*10)/10, 'g', -1, 64) + " s"
	}
	return time.Duration(s * float64(time.Second)).Round(time.Second).String()
}

// niceStep rounds up to 1, 2 or 5 times a power of ten.
func niceStep(raw float64) float64 {
	if raw <= 0 || !finite(raw) {
		return 1
	}
	base := math.Pow(10, math.Floor(math.Log10(raw)))
	for _, m := range []float64{1, 2, 5} {
		if raw <= m*base*1.0000001 {
			return m * base
		}
	}
	return 10 * base
}

// drawable leaves out what has no place on an axis. Beyond 1e15 the axis
// arithmetic itself loses the value.
func drawable(s Series) Series {
	out := Series{Name: s.Name, Unit: s.Unit, Check: s.Check}
	for i, v := range s.V {
		if finite(v) && finite(s.T[i]) && math.Abs(v) < 1e15 && math.Abs(s.T[i]) < 1e9 {
			out.T, out.V = append(out.T, s.T[i]), append(out.V, v)
		}
	}
	return out
}
