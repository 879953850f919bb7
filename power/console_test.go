package power_test

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"smelt/power"
	"smelt/power/powertest"
)

// consoled is a controller with a serial port. alone makes it one with room
// for one session: each call fails while the console is open.
type consoled struct {
	*powertest.Fake
	*powertest.Port
	alone bool
}

func (c *consoled) State(ctx context.Context) (power.State, error) {
	if c.alone && c.Busy() {
		return power.Unknown, errors.New("no free session")
	}
	return c.Fake.State(ctx)
}

// echo prints back what is typed, as the conformance suite wants it.
type echo struct{ *powertest.Port }

func (e echo) Console(ctx context.Context) (io.ReadWriteCloser, error) {
	s, err := e.Port.Console(ctx)
	if err != nil {
		return nil, err
	}
	return echoing{s, e.Port}, nil
}

type echoing struct {
	io.ReadWriteCloser
	port *powertest.Port
}

func (e echoing) Write(b []byte) (int, error) {
	n, err := e.ReadWriteCloser.Write(b)
	if err == nil {
		go e.port.Print(string(b))
	}
	return n, err
}

func TestPortKeepsThePromises(t *testing.T) {
	powertest.RunConsole(t, func(*testing.T) power.Consoler { return echo{new(powertest.Port)} })
}

func TestConsoleBesideVerbs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &consoled{Fake: new(powertest.Fake), Port: new(powertest.Port)}
		v := power.Verify(c, power.Limits{})
		s, err := v.Console(t.Context())
		if err != nil || !v.HasConsole() {
			t.Fatal(err)
		}
		if _, err := v.Cycle(t.Context(), power.Network); err != nil || !c.Busy() || v.TakesTurns() {
			t.Fatalf("a cycle ended the console of a device that has room: %v, open %v", err, c.Busy())
		}
		// Another one ends the one before, and there is never more than one.
		s2, err := v.Console(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Read(make([]byte, 1)); err == nil {
			t.Error("two sessions at one BMC")
		}
		s.Close() // late: it must not end the other one
		if !c.Busy() {
			t.Error("closing an old session ended the new one")
		}
		s2.Close()
		if c.Busy() {
			t.Error("the session outlives its Close")
		}
		ctx, cancel := context.WithCancel(t.Context())
		if _, err = v.Console(ctx); err != nil {
			t.Fatal(err)
		}
		cancel()
		synctest.Wait()
		if c.Busy() {
			t.Error("the session outlives its context")
		}
	})
}

func TestConsoleTakesTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &consoled{Fake: new(powertest.Fake), Port: new(powertest.Port), alone: true}
		v := power.Verify(c, power.Limits{})
		for range 3 {
			if _, err := v.Console(t.Context()); err != nil {
				t.Fatal(err)
			}
			// The verb wins: its first read fails, the console makes room.
			if ev, err := v.On(t.Context()); err != nil {
				t.Fatalf("on: %v (%+v)", err, ev)
			}
			if c.Busy() {
				t.Error("the console stayed open")
			}
		}
		if !v.TakesTurns() {
			t.Error("that it has room for one session was not learned")
		}
		// From now on a verb meets no open console, and a console waits for a verb.
		if _, err := v.Console(t.Context()); err != nil {
			t.Fatal(err)
		}
		if ev, err := v.On(t.Context()); err != nil || ev.Polls != 2 { // as many as agree without any trouble
			t.Errorf("%v, %d polls: a read met the console", err, ev.Polls)
		}
		c.SetScript(powertest.Script{Settle: 20 * time.Second})
		began := time.Now()
		go func() { _, _ = v.Off(t.Context()) }()
		synctest.Wait()
		s, err := v.Console(t.Context())
		if err != nil || time.Since(began) < 20*time.Second {
			t.Errorf("a console was opened in the middle of a verb: after %v, %v", time.Since(began), err)
		}
		s.Close()
	})
}

func TestNoConsole(t *testing.T) {
	v := power.Verify(new(powertest.Fake), power.Limits{})
	if _, err := v.Console(t.Context()); !errors.Is(err, power.ErrUnsupported) || v.HasConsole() {
		t.Errorf("console of a controller without one: %v", err)
	}
	c := &consoled{Fake: new(powertest.Fake), Port: new(powertest.Port)}
	c.Refuse(power.ErrAuth)
	v = power.Verify(c, power.Limits{})
	for range 3 {
		if _, err := v.Console(t.Context()); !errors.Is(err, power.ErrAuth) {
			t.Error(err)
		}
	}
	if c.Opened() != 1 {
		t.Errorf("a refused credential was tried %d times", c.Opened())
	}
}
