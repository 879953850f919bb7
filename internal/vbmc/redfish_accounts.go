package vbmc

import (
	"crypto/rand"
	"crypto/subtle"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"
)

type redfishSession struct {
	id, user, origin string
	created          time.Time
}

type redfishAccount struct {
	RedfishAccount
	password string
	login    bool // one can log in with it
}

func (r *Redfish) login(w http.ResponseWriter, q *http.Request, f RedfishFaults) {
	var c struct{ UserName, Password string }
	if !readBody(w, q, &c) {
		return
	}
	r.mu.Lock()
	account := r.check(c.UserName, c.Password)
	if account == nil {
		r.mu.Unlock()
		refuse(w, http.StatusUnauthorized, "Base.1.8.ResourceAtUriUnauthorized", "invalid user name or password")
		return
	}
	if f.Sessions != 0 && len(r.sessions) >= f.Sessions {
		r.mu.Unlock()
		refuse(w, http.StatusServiceUnavailable, "Base.1.8.SessionLimitExceeded", "the session limit is reached")
		return
	}
	r.next++
	origin, _, _ := net.SplitHostPort(q.RemoteAddr)
	token, s := rand.Text(), redfishSession{id: fmt.Sprint(r.next), user: c.UserName, origin: origin, created: time.Now().Add(r.cfg.Clock)}
	if r.sessions == nil {
		r.sessions = map[string]redfishSession{}
	}
	r.sessions[token] = s
	expired := account.Expired
	r.mu.Unlock()
	if f.LoginLost {
		select {
		case <-q.Context().Done():
		case <-r.done:
		}
		return
	}
	doc := s.resource(f)
	if expired { // Base registry: the login works and says so
		doc["@Message.ExtendedInfo"] = []any{map[string]any{
			"MessageId": "Base.1.8.PasswordChangeRequired", "Message": "the password must be changed", "MessageArgs": []string{accountPath(0)},
		}}
	}
	w.Header().Set("X-Auth-Token", token)
	w.Header().Set("Location", doc["@odata.id"].(string))
	reply(w, http.StatusCreated, doc)
}

func (s redfishSession) resource(f RedfishFaults) map[string]any {
	doc := map[string]any{
		"@odata.id": root + "/SessionService/Sessions/" + s.id, "@odata.type": "#Session.v1_7_0.Session", "Id": s.id,
		"Name": "Session (simulated)", "UserName": s.user, "Password": nil,
	}
	if !f.Bare {
		doc["CreatedTime"], doc["ClientOriginIPAddress"], doc["SessionType"] = s.created.UTC().Format(time.RFC3339), s.origin, "Redfish"
	}
	return doc
}

// AddSession opens a session of user from origin, as if somebody else had
// logged in, and returns its id.
func (r *Redfish) AddSession(user, origin string, created time.Time) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.next++
	s := redfishSession{id: fmt.Sprint(r.next), user: user, origin: origin, created: created.Add(r.cfg.Clock)}
	if r.sessions == nil {
		r.sessions = map[string]redfishSession{}
	}
	r.sessions[rand.Text()] = s
	return s.id
}

// SessionIDs lists the open sessions.
func (r *Redfish) SessionIDs() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []string
	for _, s := range r.sessions {
		out = append(out, s.id)
	}
	return out
}

// check compares and counts a credential. r.mu is held.
func (r *Redfish) check(user, password string) *redfishAccount {
	locked := r.faults.Lock > 0 && r.failed >= r.faults.Lock
	for i := range r.accounts {
		a := &r.accounts[i]
		ok := subtle.ConstantTimeCompare([]byte(user), []byte(a.Name)) &
			subtle.ConstantTimeCompare([]byte(password), []byte(a.password))
		if ok == 1 && a.login && a.Enabled && !locked {
			r.stats.Logins++
			r.failed = 0
			return a
		}
	}
	r.stats.FailedLogins++
	r.failed++
	return nil
}

// allowed tells who asks.
func (r *Redfish) allowed(q *http.Request) (user string, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if user, password, ok := q.BasicAuth(); ok {
		return user, r.check(user, password) != nil
	}
	s, ok := r.sessions[q.Header.Get("X-Auth-Token")]
	return s.user, ok
}

func (r *Redfish) logout(w http.ResponseWriter, path string, f RedfishFaults) {
	if f.LogoutFails {
		refuse(w, http.StatusInternalServerError, "Base.1.8.InternalError", "the service failed")
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for token, s := range r.sessions {
		if strings.HasSuffix(path, "/"+s.id) {
			delete(r.sessions, token)
			w.WriteHeader(http.StatusNoContent)
			return
		}
	}
	refuse(w, http.StatusNotFound, "Base.1.8.ResourceMissingAtURI", "no such session")
}

func accountPath(i int) string { return fmt.Sprintf("%s/AccountService/Accounts/%d", root, i+1) }

// expired refuses what an account may not do before it has a new password.
func (r *Redfish) expired(w http.ResponseWriter, q *http.Request, path, user string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if a := r.accounts[0]; !a.Expired || a.Name != user || q.Method == http.MethodPatch && path == accountPath(0) {
		return false
	}
	refuse(w, http.StatusForbidden, "Base.1.8.PasswordChangeRequired", "the password must be changed", accountPath(0))
	return true
}

// serveAccounts answers for what is below AccountService and SessionService.
func (r *Redfish) serveAccounts(w http.ResponseWriter, q *http.Request, path string, f RedfishFaults) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch q.Method + " " + path {
	case "GET " + root + "/AccountService":
		reply(w, http.StatusOK, map[string]any{
			"@odata.id": path, "@odata.type": "#AccountService.v1_9_0.AccountService", "Id": "AccountService", "Name": "Accounts (simulated)",
			"MinPasswordLength": 8, "MaxPasswordLength": 20, "Accounts": id(path + "/Accounts"),
		})
		return true
	case "GET " + root + "/AccountService/Accounts":
		var members []string
		for i := range r.accounts {
			members = append(members, accountPath(i))
		}
		reply(w, http.StatusOK, collection(path, "ManagerAccountCollection", members...))
		return true
	case "GET " + root + "/SessionService/Sessions":
		var members []string
		for _, s := range r.sessions {
			members = append(members, path+"/"+s.id)
		}
		reply(w, http.StatusOK, collection(path, "SessionCollection", members...))
		return true
	}
	for _, s := range r.sessions {
		if q.Method == http.MethodGet && path == root+"/SessionService/Sessions/"+s.id {
			reply(w, http.StatusOK, s.resource(f))
			return true
		}
	}
	for i := range r.accounts {
		a := &r.accounts[i]
		if path != accountPath(i) {
			continue
		}
		switch q.Method {
		case http.MethodGet:
			role := a.Role
			if role == "" {
				role = "Administrator"
			}
			w.Header().Set("ETag", fmt.Sprintf(`"account-%d"`, i+1))
			reply(w, http.StatusOK, map[string]any{
				"@odata.id": path, "@odata.type": "#ManagerAccount.v1_8_0.ManagerAccount", "Id": fmt.Sprint(i + 1), "Name": "Account (simulated)",
				"UserName": a.Name, "RoleId": role, "Enabled": a.Enabled, "Password": nil, "PasswordChangeRequired": a.Expired,
			})
			return true
		case http.MethodPatch:
			var c struct{ Password *string }
			if !readBody(w, q, &c) {
				return true
			}
			if c.Password == nil || len(*c.Password) < 8 || len(*c.Password) > 20 {
				refuse(w, http.StatusBadRequest, "Base.1.8.PropertyValueFormatError", "the password wants 8 to 20 characters")
				return true
			}
			a.password, a.Expired = *c.Password, false
			w.WriteHeader(http.StatusNoContent)
			return true
		}
	}
	return false
}
