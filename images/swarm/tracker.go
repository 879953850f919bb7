package swarm

import (
	"fmt"
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"smelt/images"
)

// Numbers of the schedule. Durations are what the transfers of a slot should
// take: shorter, and the slots are too few to fill the link; longer, and they
// only queue.
const (
	brisk    = 300 * time.Millisecond
	sluggish = time.Second

	peerSlots, maxPeerSlots     = 4, 16 // transfers from one node at once: at first, at most
	originSlots, minOriginSlots = 4, 2  // transfers of one image from the origin at once
	maxOriginSlots              = 512
	nodeCredit                  = 48 // transfers to one node, begun or waiting

	// A transfer that is not reported in this time is given to another. Long:
	// links may be slow, and who is gone is noticed sooner.
	overdue = time.Minute
	// A node that is given nothing for so long may use what the rules below
	// keep for others: the origin, although somebody holds or fetches the
	// chunk, and another rack, although its own holds it. At first it is not
	// known how long transfers take here.
	hungry, patient = time.Second, 15 * time.Second

	probes  = 48 // chunks looked at for one task
	samples = 4  // holders looked at for one chunk
	avoided = 20 * time.Second
	benched = time.Minute

	// rejoin is how often one node may begin anew; a client that lost the
	// tracker tries no faster. maxDead is how many entries of nodes that are
	// gone there may be before they are looked for.
	rejoin  = 500 * time.Millisecond
	maxDead = 1 << 20
)

// Tracker says who fetches what from whom. It keeps nothing that a restart
// must keep: nodes tell it again.
type Tracker struct {
	limits Limits

	mu     sync.Mutex
	images map[images.Digest]*swarm
	racks  map[string]*rack
	origin bucket
	rand   *rand.Rand
	stats  Stats
}

// Stats count what was planned since the start. Bytes are of frames as the
// origin has them.
type Stats struct {
	Nodes       int   // now
	OriginTasks int64 // planned from the origin
	PeerTasks   int64
	CrossTasks  int64 // of PeerTasks, between racks
	OriginBytes int64
	PeerBytes   int64
	Failures    map[Why]int64
}

// NewTracker returns a tracker of all the images of a site.
func NewTracker(l Limits) *Tracker {
	return &Tracker{
		limits: l, images: map[images.Digest]*swarm{}, racks: map[string]*rack{}, origin: bucket{rate: l.Origin},
		rand: rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())), stats: Stats{Failures: map[Why]int64{}},
	}
}

// rack is where crossing costs.
type rack struct {
	name string
	in   bucket // bytes from outside
}

// bucket spends at most rate bytes a second, and a second's worth at once.
type bucket struct {
	rate int64
	left float64
	at   time.Time
}

func (b *bucket) take(now time.Time, n int64) bool {
	if b.rate <= 0 {
		return true
	}
	if b.at.IsZero() {
		b.left = float64(b.rate) / 4
	} else {
		b.left = min(b.left+now.Sub(b.at).Seconds()*float64(b.rate), float64(b.rate))
	}
	b.at = now
	// Into debt, so that a rate below one chunk a second moves at all.
	if b.left <= 0 {
		return false
	}
	b.left -= float64(n)
	return true
}

// swarm is one image.
type swarm struct {
	bytes  []int64 // of each chunk's frame; 0 for zero chunks
	chunks []chunk
	nodes  []*node // an index is never used again while the swarm lives
	byID   map[string]*node
	nobody *node         // stands for those that are gone
	usual  time.Duration // a transfer takes; 0 while unknown
	slots  float64       // transfers from the origin at once
	busy   int           // of them, used
	swept  time.Time
	heard  time.Time
	dead   int // entries in the lists of holders, of nodes that are gone
}

// chunk is who has it. Lists may name nodes that are gone or lost it: they are
// dropped when met.
type chunk struct {
	holders []int32
	racks   []rackHolders
	pending []pending
}

type rackHolders struct {
	rack  *rack
	nodes []int32
}

// pending is a transfer from outside into a rack: the others there wait for it.
type pending struct {
	rack   *rack
	to     int32
	origin bool
	since  time.Time
}

type node struct {
	index   int32
	id      string
	rack    *rack
	addr    string // ADDRESS:PORT; empty when it serves none
	have    []byte
	missing []int32        // data chunks, in an order of its own
	lost    map[int32]bool // had and lost: not held again, whatever it says
	joined  time.Time
	flights []flight
	credit  float64
	heard   time.Time
	fed     time.Time // when it was last given a task, or wanted none
	gone    bool

	// as a source
	uses    int // transfers from it, planned and not reported
	slots   float64
	happy   map[string]bool // ids of who got chunks from it
	unhappy map[string]bool // ids of who complained of it: who joins again is still one
	bench   time.Time       // nobody is sent to it before
	avoid   map[int32]time.Time
}

// flight is a task that was given to a node.
type flight struct {
	chunk  int32
	source int32 // index of a node; -1 the origin
	since  time.Time
}

func (n *node) has(c int32) bool { return n.have[c/8]&(1<<(c%8)) != 0 }

// Report takes what a node says and plans what it does next. id names the
// node and comes from its session, as rack and addr do not come from the
// report: a node can lie about itself only. manifest is asked for once an image.
func (t *Tracker) Report(now time.Time, id, rackName string, addr netip.Addr, r Report, manifest func(images.Digest) (images.Manifest, error)) (Plan, error) {
	bad := func(format string, args ...any) (Plan, error) {
		return Plan{}, fmt.Errorf("swarm: node %s: %w: %s", id, ErrReport, fmt.Sprintf(format, args...))
	}
	if r.Want < 0 || r.Want > maxWant || len(r.Got) > maxListed || len(r.Lost) > maxListed || len(r.Failed) > maxListed {
		return bad("it wants %d chunks, lists %d, %d, %d", r.Want, len(r.Got), len(r.Lost), len(r.Failed))
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.images[r.Image]
	if s == nil {
		m, err := manifest(r.Image)
		if err != nil {
			return Plan{}, fmt.Errorf("swarm: node %s: %w", id, err)
		}
		s = newSwarm(m)
		t.images[r.Image] = s
	}
	s.heard = now
	t.sweep(now, s)
	for _, list := range [][]int{gotChunks(r.Got), r.Lost} {
		for _, c := range list {
			if c < 0 || c >= len(s.bytes) || s.bytes[c] == 0 {
				return bad("image %s has no data in chunk %d", r.Image.Short(), c)
			}
		}
	}

	if len(r.Map) > 0 && len(r.Map) != (len(s.bytes)+7)/8 {
		return bad("its map has %d bytes, image %s has %d chunks", len(r.Map), r.Image.Short(), len(s.bytes))
	}

	serves := ""
	if r.Port != 0 && addr.IsValid() {
		serves = netip.AddrPortFrom(addr.Unmap(), r.Port).String()
	}
	n := s.byID[id]
	if n != nil && !r.Leave && (n.addr != serves || len(r.Map) > 0) {
		if now.Sub(n.joined) < rejoin {
			return Plan{}, fmt.Errorf("swarm: node %s: %w", id, ErrBusy)
		}
		t.drop(s, n) // it started again
		n = nil
	}
	if r.Leave {
		if n != nil {
			t.drop(s, n)
		}
		return Plan{}, nil
	}
	if n == nil {
		if len(r.Map) == 0 {
			return Plan{Map: true}, nil
		}
		n = t.join(now, s, id, rackName, serves, r.Map)
	}
	n.heard = now
	for _, g := range r.Got {
		t.got(s, n, int32(g.Chunk), time.Duration(min(max(g.Ms, 0), int(overdue/time.Millisecond)))*time.Millisecond)
	}
	for _, c := range r.Lost {
		if n.has(int32(c)) {
			n.have[c/8] &^= 1 << (c % 8) // it wrote it, and will not fetch it again
			n.lost[int32(c)] = true
		}
	}
	for _, f := range r.Failed {
		t.failed(now, s, n, f)
	}
	n.settle(now, s)
	p := Plan{Upload: t.limits.Node, Wait: int(heartbeat / time.Millisecond), Pace: int(s.pace() / time.Millisecond)}
	if r.Want == 0 || len(n.missing) == 0 {
		n.fed = now
		return p, nil
	}
	p.Tasks = t.plan(now, s, n, min(r.Want, int(n.credit)-len(n.flights)))
	if len(p.Tasks) > 0 {
		n.fed = now
	} else {
		// Spread, so that those who wait for one chunk do not all come at once.
		p.Wait = max(100, p.Pace) + t.rand.IntN(150)
	}
	return p, nil
}

// pace is the time between two reports of a node at least: thousands of nodes
// must not drown the server in reports.
func (s *swarm) pace() time.Duration {
	return max(10*time.Millisecond, time.Duration(len(s.byID))*time.Second/reports)
}

func gotChunks(g []Got) []int {
	out := make([]int, len(g))
	for i := range g {
		out[i] = g[i].Chunk
	}
	return out
}

// Stats returns the counts.
func (t *Tracker) Stats() Stats {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := t.stats
	out.Failures = map[Why]int64{}
	for k, v := range t.stats.Failures {
		out.Failures[k] = v
	}
	for _, s := range t.images {
		out.Nodes += len(s.byID)
	}
	return out
}

func newSwarm(m images.Manifest) *swarm {
	s := &swarm{nobody: &node{gone: true}, bytes: make([]int64, len(m.Chunks)), chunks: make([]chunk, len(m.Chunks)), byID: map[string]*node{}, slots: originSlots}
	for i, c := range m.Chunks {
		if !c.Zero {
			s.bytes[i] = c.BlobLen
		}
	}
	return s
}

// sweep forgets nodes that went silent, and images that nobody writes.
func (t *Tracker) sweep(now time.Time, s *swarm) {
	if now.Sub(s.swept) < time.Second {
		return
	}
	s.swept = now
	for _, n := range s.byID {
		if now.Sub(n.heard) > quiet {
			t.drop(s, n)
		}
	}
	for d, other := range t.images {
		if now.Sub(other.heard) > 10*time.Minute {
			delete(t.images, d)
		}
	}
}

func (t *Tracker) join(now time.Time, s *swarm, id, rackName, serves string, have []byte) *node {
	r := t.racks[rackName]
	if r == nil {
		r = &rack{name: rackName, in: bucket{rate: t.limits.Rack}}
		t.racks[rackName] = r
	}
	n := &node{
		index: int32(len(s.nodes)), id: id, rack: r, addr: serves, have: append([]byte(nil), have...),
		credit: nodeCredit, fed: now, joined: now, lost: map[int32]bool{}, slots: peerSlots, happy: map[string]bool{}, unhappy: map[string]bool{}, avoid: map[int32]time.Time{},
	}
	s.nodes = append(s.nodes, n)
	s.byID[id] = n
	for i, b := range s.bytes {
		switch {
		case b == 0:
		case n.has(int32(i)):
			s.hold(n, int32(i))
		default:
			n.missing = append(n.missing, int32(i))
		}
	}
	t.rand.Shuffle(len(n.missing), func(i, j int) { n.missing[i], n.missing[j] = n.missing[j], n.missing[i] })
	return n
}

// drop takes a node out. Lists of holders notice by themselves.
func (t *Tracker) drop(s *swarm, n *node) {
	n.gone = true
	for _, f := range n.flights {
		s.land(n, f)
	}
	delete(s.byID, n.id)
	for _, b := range n.have {
		s.dead += 2 * bits.OnesCount8(b)
	}
	s.nodes[n.index] = s.nobody
	if s.dead > maxDead {
		s.bury()
	}
}

// bury drops from all lists of holders who does not hold any more. Where
// nothing is fetched nobody meets them.
func (s *swarm) bury() {
	s.dead = 0
	for c := range s.chunks {
		k := &s.chunks[c]
		gone := func(i int32) bool { return s.nodes[i].gone || !s.nodes[i].has(int32(c)) }
		k.holders = slices.DeleteFunc(k.holders, gone)
		for i := range k.racks {
			k.racks[i].nodes = slices.DeleteFunc(k.racks[i].nodes, gone)
		}
	}
}

func (s *swarm) hold(n *node, c int32) {
	if n.addr == "" {
		return
	}
	k := &s.chunks[c]
	k.holders = append(k.holders, n.index)
	for i := range k.racks {
		if k.racks[i].rack == n.rack {
			k.racks[i].nodes = append(k.racks[i].nodes, n.index)
			return
		}
	}
	k.racks = append(k.racks, rackHolders{n.rack, []int32{n.index}})
}

// land ends a flight: its source has a slot again.
func (s *swarm) land(n *node, f flight) {
	k := &s.chunks[f.chunk]
	for i, p := range k.pending {
		if p.to == n.index {
			k.pending[i] = k.pending[len(k.pending)-1]
			k.pending = k.pending[:len(k.pending)-1]
			break
		}
	}
	if f.source < 0 {
		s.busy--
	} else if from := s.nodes[f.source]; !from.gone {
		from.uses--
	}
}

// take ends the flight of chunk c, if there is one.
func (s *swarm) take(n *node, c int32) (flight, bool) {
	for i, f := range n.flights {
		if f.chunk == c {
			n.flights[i] = n.flights[len(n.flights)-1]
			n.flights = n.flights[:len(n.flights)-1]
			s.land(n, f)
			return f, true
		}
	}
	return flight{}, false
}

// settle takes back what a node did not report in time. The node itself is
// given less: it may hold chunks back from the others on purpose.
func (n *node) settle(now time.Time, s *swarm) {
	kept := n.flights[:0]
	for _, f := range n.flights {
		if now.Sub(f.since) > overdue {
			s.land(n, f)
			n.credit = max(2, n.credit/2)
			continue
		}
		kept = append(kept, f)
	}
	n.flights = kept
}

func (t *Tracker) got(s *swarm, n *node, c int32, took time.Duration) {
	f, planned := s.take(n, c)
	if n.has(c) || n.lost[c] {
		return
	}
	n.have[c/8] |= 1 << (c % 8)
	for i, m := range n.missing {
		if m == c {
			n.missing[i] = n.missing[len(n.missing)-1]
			n.missing = n.missing[:len(n.missing)-1]
			break
		}
	}
	s.hold(n, c)
	if !planned {
		return
	}
	n.credit = min(nodeCredit, n.credit+1)
	if s.usual == 0 {
		s.usual = took
	}
	s.usual += (min(took, overdue) - s.usual) / 16
	if f.source < 0 {
		switch {
		case took < brisk:
			s.slots = min(maxOriginSlots, s.slots+0.5)
		case took > sluggish:
			s.slots = max(minOriginSlots, s.slots-0.5)
		}
		return
	}
	from := s.nodes[f.source]
	if from.gone {
		return
	}
	from.happy[n.id] = true
	switch {
	case took < brisk:
		from.slots = min(maxPeerSlots, from.slots+0.25)
	case took > sluggish:
		from.slots = max(1, from.slots-0.5)
	}
}

// failed notes a transfer that brought nothing. Who complains is not sent there
// again for a while; others are only when several complain, and more than are
// content: a liar shuts nobody out.
func (t *Tracker) failed(now time.Time, s *swarm, n *node, f Failure) {
	if f.Chunk < 0 || f.Chunk >= len(s.bytes) {
		return
	}
	switch f.Why {
	case Corrupt, Gone, Slow:
	default:
		return
	}
	fl, ok := s.take(n, int32(f.Chunk))
	if !ok {
		return // it was not planned, or is reported twice
	}
	t.stats.Failures[f.Why]++
	if fl.source < 0 {
		n.credit = max(1, n.credit/2)
		return
	}
	from := s.nodes[fl.source]
	if from.gone {
		return
	}
	n.avoid[from.index] = now.Add(avoided)
	if f.Why == Corrupt {
		n.avoid[from.index] = now.Add(time.Hour)
	}
	from.slots = max(1, from.slots/2)
	from.unhappy[n.id] = true
	if len(from.unhappy) >= 2 && len(from.unhappy)*2 > len(from.happy) {
		from.bench = now.Add(benched)
	}
}

// plan picks up to want tasks for n.
func (t *Tracker) plan(now time.Time, s *swarm, n *node, want int) []Task {
	var out []Task
	starved := now.Sub(n.fed) > s.wait(3, max(hungry, 4*s.pace()))
	for len(out) < want {
		c, from, ok := t.pick(now, s, n, starved && len(out) == 0)
		if !ok {
			break
		}
		fl := flight{chunk: c, source: -1, since: now}
		task := Task{Chunk: int(c)}
		if from == nil {
			s.busy++
			t.stats.OriginTasks++
			t.stats.OriginBytes += s.bytes[c]
		} else {
			from.uses++
			fl.source = from.index
			task.Peer = from.addr
			t.stats.PeerTasks++
			t.stats.PeerBytes += s.bytes[c]
			if from.rack != n.rack {
				t.stats.CrossTasks++
			}
		}
		if from == nil || from.rack != n.rack {
			s.chunks[c].pending = append(s.chunks[c].pending, pending{n.rack, n.index, from == nil, now})
		}
		n.flights = append(n.flights, fl)
		out = append(out, task)
	}
	return out
}

// wait is so many usual transfers, but at least least.
func (s *swarm) wait(transfers time.Duration, least time.Duration) time.Duration {
	if s.usual == 0 {
		return patient
	}
	return min(max(transfers*s.usual, least), overdue/2)
}

// pick finds the chunk that fewest hold among some of those that n misses, and
// who sends it: a node of its rack, else of another, else the origin (nil).
// Each chunk comes from the origin once and into a rack once, as long as nobody
// starves.
func (t *Tracker) pick(now time.Time, s *swarm, n *node, starved bool) (best int32, from *node, ok bool) {
	if len(n.missing) == 0 {
		return 0, nil, false
	}
	rarest := int(^uint(0) >> 1)
	at := t.rand.IntN(len(n.missing))
	for range min(len(n.missing), probes+len(n.flights)) {
		c := n.missing[at]
		if at++; at == len(n.missing) {
			at = 0
		}
		k := &s.chunks[c]
		if len(k.holders) >= rarest || n.flying(c) {
			continue
		}
		src, open := t.source(now, s, n, c, starved)
		if open {
			best, from, ok, rarest = c, src, true, len(k.holders)
		}
	}
	if !ok {
		return 0, nil, false
	}
	if from == nil || from.rack != n.rack {
		// Paid for only now: looking is free.
		if from == nil && !t.origin.take(now, s.bytes[best]) || !n.rack.in.take(now, s.bytes[best]) {
			return 0, nil, false
		}
	}
	return best, from, true
}

func (n *node) flying(c int32) bool {
	for _, f := range n.flights {
		if f.chunk == c {
			return true
		}
	}
	return false
}

// source says who may send chunk c to n now; nil is the origin.
func (t *Tracker) source(now time.Time, s *swarm, n *node, c int32, starved bool) (*node, bool) {
	k := &s.chunks[c]
	for i := range k.racks {
		if k.racks[i].rack != n.rack {
			continue
		}
		src, held := t.sample(now, s, n, c, &k.racks[i].nodes)
		if src != nil {
			return src, true
		}
		if held && !starved {
			return nil, false // its rack will have a slot soon
		}
		break
	}
	fromOrigin := false
	for _, p := range k.pending {
		if now.Sub(p.since) > s.wait(4, 5*time.Second) {
			continue // whoever it is given to may keep it back on purpose
		}
		if p.rack == n.rack && !starved {
			return nil, false // on its way into the rack
		}
		fromOrigin = fromOrigin || p.origin
	}
	src, held := t.sample(now, s, n, c, &k.holders)
	if src != nil {
		return src, true
	}
	if (held || fromOrigin) && !starved || float64(s.busy) >= s.slots {
		return nil, false
	}
	return nil, true
}

// sample looks at some of a list of holders and returns the one with the most
// room, and whether any of them may ever be asked. It drops from the list who
// does not hold the chunk any more.
func (t *Tracker) sample(now time.Time, s *swarm, n *node, c int32, list *[]int32) (best *node, held bool) {
	l := *list
	if len(l) == 0 {
		return nil, false
	}
	room := 0.0
	at := t.rand.IntN(len(l))
	for looked := 0; looked < samples && len(l) > 0; {
		if at >= len(l) {
			at = 0
		}
		h := s.nodes[l[at]]
		if h.gone || !h.has(c) {
			l[at] = l[len(l)-1]
			l = l[:len(l)-1]
			continue
		}
		looked++
		at++
		if h == n || now.Before(h.bench) {
			continue
		}
		if until, ok := n.avoid[h.index]; ok {
			if now.Before(until) {
				continue
			}
			delete(n.avoid, h.index)
		}
		held = true
		if r := h.slots - float64(h.uses); r >= 1 && r > room {
			best, room = h, r
		}
		if looked >= len(l) {
			break
		}
	}
	*list = l
	return best, held
}
