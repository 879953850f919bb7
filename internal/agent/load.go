package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"smelt/burnin"
	"smelt/inventory"
)

// load is how much this machine may draw now. It comes with each order and may
// change while the order stays the same.
type load struct {
	mu      sync.Mutex
	now     inventory.Load
	changed chan struct{} // closed with the next change
}

func (l *load) get() (inventory.Load, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.changed == nil {
		l.changed = make(chan struct{})
	}
	return l.now, l.changed
}

func (l *load) set(v inventory.Load) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if v == l.now {
		return
	}
	l.now = v
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}

// fullPower are the checks that prove nothing on cards that are held back:
// what they find under a cap would not count, so they wait until it is lifted.
func fullPower(check string) bool {
	return check == burnin.Thermal || strings.HasPrefix(check, "gpu-")
}

// holds tells whether a check may not begin under l.
func holds(l inventory.Load, check string) bool {
	return l.Pause != "" || l.Cap > 0 && fullPower(check)
}

// cuts tells whether a check that runs must end under l.
func cuts(l inventory.Load, check string) bool {
	return l.Pause == inventory.PauseNow || l.Cap > 0 && fullPower(check)
}

// runClock ends a run after its limit, of which pauses are no part.
type runClock struct {
	timer *time.Timer
	left  time.Duration
	since time.Time
}

func newRunClock(limit time.Duration, end func()) *runClock {
	if limit <= 0 {
		return nil
	}
	return &runClock{timer: time.AfterFunc(limit, end), left: limit, since: time.Now()}
}

func (c *runClock) stop() {
	if c != nil && c.timer.Stop() {
		c.left -= time.Since(c.since)
	}
}

func (c *runClock) start() {
	if c != nil {
		c.since = time.Now()
		c.timer.Reset(max(c.left, time.Millisecond))
	}
}

// heldFile keeps what a burn-in found while it is held, and then only: a
// machine that goes down by itself in the middle of a run has to do all of it.
func (a *Agent) heldFile() string { return filepath.Join(a.c.StateDir, "burnin-held.json") }

// keep keeps rep until the run goes on.
func (a *Agent) keep(rep burnin.Report) {
	var b bytes.Buffer
	err := burnin.WriteJSON(&b, rep)
	if err == nil {
		err = writeFile(a.heldFile(), b.Bytes(), 0o600)
	}
	if err != nil {
		a.log.Warn("what passed is not kept over a restart", "err", err)
	}
}

// resume takes back what a held run of the same report had found, on the same
// hardware and image and for the same checks, and forgets it.
func (a *Agent) resume(want burnin.Report) (burnin.Report, bool) {
	b, err := os.ReadFile(a.heldFile())
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			a.log.Warn("what a held burn-in had found is not read", "err", err)
		}
		return want, false
	}
	a.forget()
	rep, err := burnin.ParseJSON(bytes.NewReader(b))
	if err != nil {
		a.log.Warn("what a held burn-in had found is damaged: it begins anew", "err", err)
		return want, false
	}
	if rep.ID != want.ID || rep.Node != want.Node || rep.Image != want.Image || rep.HWDigest != want.HWDigest ||
		rep.Kernel != want.Kernel || rep.Driver != want.Driver || len(rep.Results) > len(want.Profile.Checks) {
		return want, false
	}
	for i, r := range rep.Results {
		if r.ID != want.Profile.Checks[i].ID {
			return want, false
		}
	}
	want.Started, want.Results, want.Series = rep.Started, rep.Results, rep.Series
	return want, true
}

// forget forgets what a held run had found.
func (a *Agent) forget() {
	if err := os.Remove(a.heldFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		a.log.Warn("what a held burn-in had found is not removed", "err", err)
	}
}

// limits keeps the power limit of the cards at what the load says. It needs
// the helper, because it needs the driver's library.
func (a *Agent) limits(ctx context.Context) {
	set := a.state.get().Cap // of an earlier process; after a restart the cards are at their default
	var b backoff
	for {
		want, changed := a.load.get()
		if want.Cap != set {
			// Noted first: a limit that nobody remembers is never lifted.
			err := a.state.update(func(v *stateFile) { v.Cap = max(v.Cap, want.Cap) })
			out := ""
			if err == nil {
				out, err = a.limitCards(ctx, want.Cap)
			}
			if err == nil {
				err = a.state.update(func(v *stateFile) { v.Cap = want.Cap })
			}
			switch {
			case err == nil:
				set = want.Cap
				b.reset()
				a.log.Info("power limit of the cards", "share", want.Cap, "result", out)
			case ctx.Err() == nil:
				a.log.Error("power limit of the cards is not set, trying again", "share", want.Cap, "err", err)
				b.wait(ctx)
				continue
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// limitCards has the helper set the limit of every card to share of its
// default; 0 is the default itself.
func (a *Agent) limitCards(ctx context.Context, share float64) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	in, err := json.Marshal(map[string]float64{"share": share})
	if err != nil {
		return "", err
	}
	c := exec.CommandContext(ctx, a.c.GPUHelper, "limit")
	var out, stderr bytes.Buffer
	c.Stdin, c.Stdout, c.Stderr = bytes.NewReader(in), &limited{buf: &out}, &limited{buf: &stderr}
	c.WaitDelay = 5 * time.Second
	if err := c.Run(); err != nil {
		return "", fmt.Errorf("smelt-gpu limit: %w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(out.String()), nil
}
