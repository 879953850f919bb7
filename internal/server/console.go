package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"smelt/internal/api"
	"smelt/internal/console"
	"smelt/internal/web"
	"smelt/inventory"
)

// A console may print anything, passwords included: operators alone read it.

func consoleState(st console.State) api.ConsoleState {
	return api.ConsoleState{Is: st.Is, Since: st.Since, Why: st.Why, Next: st.Next}
}

func (s *Server) consoleState(id inventory.NodeID) api.ConsoleState {
	if s.Console == nil {
		return api.ConsoleState{Is: "none", Why: "this server records no consoles"}
	}
	v := consoleState(s.Console.State(id))
	v.Typing = s.typists.who(id, s.Now())
	return v
}

// consoleText makes entries of a recording wire entries. What a sequence of
// entries means as text depends on those before, so one of these goes through
// them all.
type consoleText struct {
	filter console.Filter
	raw    bool
}

func (c *consoleText) entry(e console.Entry) api.ConsoleEntry {
	out := api.ConsoleEntry{Seq: e.Seq, At: e.At, Mark: e.Kind == console.Mark}
	if out.Mark {
		c.filter = console.Filter{}
		out.Text = e.Text()
		return out
	}
	out.Text = string(c.filter.Append(nil, e.Data))
	if c.raw {
		out.Raw = e.Data
	}
	return out
}

// consoleAsk reads what of a console is asked for.
func (s *Server) consoleAsk(r *http.Request) (after uint64, since time.Time, raw bool, err error) {
	q := r.URL.Query()
	for _, v := range []string{r.Header.Get("Last-Event-ID"), q.Get("after")} {
		if v != "" {
			if after, err = strconv.ParseUint(v, 10, 64); err != nil {
				return 0, since, false, errors.New("Last-Event-ID and after are numbers of entries")
			}
			break
		}
	}
	if v := q.Get("since"); v != "" {
		d, err := time.ParseDuration(v)
		if err != nil || d <= 0 {
			return 0, since, false, fmt.Errorf("since %q: want a duration such as 10m", v)
		}
		since = s.Now().Add(-d)
	}
	return after, since, q.Get("raw") == "yes", nil
}

// getConsole answers with the recording, or streams it and what comes next.
func (s *Server) getConsole(w http.ResponseWriter, r *http.Request, by who) {
	id := nodeID(r)
	if _, err := s.Store.Node(r.Context(), id); err != nil {
		s.nodeFailure(w, r, err)
		return
	}
	after, since, raw, err := s.consoleAsk(r)
	if err != nil {
		s.fail(w, http.StatusBadRequest, err.Error(), "")
		return
	}
	if s.Console == nil {
		s.noConsole(w, id)
		return
	}
	if strings.Contains(r.Header.Get("Accept"), "text/event-stream") {
		s.followConsole(w, r, by, id, after, since, raw)
		return
	}
	entries, err := s.Console.Log(id, after)
	if errors.Is(err, console.ErrNone) {
		s.noConsole(w, id)
		return
	}
	if err != nil {
		s.failure(w, r, err)
		return
	}
	log := api.ConsoleLog{APIVersion: api.Version, Kind: "ConsoleLog", Node: id, State: s.consoleState(id), Items: []api.ConsoleEntry{}}
	text := consoleText{raw: raw}
	for _, e := range entries {
		if out := text.entry(e); !e.At.Before(since) {
			log.Items = append(log.Items, out)
		}
	}
	s.json(w, http.StatusOK, log)
}

func (s *Server) noConsole(w http.ResponseWriter, id inventory.NodeID) {
	s.fail(w, http.StatusNotFound, fmt.Sprintf("nothing here opens a console of %s: what switches it has no serial port", id),
		"smelt node rescue "+string(id)+" lets you in by ssh; a monitor and a keyboard do, too")
}

// consolePart is the last screenful of a node's console for its page, nil for
// who may not read it.
func (s *Server) consolePart(id inventory.NodeID, by who) *web.Console {
	if by.role < Operator || s.Console == nil {
		return nil
	}
	entries, err := s.Console.Log(id, 0)
	if errors.Is(err, console.ErrNone) {
		return nil
	}
	if err != nil {
		s.Log.Error("console", "node", id, "err", err)
	}
	if len(entries) == 0 && s.Console.State(id).Is == "none" {
		return nil // its controller might have had one, and has none
	}
	c := &web.Console{Shot: s.Power[id] != nil && s.Power[id].HasScreen()}
	if n := len(entries); n > 0 {
		c.Seq = entries[n-1].Seq
	}
	first, size := len(entries), 0
	for first > 0 && size < consoleRead {
		first--
		size += len(entries[first].Data)
	}
	lines := console.Lines(entries[first:])
	for _, l := range lines[max(0, len(lines)-consoleShown):] {
		c.Lines = append(c.Lines, l.Text)
	}
	return c
}

// What of a console a page has.
const (
	consoleShown = 40       // lines
	consoleRead  = 32 << 10 // bytes in which they are looked for
)

// followConsole streams a console. It follows before it reads what was
// recorded, so that nothing falls in between.
func (s *Server) followConsole(w http.ResponseWriter, r *http.Request, by who, id inventory.NodeID, after uint64, since time.Time, raw bool) {
	feed, err := s.Console.Follow(id)
	if err != nil {
		s.noConsole(w, id)
		return
	}
	defer func() { feed.Close() }()
	send, end := s.stream(w, r, by)
	if send == nil {
		return
	}
	defer end()
	text := consoleText{raw: raw}
	entry := func(e console.Entry) bool {
		if e.Seq != 0 && e.Seq <= after { // 0: the disk is full, and it is only here
			return true
		}
		after = max(after, e.Seq)
		out := text.entry(e)
		b, err := json.Marshal(out)
		return err != nil || e.At.Before(since) || send("id: %d\nevent: %s\ndata: %s\n\n", e.Seq, api.StreamConsole, b)
	}
	state := func() bool {
		b, err := json.Marshal(s.consoleState(id))
		return err == nil && send("event: %s\ndata: %s\n\n", api.StreamState, b)
	}
	past := func() bool {
		entries, err := s.Console.Log(id, after)
		if err != nil {
			return false
		}
		if len(entries) > 0 && entries[0].Seq <= after {
			after = 0 // the recording was begun anew
		}
		for _, e := range entries {
			if !entry(e) {
				return false
			}
		}
		return state()
	}
	if !past() {
		return
	}
	quiet := time.NewTicker(keepalive)
	defer quiet.Stop()
	for {
		select {
		case n, ok := <-feed.C:
			switch {
			case !ok: // too slow: what was missed is in the recording
				if feed, err = s.Console.Follow(id); err != nil || !past() {
					return
				}
			case n.Entry != nil && !entry(*n.Entry), n.State != nil && !state():
				return
			}
		case <-quiet.C:
			if !send(": still here\n\n") {
				return
			}
		case <-s.done:
			return
		case <-r.Context().Done():
			return
		}
	}
}

// A typist types into a console now.
type typist struct {
	session string
	by      who
	since   time.Time
	last    time.Time
	bytes   int
	end     *time.Timer
}

// typists are who types into which machine.
type typists struct {
	mu   sync.Mutex
	byID map[inventory.NodeID]*typist
}

const (
	typingIdle = 5 * time.Minute // a session without a key pressed is over
	maxInput   = 16 << 10
)

func (t *typists) who(id inventory.NodeID, now time.Time) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := t.byID[id]; p != nil && now.Sub(p.last) < typingIdle {
		return p.by.actor()
	}
	return ""
}

// postConsole types. That somebody began to, and ended, is an event; what they
// typed is not: it may be a password.
func (s *Server) postConsole(w http.ResponseWriter, r *http.Request, by who) {
	var in api.ConsoleInput
	if !s.read(w, r, maxInput, &in) {
		return
	}
	id := nodeID(r)
	if _, err := s.Store.Node(r.Context(), id); err != nil {
		s.nodeFailure(w, r, err)
		return
	}
	if s.Console == nil {
		s.noConsole(w, id)
		return
	}
	if !actionID.MatchString(in.Session) {
		s.fail(w, http.StatusUnprocessableEntity, "a typing session needs a name of 1 to 64 letters, digits, '-', '_' and '.'", "")
		return
	}
	if in.End {
		s.typingEnds(r.Context(), id, in.Session, "ended")
		w.WriteHeader(http.StatusNoContent)
		return
	}
	if st := s.Console.State(id); st.Is != "open" {
		s.consoleClosed(w, id, st)
		return
	}
	other, err := s.typing(r.Context(), id, by, in)
	if err != nil {
		s.failure(w, r, err)
		return
	}
	if other != "" {
		s.fail(w, http.StatusConflict, fmt.Sprintf("%s types into the console of %s now", other, id), "smelt node console "+string(id)+" --take")
		return
	}
	switch err := s.Console.Type(r.Context(), id, in.Data); {
	case errors.Is(err, console.ErrNone):
		s.noConsole(w, id)
	case errors.Is(err, console.ErrClosed):
		s.consoleClosed(w, id, s.Console.State(id))
	case err != nil:
		s.fail(w, http.StatusBadGateway, fmt.Sprintf("console of %s: %v", id, err), "type again")
	default:
		w.WriteHeader(http.StatusNoContent)
	}
}

func (s *Server) consoleClosed(w http.ResponseWriter, id inventory.NodeID, st console.State) {
	why, next := "", "smelt node console "+string(id)+" --log"
	if st.Why != "" {
		why = ": " + st.Why
	}
	if !st.Next.IsZero() {
		next = "it is opened again " + st.Next.Local().Format(time.TimeOnly)
	}
	s.fail(w, http.StatusConflict, fmt.Sprintf("the console of %s is not open (%s%s): what is typed would be lost", id, st.Is, why), next)
}

// typing makes in's session the one that types, or says who does. Nobody types
// unless it can be noted who does.
func (s *Server) typing(ctx context.Context, id inventory.NodeID, by who, in api.ConsoleInput) (other string, err error) {
	t, now := &s.typists, s.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.byID[id]
	if p != nil && (p.session != in.Session || p.by != by) && now.Sub(p.last) < typingIdle && !in.Take {
		return p.by.actor(), nil
	}
	if p == nil || p.session != in.Session || p.by != by {
		evidence := map[string]string{"session": in.Session}
		if p != nil {
			p.end.Stop()
			evidence["took it from"] = p.by.actor()
		}
		if err := s.Conductor.Record(ctx, id, by.actor(), "types into its console", evidence); err != nil {
			return "", err
		}
		p = &typist{session: in.Session, by: by, since: now}
		p.end = time.AfterFunc(typingIdle, func() {
			s.typingEnds(context.Background(), id, in.Session, "nothing was typed for "+typingIdle.String())
		})
		if t.byID == nil {
			t.byID = map[inventory.NodeID]*typist{}
		}
		t.byID[id] = p
	}
	p.last = now
	p.bytes += len(in.Data)
	p.end.Reset(typingIdle)
	return "", nil
}

func (s *Server) typingEnds(ctx context.Context, id inventory.NodeID, session, why string) {
	t := &s.typists
	t.mu.Lock()
	p := t.byID[id]
	if p == nil || p.session != session {
		t.mu.Unlock()
		return
	}
	p.end.Stop()
	delete(t.byID, id)
	t.mu.Unlock()
	select {
	case <-s.done:
		return
	default:
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), bodyTime)
	defer cancel()
	err := s.Conductor.Record(ctx, id, p.by.actor(), "stops typing into its console: "+why, map[string]string{
		"session": session, "lasted": p.last.Sub(p.since).Round(time.Second).String(), "bytes": strconv.Itoa(p.bytes),
	})
	if err != nil {
		s.Log.Error("the end of a typing session is not noted", "node", id, "by", p.by.actor(), "err", err)
	}
}
