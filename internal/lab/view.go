package lab

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"smelt/internal/api"
	"smelt/inventory"
)

// view shows machines while they are converted: one bar each on a terminal, a
// plain line every ten seconds elsewhere.
type view struct {
	out   io.Writer
	start time.Time
	bars  *mpb.Progress                        // nil when out is no terminal
	want  map[inventory.NodeID]inventory.State // how each must end
	mu    sync.Mutex
	rows  map[inventory.NodeID]*row
}

type row struct {
	bar   *mpb.Bar
	text  string
	last  string
	shown time.Time
}

func newView(out io.Writer, want map[inventory.NodeID]inventory.State) *view {
	v := &view{out: out, want: want, start: time.Now(), rows: map[inventory.NodeID]*row{}}
	if f, ok := out.(*os.File); ok && isTerminal(f) {
		v.bars = mpb.New(mpb.WithOutput(f), mpb.WithWidth(30), mpb.WithRefreshRate(200*time.Millisecond))
	}
	return v
}

func isTerminal(f *os.File) bool {
	fi, err := f.Stat()
	return err == nil && fi.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb"
}

// steps are the states of a conversion in order: how far a node is.
var steps = []inventory.State{
	inventory.Discovered, inventory.Inspected, inventory.Approved, inventory.Wiping, inventory.Imaging,
	inventory.Starting, inventory.BurningIn, inventory.Joining, inventory.InService,
}

func share(n api.NodeView) float64 {
	for i, s := range steps {
		if s == n.Node.State {
			done := float64(i)
			if n.Progress != nil {
				done += n.Progress.Done
			}
			return min(done/float64(len(steps)-1), 1)
		}
	}
	return 0
}

func (v *view) show(n api.NodeView) {
	v.mu.Lock()
	defer v.mu.Unlock()
	id := n.Node.ID
	r := v.rows[id]
	if r == nil {
		r = &row{}
		v.rows[id] = r
		if v.bars != nil {
			r.bar = v.bars.AddBar(1000,
				mpb.PrependDecorators(decor.Name(fmt.Sprintf("%-6s", id))),
				mpb.AppendDecorators(decor.Any(func(decor.Statistics) string {
					v.mu.Lock()
					defer v.mu.Unlock()
					return r.text
				})))
		}
	}
	ended := n.Node.State == v.want[id]
	doing := ""
	switch {
	case n.Progress != nil && n.Progress.Doing != "":
		doing = fmt.Sprintf("%s %3.0f%%", n.Progress.Doing, 100*n.Progress.Done)
	case !ended && n.WaitsFor == n.Node.Note: // already says what is done, not what is awaited
		doing = n.Node.Note
	case !ended:
		doing = "waits for " + n.WaitsFor
	}
	r.text = fmt.Sprintf("%-12s %s", n.Node.State, doing)
	if r.bar != nil {
		r.bar.SetCurrent(int64(1000 * share(n)))
		return
	}
	if state := n.Node.State.String(); state != r.last || !ended && time.Since(r.shown) >= 10*time.Second {
		r.last, r.shown = state, time.Now()
		fmt.Fprintf(v.out, "%6.1fs  %-6s %s\n", time.Since(v.start).Seconds(), id, r.text)
	}
}

// say prints a line above the bars.
func (v *view) say(format string, args ...any) {
	line := fmt.Sprintf("%6.1fs  ", time.Since(v.start).Seconds()) + fmt.Sprintf(format, args...) + "\n"
	if v.bars != nil {
		_, _ = io.WriteString(v.bars, line)
		return
	}
	_, _ = io.WriteString(v.out, line)
}

func (v *view) close() {
	v.mu.Lock()
	rows := v.rows
	v.rows = map[inventory.NodeID]*row{}
	v.mu.Unlock()
	for _, r := range rows {
		if r.bar != nil {
			r.bar.Abort(false)
		}
	}
	if v.bars != nil {
		v.bars.Wait()
	}
}
