package console

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"smelt/inventory"
	"smelt/power"
	"smelt/power/powertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// port is a serial port with a name.
type port struct{ *powertest.Port }

func (port) String() string { return "fake console (simulated)" }

func newPort() port { return port{new(powertest.Port)} }

func start1(t *testing.T, c Config) (*Recorder, context.CancelFunc) {
	t.Helper()
	if c.Dir == "" {
		c.Dir = t.TempDir()
	}
	r, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	stop := func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
		done <- nil
	}
	return r, stop
}

func textOf(t *testing.T, r *Recorder, id inventory.NodeID) string {
	t.Helper()
	entries, err := r.Log(id, 0)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, l := range Lines(entries) {
		b.WriteString(l.Text + "\n")
	}
	return b.String()
}

func TestRecords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, dir := newPort(), t.TempDir()
		r, stop := start1(t, Config{Dir: dir, Ports: map[inventory.NodeID]Port{"rig-01": p}})
		synctest.Wait()
		if s := r.State("rig-01"); s.Is != "open" {
			t.Fatalf("state %+v", s)
		}
		for _, b := range "login: " { // a byte at a time, as serial ports have it
			p.Print(string(b))
		}
		if got := textOf(t, r, "rig-01"); !strings.Contains(got, "login: ") {
			t.Errorf("what was heard is kept back: %q", got)
		}
		p.Print("half a li")
		time.Sleep(time.Second)
		if err := r.Type(t.Context(), "rig-01", []byte("root\r")); err != nil || p.Typed() != "root\r" {
			t.Errorf("typed %q, %v", p.Typed(), err)
		}
		stop()
		if p.Busy() {
			t.Error("the session outlives the recorder")
		}
		if err := r.Type(t.Context(), "rig-01", []byte("x")); !errors.Is(err, ErrClosed) {
			t.Errorf("typing into a recorder that ended: %v", err)
		}
		entries, err := r.Log("rig-01", 0)
		if err != nil || len(entries) > 6 {
			t.Errorf("%d entries for two bursts, %v", len(entries), err)
		}

		// The next server goes on in the same ring.
		r, stop = start1(t, Config{Dir: dir, Ports: map[inventory.NodeID]Port{"rig-01": p}})
		defer stop()
		synctest.Wait()
		p.Print("again\n")
		got := textOf(t, r, "rig-01")
		for _, want := range []string{"half a li", "-- smelt: connected --", "-- smelt: disconnected", "again"} {
			if !strings.Contains(got, want) {
				t.Errorf("%q is missing in %q", want, got)
			}
		}
	})
}

func TestComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPort()
		r, stop := start1(t, Config{Ports: map[inventory.NodeID]Port{"rig-01": p}})
		defer stop()
		synctest.Wait()
		p.Print("before\n")
		p.Cut()
		synctest.Wait()
		if s := r.State("rig-01"); s.Is != "lost" || s.Why == "" || s.Next.IsZero() {
			t.Errorf("state after a cut: %+v", s)
		}
		time.Sleep(backoffMin)
		synctest.Wait()
		if s := r.State("rig-01"); s.Is != "open" || p.Opened() != 2 {
			t.Fatalf("state %+v after %d sessions", s, p.Opened())
		}

		// A device that refuses is asked ever less often.
		p.Refuse(errors.New("no free session"))
		p.Cut()
		begun := p.Opened()
		time.Sleep(time.Hour)
		if n := p.Opened() - begun; n < 12 || n > 30 {
			t.Errorf("asked %d times within an hour", n)
		}
		// Who looks shortens the wait, but only down to the first one.
		begun = p.Opened()
		p.Refuse(nil)
		f, err := r.Follow("rig-01")
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(backoffMin)
		synctest.Wait()
		if s := r.State("rig-01"); s.Is != "open" {
			t.Errorf("nobody hurried: %+v after %d more tries", s, p.Opened()-begun)
		}
		f.Close()
	})
}

func TestNoConsoleIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPort()
		p.Refuse(fmt.Errorf("no serial port: %w", power.ErrUnsupported))
		r, stop := start1(t, Config{Ports: map[inventory.NodeID]Port{"rig-01": p}})
		defer stop()
		time.Sleep(10 * time.Hour)
		if s := r.State("rig-01"); s.Is != "none" || p.Opened() > 21 {
			t.Errorf("state %+v, asked %d times in 10 h", s, p.Opened())
		}
		if _, err := r.Log("rig-99", 0); !errors.Is(err, ErrNone) {
			t.Errorf("a machine that is not there: %v", err)
		}
	})
}

// TestShares: more machines than sessions, and each is heard.
func TestShares(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ports := map[inventory.NodeID]Port{}
		all := map[inventory.NodeID]port{}
		for i := range 6 {
			id := inventory.NodeID(fmt.Sprintf("rig-%02d", i))
			all[id] = newPort()
			ports[id] = all[id]
		}
		r, stop := start1(t, Config{Ports: ports, Sessions: 2})
		defer stop()
		heard := map[inventory.NodeID]bool{}
		for range 60 {
			time.Sleep(time.Minute)
			synctest.Wait()
			open := 0
			for id, p := range all {
				if p.Busy() {
					open++
					heard[id] = true
				}
			}
			if open > 2 {
				t.Fatalf("%d sessions are open, limit 2", open)
			}
		}
		if len(heard) != 6 {
			t.Errorf("only %d of 6 machines were heard within an hour", len(heard))
		}
		// A person who looks gets a session at once.
		for id, p := range all {
			if !p.Busy() {
				f, err := r.Follow(id)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				time.Sleep(backoffMin)
				synctest.Wait()
				if !p.Busy() {
					t.Errorf("%s: %+v", id, r.State(id))
				}
				break
			}
		}
	})
}

func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPort()
		r, stop := start1(t, Config{Ports: map[inventory.NodeID]Port{"rig-01": p}})
		defer stop()
		synctest.Wait()
		f, err := r.Follow("rig-01")
		if err != nil {
			t.Fatal(err)
		}
		p.Print("hello")
		n := <-f.C
		if n.Entry == nil || string(n.Entry.Data) != "hello" || n.Entry.Seq == 0 {
			t.Fatalf("notice %+v", n)
		}
		// A reader that sleeps is let go; what it missed is in the recording.
		for range feedSize + 2 {
			p.Print("x")
			time.Sleep(time.Second)
		}
		n2 := 0
		for range f.C {
			n2++
		}
		if n2 != feedSize {
			t.Errorf("%d notices were kept", n2)
		}
		f.Close()
		if entries, err := r.Log("rig-01", n.Entry.Seq); err != nil || len(entries) != feedSize+2 {
			t.Errorf("%d entries, %v", len(entries), err)
		}
	})
}

// stuck is a console whose device takes nothing.
type stuck struct{ closed chan struct{} }

func (s stuck) Read([]byte) (int, error)  { <-s.closed; return 0, io.EOF }
func (s stuck) Write([]byte) (int, error) { <-s.closed; return 0, io.ErrClosedPipe }
func (s stuck) Close() error {
	select {
	case <-s.closed:
	default:
		close(s.closed)
	}
	return nil
}
func (s stuck) String() string                                      { return "stuck" }
func (s stuck) Console(context.Context) (io.ReadWriteCloser, error) { return s, nil }

func TestTypingIntoAStuckDevice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, stop := start1(t, Config{Ports: map[inventory.NodeID]Port{"rig-01": stuck{make(chan struct{})}}})
		defer stop()
		synctest.Wait()
		began := time.Now()
		if err := r.Type(t.Context(), "rig-01", []byte("x")); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != typeLimit {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}

// TestMemory: what a machine costs while its console is open and silent.
func TestMemory(t *testing.T) {
	const machines = 2000
	ports := map[inventory.NodeID]Port{}
	list := make([]port, machines)
	for i := range list {
		list[i] = newPort()
		ports[inventory.NodeID(fmt.Sprintf("rig-%04d", i))] = list[i]
	}
	used := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse
	}
	before := used()
	r, stop := start1(t, Config{Ports: ports, Sessions: machines})
	defer stop()
	for end := time.Now().Add(20 * time.Second); r.States()["open"] < machines; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("states %v", r.States())
		}
	}
	for _, p := range list {
		p.Print("one line of output\r\n")
	}
	time.Sleep(2 * gather)
	each := (used() - before) / machines
	t.Logf("%d bytes a machine, the fake's pipe included", each)
	if each > 16<<10 {
		t.Errorf("%d bytes a machine", each)
	}
}
