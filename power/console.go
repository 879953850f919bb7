package power

import (
	"context"
	"fmt"
	"io"
	"sync"
)

// Console opens the machine's serial console, ErrUnsupported without a
// Consoler. There is never more than one session: opening another ends the one
// before. The session is ended by its Close, by ctx, by the device, and by
// other calls where the device has room for one session only; whoever keeps a
// console open opens it again after a while.
func (v *Verified) Console(ctx context.Context) (io.ReadWriteCloser, error) {
	c, ok := v.c.(Consoler)
	if !ok {
		return nil, fmt.Errorf("console of %s: %w", v, ErrUnsupported)
	}
	if v.line.takesTurns() {
		// A verb polls: a console opened in between would be thrown out by the
		// next read.
		if err := v.verb.get(ctx); err != nil {
			return nil, err
		}
		defer v.verb.put()
	}
	v.line.end()
	var s *session
	err := v.do(ctx, func(limited context.Context) error {
		// The session outlives the call that opens it.
		live, cancel := context.WithCancel(ctx)
		stop := context.AfterFunc(limited, cancel)
		rw, err := c.Console(live)
		if !stop() && err == nil {
			rw.Close()
			err = limited.Err()
		}
		if err != nil {
			cancel()
			return err
		}
		s = &session{ReadWriteCloser: rw, line: &v.line, cancel: cancel}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("console of %s: %w", v, err)
	}
	v.line.begin(s)
	return s, nil
}

// HasConsole tells whether the controller says that it has a console. Opening
// it may still find out that the machine has none.
func (v *Verified) HasConsole() bool { return can[Consoler](v) }

// HasScreen tells the same of its screen.
func (v *Verified) HasScreen() bool { return can[Screener](v) }

// TakesTurns tells whether the device was found to have room for one session
// only: each other call ends the console.
func (v *Verified) TakesTurns() bool { return v.line.takesTurns() }

// turnsAfter calls in a row that failed while the console was open make a
// device one with room for one session only. One alone may be the network.
const turnsAfter = 2

// A line is the console session of one controller, and how it shares the
// device with other calls.
type line struct {
	mu     sync.Mutex
	open   *session
	failed int  // calls in a row that failed while a session was open
	turns  bool // the device has room for one session only
}

func (l *line) takesTurns() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.turns
}

func (l *line) begin(s *session) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open = s
}

// end ends the session, if there is one.
func (l *line) end() {
	l.mu.Lock()
	s := l.open
	l.open = nil
	l.mu.Unlock()
	if s != nil {
		s.Close()
	}
}

// giveWay is called before each call to the device.
func (l *line) giveWay() {
	if l.takesTurns() {
		l.end()
	}
}

// called is told how a call to the device went. One that failed beside an open
// session may have found no room: the session ends, so that the next one does.
func (l *line) called(ok bool) {
	l.mu.Lock()
	if l.open == nil {
		l.mu.Unlock()
		return
	}
	if ok {
		l.failed = 0
		l.mu.Unlock()
		return
	}
	if l.failed++; l.failed >= turnsAfter {
		l.turns = true
	}
	l.mu.Unlock()
	l.end()
}

// session is one open console.
type session struct {
	io.ReadWriteCloser
	line   *line
	cancel context.CancelFunc
	once   sync.Once
	err    error
}

// Close ends the session at the device.
func (s *session) Close() error {
	s.once.Do(func() {
		s.err = s.ReadWriteCloser.Close()
		s.cancel()
		s.line.mu.Lock()
		defer s.line.mu.Unlock()
		if s.line.open == s {
			s.line.open = nil
		}
	})
	return s.err
}
