package server

import (
	"fmt"
	"net/http"
	"regexp"

	"smelt/internal/api"
	"smelt/internal/store"
)

// revoked is the role of a token that was taken away: no role of the table, so
// whoever holds it is nobody.
const revoked = "revoked"

var tokenName = regexp.MustCompile(`^[A-Za-z0-9._@-]{1,63}$`)

func (s *Server) getTokens(w http.ResponseWriter, r *http.Request, _ who) {
	tokens, err := s.Store.Tokens(r.Context())
	if err != nil {
		s.failure(w, r, err)
		return
	}
	list := api.TokenList{APIVersion: api.Version, Kind: "TokenList"}
	for _, t := range tokens {
		list.Items = append(list.Items, api.TokenInfo{TokenRequest: api.TokenRequest{Name: t.Name, Role: t.Role}, Created: t.Created})
	}
	s.json(w, http.StatusOK, list)
}

func (s *Server) postToken(w http.ResponseWriter, r *http.Request, by who) {
	var req api.TokenRequest
	if !s.read(w, r, maxProgress, &req) {
		return
	}
	if !tokenName.MatchString(req.Name) || parseRole(req.Role) == nobody {
		s.fail(w, http.StatusUnprocessableEntity, "a token needs a name (letters, digits, '.', '_', '@', '-') and the role viewer, technician or operator", "smelt token add NAME --role technician")
		return
	}
	tokens, err := s.Store.Tokens(r.Context())
	if err != nil {
		s.failure(w, r, err)
		return
	}
	for _, t := range tokens {
		// The name is who did it in every event: it must mean one person.
		if t.Name == req.Name && t.Role != revoked {
			s.fail(w, http.StatusConflict, fmt.Sprintf("%s has a token already", req.Name), "smelt token revoke "+req.Name)
			return
		}
	}
	token, err := AddToken(r.Context(), s.Store, req.Name, parseRole(req.Role))
	if err != nil {
		s.failure(w, r, err)
		return
	}
	s.Log.Info("token made", "for", req.Name, "role", req.Role, "by", by.name)
	s.json(w, http.StatusOK, api.TokenGrant{APIVersion: api.Version, Kind: "TokenGrant", TokenRequest: req, Token: token})
}

func (s *Server) postRevoke(w http.ResponseWriter, r *http.Request, by who) {
	name := r.PathValue("name")
	tokens, err := s.Store.Tokens(r.Context())
	if err != nil {
		s.failure(w, r, err)
		return
	}
	var found []store.Token
	others := 0
	for _, t := range tokens {
		switch {
		case t.Name == name && t.Role != revoked:
			found = append(found, t)
		case parseRole(t.Role) == Operator:
			others++
		}
	}
	if len(found) == 0 {
		s.fail(w, http.StatusNotFound, fmt.Sprintf("%q has no token", name), "smelt token list")
		return
	}
	if others == 0 {
		s.fail(w, http.StatusConflict, "this is the last operator's token: nobody could decide anything any more", "smelt token add NAME --role operator")
		return
	}
	for _, t := range found {
		t.Role = revoked
		if err := s.Store.PutToken(r.Context(), t); err != nil {
			s.failure(w, r, err)
			return
		}
	}
	s.Log.Info("token revoked", "of", name, "by", by.name)
	w.WriteHeader(http.StatusNoContent)
}
