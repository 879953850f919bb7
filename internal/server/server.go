package server

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"smelt/internal/api"
	"smelt/internal/console"
	"smelt/internal/convert"
	"smelt/internal/locate"
	"smelt/internal/store"
	"smelt/internal/web"
	"smelt/inventory"
	"smelt/power"
)

// Conductor is what the server asks of *convert.Conductor.
type Conductor interface {
	Enrol(context.Context, convert.Enrolment) (convert.Session, error)
	Renew(context.Context, store.Agent) (convert.Session, error)
	Order(context.Context, store.Agent) (convert.Order, error)
	Changed(inventory.NodeID) <-chan struct{}
	Inspected(context.Context, store.Agent, convert.Inspection) error
	Finished(context.Context, store.Agent, convert.Result) error
	UsePermit(ctx context.Context, a store.Agent, id string) error
	Progress(a store.Agent, order string, done float64, doing string, rate float64)
	Live(inventory.NodeID) convert.Live
	Submit(context.Context, store.Intent) (store.IntentResult, error)
	Stop(ctx context.Context, on bool, actor, reason string) error
	Stopped() bool
	Levels() []convert.Level
	BMCs(context.Context) ([]convert.BMC, error)
	Learned(context.Context) ([]convert.Learned, error)
	Record(ctx context.Context, node inventory.NodeID, actor, reason string, evidence map[string]string) error
	SitePower() inventory.SitePower
	HallPower() convert.HallPower
	CanGive(need float64, within time.Duration) convert.CanGive
}

var _ Conductor = (*convert.Conductor)(nil)

// Config wires a Server. Every field is needed unless it says otherwise.
type Config struct {
	Conductor Conductor
	Store     *store.Store
	Images    func() ([]api.Image, error) // nil: the site has no image store
	Log       *slog.Logger
	Version   string
	Site      string // its name
	Lab       bool

	// What an agent is told of this site.
	AgentURL string            // https URL of the agent listener
	ImageURL string            // http URL of the image store
	Pin      string            // SHA-256 of the agent listener's SPKI, hexadecimal
	SiteKey  ed25519.PublicKey // permits and manifests verify with it

	Rescue Rescue // who may log in to a machine in rescue
	Swarm  Swarm  // how nodes share images; the zero Swarm has each fetch from ImageURL

	Console *console.Recorder                    // nil: no console is recorded
	Locate  *locate.Locator                      // nil: nothing is lit
	Power   map[inventory.NodeID]*power.Verified // for sensors, event logs, pictures; may be nil

	Boot    Boot                   // the boot service; the zero Boot has none
	Metrics []prometheus.Collector // more of them for /metrics; may be nil

	Now func() time.Time // nil: time.Now
}

// Rescue is what the agent of a machine in rescue is told.
type Rescue struct {
	Keys   []string // public ssh keys
	Tools  string   // URL of a static busybox
	Digest string   // its SHA-256, hexadecimal
}

// Boot is what the boot service tells. Each function may be nil.
type Boot struct {
	Trace     func([]inventory.MAC) []api.BootEvent // what it last told the machines with these addresses, oldest first
	Networks  func() []api.NetworkView
	Sightings func() []api.Sighting // the machine heard last first; with a verdict where no node need be known for it
}

// Server answers agents and people. It holds no state that a restart loses but
// the sessions of browsers and the progress bars.
type Server struct {
	Config
	pages    *web.Pages
	sessions sessions
	progress progress
	view     view
	swarms   swarmMembers
	typists  typists
	devices  devices
	streams  chan struct{} // one element a running event stream
	enrols   chan struct{} // one element a running enrolment
	done     chan struct{}
	closing  sync.Once
}

// New checks c and returns a server that is ready at once.
func New(c Config) (*Server, error) {
	if c.Conductor == nil || c.Store == nil || c.Log == nil || c.Site == "" {
		return nil, errors.New("server: conductor, store, log and site name are needed")
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	pages, err := web.New()
	if err != nil {
		return nil, err
	}
	return &Server{
		Config: c, pages: pages,
		sessions: sessions{byHash: map[string]session{}},
		progress: progress{last: map[inventory.NodeID]stamped{}},
		streams:  make(chan struct{}, maxStreams),
		enrols:   make(chan struct{}, maxEnrols),
		done:     make(chan struct{}),
	}, nil
}

// Close ends the long polls and event streams, so that http.Server.Shutdown
// does not wait for them: give it to RegisterOnShutdown.
func (s *Server) Close() { s.closing.Do(func() { close(s.done) }) }

// Limits. Sizes are what a large machine really sends, times four or more.
const (
	maxAction    = 64 << 10
	maxInventory = 4 << 20
	maxProgress  = 4 << 10
	maxResult    = 64 << 20 // a 24 h burn-in with samples
	maxChunkMap  = 1 << 20  // one bit a 4 MiB chunk: 32 TiB
	maxStreams   = 256
	maxEnrols    = 64

	bodyTime  = 30 * time.Second // to send a request's body
	pollTime  = 25 * time.Second // an agent's long poll
	submitFor = 8 * time.Second  // an action's result, before 202
)

// read decodes a JSON body of at most max bytes into v. It answers the request
// itself when it cannot.
func (s *Server) read(w http.ResponseWriter, r *http.Request, limit int64, v any) bool {
	// A client that sends a byte a minute must not hold a connection; a test's
	// recorder has no deadlines, which is fine.
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTime))
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, limit))
	err := dec.Decode(v)
	if err == nil {
		if _, err = dec.Token(); errors.Is(err, io.EOF) {
			return true
		}
		err = errors.New("more than one JSON value")
	}
	var big *http.MaxBytesError
	if errors.As(err, &big) {
		s.fail(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("at most %d bytes are taken here", limit), "")
		return false
	}
	s.fail(w, http.StatusBadRequest, "the body is no JSON of this request: "+err.Error(), "see "+api.PathOpenAPI)
	return false
}

func (s *Server) json(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		s.Log.Error("answer does not marshal", "type", fmt.Sprintf("%T", v), "err", err)
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(b)
}

// fail answers with a Problem (RFC 9457).
func (s *Server) fail(w http.ResponseWriter, status int, detail, next string) {
	b, err := json.Marshal(api.Problem{Title: http.StatusText(status), Status: status, Detail: detail, Next: next})
	if err != nil {
		panic("server: a problem does not marshal: " + err.Error()) // plain strings always do
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	w.Write(b)
}

// failure answers for an error of the store or the conductor. What is not
// known to be harmless is logged, not shown.
func (s *Server) failure(w http.ResponseWriter, r *http.Request, err error) {
	switch {
	case errors.Is(err, store.ErrNotFound):
		s.fail(w, http.StatusNotFound, "there is no such thing here", "smelt node list")
	case errors.Is(err, convert.ErrRefused), errors.Is(err, store.ErrConflict), errors.Is(err, store.ErrUsed):
		s.fail(w, http.StatusConflict, err.Error(), "look at the node and decide anew")
	case errors.Is(err, store.ErrFenced):
		s.fail(w, http.StatusServiceUnavailable, err.Error(), "ask the other controller")
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		s.fail(w, http.StatusServiceUnavailable, "the server is busy or going down", "ask again")
	default:
		s.Log.Error("request failed", "method", r.Method, "path", r.URL.Path, "err", err)
		s.fail(w, http.StatusInternalServerError, "the server could not do this; its log says why", "journalctl -u smelt")
	}
}
