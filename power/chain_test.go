package power_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"smelt/power"
)

// A rig is a machine with an agent on it, a BMC, a card that wakes it, and two
// outlets: what several controllers see of one thing.
type rig struct {
	mu       sync.Mutex
	outlet   [2]bool
	running  bool
	restores bool // "restore on AC loss: power on"
	agent    bool // an agent runs on it whenever it runs
	slow     time.Duration
	powered  time.Time // since when its BMC has power
	heard    time.Time
	calls    []string
}

func (m *rig) power() bool { return m.outlet[0] || m.outlet[1] }

// speak lets the agent say something, if there is one.
func (m *rig) speak() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.running && m.agent {
		m.heard = time.Now()
	}
	return m.heard
}

func (m *rig) plug(i int, on bool) {
	had := m.power()
	m.outlet[i] = on
	switch {
	case !m.power():
		m.running = false
	case !had:
		m.powered = time.Now()
		m.running = m.running || m.restores
	}
}

// A manner is how a link behaves.
type manner struct {
	ignores, fails, forgets bool // accepts and does nothing; fails and did it; fails and did nothing
	auth, dead, unknown     bool
	says                    power.State // whatever is the case
}

// A part is one controller of the rig.
type part struct {
	*rig
	kind string // bmc, outlet0, outlet1, agent, wake
	manner
}

func (p *part) String() string { return p.kind + " (simulated)" }

func (p *part) reach() error {
	switch {
	case p.auth:
		p.calls = append(p.calls, p.kind+" refuses")
		return fmt.Errorf("wrong password: %w", power.ErrAuth)
	case p.dead, p.kind == "bmc" && (!p.power() || time.Since(p.powered) < p.slow):
		return errors.New("no route to host")
	}
	return nil
}

func (p *part) State(context.Context) (power.State, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.reach(); err != nil {
		return power.Unknown, err
	}
	is := p.running
	switch p.kind {
	case "outlet0", "outlet1":
		is = p.outlet[p.kind[6]-'0']
	case "agent", "wake":
		return power.Unknown, power.ErrUnsupported
	}
	switch {
	case p.says != 0:
		return p.says, nil
	case p.unknown:
		return power.Unknown, nil
	case is:
		return power.On, nil
	}
	return power.Off, nil
}

func (p *part) Set(_ context.Context, s power.State) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.kind == "agent" || p.kind == "wake" && s == power.Off {
		return power.ErrUnsupported
	}
	if err := p.reach(); err != nil {
		return err
	}
	p.calls = append(p.calls, fmt.Sprintf("%s %s", p.kind, s))
	if p.forgets {
		return errors.New("500")
	}
	if !p.ignores {
		switch p.kind {
		case "outlet0", "outlet1":
			p.plug(int(p.kind[6]-'0'), s == power.On)
		case "wake", "bmc":
			p.running = s == power.On && p.power()
		}
	}
	if p.fails {
		return errors.New("500")
	}
	return nil
}

func (p *part) BootOnce(_ context.Context, d power.Device) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.kind != "bmc" {
		return power.ErrUnsupported
	}
	if err := p.reach(); err != nil {
		return err
	}
	p.calls = append(p.calls, "boot "+d.String())
	return nil
}

// A lively part hears of the machine.
type lively struct{ *part }

func (l lively) Heard() (time.Time, string) { return l.speak(), "its agent" }

func (l lively) SoftOff(context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.kind != "agent" || !l.running || !l.agent {
		return power.ErrUnsupported
	}
	l.calls = append(l.calls, "agent shuts down")
	l.running = l.ignores
	return nil
}

// chain makes a verified chain of parts: "agent, bmc, outlet0".
func (m *rig) chain(t testing.TB, parts string, manners map[string]manner) *power.Verified {
	t.Helper()
	var links []power.Link
	for name := range strings.SplitSeq(parts, ", ") {
		p := &part{rig: m, kind: name, manner: manners[name]}
		switch name {
		case "agent", "wake":
			links = append(links, power.Link{Controller: lively{p}, Proves: power.Life})
		case "bmc":
			links = append(links, power.Link{Controller: p, Proves: power.Machine})
		default:
			links = append(links, power.Link{Controller: p, Proves: power.Supply})
		}
	}
	c, err := power.NewChain(links...)
	if err != nil {
		t.Fatal(err)
	}
	return power.Verify(c, power.Limits{Reach: 3 * time.Minute})
}

func do(ctx context.Context, v *power.Verified, verb string) (power.Evidence, error) {
	switch verb {
	case "on":
		return v.On(ctx)
	case "off":
		return v.Off(ctx)
	case "soft":
		return v.SoftOff(ctx)
	}
	return v.Cycle(ctx, power.Network)
}

// What the links of a chain may do to a verb, and what must come of it.
func TestChain(t *testing.T) {
	const both = "agent, bmc, outlet0, outlet1"
	type ms = map[string]manner
	running := rig{outlet: [2]bool{true, true}, running: true, agent: true}
	off := rig{outlet: [2]bool{true, true}}
	dark := rig{}
	for _, c := range []struct {
		name    string
		start   *rig
		parts   string
		manners ms
		verb    string
		err     error  // nil: the verb succeeds
		calls   string // what was sent
		end     string // running, power, dark
		noted   string // in the evidence
	}{
		{"the BMC does it", &running, both, nil, "off", nil, "bmc off", "power", "off by bmc"},
		{"the BMC is dead", &running, both, ms{"bmc": {dead: true}}, "off", nil, "outlet0 off, outlet1 off", "dark", "off by all outlets"},
		{"the BMC accepts and does nothing", &running, both, ms{"bmc": {ignores: true}}, "off", nil, "bmc off, outlet0 off, outlet1 off", "dark", "accepted to switch off"},
		{"the BMC fails and did it", &running, both, ms{"bmc": {fails: true}}, "off", nil, "bmc off", "power", "failed"},
		{"the BMC refuses", &running, both, ms{"bmc": {auth: true}}, "off", nil, "bmc refuses, outlet0 off, outlet1 off", "dark", "off by all outlets"},
		{"nothing helps", &running, both, ms{"bmc": {ignores: true}, "outlet1": {ignores: true}}, "off", power.ErrNotReached, "bmc off, outlet0 off, outlet1 off", "running", ""},
		{"an outlet is dead", &running, both, ms{"bmc": {ignores: true}, "outlet1": {dead: true}}, "off", power.ErrNotReached, "bmc off, outlet0 off", "running", ""},
		{"off already", &dark, both, ms{}, "off", nil, "", "dark", "already"},
		{"an outlet that does not know", &running, "agent, outlet0, outlet1", ms{"outlet1": {unknown: true}}, "off", power.ErrNotReached, "outlet0 off, outlet1 off", "dark", ""},

		{"shut down by the agent", &running, both, nil, "soft", nil, "agent shuts down", "power", ""},
		{"the agent does not obey", &running, both, ms{"agent": {ignores: true}}, "soft", power.ErrNotReached, "agent shuts down", "running", ""},
		{"nobody can shut it down", &running, "bmc, outlet0, outlet1", nil, "soft", power.ErrUnsupported, "", "running", ""},

		{"on by the BMC", &off, both, nil, "on", nil, "bmc on", "running", ""},
		{"on needs its outlets", &dark, both, nil, "on", nil, "outlet0 on, outlet1 on, bmc on", "running", "power by outlet0"},
		{"the BMC starts slowly", &rig{slow: 100 * time.Second}, both, nil, "on", nil, "outlet0 on, outlet1 on, bmc on", "running", ""},
		{"on by itself", &rig{restores: true, slow: 30 * time.Second}, both, nil, "on", nil, "outlet0 on, outlet1 on", "running", "on by itself"},
		{"an outlet stays off", &dark, both, ms{"outlet1": {ignores: true}}, "on", power.ErrNotReached, "outlet0 on, outlet1 on", "power", ""},
		{"on, the BMC lies", &off, both, ms{"bmc": {ignores: true}}, "on", power.ErrNotReached, "bmc on", "power", "accepted to switch on"},
		{"woken instead", &rig{outlet: [2]bool{true, true}, agent: true}, "bmc, wake, outlet0, outlet1", ms{"bmc": {forgets: true}}, "on", nil, "bmc on, wake on", "running", ""},
		{"woken, and nobody hears", &off, "wake, outlet0, outlet1", nil, "on", power.ErrNotReached, "", "power", ""},
		{"woken", &rig{agent: true}, "wake, outlet0, outlet1", nil, "on", nil, "outlet0 on, outlet1 on, wake on", "running", ""},
		{"the BMC says on, and that is all", &off, both, ms{"bmc": {unknown: true}}, "on", power.ErrNotReached, "", "power", ""},

		{"cycle by the BMC", &running, both, nil, "cycle", nil, "bmc off, boot network, bmc on", "running", ""},
		{"cycle by the outlets, then the BMC lives", &rig{outlet: [2]bool{true, true}, running: true, slow: 90 * time.Second}, both, nil, "cycle", nil, "bmc off, boot network, bmc on", "running", ""},
		{"cycle, the BMC hangs until it had no power", &running, "agent, bmc, outlet0, outlet1", ms{"bmc": {ignores: true}}, "cycle", power.ErrNotReached, "bmc off, outlet0 off, outlet1 off, outlet0 on, outlet1 on, boot network, bmc on", "power", ""},
		{"cycle of a rig without a BMC", &rig{outlet: [2]bool{true, true}, running: true, agent: true, restores: true}, "agent, outlet0, outlet1", nil, "cycle", nil, "outlet0 off, outlet1 off, outlet0 on, outlet1 on", "running", ""},
		{"cycle of a rig that hangs", &rig{outlet: [2]bool{true, true}, running: true, restores: true}, "agent, outlet0, outlet1", nil, "cycle", power.ErrNotReached, "outlet0 off, outlet1 off, outlet0 on, outlet1 on", "running", ""},
		{"cycle of outlets alone", &rig{outlet: [2]bool{true, true}, running: true, restores: true}, "outlet0, outlet1", nil, "cycle", nil, "outlet0 off, outlet1 off, outlet0 on, outlet1 on", "running", ""},
		{"no way to switch off", &running, "agent, wake", nil, "cycle", power.ErrUnsupported, "", "running", ""},

		{"the BMC says off of a machine that speaks", &running, both, ms{"bmc": {says: power.Off}}, "off", power.ErrNotReached, "", "running", ""},
		{"on, of one that is said to be off and speaks", &running, both, ms{"bmc": {says: power.Off}}, "cycle", power.ErrNotReached, "", "running", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := &rig{outlet: c.start.outlet, running: c.start.running, restores: c.start.restores, agent: c.start.agent, slow: c.start.slow, powered: time.Now().Add(-time.Hour)}
				e, err := do(t.Context(), m.chain(t, c.parts, c.manners), c.verb)
				if !errors.Is(err, c.err) || c.err == nil && err != nil {
					t.Errorf("error %v, want %v", err, c.err)
				}
				if got := strings.Join(slices.Compact(m.calls), ", "); got != c.calls {
					t.Errorf("sent %q, want %q", got, c.calls)
				}
				end := "dark"
				if m.running {
					end = "running"
				} else if m.power() {
					end = "power"
				}
				if end != c.end {
					t.Errorf("it is %s, want %s", end, c.end)
				}
				if c.noted != "" && !strings.Contains(strings.Join(e.Notes, "; "), c.noted) {
					t.Errorf("notes %q do not say %q", e.Notes, c.noted)
				}
				if err != nil {
					t.Logf("%v\n%q %v", err, e.Notes, e.Quirks)
				}
			})
		})
	}
}

// A refused credential is tried once, and does not keep the other links from
// being asked; Reset tries it again.
func TestChainRefusedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &rig{outlet: [2]bool{true, true}, running: true}
		manners := map[string]manner{"bmc": {auth: true}}
		v := m.chain(t, "bmc, outlet0, outlet1", manners)
		for range 5 {
			_, _ = v.State(t.Context())
			if _, err := v.Off(t.Context()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Hour)
		}
		refusals := func() (n int) {
			for _, c := range m.calls {
				if c == "bmc refuses" {
					n++
				}
			}
			return n
		}
		if n := refusals(); n != 1 {
			t.Errorf("tried %d times, want once: %q", n, m.calls)
		}
		v.Reset()
		_, _ = v.State(t.Context())
		if n := refusals(); n != 2 {
			t.Errorf("after a reset tried %d times, want one more", n)
		}
	})
}

// Whatever the links do, a verb that succeeded did what it says, and a request
// to shut down never cuts the power.
func TestChainNeverLies(t *testing.T) {
	all := []string{"agent", "bmc", "wake", "outlet0", "outlet1"}
	manners := []manner{{}, {ignores: true}, {fails: true}, {forgets: true}, {auth: true}, {dead: true}, {unknown: true}}
	ok := 0
	rapid.Check(t, func(rt *rapid.T) {
		var parts []string
		how := map[string]manner{}
		for _, p := range rapid.Permutation(all).Draw(rt, "order") {
			if rapid.Bool().Draw(rt, p) {
				parts = append(parts, p)
				how[p] = rapid.SampledFrom(manners).Draw(rt, p+" is")
			}
		}
		if len(parts) < 2 {
			rt.Skip()
		}
		start := &rig{
			outlet: [2]bool{rapid.Bool().Draw(rt, "outlet 0"), rapid.Bool().Draw(rt, "outlet 1")}, restores: rapid.Bool().Draw(rt, "restores"),
			agent: rapid.Bool().Draw(rt, "agent runs"), slow: time.Duration(rapid.IntRange(0, 120).Draw(rt, "BMC starts")) * time.Second,
		}
		for i := range start.outlet { // an outlet that nobody named does not feed it
			if !slices.Contains(parts, fmt.Sprint("outlet", i)) {
				start.outlet[i] = i == 0 && !slices.Contains(parts, "outlet1")
			}
		}
		start.running = start.power() && rapid.Bool().Draw(rt, "runs")
		verbs := rapid.SliceOfN(rapid.SampledFrom([]string{"on", "off", "soft", "cycle"}), 1, 3).Draw(rt, "verbs")
		wrong := ""
		synctest.Test(t, func(t *testing.T) {
			m := start
			m.powered = time.Now().Add(-time.Hour)
			v := m.chain(t, strings.Join(parts, ", "), how)
			for _, verb := range verbs {
				before := len(m.calls)
				e, err := do(t.Context(), v, verb)
				for _, c := range m.calls[before:] {
					if verb == "soft" && !strings.HasPrefix(c, "agent") && !strings.HasSuffix(c, "refuses") {
						wrong = "soft off sent " + c
					}
				}
				if err != nil {
					continue
				}
				ok++
				// Outlets alone can say only that there is power.
				blind := !slices.Contains(parts, "bmc") && !slices.Contains(parts, "agent") && !slices.Contains(parts, "wake")
				switch {
				case verb == "off" || verb == "soft":
					if m.running {
						wrong = fmt.Sprintf("%s is ok and it runs: %+v", verb, e)
					}
				case blind:
					if !m.power() {
						wrong = fmt.Sprintf("%s is ok and no outlet is on: %+v", verb, e)
					}
				case !m.running:
					wrong = fmt.Sprintf("%s is ok and it does not run: %+v", verb, e)
				}
			}
		})
		if wrong != "" {
			rt.Fatal(wrong)
		}
	})
	if ok < 20 {
		t.Errorf("only %d verbs succeeded: this shows nothing", ok)
	}
}

func TestNewChainRefuses(t *testing.T) {
	m := &rig{}
	bmc := power.Link{Controller: &part{rig: m, kind: "bmc"}, Proves: power.Machine}
	for name, links := range map[string][]power.Link{
		"one":            {bmc},
		"proves nothing": {bmc, {Controller: &part{rig: m, kind: "outlet0"}}},
		"no controller":  {bmc, {Proves: power.Supply}},
		"no ears":        {bmc, {Controller: &part{rig: m, kind: "wake"}, Proves: power.Life}},
	} {
		if _, err := power.NewChain(links...); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
