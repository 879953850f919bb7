package agent

import (
	"context"
	"errors"

	"smelt/internal/api"
)

func (a *Agent) wipe(ctx context.Context, o api.Order) api.Result {
	return failed("permit", errors.New("refused"))
}
func (a *Agent) image(ctx context.Context, o api.Order) api.Result {
	return failed("permit", errors.New("refused"))
}
func (a *Agent) burnin(ctx context.Context, o api.Order) api.Result {
	return failed("permit", errors.New("refused"))
}
func (a *Agent) join(ctx context.Context, o api.Order) api.Result {
	return failed("permit", errors.New("refused"))
}
