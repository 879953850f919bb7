package power

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"smelt/inventory"
)

// A Poller reads the state and the readings of many machines in rounds. At most
// Parallel reads are under way that have just begun; one that takes longer than
// Patience moves over to the slow ones, so that a rack of dead BMCs does not
// delay the others, and a machine that is still being read when its next turn
// comes is left out of that round. Memory is one Sample a machine.
type Poller struct {
	cfg        PollConfig
	fast, slow chan struct{}
	targets    []*target
	byNode     map[inventory.NodeID]*target
	ready      chan struct{}
}

// PollConfig is the pace of a Poller. The zero value of a field means its
// default.
type PollConfig struct {
	Every    time.Duration // from the start of a round to the start of the next; 30 s
	Parallel int           // 64
	Slow     int           // 192
	Patience time.Duration // 1 s
	Limit    time.Duration // of one machine, state and readings; 30 s
	// Seen is told of each sample, from several goroutines at once; it must not
	// wait. nil: ask Last.
	Seen func(Sample)
}

// A Sample is what one machine's controller said in one round.
type Sample struct {
	Node     inventory.NodeID
	State    State    // Unknown where it could not be read
	Readings Readings // NaN watts and empty maps where nothing was measured
	Err      error    // of the state, or of the readings where the state was read
	At       time.Time
	Took     time.Duration
}

// A target is one machine.
type target struct {
	node inventory.NodeID
	v    *Verified

	mu      sync.Mutex
	busy    bool
	blind   bool // its controller measures nothing
	last    Sample
	sampled bool
}

// A Round is what came of one.
type Round struct {
	Read    int // state known
	Failed  int
	Skipped int // the round before still reads it
	Took    time.Duration
}

// NewPoller makes a Poller of machines. It reads nothing before Run or Round.
func NewPoller(machines map[inventory.NodeID]*Verified, c PollConfig) *Poller {
	for _, d := range []struct {
		v   *time.Duration
		def time.Duration
	}{{&c.Every, 30 * time.Second}, {&c.Patience, time.Second}, {&c.Limit, 30 * time.Second}} {
		if *d.v == 0 {
			*d.v = d.def
		}
	}
	if c.Parallel == 0 {
		c.Parallel = 64
	}
	if c.Slow == 0 {
		c.Slow = 192
	}
	p := &Poller{
		cfg: c, fast: make(chan struct{}, c.Parallel), slow: make(chan struct{}, c.Slow),
		byNode: make(map[inventory.NodeID]*target, len(machines)), ready: make(chan struct{}),
	}
	for n, v := range machines {
		t := &target{node: n, v: v}
		p.targets, p.byNode[n] = append(p.targets, t), t
	}
	slices.SortFunc(p.targets, func(a, b *target) int { return strings.Compare(string(a.node), string(b.node)) })
	return p
}

func (p *Poller) String() string { return fmt.Sprintf("power readings of %d machines", len(p.targets)) }

// Ready is closed when the first round was begun.
func (p *Poller) Ready() <-chan struct{} { return p.ready }

// Last is the newest sample of a machine, if there is one.
func (p *Poller) Last(n inventory.NodeID) (Sample, bool) {
	t := p.byNode[n]
	if t == nil {
		return Sample{}, false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.last, t.sampled
}

// Run makes rounds until ctx ends. The reads of a round are spread over the
// time until the next, in another order each time.
func (p *Poller) Run(ctx context.Context) error {
	var reads sync.WaitGroup
	defer reads.Wait()
	close(p.ready)
	for {
		next := time.Now().Add(p.cfg.Every)
		if err := p.begin(ctx, &reads, p.cfg.Every*3/4, nil); err != nil {
			return err
		}
		if err := pause(ctx, time.Until(next)); err != nil {
			return err
		}
	}
}

// Round reads every machine once, as fast as it may, and waits for all.
func (p *Poller) Round(ctx context.Context) (Round, error) {
	began := time.Now()
	var reads sync.WaitGroup
	var count Round
	err := p.begin(ctx, &reads, 0, &count)
	reads.Wait()
	count.Took = time.Since(began)
	return count, err
}

// begin starts the reads of a round within spread.
func (p *Poller) begin(ctx context.Context, reads *sync.WaitGroup, spread time.Duration, count *Round) error {
	var mu sync.Mutex
	add := func(n *int) {
		mu.Lock()
		defer mu.Unlock()
		*n++
	}
	if count == nil {
		count = new(Round)
	}
	for _, i := range rand.Perm(len(p.targets)) {
		t := p.targets[i]
		if spread > 0 {
			// On average the spread: neighbours never fall into step.
			if err := pause(ctx, time.Duration(2*rand.Float64()*float64(spread)/float64(len(p.targets)))); err != nil {
				return err
			}
		}
		if !t.take() {
			add(&count.Skipped)
			continue
		}
		select {
		case p.fast <- struct{}{}:
		case <-ctx.Done():
			t.free()
			return ctx.Err()
		}
		reads.Go(func() {
			defer t.free()
			switch s := p.read(ctx, t); {
			case ctx.Err() != nil:
			case s.State == Unknown && s.Err != nil:
				add(&count.Failed)
			default:
				add(&count.Read)
			}
		})
	}
	return nil
}

func (t *target) take() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	was := t.busy
	t.busy = true
	return !was
}

func (t *target) free() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.busy = false
}

// read reads one machine. It holds one of the fast places, which is given back.
func (p *Poller) read(ctx context.Context, t *target) Sample {
	var mu sync.Mutex
	held, done := p.fast, false
	move := time.AfterFunc(p.cfg.Patience, func() {
		mu.Lock()
		defer mu.Unlock()
		if done {
			return
		}
		select {
		case p.slow <- struct{}{}:
			<-held
			held = p.slow
		default: // no room there: it keeps its place
		}
	})
	defer func() {
		move.Stop()
		mu.Lock()
		defer mu.Unlock()
		done = true
		<-held
	}()
	limited, cancel := context.WithTimeoutCause(ctx, p.cfg.Limit, errSlow)
	defer cancel()
	s := t.sample(limited)
	if ctx.Err() != nil {
		return s // we are being stopped: what was cut short says nothing
	}
	t.mu.Lock()
	t.last, t.sampled = s, true
	t.mu.Unlock()
	if p.cfg.Seen != nil {
		p.cfg.Seen(s)
	}
	return s
}

func (t *target) sample(ctx context.Context) Sample {
	s := Sample{Node: t.node, Readings: Readings{Watts: math.NaN()}, At: time.Now()}
	s.State, s.Err = t.v.State(ctx)
	if s.Err == nil && !t.blind {
		r, err := t.v.Readings(ctx)
		switch {
		case err == nil:
			s.Readings = r
		case errors.Is(err, ErrUnsupported):
			t.blind = true // only this read, which holds busy, looks at it
		default:
			s.Err = err
		}
	}
	s.Took = time.Since(s.At)
	return s
}
