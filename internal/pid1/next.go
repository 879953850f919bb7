package pid1

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// Asker asks the boot server what this boot is for, on a machine whose kernel
// command line could not say it. Until there is an answer nothing is done: the
// disks are sealed and stay so.
type Asker struct {
	CmdLine CmdLine
	Card    func() net.HardwareAddr            // that has the address
	Other   func() bool                        // lets another card have it, if one waits
	Keep    string                             // file for the answer: an agent that is started again is in the same boot
	Show    func(page string, lines ...string) // puts text on the machine's screen
	Log     *slog.Logger

	// Stand-ins in a test.
	ids       string // folder instead of /sys/class/dmi/id
	transport http.RoundTripper
}

// ErrLocal says that the machine is to start its own disk.
var ErrLocal = errors.New("this machine starts its own disk")

// orders are the answer of the boot server.
type orders struct {
	Action string   `json:"action"` // kernel, local, hold
	Args   []string `json:"args"`   // as on a kernel command line
	Why    string   `json:"why"`
	Screen []string `json:"screen"`
	Page   string   `json:"page"`  // URL of the node's page
	Retry  int      `json:"retry"` // seconds
}

// The bounds of an answer, and the waits between questions.
const (
	maxOrders    = 16 << 10
	askTime      = 10 * time.Second
	firstAsk     = time.Second
	longestAsk   = 30 * time.Second
	longestHold  = 5 * time.Minute
	askElsewhere = 4 // questions without an answer before another card is tried
)

// Ask asks until there is an answer to act on: the command line of this boot,
// or ErrLocal.
func (a *Asker) Ask(ctx context.Context) (CmdLine, error) {
	if b, err := os.ReadFile(a.Keep); err == nil {
		return a.merge(strings.Fields(string(b)))
	} else if !errors.Is(err, fs.ErrNotExist) {
		return CmdLine{}, err
	}
	if a.transport == nil {
		a.transport = &http.Transport{DisableKeepAlives: true} // a card that lost its address keeps none alive
	}
	client := &http.Client{
		Timeout:       askTime,
		Transport:     a.transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	wait, failures := firstAsk, 0
	shown := ""
	for {
		o, err := a.ask(ctx, client)
		if ctx.Err() != nil {
			return CmdLine{}, ctx.Err()
		}
		var c CmdLine
		if err == nil && o.Action == "kernel" {
			c, err = a.merge(o.Args)
		}
		if err != nil {
			a.Log.Warn("no orders yet: nothing is touched", "from", a.CmdLine.Boot, "again in", wait, "err", err)
			if failures++; failures%askElsewhere == 0 && a.Other() {
				wait = firstAsk
			}
			pause(ctx, wait/2+rand.N(wait/2+1))
			wait = min(2*wait, longestAsk)
			continue
		}
		wait, failures = firstAsk, 0
		a.Log.Info("orders", "action", o.Action, "why", o.Why)
		if text := strings.Join(append(o.Screen, o.Action+": "+o.Why), "\n"); text != shown {
			a.Show(o.Page, append(o.Screen, o.Action+": "+o.Why)...)
			shown = text
		}
		switch o.Action {
		case "kernel":
			return c, os.WriteFile(a.Keep, []byte(strings.Join(o.Args, " ")), 0o600)
		case "local":
			return CmdLine{}, ErrLocal
		}
		hold := min(max(time.Duration(o.Retry)*time.Second, firstAsk), longestHold)
		pause(ctx, hold+rand.N(hold/4+1))
	}
}

// merge reads the arguments of an answer. The server is the one that this
// system's own command line names: that may be signed, the answer is not.
func (a *Asker) merge(args []string) (CmdLine, error) {
	c, err := ParseCmdLine(strings.Join(args, " "))
	if err != nil {
		return CmdLine{}, fmt.Errorf("orders: %w", err)
	}
	if c.Nonce == "" {
		return CmdLine{}, errors.New("orders: smelt.nonce is missing")
	}
	c.Server, c.Boot, c.Via = a.CmdLine.Server, a.CmdLine.Boot, a.CmdLine.Via
	return c, nil
}

// ask puts the question once.
func (a *Asker) ask(ctx context.Context, client *http.Client) (orders, error) {
	mac := a.Card()
	if mac == nil {
		return orders{}, errors.New("no network card has an address")
	}
	q := url.Values{"mac": {mac.String()}, "arch": {strconv.Itoa(arch())}, "via": {a.CmdLine.Via}}
	for key, file := range map[string]string{"uuid": "product_uuid", "serial": "product_serial"} {
		if b, err := os.ReadFile(filepath.Join(a.folder(), file)); err == nil {
			q.Set(key, strings.TrimSpace(string(b)))
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, a.CmdLine.Boot+"/boot/next?"+q.Encode(), nil)
	if err != nil {
		return orders{}, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return orders{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return orders{}, fmt.Errorf("the boot server answers %s", resp.Status)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxOrders+1))
	if err != nil {
		return orders{}, err
	}
	return parseOrders(b)
}

// parseOrders is strict: server and RAM system come from one release, and half
// an understanding is none.
func parseOrders(b []byte) (orders, error) {
	if len(b) > maxOrders {
		return orders{}, fmt.Errorf("orders: more than %d bytes", maxOrders)
	}
	d := json.NewDecoder(strings.NewReader(string(b)))
	d.DisallowUnknownFields()
	var o orders
	if err := d.Decode(&o); err != nil {
		return orders{}, fmt.Errorf("orders: %v", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return orders{}, errors.New("orders: more than one JSON value")
	}
	switch o.Action {
	case "kernel", "local", "hold":
	default:
		return orders{}, fmt.Errorf("orders: action %q is none of kernel, local, hold", o.Action)
	}
	for _, w := range o.Args {
		if len(strings.Fields(w)) != 1 {
			return orders{}, fmt.Errorf("orders: argument %q is not one word", w)
		}
	}
	o.Why, o.Page = printable(o.Why), printable(o.Page)
	for i := range o.Screen {
		o.Screen[i] = printable(o.Screen[i])
	}
	return o, nil
}

// printable keeps a console from being commanded by what it shows.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}

// arch is what this machine's firmware would have said in option 93 (RFC 4578).
func arch() int {
	if _, err := os.Stat("/sys/firmware/efi"); err != nil {
		return 0
	}
	if runtime.GOARCH == "arm64" {
		return 11
	}
	return 7
}

func (a *Asker) folder() string {
	if a.ids != "" {
		return a.ids
	}
	return "/sys/class/dmi/id"
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
