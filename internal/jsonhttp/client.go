package jsonhttp

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"

	"github.com/go-json-experiment/json"

	"github.com/trikey/trikey/internal/fault"
)

// maxAnswer bounds an answer that Do reads: a full batch, with its base64 and
// names.
const maxAnswer = 32 << 20

// Do sends in as JSON, unless it is nil, and decodes the answer into out, unless
// that is nil. An answer that is a problem is returned as the fault it carries;
// a server that cannot be reached is fault.Unavailable.
func Do(ctx context.Context, c *http.Client, method, url string, header http.Header, in, out any) error {
	var body io.Reader
	if in != nil {
		raw, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return fault.Wrap(fault.BadRequest, err, "bad address")
	}
	for name, values := range header {
		req.Header[name] = values
	}
	if in != nil {
		req.Header.Set("Content-Type", ContentType)
	}
	answer, _, err := Send(c, req)
	if err != nil || out == nil {
		return err
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fault.Wrap(fault.Unavailable, err, "%s does not answer as a Trikey service does", req.URL.Host)
	}
	return nil
}

// Send sends a request and returns the body and header of a good answer, or the
// fault that a bad one carries.
func Send(c *http.Client, req *http.Request) ([]byte, http.Header, error) {
	res, err := c.Do(req)
	if err != nil {
		if ctxErr := req.Context().Err(); ctxErr != nil {
			return nil, nil, ctxErr
		}
		return nil, nil, fault.Wrap(fault.Unavailable, unwrapURL(err), "cannot reach %s", req.URL.Host)
	}
	defer func() { _ = res.Body.Close() }()
	var body bytes.Buffer
	if res.ContentLength > 0 && res.ContentLength <= maxAnswer {
		body.Grow(int(res.ContentLength) + bytes.MinRead)
	}
	if _, err := body.ReadFrom(io.LimitReader(res.Body, maxAnswer)); err != nil {
		return nil, nil, fault.Wrap(fault.Unavailable, err, "%s broke off its answer", req.URL.Host)
	}
	if res.StatusCode < 300 {
		return body.Bytes(), res.Header, nil
	}
	var p fault.Problem
	if strings.HasPrefix(res.Header.Get("Content-Type"), fault.MediaType) && json.Unmarshal(body.Bytes(), &p) == nil {
		return nil, nil, p.Err()
	}
	return nil, nil, fault.New(fault.Unavailable, "%s answered %s, not as a Trikey service does", req.URL.Host, res.Status)
}

// unwrapURL takes off the url.Error, whose text repeats the whole address.
func unwrapURL(err error) error {
	if inner := errors.Unwrap(err); inner != nil {
		return inner
	}
	return err
}
