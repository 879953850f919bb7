package bmc

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"smelt/internal/vbmc"
	"smelt/power"
)

// A verdict is how a verb must end.
type verdict string

const (
	works verdict = "ok"    // and the machine did it
	fails verdict = "error" // with evidence
	// blind: the BMC says that there is nothing to do. Who asks only the BMC
	// cannot know better; the verb sends nothing and says that it was so
	// already. A cycle is never blind: it must see off and on.
	blind verdict = "blind"
)

// TestLies holds each verb against each lie. Whatever the BMC does: no ok
// without the deed, no other machine touched, no login too many, no session
// left behind once it answers again.
func TestLies(t *testing.T) {
	const ms = time.Millisecond
	// Most of them wait for a limit: more at a time than there are processors.
	var all sync.WaitGroup
	defer all.Wait()
	places := make(chan struct{}, 16)
	for name, lie := range map[string]lie{
		"honest":               {on: works, off: works, soft: works, restart: works},
		"hang":                 {faults: vbmc.RedfishFaults{Hang: true}, on: fails, off: fails, soft: fails, restart: fails, says: "did not answer in time"},
		"slow":                 {faults: vbmc.RedfishFaults{Slow: 10 * ms}, on: works, off: works, soft: works, restart: works},
		"slow TLS":             {faults: vbmc.RedfishFaults{SlowTLS: 30 * ms}, on: works, off: works, soft: works, restart: works},
		"endless TLS":          {faults: vbmc.RedfishFaults{SlowTLS: time.Hour}, on: fails, off: fails, soft: fails, restart: fails, says: "did not answer in time"},
		"500 to everything":    {faults: vbmc.RedfishFaults{Status: 500}, on: fails, off: fails, soft: fails, restart: fails, says: "500"},
		"500 and done":         {faults: vbmc.RedfishFaults{ResetFails: 500}, on: works, off: works, soft: works, restart: works},
		"409 and done":         {faults: vbmc.RedfishFaults{ResetFails: 409}, on: works, off: works, soft: works, restart: works},
		"204 and nothing":      {faults: vbmc.RedfishFaults{Ignore: true}, on: fails, off: fails, soft: fails, restart: fails, says: "still o"},
		"says on":              {faults: vbmc.RedfishFaults{State: "On"}, on: blind, off: fails, soft: fails, restart: fails, says: "still on"},
		"says off":             {faults: vbmc.RedfishFaults{State: "Off"}, on: fails, off: blind, soft: blind, restart: fails, says: "still off"},
		"says PoweringOff":     {faults: vbmc.RedfishFaults{State: "PoweringOff"}, on: fails, off: fails, soft: fails, restart: fails, says: "nothing was done"},
		"says Paused":          {faults: vbmc.RedfishFaults{State: "Paused"}, on: fails, off: fails, soft: fails, restart: fails, says: "nothing was done"},
		"PoweringOff for long": {faults: vbmc.RedfishFaults{Lag: 80 * ms}, on: works, off: works, soft: works, restart: works},
		"never gets there":     {faults: vbmc.RedfishFaults{Lag: time.Hour}, on: fails, off: fails, soft: fails, restart: fails, says: "still unknown"},
		"no PowerCycle":        {faults: vbmc.RedfishFaults{Reject: []string{"PowerCycle", "ForceRestart"}}, on: works, off: works, soft: works, restart: works},
		"no ForceOff":          {faults: vbmc.RedfishFaults{Reject: []string{"ForceOff"}}, on: works, off: fails, soft: works, restart: fails, says: "the BMC offers"},
		"refuses ForceOff":     {faults: vbmc.RedfishFaults{Refuse: []string{"ForceOff"}}, on: works, off: fails, soft: works, restart: fails, says: "ResetType ForceOff"},
		"refuses On":           {faults: vbmc.RedfishFaults{Refuse: []string{"On"}}, on: fails, off: works, soft: works, restart: fails, says: "ResetType On"},
		"forgets the override": {faults: vbmc.RedfishFaults{BootIgnore: true}, on: works, off: works, soft: works, restart: fails, says: "the machine is off and stays off"},
		"forgets it later":     {faults: vbmc.RedfishFaults{BootForget: true}, on: works, off: works, soft: works, restart: works, forgets: true},
		"keeps Once for ever":  {faults: vbmc.RedfishFaults{BootAlways: true}, on: works, off: works, soft: works, restart: works},
		"no session free":      {faults: vbmc.RedfishFaults{Sessions: -1}, on: fails, off: fails, soft: fails, restart: fails, says: "SessionLimit"},
		"logout fails":         {faults: vbmc.RedfishFaults{LogoutFails: true}, on: works, off: works, soft: works, restart: works},
		"login lost":           {faults: vbmc.RedfishFaults{LoginLost: true}, on: fails, off: fails, soft: fails, restart: fails, says: "did not answer in time"},
		"truncated":            {faults: vbmc.RedfishFaults{Truncate: true}, on: fails, off: fails, soft: fails, restart: fails, says: "no JSON"},
		"huge":                 {faults: vbmc.RedfishFaults{Huge: true}, on: fails, off: fails, soft: fails, restart: fails, says: "larger than"},
		"redirects":            {faults: vbmc.RedfishFaults{Redirect: "https://127.0.0.1:1"}, on: fails, off: fails, soft: fails, restart: fails, says: "redirects are not followed"},
		"key changes midway":   {faults: vbmc.RedfishFaults{NewKey: true}, on: fails, off: fails, soft: fails, restart: fails, says: "somebody else answers"},
		"action elsewhere":     {faults: vbmc.RedfishFaults{Crossed: true}, on: fails, off: fails, soft: fails, restart: fails, says: "not part of it"},
		"no right":             {faults: vbmc.RedfishFaults{Status: 403}, on: fails, off: fails, soft: fails, restart: fails, says: "403"},
		"password expired":     {before: (*vbmc.Redfish).Expire, on: fails, off: fails, soft: fails, restart: fails, says: "password is changed"},
	} {
		for verb, want := range map[string]verdict{"on": lie.on, "off": lie.off, "soft-off": lie.soft, "cycle": lie.restart} {
			places <- struct{}{}
			all.Go(func() {
				defer func() { <-places }()
				t.Run(name+"/"+verb, func(t *testing.T) {
					problems := lie.tell(t, verb, want, 700*ms)
					if len(problems) > 0 && want == fails {
						// A busy host runs into the limit before the lie is met.
						problems = lie.tell(t, verb, want, 10*time.Second)
					}
					for _, p := range problems {
						t.Error(p)
					}
				})
			})
		}
	}
}

// A lie, and how each verb must end.
type lie struct {
	faults                 vbmc.RedfishFaults
	before                 func(*vbmc.Redfish)
	on, off, soft, restart verdict
	says                   string // in each error, or its evidence
	// forgets: it reads back the boot override and boots from elsewhere. Who asks
	// only the BMC cannot know; whether the machine asks DHCP is the truth, and
	// the conductor's to see.
	forgets bool
}

// tell has a BMC tell the lie to one verb, and returns what went wrong.
func (l lie) tell(t *testing.T, verb string, want verdict, limit time.Duration) (problems []string) {
	problem := func(format string, a ...any) { problems = append(problems, fmt.Sprintf(format, a...)) }
	var m, other vbmc.Switch
	if verb != "on" {
		_ = m.PowerOn(t.Context())
	}
	r := startRedfishWith(t, vbmc.RedfishConfig{System: "node", Others: []vbmc.RedfishSystem{{ID: "other", Power: &other}}}, &m)
	r.SetFaults(l.faults)
	if l.before != nil {
		l.before(r)
	}
	started := len(m.Boots())
	c := open(t, Config{Kind: "redfish", Address: r.Addr().String(), SystemID: "node", Sessions: t.TempDir()})
	if want != fails {
		limit = 20 * time.Second // for what works, however busy the host is
	}
	v := power.Verify(c, power.Limits{Reach: limit, Soft: limit, Poll: 40 * time.Millisecond, Dwell: time.Millisecond, Spacing: time.Millisecond})
	e, err := map[string]func(context.Context) (power.Evidence, error){
		"on": v.On, "off": v.Off, "soft-off": v.SoftOff,
		"cycle": func(ctx context.Context) (power.Evidence, error) { return v.Cycle(ctx, power.Network) },
	}[verb](t.Context())

	s := r.Stats()
	switch want {
	case works:
		if err != nil || m.On() != (verb == "on" || verb == "cycle") || e.After != map[bool]string{true: "on", false: "off"}[m.On()] {
			problem("error %v, machine on %v, evidence %+v", err, m.On(), e)
		}
		if b := m.Boots(); verb == "cycle" && (len(b) != started+1 || (b[len(b)-1] == vbmc.BootNetwork) == l.forgets) {
			problem("boots %v", b)
		}
	case blind:
		if err != nil || len(s.Resets) != 0 || !strings.Contains(strings.Join(e.Notes, " "), "already") {
			problem("error %v, resets %q, evidence %+v", err, s.Resets, e)
		}
	case fails:
		said := strings.Join(e.Notes, " ")
		if err != nil {
			said += err.Error()
		}
		if err == nil || !strings.Contains(said, l.says) || !strings.Contains(err.Error(), c.String()) {
			problem("error %v, want %q of %s; machine on %v, evidence %+v", err, l.says, c, m.On(), e)
		}
	}
	if e.Verb != verb || e.Controller != c.String() || e.Took <= 0 {
		problem("evidence %+v", e)
	}
	if other.On() || len(other.Boots()) != 0 {
		problem("the other machine was touched")
	}
	if s.FailedLogins != 0 || len(s.Resets) > 3 {
		problem("%d logins failed, resets %q", s.FailedLogins, s.Resets)
	}
	if errors.Is(err, power.ErrAuth) != (l.before != nil || l.faults.Status == 403) {
		problem("taken for a refused credential: %v", err)
	}
	r.SetFaults(vbmc.RedfishFaults{})
	if l.before == nil {
		if err := c.Sweep(t.Context()); err != nil {
			problem("%v", err)
		}
	}
	if n := r.Stats().OpenSessions; n != 0 {
		problem("%d sessions are left", n)
	}
	return problems
}

// One wrong credential is one failed login, whatever is tried afterwards, and
// a BMC that locks users out after three is still open.
func TestLockOut(t *testing.T) {
	var m vbmc.Switch
	r := startRedfish(t, &m)
	r.SetFaults(vbmc.RedfishFaults{Lock: 3})
	at := r.Addr().String()
	v := power.Verify(open(t, Config{Kind: "redfish", Address: at, Password: is("wrong"), Sessions: t.TempDir()}), power.Limits{Reach: time.Second, Spacing: time.Millisecond})
	for name, verb := range map[string]func(context.Context) (power.Evidence, error){"on": v.On, "off": v.Off, "soft off": v.SoftOff} {
		if _, err := verb(t.Context()); !errors.Is(err, power.ErrAuth) {
			t.Errorf("%s: error %v", name, err)
		}
	}
	if _, err := v.Readings(t.Context()); !errors.Is(err, power.ErrAuth) {
		t.Errorf("readings: error %v", err)
	}
	if s := r.Stats(); s.FailedLogins != 1 || s.Locked {
		t.Errorf("%d logins failed, locked %v", s.FailedLogins, s.Locked)
	}
	// The lock is real: three raw calls close it for the right password, too.
	for range 2 {
		_, _ = open(t, Config{Kind: "redfish", Address: at, Password: is("wrong")}).State(t.Context())
	}
	if _, err := open(t, Config{Kind: "redfish", Address: at}).State(t.Context()); !errors.Is(err, power.ErrAuth) || !r.Stats().Locked {
		t.Errorf("error %v, locked %v", err, r.Stats().Locked)
	}
}

// A BMC whose PowerState is another one at each read is believed in nothing.
func TestToggle(t *testing.T) {
	for verb, on := range map[string]bool{"on": false, "off": true, "soft-off": true, "cycle": true} {
		var m vbmc.Switch
		if on {
			_ = m.PowerOn(t.Context())
		}
		r := startRedfish(t, &m)
		r.SetFaults(vbmc.RedfishFaults{Toggle: true, Ignore: true})
		v := power.Verify(open(t, Config{Kind: "redfish", Address: r.Addr().String()}),
			power.Limits{Reach: 300 * time.Millisecond, Soft: 300 * time.Millisecond, Poll: 10 * time.Millisecond, Dwell: time.Millisecond, Spacing: time.Millisecond})
		e, err := map[string]func(context.Context) (power.Evidence, error){
			"on": v.On, "off": v.Off, "soft-off": v.SoftOff,
			"cycle": func(ctx context.Context) (power.Evidence, error) { return v.Cycle(ctx, power.Network) },
		}[verb](t.Context())
		if !errors.Is(err, power.ErrNotReached) {
			t.Errorf("%s: error %v, evidence %+v", verb, err, e)
		}
	}
}
