package pxe

import (
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// counters is a family of numbers that only rise, told apart by labels. Labels
// are words of ours and never what a machine sent: nobody outside makes a new
// one.
type counters struct {
	m sync.Map // labels joined by NUL -> *atomic.Uint64
}

func (c *counters) add(n uint64, labels ...string) {
	key := strings.Join(labels, "\x00")
	v, ok := c.m.Load(key)
	if !ok {
		v, _ = c.m.LoadOrStore(key, new(atomic.Uint64))
	}
	v.(*atomic.Uint64).Add(n)
}

func (c *counters) snapshot() []Count {
	byKey := map[string]uint64{}
	c.m.Range(func(k, v any) bool {
		byKey[k.(string)] = v.(*atomic.Uint64).Load()
		return true
	})
	out := make([]Count, 0, len(byKey))
	for _, k := range slices.Sorted(maps.Keys(byKey)) {
		out = append(out, Count{strings.Split(k, "\x00"), byKey[k]})
	}
	return out
}

// stats is what the server counts while it runs. Decisions about machines are
// counted where they are recorded; whoever sends or drops bytes counts those.
type stats struct {
	dhcp      counters // network, type: messages heard and sent
	dropped   counters // protocol (dhcp, tftp, http), reason: requests that got no decision
	tftp      counters // result: sent, failed, refused, not found
	tftpBytes atomic.Uint64
	tftpAgain atomic.Uint64 // blocks sent once more
	files     counters      // result: boot files over HTTP
	fileBytes atomic.Uint64
	scripts   counters // action: scripts and orders answered

	mu      sync.Mutex
	kernels map[string]*Histogram // by firmware
}

// Stats is what the server did since it started.
type Stats struct {
	DHCP      []Count // network; discover, request, ... as heard, offer, ack, nak as sent; of DHCPv6 solicit6, request6, ..., advertise6, reply6
	Dropped   []Count // protocol, reason
	TFTP      []Count // result
	TFTPBytes uint64
	TFTPAgain uint64  // blocks sent once more
	Files     []Count // result
	FileBytes uint64
	Scripts   []Count              // action
	Kernels   map[string]Histogram // by Machine.Firmware: seconds from its first DISCOVER to its kernel
	Pools     []Pool
}

// Count is one number of a family.
type Count struct {
	Labels []string
	N      uint64
}

// Pool is how full the address pool of a network is.
type Pool struct {
	Network string
	Mode    Mode
	Used    int // given or promised
	Size    int
}

// Histogram counts durations by upper bound.
type Histogram struct {
	Bounds []float64 // seconds
	Counts []uint64  // at most Bounds[i]; not cumulative, one more than Bounds
	Sum    float64
}

// A PXE ROM takes 4 s before its first try is repeated, iPXE without our
// router advertisement 18 s; a machine on a slow or busy hall takes minutes.
var kernelBounds = []float64{1, 2, 5, 10, 15, 20, 30, 45, 60, 120, 300}

func (s *stats) kernel(firmware string, after time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kernels == nil {
		s.kernels = map[string]*Histogram{}
	}
	h := s.kernels[firmware]
	if h == nil {
		h = &Histogram{Bounds: kernelBounds, Counts: make([]uint64, len(kernelBounds)+1)}
		s.kernels[firmware] = h
	}
	i, _ := slices.BinarySearch(kernelBounds, after.Seconds())
	h.Counts[i]++
	h.Sum += after.Seconds()
}

// bootTime is the longest a boot may take to be measured as one: a machine that
// takes longer waited for a person, or for its turn.
const bootTime = 10 * time.Minute

// boot measures h from its first DISCOVER to the answer that names a kernel:
// the last thing a loader asks for before it fetches one, or the first thing
// that the kernel's own system asks. It is called with r.mu held.
func (r *recorder) boot(h *history, e Event) {
	switch {
	case (e.Kind == "dhcp discover" || e.Kind == "dhcp6 solicit") && e.Machine.Stage == AskAddress:
		// Firmware repeats its question after 4, 8, 16 and 32 s (PXE 2.1 section
		// 2.2.3); what comes later, or after iPXE, is another start.
		again := h.firmware != "" && e.At.Sub(h.discover) < time.Minute && (e.Machine.IPXE || !h.ipxe)
		if !again {
			h.asked, h.firmware = e.At, e.Machine.Firmware()
		}
		h.discover, h.ipxe = e.At, e.Machine.IPXE
	case (e.Kind == "script" || e.Kind == "orders") && h.firmware != "":
		if took := e.At.Sub(h.asked); e.Answer == Kernel.String() && took <= bootTime {
			r.stats.kernel(h.firmware, took)
		}
		h.firmware = ""
	}
}

// Stats returns what the server did since it started.
func (s *Server) Stats() Stats {
	c := &s.recorder.stats
	out := Stats{
		DHCP: c.dhcp.snapshot(), Dropped: c.dropped.snapshot(),
		TFTP: c.tftp.snapshot(), TFTPBytes: c.tftpBytes.Load(), TFTPAgain: c.tftpAgain.Load(),
		Files: c.files.snapshot(), FileBytes: c.fileBytes.Load(), Scripts: c.scripts.snapshot(),
		Kernels: map[string]Histogram{},
	}
	c.mu.Lock()
	for k, h := range c.kernels {
		out.Kernels[k] = Histogram{h.Bounds, slices.Clone(h.Counts), h.Sum}
	}
	c.mu.Unlock()
	now := time.Now()
	for _, n := range s.networks {
		used, size := n.leases.usage(now)
		out.Pools = append(out.Pools, Pool{n.Name, n.Mode, used, size})
	}
	return out
}

// usage is how many addresses of the pool nobody else may have now.
func (l *leases) usage(now time.Time) (used, size int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for a, e := range l.byAddr {
		if l.inPool(a) && e.held(now) {
			used++
		}
	}
	if l.from.IsValid() {
		size = distance(l.from, l.to) + 1
	}
	return used, size
}

// counting counts the bytes of an answer on their way, and leaves the way to
// sendfile open.
type counting struct {
	http.ResponseWriter
	n *atomic.Uint64
}

func (c counting) Write(b []byte) (int, error) {
	n, err := c.ResponseWriter.Write(b)
	c.n.Add(uint64(n))
	return n, err
}

// ReadFrom implements io.ReaderFrom, which net/http looks for.
func (c counting) ReadFrom(r io.Reader) (int64, error) {
	n, err := io.Copy(c.ResponseWriter, r)
	c.n.Add(uint64(n))
	return n, err
}

// Unwrap serves http.ResponseController.
func (c counting) Unwrap() http.ResponseWriter { return c.ResponseWriter }
