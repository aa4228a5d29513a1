package jsonhttp

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/trikey/trikey/internal/fault"
)

// maxAnswer bounds an answer that Do reads: a full batch, with its base64 and
// names.
const maxAnswer = 32 << 20

// Marshal encodes a value that does not travel as a body.
func Marshal(value any) ([]byte, error) { return json.Marshal(value) }

// Do sends in as JSON, as a form where it is url.Values, unless it is nil, and decodes the answer into out, unless
// that is nil. An answer that is a problem is returned as the fault it carries;
// a server that cannot be reached is fault.Unavailable.
func Do(ctx context.Context, c *http.Client, method, address string, header http.Header, in, out any) error {
	var body io.Reader
	media := ContentType
	if form, ok := in.(url.Values); ok {
		body, media = strings.NewReader(form.Encode()), curlDefault
	} else if in != nil {
		raw, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(ctx, method, address, body)
	if err != nil {
		return fault.Wrap(fault.BadRequest, err, "bad address")
	}
	for name, values := range header {
		req.Header[name] = values
	}
	if in != nil {
		req.Header.Set("Content-Type", media)
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
	res, err := Open(c, req)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = res.Body.Close() }()
	body, err := readAnswer(res)
	return body, res.Header, err
}

// Open sends a request and returns a good answer, whose body its caller reads and
// closes, or the fault that a bad one carries.
func Open(c *http.Client, req *http.Request) (*http.Response, error) {
	res, err := c.Do(req)
	if err != nil {
		if ctxErr := req.Context().Err(); ctxErr != nil {
			return nil, ctxErr
		}
		return nil, fault.Wrap(fault.Unavailable, unwrapURL(err), "cannot reach %s", req.URL.Host)
	}
	if res.StatusCode < 300 {
		return res, nil
	}
	defer func() { _ = res.Body.Close() }()
	body, err := readAnswer(res)
	if err != nil {
		return nil, err
	}
	var p fault.Problem
	if strings.HasPrefix(res.Header.Get("Content-Type"), fault.MediaType) && json.Unmarshal(body, &p) == nil {
		err := p.Err()
		if f := (*fault.Error)(nil); errors.As(err, &f) {
			if seconds, bad := strconv.Atoi(res.Header.Get("Retry-After")); bad == nil && seconds > 0 {
				f.RetryAfter = time.Duration(seconds) * time.Second
			}
		}
		return nil, err
	}
	// What fails at /oauth2 has a form of its own (RFC 6749 section 5.2).
	var o struct {
		Code        fault.Code `json:"code"`
		Description string     `json:"error_description"`
	}
	if json.Unmarshal(body, &o) == nil && o.Code.Known() {
		return nil, &fault.Error{Code: o.Code, Detail: o.Description}
	}
	return nil, fault.New(fault.Unavailable, "%s answered %s, not as a Trikey service does", req.URL.Host, res.Status)
}

func readAnswer(res *http.Response) ([]byte, error) {
	var body bytes.Buffer
	if res.ContentLength > 0 && res.ContentLength <= maxAnswer {
		body.Grow(int(res.ContentLength) + bytes.MinRead)
	}
	if _, err := body.ReadFrom(io.LimitReader(res.Body, maxAnswer)); err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "%s broke off its answer", res.Request.URL.Host)
	}
	return body.Bytes(), nil
}

// unwrapURL takes off the url.Error, whose text repeats the whole address.
func unwrapURL(err error) error {
	if inner := errors.Unwrap(err); inner != nil {
		return inner
	}
	return err
}
