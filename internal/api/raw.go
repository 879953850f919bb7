package api

import (
	"context"
	"fmt"
	"io"
	"net/http"
)

// Raw returns what the server answers to a GET of path, as it is: metrics, or a
// view to be kept in a file.
func (c *Client) Raw(ctx context.Context, path string) ([]byte, error) {
	resp, err := c.send(ctx, http.MethodGet, path, nil, nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if err := problem(resp); err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("GET %s: %w", path, err)
	}
	return b, nil
}
