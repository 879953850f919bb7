package server

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"smelt/internal/api"
	"smelt/inventory"
)

// progress is the last word of each agent. A stream looks at it once a second,
// so that progress is coalesced however often agents speak.
type progress struct {
	mu   sync.Mutex
	n    uint64 // rises with each put
	last map[inventory.NodeID]stamped
}

type stamped struct {
	n uint64
	api.NodeProgress
}

func (p *progress) put(np api.NodeProgress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.n++
	p.last[np.Node] = stamped{p.n, np}
}

func (p *progress) drop(node inventory.NodeID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.last, node)
}

// since returns what is newer than stamp n, and the newest stamp.
func (p *progress) since(n uint64) ([]api.NodeProgress, uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.n == n {
		return nil, n
	}
	var out []api.NodeProgress
	for _, s := range p.last {
		if s.n > n {
			out = append(out, s.NodeProgress)
		}
	}
	return out, p.n
}

const (
	keepalive  = 15 * time.Second // shorter than the idle time of common proxies
	writeTime  = 10 * time.Second // a reader that takes longer for one message is dropped
	eventBatch = 200
)

// getEvents streams events from the store, each reader at its own pace: what a
// slow one has not read yet waits in the database, not in memory.
func (s *Server) getEvents(w http.ResponseWriter, r *http.Request, by who) {
	after, err := s.resume(r)
	if err != nil {
		s.fail(w, http.StatusBadRequest, "Last-Event-ID and after are sequence numbers", "")
		return
	}
	send, end := s.stream(w, r, by)
	if send == nil {
		return
	}
	defer end()
	second := time.NewTicker(time.Second)
	defer second.Stop()
	quiet := 0
	_, stamp := s.progress.since(0)
	for {
		changed := s.Store.Changed()
		events, err := s.Store.EventsAfter(r.Context(), after, eventBatch)
		if err != nil {
			return // the reader resumes after what it got
		}
		for _, e := range events {
			b, err := json.Marshal(e)
			if err != nil || !send("id: %d\nevent: %s\ndata: %s\n\n", e.Seq, api.StreamEvent, b) {
				return
			}
			after, quiet = e.Seq, 0
		}
		if len(events) == eventBatch {
			continue
		}
		select {
		case <-changed:
		case <-second.C:
			var news []api.NodeProgress
			news, stamp = s.progress.since(stamp)
			for _, p := range news {
				b, err := json.Marshal(p)
				if err != nil || !send("event: %s\ndata: %s\n\n", api.StreamProgress, b) {
					return
				}
				quiet = 0
			}
			if quiet++; time.Duration(quiet)*time.Second >= keepalive {
				if quiet = 0; !send(": still here\n\n") {
					return
				}
			}
		case <-s.done:
			return
		case <-r.Context().Done():
			return
		}
	}
}

// stream begins a stream of events, of which there is a bounded number. send is
// nil when there is none: the request is answered then. send tells whether the
// reader is still there, and is still who he was: a token that is taken away
// ends its streams, too, at the next keepalive.
func (s *Server) stream(w http.ResponseWriter, r *http.Request, by who) (send func(format string, args ...any) bool, end func()) {
	select {
	case s.streams <- struct{}{}:
	default:
		w.Header().Set("Retry-After", "5")
		s.fail(w, http.StatusServiceUnavailable, fmt.Sprintf("%d event streams are open already", maxStreams), "close one")
		return nil, nil
	}
	end = func() { <-s.streams }
	rc := http.NewResponseController(w)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no") // nginx would keep events back
	w.WriteHeader(http.StatusOK)
	checked := s.Now()
	send = func(format string, args ...any) bool {
		if now := s.Now(); now.Sub(checked) >= keepalive {
			if is, err := s.asks(r); err != nil || is.role < by.role {
				return false
			}
			checked = now
		}
		_ = rc.SetWriteDeadline(time.Now().Add(writeTime)) // a recorder in tests has none
		_, err := fmt.Fprintf(w, format, args...)
		return err == nil && rc.Flush() == nil
	}
	if !send("retry: 2000\n\n") {
		end()
		return nil, nil
	}
	return send, end
}

// resume is where a stream begins: after the reader's last event, or now.
func (s *Server) resume(r *http.Request) (uint64, error) {
	for _, v := range []string{r.Header.Get("Last-Event-ID"), r.URL.Query().Get("after")} {
		if v != "" {
			return strconv.ParseUint(v, 10, 64)
		}
	}
	return s.Store.LastSeq(r.Context())
}
