package bmc

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"path"
	"strconv"
	"strings"
	"time"

	"smelt/power"
)

// A number is a reading; NaN where the BMC says null, nothing, or something
// else. Some say "24".
type number float64

func (n *number) UnmarshalJSON(b []byte) error {
	var v json.Number
	*n = number(math.NaN())
	if json.Unmarshal(bytes.Trim(b, `"`), &v) == nil {
		if f, err := strconv.ParseFloat(v.String(), 64); err == nil && !math.IsInf(f, 0) {
			*n = number(f)
		}
	}
	return nil
}

func (n *number) value() (float64, bool) {
	if n == nil || math.IsNaN(float64(*n)) {
		return math.NaN(), false
	}
	return float64(*n), true
}

// What no machine draws, and no part of one reaches, is no reading.
const (
	maxWatts   = 100_000
	maxCelsius = 200
	maxRPM     = 100_000
)

type status struct{ State string }

// there tells whether a part is fitted and works: what is absent or switched
// off reads 0.
func (s status) there() bool {
	return s.State != "Absent" && !strings.HasSuffix(s.State, "Offline") && s.State != "Disabled"
}

// A box is what is read of a Chassis.
type box struct {
	link
	Etag                                      string `json:"@odata.etag"`
	Power, Thermal                            link   // deprecated in 2020, kept by most
	EnvironmentMetrics                        link
	PowerSubsystem, ThermalSubsystem, Sensors link
	Links                                     struct{ ComputerSystems []link }
	lamp
	etags []string
}

func (s *session) box(ctx context.Context, at string) (box, error) {
	var c box
	h, err := s.get(ctx, at, &c)
	if err != nil {
		return box{}, err
	}
	c.ID, c.etags = at, etags(h, c.Etag)
	return c, nil
}

const maxChassis = 8 // looked at; an HGX system links to a dozen parts

// boxes are the chassis of a system that hold no other system: an enclosure's
// watts and lamps are not those of one machine.
func (s *session) boxes(ctx context.Context, sys system) ([]box, error) {
	links := sys.Links.Chassis
	if len(links) == 0 && s.root.Chassis.ID != "" {
		var all struct{ Members []link }
		if _, err := s.get(ctx, s.root.Chassis.ID, &all); err != nil {
			return nil, err
		}
		if len(all.Members) == 1 {
			links = all.Members
		}
	}
	var out []box
	for _, l := range links[:min(len(links), maxChassis)] {
		c, err := s.box(ctx, l.ID)
		if err != nil {
			return nil, err
		}
		if len(c.Links.ComputerSystems) <= 1 {
			out = append(out, c)
		}
	}
	return out, nil
}

// Readings reads the chassis of the system. Watts come from the first that
// answers of: EnvironmentMetrics, Power.PowerControl, the sum of all power
// supplies; temperatures and fans from Thermal, else ThermalSubsystem, else
// Sensors.
func (r *redfish) Readings(ctx context.Context) (power.Readings, error) {
	out := power.Readings{Watts: math.NaN(), Celsius: map[string]float64{}, RPM: map[string]float64{}}
	err := r.with(ctx, func(s *session) error {
		sys, err := s.system(ctx)
		if err != nil {
			return err
		}
		boxes, err := s.boxes(ctx, sys)
		if err != nil {
			return err
		}
		if len(boxes) == 0 {
			return fmt.Errorf("readings: the system names no chassis of its own: %w", power.ErrUnsupported)
		}
		sources := 0
		for _, c := range boxes {
			for _, l := range []link{c.Power, c.Thermal, c.EnvironmentMetrics, c.PowerSubsystem, c.ThermalSubsystem, c.Sensors} {
				if l.ID != "" {
					sources++
				}
			}
			if math.IsNaN(out.Watts) {
				if out.Watts, err = s.watts(ctx, c); err != nil {
					return err
				}
			}
			if err := s.heat(ctx, c, out); err != nil {
				return err
			}
		}
		if sources == 0 {
			return fmt.Errorf("readings: the chassis has none: %w", power.ErrUnsupported)
		}
		if out.Watts == 0 && sys.state() == power.On {
			out.Watts = math.NaN() // a machine that runs draws something: there is no meter
		}
		out.At = time.Now()
		return nil
	})
	return out, err
}

// watts are those of the chassis, NaN where nothing measures them.
func (s *session) watts(ctx context.Context, c box) (float64, error) {
	for _, read := range []func(context.Context, box) (float64, error){s.environment, s.control, s.supplies} {
		w, err := read(ctx, c)
		if err != nil {
			return math.NaN(), err
		}
		if w >= 0 && w < maxWatts { // not NaN
			return w, nil
		}
	}
	return math.NaN(), nil
}

// fetch reads a resource that may be missing although it is linked to.
func (s *session) fetch(ctx context.Context, l link, out any) (bool, error) {
	if l.ID == "" {
		return false, nil
	}
	_, err := s.get(ctx, l.ID, out)
	if answered(err, 400, 403, 404, 405, 500, 501) {
		return false, nil // it offers another way, or none
	}
	return err == nil, err
}

func (s *session) environment(ctx context.Context, c box) (float64, error) {
	var e struct{ PowerWatts struct{ Reading *number } }
	if _, err := s.fetch(ctx, c.EnvironmentMetrics, &e); err != nil {
		return 0, err
	}
	w, _ := e.PowerWatts.Reading.value()
	return w, nil
}

// control is the first PowerControl, which is the whole machine's: Lenovo has
// others behind it for CPUs and memory. PowerInputWatts of Power.PowerSupplies
// is left alone: iDRAC puts the rating of the supply there
// (influxdata/telegraf#9575).
func (s *session) control(ctx context.Context, c box) (float64, error) {
	var p struct {
		PowerControl []struct{ PowerConsumedWatts *number }
	}
	if _, err := s.fetch(ctx, c.Power, &p); err != nil || len(p.PowerControl) == 0 {
		return math.NaN(), err
	}
	w, _ := p.PowerControl[0].PowerConsumedWatts.value()
	return w, nil
}

const maxSupplies = 16

// supplies is the sum of what all power supplies take in. One that is there
// and does not say makes the sum unknown: a part of it would pass for less.
func (s *session) supplies(ctx context.Context, c box) (float64, error) {
	var sub struct{ PowerSupplies link }
	if ok, err := s.fetch(ctx, c.PowerSubsystem, &sub); !ok {
		return math.NaN(), err
	}
	var all struct{ Members []link }
	if ok, err := s.fetch(ctx, sub.PowerSupplies, &all); !ok || len(all.Members) == 0 || len(all.Members) > maxSupplies {
		return math.NaN(), err
	}
	sum := 0.0
	for _, m := range all.Members {
		var psu struct {
			Status  status
			Metrics link
		}
		if ok, err := s.fetch(ctx, m, &psu); !ok {
			return math.NaN(), err
		}
		if !psu.Status.there() {
			continue
		}
		var in struct{ InputPowerWatts struct{ Reading *number } }
		if ok, err := s.fetch(ctx, psu.Metrics, &in); !ok {
			return math.NaN(), err
		}
		w, ok := in.InputPowerWatts.Reading.value()
		if !ok {
			return math.NaN(), nil
		}
		sum += w
	}
	return sum, nil
}

// heat fills in temperatures and fans.
func (s *session) heat(ctx context.Context, c box, out power.Readings) error {
	temperature := func(name string, n *number) {
		name = legible(name)
		if v, ok := n.value(); ok && name != "" && len(out.Celsius) < maxSensors && v > -maxCelsius && v < maxCelsius {
			out.Celsius[name] = v
		}
	}
	fan := func(name string, n *number) {
		name = legible(name)
		if v, ok := n.value(); ok && name != "" && len(out.RPM) < maxSensors && v >= 0 && v < maxRPM {
			out.RPM[name] = v
		}
	}
	before := len(out.Celsius) + len(out.RPM)
	var t struct {
		Temperatures []struct {
			Name           string
			Status         status
			ReadingCelsius *number
		}
		Fans []struct {
			Name, FanName, ReadingUnits string
			Status                      status
			Reading                     *number
		}
	}
	if _, err := s.fetch(ctx, c.Thermal, &t); err != nil {
		return err
	}
	for _, v := range t.Temperatures {
		if v.Status.there() {
			temperature(v.Name, v.ReadingCelsius)
		}
	}
	for _, v := range t.Fans {
		if v.Status.there() && v.ReadingUnits == "RPM" {
			fan(first(v.Name, v.FanName), v.Reading)
		}
	}
	if len(out.Celsius)+len(out.RPM) > before {
		return nil
	}
	var sub struct{ ThermalMetrics, Fans link }
	if _, err := s.fetch(ctx, c.ThermalSubsystem, &sub); err != nil {
		return err
	}
	var m struct {
		All []struct {
			DeviceName string
			Source     string `json:"DataSourceUri"`
			Reading    *number
		} `json:"TemperatureReadingsCelsius"`
	}
	if _, err := s.fetch(ctx, sub.ThermalMetrics, &m); err != nil {
		return err
	}
	for _, v := range m.All {
		name := v.DeviceName
		if v.Source != "" {
			name = path.Base(v.Source)
		}
		temperature(name, v.Reading)
	}
	members, err := s.members(ctx, sub.Fans)
	if err != nil {
		return err
	}
	for _, b := range members {
		var v struct {
			Name   string
			Status status
			Speed  struct {
				RPM *number `json:"SpeedRPM"`
			} `json:"SpeedPercent"`
		}
		if json.Unmarshal(b, &v); v.Status.there() {
			fan(v.Name, v.Speed.RPM)
		}
	}
	if len(out.Celsius)+len(out.RPM) > before {
		return nil
	}
	if members, err = s.members(ctx, c.Sensors); err != nil {
		return err
	}
	for _, b := range members {
		var v struct {
			Name, ReadingType, ReadingUnits string
			Status                          status
			Reading                         *number
		}
		if json.Unmarshal(b, &v); !v.Status.there() {
			continue
		}
		switch {
		case v.ReadingType == "Temperature" && strings.HasPrefix(v.ReadingUnits, "C"):
			temperature(v.Name, v.Reading)
		case v.ReadingType == "Rotational" && strings.Contains(v.ReadingUnits, "RPM"):
			fan(v.Name, v.Reading)
		}
	}
	return nil
}

func first(names ...string) string {
	for _, n := range names {
		if n != "" {
			return n
		}
	}
	return ""
}

const (
	maxMembers  = 64   // read one by one
	maxExpanded = 1024 // that came in one answer
	maxSensors  = 1024 // of one kind; an HGX board has some hundred
)

// members are those of a collection, in one request where the service can.
func (s *session) members(ctx context.Context, l link) ([]json.RawMessage, error) {
	if l.ID == "" {
		return nil, nil
	}
	if s.root.Features.Expand.NoLinks {
		var all struct{ Members []json.RawMessage }
		_, err := s.getLimited(ctx, l.ID+"?$expand=.($levels=1)", &all, maxLog)
		if err == nil && expanded(all.Members) {
			return all.Members[:min(len(all.Members), maxExpanded)], nil
		}
		if err != nil && !answered(err, 400, 404, 500, 501) {
			return nil, err
		}
	}
	var all struct{ Members []link }
	if ok, err := s.fetch(ctx, l, &all); !ok {
		return nil, err
	}
	var out []json.RawMessage
	for _, m := range all.Members[:min(len(all.Members), maxMembers)] {
		var b json.RawMessage
		if ok, err := s.fetch(ctx, m, &b); err != nil {
			return nil, err
		} else if ok {
			out = append(out, b)
		}
	}
	return out, nil
}

// expanded tells whether members are more than links.
func expanded(members []json.RawMessage) bool {
	for _, b := range members {
		var v map[string]json.RawMessage
		if json.Unmarshal(b, &v) != nil || len(v) < 2 {
			return false
		}
	}
	return true
}
