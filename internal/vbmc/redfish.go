package vbmc

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// RedfishConfig is a BMC that speaks Redfish over TLS.
type RedfishConfig struct {
	Listener net.Listener // plain TCP where the BMC listens; closed by Close
	User     string       // "admin" when empty
	Password string
	System   string // id of the one system; "1" when empty
}

// Redfish is a BMC in front of a Power: sessions and basic authentication, one
// system with reset actions and boot override, and one chassis with the
// readings of a simulated machine (DSP0266, DSP2046). It can be told to lie.
type Redfish struct {
	power Power
	cfg   RedfishConfig
	pin   string
	http  *http.Server
	wait  sync.WaitGroup
	done  chan struct{} // closed by Close

	mu       sync.Mutex
	faults   RedfishFaults
	stats    RedfishStats
	sessions map[string]string // token -> id
	next     int
	override string // BootSourceOverrideTarget
	enabled  string // BootSourceOverrideEnabled
}

// RedfishFaults are the lies of a BMC. The zero value is an honest one.
type RedfishFaults struct {
	Ignore     bool          // resets answer 204 and do nothing
	Status     int           // every request behind the login answers this, logging out excepted
	ResetFails int           // resets do what they are told and answer this
	Slow       time.Duration // before every answer
	Reject     []string      // reset types that are not allowed
	State      string        // PowerState, whatever the machine does
	Sessions   int           // how many sessions there may be; 0 is any number, below 0 none
	BootIgnore bool          // a boot override answers 200 and changes nothing
}

// RedfishStats counts what reached the BMC.
type RedfishStats struct {
	Logins       int // granted, by session or basic authentication
	FailedLogins int
	OpenSessions int
	Requests     int
	Resets       []string // reset types in order, rejected ones too
}

// StartRedfish starts the BMC with a new self-signed certificate.
func StartRedfish(c RedfishConfig, p Power) (*Redfish, error) {
	if c.User == "" {
		c.User = "admin"
	}
	if c.System == "" {
		c.System = "1"
	}
	cert, pin, err := selfSigned()
	if err != nil {
		return nil, fmt.Errorf("virtual Redfish BMC: certificate: %w", err)
	}
	r := &Redfish{power: p, cfg: c, pin: pin, done: make(chan struct{}), sessions: map[string]string{}, override: "None", enabled: "Disabled"}
	r.http = &http.Server{
		Handler:           r,
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          log.New(io.Discard, "", 0), // clients that refuse the certificate are no news
	}
	l := tls.NewListener(c.Listener, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12})
	r.wait.Add(1)
	go func() {
		defer r.wait.Done()
		_ = r.http.Serve(l) // always ErrServerClosed, by Close
	}()
	return r, nil
}

func selfSigned() (tls.Certificate, string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, "", err
	}
	t := x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "bmc (simulated)"},
		NotBefore:    time.Unix(0, 0), // BMCs without a clock date from 1970
		NotAfter:     time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC),
	}
	der, err := x509.CreateCertificate(rand.Reader, &t, &t, &key.PublicKey, key)
	if err != nil {
		return tls.Certificate{}, "", err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return tls.Certificate{}, "", err
	}
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, base64.StdEncoding.EncodeToString(sum[:]), nil
}

// Addr is where the BMC listens.
func (r *Redfish) Addr() net.Addr { return r.cfg.Listener.Addr() }

func (r *Redfish) String() string { return "virtual Redfish BMC " + r.Addr().String() }

// Pin is the SHA-256 of the public key in its certificate, base64 (RFC 7469
// section 2.4).
func (r *Redfish) Pin() string { return r.pin }

// SetFaults replaces the lies.
func (r *Redfish) SetFaults(f RedfishFaults) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = f
}

// Stats tells what happened so far.
func (r *Redfish) Stats() RedfishStats {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.stats
	s.OpenSessions = len(r.sessions)
	s.Resets = slices.Clone(s.Resets)
	return s
}

// Close stops the BMC. The machine stays as it is.
func (r *Redfish) Close() error {
	close(r.done)
	err := r.http.Close()
	r.wait.Wait()
	return err
}

const root = "/redfish/v1"

// ServeHTTP answers one request.
func (r *Redfish) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	r.mu.Lock()
	f := r.faults
	r.stats.Requests++
	r.mu.Unlock()
	if f.Slow > 0 {
		select {
		case <-time.After(f.Slow):
		case <-q.Context().Done():
			return
		case <-r.done:
			return
		}
	}
	path := strings.TrimSuffix(q.URL.Path, "/")
	switch {
	case path == root && q.Method == http.MethodGet: // DSP0266 6.3: without authentication
		reply(w, http.StatusOK, map[string]any{
			"@odata.id": root, "@odata.type": "#ServiceRoot.v1_9_0.ServiceRoot", "Id": "RootService",
			"Name": "Root Service", "RedfishVersion": "1.11.0", "Vendor": "Smelt (simulated)",
			"Systems": id(root + "/Systems"), "Chassis": id(root + "/Chassis"),
			"SessionService": id(root + "/SessionService"),
			"Links":          map[string]any{"Sessions": id(root + "/SessionService/Sessions")},
		})
	case path == root+"/SessionService/Sessions" && q.Method == http.MethodPost:
		r.login(w, q, f)
	case !r.allowed(q):
		refuse(w, http.StatusUnauthorized, "Base.1.8.NoValidSession", "there is no valid session established")
	case strings.HasPrefix(path, root+"/SessionService/Sessions/") && q.Method == http.MethodDelete:
		r.logout(w, path)
	case f.Status != 0:
		refuse(w, f.Status, "Base.1.8.InternalError", "the service failed")
	default:
		r.serve(w, q, path, f)
	}
}

func (r *Redfish) login(w http.ResponseWriter, q *http.Request, f RedfishFaults) {
	var c struct{ UserName, Password string }
	if err := json.NewDecoder(io.LimitReader(q.Body, 1<<16)).Decode(&c); err != nil {
		refuse(w, http.StatusBadRequest, "Base.1.8.MalformedJSON", err.Error())
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.check(c.UserName, c.Password) {
		refuse(w, http.StatusUnauthorized, "Base.1.8.ResourceAtUriUnauthorized", "invalid user name or password")
		return
	}
	if f.Sessions != 0 && len(r.sessions) >= f.Sessions {
		refuse(w, http.StatusServiceUnavailable, "Base.1.8.SessionLimitExceeded", "the session limit is reached")
		return
	}
	r.next++
	token, name := rand.Text(), fmt.Sprint(r.next)
	r.sessions[token] = name
	at := root + "/SessionService/Sessions/" + name
	w.Header().Set("X-Auth-Token", token)
	w.Header().Set("Location", at)
	reply(w, http.StatusCreated, map[string]any{
		"@odata.id": at, "@odata.type": "#Session.v1_3_0.Session", "Id": name, "Name": "Session", "UserName": c.UserName,
	})
}

// check compares and counts a credential. r.mu is held.
func (r *Redfish) check(user, password string) bool {
	ok := subtle.ConstantTimeCompare([]byte(user), []byte(r.cfg.User)) &
		subtle.ConstantTimeCompare([]byte(password), []byte(r.cfg.Password))
	if ok == 1 {
		r.stats.Logins++
		return true
	}
	r.stats.FailedLogins++
	return false
}

func (r *Redfish) allowed(q *http.Request) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if user, password, ok := q.BasicAuth(); ok {
		return r.check(user, password)
	}
	_, ok := r.sessions[q.Header.Get("X-Auth-Token")]
	return ok
}

func (r *Redfish) logout(w http.ResponseWriter, path string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for token, name := range r.sessions {
		if strings.HasSuffix(path, "/"+name) {
			delete(r.sessions, token)
			w.WriteHeader(http.StatusNoContent)
			return
		}
	}
	refuse(w, http.StatusNotFound, "Base.1.8.ResourceMissingAtURI", "no such session")
}

var resetTypes = []string{"On", "ForceOff", "GracefulShutdown", "ForceRestart", "PowerCycle"}

func (r *Redfish) serve(w http.ResponseWriter, q *http.Request, path string, f RedfishFaults) {
	system, chassis := root+"/Systems/"+r.cfg.System, root+"/Chassis/1"
	on, err := r.power.State(q.Context())
	if err != nil {
		refuse(w, http.StatusInternalServerError, "Base.1.8.InternalError", err.Error())
		return
	}
	state := map[bool]string{true: "On", false: "Off"}[on]
	if f.State != "" {
		state = f.State
	}
	switch q.Method + " " + path {
	case "GET " + root + "/Systems":
		reply(w, http.StatusOK, collection(root+"/Systems", "ComputerSystemCollection", system))
	case "GET " + system:
		r.mu.Lock()
		defer r.mu.Unlock()
		reply(w, http.StatusOK, map[string]any{
			"@odata.id": system, "@odata.type": "#ComputerSystem.v1_13_0.ComputerSystem", "Id": r.cfg.System,
			"Name": "System", "PowerState": state, "Manufacturer": "Smelt (simulated)",
			"Status": map[string]any{"State": "Enabled", "Health": "OK"},
			"Boot": map[string]any{
				"BootSourceOverrideTarget": r.override, "BootSourceOverrideEnabled": r.enabled, "BootSourceOverrideMode": "UEFI",
				"BootSourceOverrideTarget@Redfish.AllowableValues": []string{"None", "Pxe", "Hdd"},
			},
			"Actions": map[string]any{"#ComputerSystem.Reset": map[string]any{
				"target": system + "/Actions/ComputerSystem.Reset",
				"ResetType@Redfish.AllowableValues": slices.DeleteFunc(slices.Clone(resetTypes),
					func(t string) bool { return slices.Contains(f.Reject, t) }),
			}},
			"Links": map[string]any{"Chassis": []any{id(chassis)}},
		})
	case "PATCH " + system:
		r.patch(w, q, f)
	case "POST " + system + "/Actions/ComputerSystem.Reset":
		r.reset(w, q, f)
	case "GET " + root + "/Chassis":
		reply(w, http.StatusOK, collection(root+"/Chassis", "ChassisCollection", chassis))
	case "GET " + chassis:
		reply(w, http.StatusOK, map[string]any{
			"@odata.id": chassis, "@odata.type": "#Chassis.v1_14_0.Chassis", "Id": "1", "Name": "Chassis",
			"ChassisType": "RackMount", "PowerState": state,
			"Power": id(chassis + "/Power"), "Thermal": id(chassis + "/Thermal"),
		})
	case "GET " + chassis + "/Power":
		watts := 0
		if on {
			watts = 120
		}
		reply(w, http.StatusOK, map[string]any{
			"@odata.id": chassis + "/Power", "@odata.type": "#Power.v1_5_0.Power", "Id": "Power", "Name": "Power",
			"PowerControl": []any{map[string]any{"MemberId": "0", "Name": "System (simulated)", "PowerConsumedWatts": watts}},
		})
	case "GET " + chassis + "/Thermal":
		reply(w, http.StatusOK, map[string]any{
			"@odata.id": chassis + "/Thermal", "@odata.type": "#Thermal.v1_6_0.Thermal", "Id": "Thermal", "Name": "Thermal",
			"Temperatures": []any{map[string]any{"MemberId": "0", "Name": "Inlet (simulated)", "ReadingCelsius": 24}},
		})
	default:
		refuse(w, http.StatusNotFound, "Base.1.8.ResourceMissingAtURI", q.Method+" "+path)
	}
}

func (r *Redfish) patch(w http.ResponseWriter, q *http.Request, f RedfishFaults) {
	var c struct {
		Boot struct{ BootSourceOverrideTarget, BootSourceOverrideEnabled string }
	}
	if err := json.NewDecoder(io.LimitReader(q.Body, 1<<16)).Decode(&c); err != nil {
		refuse(w, http.StatusBadRequest, "Base.1.8.MalformedJSON", err.Error())
		return
	}
	if f.BootIgnore {
		reply(w, http.StatusOK, map[string]any{})
		return
	}
	once := c.Boot.BootSourceOverrideEnabled != "Continuous"
	boot, ok := map[string]Boot{"Pxe": BootNetwork, "Hdd": BootDisk}[c.Boot.BootSourceOverrideTarget]
	if c.Boot.BootSourceOverrideEnabled == "Disabled" || c.Boot.BootSourceOverrideTarget == "None" {
		boot, ok = 0, true
	}
	if !ok {
		refuse(w, http.StatusBadRequest, "Base.1.8.PropertyValueNotInList", c.Boot.BootSourceOverrideTarget)
		return
	}
	if boot != 0 || once {
		if err := r.power.SetBoot(q.Context(), boot, once); err != nil {
			refuse(w, http.StatusInternalServerError, "Base.1.8.InternalError", err.Error())
			return
		}
	}
	r.mu.Lock()
	r.override, r.enabled = c.Boot.BootSourceOverrideTarget, c.Boot.BootSourceOverrideEnabled
	r.mu.Unlock()
	w.WriteHeader(http.StatusNoContent)
}

func (r *Redfish) reset(w http.ResponseWriter, q *http.Request, f RedfishFaults) {
	var c struct{ ResetType string }
	if err := json.NewDecoder(io.LimitReader(q.Body, 1<<16)).Decode(&c); err != nil {
		refuse(w, http.StatusBadRequest, "Base.1.8.MalformedJSON", err.Error())
		return
	}
	r.mu.Lock()
	r.stats.Resets = append(r.stats.Resets, c.ResetType)
	r.mu.Unlock()
	if !slices.Contains(resetTypes, c.ResetType) || slices.Contains(f.Reject, c.ResetType) {
		refuse(w, http.StatusBadRequest, "Base.1.8.ActionParameterValueNotInList", "ResetType "+c.ResetType)
		return
	}
	if !f.Ignore {
		if err := r.act(q.Context(), c.ResetType); err != nil {
			refuse(w, http.StatusInternalServerError, "Base.1.8.InternalError", err.Error())
			return
		}
	}
	if f.ResetFails != 0 {
		refuse(w, f.ResetFails, "Base.1.8.InternalError", "the service failed")
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (r *Redfish) act(ctx context.Context, resetType string) error {
	switch resetType {
	case "On":
		r.spend()
		return r.power.PowerOn(ctx)
	case "ForceOff":
		return r.power.PowerOff(ctx)
	case "GracefulShutdown":
		return r.power.Shutdown(ctx)
	case "ForceRestart":
		r.spend()
		return r.power.Reset(ctx)
	case "PowerCycle":
		r.spend()
		if err := r.power.PowerOff(ctx); err != nil {
			return err
		}
		return r.power.PowerOn(ctx)
	}
	return fmt.Errorf("reset type %q is unknown", resetType)
}

// spend forgets a one-time boot override that the coming boot uses up.
func (r *Redfish) spend() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.enabled == "Once" {
		r.override, r.enabled = "None", "Disabled"
	}
}

func id(path string) map[string]any { return map[string]any{"@odata.id": path} }

func collection(path, typ string, members ...string) map[string]any {
	var m []any
	for _, p := range members {
		m = append(m, id(p))
	}
	return map[string]any{
		"@odata.id": path, "@odata.type": "#" + typ + "." + typ, "Name": typ, "Members": m, "Members@odata.count": len(m),
	}
}

func reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("OData-Version", "4.0")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client may have left
}

// refuse answers with an extended error (DSP0266 8.6).
func refuse(w http.ResponseWriter, status int, message, text string) {
	reply(w, status, map[string]any{"error": map[string]any{
		"code": message, "message": text,
		"@Message.ExtendedInfo": []any{map[string]any{"MessageId": message, "Message": text}},
	}})
}
