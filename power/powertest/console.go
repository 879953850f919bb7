package powertest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"time"

	"smelt/power"
)

// A Port is the serial port of a machine that is not there, behind a device
// that has one session: power.Consoler. What is printed while nobody listens
// is lost, as on a wire.
type Port struct {
	mu     sync.Mutex
	now    *portSession
	opened int
	typed  bytes.Buffer
	refuse error // of every Console from now on
}

var _ power.Consoler = (*Port)(nil)

// ErrBusy is how a Port refuses a second session.
var ErrBusy = errors.New("the serial port is in use by another session")

// Console opens the one session.
func (p *Port) Console(ctx context.Context) (io.ReadWriteCloser, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.opened++
	if p.refuse != nil {
		return nil, p.refuse
	}
	if p.now != nil {
		return nil, ErrBusy
	}
	r, w := io.Pipe()
	s := &portSession{port: p, r: r, w: w}
	p.now = s
	s.stop = context.AfterFunc(ctx, func() { s.Close() })
	return s, nil
}

// Print is the machine writing to its port. It returns once whoever has the
// session has read it; what nobody reads is lost.
func (p *Port) Print(text string) {
	p.mu.Lock()
	s := p.now
	p.mu.Unlock()
	if s != nil {
		_, _ = io.WriteString(s.w, text) // an error is the end of the session
	}
}

// Typed is what was typed so far.
func (p *Port) Typed() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.typed.String()
}

// Opened counts the sessions that were asked for, refused ones too.
func (p *Port) Opened() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.opened
}

// Busy tells whether a session is open.
func (p *Port) Busy() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.now != nil
}

// Refuse makes every Console fail with err from now on, nil for none.
func (p *Port) Refuse(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuse = err
}

// Cut ends the session as a lost network does.
func (p *Port) Cut() {
	p.mu.Lock()
	s := p.now
	p.mu.Unlock()
	if s != nil {
		s.end(io.ErrUnexpectedEOF)
	}
}

type portSession struct {
	port *Port
	r    *io.PipeReader
	w    *io.PipeWriter
	stop func() bool
}

func (s *portSession) Read(b []byte) (int, error) { return s.r.Read(b) }

func (s *portSession) Write(b []byte) (int, error) {
	s.port.mu.Lock()
	defer s.port.mu.Unlock()
	if s.port.now != s {
		return 0, io.ErrClosedPipe
	}
	return s.port.typed.Write(b)
}

func (s *portSession) Close() error {
	s.end(io.EOF)
	return nil
}

func (s *portSession) end(why error) {
	s.port.mu.Lock()
	if s.port.now == s {
		s.port.now = nil
	}
	s.port.mu.Unlock()
	s.w.CloseWithError(why)
	s.r.CloseWithError(io.ErrClosedPipe)
}

// RunConsole holds a power.Consoler to its promises. setup returns one whose
// machine prints back what is typed, line by line or byte by byte.
func RunConsole(t *testing.T, setup func(t *testing.T) power.Consoler) {
	open := func(t *testing.T, ctx context.Context, c power.Consoler) io.ReadWriteCloser {
		t.Helper()
		s, err := c.Console(ctx)
		if err != nil {
			t.Fatalf("open the console: %v", err)
		}
		return s
	}
	// hears waits until what is typed comes back.
	hears := func(t *testing.T, s io.ReadWriteCloser, word string) {
		t.Helper()
		got := make(chan error, 1)
		go func() {
			var all []byte
			buf := make([]byte, 256)
			for !bytes.Contains(all, []byte(word)) {
				n, err := s.Read(buf)
				if all = append(all, buf[:n]...); err != nil {
					got <- err
					return
				}
			}
			got <- nil
		}()
		for end := time.Now().Add(settle); time.Now().Before(end); {
			if _, err := io.WriteString(s, word+"\r"); err != nil {
				t.Fatalf("type: %v", err)
			}
			select {
			case err := <-got:
				if err != nil {
					t.Fatalf("read: %v", err)
				}
				return
			case <-time.After(2 * time.Second): // it may not listen yet
			}
		}
		t.Fatalf("%q was typed and never came back", word)
	}
	ends := func(t *testing.T, s io.Reader, why string) {
		t.Helper()
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_, _ = io.Copy(io.Discard, s)
		}()
		select {
		case <-ended:
		case <-time.After(grace + 3*time.Second):
			t.Fatalf("%s, and its reader still waits", why)
		}
	}
	t.Run("echo", func(t *testing.T) {
		s := open(t, t.Context(), setup(t))
		defer s.Close()
		hears(t, s, "smelt-echo")
	})
	t.Run("close", func(t *testing.T) {
		c := setup(t)
		s := open(t, t.Context(), c)
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		ends(t, s, "the session was closed")
		// Closing it freed the device.
		again := open(t, t.Context(), c)
		defer again.Close()
		hears(t, again, "smelt-again")
	})
	t.Run("context", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		s := open(t, ctx, setup(t))
		defer s.Close()
		cancel()
		ends(t, s, "its context ended")
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if s, err := setup(t).Console(ctx); err == nil {
			s.Close()
			t.Error("a console was opened although its context had ended")
		}
	})
}
