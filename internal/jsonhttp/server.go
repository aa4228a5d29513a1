// Package jsonhttp is JSON over HTTP, once, for all that speak it: strict
// decoding with bounds, one shape of answer, one shape of error (fault.Problem),
// and the client's side of both.
package jsonhttp

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/trikey/trikey/internal/fault"
)

// ContentType is the media type of requests and answers.
const ContentType = "application/json"

// None is the request or answer that has no body.
type None struct{}

var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// maxKept is the largest buffer that is kept for the next request.
const maxKept = 1 << 20

// Buffer returns an empty buffer, to be given back with Release.
func Buffer() *bytes.Buffer {
	b, _ := buffers.Get().(*bytes.Buffer)
	b.Reset()
	return b
}

// Release takes a buffer back. What was in it is wiped: it may have been
// somebody's message.
func Release(b *bytes.Buffer) {
	if b.Cap() > maxKept {
		return
	}
	clear(b.Bytes()) // all that was written since the last Release
	buffers.Put(b)
}

// Handle returns a handler that decodes a request of at most limit bytes, calls f
// and encodes what it returns. For an In of None the body must be empty.
func Handle[In, Out any](limit int64, f func(r *http.Request, in In) (Out, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var in In
		if err := Decode(w, r, limit, &in); err != nil {
			Error(w, r, err)
			return
		}
		out, err := f(r, in)
		if err != nil {
			Error(w, r, err)
			return
		}
		Write(w, http.StatusOK, out)
	}
}

// ReadBody appends the request's body to buf, and fails with fault.TooLarge when it
// is longer than limit.
func ReadBody(w http.ResponseWriter, r *http.Request, limit int64, buf *bytes.Buffer) error {
	if e := r.Header.Get("Content-Encoding"); e != "" && e != "identity" {
		return fault.New(fault.UnsupportedMedia, "content encoding %q is not supported; send the body as it is", e)
	}
	if r.ContentLength > limit {
		drain(r, limit)
		return tooLarge(limit)
	}
	if r.ContentLength > 0 {
		buf.Grow(int(r.ContentLength) + bytes.MinRead)
	}
	_, err := buf.ReadFrom(http.MaxBytesReader(w, r.Body, limit))
	var over *http.MaxBytesError
	var said *fault.Error
	switch {
	case errors.As(err, &over):
		drain(r, limit)
		return tooLarge(limit)
	case errors.As(err, &said): // what the body itself has found, as that it is not the one signed
		return err
	case err != nil:
		return fault.New(fault.BadRequest, "the body ended early")
	}
	return nil
}

// drain reads the rest of a body that is too large, up to a bound: a client that is
// still sending would not read the answer. One that asked first has sent nothing.
func drain(r *http.Request, limit int64) {
	if r.Header.Get("Expect") != "" { // it waits for an answer (RFC 9110, section 10.1.1)
		return
	}
	_, _ = io.CopyN(io.Discard, r.Body, 4*limit)
}

func tooLarge(limit int64) error {
	return fault.New(fault.TooLarge, "the body is larger than %d bytes", limit)
}

// Decode reads the request's body into the value that into points to. The
// detail of its error names the field that is wrong.
func Decode(w http.ResponseWriter, r *http.Request, limit int64, into any) error {
	buf := Buffer()
	defer Release(buf)
	if err := ReadBody(w, r, limit, buf); err != nil {
		return err
	}
	if _, none := into.(*None); none {
		if buf.Len() > 0 {
			return fault.New(fault.BadRequest, "this request has no body")
		}
		return nil
	}
	if err := CheckType(r, ContentType); err != nil {
		return err
	}
	return Unmarshal(buf.Bytes(), into)
}

// curlDefault is what curl -d says of any body.
const curlDefault = "application/x-www-form-urlencoded"

// CheckType fails unless the request's content type is the given one. A request
// that names none, or what curl names where it is told nothing, is taken as meant.
func CheckType(r *http.Request, want string) error {
	h := r.Header.Get("Content-Type")
	if h == "" || h == want || h == curlDefault {
		return nil
	}
	if media, _, err := mime.ParseMediaType(h); err != nil || media != want {
		return fault.New(fault.UnsupportedMedia, "content type %q is not supported here; use %s", h, want)
	}
	return nil
}

// Unmarshal decodes strictly: no unknown, repeated or wrongly cased names, no
// invalid UTF-8. Its errors are fault.BadRequest and name the field.
func Unmarshal(data []byte, into any) error {
	if tooDeep(data) {
		return fault.New(fault.BadRequest, "the JSON is nested deeper than %d levels", MaxDepth)
	}
	err := json.Unmarshal(data, into, json.RejectUnknownMembers(true))
	if err == nil {
		return nil
	}
	if f := (*fault.Error)(nil); errors.As(err, &f) {
		if at := field(pointerOf(err)); at != "" {
			return fault.New(f.Code, "%s: %s", at, f.Error())
		}
		return f
	}
	var syntax *jsontext.SyntacticError
	if errors.As(err, &syntax) {
		if errors.Is(err, jsontext.ErrDuplicateName) {
			return fault.New(fault.BadRequest, "%s: given twice", field(syntax.JSONPointer))
		}
		if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
			return fault.New(fault.BadRequest, "the JSON ends too early")
		}
		return fault.New(fault.BadRequest, "invalid JSON at byte %d", syntax.ByteOffset)
	}
	at := field(pointerOf(err))
	if errors.Is(err, json.ErrUnknownName) {
		return fault.New(fault.BadRequest, "%s: unknown field", at)
	}
	if at == "" {
		at = "the body"
	}
	return fault.New(fault.BadRequest, "%s: not of the right type or form", at)
}

// MaxDepth is how deep the JSON of a request may be nested.
const MaxDepth = 16

// tooDeep reports whether JSON is nested deeper than MaxDepth. What is no JSON is for
// the decoder to refuse.
func tooDeep(data []byte) bool {
	depth, quoted := 0, false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			if depth++; depth > MaxDepth {
				return true
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return false
}

func pointerOf(err error) jsontext.Pointer {
	var semantic *json.SemanticError
	if errors.As(err, &semantic) {
		return semantic.JSONPointer
	}
	return ""
}

// field writes a JSON pointer the way people name fields: items[3].plaintext.
func field(p jsontext.Pointer) string {
	var b strings.Builder
	for token := range p.Tokens() {
		if _, err := strconv.ParseUint(token, 10, 32); err == nil {
			b.WriteString("[" + token + "]")
			continue
		}
		if b.Len() > 0 {
			b.WriteByte('.')
		}
		b.WriteString(token)
	}
	return b.String()
}

// Write answers with a value as JSON.
func Write(w http.ResponseWriter, status int, value any) {
	buf := Buffer()
	defer Release(buf)
	if err := json.MarshalWrite(buf, value); err != nil {
		// Only a value that cannot be encoded gets here: a bug, seen in its test.
		http.Error(w, "cannot encode the answer", http.StatusInternalServerError)
		return
	}
	send(w, status, ContentType, buf.Bytes())
}

// WriteRaw answers with JSON that is encoded already.
func WriteRaw(w http.ResponseWriter, status int, body []byte) { send(w, status, ContentType, body) }

func send(w http.ResponseWriter, status int, media string, body []byte) {
	h := w.Header()
	h["Content-Type"] = []string{media}
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	h["Cache-Control"] = []string{"no-store"}
	w.WriteHeader(status)
	_, _ = w.Write(body) // a client that went away is no failure of ours
}

// RequestIDHeader carries the id that an error's problem has too.
const RequestIDHeader = "X-Request-Id"

// RetryAfter sets the header field that says when to come back, where err knows.
func RetryAfter(w http.ResponseWriter, err error) {
	if after := fault.RetryAfterOf(err); after > 0 {
		// Whole seconds, rounded up: who comes back in time is let in.
		w.Header().Set("Retry-After", strconv.FormatInt(int64((after+time.Second-1)/time.Second), 10))
	}
}

// Error answers with err as a problem, under a request id that the log has too
// where err is the service's own failure.
func Error(w http.ResponseWriter, r *http.Request, err error) {
	var raw [12]byte
	_, _ = rand.Read(raw[:]) // never fails
	id := hex.EncodeToString(raw[:])
	p := fault.ProblemOf(err, id)
	if p.Status == http.StatusInternalServerError && r.Context().Err() == nil { // who hung up was not failed
		slog.ErrorContext(r.Context(), "request failed", "request_id", id, "method", r.Method, "path", r.URL.Path, "error", err)
	}
	body, failed := json.Marshal(p)
	if failed != nil {
		http.Error(w, "cannot encode the problem", http.StatusInternalServerError)
		return
	}
	w.Header().Set(RequestIDHeader, id)
	RetryAfter(w, err)
	send(w, p.Status, fault.MediaType, body)
}
