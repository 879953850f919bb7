package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"syscall"
	"time"

	"smelt/internal/vbmc"
)

const secret = "b3nch-s3cret-pass"

// A station is one BMC's place in the hall.
type station struct {
	Addr, Pin string
	Kind      string // "", slow, hung, gone
}

// Of each hundred BMCs, these do not answer as they should.
const (
	gonePerCent = 1 // nothing listens
	hungPerCent = 1 // the connection is taken and nothing comes
	slowPerCent = 3 // slowness for each answer
	slowness    = 500 * time.Millisecond
)

// hallConfig is what the process of BMCs is told.
type hallConfig struct {
	BMCs    int
	Latency time.Duration
}

// hallStats is what it counts.
type hallStats struct {
	Logins, FailedLogins, Open, Requests int
}

// A hall is the process of virtual BMCs, and who works there.
type hall struct {
	size
	dir      string
	self     string
	child    *child
	stations []station
}

func startHall(ctx context.Context, s size, dir string) (*hall, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	h := &hall{size: s, dir: dir, self: self}
	if h.child, err = h.start(ctx, "bmcs", hallConfig{BMCs: s.bmcs, Latency: s.latency}); err != nil {
		return nil, err
	}
	if err := h.child.answer(&h.stations); err != nil {
		h.close()
		return nil, err
	}
	return h, nil
}

func (h *hall) close() { h.child.end() }

// stats asks the BMCs what they saw.
func (h *hall) stats() (s hallStats, err error) {
	if err := h.child.tell("stats"); err != nil {
		return s, err
	}
	return s, h.child.answer(&s)
}

// healthy are the first n BMCs that answer as they should.
func (h *hall) healthy(n int) []station {
	var out []station
	for _, s := range h.stations {
		if s.Kind == "" && len(out) < n {
			out = append(out, s)
		}
	}
	return out
}

// A child is this program in another role. It is told lines of JSON and
// answers with lines of JSON.
type child struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func (h *hall) start(ctx context.Context, role string, first any) (*child, error) {
	cmd := exec.CommandContext(ctx, h.self, role)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c := &child{cmd: cmd, in: in, out: bufio.NewReaderSize(out, 1<<20)}
	return c, c.tell(first)
}

func (c *child) tell(v any) error { return json.NewEncoder(c.in).Encode(v) }

func (c *child) answer(v any) error {
	line, err := c.out.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("it ended before it answered: %w", err)
	}
	return json.Unmarshal(line, v)
}

// end closes its input and waits: it ends by itself.
func (c *child) end() {
	c.in.Close()
	_ = c.cmd.Wait()
}

// kill is kill -9.
func (c *child) kill() {
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
}

var roles = map[string]func(context.Context, io.Reader, io.Writer) error{
	"bmcs": beBMCs,
	"poll": bePoller,
	"peer": bePeer,
	"work": beWorker,
}

// beBMCs is the process of virtual BMCs: each has an address and a port of its
// own, and a key of its own.
func beBMCs(_ context.Context, in io.Reader, out io.Writer) error {
	d := json.NewDecoder(in)
	var c hallConfig
	if err := d.Decode(&c); err != nil {
		return err
	}
	var bmcs []*vbmc.Redfish
	stations := make([]station, 0, c.BMCs)
	for i := range c.BMCs {
		l, err := net.Listen("tcp", fmt.Sprintf("127.80.%d.%d:0", i/250, i%250+1))
		if err != nil {
			return err
		}
		s := station{Addr: l.Addr().String()}
		switch at := i % 100; {
		case at < gonePerCent:
			s.Kind = "gone"
			l.Close()
		case at < gonePerCent+hungPerCent:
			s.Kind = "hung" // the kernel takes connections, nobody reads from them
			defer l.Close()
		default:
			m := new(vbmc.Switch)
			b, err := vbmc.StartRedfish(vbmc.RedfishConfig{Listener: l, Password: secret}, m)
			if err != nil {
				return err
			}
			defer b.Close()
			slow := c.Latency
			if at < gonePerCent+hungPerCent+slowPerCent {
				s.Kind, slow = "slow", slowness
			}
			b.SetFaults(vbmc.RedfishFaults{Slow: slow})
			s.Pin = b.Pin()
			bmcs = append(bmcs, b)
		}
		stations = append(stations, s)
	}
	e := json.NewEncoder(out)
	if err := e.Encode(stations); err != nil {
		return err
	}
	for {
		var ask string
		if err := d.Decode(&ask); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		var sum hallStats
		for _, b := range bmcs {
			s := b.Stats()
			sum.Logins += s.Logins
			sum.FailedLogins += s.FailedLogins
			sum.Open += s.OpenSessions
			sum.Requests += s.Requests
		}
		if err := e.Encode(sum); err != nil {
			return err
		}
	}
}
