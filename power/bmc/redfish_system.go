package bmc

import (
	"context"
	"fmt"
	"net/http"
	"path"
	"slices"
	"strings"
	"time"

	"smelt/power"
)

// A system is what is read of a ComputerSystem (DSP2046).
type system struct {
	link
	Etag     string `json:"@odata.etag"`
	Settings struct {
		Object link `json:"SettingsObject"`
	} `json:"@Redfish.Settings"`
	PowerState string
	Boot       struct {
		Target  string   `json:"BootSourceOverrideTarget"`
		Enabled string   `json:"BootSourceOverrideEnabled"`
		Mode    string   `json:"BootSourceOverrideMode"`
		Targets []string `json:"BootSourceOverrideTarget@Redfish.AllowableValues"`
		Order   []string `json:"BootOrder"`
		Options link     `json:"BootOptions"`
	}
	Actions struct {
		Reset struct {
			Target string   `json:"target"`
			Types  []string `json:"ResetType@Redfish.AllowableValues"`
			Info   string   `json:"@Redfish.ActionInfo"`
		} `json:"#ComputerSystem.Reset"`
	}
	Manufacturer, Model, SerialNumber, BiosVersion string
	RestorePolicy                                  string `json:"PowerRestorePolicy"`
	LogServices                                    link
	Links                                          struct{ Chassis, ManagedBy []link }
	lamp
	etags []string
}

// state maps PowerState; PoweringOn, PoweringOff, Paused and what firmware
// invents are neither on nor off.
func (s system) state() power.State {
	switch s.PowerState {
	case "On":
		return power.On
	case "Off":
		return power.Off
	}
	return power.Unknown
}

// system finds the one that is meant. A BMC with several (HGX and GH200 have
// two and more) is not guessed at: the systems are listed each time, because
// what was true before a firmware update may now name another machine.
func (s *session) system(ctx context.Context) (system, error) {
	var sys system
	var all struct{ Members []link }
	if _, err := s.get(ctx, s.root.Systems.ID, &all); err != nil {
		return sys, err
	}
	var ids []string
	at := ""
	for _, m := range all.Members {
		id := path.Base(m.ID)
		ids = append(ids, id)
		if id == s.cfg.SystemID || s.cfg.SystemID == "" && len(all.Members) == 1 {
			at = m.ID
		}
	}
	switch {
	case at == "" && s.cfg.SystemID != "":
		return sys, fmt.Errorf("the BMC has no system %q, it has %q: correct power.system of the node", s.cfg.SystemID, ids)
	case at == "":
		return sys, fmt.Errorf("the BMC has %d systems %q: say which one is the node (power.system)", len(ids), ids)
	}
	return s.readSystem(ctx, at)
}

func (s *session) readSystem(ctx context.Context, at string) (system, error) {
	var sys system
	h, err := s.get(ctx, at, &sys)
	if err != nil {
		return system{}, err
	}
	sys.ID, sys.etags = at, etags(h, sys.Etag)
	return sys, nil
}

func (r *redfish) State(ctx context.Context) (power.State, error) {
	state := power.Unknown
	err := r.with(ctx, func(s *session) error {
		sys, err := s.system(ctx)
		if err == nil {
			state = sys.state()
		}
		return err
	})
	return state, err
}

func (r *redfish) Set(ctx context.Context, want power.State) error {
	switch want {
	case power.On:
		return r.reset(ctx, want, "On", "ForceOn")
	case power.Off:
		return r.reset(ctx, want, "ForceOff")
	}
	return fmt.Errorf("set %s: %w", want, power.ErrUnsupported)
}

func (r *redfish) SoftOff(ctx context.Context) error {
	return r.reset(ctx, power.Off, "GracefulShutdown")
}

// Some BMCs refuse to switch on for a while after off (iDRAC10 answers 409;
// Ironic's Redfish driver repeats it too). On is the one command that does no
// harm when it is sent twice.
const busyTries = 3

var busyPause = 2 * time.Second

// reset posts the first of types that the BMC offers, or the first where it
// does not say. A cycle is power.Verified's: ResetType PowerCycle is missing,
// or means a restart without a moment of off, on many BMCs.
func (r *redfish) reset(ctx context.Context, want power.State, types ...string) error {
	return r.with(ctx, func(s *session) error {
		sys, err := s.system(ctx)
		if err != nil {
			return err
		}
		was := sys.state()
		typ, target, err := s.action(ctx, sys, types)
		if err != nil {
			return err
		}
		for try := 1; ; try++ {
			res, body, err := s.send(ctx, http.MethodPost, target, nil, map[string]string{"ResetType": typ})
			if err != nil {
				return err
			}
			if res.StatusCode/100 == 2 {
				return nil
			}
			refused := s.refusal(res, body)
			if !answered(refused, http.StatusBadRequest, http.StatusConflict) {
				return refused
			}
			// 400 and 409 are also said when there is nothing to do.
			now, err := s.readSystem(ctx, sys.ID)
			if err != nil {
				return refused
			}
			if now.state() == want && was == want {
				return nil
			}
			if now.state() == want || want != power.On || try == busyTries || !answered(refused, http.StatusConflict) {
				return fmt.Errorf("%w (the machine is %q)", refused, now.PowerState)
			}
			if err := pause(ctx, busyPause); err != nil {
				return refused
			}
		}
	})
}

// action finds what to post where, without which nothing is done.
func (s *session) action(ctx context.Context, sys system, types []string) (typ, target string, err error) {
	reset := sys.Actions.Reset
	if len(reset.Types) == 0 && reset.Info != "" {
		// OpenBMC lists the values in a resource of their own (ActionInfo).
		var info struct {
			Parameters []struct {
				Name   string
				Values []string `json:"AllowableValues"`
			}
		}
		if _, err := s.get(ctx, reset.Info, &info); err != nil {
			return "", "", fmt.Errorf("which resets the BMC offers: %w", err)
		}
		for _, p := range info.Parameters {
			if p.Name == "ResetType" {
				reset.Types = p.Values
			}
		}
	}
	typ = types[0]
	if len(reset.Types) > 0 {
		i := slices.IndexFunc(types, func(t string) bool { return slices.Contains(reset.Types, t) })
		if i < 0 {
			return "", "", fmt.Errorf("reset %q: the BMC offers %q: %w", types, reset.Types, power.ErrUnsupported)
		}
		typ = types[i]
	}
	if reset.Target == "" {
		return typ, strings.TrimSuffix(sys.ID, "/") + "/Actions/ComputerSystem.Reset", nil
	}
	// An action belongs to its resource (DSP0266): one that is elsewhere would
	// switch another machine.
	if target = sys.part(reset.Target); target == "" {
		return "", "", fmt.Errorf("reset: the action of system %s is said to be at %q, which is not part of it: nothing was done", path.Base(sys.ID), reset.Target)
	}
	return typ, target, nil
}

// part is the path of ref when it is below the system, else "".
func (s system) part(ref string) string {
	at := inService(ref)
	if !strings.HasPrefix(at, strings.TrimSuffix(inService(s.ID), "/")+"/") {
		return ""
	}
	return at
}

// readBacks are the pauses before the reads after a change; firmware takes a
// moment to show it.
var readBacks = []time.Duration{0, 500 * time.Millisecond, 1500 * time.Millisecond}

func (r *redfish) BootOnce(ctx context.Context, d power.Device) error {
	target, ok := map[power.Device]string{power.Network: "Pxe", power.Disk: "Hdd"}[d]
	if !ok {
		return fmt.Errorf("boot once from %s: %w", d, power.ErrUnsupported)
	}
	return r.with(ctx, func(s *session) error {
		sys, err := s.system(ctx)
		if err != nil {
			return err
		}
		if offered := sys.Boot.Targets; len(offered) > 0 && !slices.Contains(offered, target) {
			return fmt.Errorf("boot once from %s: the BMC offers %q: %w", d, offered, power.ErrUnsupported)
		}
		if err := s.override(ctx, sys, target); err != nil {
			return fmt.Errorf("boot once from %s: %w", d, err)
		}
		return nil
	})
}

// override sets the boot override and reads it back.
//
// iLO refuses a PATCH that names the boot mode (community.general#3509), some
// BMCs refuse one that does not (community.general#11542), and Supermicro falls
// back to its default mode when it is not named (DMTF/Redfishtool#106), unless
// it has none (ironcore-dev/metal-operator#982). So the mode is named where the
// BMC shows one and is a Supermicro, asked for it, or lost it.
func (s *session) override(ctx context.Context, sys system, target string) error {
	boot := map[string]string{"BootSourceOverrideEnabled": "Once", "BootSourceOverrideTarget": target}
	named := strings.Contains(strings.ToLower(s.root.vendor()+sys.Manufacturer), "supermicro")
	for {
		if named && sys.Boot.Mode != "" {
			boot["BootSourceOverrideMode"] = sys.Boot.Mode
		}
		err := s.patch(ctx, sys.ID, sys.etags, map[string]any{"Boot": boot})
		if answered(err, http.StatusBadRequest) && !named && sys.Boot.Mode != "" {
			named = true
			continue
		}
		if err != nil {
			return err
		}
		back, err := s.overridden(ctx, sys, target)
		if err != nil {
			return err
		}
		if sys.Boot.Mode == "" || back.Boot.Mode == sys.Boot.Mode {
			return nil
		}
		if named {
			return fmt.Errorf("the BMC changed the boot mode from %s to %s by itself", sys.Boot.Mode, back.Boot.Mode)
		}
		named = true
	}
}

// overridden reads back whether the override is what was asked for.
func (s *session) overridden(ctx context.Context, sys system, target string) (back system, err error) {
	for _, p := range readBacks {
		if err := pause(ctx, p); err != nil {
			return back, fmt.Errorf("read back: %w", err)
		}
		if back, err = s.readSystem(ctx, sys.ID); err != nil {
			return back, fmt.Errorf("read back: %w", err)
		}
		// A simulator reads "Once" back as "Continuous" (sushy-tools); both
		// boot from the target next.
		if back.Boot.Target == target && (back.Boot.Enabled == "Once" || back.Boot.Enabled == "Continuous") {
			return back, nil
		}
	}
	return back, fmt.Errorf("the BMC accepted it, but reads back %q %q", back.Boot.Target, back.Boot.Enabled)
}
