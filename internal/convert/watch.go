package convert

import (
	"context"
	"time"

	"smelt/inventory"
	"smelt/power"
)

// agentSilence is how long an agent that has work may say nothing before its
// machine is looked at. An agent reports progress every second, and the longest
// silence of a healthy one is a boot.
const agentSilence = 5 * time.Minute

const silent = "its agent is silent"

// watch looks after a machine whose agent has fallen silent. One that is off,
// after a power cut or a stray hand, is switched on again and goes on where it
// was; one that is on is left to a person, who is told.
func (t *turn) watch(dev power.Device) error {
	v := t.Power[t.n.ID]
	if v == nil || t.busy() {
		return nil
	}
	silence := agentSilence
	if t.testOnlyPause > 0 {
		silence = t.testOnlyPause
	}
	h, err := t.here()
	if err != nil {
		return err
	}
	if off, err := t.switchedOff(); err != nil || off != "" {
		if off != "" {
			t.note("%s switched it off: smelt power on %s", off, t.n.ID)
		}
		return err
	}
	last := t.n.Since
	for i := range h {
		if h[i].Kind == inventory.KindPower {
			last = h[i].At
		}
	}
	t.mu.Lock()
	for _, at := range []time.Time{t.begun, t.live[t.n.ID].LastSeen, t.asked[t.n.ID]} {
		if at.After(last) {
			last = at
		}
	}
	t.mu.Unlock()
	if quiet := t.at.Sub(last); quiet < silence {
		t.unsay(silent)
		t.again(silence - quiet)
		return nil
	}
	since, heard := t.n.Since, last
	t.start("look", func(ctx context.Context) func(*turn) error {
		state, err := v.State(ctx)
		var ev power.Evidence
		if err == nil && state == power.Off {
			if err = t.Budget.Grant(t.n.ID, t.n.Spec.Circuit, t.watts(t.n), t.Now()); err == nil {
				ev, err = v.Cycle(ctx, dev)
			}
		}
		return func(t *turn) error {
			t.pause(silence)
			switch {
			case !t.n.Since.Equal(since):
			case err != nil:
				t.note(silent+" since %s, and %s: %v", heard.Format(time.TimeOnly), v, err)
			case state == power.Off:
				t.add(inventory.Event{Kind: inventory.KindPower, Actor: system, Reason: "it was found off; switched on again", Evidence: ev.Map(),
					Power: &inventory.PowerFact{On: power.On.String(), Via: ev.Controller, At: t.at}})
			default:
				t.note(silent+" since %s; its power is %s: look at its screen", heard.Format(time.TimeOnly), state)
			}
			return nil
		}
	})
	return nil
}

// switchedOff names who switched the machine off on purpose, or "" when nobody
// did or it was heard of since.
func (t *turn) switchedOff() (string, error) {
	if t.n.Power.On != power.Off.String() || t.Live(t.n.ID).LastSeen.After(t.n.Power.At) {
		return "", nil
	}
	h, err := t.all()
	if err != nil {
		return "", err
	}
	for i := len(h) - 1; i >= 0; i-- {
		if h[i].Kind == inventory.KindPower && h[i].Actor != system {
			return h[i].Actor, nil
		} else if h[i].Kind == inventory.KindPower {
			break
		}
	}
	return "", nil
}
