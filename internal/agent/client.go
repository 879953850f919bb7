package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"smelt/internal/api"
	"smelt/inventory"
)

// maxAnswer bounds what is read of an answer: a grant with its files is the
// largest.
const maxAnswer = 8 << 20

// client speaks to the server. It trusts one public key and nothing else: no
// authority, no name and no date, because the clock of a rig is often dead.
type client struct {
	base    string
	http    *http.Client
	session func() string
}

// statusError is an answer that is not a success.
type statusError struct {
	code   int
	detail string
}

func (e *statusError) Error() string {
	if e.detail != "" {
		return fmt.Sprintf("the server answers %d: %s", e.code, e.detail)
	}
	return fmt.Sprintf("the server answers %d %s", e.code, http.StatusText(e.code))
}

// final tells whether asking again cannot help.
func final(err error) bool {
	var s *statusError
	return errors.As(err, &s) && s.code >= 400 && s.code < 500 && s.code != http.StatusRequestTimeout && s.code != http.StatusTooManyRequests
}

func hasStatus(err error, code int) bool {
	var s *statusError
	return errors.As(err, &s) && s.code == code
}

func newClient(server, pin string, session func() string) (*client, error) {
	u, err := url.Parse(server)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("server %q is no https URL", server)
	}
	want, err := hex.DecodeString(pin)
	if err != nil || len(want) != sha256.Size {
		return nil, errors.New("the pin is not a SHA-256 in hexadecimal")
	}
	d := net.Dialer{Timeout: 10 * time.Second, KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 4}}
	return &client{
		base:    strings.TrimSuffix(server, "/"),
		session: session,
		http: &http.Client{
			Transport: &http.Transport{
				DialContext:         d.DialContext,
				TLSHandshakeTimeout: 20 * time.Second, // a Celeron under load
				MaxIdleConnsPerHost: 4,
				IdleConnTimeout:     time.Minute,
				TLSClientConfig: &tls.Config{
					MinVersion: tls.VersionTLS13,
					// Not a gap: VerifyConnection below is the whole check.
					InsecureSkipVerify: true,
					VerifyConnection:   func(cs tls.ConnectionState) error { return checkPin(cs.PeerCertificates, want) },
				},
			},
			// A redirect would carry the session elsewhere.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

// checkPin holds the leaf's public key against the pin. TLS 1.3 has proven by
// then that the server holds the private key.
func checkPin(chain []*x509.Certificate, want []byte) error {
	if len(chain) == 0 {
		return errors.New("the server shows no certificate")
	}
	got := sha256.Sum256(chain[0].RawSubjectPublicKeyInfo)
	if subtle.ConstantTimeCompare(got[:], want) != 1 {
		return errors.New("the server's key is not the pinned one: another machine answers at its address, or the site has a new key and this RAM system is old")
	}
	return nil
}

// call sends in as JSON (nothing when nil) and reads the answer into out.
func (c *client) call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	b, err := c.send(ctx, method, path, "application/json", body)
	if err != nil || out == nil {
		return err
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("%s: the answer is no JSON of ours: %v", path, err)
	}
	return nil
}

func (c *client) send(ctx context.Context, method, path, kind string, body io.Reader) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", kind)
	}
	if s := c.session(); s != "" {
		req.Header.Set("Authorization", "Bearer "+s)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if len(b) > maxAnswer {
		return nil, fmt.Errorf("%s: the answer is longer than %d bytes", path, maxAnswer)
	}
	if resp.StatusCode/100 != 2 {
		var p api.Problem
		_ = json.Unmarshal(b, &p) // an answer of something in between is no Problem
		return nil, &statusError{resp.StatusCode, p.Detail}
	}
	return b, nil
}

func (c *client) enrol(ctx context.Context, e api.Enrol) (api.Enrolled, error) {
	var out api.Enrolled
	err := c.call(ctx, http.MethodPost, api.PathEnrol, e, &out)
	return out, err
}

func (c *client) renew(ctx context.Context) (api.Enrolled, error) {
	var out api.Enrolled
	err := c.call(ctx, http.MethodPost, api.PathRenew, struct{}{}, &out)
	return out, err
}

func (c *client) order(ctx context.Context, after, located string, load inventory.Load) (api.Order, error) {
	var o api.Order
	query := url.Values{"after": {after}, "locate": {located}, "load": {load.String()}}
	err := c.call(ctx, http.MethodGet, api.PathOrder+"?"+query.Encode(), nil, &o)
	return o, err
}

func (c *client) now(ctx context.Context) (time.Time, error) {
	b, err := c.send(ctx, http.MethodGet, api.PathTime, "", nil)
	if err != nil {
		return time.Time{}, err
	}
	return parseTime(b)
}

// parseTime reads the server's time, which is a JSON string, a bare RFC 3339
// text, or an object with a field now.
func parseTime(b []byte) (time.Time, error) {
	var t time.Time
	if json.Unmarshal(b, &t) == nil && !t.IsZero() {
		return t, nil
	}
	var o struct {
		Now time.Time `json:"now"`
	}
	if json.Unmarshal(b, &o) == nil && !o.Now.IsZero() {
		return o.Now, nil
	}
	return time.Parse(time.RFC3339Nano, strings.TrimSpace(string(b)))
}
