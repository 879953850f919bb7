package api

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"smelt/inventory"
)

// Below PathNodes/{id}: what is seen of a machine from afar.
const (
	SubConsole  = "/console"  // GET ConsoleLog, or SSE (Accept: text/event-stream): id is the entry's number; POST ConsoleInput
	SubScreen   = "/screen"   // GET a picture of its screen
	SubSensors  = "/sensors"  // GET SensorList
	SubEventLog = "/eventlog" // GET EventLog: of its controller
	SubLocate   = "/locate"   // GET, POST Locating
)

// ConsoleLog is what was recorded of a machine's serial console.
type ConsoleLog struct {
	APIVersion string           `json:"apiVersion"`
	Kind       string           `json:"kind"` // ConsoleLog
	Node       inventory.NodeID `json:"node"`
	State      ConsoleState     `json:"state"`
	Items      []ConsoleEntry   `json:"items"` // oldest first
}

// ConsoleState is how the recording of a console is.
type ConsoleState struct {
	Is     string    `json:"is"` // none, waiting, opening, open, lost, off
	Since  time.Time `json:"since,omitzero"`
	Why    string    `json:"why,omitempty"`    // lost, none
	Next   time.Time `json:"next,omitzero"`    // lost: it is tried again then
	Typing string    `json:"typing,omitempty"` // who types now
}

// ConsoleEntry is what came at one moment. Text is without escapes and control
// characters, so that it can be shown anywhere; Raw is as it came.
type ConsoleEntry struct {
	Seq  uint64    `json:"seq"`
	At   time.Time `json:"at"`
	Mark bool      `json:"mark,omitempty"` // the recorder says it, not the machine
	Text string    `json:"text,omitempty"`
	Raw  []byte    `json:"raw,omitempty"` // only with raw=yes
}

// ConsoleInput is typed into a console. A session is whatever name the typist
// made up for it; one session at a time types into a machine.
type ConsoleInput struct {
	Session string `json:"session"`
	Data    []byte `json:"data,omitempty"`
	Take    bool   `json:"take,omitempty"` // from whoever types now
	End     bool   `json:"end,omitempty"`  // the session is over
}

// Names of the events of a console's stream.
const (
	StreamConsole = "console" // data is a ConsoleEntry
	StreamState   = "state"   // data is a ConsoleState
)

// SensorList is what the controller of a node measures.
type SensorList struct {
	APIVersion string           `json:"apiVersion"`
	Kind       string           `json:"kind"` // SensorList
	Node       inventory.NodeID `json:"node"`
	Controller string           `json:"controller"`
	At         time.Time        `json:"at"`
	Items      []Sensor         `json:"items"`
}

// Sensor is one measurement.
type Sensor struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"` // W, °C, rpm
}

// EventLog is what the controller of a node noted itself (IPMI SEL, a Redfish
// LogService).
type EventLog struct {
	APIVersion string           `json:"apiVersion"`
	Kind       string           `json:"kind"` // EventLog
	Node       inventory.NodeID `json:"node"`
	Controller string           `json:"controller"`
	At         time.Time        `json:"at"`    // when it was read
	Items      []EventLogEntry  `json:"items"` // oldest first
}

// EventLogEntry is one line. Its time is by the controller's own clock; many
// begin in 1970.
type EventLogEntry struct {
	ID       string    `json:"id"`
	At       time.Time `json:"at,omitzero"`
	Severity string    `json:"severity,omitempty"`
	Sensor   string    `json:"sensor,omitempty"`
	Message  string    `json:"message"`
}

// Picture is a screen as its controller shows it.
type Picture struct {
	Type string // media type
	Data []byte
}

// maxPicture bounds a picture: an uncompressed 4K screen as PNG is below it.
const maxPicture = 32 << 20

func nodePath(node inventory.NodeID, sub string) string {
	return PathNodes + "/" + url.PathEscape(string(node)) + sub
}

// ConsoleAsk says what of a console is wanted.
type ConsoleAsk struct {
	After uint64        // entries behind this one
	Since time.Duration // and no older than this; 0: any
	Raw   bool          // with the bytes as they came
}

func (a ConsoleAsk) query() string {
	q := url.Values{}
	if a.After > 0 {
		q.Set("after", strconv.FormatUint(a.After, 10))
	}
	if a.Since > 0 {
		q.Set("since", a.Since.String())
	}
	if a.Raw {
		q.Set("raw", "yes")
	}
	if len(q) == 0 {
		return ""
	}
	return "?" + q.Encode()
}

// Console returns what was recorded of a console.
func (c *Client) Console(ctx context.Context, node inventory.NodeID, ask ConsoleAsk) (ConsoleLog, error) {
	var v ConsoleLog
	_, err := c.do(ctx, http.MethodGet, nodePath(node, SubConsole)+ask.query(), nil, &v)
	return v, err
}

// ConsoleNotice is one message of a console's stream.
type ConsoleNotice struct {
	Entry *ConsoleEntry
	State *ConsoleState
}

// FollowConsole calls f for what a console says behind ask.After and for its
// state, until ctx ends or f returns an error, which it returns. When the
// connection breaks it resumes.
func (c *Client) FollowConsole(ctx context.Context, node inventory.NodeID, ask ConsoleAsk, f func(ConsoleNotice) error) error {
	for {
		err := c.followConsole(ctx, node, &ask, f)
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

func (c *Client) followConsole(ctx context.Context, node inventory.NodeID, ask *ConsoleAsk, f func(ConsoleNotice) error) error {
	resp, err := c.send(ctx, http.MethodGet, nodePath(node, SubConsole)+ask.query(), nil, http.Header{"Accept": {"text/event-stream"}})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := problem(resp); err != nil {
		return err
	}
	sc := bufio.NewScanner(resp.Body)
	sc.Buffer(nil, 1<<20)
	var kind, data string
	for sc.Scan() {
		key, value, _ := strings.Cut(sc.Text(), ":")
		value = strings.TrimPrefix(value, " ")
		switch {
		case key == "event":
			kind = value
		case key == "data":
			data += value
		case sc.Text() == "" && data != "":
			var n ConsoleNotice
			switch kind {
			case StreamConsole:
				err = json.Unmarshal([]byte(data), &n.Entry)
			case StreamState:
				err = json.Unmarshal([]byte(data), &n.State)
			}
			if err != nil {
				return err
			}
			if kind, data = "", ""; n == (ConsoleNotice{}) {
				continue // a kind that a newer server sends
			}
			if err := f(n); err != nil {
				return stopped{err}
			}
			if n.Entry != nil {
				ask.After = max(ask.After, n.Entry.Seq)
			}
		}
	}
	return sc.Err()
}

// TypeConsole types into a console.
func (c *Client) TypeConsole(ctx context.Context, node inventory.NodeID, in ConsoleInput) error {
	_, err := c.do(ctx, http.MethodPost, nodePath(node, SubConsole), in, nil)
	return err
}

// Screen takes a picture of a machine's screen.
func (c *Client) Screen(ctx context.Context, node inventory.NodeID) (Picture, error) {
	resp, err := c.send(ctx, http.MethodGet, nodePath(node, SubScreen), nil, nil)
	if err != nil {
		return Picture{}, err
	}
	defer resp.Body.Close()
	if err := problem(resp); err != nil {
		return Picture{}, err
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxPicture+1))
	if err == nil && len(b) > maxPicture {
		err = fmt.Errorf("the picture has more than %d bytes", maxPicture)
	}
	return Picture{Type: resp.Header.Get("Content-Type"), Data: b}, err
}

// Sensors returns what the controller of a node measures.
func (c *Client) Sensors(ctx context.Context, node inventory.NodeID) (SensorList, error) {
	var v SensorList
	_, err := c.do(ctx, http.MethodGet, nodePath(node, SubSensors), nil, &v)
	return v, err
}

// EventLog returns the log of a node's controller.
func (c *Client) EventLog(ctx context.Context, node inventory.NodeID) (EventLog, error) {
	var v EventLog
	_, err := c.do(ctx, http.MethodGet, nodePath(node, SubEventLog), nil, &v)
	return v, err
}

// Locating is what makes a machine findable at the rack.
type Locating struct {
	APIVersion string           `json:"apiVersion"`
	Kind       string           `json:"kind"` // Locating
	Node       inventory.NodeID `json:"node"`
	Place      string           `json:"place"`
	By         string           `json:"by,omitempty"`
	Until      time.Time        `json:"until,omitzero"`      // zero: nobody looks for it
	Ways       []LocateWay      `json:"ways,omitempty"`      // those that are used first, the best first
	Otherwise  string           `json:"otherwise,omitempty"` // how to find it without
}

// Used is what a person must look for, "" when nothing can be seen.
func (l Locating) Used() []string {
	var out []string
	for _, w := range l.Ways {
		if w.Error == "" {
			out = append(out, w.Look)
		}
	}
	return out
}

// LocateWay is one way to find a machine.
type LocateWay struct {
	Way   string `json:"way"` // light, fan, disk-light, screen
	Look  string `json:"look,omitempty"`
	Error string `json:"error,omitempty"` // why it cannot be used
}

// Locate makes a machine findable for a while (0: as long as the server thinks
// right), or ends that.
func (c *Client) Locate(ctx context.Context, node inventory.NodeID, on bool, span time.Duration) (Locating, error) {
	params := map[string]string{"on": strconv.FormatBool(on)}
	if span != 0 {
		params["for"] = span.String()
	}
	var v Locating
	_, err := c.do(ctx, http.MethodPost, nodePath(node, SubLocate), Action{ID: NewID(), Params: params}, &v)
	return v, err
}
