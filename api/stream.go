package api

import (
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	v1 "github.com/trikey/trikey/api/v1"
	"github.com/trikey/trikey/internal/envelope"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/jsonhttp"
	"github.com/trikey/trikey/kms"
)

// segmentTime is how long a caller may take to send a segment, or to take one: a
// stream as a whole may last as long as it likes, but not stand still.
const segmentTime = time.Minute

// streamBuffers are what a stream has in memory, whatever its length.
type streamBuffers struct {
	in  [envelope.SealedSegmentSize + 1]byte
	out [envelope.StreamHeaderSize + envelope.SealedSegmentSize]byte
}

var streamPool = sync.Pool{New: func() any { return new(streamBuffers) }}

// release wipes the buffers: one of them had plaintext.
func (b *streamBuffers) release() {
	clear(b.in[:])
	clear(b.out[:])
	streamPool.Put(b)
}

func (s *server) streamEncrypt(r *request) error {
	r.lastOfItsConnection()
	context, err := r.streamContext()
	if err != nil {
		return err
	}
	stream, err := s.cfg.Service.SealStream(r.caller, r.key(), r.Header.Get(v1.HeaderAlgorithm), context)
	if err != nil {
		return err
	}
	b, _ := streamPool.Get().(*streamBuffers)
	defer b.release()
	return r.pump(stream, b, envelope.NewSegments(paced(r), b.in[:], envelope.SegmentSize, 0), envelope.SegmentRange{ToEnd: true})
}

func (s *server) streamDecrypt(r *request) error {
	r.lastOfItsConnection()
	context, err := r.streamContext()
	if err != nil {
		return err
	}
	which, header, err := r.segments()
	if err != nil {
		return err
	}
	if header == nil {
		header = make([]byte, envelope.StreamHeaderSize)
		if _, err := io.ReadFull(paced(r), header); err != nil {
			header = nil // as with any other fault of a ciphertext, the grant comes first
		}
	}
	stream, err := s.cfg.Service.OpenStream(r.caller, r.key(), header, context)
	if err != nil {
		return err
	}
	b, _ := streamPool.Get().(*streamBuffers)
	defer b.release()
	return r.pump(stream, b, envelope.NewSegments(paced(r), b.in[:], envelope.SealedSegmentSize, which.First), which)
}

// streamContext reads what both directions have in their headers.
func (r *request) streamContext() (envelope.Context, error) {
	if !r.ProtoAtLeast(1, 1) {
		// Its end is the connection's: nobody could tell a broken answer from a whole one.
		return nil, fault.New(fault.BadRequest, "streams need HTTP/1.1 or HTTP/2; this is %s", r.Proto)
	}
	if err := jsonhttp.CheckType(r.Request, v1.OctetStream); err != nil {
		return nil, err
	}
	if e := r.Header.Get("Content-Encoding"); e != "" && e != "identity" {
		return nil, fault.New(fault.UnsupportedMedia, "content encoding %q is not supported; send the body as it is", e)
	}
	return headerContext(r.Header.Get(v1.HeaderContext))
}

// segments reads which segments the body has, and the header of their stream when it
// is not in the body.
func (r *request) segments() (envelope.SegmentRange, []byte, error) {
	text, encoded := r.Header.Get(v1.HeaderSegments), r.Header.Get(v1.HeaderStream)
	if text == "" && encoded == "" {
		return envelope.SegmentRange{ToEnd: true}, nil, nil
	}
	if text == "" || encoded == "" {
		return envelope.SegmentRange{}, nil, fault.New(fault.BadRequest, "%s and %s go together", v1.HeaderSegments, v1.HeaderStream)
	}
	which, err := envelope.ParseSegmentRange(text)
	if err != nil {
		return which, nil, fault.New(fault.BadRequest, "%s: %v", v1.HeaderSegments, err)
	}
	header, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil || len(header) != envelope.StreamHeaderSize {
		return which, nil, fault.New(fault.BadRequest, "%s: not base64 of the %d bytes that a stream begins with", v1.HeaderStream, envelope.StreamHeaderSize)
	}
	return which, header, nil
}

// pump carries segments from the body through the machine to the answer. Nothing
// that was not authenticated gets there.
func (r *request) pump(stream *kms.Stream, b *streamBuffers, from *envelope.Segments, which envelope.SegmentRange) error {
	c := http.NewResponseController(r.w)
	// The answer begins while the body is still coming.
	if err := c.EnableFullDuplex(); err != nil {
		return fault.Wrap(fault.Internal, err, "full duplex")
	}
	for {
		segment, err := from.Next()
		switch {
		case errors.Is(err, io.EOF):
			return r.finish()
		case err != nil && fault.CodeOf(err) == fault.Internal:
			return fault.New(fault.BadRequest, "the body ended early, or nothing of it came for %s", segmentTime)
		case err != nil:
			return err
		}
		if !which.ToEnd {
			// The body ends with segment LAST, which is not the last of its stream.
			if segment.Last != (segment.Counter == which.Last) {
				return fault.New(fault.DecryptFailed, "the body has not the segments %s", which)
			}
			segment.Last = false
		}
		out, err := stream.Do(r.Context(), b.out[:0], segment)
		if err != nil {
			return err
		}
		r.items++
		r.bytes += int64(min(len(segment.Bytes), len(out)))
		if !r.begun {
			r.begin(stream, segment.Last)
		}
		if err := c.SetWriteDeadline(time.Now().Add(segmentTime)); err != nil {
			return fault.Wrap(fault.Internal, err, "deadline")
		}
		if _, err := r.w.Write(out); err != nil {
			return fault.New(fault.BadRequest, "the caller takes no more of the answer")
		}
	}
}

// lastOfItsConnection has an HTTP/1.1 connection closed after the answer. Where
// answers begin before the request has ended, what is left of the request when
// something fails must not be read as the next request.
func (r *request) lastOfItsConnection() {
	if r.ProtoMajor == 1 {
		r.w.Header().Set("Connection", "close")
	}
}

// begin writes the head of the answer. When the whole body was read before it, the
// connection serves on.
func (r *request) begin(stream *kms.Stream, whole bool) {
	r.begun = true
	index, version, algorithm := stream.Key()
	r.calls = []kms.Call{{KeyIndex: index, KeyVersion: version}}
	h := r.w.Header()
	if whole {
		h.Del("Connection")
	}
	h.Set("Content-Type", v1.OctetStream)
	h.Set("Cache-Control", "no-store")
	h.Set(v1.HeaderKey, strconv.FormatUint(uint64(index), 10))
	h.Set(v1.HeaderVersion, strconv.FormatUint(uint64(version), 10))
	h.Set(v1.HeaderAlgorithm, algorithm.String())
	if r.wantsTrailer() {
		h.Set("Trailer", v1.HeaderResult)
	}
	r.w.WriteHeader(http.StatusOK)
}

func (r *request) wantsTrailer() bool { return r.Header.Get(v1.HeaderResult) == v1.ResultTrailer }

// finish ends an answer that is complete.
func (r *request) finish() error {
	if r.wantsTrailer() {
		r.w.Header().Set(v1.HeaderResult, v1.ResultOK)
	}
	return nil
}

// breakOff ends an answer that is not complete so that nobody takes it for one that
// is: a caller that reads trailers is told why; for any other the connection ends in
// the middle of the body.
func (r *request) breakOff(err error) {
	if !r.wantsTrailer() {
		panic(http.ErrAbortHandler) // what net/http knows as the way to do that
	}
	r.w.Header().Set(v1.HeaderResult, string(fault.CodeOf(err)))
}

// paced is the request's body with a time limit on each read, instead of that on the
// whole.
func paced(r *request) io.Reader { return &pacedReader{http.NewResponseController(r.w), r.Body} }

type pacedReader struct {
	c    *http.ResponseController
	body io.Reader
}

// Read reads from the body.
func (p *pacedReader) Read(b []byte) (int, error) {
	if err := p.c.SetReadDeadline(time.Now().Add(segmentTime)); err != nil {
		return 0, err
	}
	return p.body.Read(b)
}
