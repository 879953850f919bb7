package bmc

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"smelt/power"
)

// A root is what a service tells everybody (DSP0266: the service root needs no
// authentication), read before any password leaves us.
type root struct {
	Vendor, Product, RedfishVersion string
	Systems, Chassis, Managers      link
	AccountService, UpdateService   link
	SessionService                  link
	Links                           struct{ Sessions link }
	Oem                             map[string]any
	Features                        struct {
		Expand struct{ NoLinks bool } `json:"ExpandQuery"`
		// TopSkip is in newer Service Root schemas only; without it a log is
		// read page by page.
		TopSkip bool `json:"TopSkipQuery"`
	} `json:"ProtocolFeaturesSupported"`
}

// rootAge is how long the facts of the root are believed: new firmware changes
// them.
const rootAge = 10 * time.Minute

const rootPath = "/redfish/v1/"

// discover reads the service root. A thing that is no Redfish service gets no
// password.
func (s *session) discover(ctx context.Context) error {
	s.mu.Lock()
	known := s.known
	fresh := time.Since(s.knownAt) < rootAge
	s.mu.Unlock()
	if fresh {
		s.root = known
		return nil
	}
	res, body, err := s.send(ctx, http.MethodGet, rootPath, nil, nil)
	if err != nil {
		return err
	}
	var r root
	switch {
	case res.StatusCode == http.StatusOK:
		if err := decode(rootPath, body, &r); err != nil {
			return fmt.Errorf("no Redfish service: %w", err)
		}
		if r.RedfishVersion == "" && r.Systems.ID == "" && r.Links.Sessions.ID == "" {
			return fmt.Errorf("GET %s: it answers, but is no Redfish service", rootPath)
		}
	case res.StatusCode == http.StatusUnauthorized, res.StatusCode == http.StatusForbidden:
		// Against the specification; the paths are the usual ones then.
		r.Links.Sessions.ID = sessionsPath
	default:
		return fmt.Errorf("no service root: %w", s.refusal(res, body))
	}
	def := func(l *link, path string) {
		if l.ID = inService(l.ID); l.ID == "" {
			l.ID = path
		}
	}
	def(&r.Systems, systemsPath)
	if r.Links.Sessions.ID = inService(r.Links.Sessions.ID); r.Links.Sessions.ID == "" && r.SessionService.ID != "" {
		r.Links.Sessions.ID = sessionsPath
	}
	s.mu.Lock()
	s.known, s.knownAt = r, time.Now()
	s.mu.Unlock()
	s.root = r
	return nil
}

// vendor is who made the BMC: the property (Service Root schema 1.5), or the
// name under which the OEM part stands.
func (r root) vendor() string {
	if r.Vendor != "" {
		return r.Vendor
	}
	if len(r.Oem) == 1 {
		for name := range r.Oem {
			return name
		}
	}
	return ""
}

// Facts are what a BMC tells everybody.
type Facts struct {
	Vendor, Product string
	Version         string // of the Redfish protocol
	Pin             string // of its key
	Sessions        bool   // it has sessions, else basic authentication only
}

// ErrNoRedfish says that something answers, but not with Redfish.
var ErrNoRedfish = errors.New("no Redfish service")

// Probe asks what is at address, without a credential: the choice between
// redfish and ipmi costs no login.
func Probe(ctx context.Context, address string) (Facts, error) {
	nobody := func(context.Context) (string, error) { return "", power.ErrUnsupported }
	r, err := newRedfish(Config{Address: address, User: "nobody", Password: nobody})
	if err != nil {
		return Facts{}, fmt.Errorf("BMC: %w", err)
	}
	s, end := r.open("")
	defer end()
	if err := s.discover(ctx); err != nil {
		if ctx.Err() == nil {
			err = fmt.Errorf("%w: %w", ErrNoRedfish, err)
		}
		return Facts{}, fmt.Errorf("BMC %s: %w", r.base.Host, err)
	}
	return Facts{
		Vendor: s.root.vendor(), Product: s.root.Product, Version: s.root.RedfishVersion, Pin: r.trust.Key().Pin,
		Sessions: s.root.Links.Sessions.ID != "",
	}, nil
}
