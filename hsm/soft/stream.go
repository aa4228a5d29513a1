package soft

import (
	"crypto/rand"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/internal/envelope"
	"github.com/trikey/trikey/internal/fault"
)

// sealSegment seals one segment of a stream. The stream's key is derived once and
// then found in the cache of message keys, by its salt.
func (b *bench) sealSegment(op *hsm.Op) ([]byte, error) {
	dst, at := op.Output, op.Segment
	if !envelope.ValidSegment(at.Counter, at.Last, len(op.Input)) {
		return dst, fault.New(fault.BadRequest, "a segment of %d bytes cannot be number %d of a stream; all but the last have %d",
			len(op.Input), at.Counter, envelope.SegmentSize)
	}
	s, k, err := b.business(op.Key)
	if err != nil {
		return dst, err
	}
	header, err := sealingHeader(op, k)
	if err != nil {
		return dst, err
	}
	c, err := b.cipher(s, op.Key, k, streams, alg.ID(header.Suite), header.Salt)
	if err != nil {
		return dst, err
	}
	if len(at.Header) == 0 {
		dst = header.Append(dst)
	}
	b.scratch = header.AppendAAD(b.scratch[:0], op.Context)
	nonce := header.Nonce(at.Counter, at.Last)
	return c.Seal(dst, nonce[:], op.Input, b.scratch), nil
}

// sealingHeader is the header of the stream that a segment is sealed for: a new one
// for its first, with a salt and nonce prefix from the kernel.
func sealingHeader(op *hsm.Op, k *business) (header envelope.StreamHeader, err error) {
	if len(op.Segment.Header) > 0 {
		header, err = openingHeader(op, k)
		if err != nil {
			return header, fault.New(fault.BadRequest, "the header is not that of a stream under this key")
		}
		return header, nil
	}
	if op.Segment.Counter != 0 {
		return header, fault.New(fault.BadRequest, "segment %d of a stream without its header", op.Segment.Counter)
	}
	suite := op.Algorithm
	if suite == 0 {
		suite = k.header.Algorithm
	}
	if err := streamable(k, suite); err != nil {
		return header, err
	}
	header = envelope.StreamHeader{Suite: byte(suite), Index: k.header.Index, Version: k.header.Version}
	_, _ = rand.Read(header.Salt[:]) // never fails
	_, _ = rand.Read(header.Prefix[:])
	return header, nil
}

// streamable reports why a key does not seal streams with a suite.
func streamable(k *business, suite alg.ID) error {
	if k.header.Purpose != hsm.PurposeSeal {
		return k.header.Purpose.Refusal(k.header.Index, "seal streams")
	}
	a, err := alg.Suite(suite)
	if err == nil && a.Padding > 0 {
		err = fault.New(fault.AlgorithmNotAllowed, "%s has no streams; name another algorithm for this one", a.Name)
	}
	return err
}

// openingHeader reads the header of a segment's stream, which must be the key's.
func openingHeader(op *hsm.Op, k *business) (envelope.StreamHeader, error) {
	header, rest, err := envelope.ParseStream(op.Segment.Header)
	if err != nil {
		return header, err
	}
	if streamable(k, alg.ID(header.Suite)) != nil || len(rest) > 0 || header.Index != k.header.Index || header.Version != k.header.Version {
		return header, fault.DecryptFailed
	}
	return header, nil
}

// openSegment returns fault.DecryptFailed whatever the segment's fault is, its place
// in the stream among them; other errors are the machine's own.
func (b *bench) openSegment(op *hsm.Op) ([]byte, error) {
	at := op.Segment
	if !envelope.ValidSegment(at.Counter, at.Last, len(op.Input)-envelope.TagSize) {
		return op.Output, fault.DecryptFailed
	}
	s, k, err := b.business(op.Key)
	if err != nil {
		return op.Output, err
	}
	header, err := openingHeader(op, k)
	if err != nil {
		return op.Output, err
	}
	c, err := b.cipher(s, op.Key, k, streams, alg.ID(header.Suite), header.Salt)
	if err != nil {
		return op.Output, err
	}
	b.scratch = header.AppendAAD(b.scratch[:0], op.Context)
	nonce := header.Nonce(at.Counter, at.Last)
	out, err := c.Open(op.Output, nonce[:], op.Input, b.scratch)
	if err != nil {
		return op.Output, fault.DecryptFailed
	}
	return out, nil
}
