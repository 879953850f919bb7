package bmc

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"smelt/power"
)

// redfish is a client for the few things Smelt asks of DSP0266 services.
type redfish struct {
	cfg  Config
	base *url.URL

	mu  sync.Mutex
	pin string
}

func newRedfish(c Config) (*redfish, error) {
	u, err := base(c.Address)
	if err != nil {
		return nil, err
	}
	if sum, err := base64.StdEncoding.DecodeString(c.Pin); err != nil || c.Pin != "" && len(sum) != sha256.Size {
		return nil, fmt.Errorf("pin %q: want the base64 of 32 bytes", c.Pin)
	}
	return &redfish{cfg: c, base: u, pin: c.Pin}, nil
}

func (r *redfish) pinned() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.pin
}

// verify compares the key of the BMC with the pin. BMC certificates are
// self-signed, dated 1970 and named for nobody; only their key says something.
func (r *redfish) verify(s tls.ConnectionState) error {
	sum := sha256.Sum256(s.PeerCertificates[0].RawSubjectPublicKeyInfo)
	got := base64.StdEncoding.EncodeToString(sum[:])
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pin == "" {
		r.pin = got
	}
	if r.pin != got {
		return pinError{want: r.pin, got: got}
	}
	return nil
}

type pinError struct{ want, got string }

func (e pinError) Error() string {
	return fmt.Sprintf("the key of the BMC is %s, not %s as before: somebody else answers, or its certificate was replaced (then set the new pin)", e.got, e.want)
}

// The limits of what is read from a BMC.
const (
	maxBody = 1 << 20
	maxSaid = 200 // of an error message
)

const (
	sessionsPath = "/redfish/v1/SessionService/Sessions"
	systemsPath  = "/redfish/v1/Systems"
)

// A session is one login. It lives for one call.
type session struct {
	*redfish
	http     *http.Client
	password string
	token    string // "": basic authentication
	path     string // of the session, to delete it
}

// with logs in, runs f and logs out.
func (r *redfish) with(ctx context.Context, f func(*session) error) error {
	password, err := r.cfg.Password(ctx)
	if err != nil {
		return fmt.Errorf("password of the BMC: %w", err)
	}
	// A transport for one call: BMCs drop idle connections without a word,
	// and nothing stays open that somebody would have to close.
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{
			InsecureSkipVerify: true, //nolint:gosec // verify holds the key against the pin
			VerifyConnection:   r.verify,
			MinVersion:         tls.VersionTLS12,
		},
		TLSHandshakeTimeout: 20 * time.Second,
	}
	defer transport.CloseIdleConnections()
	s := &session{redfish: r, password: password, http: &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	if err := s.login(ctx); err != nil {
		return fmt.Errorf("log in as %s: %w", r.cfg.User, err)
	}
	defer s.logout(ctx)
	return f(s)
}

func (s *session) login(ctx context.Context) error {
	res, body, err := s.send(ctx, http.MethodPost, sessionsPath, nil,
		map[string]string{"UserName": s.cfg.User, "Password": s.password})
	if err != nil {
		return err
	}
	switch {
	case res.StatusCode == http.StatusNotFound, res.StatusCode == http.StatusMethodNotAllowed, res.StatusCode == http.StatusNotImplemented:
		return nil // no sessions: basic authentication for what follows
	case res.StatusCode/100 == 2 && res.Header.Get("X-Auth-Token") != "":
		s.token = res.Header.Get("X-Auth-Token")
		s.path = sessionPath(res.Header.Get("Location"), body)
		return nil
	}
	err = s.refusal(res, body)
	if res.StatusCode/100 == 4 && res.StatusCode != http.StatusTooManyRequests && !strings.Contains(err.Error(), "SessionLimit") {
		// iLO answers 400 to a wrong password. Whatever else it may mean, to
		// ask again could lock the user out.
		return auth(err)
	}
	return err
}

func auth(err error) error {
	if errors.Is(err, power.ErrAuth) {
		return err
	}
	return fmt.Errorf("%w: %w", power.ErrAuth, err)
}

// sessionPath finds the path of a new session. Only its path is taken from a
// Location, so that the token never goes to another host.
func sessionPath(location string, body []byte) string {
	var v struct {
		ID string `json:"@odata.id"`
	}
	if u, err := url.Parse(location); err == nil && location != "" {
		v.ID = u.Path
	} else if err := json.Unmarshal(body, &v); err != nil {
		return ""
	}
	if p := path.Clean(v.ID); strings.HasPrefix(p, "/redfish/") {
		return p
	}
	return ""
}

// logout deletes the session, also after ctx has ended: BMCs have as few as
// eight, and keep a forgotten one for half an hour.
func (s *session) logout(ctx context.Context) {
	if s.path == "" {
		return
	}
	limit := 5 * time.Second
	if ctx.Err() != nil {
		limit = time.Second
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	// What the verb found matters more than an error here.
	_, _, _ = s.send(ctx, http.MethodDelete, s.path, nil, nil)
}

// send makes one request.
func (s *session) send(ctx context.Context, method, path string, header http.Header, in any) (*http.Response, []byte, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, nil, err
		}
		body = bytes.NewReader(b)
	}
	q, err := http.NewRequestWithContext(ctx, method, s.base.JoinPath(path).String(), body)
	if err != nil {
		return nil, nil, err
	}
	maps.Copy(q.Header, header)
	q.Header.Set("Accept", "application/json")
	q.Header.Set("OData-Version", "4.0")
	if in != nil {
		q.Header.Set("Content-Type", "application/json")
	}
	switch {
	case s.token != "":
		q.Header.Set("X-Auth-Token", s.token)
	case path != sessionsPath:
		q.SetBasicAuth(s.cfg.User, s.password)
	}
	res, err := s.http.Do(q)
	if err != nil {
		if u := (*url.Error)(nil); errors.As(err, &u) {
			err = u.Err
		}
		return nil, nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxBody+1))
	if err != nil {
		return nil, nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	if len(b) > maxBody {
		return nil, nil, fmt.Errorf("%s %s: the answer is larger than %d bytes", method, path, maxBody)
	}
	return res, b, nil
}

// refusal words an answer that is no success.
func (s *session) refusal(res *http.Response, body []byte) error {
	said := extended(body)
	if s.password != "" {
		said = strings.ReplaceAll(said, s.password, "(password)")
	}
	err := fmt.Errorf("%s %s: %s: %s", res.Request.Method, res.Request.URL.Path, res.Status, said)
	if res.StatusCode == http.StatusUnauthorized || res.StatusCode == http.StatusForbidden {
		return auth(err)
	}
	return err
}

// extended is the first message of an error response (DSP0266, error
// responses), or the beginning of whatever came.
func extended(body []byte) string {
	var v struct {
		Error struct {
			Code, Message string
			Info          []struct{ MessageID, Message string } `json:"@Message.ExtendedInfo"`
		}
	}
	said := ""
	if json.Unmarshal(body, &v) == nil {
		said = strings.TrimSpace(v.Error.Code + " " + v.Error.Message)
		if len(v.Error.Info) > 0 {
			said = strings.TrimSpace(v.Error.Info[0].MessageID + " " + v.Error.Info[0].Message)
		}
	}
	if said == "" {
		said = strings.Join(strings.Fields(string(body)), " ")
	}
	if len(said) > maxSaid {
		said = said[:maxSaid] + "…"
	}
	return strings.ToValidUTF8(said, "?")
}

// get reads path into out.
func (s *session) get(ctx context.Context, path string, out any) (http.Header, error) {
	res, body, err := s.send(ctx, http.MethodGet, path, nil, nil)
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK {
		return nil, s.refusal(res, body)
	}
	if err := json.Unmarshal(body, out); err != nil {
		return nil, fmt.Errorf("GET %s: the answer is no JSON that fits: %w", path, err)
	}
	return res.Header, nil
}

type link struct {
	ID string `json:"@odata.id"`
}

// A system is what is read of a ComputerSystem (DSP2046).
type system struct {
	link
	PowerState string
	Boot       struct {
		Target  string   `json:"BootSourceOverrideTarget"`
		Enabled string   `json:"BootSourceOverrideEnabled"`
		Mode    string   `json:"BootSourceOverrideMode"`
		Targets []string `json:"BootSourceOverrideTarget@Redfish.AllowableValues"`
	}
	Actions struct {
		Reset struct {
			Target string   `json:"target"`
			Types  []string `json:"ResetType@Redfish.AllowableValues"`
		} `json:"#ComputerSystem.Reset"`
	}
	Links struct{ Chassis []link }
	etag  string
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

// system finds the one that is meant. A BMC with several (HGX baseboards have
// two) is not guessed at.
func (s *session) system(ctx context.Context) (system, error) {
	var sys system
	at := systemsPath + "/" + url.PathEscape(s.cfg.SystemID)
	if s.cfg.SystemID == "" {
		var all struct{ Members []link }
		if _, err := s.get(ctx, systemsPath, &all); err != nil {
			return sys, err
		}
		if len(all.Members) != 1 {
			var ids []string
			for _, m := range all.Members {
				ids = append(ids, path.Base(m.ID))
			}
			return sys, fmt.Errorf("the BMC has %d systems %q: say which one", len(ids), ids)
		}
		at = all.Members[0].ID
	}
	h, err := s.get(ctx, at, &sys)
	if err != nil {
		return sys, err
	}
	sys.ID, sys.etag = at, h.Get("ETag")
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
		return r.reset(ctx, "On", "ForceOn")
	case power.Off:
		return r.reset(ctx, "ForceOff")
	}
	return fmt.Errorf("set %s: %w", want, power.ErrUnsupported)
}

func (r *redfish) SoftOff(ctx context.Context) error { return r.reset(ctx, "GracefulShutdown") }

// reset posts the first of types that the BMC offers, or the first where it
// does not say.
func (r *redfish) reset(ctx context.Context, types ...string) error {
	return r.with(ctx, func(s *session) error {
		sys, err := s.system(ctx)
		if err != nil {
			return err
		}
		typ := types[0]
		if offered := sys.Actions.Reset.Types; len(offered) > 0 {
			i := slices.IndexFunc(types, func(t string) bool { return slices.Contains(offered, t) })
			if i < 0 {
				return fmt.Errorf("reset %q: the BMC offers %q: %w", types, offered, power.ErrUnsupported)
			}
			typ = types[i]
		}
		target := sys.Actions.Reset.Target
		if !strings.HasPrefix(target, "/") {
			target = sys.ID + "/Actions/ComputerSystem.Reset"
		}
		res, body, err := s.send(ctx, http.MethodPost, target, nil, map[string]string{"ResetType": typ})
		if err != nil {
			return err
		}
		if res.StatusCode/100 != 2 {
			return s.refusal(res, body)
		}
		return nil
	})
}

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
		back, err := s.system(ctx)
		if err != nil {
			return fmt.Errorf("boot once from %s: read back: %w", d, err)
		}
		// A simulator reads "Once" back as "Continuous" (sushy-tools); both
		// boot from the target next.
		if back.Boot.Target != target || back.Boot.Enabled != "Once" && back.Boot.Enabled != "Continuous" {
			return fmt.Errorf("boot once from %s: the BMC accepted it, but reads back %q %q", d, back.Boot.Target, back.Boot.Enabled)
		}
		return nil
	})
}

// override patches the boot override. Some BMCs insist on If-Match, some on a
// boot mode beside the target (ironcore-dev/metal-operator#982); setting the
// same value again changes nothing.
func (s *session) override(ctx context.Context, sys system, target string) error {
	boot := map[string]string{"BootSourceOverrideEnabled": "Once", "BootSourceOverrideTarget": target}
	header := http.Header{}
	for try := 0; ; try++ {
		res, body, err := s.send(ctx, http.MethodPatch, sys.ID, header, map[string]any{"Boot": boot})
		if err != nil {
			return err
		}
		switch code := res.StatusCode; {
		case code/100 == 2:
			return nil
		case (code == http.StatusPreconditionFailed || code == http.StatusPreconditionRequired) && header.Get("If-Match") == "" && sys.etag != "":
			header.Set("If-Match", sys.etag)
		case code == http.StatusBadRequest && boot["BootSourceOverrideMode"] == "" && sys.Boot.Mode != "":
			boot["BootSourceOverrideMode"] = sys.Boot.Mode
		default:
			return s.refusal(res, body)
		}
		if try == 2 {
			return s.refusal(res, body)
		}
	}
}

// Readings reads the chassis of the system: DSP2046 Power and Thermal, which
// BMCs keep offering beside their successors.
func (r *redfish) Readings(ctx context.Context) (power.Readings, error) {
	out := power.Readings{Watts: math.NaN(), Celsius: map[string]float64{}}
	err := r.with(ctx, func(s *session) error {
		sys, err := s.system(ctx)
		if err != nil {
			return err
		}
		if len(sys.Links.Chassis) == 0 {
			return fmt.Errorf("readings: the system names no chassis: %w", power.ErrUnsupported)
		}
		var chassis struct{ Power, Thermal link }
		if _, err := s.get(ctx, sys.Links.Chassis[0].ID, &chassis); err != nil {
			return err
		}
		if chassis.Power.ID == "" && chassis.Thermal.ID == "" {
			return fmt.Errorf("readings: the chassis has none: %w", power.ErrUnsupported)
		}
		var p struct {
			PowerControl []struct{ PowerConsumedWatts *float64 }
		}
		if chassis.Power.ID != "" {
			if _, err := s.get(ctx, chassis.Power.ID, &p); err != nil {
				return err
			}
		}
		if len(p.PowerControl) > 0 && p.PowerControl[0].PowerConsumedWatts != nil {
			out.Watts = *p.PowerControl[0].PowerConsumedWatts
		}
		var t struct {
			Temperatures []struct {
				Name           string
				ReadingCelsius *float64
			}
		}
		if chassis.Thermal.ID != "" {
			if _, err := s.get(ctx, chassis.Thermal.ID, &t); err != nil {
				return err
			}
		}
		for _, c := range t.Temperatures {
			if c.ReadingCelsius != nil {
				out.Celsius[c.Name] = *c.ReadingCelsius
			}
		}
		out.At = time.Now()
		return nil
	})
	return out, err
}
