package vbmc

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
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
	System   string // id of the system; "1" when empty

	// Others are further systems of the same BMC, as an HGX baseboard has.
	Others []RedfishSystem
	// Accounts are further accounts, which nobody can log in with.
	Accounts []RedfishAccount
	// Vendor is what the service root says; "Smelt (simulated)" when empty. One
	// that begins with "Dell" takes pictures of the screen.
	Vendor string
	// Modern has EnvironmentMetrics, PowerSubsystem and ThermalSubsystem and
	// lacks their predecessors, Power and Thermal.
	Modern bool
	// Clock is how far the BMC's clock is off.
	Clock time.Duration
	// Key is the key and certificate; a new one when nil. Two thousand BMCs in
	// one process share one.
	Key *RedfishKey
}

// RedfishSystem is a machine behind a BMC.
type RedfishSystem struct {
	ID    string
	Power Power
}

// RedfishAccount is an account of a BMC.
type RedfishAccount struct {
	Name    string
	Role    string // "Administrator" when empty
	Enabled bool
	Expired bool // PasswordChangeRequired
}

// RedfishKey is the key of a BMC with its self-signed certificate.
type RedfishKey struct {
	cert tls.Certificate
	pin  string
}

// Redfish is a BMC in front of a Power: sessions and basic authentication,
// systems with reset actions, boot override, LED and restore policy, a chassis
// with readings, a manager with its protocols, logs, accounts and a firmware
// inventory (DSP0266, DSP2046). All of it is simulated, and said to be so where
// a text can say it. It can be told to lie.
type Redfish struct {
	cfg     RedfishConfig
	systems []*redfishSystem
	http    *http.Server // nil when somebody else serves it
	wait    sync.WaitGroup
	done    chan struct{} // closed by Close

	mu       sync.Mutex
	key      *RedfishKey
	second   *RedfishKey // of NewKey
	shakes   int         // handshakes since the faults were set
	faults   RedfishFaults
	stats    RedfishStats
	failed   int // logins in a row
	resets   int // since the faults were set
	accounts []redfishAccount
	sessions map[string]redfishSession // by token
	next     int
	watts    float64 // of a machine that runs
	ipmi     bool    // IPMI over LAN
	log      []map[string]any
}

// redfishSystem is what the BMC knows of one machine. It is guarded by the
// mutex of its BMC.
type redfishSystem struct {
	id       string
	power    Power
	override string // BootSourceOverrideTarget
	enabled  string // BootSourceOverrideEnabled
	mode     string // BootSourceOverrideMode
	order    []string
	restore  string
	lit      bool
	moving   string // PoweringOn, PoweringOff
	timer    *time.Timer
	reads    int
	etag     int
}

// RedfishFaults are the lies of a BMC. The zero value is an honest one.
type RedfishFaults struct {
	Hang       bool          // requests are taken and never answered
	SlowTLS    time.Duration // before each handshake goes on
	Slow       time.Duration // before every answer
	Status     int           // every request behind the login answers this, logging out excepted
	Truncate   bool          // answers to GET end in the middle
	Huge       bool          // answers to GET have some two megabytes
	Redirect   string        // every request is sent there
	NewKey     bool          // from the second connection on it has another key; each answer ends its connection
	NeedETag   bool          // a PATCH without If-Match answers 428
	Ignore     bool          // resets answer 204 and do nothing
	ResetFails int           // resets do what they are told and answer this
	Conflict   int           // so many resets answer 409 and do nothing
	Reject     []string      // reset types that are not offered and not allowed
	Refuse     []string      // reset types that are offered and answer 400
	Crossed    bool          // the reset action of a system is that of the next one
	Lag        time.Duration // resets answer at once; it is PoweringOff so long, and only then done
	State      string        // PowerState, whatever the machine does
	Toggle     bool          // PowerState is another one at each read

	BootIgnore bool // a boot override answers 200 and changes nothing
	BootForget bool // it is read back, and forgotten when the machine starts
	BootAlways bool // Once is kept for ever
	WantMode   bool // it answers 400 without BootSourceOverrideMode
	NoMode     bool // it answers 400 with BootSourceOverrideMode
	LoseMode   bool // without BootSourceOverrideMode the mode becomes Legacy

	Sessions    int  // how many sessions there may be; 0 is any number, below 0 none
	Lock        int  // so many failed logins in a row lock every user out for good
	LoginLost   bool // a login makes its session and is never answered
	LogoutFails bool // a session cannot be deleted, 500
	Bare        bool // a session tells neither its time nor where it came from
}

// RedfishStats counts what reached the BMC.
type RedfishStats struct {
	Logins       int // granted, by session or basic authentication
	FailedLogins int
	OpenSessions int
	Requests     int
	Locked       bool     // nobody gets in any more
	Resets       []string // reset types in order, rejected ones too
}

// StartRedfish starts the BMC on its Listener.
func StartRedfish(c RedfishConfig, p Power) (*Redfish, error) {
	r, err := NewRedfish(c, p)
	if err != nil {
		return nil, err
	}
	r.http = redfishServer(r)
	l := tls.NewListener(c.Listener, &tls.Config{GetCertificate: r.certificate, MinVersion: tls.VersionTLS12, SessionTicketsDisabled: true})
	r.wait.Add(1)
	go func() {
		defer r.wait.Done()
		_ = r.http.Serve(l) // always ErrServerClosed, by Close
	}()
	return r, nil
}

func redfishServer(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          log.New(io.Discard, "", 0), // clients that refuse the certificate are no news
	}
}

// NewRedfish makes a BMC that is an http.Handler and listens nowhere by itself.
func NewRedfish(c RedfishConfig, p Power) (*Redfish, error) {
	if c.User == "" {
		c.User = "admin"
	}
	if c.System == "" {
		c.System = "1"
	}
	if c.Vendor == "" {
		c.Vendor = "Smelt (simulated)"
	}
	if c.Key == nil {
		var err error
		if c.Key, err = NewRedfishKey(); err != nil {
			return nil, fmt.Errorf("virtual Redfish BMC: %w", err)
		}
	}
	r := &Redfish{cfg: c, key: c.Key, done: make(chan struct{}), watts: 120, ipmi: true}
	for _, s := range append([]RedfishSystem{{c.System, p}}, c.Others...) {
		r.systems = append(r.systems, &redfishSystem{
			id: s.ID, power: s.Power, override: "None", enabled: "Disabled", mode: "UEFI", restore: "LastState", order: []string{"Boot0001", "Boot0002"},
		})
	}
	r.accounts = []redfishAccount{{RedfishAccount: RedfishAccount{Name: c.User, Role: "Administrator", Enabled: true}, password: c.Password, login: true}}
	for _, a := range c.Accounts {
		r.accounts = append(r.accounts, redfishAccount{RedfishAccount: a})
	}
	return r, nil
}

// NewRedfishKey makes a key with a certificate as BMCs have it.
func NewRedfishKey() (*RedfishKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	t := x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "bmc (simulated)"},
		NotBefore:    time.Unix(0, 0), // BMCs without a clock date from 1970
		NotAfter:     time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC),
	}
	der, err := x509.CreateCertificate(rand.Reader, &t, &t, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return &RedfishKey{cert: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pin: base64.StdEncoding.EncodeToString(sum[:])}, nil
}

// Pin is the SHA-256 of the public key, base64 (RFC 7469 section 2.4).
func (k *RedfishKey) Pin() string { return k.pin }

// certificate is what a handshake gets.
func (r *Redfish) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	r.mu.Lock()
	f, key := r.faults, r.key
	if r.shakes++; f.NewKey && r.shakes > 1 {
		key = r.second
	}
	r.mu.Unlock()
	if f.SlowTLS > 0 && !r.sleep(hello.Context().Done(), f.SlowTLS) {
		return nil, net.ErrClosed
	}
	return &key.cert, nil
}

// sleep waits for d and tells whether that was not cut short.
func (r *Redfish) sleep(gone <-chan struct{}, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-gone:
	case <-r.done:
	}
	return false
}

// Addr is where the BMC listens.
func (r *Redfish) Addr() net.Addr { return r.cfg.Listener.Addr() }

func (r *Redfish) String() string { return "virtual Redfish BMC " + r.Addr().String() }

// Pin is that of its key.
func (r *Redfish) Pin() string { return r.key.pin }

// SetFaults replaces the lies, and begins to count anew for those that count.
func (r *Redfish) SetFaults(f RedfishFaults) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults, r.shakes, r.resets = f, 0, 0
	if f.NewKey && r.second == nil {
		var err error
		if r.second, err = NewRedfishKey(); err != nil {
			panic("vbmc: " + err.Error()) // the first key came from the same source
		}
	}
}

// SetWatts is what a machine that runs draws; NaN for a meter without a
// reading.
func (r *Redfish) SetWatts(w float64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.watts = w
}

// Lit tells whether the LED of the first system shines.
func (r *Redfish) Lit() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.systems[0].lit
}

// Restore is the restore policy of the first system.
func (r *Redfish) Restore() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.systems[0].restore
}

// Expire makes the account that is logged in with change its password before
// it may do anything else.
func (r *Redfish) Expire() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.accounts[0].Expired = true
}

// Stats tells what happened so far.
func (r *Redfish) Stats() RedfishStats {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.stats
	s.OpenSessions = len(r.sessions)
	s.Resets = slices.Clone(s.Resets)
	s.Locked = r.faults.Lock > 0 && r.failed >= r.faults.Lock
	return s
}

// Close stops the BMC. The machines stay as they are.
func (r *Redfish) Close() error {
	close(r.done)
	r.mu.Lock()
	for _, s := range r.systems {
		if s.timer != nil {
			s.timer.Stop()
		}
	}
	r.mu.Unlock()
	var err error
	if r.http != nil {
		err = r.http.Close()
	}
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
	switch {
	case f.Hang:
		select {
		case <-q.Context().Done():
		case <-r.done:
		}
		return
	case f.Slow > 0 && !r.sleep(q.Context().Done(), f.Slow):
		return
	case f.NewKey:
		w.Header().Set("Connection", "close")
	}
	if f.Redirect != "" {
		http.Redirect(w, q, f.Redirect+q.URL.Path, http.StatusPermanentRedirect)
		return
	}
	if q.Method == http.MethodGet && (f.Truncate || f.Huge) {
		spoilt := &spoiltWriter{ResponseWriter: w, cut: f.Truncate, pad: f.Huge}
		defer spoilt.flush()
		w = spoilt
	}
	path := strings.TrimSuffix(q.URL.Path, "/")
	sessions := root + "/SessionService/Sessions"
	who, ok := "", false
	if path != root && !(path == sessions && q.Method == http.MethodPost) {
		if who, ok = r.allowed(q); !ok {
			refuse(w, http.StatusUnauthorized, "Base.1.8.NoValidSession", "there is no valid session established")
			return
		}
	}
	switch {
	case path == root && q.Method == http.MethodGet: // DSP0266 6.3: without authentication
		reply(w, http.StatusOK, r.serviceRoot())
	case path == sessions && q.Method == http.MethodPost:
		r.login(w, q, f)
	case strings.HasPrefix(path, sessions+"/") && q.Method == http.MethodDelete:
		r.logout(w, path, f)
	case r.expired(w, q, path, who):
	case f.Status != 0:
		refuse(w, f.Status, "Base.1.8.InternalError", "the service failed")
	case f.NeedETag && q.Method == http.MethodPatch && q.Header.Get("If-Match") == "":
		refuse(w, http.StatusPreconditionRequired, "Base.1.8.PreconditionRequired", "an If-Match header is required")
	default:
		r.serve(w, q, path, f)
	}
}

func (r *Redfish) serviceRoot() map[string]any {
	return map[string]any{
		"@odata.id": root + "/", "@odata.type": "#ServiceRoot.v1_9_0.ServiceRoot", "Id": "RootService",
		"Name": "Root Service", "RedfishVersion": "1.11.0", "Vendor": r.cfg.Vendor, "Product": "virtual BMC (simulated)",
		"Systems": id(root + "/Systems"), "Chassis": id(root + "/Chassis"), "Managers": id(root + "/Managers"),
		"AccountService": id(root + "/AccountService"), "UpdateService": id(root + "/UpdateService"),
		"SessionService": id(root + "/SessionService"),
		"Links":          map[string]any{"Sessions": id(root + "/SessionService/Sessions")},
	}
}

// spoiltWriter holds an answer back to cut it or to make it huge.
type spoiltWriter struct {
	http.ResponseWriter
	body     []byte
	cut, pad bool
}

func (s *spoiltWriter) Write(b []byte) (int, error) {
	s.body = append(s.body, b...)
	return len(b), nil
}

func (s *spoiltWriter) flush() {
	b := s.body
	if s.cut {
		b = b[:len(b)/2]
	}
	if s.pad {
		b = append(b, strings.Repeat(" ", 2<<20)...)
	}
	_, _ = s.ResponseWriter.Write(b) // the client may have left
}

func id(path string) map[string]any { return map[string]any{"@odata.id": path} }

func collection(path, typ string, members ...string) map[string]any {
	m := []any{}
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
func refuse(w http.ResponseWriter, status int, message, text string, args ...string) {
	reply(w, status, map[string]any{"error": map[string]any{
		"code": message, "message": text,
		"@Message.ExtendedInfo": []any{map[string]any{"MessageId": message, "Message": text, "MessageArgs": args}},
	}})
}

// readBody decodes the body of a request, or refuses it.
func readBody(w http.ResponseWriter, q *http.Request, v any) bool {
	if err := json.NewDecoder(io.LimitReader(q.Body, 1<<16)).Decode(v); err != nil {
		refuse(w, http.StatusBadRequest, "Base.1.8.MalformedJSON", err.Error())
		return false
	}
	return true
}
