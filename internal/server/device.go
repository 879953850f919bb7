package server

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"sync"
	"time"

	"smelt/internal/api"
	"smelt/inventory"
	"smelt/power"
)

// What the controllers of machines say of them is kept for a moment: a page
// that ten people have open must not be ten sessions at a BMC.
const (
	sensorsFor  = 10 * time.Second
	eventLogFor = time.Minute
	screenFor   = 2 * time.Second
)

// devices are the last answers of controllers. Who asks while a question is on
// its way waits for that answer.
type devices struct {
	mu       sync.Mutex
	answered map[string]*answer
}

type answer struct {
	mu    sync.Mutex
	at    time.Time
	value any
}

// kept returns the answer to a question if it is younger than life, else asks.
// Errors are not kept: power.Verified keeps a device that fails from being
// asked too often.
func kept[T any](d *devices, question string, life time.Duration, ask func() (T, error)) (T, time.Time, error) {
	d.mu.Lock()
	if d.answered == nil {
		d.answered = map[string]*answer{}
	}
	a := d.answered[question]
	if a == nil {
		a = new(answer)
		d.answered[question] = a
	}
	d.mu.Unlock()
	a.mu.Lock()
	defer a.mu.Unlock()
	if v, ok := a.value.(T); ok && time.Since(a.at) < life {
		return v, a.at, nil
	}
	v, err := ask()
	if err != nil {
		a.value = nil
		return v, time.Time{}, err
	}
	a.value, a.at = v, time.Now()
	time.AfterFunc(life, func() { a.drop(life) })
	return v, a.at, nil
}

// drop forgets an answer that is too old to be given again: whoever asks for the
// screens of two thousand machines must not leave gigabytes behind. Who holds
// the lock is asking for the next one.
func (a *answer) drop(life time.Duration) {
	if !a.mu.TryLock() {
		return
	}
	defer a.mu.Unlock()
	if time.Since(a.at) >= life {
		a.value = nil
	}
}

// device finds the controller of a node. It answers the request itself when
// there is none.
func (s *Server) device(w http.ResponseWriter, r *http.Request) (inventory.NodeID, *power.Verified) {
	id := nodeID(r)
	if _, err := s.Store.Node(r.Context(), id); err != nil {
		s.nodeFailure(w, r, err)
		return id, nil
	}
	v := s.Power[id]
	if v == nil {
		s.fail(w, http.StatusNotFound, fmt.Sprintf("%s has no controller that could be asked: a person switches it", id), "name one in site.yaml: power")
	}
	return id, v
}

func (s *Server) deviceFailure(w http.ResponseWriter, id inventory.NodeID, v *power.Verified, what string, err error) {
	switch {
	case errors.Is(err, power.ErrUnsupported), errors.Is(err, power.ErrNeedsHuman):
		s.fail(w, http.StatusNotFound, fmt.Sprintf("%s of %s has no %s", v, id, what), "")
	case errors.Is(err, context.Canceled):
		s.fail(w, http.StatusServiceUnavailable, "the question was taken back", "ask again")
	default:
		s.fail(w, http.StatusBadGateway, fmt.Sprintf("%s of %s: %v", what, id, err), "smelt power status")
	}
}

func (s *Server) getSensors(w http.ResponseWriter, r *http.Request, _ who) {
	id, v := s.device(w, r)
	if v == nil {
		return
	}
	m, at, err := kept(&s.devices, "sensors "+string(id), sensorsFor, func() (power.Readings, error) { return v.Readings(r.Context()) })
	if err != nil {
		s.deviceFailure(w, id, v, "sensors", err)
		return
	}
	s.json(w, http.StatusOK, sensorList(id, v.String(), m, at))
}

// sensorList puts measurements in order; what is not a number was not measured.
func sensorList(id inventory.NodeID, controller string, m power.Readings, at time.Time) api.SensorList {
	if !m.At.IsZero() {
		at = m.At
	}
	l := api.SensorList{APIVersion: api.Version, Kind: "SensorList", Node: id, Controller: controller, At: at, Items: []api.Sensor{}}
	add := func(name string, value float64, unit string) {
		if !math.IsNaN(value) && !math.IsInf(value, 0) {
			l.Items = append(l.Items, api.Sensor{Name: name, Value: value, Unit: unit})
		}
	}
	add("power", m.Watts, "W")
	for _, group := range []struct {
		values map[string]float64
		unit   string
	}{{m.Celsius, "°C"}, {m.RPM, "rpm"}} {
		var names []string
		for name := range group.values {
			names = append(names, name)
		}
		slices.Sort(names)
		for _, name := range names {
			add(name, group.values[name], group.unit)
		}
	}
	return l
}

func (s *Server) getEventLog(w http.ResponseWriter, r *http.Request, _ who) {
	id, v := s.device(w, r)
	if v == nil {
		return
	}
	log, at, err := kept(&s.devices, "eventlog "+string(id), eventLogFor, func() ([]power.LogEntry, error) { return v.EventLog(r.Context()) })
	if err != nil {
		s.deviceFailure(w, id, v, "event log", err)
		return
	}
	out := api.EventLog{APIVersion: api.Version, Kind: "EventLog", Node: id, Controller: v.String(), At: at, Items: []api.EventLogEntry{}}
	for _, e := range log {
		out.Items = append(out.Items, api.EventLogEntry(e))
	}
	s.json(w, http.StatusOK, out)
}

// pictures are the media types that a screen may have. Anything else, such as
// SVG or HTML, could run in the browser of whoever looks.
var pictures = []string{"image/png", "image/jpeg"}

func (s *Server) getScreen(w http.ResponseWriter, r *http.Request, _ who) {
	id, v := s.device(w, r)
	if v == nil {
		return
	}
	p, _, err := kept(&s.devices, "screen "+string(id), screenFor, func() (power.Picture, error) { return v.Screen(r.Context()) })
	if err != nil {
		s.deviceFailure(w, id, v, "picture of the screen", err)
		return
	}
	if !slices.Contains(pictures, p.Type) {
		s.fail(w, http.StatusBadGateway, fmt.Sprintf("the screen of %s comes as %q, which is not shown", id, p.Type), "")
		return
	}
	w.Header().Set("Content-Type", p.Type)
	w.Write(p.Data)
}
