package swarm

import (
	"container/heap"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"smelt/images"
)

// hall is a simulated site: its links are queues that are served at their rate,
// its time is virtual, and only the Tracker is real. What it shows is the
// schedule, not any network.
type hall struct {
	t       testing.TB
	tracker *Tracker
	m       images.Manifest
	frame   int64
	now     time.Time
	begun   time.Time
	origin  link
	boxes   []*box
	byAddr  map[string]*box
	queue   queue
	reports int
	inside  time.Duration // real time spent in the tracker
	done    int
	finish  time.Duration
	into    map[string]int64 // bytes into each rack from outside
	sent    int64            // bytes from the origin
}

type link struct {
	rate float64
	free time.Time
}

func (l *link) carry(now time.Time, n int64) time.Time {
	if l.free.Before(now) {
		l.free = now
	}
	l.free = l.free.Add(time.Duration(float64(n) / l.rate * float64(time.Second)))
	return l.free
}

// box is a simulated node.
type box struct {
	id, rack string
	addr     netip.AddrPort
	up, down link
	report   Report
	idle     int
	have     int
	asked    bool
	pace     time.Duration
	last     time.Time
	queue    []Task
	dead     bool
	corrupt  bool    // sends wrong bytes
	slow     float64 // divides what it sends; 0 is none
	claims   bool    // says that it holds everything, and has nothing
}

type event struct {
	at time.Time
	do func()
	n  int
}
type queue []event

func (q queue) Len() int { return len(q) }
func (q queue) Less(i, j int) bool {
	return q[i].at.Before(q[j].at) || q[i].at.Equal(q[j].at) && q[i].n < q[j].n
}
func (q queue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *queue) Push(x any)   { *q = append(*q, x.(event)) }
func (q *queue) Pop() any {
	o := *q
	e := o[len(o)-1]
	*q = o[:len(o)-1]
	return e
}

var events int

func (h *hall) at(d time.Duration, do func()) {
	events++
	heap.Push(&h.queue, event{h.now.Add(d), do, events})
}

// newHall has nodes in racks of perRack, an image of chunks frames of 1.5 MiB,
// an origin and nodes with so many MB/s.
func newHall(t testing.TB, nodes, perRack, chunks int, origin, node float64, l Limits) *hall {
	h := &hall{t: t, tracker: NewTracker(l), frame: 3 << 19, now: time.Unix(1e9, 0), byAddr: map[string]*box{}, into: map[string]int64{}, origin: link{rate: origin * 1e6}}
	h.begun = h.now
	for i := range chunks {
		h.m.Chunks = append(h.m.Chunks, images.Chunk{Offset: int64(i) * images.ChunkSize, Length: images.ChunkSize, BlobOff: int64(i) * h.frame, BlobLen: h.frame, Digest: images.Digest{1}})
	}
	for i := range nodes {
		b := &box{id: fmt.Sprint("n", i), rack: fmt.Sprint("r", i/perRack), up: link{rate: node * 1e6}, down: link{rate: node * 1e6}, idle: 8}
		b.addr = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 7000)
		b.report = Report{Image: images.Digest{9}, Port: 7000, Map: make([]byte, (chunks+7)/8)}
		h.boxes = append(h.boxes, b)
		h.byAddr[b.addr.String()] = b
	}
	return h
}

// run lets every box start at its time and ends when the honest ones have all.
func (h *hall) run(apart time.Duration, limit time.Duration) {
	for i, b := range h.boxes {
		h.at(time.Duration(i)*apart, func() { h.ask(b) })
	}
	want := 0
	for _, b := range h.boxes {
		if !b.claims {
			want++
		}
	}
	for h.queue.Len() > 0 && h.done < want {
		e := heap.Pop(&h.queue).(event)
		h.now = e.at
		if h.now.Sub(h.begun) > limit {
			h.t.Fatalf("after %s only %d of %d nodes have the image: %+v", limit, h.done, want, h.tracker.Stats())
		}
		e.do()
	}
	h.finish = h.now.Sub(h.begun)
}

func (h *hall) ask(b *box) {
	if b.dead {
		return
	}
	b.report.Want = max(0, b.idle+2+min(int(60*b.pace.Seconds()), 32)-len(b.queue))
	if b.claims {
		b.report.Want = 0
		for i := range b.report.Map {
			b.report.Map[i] = 0xff
		}
	}
	began := time.Now()
	p, err := h.tracker.Report(h.now, b.id, b.rack, b.addr.Addr(), b.report, func(images.Digest) (images.Manifest, error) { return h.m, nil })
	h.inside += time.Since(began)
	h.reports++
	if err != nil {
		h.t.Fatal(err)
	}
	b.report = Report{Image: b.report.Image, Port: b.report.Port}
	if p.Map {
		h.t.Fatal("the tracker lost a node")
	}
	for _, task := range p.Tasks {
		if b.idle == 0 {
			b.queue = append(b.queue, task)
			continue
		}
		b.idle--
		h.carry(b, task)
	}
	b.asked = false
	b.pace, b.last = time.Duration(p.Pace)*time.Millisecond, h.now
	wait := time.Duration(p.Wait) * time.Millisecond
	asked := h.now
	h.at(wait, func() {
		if b.last.Equal(asked) && !b.asked {
			h.ask(b)
		}
	})
}

func (h *hall) carry(b *box, task Task) {
	began := h.now
	var end time.Time
	why := Why("")
	if task.Peer == "" {
		h.sent += h.frame
		h.into[b.rack] += h.frame
		end = later(h.origin.carry(h.now, h.frame), b.down.carry(h.now, h.frame))
	} else {
		from := h.byAddr[task.Peer]
		switch {
		case from.dead:
			end, why = h.now.Add(time.Second), Gone
		case from.claims:
			end, why = h.now.Add(time.Millisecond), Gone
		default:
			n := h.frame
			if from.slow > 0 {
				n = int64(float64(n) * from.slow)
			}
			end = later(from.up.carry(h.now, n), b.down.carry(h.now, h.frame))
			if end.Sub(h.now) > 8*time.Second {
				end, why = h.now.Add(8*time.Second), Slow
			} else if from.corrupt {
				why = Corrupt
			}
			if from.rack != b.rack {
				h.into[b.rack] += h.frame
			}
		}
	}
	h.at(end.Sub(h.now), func() {
		if b.dead {
			return
		}
		b.idle++
		if why == "" {
			b.have++
			b.report.Got = append(b.report.Got, Got{task.Chunk, int(h.now.Sub(began) / time.Millisecond)})
			if b.have == len(h.m.Chunks) {
				h.done++
			}
		} else {
			b.report.Failed = append(b.report.Failed, Failure{task.Chunk, why})
		}
		if len(b.queue) > 0 {
			b.idle--
			h.carry(b, b.queue[0])
			b.queue = b.queue[1:]
		}
		if !b.asked {
			b.asked = true
			h.at(max(5*time.Millisecond, b.pace-h.now.Sub(b.last)), func() { h.ask(b) })
		}
	})
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func (h *hall) image() float64 { return float64(h.frame) * float64(len(h.m.Chunks)) }

// TestSimulatedHall2000: 2,000 nodes of 50 racks get an image from an origin
// that sends it little more than once, and over each uplink little more than
// once, in little more time than their own links need.
func TestSimulatedHall2000(t *testing.T) {
	nodes, chunks := 2000, 100
	h := newHall(t, nodes, 40, chunks, 1180, 118, Limits{})
	h.run(5*time.Millisecond, time.Hour)
	floor := max(h.image()/118e6, float64(nodes)*0.005)
	worst := int64(0)
	for _, n := range h.into {
		worst = max(worst, n)
	}
	st := h.tracker.Stats()
	t.Logf("simulated: %d nodes, %.0f MB: origin sent %.2fx, the busiest uplink %.2fx, %.1f s (links need %.1f s; unicast %.0f s); %d reports, %d tasks, %.1f us of CPU a task, %.2f s in all",
		nodes, h.image()/1e6, float64(h.sent)/h.image(), float64(worst)/h.image(), h.finish.Seconds(), floor, float64(nodes)*h.image()/1180e6,
		h.reports, st.OriginTasks+st.PeerTasks, float64(h.inside.Microseconds())/float64(st.OriginTasks+st.PeerTasks), h.inside.Seconds())
	if x := float64(h.sent) / h.image(); x > 1.2 {
		t.Errorf("the origin sent the image %.2f times", x)
	}
	if x := float64(worst) / h.image(); x > 2 {
		t.Errorf("the image crossed into one rack %.2f times", x)
	}
	if h.finish.Seconds() > 3*floor {
		t.Errorf("it took %.1f s of virtual time, the links need %.1f s", h.finish.Seconds(), floor)
	}
}

// TestSimulatedTroubleMakers: liars, slow ones and the dying cost the others
// little.
func TestSimulatedTroubleMakers(t *testing.T) {
	fair := newHall(t, 40, 20, 120, 118, 118, Limits{})
	fair.run(50*time.Millisecond, time.Hour)
	h := newHall(t, 40, 20, 120, 118, 118, Limits{})
	for i := range 4 {
		h.boxes[i].corrupt = true
		h.boxes[20+i].slow = 50
		h.boxes[30+i].claims = true
		b := h.boxes[36+i]
		h.at(time.Duration(500*(i+3))*time.Millisecond, func() {
			if b.have < len(h.m.Chunks) {
				h.done++ // it counts as served
			}
			b.dead = true
		})
	}
	h.run(50*time.Millisecond, time.Hour)
	t.Logf("simulated: alone %.1f s and %.2fx, with 16 of 40 bad %.1f s and %.2fx: %v", fair.finish.Seconds(), float64(fair.sent)/fair.image(),
		h.finish.Seconds(), float64(h.sent)/h.image(), h.tracker.Stats().Failures)
	if x := float64(h.sent) / h.image(); x > 6 {
		t.Errorf("the origin sent the image %.2f times", x)
	}
	if h.finish > 4*fair.finish+20*time.Second {
		t.Errorf("it took %s, and %s without the bad ones", h.finish, fair.finish)
	}
}

// TestSimulatedCaps: the origin's and the racks' caps hold in every second.
func TestSimulatedCaps(t *testing.T) {
	const cap = 20 << 20
	h := newHall(t, 60, 20, 100, 1180, 118, Limits{Rack: cap, Origin: cap})
	h.run(0, time.Hour)
	for r, n := range h.into {
		if got := float64(n) / h.finish.Seconds(); got > cap*1.1+float64(h.frame) {
			t.Errorf("%.1f MB/s into %s, the cap is %.1f", got/1e6, r, cap/1e6)
		}
	}
	if got := float64(h.sent) / h.finish.Seconds(); got > cap*1.1+float64(h.frame) {
		t.Errorf("%.1f MB/s from the origin", got/1e6)
	}
	if x := float64(h.sent) / h.image(); x > 1.5 {
		t.Errorf("the origin sent the image %.2f times", x)
	}
	t.Logf("simulated: %.1f s, origin %.2fx", h.finish.Seconds(), float64(h.sent)/h.image())
}
