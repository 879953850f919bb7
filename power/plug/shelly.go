package plug

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"

	"smelt/power"
	"smelt/power/digest"
)

// shelly speaks the RPC of Shelly Gen2 and newer over HTTP (Shelly API docs,
// Gen2 Switch component). Its only account is admin, digest with SHA-256.
type shelly struct {
	wire
	id       int
	password Secret
}

// call makes one RPC. With a password that is one login: the challenge that
// comes first carries none.
func (s *shelly) call(ctx context.Context, method, args string, out any) error {
	path := "/rpc/" + method + "?id=" + strconv.Itoa(s.id) + args
	a, err := s.send(ctx, http.MethodGet, path, nil, nil)
	if err != nil {
		return err
	}
	if a.status == http.StatusUnauthorized {
		if s.password == nil {
			return fmt.Errorf("%w: it wants a password, and site.yaml names none", power.ErrAuth)
		}
		c, err := digest.Parse(a.header.Values("WWW-Authenticate"))
		if err != nil {
			return err
		}
		password, err := s.password(ctx)
		if err != nil {
			return fmt.Errorf("password of the plug: %w", err)
		}
		h := http.Header{"Authorization": {c.Authorization("admin", password, http.MethodGet, path)}}
		if a, err = s.send(ctx, http.MethodGet, path, h, nil); err != nil {
			return err
		}
	}
	if a.status == http.StatusNotFound {
		return fmt.Errorf("it has no switch %d", s.id)
	}
	return a.read(out)
}

// shellyStatus is Switch.GetStatus. Errors are such as overpower, overtemp: the
// plug has switched itself off.
type shellyStatus struct {
	ID     *int     `json:"id"`
	Output *bool    `json:"output"`
	Watts  *float64 `json:"apower"`
}

func (s *shelly) status(ctx context.Context) (shellyStatus, error) {
	var st shellyStatus
	err := s.call(ctx, "Switch.GetStatus", "", &st)
	if err == nil && st.ID != nil && *st.ID != s.id {
		return st, fmt.Errorf("it was asked about switch %d and answers about %d", s.id, *st.ID)
	}
	return st, err
}

func (s *shelly) State(ctx context.Context) (power.State, error) {
	st, err := s.status(ctx)
	switch {
	case err != nil:
		return power.Unknown, err
	case st.Output == nil:
		return power.Unknown, nil // null: it does not know
	case *st.Output:
		return power.On, nil
	}
	return power.Off, nil
}

func (s *shelly) turn(ctx context.Context, on bool) error {
	var was json.RawMessage
	return s.call(ctx, "Switch.Set", "&on="+strconv.FormatBool(on), &was)
}

func (s *shelly) watts(ctx context.Context) (float64, error) {
	st, err := s.status(ctx)
	if err != nil {
		return 0, err
	}
	if st.Watts == nil {
		return 0, fmt.Errorf("it has no meter: %w", power.ErrUnsupported)
	}
	return sensible(*st.Watts)
}
