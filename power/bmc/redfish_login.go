package bmc

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptrace"
	"path"
	"strings"
	"time"
)

// login opens a session: one POST, whatever comes of it.
func (s *session) login(ctx context.Context) error {
	if s.root.Links.Sessions.ID == "" {
		s.basic = true
		return nil
	}
	err := s.post(ctx)
	if err == nil || !isSessionLimit(err) || len(s.ledger.left(s.record)) == 0 {
		return err
	}
	// The BMC is full, and we may be the reason. It took the credential, so
	// deleting ours with it is no guess; then once more.
	s.basic = true
	s.sweep(ctx)
	s.basic = false
	return s.post(ctx)
}

func (s *session) post(ctx context.Context) error {
	record, err := s.ledger.begin(s.cfg.User)
	if err != nil {
		return err
	}
	s.record = record
	// Session.Context, in which a client may leave its name, is no help: older
	// services answer 400 to a property they do not know, which looks like a
	// refused password and must not be tried again.
	sent := false
	traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { sent = true }})
	res, body, err := s.send(traced, http.MethodPost, s.root.Links.Sessions.ID, nil,
		map[string]string{"UserName": s.cfg.User, "Password": s.password})
	if err != nil {
		if !sent {
			s.ledger.ended(record)
		}
		return err // once sent there may be a session: the record stays open
	}
	s.granted = time.Now()
	code := res.StatusCode
	switch {
	case code/100 == 2 && res.Header.Get("X-Auth-Token") != "":
		s.token = res.Header.Get("X-Auth-Token")
		s.path = sessionPath(res.Header.Get("Location"), body)
		if m := extended(body); strings.HasSuffix(m.id, ".PasswordChangeRequired") {
			s.expired = account(m)
		}
		return s.ledger.granted(record, s.path)
	case code == http.StatusNotFound, code == http.StatusMethodNotAllowed, code == http.StatusNotImplemented:
		s.ledger.ended(record)
		s.basic = true // no sessions
		return nil
	}
	err = s.refusal(res, body)
	if code/100 != 4 && !isSessionLimit(err) {
		return err // who fails with 500 may have made one all the same
	}
	s.ledger.ended(record)
	if code/100 == 4 && code != http.StatusTooManyRequests && !isSessionLimit(err) {
		// iLO answers 400 to a wrong password. Whatever else it may mean, to
		// ask again could lock the user out.
		return auth(err)
	}
	return err
}

// isSessionLimit knows the message SessionLimitExceeded of the Base registry
// and iDRAC's RAC0218.
func isSessionLimit(err error) bool {
	return strings.Contains(err.Error(), "SessionLimit") || strings.Contains(err.Error(), "RAC0218")
}

// account is the path in a message PasswordChangeRequired, which names the
// account to PATCH (Base registry); some BMCs leave it out.
func account(m message) string {
	for _, a := range m.args {
		if at := inService(a); at != "" {
			return at
		}
	}
	return "unknown"
}

// sessionPath finds the path of a new session.
func sessionPath(location string, body []byte) string {
	at := inService(location)
	if at == "" {
		var v link
		if json.Unmarshal(body, &v) != nil {
			return ""
		}
		at = inService(v.ID)
	}
	at, _, _ = strings.Cut(at, "?")
	return at
}

// logout deletes the session, also after ctx has ended: BMCs have as few as
// eight, and keep a forgotten one for half an hour. What fails stays in the
// journal for the next call.
func (s *session) logout(ctx context.Context) {
	if s.path == "" {
		return
	}
	limit := 5 * time.Second
	if ctx.Err() != nil {
		limit = time.Second
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	// What the verb found matters more than an error here.
	if gone, _ := s.delete(ctx, s.path); gone {
		s.ledger.ended(s.record)
	}
}

// delete ends a session and tells whether it is gone. A refusal counts as gone:
// to ask again would change nothing, and the BMC ends it in time.
func (s *session) delete(ctx context.Context, at string) (bool, error) {
	res, body, err := s.send(ctx, http.MethodDelete, at, nil, nil)
	if err != nil {
		return false, err
	}
	if c := res.StatusCode; c/100 == 2 || c/100 == 4 && c != http.StatusTooManyRequests && c != http.StatusRequestTimeout {
		return true, nil
	}
	return false, s.refusal(res, body)
}

// A login is a session as the BMC lists it (Session schema 1.3; the origin and
// the time came with 1.4 and later, and the clock is the BMC's).
type login struct {
	link
	UserName, SessionType, CreatedTime string
	Origin                             string `json:"ClientOriginIPAddress"`
}

// created is when, on the BMC's clock.
func (l login) created() (time.Time, bool) {
	t, err := time.Parse(time.RFC3339, l.CreatedTime)
	return t, err == nil
}

const (
	loginSpan  = time.Minute     // after its owner died a login may still come about so long
	clockSlack = 5 * time.Second // BMCs count in seconds
	maxListed  = 64              // sessions looked at
)

// sweep deletes the sessions of processes that died. What cannot be done now
// stays in the journal; the call that it precedes goes on.
func (s *session) sweep(ctx context.Context) {
	var lost []record // nobody saw the answer to the login
	for _, r := range s.ledger.left(s.record) {
		if r.Session == "" {
			lost = append(lost, r)
			continue
		}
		// Ids are used again by some BMCs: only a session of our user is ours.
		var is login
		_, err := s.get(ctx, r.Session, &is)
		gone := answered(err, http.StatusNotFound) || err == nil && is.UserName != "" && is.UserName != r.User
		if !gone {
			gone, _ = s.delete(ctx, r.Session)
		}
		if gone {
			s.ledger.ended(r)
		}
		s.doubt = s.doubt || !gone
	}
	if len(lost) > 0 && (s.path == "" || !s.find(ctx, lost)) {
		s.doubt = true
	}
}

// find looks for the sessions of logins whose answers nobody saw, and tells
// whether none of them can be there any more.
func (s *session) find(ctx context.Context, lost []record) bool {
	var own login
	if _, err := s.get(ctx, s.path, &own); err != nil {
		return false
	}
	var all struct{ Members []link }
	if _, err := s.get(ctx, s.root.Links.Sessions.ID, &all); err != nil {
		return false
	}
	complete := true // every session was looked at
	sure := true     // and is known to be ours or not
	for i, m := range all.Members {
		at := inService(m.ID)
		if i == maxListed {
			complete = false
			break
		}
		if at == "" || path.Clean(at) == path.Clean(s.path) {
			continue
		}
		var is login
		if _, err := s.get(ctx, at, &is); err != nil {
			complete = complete && answered(err, http.StatusNotFound)
			continue
		}
		for j, r := range lost {
			mine, known := s.mine(own, is, r)
			sure = sure && known
			if !mine {
				continue
			}
			if gone, _ := s.delete(ctx, at); gone {
				s.ledger.ended(r)
			} else {
				_ = s.ledger.granted(r, at)
				sure = false
			}
			lost = append(lost[:j:j], lost[j+1:]...) // a login makes one session
			break
		}
	}
	for _, r := range lost {
		if complete && time.Since(r.At) > loginSpan {
			s.ledger.ended(r) // it came to nothing
		}
	}
	return complete && sure
}

// mine tells whether is came from the login r: the same user, and from the
// address that the BMC sees us at now or at the time of r or, where it tells
// both, both. Where it tells neither, nothing is known and nothing is deleted.
// Nobody else of us is logged in: the journal is locked.
func (s *session) mine(own, is login, r record) (mine, known bool) {
	if is.UserName != r.User || is.SessionType != "" && is.SessionType != "Redfish" {
		return false, true
	}
	if own.Origin != "" && is.Origin != "" {
		if own.Origin != is.Origin {
			return false, true
		}
		mine, known = true, true
	}
	ours, ok1 := own.created()
	its, ok2 := is.created()
	if ok1 && ok2 {
		after := its.Add(s.granted.Sub(ours)).Sub(r.At) // on our clock
		return after >= -clockSlack && after <= loginSpan+clockSlack, true
	}
	return mine, known
}
