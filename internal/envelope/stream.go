package envelope

import (
	"encoding/binary"
	"io"
	"math"
	"strconv"
	"strings"

	"github.com/trikey/trikey/internal/fault"
)

// A stream is a plaintext of any length, sealed in segments of which each is
// authenticated on its own and says its place: the STREAM construction (Hoang,
// Reyhanitabar, Rogaway and Vizár, Online Authenticated-Encryption and its
// Nonce-Reuse Misuse-Resistance, CRYPTO 2015), with the nonce that Tink and age
// give it.
//
//	header  = version 1 | suite 1 | key index 4 | key version 4 | salt 16 | nonce prefix 7
//	stream  = header | segment 0 | segment 1 | … | last segment
//	segment = ciphertext | tag 16
//	nonce   = nonce prefix 7 | counter of the segment 4 | 1 for the last segment, else 0
const (
	// StreamVersion is the first byte of a stream: no ciphertext begins with it.
	StreamVersion = 2
	// PrefixSize is the length of the part of the nonce that a stream's segments share.
	PrefixSize = 7
	// StreamHeaderSize is the length of a stream's header.
	StreamHeaderSize = boundSize + SaltSize + PrefixSize
	// SegmentSize is how much of the plaintext a segment holds, the last one excepted,
	// which may have less. Only that of the empty plaintext has nothing.
	SegmentSize = 64 << 10
	// SealedSegmentSize is the length of a segment that is not the last.
	SealedSegmentSize = SegmentSize + TagSize
)

// StreamHeader is what stands in front of a stream.
type StreamHeader struct {
	Suite   byte
	Index   uint32 // of the business key
	Version uint32 // of the business key
	Salt    [SaltSize]byte
	Prefix  [PrefixSize]byte
}

// ParseStream reads the header of a stream and returns the rest. Whatever is
// wrong is fault.DecryptFailed.
func ParseStream(b []byte) (StreamHeader, []byte, error) {
	var h StreamHeader
	if len(b) < StreamHeaderSize {
		return h, nil, fault.New(fault.DecryptFailed, "too short to be the header of a stream")
	}
	if b[0] != StreamVersion {
		return h, nil, fault.New(fault.DecryptFailed, "format version %d is not that of a stream", b[0])
	}
	h.Suite = b[1]
	h.Index = binary.BigEndian.Uint32(b[2:])
	h.Version = binary.BigEndian.Uint32(b[6:])
	copy(h.Salt[:], b[boundSize:])
	copy(h.Prefix[:], b[boundSize+SaltSize:])
	return h, b[StreamHeaderSize:], nil
}

// Append appends the header's bytes to dst.
func (h *StreamHeader) Append(dst []byte) []byte {
	dst = append(dst, StreamVersion, h.Suite)
	dst = binary.BigEndian.AppendUint32(dst, h.Index)
	dst = binary.BigEndian.AppendUint32(dst, h.Version)
	dst = append(dst, h.Salt[:]...)
	return append(dst, h.Prefix[:]...)
}

// AppendAAD appends what the tag of every segment authenticates besides its
// plaintext: the whole header, and the canonical context.
func (h *StreamHeader) AppendAAD(dst, canonical []byte) []byte {
	return append(h.Append(dst), canonical...)
}

// Nonce is that of one segment. The counter makes segments stay in their order,
// the flag makes the end of the stream its end.
func (h *StreamHeader) Nonce(counter uint32, last bool) (nonce [NonceSize]byte) {
	copy(nonce[:], h.Prefix[:])
	binary.BigEndian.PutUint32(nonce[PrefixSize:], counter)
	if last {
		nonce[NonceSize-1] = 1
	}
	return nonce
}

// ValidSegment reports whether n bytes of plaintext may be a segment: whole unless it
// is the last, and not empty unless it is the only one. So a plaintext has one
// division into segments.
func ValidSegment(counter uint32, last bool, n int) bool {
	switch {
	case !last:
		return n == SegmentSize && counter < math.MaxUint32
	case n == 0:
		return counter == 0
	}
	return n > 0 && n <= SegmentSize
}

// Segments divides what a reader has into segments. It holds one segment, and a
// byte of the next, by which it knows that there is one.
type Segments struct {
	from io.Reader
	buf  []byte // room for one segment and a byte
	held int    // bytes of the next segment that are in buf already, 0 or 1
	next uint64 // counter of the next segment
	end  bool
}

// NewSegments divides into segments of size bytes: SegmentSize for plaintext,
// SealedSegmentSize for what was sealed. The first one has the counter first. buf
// has room for size bytes and one more.
func NewSegments(from io.Reader, buf []byte, size int, first uint32) *Segments {
	return &Segments{from: from, buf: buf[:size+1], next: uint64(first)}
}

// Segment is a piece of a stream.
type Segment struct {
	Bytes   []byte // until the next one is asked for
	Counter uint32
	Last    bool // nothing follows
}

// Next returns the next segment, io.EOF after the last. There is always one, which
// may be empty. An error of the reader is returned as it is, an end that comes too
// early (io.ErrUnexpectedEOF) too: it is no end of the stream.
func (s *Segments) Next() (Segment, error) {
	if s.end {
		return Segment{}, io.EOF
	}
	if s.next > math.MaxUint32 {
		return Segment{}, fault.New(fault.TooLarge, "a stream has at most %d segments of %d bytes", uint64(1)<<32, SegmentSize)
	}
	size := len(s.buf) - 1
	if s.held == 1 {
		s.buf[0] = s.buf[size]
	}
	n, err := s.held, error(nil)
	for n < len(s.buf) && err == nil {
		var more int
		more, err = s.from.Read(s.buf[n:])
		n += more
	}
	if err != nil && err != io.EOF { //nolint:errorlint // a wrapped end is not the end
		return Segment{}, err
	}
	got := Segment{Bytes: s.buf[:min(n, size)], Counter: uint32(s.next), Last: n <= size}
	s.next++
	s.held, s.end = n-len(got.Bytes), got.Last
	return got, nil
}

// SegmentRange is some of a stream's segments: those from First on to the end of
// the stream, or those from First to Last, none of which is the stream's last.
type SegmentRange struct {
	First uint32
	Last  uint32 // ignored where ToEnd is set
	ToEnd bool
}

// ParseSegmentRange reads FIRST- or FIRST-LAST, in decimal.
func ParseSegmentRange(text string) (SegmentRange, error) {
	first, last, ok := strings.Cut(text, "-")
	r := SegmentRange{ToEnd: last == ""}
	var err error
	if r.First, err = parseCounter(first); err == nil && !r.ToEnd {
		r.Last, err = parseCounter(last)
	}
	if !ok || err != nil || !r.ToEnd && r.Last < r.First {
		return r, fault.New(fault.BadRequest, "segments: %.40q is not FIRST- or FIRST-LAST, counted from 0", text)
	}
	return r, nil
}

// parseCounter takes digits alone, without a sign or zeros in front.
func parseCounter(text string) (uint32, error) {
	n, err := strconv.ParseUint(text, 10, 32)
	if err == nil && strconv.FormatUint(n, 10) != text {
		err = strconv.ErrSyntax
	}
	return uint32(n), err
}

// String writes the range as ParseSegmentRange reads it.
func (r SegmentRange) String() string {
	first := strconv.FormatUint(uint64(r.First), 10) + "-"
	if r.ToEnd {
		return first
	}
	return first + strconv.FormatUint(uint64(r.Last), 10)
}

// StreamSize returns how many segments a stream of size bytes has, its header
// included, and how long its plaintext is; false where no stream is so long.
func StreamSize(size int64) (segments, plaintext int64, ok bool) {
	sealed := size - StreamHeaderSize
	if sealed < TagSize {
		return 0, 0, false
	}
	segments = (sealed + SealedSegmentSize - 1) / SealedSegmentSize
	plaintext = sealed - segments*TagSize
	// The last segment has its tag, and something before it unless it is the only one.
	rest := sealed - (segments-1)*SealedSegmentSize
	return segments, plaintext, rest > TagSize || segments == 1
}
