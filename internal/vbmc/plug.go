package vbmc

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// PlugConfig is a smart plug, or a Home Assistant with one switch.
type PlugConfig struct {
	Listener net.Listener // plain HTTP, as plugs speak it; closed by Close
	Kind     string       // shelly, tasmota, homeassistant
	Password string       // shelly, tasmota: of admin, "" for none; homeassistant: the token
	Power    Power        // the machine at the plug: it runs when there is power
	Watts    float64      // what the machine draws while it is on; 0: no meter
}

// PlugEntity and PlugMeter are what Home Assistant calls its switch and the
// meter of it.
const (
	PlugEntity = "switch.rig_01"
	PlugMeter  = "sensor.rig_01_power"
)

// PlugFaults are what a plug does instead of what it is told.
type PlugFaults struct {
	Ignores bool // says ok and does nothing
	Inverts bool // off is on, on is off
	Hang    bool // answers nothing until the client gives up
	Fails   bool // does it and answers 500
	Unknown bool // does not know its state: null, a word of the user's, unavailable
	Assumes bool // homeassistant: its state is what it was told, whatever is the case
	Garbage bool // answers with something else
	Version int  // tasmota: 0 words ON and OFF, 1 numbers, 2 numbers as texts, 3 refuses with 200
}

// Plug is such a device. Its output is not the machine: the machine may be off
// and the plug on.
type Plug struct {
	cfg    PlugConfig
	server http.Server
	wait   sync.WaitGroup

	mu      sync.Mutex
	on      bool
	told    bool // what Home Assistant assumes
	faults  PlugFaults
	nonces  map[string]bool
	refused int
	sets    int
}

// StartPlug starts it. It is on when its machine runs.
func StartPlug(c PlugConfig) (*Plug, error) {
	p := &Plug{cfg: c, nonces: map[string]bool{}}
	mux := http.NewServeMux()
	switch c.Kind {
	case "shelly":
		mux.HandleFunc("GET /rpc/{method}", p.shelly)
	case "tasmota":
		mux.HandleFunc("GET /cm", p.tasmota)
	case "homeassistant":
		mux.HandleFunc("GET /api/states/{entity}", p.states)
		mux.HandleFunc("POST /api/services/switch/{service}", p.services)
	default:
		return nil, fmt.Errorf("virtual plug: kind %q: want shelly, tasmota or homeassistant", c.Kind)
	}
	on, err := c.Power.State(context.Background())
	if err != nil {
		return nil, fmt.Errorf("virtual plug: %w", err)
	}
	p.on, p.told = on, on
	p.server = http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		switch f := p.now(); {
		case f.Hang:
			<-q.Context().Done()
		case f.Garbage:
			_, _ = fmt.Fprint(w, `<html>"busy`)
		default:
			mux.ServeHTTP(w, q)
		}
	}), ReadHeaderTimeout: 5 * time.Second}
	p.wait.Go(func() { _ = p.server.Serve(c.Listener) })
	return p, nil
}

func (p *Plug) now() PlugFaults {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.faults
}

// SetFaults makes it misbehave from now on.
func (p *Plug) SetFaults(f PlugFaults) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults = f
}

// URL is its address.
func (p *Plug) URL() string { return "http://" + p.cfg.Listener.Addr().String() }

func (p *Plug) String() string {
	return "virtual plug " + p.cfg.Kind + " " + p.cfg.Listener.Addr().String()
}

// On tells whether its output is on.
func (p *Plug) On() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.on
}

// Turn presses its button.
func (p *Plug) Turn(on bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.turn(on)
}

// Refused is how many requests came with a wrong credential.
func (p *Plug) Refused() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.refused
}

// Sets is how many commands to switch it had so far.
func (p *Plug) Sets() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sets
}

// Close stops it. The machine stays as it is.
func (p *Plug) Close() error {
	err := p.server.Close()
	p.wait.Wait()
	return err
}

// turn switches the output and with it the machine. p.mu is held.
func (p *Plug) turn(on bool) error {
	if p.on == on {
		return nil
	}
	p.on = on
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if on {
		return p.cfg.Power.PowerOn(ctx) // as with "restore on AC loss: power on"
	}
	return p.cfg.Power.PowerOff(ctx)
}

// set is a command, and says whether it is answered with success.
func (p *Plug) set(on bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sets++
	p.told = on
	if !p.faults.Ignores {
		_ = p.turn(on != p.faults.Inverts)
	}
	return !p.faults.Fails
}

func (p *Plug) draws() float64 {
	on, err := p.cfg.Power.State(context.Background())
	if err != nil || !on || !p.On() {
		return 0
	}
	return p.cfg.Watts
}

func (p *Plug) refuse() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refused++
}

func plugSays(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client may have left
}

// shelly is the RPC of a Shelly Plus Plug.
func (p *Plug) shelly(w http.ResponseWriter, q *http.Request) {
	if p.cfg.Password != "" && !p.digest(q) {
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Digest qop="auth", realm="shellyplusplugs-simulated", nonce="%s", algorithm=SHA-256`, p.nonce()))
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if id := q.URL.Query().Get("id"); id != "0" {
		plugSays(w, http.StatusNotFound, map[string]any{"code": -105, "message": "Argument 'id', value " + id + " not found!"})
		return
	}
	switch q.PathValue("method") {
	case "Switch.GetStatus":
		st := map[string]any{"id": 0, "source": "HTTP_in", "output": p.On()}
		if p.now().Unknown {
			st["output"] = nil
		}
		if p.cfg.Watts > 0 {
			st["apower"], st["voltage"] = p.draws(), 230.1
		}
		plugSays(w, http.StatusOK, st)
	case "Switch.Set":
		was := p.On()
		on, err := strconv.ParseBool(q.URL.Query().Get("on"))
		if err != nil {
			plugSays(w, http.StatusBadRequest, map[string]any{"code": -103, "message": "Missing or bad argument 'on'!"})
			return
		}
		if !p.set(on) {
			plugSays(w, http.StatusInternalServerError, map[string]any{"code": -114, "message": "Resource unavailable"})
			return
		}
		plugSays(w, http.StatusOK, map[string]any{"was_on": was})
	default:
		plugSays(w, http.StatusNotFound, map[string]any{"code": 404, "message": "No handler"})
	}
}

func (p *Plug) nonce() string {
	b := make([]byte, 8)
	_, _ = rand.Read(b)
	n := hex.EncodeToString(b)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.nonces[n] = true
	return n
}

// digest holds an answer to a challenge against the password (RFC 7616). Each
// nonce is good once.
func (p *Plug) digest(q *http.Request) bool {
	text, ok := strings.CutPrefix(q.Header.Get("Authorization"), "Digest ")
	if !ok {
		return false
	}
	v := map[string]string{}
	for part := range strings.SplitSeq(text, ",") {
		k, val, _ := strings.Cut(strings.TrimSpace(part), "=")
		v[k] = strings.Trim(val, `"`)
	}
	sum := func(s ...string) string {
		h := sha256.Sum256([]byte(strings.Join(s, ":")))
		return hex.EncodeToString(h[:])
	}
	want := sum(sum("admin", v["realm"], p.cfg.Password), v["nonce"], v["nc"], v["cnonce"], v["qop"], sum(q.Method, q.URL.RequestURI()))
	p.mu.Lock()
	known := p.nonces[v["nonce"]]
	delete(p.nonces, v["nonce"])
	p.mu.Unlock()
	if known && v["username"] == "admin" && v["uri"] == q.URL.RequestURI() && subtle.ConstantTimeCompare([]byte(want), []byte(v["response"])) == 1 {
		return true
	}
	p.refuse()
	return false
}

// tasmota is the web command interface of a plug with one relay.
func (p *Plug) tasmota(w http.ResponseWriter, q *http.Request) {
	f, v := p.now(), q.URL.Query()
	if p.cfg.Password != "" && (v.Get("user") != "admin" || v.Get("password") != p.cfg.Password) {
		p.refuse()
		status := http.StatusUnauthorized
		if f.Version == 3 {
			status = http.StatusOK
		}
		plugSays(w, status, map[string]any{"WARNING": "Need user=<username>&password=<password>"})
		return
	}
	cmd, arg, _ := strings.Cut(v.Get("cmnd"), " ")
	switch strings.ToLower(cmd) {
	case "power", "power1":
		switch strings.ToLower(arg) {
		case "on", "1", "off", "0":
			if !p.set(strings.ToLower(arg) == "on" || arg == "1") {
				w.WriteHeader(http.StatusInternalServerError)
				return
			}
		case "":
		default:
			plugSays(w, http.StatusOK, map[string]any{"Command": "Error"})
			return
		}
		plugSays(w, http.StatusOK, map[string]any{"POWER": p.word(f)})
	case "status":
		if arg != "8" || p.cfg.Watts == 0 {
			plugSays(w, http.StatusOK, map[string]any{"StatusSNS": map[string]any{"Time": "2026-01-01T00:00:00"}})
			return
		}
		plugSays(w, http.StatusOK, map[string]any{"StatusSNS": map[string]any{"ENERGY": map[string]any{"Power": p.draws(), "Voltage": 230}}})
	default:
		plugSays(w, http.StatusOK, map[string]any{"Command": "Unknown"})
	}
}

// word is the state as the version says it.
func (p *Plug) word(f PlugFaults) any {
	n := 0
	if p.On() {
		n = 1
	}
	switch {
	case f.Unknown:
		return "Eingeschaltet" // StateText is the user's
	case f.Version == 1:
		return n
	case f.Version == 2:
		return strconv.Itoa(n)
	}
	return []string{"OFF", "ON"}[n]
}

// bearer checks the token of Home Assistant.
func (p *Plug) bearer(w http.ResponseWriter, q *http.Request) bool {
	if q.Header.Get("Authorization") == "Bearer "+p.cfg.Password {
		return true
	}
	p.refuse()
	w.WriteHeader(http.StatusUnauthorized)
	return false
}

func (p *Plug) states(w http.ResponseWriter, q *http.Request) {
	if !p.bearer(w, q) {
		return
	}
	p.mu.Lock()
	f, on, told := p.faults, p.on, p.told
	p.mu.Unlock()
	attributes := map[string]any{"friendly_name": "rig 01 (simulated)", "supported_features": 0}
	state := ""
	switch q.PathValue("entity") {
	case PlugEntity:
		if f.Assumes {
			on = told
			attributes["assumed_state"] = true
		}
		state = map[bool]string{true: "on", false: "off"}[on]
		if f.Unknown {
			state = "unavailable"
		}
	case PlugMeter:
		attributes["unit_of_measurement"] = "W"
		state = strconv.FormatFloat(p.draws(), 'f', 1, 64)
	default:
		plugSays(w, http.StatusNotFound, map[string]any{"message": "Entity not found."})
		return
	}
	plugSays(w, http.StatusOK, map[string]any{"entity_id": q.PathValue("entity"), "state": state, "attributes": attributes})
}

// services answers 200 also for an entity that is not there, as Home Assistant
// does.
func (p *Plug) services(w http.ResponseWriter, q *http.Request) {
	if !p.bearer(w, q) {
		return
	}
	var in struct {
		Entity string `json:"entity_id"`
	}
	if err := json.NewDecoder(q.Body).Decode(&in); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	service := q.PathValue("service")
	if in.Entity == PlugEntity && (service == "turn_on" || service == "turn_off") && !p.set(service == "turn_on") {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	plugSays(w, http.StatusOK, []any{})
}
