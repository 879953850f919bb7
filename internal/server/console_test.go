package server

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"smelt/internal/api"
	"smelt/internal/console"
	"smelt/internal/locate"
	"smelt/inventory"
	"smelt/power"
	"smelt/power/powertest"
)

// bmc is a controller that can do everything there is beside switching.
type bmc struct {
	*powertest.Fake
	*powertest.Port
	log    func() ([]power.LogEntry, error)
	lights []bool
	light  error
	keys   []power.Key
}

func (b *bmc) String() string { return "fake controller (simulated)" }
func (b *bmc) Readings(context.Context) (power.Readings, error) {
	return power.Readings{Watts: math.NaN(), Celsius: map[string]float64{"Inlet": 24, "CPU": 51.5}, RPM: map[string]float64{"Fan1": 4200, "Fan2": math.NaN()}}, nil
}
func (b *bmc) EventLog(context.Context) ([]power.LogEntry, error) { return b.log() }
func (b *bmc) Screen(context.Context) (power.Picture, error) {
	return power.Picture{Type: "image/svg+xml", Data: []byte("<svg/>")}, nil
}
func (b *bmc) Keys() []power.Key { return b.keys }
func (b *bmc) Light() string     { return "chassis LED" }
func (b *bmc) Identify(_ context.Context, on bool) error {
	b.lights = append(b.lights, on)
	return b.light
}

// consoled is a site whose rig-01 has a controller with everything.
func consoled(t *testing.T) (*site, *bmc) {
	t.Helper()
	x := newSite(t)
	b := &bmc{Fake: new(powertest.Fake), Port: new(powertest.Port)}
	v := power.Verify(b, power.Limits{})
	x.Power = map[inventory.NodeID]*power.Verified{"rig-01": v}
	var err error
	if x.Console, err = console.New(console.Config{Dir: t.TempDir(), Ports: map[inventory.NodeID]console.Port{"rig-01": v}}); err != nil {
		t.Fatal(err)
	}
	if x.Locate, err = locate.New(locate.Config{Dir: t.TempDir(), Power: x.Power, Record: x.fake.Record, Log: x.Log}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	go func() { ended <- x.Console.Run(ctx) }()
	go func() { ended <- x.Locate.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended; <-ended })
	for end := time.Now().Add(5 * time.Second); x.Console.State("rig-01").Is != "open"; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the console is not open: %+v", x.Console.State("rig-01"))
		}
	}
	return x, b
}

const consoleURL = api.PathNodes + "/rig-01" + api.SubConsole

func TestConsoleLog(t *testing.T) {
	x, b := consoled(t)
	b.Print("Linux \x1b[31mversion\x1b]0;evil\a 6.1\r\nlogin: ")
	_, body := x.ask(t, "GET", x.ui.URL+consoleURL, x.tokens[Operator], "")
	var log api.ConsoleLog
	if err := json.Unmarshal([]byte(body), &log); err != nil {
		t.Fatal(err)
	}
	if log.Kind != "ConsoleLog" || log.State.Is != "open" || len(log.Items) != 2 || !log.Items[0].Mark || log.Items[1].Text != "Linux version 6.1\nlogin: " || log.Items[1].Raw != nil {
		t.Errorf("log %+v", log)
	}
	_, body = x.ask(t, "GET", x.ui.URL+consoleURL+"?raw=yes&after=1", x.tokens[Operator], "")
	log = api.ConsoleLog{}
	if err := json.Unmarshal([]byte(body), &log); err != nil || len(log.Items) != 1 || !bytes.Contains(log.Items[0].Raw, []byte("\x1b]0;evil")) {
		t.Errorf("raw: %v %+v", err, log)
	}
	// A console may say a password: operators alone see it, on its page too.
	for _, role := range []Role{Viewer, Technician} {
		for _, path := range []string{consoleURL, "/nodes/rig-01"} {
			if _, body := x.ask(t, "GET", x.ui.URL+path, x.tokens[role], ""); strings.Contains(body, "login:") {
				t.Errorf("%s shows a %s what a console said", path, role)
			}
		}
	}
	if _, body := x.ask(t, "GET", x.ui.URL+"/nodes/rig-01", x.tokens[Operator], ""); !strings.Contains(body, "Linux version 6.1") || strings.Contains(body, "\x1b") {
		t.Error("the page does not hold the last lines as text")
	}
}

func TestConsoleStream(t *testing.T) {
	x, b := consoled(t)
	b.Print("before\n")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", x.ui.URL+consoleURL, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+x.tokens[Operator])
	req.Header.Set("Accept", "text/event-stream")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	sc := bufio.NewScanner(resp.Body)
	seen := func(want string) {
		t.Helper()
		for sc.Scan() {
			if strings.Contains(sc.Text(), want) {
				return
			}
		}
		t.Fatalf("the stream ended without %s: %v", want, sc.Err())
	}
	seen(`"text":"before\n"`)
	seen(`"is":"open"`)
	b.Print("after \x1b[3")
	seen(`"text":"after "`)
	b.Print("1mred") // half of the sequence came before
	seen(`"text":"red"`)
	b.Cut()
	seen(`"is":"lost"`)
	s := len(x.streams)
	cancel()
	for end := time.Now().Add(5 * time.Second); len(x.streams) != s-1; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the place of a stream that ended is not free")
		}
	}
}

func TestTyping(t *testing.T) {
	x, b := consoled(t)
	bob, err := AddToken(t.Context(), x.Store, "bob", Operator)
	if err != nil {
		t.Fatal(err)
	}
	send := func(token, session, data string, more string) (int, string) {
		t.Helper()
		in, err := json.Marshal(api.ConsoleInput{Session: session, Data: []byte(data)})
		if err != nil {
			t.Fatal(err)
		}
		resp, body := x.ask(t, "POST", x.ui.URL+consoleURL, token, strings.TrimSuffix(string(in), "}")+more+"}")
		return resp.StatusCode, body
	}
	me := x.tokens[Operator]
	for _, word := range []string{"root\r", "secret-word\r"} {
		if code, body := send(me, "s1", word, ""); code != http.StatusNoContent {
			t.Fatalf("%d %s", code, body)
		}
	}
	if code, body := send(bob, "s2", "x", ""); code != http.StatusConflict || !strings.Contains(body, "operator:t-operator types") || !strings.Contains(body, "--take") {
		t.Errorf("two type at once: %d %s", code, body)
	}
	if code, _ := send(bob, "s1", "x", ""); code != http.StatusConflict {
		t.Error("somebody else's session was used")
	}
	if code, body := send(bob, "s2", "y", `,"take":true`); code != http.StatusNoContent {
		t.Errorf("take: %d %s", code, body)
	}
	if code, _ := send(me, "s1", "", `,"end":true`); code != http.StatusNoContent {
		t.Error("the end of what was taken away is refused")
	}
	if code, _ := send(bob, "s2", "", `,"end":true`); code != http.StatusNoContent {
		t.Error("end is refused")
	}
	if got := b.Typed(); got != "root\rsecret-word\ry" {
		t.Errorf("the machine got %q", got)
	}
	story := strings.Join(x.fake.records, "\n")
	for _, want := range []string{"rig-01 operator:t-operator: types into its console", "rig-01 operator:bob: types into its console", "took it from:operator:t-operator", "operator:bob: stops typing into its console: ended", "bytes:1"} {
		if !strings.Contains(story, want) {
			t.Errorf("the story lacks %q:\n%s", want, story)
		}
	}
	if len(x.fake.records) != 3 || strings.Contains(story, "secret-word") {
		t.Errorf("the story says what was typed, or each key:\n%s", story)
	}
	// Nobody types unless it can be noted who does.
	x.fake.recordErr = errors.New("the store is gone")
	if code, _ := send(me, "s3", "x", ""); code < 500 || strings.HasSuffix(b.Typed(), "x") {
		t.Errorf("typed without an event: %d", code)
	}
	x.fake.recordErr = nil
	b.Refuse(errors.New("no free session"))
	b.Cut()
	for end := time.Now().Add(5 * time.Second); x.Console.State("rig-01").Is == "open" && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if code, body := send(me, "s4", "x", ""); code != http.StatusConflict || !strings.Contains(body, "would be lost") {
		t.Errorf("typing into a closed console: %d %s", code, body)
	}
}

func TestDevice(t *testing.T) {
	x, b := consoled(t)
	_, body := x.ask(t, "GET", x.ui.URL+api.PathNodes+"/rig-01/sensors", x.tokens[Viewer], "")
	var l api.SensorList
	if err := json.Unmarshal([]byte(body), &l); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(l.Items) != "[{CPU 51.5 °C} {Inlet 24 °C} {Fan1 4200 rpm}]" {
		t.Errorf("sensors %v: what is not a number was not measured", l.Items)
	}
	asked := 0
	b.log = func() ([]power.LogEntry, error) {
		asked++
		return []power.LogEntry{{ID: "1", Message: "Power Unit #0x01 | AC lost"}}, nil
	}
	for range 3 {
		if _, body = x.ask(t, "GET", x.ui.URL+api.PathNodes+"/rig-01/eventlog", x.tokens[Viewer], ""); !strings.Contains(body, "AC lost") {
			t.Errorf("event log %s", body)
		}
	}
	if asked != 1 {
		t.Errorf("three people asked, and so was the BMC %d times", asked)
	}
	resp, body := x.ask(t, "GET", x.ui.URL+api.PathNodes+"/rig-01/screen", x.tokens[Operator], "")
	if resp.StatusCode != http.StatusBadGateway || strings.Contains(body, "<svg") {
		t.Errorf("a picture that can hold scripts: %d %s", resp.StatusCode, body)
	}
	resp, body = x.ask(t, "GET", x.ui.URL+api.PathNodes+"/rig-99/sensors", x.tokens[Viewer], "")
	if resp.StatusCode != http.StatusNotFound {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}

func TestLocate(t *testing.T) {
	x, b := consoled(t)
	url := x.ui.URL + api.PathNodes + "/rig-01" + api.SubLocate
	resp, body := x.ask(t, "POST", url, x.tokens[Technician], `{"params":{"on":"true","for":"1h"}}`)
	var l api.Locating
	if err := json.Unmarshal([]byte(body), &l); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%d %s %v", resp.StatusCode, body, err)
	}
	if u := l.Used(); len(u) != 1 || u[0] != "the chassis LED of "+canary+" is lit or blinks" || time.Until(l.Until) < 59*time.Minute {
		t.Errorf("locating %+v", l)
	}
	if _, body = x.ask(t, "GET", x.ui.URL+"/nodes/rig-01", x.tokens[Technician], ""); !strings.Contains(body, "the chassis LED of") || !strings.Contains(body, "Found it") {
		t.Error("its page does not say what to look for")
	}
	if resp, body = x.ask(t, "POST", url, x.tokens[Technician], `{"params":{"on":"true","for":"9h"}}`); resp.StatusCode != http.StatusUnprocessableEntity {
		t.Errorf("nine hours: %d %s", resp.StatusCode, body)
	}
	x.ask(t, "POST", url, x.tokens[Technician], `{"params":{"on":"false"}}`)
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		x.fake.mu.Lock()
		n := len(x.fake.records)
		x.fake.mu.Unlock()
		if n == 3 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the search does not end: %v", x.fake.records)
		}
	}
	if fmt.Sprint(b.lights) != "[true false]" {
		t.Errorf("lights %v", b.lights)
	}
}

// A console is read by who may read it: a token that is taken away does not
// read on in a stream that it opened before.
func TestConsoleStreamRevoked(t *testing.T) {
	x, b := consoled(t)
	var ahead atomic.Int64
	x.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	bob, err := AddToken(t.Context(), x.Store, "bob", Operator)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), "GET", x.ui.URL+consoleURL, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header = http.Header{"Authorization": {"Bearer " + bob}, "Accept": {"text/event-stream"}}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	sc := bufio.NewScanner(resp.Body)
	until := func(want string) bool {
		for sc.Scan() {
			if strings.Contains(sc.Text(), want) {
				return true
			}
		}
		return false
	}
	b.Print("one")
	ahead.Store(int64(keepalive)) // it is asked for and still there
	b.Print("two\n")
	if !until("two") {
		t.Fatal("the stream of an operator ended")
	}
	if resp, body := x.ask(t, "POST", x.ui.URL+api.PathTokens+"/bob/revoke", x.tokens[Operator], ""); resp.StatusCode/100 != 2 {
		t.Fatal(resp.Status, body)
	}
	ahead.Store(3 * int64(keepalive))
	b.Print("three\n")
	if until("three") {
		t.Error("a token that was taken away reads on")
	}
}
