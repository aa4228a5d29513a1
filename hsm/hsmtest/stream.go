package hsmtest

import (
	"bytes"
	"testing"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/internal/envelope"
	"github.com/trikey/trikey/internal/fault"
)

// sealStream seals the pieces as the segments of one stream.
func (m *machine) sealStream(key hsm.WrappedKey, suite alg.ID, pieces ...[]byte) (header []byte, segments [][]byte) {
	m.t.Helper()
	for i, p := range pieces {
		out := m.must(hsm.Op{
			Kind: hsm.SealSegment, Key: key, Algorithm: suite, Context: here, Input: p, Output: []byte("kept"),
			Segment: hsm.Segment{Header: header, Counter: uint32(i), Last: i == len(pieces)-1},
		})
		out, found := bytes.CutPrefix(out, []byte("kept"))
		if !found {
			m.t.Fatal("Output was not appended to")
		}
		if i == 0 {
			header, out = out[:envelope.StreamHeaderSize], out[envelope.StreamHeaderSize:]
		}
		segments = append(segments, out)
	}
	return header, segments
}

func piece(b byte, n int) []byte { return bytes.Repeat([]byte{b}, n) }

func testStream(t *testing.T, m *machine) {
	if !m.streams {
		key := m.key(7, 1, alg.AES256GCM)
		m.refused("a stream", fault.AlgorithmNotAllowed, hsm.Op{Kind: hsm.SealSegment, Key: key, Input: []byte("x"), Segment: hsm.Segment{Last: true}})
		m.refused("a segment", fault.AlgorithmNotAllowed, hsm.Op{Kind: hsm.OpenSegment, Key: key, Input: piece(1, 100), Segment: hsm.Segment{Last: true}})
		return
	}
	for _, id := range []alg.ID{alg.AES256GCM, alg.AES128GCM, alg.ChaCha20Poly1305, alg.SM4GCM} {
		key := m.key(7, 3, id)
		for _, pieces := range [][][]byte{
			{nil},
			{[]byte("x")},
			{piece(1, envelope.SegmentSize)},
			{piece(1, envelope.SegmentSize), piece(1, envelope.SegmentSize), []byte("end")},
		} {
			header, segments := m.sealStream(key, 0, pieces...)
			h, rest, err := envelope.ParseStream(header)
			if err != nil || len(rest) > 0 || h.Suite != byte(id) || h.Index != 7 || h.Version != 3 {
				t.Errorf("%s: header %+v, %v", id, h, err)
			}
			for i, s := range segments {
				at := hsm.Segment{Header: header, Counter: uint32(i), Last: i == len(segments)-1}
				got := m.must(hsm.Op{Kind: hsm.OpenSegment, Key: key, Context: here, Segment: at, Input: s})
				if !bytes.Equal(got, pieces[i]) || len(s) != len(pieces[i])+envelope.TagSize {
					t.Errorf("%s: segment %d opens to %d bytes", id, i, len(got))
				}
				again := hsm.Op{Kind: hsm.SealSegment, Key: key, Context: here, Segment: at, Input: pieces[i]}
				if !bytes.Equal(m.must(again), s) {
					t.Errorf("%s: segment %d, sealed again, is another", id, i)
				}
			}
			if i := len(segments) - 1; i > 0 && bytes.Equal(segments[0], segments[1]) {
				t.Errorf("%s: equal pieces give equal segments", id)
			}
		}
		other, _ := m.sealStream(key, alg.SM4GCM, nil)
		again, _ := m.sealStream(key, alg.SM4GCM, nil)
		if other[1] != byte(alg.SM4GCM) || bytes.Equal(other[10:], again[10:]) {
			t.Errorf("%s: headers %x and %x", id, other, again)
		}
	}
}

func testStreamPlaces(t *testing.T, m *machine) {
	if !m.streams {
		return // testStream has seen that it refuses them
	}
	key := m.key(7, 1, alg.AES256GCM)
	whole := piece(1, envelope.SegmentSize)
	header, segments := m.sealStream(key, 0, whole, whole, []byte("end"))
	otherHeader, otherSegments := m.sealStream(key, 0, whole, whole, []byte("end"))
	open := func(header []byte, counter uint32, last bool, input []byte) hsm.Op {
		return hsm.Op{Kind: hsm.OpenSegment, Key: key, Context: here, Input: input, Segment: hsm.Segment{Header: header, Counter: counter, Last: last}}
	}
	m.must(open(header, 1, false, segments[1]))
	for i := range header {
		bad := bytes.Clone(header)
		bad[i] ^= 1
		m.refused("a changed header", fault.DecryptFailed, open(bad, 1, false, segments[1]))
	}
	for _, at := range []int{0, 1000, len(segments[1]) - 1} {
		bad := bytes.Clone(segments[1])
		bad[at] ^= 1
		m.refused("a changed segment", fault.DecryptFailed, open(header, 1, false, bad))
	}
	m.refused("another place", fault.DecryptFailed, open(header, 0, false, segments[1]))
	m.refused("as the last", fault.DecryptFailed, open(header, 1, true, segments[1]))
	m.refused("the last, not as the last", fault.DecryptFailed, open(header, 2, false, segments[2]))
	m.refused("of another stream", fault.DecryptFailed, open(header, 1, false, otherSegments[1]))
	m.refused("under another stream's header", fault.DecryptFailed, open(otherHeader, 1, false, segments[1]))
	m.refused("a missing end", fault.DecryptFailed, open(header, 2, true, segments[2][:10]))
	m.refused("nothing", fault.DecryptFailed, open(header, 0, true, nil))
	m.refused("no header", fault.DecryptFailed, open(nil, 0, true, segments[0]))
	m.refused("a header and more", fault.DecryptFailed, open(append(bytes.Clone(header), 0), 1, false, segments[1]))
	moved := open(header, 1, false, segments[1])
	moved.Context = there
	m.refused("another context", fault.DecryptFailed, moved)
	moved = open(header, 1, false, segments[1])
	moved.Key = m.key(7, 1, alg.AES256GCM)
	m.refused("another key of the same name", fault.DecryptFailed, moved)
	moved.Key = m.key(7, 2, alg.AES256GCM)
	m.refused("another version", fault.DecryptFailed, moved)

	// A message does not pass for a segment under the same salt, nor the reverse: their
	// keys are derived for their uses.
	message := m.must(hsm.Op{Kind: hsm.Encrypt, Key: key, Context: here, Input: []byte("x")})
	h, body, _ := envelope.Parse(message)
	forged := envelope.StreamHeader{Suite: h.Suite, Index: h.Index, Version: h.Version, Salt: h.Salt, Prefix: [7]byte(h.Nonce[:7])}
	m.refused("a message", fault.DecryptFailed, open(forged.Append(nil), 0, true, body))

	seal := func(header []byte, counter uint32, last bool, n int) hsm.Op {
		return hsm.Op{Kind: hsm.SealSegment, Key: key, Context: here, Input: make([]byte, n), Segment: hsm.Segment{Header: header, Counter: counter, Last: last}}
	}
	m.refused("half a segment", fault.BadRequest, seal(nil, 0, false, 100))
	m.refused("an empty last segment", fault.BadRequest, seal(header, 1, true, 0))
	m.refused("too large a segment", fault.BadRequest, seal(nil, 0, true, envelope.SegmentSize+1))
	m.refused("a later segment without header", fault.BadRequest, seal(nil, 1, true, 1))
	m.refused("the counter's end", fault.BadRequest, seal(header, 1<<32-1, false, envelope.SegmentSize))
	m.refused("another key's header", fault.BadRequest, func() hsm.Op { op := seal(header, 1, true, 1); op.Key = m.key(8, 1, alg.AES256GCM); return op }())
}
