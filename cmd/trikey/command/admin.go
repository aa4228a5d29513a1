package command

import (
	"context"
	"errors"
	"net"
	"net/http"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/jsonhttp"
	"github.com/trikey/trikey/internal/unixsock"
)

// admin calls the admin socket of the service on this host.
func (o *options) admin(ctx context.Context, method, path string, in, out any) error {
	cfg, err := o.load(nil)
	if err != nil {
		return err
	}
	err = jsonhttp.Do(ctx, unixsock.Client(cfg.AdminSocket()), method, "http://admin/admin/v1/"+path, http.Header{}, in, out)
	if dial := (*net.OpError)(nil); errors.As(err, &dial) {
		return fault.Wrap(fault.Unavailable, err, "no service answers at %s: is it running (trikey serve)?", cfg.AdminSocket())
	}
	return err
}
