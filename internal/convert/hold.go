package convert

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"smelt/internal/store"
	"smelt/inventory"
)

// What was decided about the power of the site is a blob of the site beside
// the global stop. People ask for it by intents without a node; only the
// conductor writes it.
const hallBlob = "site/power"

// Verbs of intents about the power of the whole site.
const (
	verbHold       = "power-hold"
	verbResume     = "power-resume"
	verbBlackout   = "power-blackout"
	verbRelease    = "power-release"
	verbCurtail    = "power-curtail"
	verbCurtailEnd = "power-curtail-end"
)

// SitePower is what was decided about the power of the site.
func (c *Conductor) SitePower() inventory.SitePower {
	c.mu.Lock()
	defer c.mu.Unlock()
	return cloneHall(c.hall)
}

// cloneHall makes a copy that nobody else changes.
func cloneHall(h inventory.SitePower) inventory.SitePower {
	if h.Hold != nil {
		v := *h.Hold
		h.Hold = &v
	}
	if h.Blackout != nil {
		v := *h.Blackout
		v.Lost, v.Back, v.Failed = slices.Clone(v.Lost), slices.Clone(v.Back), slices.Clone(v.Failed)
		h.Blackout = &v
	}
	if h.Curtail != nil {
		v := *h.Curtail
		v.Steps = slices.Clone(v.Steps)
		h.Curtail = &v
	}
	h.Windows = maps.Clone(h.Windows)
	return h
}

func (c *Conductor) loadHall(ctx context.Context) error {
	b, err := c.Store.Blob(ctx, "", hallBlob)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	var h inventory.SitePower
	if err := json.Unmarshal(b.Data, &h); err != nil {
		return fmt.Errorf("power of the site: %w", err)
	}
	c.mu.Lock()
	c.hall = h
	c.mu.Unlock()
	// The budget of a new process knows nothing of it.
	if h.Hold != nil {
		c.Budget.Hold(h.Hold.Reason)
	}
	if b := h.Blackout; b != nil && !b.Over() {
		c.Budget.Blackout(b.At, c.wereOn(b))
		if !b.Released.IsZero() {
			c.Budget.Released(b.Released)
		}
	}
	if h.Curtail != nil {
		c.Budget.Ceiling(max(0, h.Curtail.Base-h.Curtail.Watts), h.Curtail.Why)
	}
	return nil
}

// decideHall changes what was decided and makes it durable. Only one caller at a
// time changes it: tend and the conductor's own intents share hallLock.
func (c *Conductor) decideHall(ctx context.Context, change func(*inventory.SitePower) error) error {
	c.hallLock.Lock()
	defer c.hallLock.Unlock()
	if _, err := c.leading(); err != nil {
		return err
	}
	h := c.SitePower()
	if err := change(&h); err != nil {
		return err
	}
	data, err := json.Marshal(h)
	if err != nil {
		return err
	}
	c.boundary("", "before site power")
	if err := c.Store.PutBlob(ctx, store.Blob{Name: hallBlob, Type: "application/json", Data: data, At: c.Now().UTC()}); err != nil {
		return fmt.Errorf("power of the site: %w", err)
	}
	c.boundary("", "after site power")
	c.mu.Lock()
	c.hall = h
	c.mu.Unlock()
	return nil
}

// orderPower carries out what a person asked of the site's power.
func (c *Conductor) orderPower(ctx context.Context, i store.Intent) error {
	if i.Verb != verbHold && i.Verb != verbBlackout { // to stop is never too late
		if err := c.outlived(i); err != nil {
			return err
		}
	}
	now := c.Now().UTC()
	reason := strings.TrimSpace(i.Params["reason"])
	switch i.Verb {
	case verbHold:
		return c.hold(ctx, inventory.PowerHold{By: i.Actor, Reason: reason, At: now})
	case verbResume:
		return c.resume(ctx, i.Actor)
	case verbBlackout:
		return c.blackout(ctx, i.Actor, reason, c.believedOn())
	case verbRelease:
		return c.releaseBlackout(ctx, i.Actor)
	case verbCurtail:
		watts, err := strconv.ParseFloat(i.Params["watts"], 64)
		if err != nil {
			return fmt.Errorf("watts %q: want a number", i.Params["watts"])
		}
		within, err := time.ParseDuration(i.Params["within"])
		if err != nil {
			return fmt.Errorf("within %q: want a duration such as 10m", i.Params["within"])
		}
		var until time.Time
		if u := i.Params["until"]; u != "" {
			if until, err = time.Parse(time.RFC3339, u); err != nil {
				return fmt.Errorf("until %q: want a time such as 2026-11-22T16:00:00Z", u)
			}
		}
		return c.curtail(ctx, CurtailOrder{By: i.Actor, Why: reason, Watts: watts, Within: within, Until: until})
	case verbCurtailEnd:
		return c.endCurtail(ctx, i.Actor)
	}
	return fmt.Errorf("unknown verb %q", i.Verb)
}

// sitePower tells whether an intent is about the power of the site.
func sitePower(i store.Intent) bool { return i.Node == "" && strings.HasPrefix(i.Verb, "power-") }

// hold lets nothing start and no burn-in begin another check.
func (c *Conductor) hold(ctx context.Context, h inventory.PowerHold) error {
	err := c.decideHall(ctx, func(s *inventory.SitePower) error {
		if s.Hold != nil {
			return fmt.Errorf("held already by %s since %s: %s", s.Hold.By, s.Hold.At.Format(time.RFC3339), s.Hold.Reason)
		}
		s.Hold = &h
		c.Budget.Hold(h.Reason)
		return nil
	})
	if err == nil {
		c.Log.Warn("power hold", "actor", h.By, "reason", h.Reason)
		c.loadsChanged()
	}
	return err
}

// resume lifts the hold.
func (c *Conductor) resume(ctx context.Context, actor string) error {
	err := c.decideHall(ctx, func(s *inventory.SitePower) error {
		if s.Hold == nil {
			return errors.New("nothing is held")
		}
		s.Hold = nil
		return nil
	})
	if err == nil {
		c.Budget.Resume()
		c.Log.Warn("power hold lifted", "actor", actor)
		c.loadsChanged()
	}
	return err
}

// loadsChanged makes every agent ask for its load, and everything that waits
// for power ask for it again.
func (c *Conductor) loadsChanged() {
	now := c.Now()
	for _, m := range c.machines() {
		if burning(m.state) {
			c.announce(m.id)
		}
		if !resting(m.state) {
			c.poke(m.id, now)
		}
	}
}

// capShare is what a capped card may draw of its default limit. Cards lose far
// less work than power: at 60 % an RTX 3090 keeps some 85 % of its throughput
// (unverified here).
const capShare = 0.6

// load is how much the machine may draw while it does its order.
func (t *turn) load() inventory.Load {
	var l inventory.Load
	t.mu.Lock()
	held := t.hall.Hold != nil
	t.mu.Unlock()
	if held {
		l.Pause = inventory.PauseAfter
	}
	for _, s := range t.n.Shed {
		switch s.Do {
		case inventory.ShedPause:
			l.Pause = inventory.PauseNow
		case inventory.ShedCap:
			l.Cap = capShare
		}
	}
	return l
}

// burning tells whether a node in the state runs checks.
func burning(s inventory.State) bool { return s == inventory.BurningIn || s == inventory.ReVerifying }
