package bmc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"smelt/internal/vbmc"
	"smelt/power"
)

// TestIPMILies holds each verb against each lie of an IPMI BMC, as TestLies
// does for Redfish.
func TestIPMILies(t *testing.T) {
	const ms = time.Millisecond
	var all sync.WaitGroup
	defer all.Wait()
	places := make(chan struct{}, 8)
	for name, lie := range map[string]ipmiLie{
		"honest":            {on: works, off: works, soft: works, restart: works},
		"slow":              {faults: vbmc.IPMIFaults{Slow: 5 * ms}, on: works, off: works, soft: works, restart: works},
		"loses packets":     {faults: vbmc.IPMIFaults{Lose: 2}, on: works, off: works, soft: works, restart: works},
		"acts late":         {delay: 300 * ms, on: works, off: works, soft: works, restart: works},
		"silent":            {faults: vbmc.IPMIFaults{Silent: true}, on: fails, off: fails, soft: fails, restart: fails, says: "does not answer IPMI"},
		"answers no login":  {faults: vbmc.IPMIFaults{PreSession: true}, on: fails, off: fails, soft: fails, restart: fails, says: "lets nobody log in"},
		"no session free":   {faults: vbmc.IPMIFaults{Full: true}, on: fails, off: fails, soft: fails, restart: fails, says: "all sessions of the BMC are taken"},
		"locked out":        {faults: vbmc.IPMIFaults{NoLogin: true}, on: fails, off: fails, soft: fails, restart: fails, says: "user admin", auth: true},
		"knows no state":    {faults: vbmc.IPMIFaults{Blind: 0xd3}, on: fails, off: fails, soft: fails, restart: fails, says: "nothing was done"},
		"starting up":       {faults: vbmc.IPMIFaults{Blind: 0xd2}, on: fails, off: fails, soft: fails, restart: fails, says: "the BMC is starting"},
		"refuses":           {faults: vbmc.IPMIFaults{Refuse: 0xd4}, on: fails, off: fails, soft: fails, restart: fails, says: "the user may not do this"},
		"fails and done":    {faults: vbmc.IPMIFaults{Fails: 0xff}, on: works, off: works, soft: works, restart: works},
		"mute and done":     {faults: vbmc.IPMIFaults{Mute: true}, limit: 3 * time.Second, on: works, off: works, soft: works, restart: works},
		"ok and nothing":    {lie: vbmc.Ignores, on: fails, off: fails, soft: fails, restart: fails, says: "still o"},
		"inverts":           {lie: vbmc.Inverts, on: fails, off: fails, soft: fails, restart: fails, says: "still o"},
		"ignores soft off":  {lie: vbmc.Stubborn, on: works, off: works, soft: fails, restart: works, says: "still on"},
		"says on":           {faults: vbmc.IPMIFaults{Says: "on"}, on: blind, off: fails, soft: fails, restart: fails, says: "still on"},
		"says off":          {faults: vbmc.IPMIFaults{Says: "off"}, on: fails, off: blind, soft: blind, restart: fails, says: "still off"},
		"forgets the boot":  {faults: vbmc.IPMIFaults{ForgetBoot: true}, on: works, off: works, soft: works, restart: fails, says: "the machine is off and stays off"},
		"another boot":      {faults: vbmc.IPMIFaults{OtherBoot: true}, on: works, off: works, soft: works, restart: fails, says: "reads back 15"},
		"boot lasts 60 s":   {faults: vbmc.IPMIFaults{Expires: true}, on: works, off: works, soft: works, restart: works, noted: "forget the boot device after 60 s"},
		"knows no suite 17": {suites: []int{3}, on: fails, off: fails, soft: fails, restart: fails, says: "does not take cipher suite 17"},
	} {
		for verb, want := range map[string]verdict{"on": lie.on, "off": lie.off, "soft-off": lie.soft, "cycle": lie.restart} {
			if verb != "off" && os.Getenv("SMELT_TEST_E2E") != "1" {
				continue // each login is a process: 18 s of processor for all four
			}
			places <- struct{}{}
			all.Go(func() {
				defer func() { <-places }()
				t.Run(name+"/"+verb, func(t *testing.T) {
					problems := lie.tell(t, verb, want, 700*ms)
					if len(problems) > 0 && want == fails {
						// A busy host runs into the limit before the lie is met.
						problems = lie.tell(t, verb, want, 6*time.Second)
					}
					for _, p := range problems {
						t.Error(p)
					}
				})
			})
		}
	}
}

// An ipmiLie, and how each verb must end.
type ipmiLie struct {
	faults                 vbmc.IPMIFaults
	lie                    vbmc.Lie
	delay, limit           time.Duration
	suites                 []int
	on, off, soft, restart verdict
	says                   string // in each error, or its evidence
	noted                  string // in the evidence of a cycle
	auth                   bool   // it is a refused credential
}

// tell has a BMC tell the lie to one verb, and returns what went wrong.
func (l ipmiLie) tell(t *testing.T, verb string, want verdict, limit time.Duration) (problems []string) {
	problem := func(format string, a ...any) { problems = append(problems, fmt.Sprintf(format, a...)) }
	m, other := vbmc.Switch{}, vbmc.Switch{}
	if verb != "on" {
		_ = m.PowerOn(t.Context())
	}
	m.Delay = l.delay
	started := len(m.Boots())
	liar := vbmc.Liar{Power: &m}
	liar.Tell(l.lie)
	b := startMC(t, vbmc.MCConfig{Suites: l.suites, Sessions: 8}, &liar)
	if l.faults.Mute {
		// What waits for an answer that never comes is ended, not logged out.
		t.Cleanup(b.Forget)
	}
	neighbour := startMC(t, vbmc.MCConfig{}, &other)
	b.SetFaults(l.faults)
	c := open(t, Config{Kind: "ipmi", Address: b.Addr().String()})
	switch {
	case l.limit > 0:
		limit = l.limit
	case want != fails:
		limit = 20 * time.Second // for what works, however busy the host is
	}
	v := power.Verify(c, power.Limits{Reach: limit, Soft: limit, Poll: 150 * time.Millisecond, Dwell: time.Millisecond, Spacing: time.Millisecond})
	e, err := map[string]func(context.Context) (power.Evidence, error){
		"on": v.On, "off": v.Off, "soft-off": v.SoftOff,
		"cycle": func(ctx context.Context) (power.Evidence, error) { return v.Cycle(ctx, power.Network) },
	}[verb](t.Context())

	said := strings.Join(e.Notes, " ")
	if err != nil {
		said += err.Error()
	}
	orders := b.Orders()
	switch want {
	case works:
		if err != nil || m.On() != (verb == "on" || verb == "cycle") || e.After != map[bool]string{true: "on", false: "off"}[m.On()] {
			problem("error %v, machine on %v, evidence %+v", err, m.On(), e)
		}
		if boots := m.Boots(); verb == "cycle" && (len(boots) != started+1 || boots[len(boots)-1] != vbmc.BootNetwork) {
			problem("boots %v", boots)
		}
		if verb == "cycle" && !strings.Contains(said, l.noted) {
			problem("evidence %+v does not say %q", e, l.noted)
		}
	case blind:
		if err != nil || len(orders) != 0 || !strings.Contains(said, "already") {
			problem("error %v, orders %v, evidence %+v", err, orders, e)
		}
	case fails:
		if err == nil || !strings.Contains(said, l.says) || !strings.Contains(err.Error(), c.String()) {
			problem("error %v, want %q of %s; machine on %v, evidence %+v", err, l.says, c, m.On(), e)
		}
	}
	if e.Verb != verb || e.Controller != c.String() || e.Took <= 0 {
		problem("evidence %+v", e)
	}
	if n := len(orders); n > 2 || n > 1 && verb != "cycle" {
		problem("orders were repeated: %v", orders)
	}
	if errors.Is(err, power.ErrAuth) != l.auth {
		problem("taken for a refused credential: %v", err)
	}
	if n := b.Stats().Attempts; l.auth && n != 1 {
		problem("%d logins with a refused credential", n)
	}
	if other.On() || len(neighbour.Orders()) != 0 || neighbour.Stats().Packets != 0 {
		problem("the neighbour was touched")
	}
	return problems
}
