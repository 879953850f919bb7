package bmc

import (
	"context"
	"fmt"
	"net/http"

	"smelt/power"
)

// A lamp is how a system or a chassis says that it can be seen:
// LocationIndicatorActive, or its predecessor IndicatorLED.
type lamp struct {
	Active *bool  `json:"LocationIndicatorActive"`
	LED    string `json:"IndicatorLED"`
}

func (l lamp) fitted() bool { return l.Active != nil || l.LED != "" }

// shines tells whether it attracts a person: Lit and Blinking both do.
func (l lamp) shines() bool {
	if l.Active != nil {
		return *l.Active
	}
	return l.LED == "Lit" || l.LED == "Blinking"
}

func (r *redfish) Light() string { return "chassis LED" }

// Identify lights the LED of the system, else of its chassis, and reads it
// back.
func (r *redfish) Identify(ctx context.Context, on bool) error {
	return r.with(ctx, func(s *session) error {
		sys, err := s.system(ctx)
		if err != nil {
			return err
		}
		if sys.fitted() {
			return s.shine(ctx, sys.ID, sys.lamp, sys.etags, on)
		}
		boxes, err := s.boxes(ctx, sys)
		if err != nil {
			return err
		}
		for _, c := range boxes {
			if c.fitted() {
				return s.shine(ctx, c.ID, c.lamp, c.etags, on)
			}
		}
		return fmt.Errorf("the BMC shows no LED of this machine: %w", power.ErrUnsupported)
	})
}

func (s *session) shine(ctx context.Context, at string, l lamp, etags []string, on bool) error {
	var tries []any
	switch {
	case l.Active != nil:
		tries = []any{map[string]bool{"LocationIndicatorActive": on}}
	case on:
		tries = []any{map[string]string{"IndicatorLED": "Blinking"}, map[string]string{"IndicatorLED": "Lit"}}
	default:
		tries = []any{map[string]string{"IndicatorLED": "Off"}}
	}
	var err error
	for _, body := range tries {
		if err = s.patch(ctx, at, etags, body); !answered(err, http.StatusBadRequest) {
			break // the schema lets a BMC have Lit without Blinking
		}
	}
	if err != nil {
		return err
	}
	for _, p := range readBacks {
		if err := pause(ctx, p); err != nil {
			return fmt.Errorf("read back: %w", err)
		}
		var now lamp
		if _, err := s.get(ctx, at, &now); err != nil {
			return fmt.Errorf("read back: %w", err)
		}
		if l = now; now.shines() == on {
			return nil
		}
	}
	return fmt.Errorf("the BMC accepted it, but the LED reads back as %s", map[bool]string{true: "lit", false: "dark"}[l.shines()])
}
