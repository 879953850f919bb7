package console

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"smelt/inventory"
	"smelt/power"
)

// A Port opens the serial console of one machine; *power.Verified is one. It
// has one session at a time.
type Port interface {
	Console(context.Context) (io.ReadWriteCloser, error)
	String() string
}

// Config of a Recorder. A zero number means its default.
type Config struct {
	Dir      string                    // of the rings; made if missing
	Ports    map[inventory.NodeID]Port // machines that may have a console
	Limit    int64                     // bytes on disk a machine; 1 MiB
	Sessions int                       // open at once; 256: each may be a process of its own (ipmitool), of some megabytes
	Log      *slog.Logger              // nil: nothing is logged
}

// Times of the recorder.
const (
	backoffMin = 5 * time.Second // after a session that was lost or refused; doubled each time
	backoffMax = 5 * time.Minute
	lasting    = time.Minute            // a session that lasted so long begins the backoff anew
	never      = time.Hour              // a machine whose device has no console is asked again after it
	share      = 10 * time.Minute       // a session gives its place to one that waits after it
	gather     = 200 * time.Millisecond // output that comes within it is one entry
	typeLimit  = 5 * time.Second        // for the device to take what is typed
)

const (
	openings   = 16 // sessions that are being opened at once
	extra      = 16 // sessions beyond Config.Sessions, for people who look
	bufferSize = 1 << 10
	maxPending = 4 << 10 // output that is not written yet
	maxTyped   = 4 << 10
)

// Recorder is a task: Run, Ready, String.
type Recorder struct {
	c       Config
	places  chan struct{} // one element an open session
	spare   chan struct{} // for people who look
	opening chan struct{}
	waiting atomic.Int32 // machines that want a place
	ready   chan struct{}
	nodes   map[inventory.NodeID]*node
}

// State is how the console of a machine is.
type State struct {
	Is    string // none, waiting, opening, open, lost, off (the recorder does not run)
	Since time.Time
	Why   string    // lost, none: the last error
	Next  time.Time // lost: it is tried again then
}

// node is one machine. It is small, because there may be thousands: what it
// needs while it is open is made then.
type node struct {
	id   inventory.NodeID
	port Port
	ring *ring
	want chan struct{} // a person looks: waiting ends

	mu      sync.Mutex
	state   State
	now     *live
	feeds   map[*Feed]bool
	diskErr string // said already
}

// live is what an open session needs.
type live struct {
	rw      io.ReadWriteCloser
	since   time.Time
	pending []byte
	at      time.Time // of pending's first byte
	timer   *time.Timer
	typing  chan struct{} // one element while somebody's bytes are on their way
}

// New makes the folder and a recorder that does nothing until Run.
func New(c Config) (*Recorder, error) {
	if c.Limit == 0 {
		c.Limit = 1 << 20
	}
	if c.Sessions == 0 {
		c.Sessions = 256
	}
	if c.Limit < minLimit || c.Sessions < 1 {
		return nil, fmt.Errorf("console: a ring has at least %d bytes, and there is at least one session", minLimit)
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if err := makeDir(c.Dir); err != nil {
		return nil, fmt.Errorf("console: folder of the recordings: %w", err)
	}
	r := &Recorder{
		c: c, ready: make(chan struct{}), nodes: map[inventory.NodeID]*node{},
		places: make(chan struct{}, c.Sessions), spare: make(chan struct{}, extra), opening: make(chan struct{}, openings),
	}
	for id, p := range c.Ports {
		// The id is a file name: inventory.ParseNodeID lets nothing else through.
		if _, err := inventory.ParseNodeID(string(id)); err != nil {
			return nil, fmt.Errorf("console: %w", err)
		}
		r.nodes[id] = &node{id: id, port: p, ring: newRing(filepath.Join(c.Dir, string(id)), c.Limit), want: make(chan struct{}, 1), state: State{Is: "off"}}
	}
	return r, nil
}

func (r *Recorder) String() string {
	return fmt.Sprintf("console recorder of %d machines", len(r.nodes))
}

// Ready is closed at once: nothing waits for a BMC.
func (r *Recorder) Ready() <-chan struct{} { return r.ready }

// Run records until ctx ends, and has then closed every session.
func (r *Recorder) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, n := range r.nodes {
		wg.Go(func() { r.record(ctx, n) })
	}
	close(r.ready)
	<-ctx.Done()
	return nil
}

// record keeps a session with one machine.
func (r *Recorder) record(ctx context.Context, n *node) {
	defer n.be(State{Is: "off"})
	wait := backoffMin
	for ctx.Err() == nil {
		n.be(State{Is: "waiting"})
		put, err := r.place(ctx, n)
		if err != nil {
			return
		}
		began := time.Now()
		err = r.session(ctx, n)
		put()
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > lasting {
			wait = backoffMin
		}
		pause := wait/2 + rand.N(wait/2+1) // a hall that lost its switch does not come back in one second
		state := State{Is: "lost", Why: err.Error()}
		switch {
		case errors.Is(err, errShared):
			pause, state = 0, State{Is: "waiting"}
		case errors.Is(err, power.ErrUnsupported):
			pause, state.Is = never, "none"
		case errors.Is(err, power.ErrAuth):
			pause = backoffMax // Verified says so without a word to the device
		default:
			wait = min(2*wait, backoffMax)
		}
		state.Next = time.Now().Add(pause)
		n.be(state)
		r.c.Log.Debug("console", "node", n.id, "state", state.Is, "err", err, "again", pause)
		n.sleep(ctx, pause)
	}
}

// sleep ends early when a person looks, but never before backoffMin: a device
// is not asked faster because of that.
func (n *node) sleep(ctx context.Context, d time.Duration) {
	short := time.NewTimer(min(d, backoffMin))
	defer short.Stop()
	select {
	case <-short.C:
	case <-ctx.Done():
		return
	}
	if d <= backoffMin {
		return
	}
	long := time.NewTimer(d - backoffMin)
	defer long.Stop()
	select {
	case <-long.C:
	case <-n.want:
	case <-ctx.Done():
	}
}

// place waits for room for one more session.
func (r *Recorder) place(ctx context.Context, n *node) (put func(), err error) {
	r.waiting.Add(1)
	defer r.waiting.Add(-1)
	for {
		select {
		case r.places <- struct{}{}:
			return func() { <-r.places }, nil
		case <-n.want:
			select {
			case r.spare <- struct{}{}:
				return func() { <-r.spare }, nil
			default:
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// errShared ends a session so that another machine is heard, too.
var errShared = errors.New("its place was given to a machine that waits")

// session opens the console and records until it ends.
func (r *Recorder) session(ctx context.Context, n *node) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	select {
	case r.opening <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	n.be(State{Is: "opening"})
	rw, err := n.port.Console(ctx)
	<-r.opening
	if err != nil {
		return err
	}
	s := &live{rw: rw, since: time.Now(), typing: make(chan struct{}, 1)}
	n.open(s, r.c.Log)
	// A read that waits ends when the session is closed.
	stop := context.AfterFunc(ctx, func() { rw.Close() })
	turn := time.AfterFunc(share, func() { r.shareOut(n, s, cancel) })
	buf := make([]byte, bufferSize)
	for err == nil {
		var k int
		if k, err = rw.Read(buf); k > 0 {
			n.heard(s, buf[:k], r.c.Log)
		}
	}
	turn.Stop()
	if stop() {
		rw.Close()
	}
	if context.Cause(ctx) != nil {
		err = context.Cause(ctx)
	}
	n.closed(s, err, r.c.Log)
	return err
}

// shareOut ends a session when others wait and nobody looks at it.
func (r *Recorder) shareOut(n *node, s *live, cancel context.CancelCauseFunc) {
	n.mu.Lock()
	current, watched := n.now == s, len(n.feeds) > 0
	n.mu.Unlock()
	switch {
	case !current:
	case r.waiting.Load() > 0 && !watched:
		cancel(errShared)
	default:
		time.AfterFunc(share/10, func() { r.shareOut(n, s, cancel) })
	}
}

func (n *node) be(s State) {
	s.Since = time.Now()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.state = s
	n.tell(Notice{State: &s})
}

func (n *node) open(s *live, log *slog.Logger) {
	n.be(State{Is: "open"})
	n.mu.Lock()
	defer n.mu.Unlock()
	n.now = s
	n.keep(Mark, s.since, []byte("connected"), log)
}

func (n *node) closed(s *live, why error, log *slog.Logger) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if s.timer != nil {
		s.timer.Stop()
	}
	n.flush(s, log)
	n.now = nil
	said := why.Error()
	if errors.Is(why, io.EOF) {
		said = "the device ended the session"
	}
	n.keep(Mark, time.Now(), []byte("disconnected: "+said), log)
}

// heard takes output in. A byte at a time, as serial ports have it, would be
// an entry each.
func (n *node) heard(s *live, b []byte, log *slog.Logger) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(s.pending) == 0 {
		s.at = time.Now()
		if s.timer == nil {
			s.timer = time.AfterFunc(gather, func() {
				n.mu.Lock()
				defer n.mu.Unlock()
				if n.now == s {
					n.flush(s, log)
				}
			})
		} else {
			s.timer.Reset(gather)
		}
	}
	if s.pending = append(s.pending, b...); len(s.pending) >= maxPending {
		n.flush(s, log)
	}
}

// flush writes what was gathered. n.mu is held.
func (n *node) flush(s *live, log *slog.Logger) {
	if len(s.pending) > 0 {
		n.keep(Output, s.at, s.pending, log)
		s.pending = nil // a machine that is silent holds no buffer
	}
}

// keep writes into the ring and tells who looks. A disk that is full must not
// end the session: who looks still sees what comes. n.mu is held.
func (n *node) keep(kind Kind, at time.Time, data []byte, log *slog.Logger) {
	entries, err := n.ring.append(kind, at, data)
	if err != nil {
		if msg := err.Error(); msg != n.diskErr {
			n.diskErr = msg
			log.Error("console is not recorded", "node", n.id, "err", err)
		}
		entries = []Entry{{At: at, Kind: kind, Data: data}}
	} else {
		n.diskErr = ""
	}
	for _, e := range entries {
		n.tell(Notice{Entry: &e})
	}
}

// Errors of a Recorder.
var (
	ErrNone   = errors.New("nothing here opens a console of it") // not in Config.Ports
	ErrClosed = errors.New("its console is not open now")
)

func (r *Recorder) node(id inventory.NodeID) (*node, error) {
	n := r.nodes[id]
	if n == nil {
		return nil, ErrNone
	}
	return n, nil
}

// State tells how the console of a machine is.
func (r *Recorder) State(id inventory.NodeID) State {
	n, err := r.node(id)
	if err != nil {
		return State{Is: "none", Why: err.Error()}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.state
}

// States counts the machines by how their consoles are.
func (r *Recorder) States() map[string]int {
	out := map[string]int{}
	for id := range maps.Keys(r.nodes) {
		out[r.State(id).Is]++
	}
	return out
}

// Log returns what was recorded of a machine behind the entry seq, the oldest
// first.
func (r *Recorder) Log(id inventory.NodeID, seq uint64) ([]Entry, error) {
	n, err := r.node(id)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	if n.now != nil {
		n.flush(n.now, r.c.Log) // what was heard is not kept back from who asks
	}
	n.mu.Unlock()
	return n.ring.after(seq)
}

// Type sends data to the machine as if it had been typed.
func (r *Recorder) Type(ctx context.Context, id inventory.NodeID, data []byte) error {
	n, err := r.node(id)
	if err != nil {
		return err
	}
	if len(data) > maxTyped {
		return fmt.Errorf("%d bytes are more than %d: nobody types that fast", len(data), maxTyped)
	}
	n.mu.Lock()
	s := n.now
	n.mu.Unlock()
	if s == nil {
		return ErrClosed
	}
	ctx, cancel := context.WithTimeout(ctx, typeLimit)
	defer cancel()
	select {
	case s.typing <- struct{}{}: // in the order in which it was asked
	case <-ctx.Done():
		return fmt.Errorf("the device does not take what was typed before: %w", ctx.Err())
	}
	sent := make(chan error, 1)
	go func() {
		_, err := s.rw.Write(data)
		<-s.typing
		sent <- err
	}()
	select {
	case err := <-sent:
		return err
	case <-ctx.Done():
		s.rw.Close() // a device that is stuck; the next session may not be
		return fmt.Errorf("the device does not take what is typed: %w", ctx.Err())
	}
}
