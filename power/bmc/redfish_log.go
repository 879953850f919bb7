package bmc

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"smelt/power"
)

const (
	maxEntries = 300 // returned
	maxPages   = 8   // read of one log
)

// logs are the names of the logs that tell of the hardware, best first: what
// the vendors call it (OpenBMC and IPMI SEL; iLO's IML; iDRAC's Sel; Lenovo's
// PlatformLog and Supermicro's Log1). A log of every web access would bury them.
var logs = []string{"sel", "iml", "eventlog", "platformlog", "log1"}

// EventLog reads the log of the system, and the one of its manager. What both
// say is said once.
func (r *redfish) EventLog(ctx context.Context) ([]power.LogEntry, error) {
	var out []power.LogEntry
	err := r.with(ctx, func(s *session) error {
		sys, err := s.system(ctx)
		if err != nil {
			return err
		}
		services := []link{sys.LogServices}
		for _, m := range sys.Links.ManagedBy {
			var manager struct{ LogServices link }
			if _, err := s.fetch(ctx, m, &manager); err != nil {
				return err
			}
			services = append(services, manager.LogServices)
		}
		seen := map[string]bool{}
		found := false
		for _, l := range services {
			var all struct{ Members []link }
			if ok, err := s.fetch(ctx, l, &all); err != nil {
				return err
			} else if !ok || len(all.Members) == 0 || seen[l.ID] {
				continue
			}
			seen[l.ID] = true
			var service struct{ Entries link }
			if ok, err := s.fetch(ctx, best(all.Members), &service); err != nil {
				return err
			} else if !ok || service.Entries.ID == "" || seen[service.Entries.ID] {
				continue
			}
			found, seen[service.Entries.ID] = true, true
			entries, err := s.entries(ctx, service.Entries)
			if err != nil {
				return err
			}
			out = append(out, entries...)
		}
		if !found {
			return fmt.Errorf("event log: neither the system nor its manager has one: %w", power.ErrUnsupported)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(out, func(a, b power.LogEntry) int { return a.At.Compare(b.At) })
	return out[max(0, len(out)-maxEntries):], nil
}

func best(services []link) link {
	rank := func(l link) int {
		if i := slices.Index(logs, strings.ToLower(path.Base(l.ID))); i >= 0 {
			return i
		}
		return len(logs)
	}
	return slices.MinFunc(services, func(a, b link) int { return cmp.Compare(rank(a), rank(b)) })
}

// A page is a part of the Entries of a LogService.
type page struct {
	Members []json.RawMessage
	Count   int    `json:"Members@odata.count"`
	Next    string `json:"Members@odata.nextLink"`
}

// entries are the newest of a log. Services begin with the oldest or with the
// newest, and give all, or a page and a link to the next.
func (s *session) entries(ctx context.Context, at link) ([]power.LogEntry, error) {
	var p page
	if _, err := s.getLimited(ctx, at.ID, &p, maxLog); err != nil {
		return nil, err
	}
	if p.Next != "" && p.Count > maxEntries && s.root.Features.TopSkip && ascends(p.Members) {
		var tail page
		ref := fmt.Sprintf("%s?$skip=%d", at.ID, p.Count-maxEntries)
		if _, err := s.getLimited(ctx, ref, &tail, maxLog); err == nil && len(tail.Members) > 0 {
			p = tail
		}
	}
	var all []json.RawMessage
	for n := 1; ; n++ {
		all = append(all, p.Members...)
		if p.Next == "" || n == maxPages || len(all) > 20*maxEntries {
			break
		}
		next := p.Next
		p = page{}
		if _, err := s.getLimited(ctx, next, &p, maxLog); err != nil {
			return nil, err
		}
	}
	if !expanded(all) {
		return s.linked(ctx, at, all)
	}
	var out []power.LogEntry
	for _, b := range all {
		if e, ok := logEntry(b); ok {
			out = append(out, e)
		}
	}
	return out, nil
}

// linked reads entries that came as links.
func (s *session) linked(ctx context.Context, at link, links []json.RawMessage) ([]power.LogEntry, error) {
	var bodies []json.RawMessage
	if s.root.Features.Expand.NoLinks {
		var err error
		if bodies, err = s.members(ctx, at); err != nil {
			return nil, err
		}
	} else {
		// The first and the last: which end is the newest is in none of them.
		half := maxMembers / 2
		if len(links) > maxMembers {
			links = slices.Concat(links[:half], links[len(links)-half:])
		}
		for _, b := range links {
			var l link
			var body json.RawMessage
			_ = json.Unmarshal(b, &l) // without an id it is not fetched
			if ok, err := s.fetch(ctx, l, &body); err != nil {
				return nil, err
			} else if ok {
				bodies = append(bodies, body)
			}
		}
	}
	var out []power.LogEntry
	for _, b := range bodies {
		if e, ok := logEntry(b); ok {
			out = append(out, e)
		}
	}
	return out, nil
}

// ascends tells whether the first entry is older than the last.
func ascends(members []json.RawMessage) bool {
	if len(members) < 2 {
		return false
	}
	a, ok1 := logEntry(members[0])
	b, ok2 := logEntry(members[len(members)-1])
	return ok1 && ok2 && a.At.Before(b.At)
}

const maxText = 500 // bytes of a message

// logEntry reads a LogEntry; one that says nothing is none.
func logEntry(b []byte) (power.LogEntry, bool) {
	var v struct {
		ID                                   string `json:"Id"`
		Created, EventTimestamp, Severity    string
		Message, SensorType, OemRecordFormat string
		SensorNumber                         *number
		Name                                 string
	}
	_ = json.Unmarshal(b, &v) // what does not fit stays empty
	if v.Message == "" {
		return power.LogEntry{}, false
	}
	e := power.LogEntry{ID: v.ID, Severity: v.Severity, Sensor: v.SensorType, Message: legible(v.Message)}
	if n, ok := v.SensorNumber.value(); ok && v.SensorType != "" {
		e.Sensor += " #" + strconv.FormatFloat(n, 'f', -1, 64)
	}
	switch e.Severity {
	case "OK", "Warning", "Critical":
	default:
		e.Severity = "" // vendors invent others
	}
	e.Sensor, e.ID = legible(e.Sensor), legible(e.ID)
	for _, at := range []string{v.EventTimestamp, v.Created} {
		if t, err := time.Parse(time.RFC3339, at); err == nil {
			e.At = t
			break
		}
	}
	return e, true
}

// legible makes a text from a device short and whole: no control characters reach
// a terminal.
func legible(s string) string { return strings.TrimSpace(cut(harmless(s), maxText)) }

func harmless(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}

func cut(s string, n int) string {
	if len(s) > n {
		s = strings.ToValidUTF8(s[:n], "") + "…"
	}
	return s
}
