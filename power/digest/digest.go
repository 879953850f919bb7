// Package digest answers the challenges of HTTP Digest Access Authentication
// (RFC 7616): what plugs and Intel AMT ask for. Only the client's side, with
// quality of protection "auth" or, for RFC 2069 servers, none.
package digest

import (
	"crypto/md5" //nolint:gosec // what old devices know; RFC 7616 section 3.2
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"strings"
)

// A Challenge is what a server wants to be answered.
type Challenge struct {
	Realm, Nonce, Opaque string
	Algorithm            string // SHA-256 or MD5, as the server wrote it; "" means MD5
	Auth                 bool   // qop=auth is offered
}

// maxHeader bounds what is read of a challenge.
const maxHeader = 4 << 10

// Parse picks the strongest Digest challenge among WWW-Authenticate headers.
func Parse(headers []string) (Challenge, error) {
	var best Challenge
	found := false
	for _, h := range headers {
		scheme, rest, _ := strings.Cut(strings.TrimSpace(h), " ")
		if !strings.EqualFold(scheme, "Digest") {
			continue
		}
		c, err := parse(rest)
		if err != nil {
			return Challenge{}, err
		}
		if !found || best.weak() && !c.weak() {
			best, found = c, true
		}
	}
	if !found {
		return Challenge{}, errors.New("the device does not ask for digest authentication")
	}
	return best, nil
}

func (c Challenge) weak() bool { return c.hash() == nil || !strings.EqualFold(c.Algorithm, "SHA-256") }

func (c Challenge) hash() func() hash.Hash {
	switch strings.ToUpper(c.Algorithm) {
	case "SHA-256":
		return sha256.New
	case "", "MD5":
		return md5.New
	}
	return nil
}

func parse(s string) (Challenge, error) {
	if len(s) > maxHeader {
		return Challenge{}, fmt.Errorf("a challenge of %d bytes", len(s))
	}
	var c Challenge
	qop, seen := "", map[string]bool{}
	for s = strings.TrimLeft(s, " \t,"); s != ""; s = strings.TrimLeft(s, " \t,") {
		name, rest, ok := strings.Cut(s, "=")
		name = strings.ToLower(strings.TrimSpace(name))
		if !ok || name == "" || strings.ContainsAny(name, "\" ,") {
			return Challenge{}, errors.New("the challenge is no list of parameters")
		}
		if seen[name] {
			return Challenge{}, fmt.Errorf("the challenge says %s twice", name)
		}
		seen[name] = true
		value, left, err := word(strings.TrimLeft(rest, " \t"))
		if err != nil {
			return Challenge{}, err
		}
		s = left
		switch name {
		case "realm":
			c.Realm = value
		case "nonce":
			c.Nonce = value
		case "opaque":
			c.Opaque = value
		case "algorithm":
			c.Algorithm = value
		case "qop":
			qop = value
		}
	}
	for q := range strings.SplitSeq(qop, ",") {
		c.Auth = c.Auth || strings.EqualFold(strings.TrimSpace(q), "auth")
	}
	switch {
	case c.Nonce == "":
		return Challenge{}, errors.New("the challenge has no nonce")
	case c.hash() == nil:
		return Challenge{}, fmt.Errorf("the device wants digest algorithm %q; SHA-256 and MD5 are known", c.Algorithm)
	case qop != "" && !c.Auth:
		return Challenge{}, fmt.Errorf("the device wants qop %q; auth is known", qop)
	}
	return c, nil
}

// word reads a token or a quoted string, and what follows it.
func word(s string) (value, rest string, err error) {
	if !strings.HasPrefix(s, `"`) {
		i := strings.IndexAny(s, ", \t")
		if i < 0 {
			i = len(s)
		}
		if strings.ContainsAny(s[:i], "\"\\") || strings.ContainsFunc(s[:i], control) {
			return "", "", errors.New("the challenge holds a broken token")
		}
		return s[:i], s[i:], nil
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch {
		case s[i] == '"':
			return b.String(), s[i+1:], nil
		case s[i] == '\\' && i+1 < len(s):
			i++
		}
		if control(rune(s[i])) {
			break
		}
		b.WriteByte(s[i])
	}
	return "", "", errors.New("the challenge holds a broken quoted string")
}

func control(r rune) bool { return r < 0x20 || r == 0x7f }

// Authorization answers the challenge for one request with a fresh client
// nonce. A challenge is answered once.
func (c Challenge) Authorization(user, password, method, uri string) string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	return c.authorization(user, password, method, uri, hex.EncodeToString(b))
}

func (c Challenge) authorization(user, password, method, uri, cnonce string) string {
	h := func(s string) string {
		w := c.hash()()
		w.Write([]byte(s))
		return hex.EncodeToString(w.Sum(nil))
	}
	const count = "00000001"
	a1, a2 := h(user+":"+c.Realm+":"+password), h(method+":"+uri)
	response := h(a1 + ":" + c.Nonce + ":" + a2)
	if c.Auth {
		response = h(strings.Join([]string{a1, c.Nonce, count, cnonce, "auth", a2}, ":"))
	}
	out := fmt.Sprintf("Digest username=%s, realm=%s, nonce=%s, uri=%s, response=\"%s\"",
		quote(user), quote(c.Realm), quote(c.Nonce), quote(uri), response)
	if c.Algorithm != "" {
		out += ", algorithm=" + c.Algorithm
	}
	if c.Auth {
		out += fmt.Sprintf(", qop=auth, nc=%s, cnonce=\"%s\"", count, cnonce)
	}
	if c.Opaque != "" {
		out += ", opaque=" + quote(c.Opaque)
	}
	return out
}

func quote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}
