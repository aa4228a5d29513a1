package console

import (
	"context"
	"net/http"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/jsonhttp"
)

// windowRequest names a submission window.
type windowRequest struct {
	Window hsm.ID `json:"window"`
}

func (h *handler) handleWindows(mux *http.ServeMux) {
	handle(mux, "POST /v1/open-window", func(r *http.Request, _ jsonhttp.None) (hsm.Window, error) {
		return h.console.OpenWindow(r.Context())
	})
	handle(mux, "POST /v1/watch-window", func(r *http.Request, in windowRequest) (hsm.Window, error) {
		return h.console.WatchWindow(r.Context(), in.Window)
	})
	handle(mux, "POST /v1/close-window", func(r *http.Request, in windowRequest) (jsonhttp.None, error) {
		return jsonhttp.None{}, h.console.CloseWindow(r.Context(), in.Window)
	})
}

// OpenWindow is Console.OpenWindow.
func (c *Client) OpenWindow(ctx context.Context) (w hsm.Window, err error) {
	err = c.call(ctx, http.MethodPost, "open-window", nil, &w)
	return w, err
}

// WatchWindow is Console.WatchWindow.
func (c *Client) WatchWindow(ctx context.Context, id hsm.ID) (w hsm.Window, err error) {
	err = c.call(ctx, http.MethodPost, "watch-window", windowRequest{id}, &w)
	return w, err
}

// CloseWindow is Console.CloseWindow.
func (c *Client) CloseWindow(ctx context.Context, id hsm.ID) error {
	return c.call(ctx, http.MethodPost, "close-window", windowRequest{id}, nil)
}
