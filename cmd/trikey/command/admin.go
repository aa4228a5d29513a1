package command

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"

	"github.com/go-json-experiment/json"

	v1 "github.com/trikey/trikey/api/v1"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/jsonhttp"
	"github.com/trikey/trikey/internal/unixsock"
)

// way is how a command reaches the admin API.
type way struct {
	*http.Client
	base   string // of addresses
	header http.Header
	socket string // of the service on this host; "" where it is elsewhere
}

// reach finds the way to the admin API: of the service on this host by its socket, or of
// one that is elsewhere, as the person who is logged in.
func (o *options) reach() (*way, error) {
	far, err := o.remoteLogin()
	if err != nil {
		return nil, err
	}
	w := &way{base: "http://admin", header: http.Header{}}
	if far != nil {
		if w.Client, err = far.client(); err != nil {
			return nil, err
		}
		w.base = far.Addr
		w.header.Set("Authorization", "Bearer "+far.Token)
	} else {
		cfg, err := o.load(nil)
		if err != nil {
			return nil, err
		}
		w.socket = cfg.AdminSocket()
		w.Client = unixsock.Client(w.socket)
	}
	w.Transport = &waitingForApproval{&receiptSaver{w.Transport, o.receipt}}
	w.base += "/admin/v1/"
	return w, nil
}

// explain says what an error of a call means to who is at this host.
func (w *way) explain(err error) error {
	if err = plainWaits(err); w.socket == "" || errors.Is(err, fault.ApprovalRequired) {
		return err
	}
	if dial := (*net.OpError)(nil); errors.As(err, &dial) {
		return fault.Wrap(fault.Unavailable, err, "no service answers at %s: is it running (trikey serve)?", w.socket)
	}
	return err
}

// admin calls the admin API.
func (o *options) admin(ctx context.Context, method, path string, in, out any) error {
	w, err := o.reach()
	if err != nil {
		return err
	}
	defer w.CloseIdleConnections()
	return w.explain(jsonhttp.Do(ctx, w.Client, method, w.base+path, w.header, in, out))
}

// waitingForApproval makes an error of an answer that says that another person must approve
// first: what was asked for is not done yet.
type waitingForApproval struct{ http.RoundTripper }

// RoundTrip is that of http.RoundTripper.
func (t *waitingForApproval) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := t.RoundTripper.RoundTrip(r)
	if err != nil || res.StatusCode != http.StatusAccepted {
		return res, err
	}
	defer func() { _ = res.Body.Close() }()
	var asked v1.Approval
	raw, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err == nil {
		err = json.Unmarshal(raw, &asked)
	}
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "the service does not say what waits for approval")
	}
	return nil, &waits{asked}
}

// waits is the error of what another person must approve first.
type waits struct{ v1.Approval }

// plainWaits takes off what the HTTP client has put around it.
func plainWaits(err error) error {
	if w := (*waits)(nil); errors.As(err, &w) {
		return w
	}
	return err
}

// Error says what to do next.
func (w *waits) Error() string {
	return fmt.Sprintf("nothing is done yet: another person must approve this until %s\n  it will %s\n  request %s\n"+
		"Ask another admin or officer to look at it and grant it: trikey approve grant %s", date(w.Expires), w.What, w.ID, w.ID)
}

// Unwrap returns the fault.
func (w *waits) Unwrap() error { return fault.ApprovalRequired }

// receiptSaver writes the receipts of changes to a file.
type receiptSaver struct {
	http.RoundTripper
	path string
}

// RoundTrip is that of http.RoundTripper.
func (s *receiptSaver) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := s.RoundTripper.RoundTrip(r)
	if err != nil || s.path == "" {
		return res, err
	}
	proof, err := base64.StdEncoding.DecodeString(res.Header.Get(v1.HeaderReceipt))
	if err != nil || len(proof) == 0 {
		return res, nil // it reads only, or the service's log says why there is none
	}
	f, err := os.OpenFile(s.path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err == nil {
		_, err = f.Write(proof)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "trikey: the change was made, but its receipt was not saved: %v\n", err)
	}
	return res, nil
}
