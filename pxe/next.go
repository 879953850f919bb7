package pxe

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"time"
)

// nextPath is where a RAM system whose kernel arguments are fixed (a signed
// UKI, a GRUB menu) asks what this boot is for. iPXE asks scriptPath.
const nextPath = "/boot/next"

// next is the answer there. It is no secret: a script holds the same.
type next struct {
	Action string   `json:"action"`           // kernel: go on with Args; local: start your own disk; hold: wait and ask again
	Args   []string `json:"args,omitempty"`   // kernel arguments of this boot, each one word
	Why    string   `json:"why"`              // one line for the screen
	Screen []string `json:"screen,omitempty"` // more lines
	Page   string   `json:"page,omitempty"`   // its screen shows it as a QR code
	Retry  int      `json:"retry,omitempty"`  // seconds until a machine on hold asks again
}

const retryAfter = 10 // seconds; iPXE waits as long

// serveNext answers what serveScript would, for a machine that runs our kernel
// already. The Booter cannot tell them apart.
func (s *Server) serveNext(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	if r.Method == http.MethodHead {
		return // an answer is made for one machine, once: not for a look
	}
	q := r.URL.Query()
	m, err := parseQuery(q)
	m.IPXE = false
	m.Addr = remote(r)
	e := Event{At: time.Now(), Machine: m, Kind: "orders"}
	var b Boot
	if err == nil {
		b, err = s.askFor(r.Context(), &m, e.At)
	}
	if err == nil && b.Action == Ignore {
		b = Boot{Action: Hold, Why: b.Why, Screen: b.Screen}
	}
	var answer next
	if err == nil {
		answer, err = nextFor(b)
	}
	if err != nil {
		s.log.Log(r.Context(), s.recorder.level(slog.LevelError, e.At), "boot: no orders, the machine waits and asks again", "mac", m.MAC, "addr", m.Addr, "err", err)
		b = Boot{Action: Hold, Why: "not decided: " + plain(err.Error(), 200), Screen: b.Screen}
		answer, _ = nextFor(b) // a hold cannot fail
	}
	e.Answer, e.Why = b.Action.String(), b.Why
	if via := plain(q.Get("via"), 16); via != "" {
		e.Why += " (by " + via + ")"
	}
	if m.MAC != (MAC{}) {
		s.recorder.record(e)
	}
	text, err := json.Marshal(answer)
	if err != nil {
		panic(err) // strings and a number
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(text)))
	_, _ = w.Write(text)
}

// nextFor is the answer for what was decided.
func nextFor(b Boot) (next, error) {
	n := next{Why: plain(b.Why, maxText), Page: plain(b.Page, maxText)}
	for i, text := range b.Screen {
		if i == maxScreen {
			break
		}
		n.Screen = append(n.Screen, plain(text, maxText))
	}
	if text := codeLine(b); text != "" {
		n.Screen = append(n.Screen, plain(text, maxText))
	}
	switch b.Action {
	case Kernel:
		n.Action = "kernel"
		length := 0
		for _, a := range b.Args {
			if a != "" {
				word := value(a).token() // as iPXE would hand it to the kernel
				n.Args = append(n.Args, word)
				length += len(word) + 1
			}
		}
		if length > maxArgs {
			return next{}, fmt.Errorf("kernel arguments of %d bytes: a kernel takes %d", length, maxArgs)
		}
	case Local, Program: // its firmware asks again, and gets what starts the program
		n.Action = "local"
	case Hold:
		n.Action, n.Retry = "hold", b.wait()
	default:
		return next{}, fmt.Errorf("no orders for action %v", b.Action)
	}
	return n, nil
}
