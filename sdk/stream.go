package sdk

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"net/url"

	v1 "github.com/trikey/trikey/api/v1"
	"github.com/trikey/trikey/internal/envelope"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/jsonhttp"
)

// StreamRequest says how a stream is sealed, or what opens it.
type StreamRequest struct {
	Key       Key // DecryptStream: "" is the one that the stream names; any other refuses it
	Context   Context
	Algorithm string // EncryptStream: "" is the key's own

	// Segments, for DecryptStream, is which segments the reader has, and StreamHeader
	// the first StreamHeaderSize bytes of their stream, which are then not in the
	// reader. Without them it has the whole stream.
	Segments     *SegmentRange
	StreamHeader []byte
}

// SegmentRange is some of a stream's segments, counted from 0: those from First to
// the end of the stream, or those from First to Last, none of which is the stream's
// last.
type SegmentRange = envelope.SegmentRange

// Sizes of streams, in bytes. Segment n of a stream begins at
// StreamHeaderSize + n*SealedSegmentSize and has SegmentSize bytes of plaintext, the
// last one what is left.
const (
	StreamHeaderSize  = envelope.StreamHeaderSize
	SegmentSize       = envelope.SegmentSize
	SealedSegmentSize = envelope.SealedSegmentSize
)

// EncryptStream seals a plaintext of any length with the newest version of a key,
// while it is read. The stream is complete when the reader that is returned says
// io.EOF; after any other error what was read of it is of no use. Close it.
//
// An address that serves is looked for before anything of the plaintext is read;
// after that, a failure is one: the plaintext cannot be read twice. When the returned
// reader is closed early, the plaintext may still be read from until its Read returns.
func (c *Client) EncryptStream(ctx context.Context, r StreamRequest, plaintext io.Reader) (io.ReadCloser, error) {
	return c.stream(ctx, "encrypt", r, plaintext)
}

// DecryptStream opens a stream while it is read. All that the returned reader gives
// was authenticated, but only io.EOF says that it is the whole plaintext: a stream
// that was cut off, reordered or altered gives what is before that, and then
// ErrDecryptFailed. Close it.
func (c *Client) DecryptStream(ctx context.Context, r StreamRequest, ciphertext io.Reader) (io.ReadCloser, error) {
	if r.Key == "" {
		header := r.StreamHeader
		if r.Segments == nil {
			header = make([]byte, StreamHeaderSize)
			n, err := io.ReadFull(ciphertext, header)
			if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				return nil, err
			}
			header = header[:n]
			ciphertext = io.MultiReader(bytes.NewReader(header), ciphertext)
		}
		h, _, err := envelope.ParseStream(header)
		if err != nil {
			return nil, err
		}
		r.Key = Index(h.Index)
	}
	return c.stream(ctx, "decrypt", r, ciphertext)
}

func (c *Client) stream(ctx context.Context, direction string, r StreamRequest, source io.Reader) (io.ReadCloser, error) {
	header, err := r.header()
	if err != nil {
		return nil, err
	}
	if c.signs {
		return nil, errUnsigned
	}
	// Whoever shall take the stream must be there, and know the key and us.
	if _, err := c.Key(ctx, r.Key); err != nil {
		return nil, err
	}
	if _, err := c.authorize(ctx, header); err != nil {
		return nil, err
	}
	address := c.addresses[c.preferred.Load()]
	// The source hides what else it can do: nothing closes it or looks at its length.
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, address+"/v1/stream/"+url.PathEscape(string(r.Key))+"/"+direction, struct{ io.Reader }{source})
	if err != nil {
		return nil, fault.Wrap(fault.BadRequest, err, "bad address")
	}
	req.Header = header
	res, err := jsonhttp.Open(c.http, req) //nolint:bodyclose // result closes it
	if err != nil {
		return nil, err
	}
	return &result{res}, nil
}

func (r *StreamRequest) header() (http.Header, error) {
	h := http.Header{"Content-Type": {v1.OctetStream}, v1.HeaderResult: {v1.ResultTrailer}}
	if len(r.Context) > 0 {
		raw, err := jsonhttp.Marshal(r.Context)
		if err != nil {
			return nil, fault.Wrap(fault.BadRequest, err, "context")
		}
		h.Set(v1.HeaderContext, base64.StdEncoding.EncodeToString(raw))
	}
	if r.Algorithm != "" {
		h.Set(v1.HeaderAlgorithm, r.Algorithm)
	}
	if r.Segments != nil {
		h.Set(v1.HeaderSegments, r.Segments.String())
		h.Set(v1.HeaderStream, base64.StdEncoding.EncodeToString(r.StreamHeader))
	}
	return h, nil
}

// result is the answer's body. It ends well only when the service says so.
type result struct{ *http.Response }

// Read reads from the answer.
func (r *result) Read(b []byte) (int, error) {
	n, err := r.Body.Read(b)
	switch {
	case err == nil:
		return n, nil
	case !errors.Is(err, io.EOF):
		if ctx := r.Request.Context().Err(); ctx != nil {
			return n, ctx
		}
		return n, fault.Wrap(fault.Unavailable, err, "%s broke off the stream", r.Request.URL.Host)
	}
	switch code := r.Trailer.Get(v1.HeaderResult); code {
	case v1.ResultOK:
		return n, io.EOF
	case "":
		return n, fault.New(fault.Unavailable, "%s did not say whether the stream is complete; what is between must pass trailers on", r.Request.URL.Host)
	default:
		return n, fault.Problem{Code: fault.Code(code), Title: fault.Code(code).Title()}.Err()
	}
}

// Close ends the stream, complete or not.
func (r *result) Close() error { return r.Body.Close() }
