package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"smelt/internal/api"
	"smelt/internal/store"
	"smelt/inventory"
)

// codes are the short names of all nodes.
func (s *Server) codes(ctx context.Context) (*inventory.Codes, error) {
	nodes, _, err := s.nodes(ctx)
	c := new(inventory.Codes)
	for _, n := range nodes {
		c.Add(n.ID)
	}
	return c, err
}

// named finds the node that a person means: by its name, or by the code on the
// machine's screen.
func (s *Server) named(ctx context.Context, name string) (inventory.NodeID, error) {
	if _, err := s.Store.Node(ctx, inventory.NodeID(name)); !errors.Is(err, store.ErrNotFound) {
		return inventory.NodeID(name), err
	}
	c, err := s.codes(ctx)
	if err != nil {
		return "", err
	}
	switch found := c.Find(name); len(found) {
	case 0:
		return "", store.ErrNotFound
	case 1:
		return found[0], nil
	default:
		var words []string
		for _, id := range found {
			words = append(words, c.Of(id)+" is "+string(id))
		}
		return "", fmt.Errorf("%w: code %s: %s", store.ErrAmbiguous, strings.ToUpper(name), strings.Join(words, ", "))
	}
}

// codePage leads from the code on a machine's screen to its page.
func (s *Server) codePage(w http.ResponseWriter, r *http.Request, _ who) {
	id, err := s.named(r.Context(), r.PathValue("code"))
	switch {
	case errors.Is(err, store.ErrNotFound):
		s.fail(w, http.StatusNotFound, "no node here has the code "+r.PathValue("code")+": is it the screen of another site?", "look at the screen again")
	case errors.Is(err, store.ErrAmbiguous):
		s.fail(w, http.StatusConflict, err.Error(), "type one of them")
	case err != nil:
		s.failure(w, r, err)
	default:
		http.Redirect(w, r, "/nodes/"+string(id), http.StatusSeeOther)
	}
}

// getNode takes a code for a name as well: whoever stands before a machine
// knows no other.
func (s *Server) getNode(w http.ResponseWriter, r *http.Request, _ who) {
	id, err := s.named(r.Context(), r.PathValue("id"))
	if errors.Is(err, store.ErrAmbiguous) {
		s.fail(w, http.StatusConflict, err.Error(), "smelt node show with one of them")
		return
	}
	var v api.NodeView
	if err == nil {
		v, err = s.oneNode(r.Context(), id)
	}
	if err != nil {
		s.nodeFailure(w, r, err)
		return
	}
	s.json(w, http.StatusOK, v)
}
