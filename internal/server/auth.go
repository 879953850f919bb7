package server

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"smelt/internal/store"
)

// Role is what a person or program may do. Each has what the one before has.
type Role int

// The roles. The zero Role may do nothing.
const (
	nobody     Role = iota
	Viewer          // look
	Technician      // hold, power, tasks
	Operator        // approve, reject, retire, stop
)

var roleNames = map[Role]string{Viewer: "viewer", Technician: "technician", Operator: "operator"}

func (r Role) String() string {
	if n, ok := roleNames[r]; ok {
		return n
	}
	return "nobody"
}

func parseRole(s string) Role {
	for r, n := range roleNames {
		if n == s {
			return r
		}
	}
	return nobody
}

// who asks. Its zero value is nobody.
type who struct {
	name string
	role Role
}

// actor is who in an event. The kind decides which holds it may lift.
func (w who) actor() string { return w.role.String() + ":" + w.name }

// hash is how a credential is stored and looked up. Credentials are 256 random
// bits, so one SHA-256 is enough, and comparing hashes through an index tells
// an attacker nothing of the value.
func hash(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}

const tokenPrefix = "smelt_"

// NewToken makes a credential: 256 random bits with a prefix that secret
// scanners can find.
func NewToken() string {
	var b [32]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(b[:])
}

// FirstToken makes an operator's token when the store has none, writes it to
// path (mode 0600), and returns it; "" when there is one already.
func FirstToken(ctx context.Context, st *store.Store, path string) (string, error) {
	tokens, err := st.Tokens(ctx)
	if err != nil {
		return "", fmt.Errorf("first token: %w", err)
	}
	if len(tokens) > 0 {
		return "", nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return "", fmt.Errorf("first token: %w", err)
	}
	// The file first: a token in the store that nobody knows would lock
	// everybody out. Whoever died between the two finds the file and goes on.
	token, err := firstFile(path)
	if err != nil {
		return "", fmt.Errorf("first token: %w", err)
	}
	if err := st.PutToken(ctx, store.Token{Hash: hash(token), Name: "first", Role: Operator.String(), Created: time.Now()}); err != nil {
		return "", fmt.Errorf("first token: %w", err)
	}
	return token, nil
}

// firstFile makes the file of the first token, or reads one that is there.
func firstFile(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err == nil {
		fi, err := os.Stat(path)
		token := strings.TrimSpace(string(b))
		if err != nil || fi.Mode().Perm() != 0o600 || len(token) != len(NewToken()) || !strings.HasPrefix(token, tokenPrefix) {
			return "", fmt.Errorf("%s is there and is no private token file, but the store knows no token: remove it and start again", path)
		}
		return token, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	token := NewToken()
	f, err := os.CreateTemp(filepath.Dir(path), ".token-*") // mode 0600
	if err != nil {
		return "", err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if _, err := f.WriteString(token + "\n"); err != nil {
		return "", err
	}
	if err := f.Sync(); err != nil {
		return "", err
	}
	return token, os.Rename(f.Name(), path)
}

// AddToken makes a token for somebody and returns it once.
func AddToken(ctx context.Context, st *store.Store, name string, role Role) (string, error) {
	if role == nobody || name == "" || strings.ContainsAny(name, ": \n") {
		return "", errors.New("a token needs a role and a name without spaces and colons")
	}
	token := NewToken()
	return token, st.PutToken(ctx, store.Token{Hash: hash(token), Name: name, Role: role.String(), Created: time.Now()})
}

func bearer(r *http.Request) string {
	t, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok || len(t) > 256 {
		return ""
	}
	return t
}

// byToken looks a credential up.
func (s *Server) byToken(ctx context.Context, token string) (who, error) {
	if token == "" || len(token) > 256 {
		return who{}, store.ErrNotFound
	}
	return s.byHash(ctx, hash(token))
}

func (s *Server) byHash(ctx context.Context, h string) (who, error) {
	t, err := s.Store.TokenByHash(ctx, h)
	if err != nil {
		return who{}, err
	}
	return who{t.Name, parseRole(t.Role)}, nil
}

// asks finds who sent r: a bearer token, or the cookie of a page.
func (s *Server) asks(r *http.Request) (who, error) {
	if r.Header.Get("Authorization") != "" {
		return s.byToken(r.Context(), bearer(r))
	}
	c, err := r.Cookie(cookieName)
	if err != nil {
		return who{}, store.ErrNotFound
	}
	h, ok := s.sessions.token(hash(c.Value), s.Now())
	if !ok {
		return who{}, store.ErrNotFound
	}
	// The token is asked for each time: taking it away ends its sessions.
	return s.byHash(r.Context(), h)
}

// A browser gets a session instead of the token: the token itself is never
// kept in a cookie. Sessions live in memory; after a restart people log in again.
const (
	cookieName  = "smelt_session"
	sessionTime = 12 * time.Hour // one shift
	maxSessions = 10000
)

type session struct {
	token string // hash
	until time.Time
}

type sessions struct {
	mu     sync.Mutex
	byHash map[string]session
}

// open begins a session for the token with a hash and returns its cookie value.
func (ss *sessions) open(tokenHash string, now time.Time) string {
	id := NewToken()
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if len(ss.byHash) >= maxSessions {
		for k, v := range ss.byHash {
			if now.After(v.until) || len(ss.byHash) >= maxSessions {
				delete(ss.byHash, k)
			}
		}
	}
	ss.byHash[hash(id)] = session{tokenHash, now.Add(sessionTime)}
	return id
}

func (ss *sessions) token(idHash string, now time.Time) (string, bool) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	v, ok := ss.byHash[idHash]
	if !ok || now.After(v.until) {
		delete(ss.byHash, idHash)
		return "", false
	}
	return v.token, true
}

func (ss *sessions) close(idHash string) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	delete(ss.byHash, idHash)
}
