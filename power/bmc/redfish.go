package bmc

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"smelt/power"
)

// redfish is a client for the few things Smelt asks of DSP0266 services.
//
// What is read is judged by what it says, never by where the BMC's vendor is
// known to put it, with the exceptions that say so. Where a comment says
// "unverified" no real BMC of that kind was seen.
type redfish struct {
	cfg     Config
	base    *url.URL
	journal journal
	trust   *power.Trust

	mu      sync.Mutex
	known   root
	knownAt time.Time
}

func newRedfish(c Config) (*redfish, error) {
	u, err := base(c.Address)
	if err != nil {
		return nil, err
	}
	at := u.Host
	if u.Port() == "" {
		at += ":443"
	}
	trust, err := power.NewTrust(c.Pin, c.Sessions, at)
	if err != nil {
		return nil, err
	}
	return &redfish{cfg: c, base: u, trust: trust, journal: newJournal(c.Sessions, at)}, nil
}

// The limits of what is read from a BMC.
const (
	maxBody = 1 << 20
	maxLog  = 4 << 20 // of a page of a log
	maxSaid = 200     // of an error message
)

const (
	sessionsPath = "/redfish/v1/SessionService/Sessions"
	systemsPath  = "/redfish/v1/Systems"
)

// A session is one login. It lives for one call.
type session struct {
	*redfish
	root     root
	http     *http.Client
	password string
	fresh    string // a password that it is to get
	token    string // of the session
	basic    bool   // no session: basic authentication
	path     string // of the session, to delete it
	granted  time.Time
	ledger   *ledger
	record   record // of this login
	doubt    bool   // sessions of dead processes may be left
	expired  string // account whose password must be changed first, "" for none
}

// open prepares a connection. BMCs drop idle connections without a word, so
// it is for one call, and nothing stays open that somebody would have to close.
func (r *redfish) open(password string) (s *session, end func()) {
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{
			InsecureSkipVerify: true, //nolint:gosec // trust holds the key against the pin
			VerifyConnection:   r.trust.Verify,
			MinVersion:         tls.VersionTLS12,
			CipherSuites:       suites(),
		},
		TLSHandshakeTimeout:    20 * time.Second,
		MaxConnsPerHost:        1, // BMCs have few
		MaxResponseHeaderBytes: 64 << 10,
	}
	return &session{redfish: r, password: password, http: &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, transport.CloseIdleConnections
}

// suites are Go's own and, behind them, the exchange of keys by RSA, which the
// BMCs of boards of about 2015 have and no other (unverified): without forward
// secrecy, but still with the pinned key.
func suites() []uint16 {
	var out []uint16
	for _, s := range tls.CipherSuites() {
		out = append(out, s.ID)
	}
	return append(out, tls.TLS_RSA_WITH_AES_256_GCM_SHA384, tls.TLS_RSA_WITH_AES_128_GCM_SHA256,
		tls.TLS_RSA_WITH_AES_256_CBC_SHA, tls.TLS_RSA_WITH_AES_128_CBC_SHA)
}

// with logs in, deletes what killed processes left, runs f and logs out.
func (r *redfish) with(ctx context.Context, f func(*session) error) (err error) {
	defer func() {
		if err != nil {
			err = worded{err}
		}
	}()
	password, err := r.cfg.Password(ctx)
	if err != nil {
		return fmt.Errorf("password of the BMC: %w", err)
	}
	ledger, err := r.journal.lock(ctx)
	if err != nil {
		return err
	}
	defer ledger.unlock()
	s, end := r.open(password)
	defer end()
	s.ledger = ledger
	if err := s.discover(ctx); err != nil {
		return err
	}
	if err := s.login(ctx); err != nil {
		return fmt.Errorf("log in as %s: %w", r.cfg.User, err)
	}
	defer s.logout(ctx)
	s.sweep(ctx)
	return f(s)
}

// Sweep does nothing but what comes before every call.
func (r *redfish) Sweep(ctx context.Context) error {
	l, err := r.journal.lock(ctx)
	if err != nil {
		return err
	}
	open := len(l.left(record{}))
	l.unlock()
	if open == 0 {
		return nil
	}
	return r.with(ctx, func(s *session) error {
		if s.doubt {
			return fmt.Errorf("%d may still be there; the next call looks again", len(s.ledger.left(s.record)))
		}
		return nil
	})
}

// inService is the path of ref within the service, with its query, or "". Only
// the path is taken from what a BMC says, so that a token never goes to another
// host.
func inService(ref string) string {
	u, err := url.Parse(ref)
	if err != nil || !strings.HasPrefix(u.Path, "/redfish/") || slices.Contains(strings.Split(u.Path, "/"), "..") {
		return ""
	}
	at := u.EscapedPath()
	if u.RawQuery != "" {
		at += "?" + u.RawQuery
	}
	return at
}

// send makes one request to ref, a path within the service.
func (s *session) send(ctx context.Context, method, ref string, header http.Header, in any) (*http.Response, []byte, error) {
	return s.sendLimited(ctx, method, ref, header, in, maxBody)
}

func (s *session) sendLimited(ctx context.Context, method, ref string, header http.Header, in any, limit int64) (*http.Response, []byte, error) {
	at := inService(ref)
	if at == "" {
		return nil, nil, fmt.Errorf("%s %.100q: no resource of a Redfish service", method, ref)
	}
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, nil, err
		}
		body = bytes.NewReader(b)
	}
	q, err := http.NewRequestWithContext(ctx, method, s.base.String()+at, body)
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
	case s.basic:
		q.SetBasicAuth(s.cfg.User, s.password)
	}
	res, err := s.http.Do(q)
	if err != nil {
		if u := (*url.Error)(nil); errors.As(err, &u) {
			err = u.Err
		}
		return nil, nil, fmt.Errorf("%s %s: %w", method, ref, err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, limit+1))
	if err != nil {
		return nil, nil, fmt.Errorf("%s %s: %w", method, ref, err)
	}
	if int64(len(b)) > limit {
		return nil, nil, fmt.Errorf("%s %s: the answer is larger than %d bytes", method, ref, limit)
	}
	return res, b, nil
}

// refusal words an answer that is no success.
func (s *session) refusal(res *http.Response, body []byte) error {
	m := extended(body)
	m.id, m.text = s.hide(m.id), s.hide(m.text) // before it is cut
	err := error(answerError{
		status: res.StatusCode,
		text:   strings.TrimSuffix(fmt.Sprintf("%s %s: %s: %s", res.Request.Method, res.Request.URL.Path, res.Status, m), ": "),
	})
	switch {
	case strings.HasSuffix(m.id, ".PasswordChangeRequired"):
		return auth(fmt.Errorf("the BMC lets nobody do anything before its password is changed (smelt: adopt it): %w", err))
	case res.StatusCode == http.StatusUnauthorized && s.token != "":
		// The login was granted a moment ago: the session is gone, the
		// credential is not wrong.
		return fmt.Errorf("the BMC ended our session: %w", err)
	case res.StatusCode == http.StatusUnauthorized, res.StatusCode == http.StatusForbidden:
		return auth(err)
	case res.StatusCode/100 == 3:
		return fmt.Errorf("redirects are not followed, they could take a credential elsewhere: %w", err)
	}
	return err
}

// hide takes our passwords out of what the BMC says: some repeat what they were
// sent.
func (s *session) hide(said string) string {
	for _, secret := range []string{s.password, s.fresh} {
		if secret == "" {
			continue
		}
		said = strings.ReplaceAll(said, secret, "(password)")
		if j, err := json.Marshal(secret); err == nil {
			said = strings.ReplaceAll(said, string(j[1:len(j)-1]), "(password)")
		}
	}
	return said
}

// worded makes the words of an error harmless: the BMC chose some of them.
type worded struct{ error }

const maxWords = 1000 // bytes

func (w worded) Error() string { return cut(harmless(w.error.Error()), maxWords) }
func (w worded) Unwrap() error { return w.error }

// An answerError is an answer of the BMC that is no success.
type answerError struct {
	status int
	text   string
}

func (e answerError) Error() string { return e.text }

// answered tells whether err is an answer with one of the statuses.
func answered(err error, status ...int) bool {
	var a answerError
	return errors.As(err, &a) && slices.Contains(status, a.status)
}

// A message is the first one of an answer (DSP0266, error responses).
type message struct {
	id, text string
	args     []string
}

func (m message) String() string {
	said := strings.TrimSpace(m.id + " " + m.text)
	if len(said) > maxSaid {
		said = said[:maxSaid] + "…"
	}
	return strings.ToValidUTF8(said, "?")
}

// extended finds the first message in an error response, or in a success with
// something to say; else it is the beginning of whatever came.
func extended(body []byte) message {
	type info struct {
		ID   string `json:"MessageId"`
		Text string `json:"Message"`
		Args []any  `json:"MessageArgs"`
	}
	var v struct {
		Error struct {
			Code, Message string
			Info          []info `json:"@Message.ExtendedInfo"`
		}
		Info []info `json:"@Message.ExtendedInfo"`
	}
	_ = json.Unmarshal(body, &v) // what does not fit stays empty
	m := message{id: v.Error.Code, text: v.Error.Message}
	if all := append(v.Error.Info, v.Info...); len(all) > 0 {
		m = message{id: all[0].ID, text: all[0].Text}
		for _, a := range all[0].Args {
			if s, ok := a.(string); ok {
				m.args = append(m.args, s)
			}
		}
	}
	if m.id == "" && m.text == "" {
		m.text = strings.Join(strings.Fields(string(body[:min(len(body), 4*maxSaid)])), " ")
	}
	return m
}

// decode reads a resource. A property of a type that nobody expects is left
// empty: one odd sensor must not hide a machine.
func decode(ref string, body []byte, out any) error {
	err := json.Unmarshal(body, out)
	var odd *json.UnmarshalTypeError
	if err != nil && !(errors.As(err, &odd) && odd.Field != "") {
		return fmt.Errorf("GET %s: the answer is no JSON that fits: %w", ref, err)
	}
	return nil
}

// get reads a resource into out.
func (s *session) get(ctx context.Context, ref string, out any) (http.Header, error) {
	return s.getLimited(ctx, ref, out, maxBody)
}

func (s *session) getLimited(ctx context.Context, ref string, out any, limit int64) (http.Header, error) {
	res, body, err := s.sendLimited(ctx, http.MethodGet, ref, nil, nil, limit)
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK {
		return nil, s.refusal(res, body)
	}
	return res.Header, decode(ref, body, out)
}

// patch changes a resource. Some BMCs insist on the ETag of what they gave
// (Lenovo XCC answers 428 without), some give one and refuse it
// (ansible-collections/community.general#3268, #6434), so that is tried only
// when they ask for it; setting the same value again changes nothing.
func (s *session) patch(ctx context.Context, ref string, etags []string, in any) error {
	var last error
	for _, tag := range slices.Concat([]string{""}, etags, []string{"*"}) {
		header := http.Header{}
		if tag != "" {
			header.Set("If-Match", tag)
		}
		res, body, err := s.send(ctx, http.MethodPatch, ref, header, in)
		if err != nil {
			return err
		}
		if res.StatusCode/100 == 2 {
			return nil
		}
		last = s.refusal(res, body)
		if !answered(last, http.StatusPreconditionFailed, http.StatusPreconditionRequired) {
			return last
		}
	}
	return last
}

// etags are the tags that a resource came with, in its header and its body.
func etags(h http.Header, body string) []string {
	var out []string
	for _, tag := range []string{h.Get("ETag"), body} {
		if tag != "" && !slices.Contains(out, tag) {
			out = append(out, tag)
		}
	}
	return out
}

type link struct {
	ID string `json:"@odata.id"`
}

func auth(err error) error {
	if errors.Is(err, power.ErrAuth) {
		return err
	}
	return fmt.Errorf("%w: %w", power.ErrAuth, err)
}
