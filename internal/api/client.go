package api

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"smelt/burnin"
	"smelt/inventory"
)

// An Error is an answer that is not a success. Kinds lets a caller branch on
// it by errors.Is.
type Error struct {
	Problem
	Kind error // ErrDenied, ErrNotFound, ErrInvalid, ErrConflict, or nil
}

func (e *Error) Error() string {
	s := e.Detail
	if s == "" {
		s = e.Title
	}
	if e.Next != "" {
		s += "; next: " + e.Next
	}
	return s
}

func (e *Error) Unwrap() error { return e.Kind }

// Kinds of Error. The CLI maps each to one exit code.
var (
	ErrDenied   = errors.New("not allowed")
	ErrNotFound = errors.New("not found")
	ErrInvalid  = errors.New("invalid input")
	ErrConflict = errors.New("conflict")
	ErrPending  = errors.New("still waiting")
)

func kindOf(status int) error {
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden:
		return ErrDenied
	case http.StatusNotFound:
		return ErrNotFound
	case http.StatusBadRequest, http.StatusUnprocessableEntity, http.StatusRequestEntityTooLarge:
		return ErrInvalid
	case http.StatusConflict:
		return ErrConflict
	}
	return nil
}

// maxAnswer bounds what is read of one answer: 24,000 nodes need about 100 MB
// of JSON with hardware.
const maxAnswer = 512 << 20

// Client speaks to the operator API of one server.
type Client struct {
	base  string
	token string
	http  *http.Client
}

// NewClient makes a client for a server such as http://127.0.0.1:8480. The
// token is sent as a bearer token with each request. transport may be nil.
func NewClient(server, token string, transport http.RoundTripper) (*Client, error) {
	if !strings.Contains(server, "://") {
		server = "http://" + server
	}
	u, err := url.Parse(server)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil {
		return nil, fmt.Errorf("server address %q: %w: want http://HOST:PORT", server, ErrInvalid)
	}
	// A token in clear may only cross this machine's own wires.
	if u.Scheme == "http" && token != "" && !loopback(u.Hostname()) {
		return nil, fmt.Errorf("server %s: %w: the token would cross the network in clear; use https, or a tunnel to 127.0.0.1", u.Host, ErrInvalid)
	}
	return &Client{base: strings.TrimRight(u.String(), "/"), token: token, http: &http.Client{
		Transport: transport,
		// A redirect could carry the token elsewhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// NewID makes the identity of an action: repeating the action with the same ID
// does nothing twice.
func NewID() string {
	var b [12]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}

func (c *Client) do(ctx context.Context, method, path string, in, out any) (status int, err error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return 0, err
		}
		body = bytes.NewReader(b)
	}
	resp, err := c.send(ctx, method, path, body, nil)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if err := problem(resp); err != nil {
		return resp.StatusCode, err
	}
	if out == nil {
		return resp.StatusCode, nil
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(out); err != nil {
		return resp.StatusCode, fmt.Errorf("%s %s: the answer of %s is not what was expected: %w", method, path, c.base, err)
	}
	return resp.StatusCode, nil
}

func (c *Client) send(ctx context.Context, method, path string, body io.Reader, header http.Header) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, err
	}
	if header != nil {
		req.Header = header
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("no answer from %s: %w", c.base, err)
	}
	return resp, nil
}

// problem turns an answer that is no success into an Error.
func problem(resp *http.Response) error {
	if resp.StatusCode >= 200 && resp.StatusCode < 300 {
		return nil
	}
	e := &Error{Kind: kindOf(resp.StatusCode)}
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if json.Unmarshal(b, &e.Problem) != nil || e.Title == "" {
		e.Problem = Problem{Title: http.StatusText(resp.StatusCode)}
	}
	e.Status = resp.StatusCode
	if resp.StatusCode == http.StatusUnauthorized && e.Detail == "" {
		e.Detail = "the server does not accept this token"
	}
	return e
}

// Site returns what the header of every page shows.
func (c *Client) Site(ctx context.Context) (SiteView, error) {
	var v SiteView
	_, err := c.do(ctx, "GET", PathSite, nil, &v)
	return v, err
}

// Nodes returns all nodes.
func (c *Client) Nodes(ctx context.Context) (NodeList, error) {
	var v NodeList
	_, err := c.do(ctx, "GET", PathNodes, nil, &v)
	return v, err
}

// Node returns one node with its events and reports.
func (c *Client) Node(ctx context.Context, id inventory.NodeID) (NodeView, error) {
	var v NodeView
	_, err := c.do(ctx, "GET", PathNodes+"/"+url.PathEscape(string(id)), nil, &v)
	return v, err
}

// Do asks for a verb on a node and waits until it is done or refused
// (ErrConflict), or until ctx ends (ErrPending: the server still works on it).
func (c *Client) Do(ctx context.Context, node inventory.NodeID, verb string, params map[string]string) (ActionResult, error) {
	return c.act(ctx, PathNodes+"/"+url.PathEscape(string(node))+"/"+url.PathEscape(verb), params)
}

// Tasks returns all tasks, open ones first.
func (c *Client) Tasks(ctx context.Context) (TaskList, error) {
	var v TaskList
	_, err := c.do(ctx, "GET", PathTasks, nil, &v)
	return v, err
}

// TaskDone says that the work of a task is done; its proof test follows.
func (c *Client) TaskDone(ctx context.Context, id string, params map[string]string) (ActionResult, error) {
	return c.act(ctx, PathTasks+"/"+url.PathEscape(id)+"/done", params)
}

// Stop sets or clears the global stop.
func (c *Client) Stop(ctx context.Context, on bool, reason string) (ActionResult, error) {
	return c.act(ctx, PathStop, map[string]string{"on": strconv.FormatBool(on), "reason": reason})
}

// act posts an action until its result is known. Posting it again is harmless
// because of its ID, so this is also the one place that retries.
func (c *Client) act(ctx context.Context, path string, params map[string]string) (ActionResult, error) {
	a := Action{ID: NewID(), Params: params}
	for tries := 0; ; tries++ {
		var r ActionResult
		status, err := c.do(ctx, "POST", path, a, &r)
		switch {
		case err == nil && status != http.StatusAccepted:
			return r, nil
		case err == nil && r.ID != "":
			tries = 0 // it is on its way: ask again for the result
		case err != nil && (status != 0 || tries >= 2) && ctx.Err() == nil:
			return r, err
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return ActionResult{ID: a.ID}, fmt.Errorf("%w: the server took the request (%s) and has no result yet", ErrPending, a.ID)
			}
			return ActionResult{ID: a.ID}, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// Tokens lists who has a token.
func (c *Client) Tokens(ctx context.Context) (TokenList, error) {
	var v TokenList
	_, err := c.do(ctx, "GET", PathTokens, nil, &v)
	return v, err
}

// AddToken makes a token for somebody.
func (c *Client) AddToken(ctx context.Context, name, role string) (TokenGrant, error) {
	var v TokenGrant
	_, err := c.do(ctx, "POST", PathTokens, TokenRequest{name, role}, &v)
	return v, err
}

// RevokeToken makes the tokens of a name worthless.
func (c *Client) RevokeToken(ctx context.Context, name string) error {
	_, err := c.do(ctx, "POST", PathTokens+"/"+url.PathEscape(name)+"/revoke", Action{}, nil)
	return err
}

// Networks returns the networks that machines boot on.
func (c *Client) Networks(ctx context.Context) (NetworkList, error) {
	var v NetworkList
	_, err := c.do(ctx, "GET", PathNetworks, nil, &v)
	return v, err
}

// Seen returns the machines that were heard on the networks.
func (c *Client) Seen(ctx context.Context) (SightingList, error) {
	var v SightingList
	_, err := c.do(ctx, "GET", PathNetworks+"/seen", nil, &v)
	return v, err
}

// BMCs lists the BMCs of the site.
func (c *Client) BMCs(ctx context.Context) (BMCList, error) {
	var out BMCList
	_, err := c.do(ctx, http.MethodGet, PathBMCs, nil, &out)
	return out, err
}

// Images returns the image store.
func (c *Client) Images(ctx context.Context) (ImageList, error) {
	var v ImageList
	_, err := c.do(ctx, "GET", PathImages, nil, &v)
	return v, err
}

// Reports lists the burn-in reports of a node, newest first.
func (c *Client) Reports(ctx context.Context, node inventory.NodeID) (ReportList, error) {
	var v ReportList
	_, err := c.do(ctx, "GET", PathReports+"/"+url.PathEscape(string(node)), nil, &v)
	return v, err
}

// Report returns one burn-in report.
func (c *Client) Report(ctx context.Context, node inventory.NodeID, id string) (burnin.Report, error) {
	resp, err := c.send(ctx, "GET", PathReports+"/"+url.PathEscape(string(node))+"/"+url.PathEscape(id)+".json", nil, nil)
	if err != nil {
		return burnin.Report{}, err
	}
	defer resp.Body.Close()
	if err := problem(resp); err != nil {
		return burnin.Report{}, err
	}
	return burnin.ParseJSON(resp.Body)
}

// Certificates lists the wipe certificates of a node, newest first.
func (c *Client) Certificates(ctx context.Context, node inventory.NodeID) (CertificateList, error) {
	var v CertificateList
	_, err := c.do(ctx, "GET", PathCertificates+"/"+url.PathEscape(string(node)), nil, &v)
	return v, err
}

// maxCertificate bounds what is read of one certificate.
const maxCertificate = 4 << 20

// Certificate returns one wipe certificate as it was signed.
func (c *Client) Certificate(ctx context.Context, node inventory.NodeID, id string) ([]byte, error) {
	resp, err := c.send(ctx, "GET", PathCertificates+"/"+url.PathEscape(string(node))+"/"+url.PathEscape(id)+".json", nil, nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if err := problem(resp); err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(resp.Body, maxCertificate))
}

// A Notice is one message of the stream of events: either an event or the
// progress of a node.
type Notice struct {
	Event    *inventory.Event
	Progress *NodeProgress
}

// Events calls f for every event after seq, and for progress, until ctx ends
// or f returns an error, which it returns. When the connection breaks it
// resumes after the last event that f got.
func (c *Client) Events(ctx context.Context, after uint64, f func(Notice) error) error {
	for {
		err := c.events(ctx, &after, f)
		var stop stopped
		var refused *Error
		switch {
		case errors.As(err, &stop):
			return stop.error
		case errors.As(err, &refused) && refused.Kind != nil:
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

// stopped carries the error of a callback through the reading loop.
type stopped struct{ error }

func (c *Client) events(ctx context.Context, after *uint64, f func(Notice) error) error {
	h := http.Header{"Accept": {"text/event-stream"}, "Last-Event-Id": {strconv.FormatUint(*after, 10)}}
	resp, err := c.send(ctx, "GET", PathEvents, nil, h)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := problem(resp); err != nil {
		return err
	}
	sc := bufio.NewScanner(resp.Body)
	sc.Buffer(nil, 8<<20) // an event with hardware has some 100 KB
	var kind, data string
	for sc.Scan() {
		key, value, _ := strings.Cut(sc.Text(), ":")
		value = strings.TrimPrefix(value, " ")
		switch key {
		case "event":
			kind = value
		case "data":
			data += value
		case "":
			if sc.Text() != "" || data == "" {
				continue // a comment keeps the line open
			}
			n, err := notice(kind, data)
			if err != nil {
				return err
			}
			kind, data = "", ""
			if n == (Notice{}) {
				continue // a kind that a newer server sends
			}
			if err := f(n); err != nil {
				return stopped{err}
			}
			if n.Event != nil {
				*after = n.Event.Seq
			}
		}
	}
	return sc.Err()
}

func notice(kind, data string) (Notice, error) {
	var n Notice
	switch kind {
	case StreamEvent:
		n.Event = new(inventory.Event)
		return n, json.Unmarshal([]byte(data), n.Event)
	case StreamProgress:
		n.Progress = new(NodeProgress)
		return n, json.Unmarshal([]byte(data), n.Progress)
	}
	return n, nil
}
