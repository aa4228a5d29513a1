package kms

import (
	"bytes"
	"context"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/internal/envelope"
	"github.com/trikey/trikey/kms/auth"
)

// Stream seals or opens the segments of one stream for an app, in any order that
// the format knows (docs/format.md, Stream). It holds no plaintext. Streams may last
// for hours: the app, what it has shown, its address and grant, and the key are looked at
// anew for each segment.
type Stream struct {
	service *Service
	caller  auth.Caller // as it was when the stream began
	call    Call
}

// SealStream begins a stream under the newest version of a key. An app that may not
// is refused here, before it has sent anything.
func (s *Service) SealStream(caller *auth.Caller, key, algorithm string, c envelope.Context) (*Stream, error) {
	return s.stream(caller, Call{Kind: hsm.SealSegment, Key: key, Algorithm: algorithm, Context: c})
}

// OpenStream begins to open the stream of a header. The key is "" for whatever the
// header names.
func (s *Service) OpenStream(caller *auth.Caller, key string, header []byte, c envelope.Context) (*Stream, error) {
	return s.stream(caller, Call{Kind: hsm.OpenSegment, Key: key, Context: c, segment: hsm.Segment{Header: bytes.Clone(header)}})
}

func (s *Service) stream(caller *auth.Caller, c Call) (*Stream, error) {
	l, err := s.serving()
	if err != nil {
		return nil, err
	}
	t := &Stream{service: s, caller: *caller, call: c}
	_, err = t.call.prepare(l, caller, s.cfg.Now)
	return t, err
}

// Key returns what the stream is sealed with.
func (t *Stream) Key() (index, version uint32, algorithm alg.ID) {
	return t.call.KeyIndex, t.call.KeyVersion, t.call.KeyAlgorithm
}

// Do seals or opens a segment and appends the result to dst: before the first
// segment that is sealed, the stream's header. A segment that does not open is
// fault.DecryptFailed, and dst is as it was.
func (t *Stream) Do(ctx context.Context, dst []byte, segment envelope.Segment) ([]byte, error) {
	caller, err := t.allowed()
	if err != nil {
		return dst, err
	}
	c := t.call
	c.Input, c.Output = segment.Bytes, dst
	c.segment.Counter, c.segment.Last = segment.Counter, segment.Last
	calls := []Call{c}
	if err := t.service.Do(ctx, caller, calls); err != nil {
		return dst, err
	}
	if calls[0].Err != nil {
		return dst, calls[0].Err
	}
	out := calls[0].Output
	if t.call.Kind == hsm.SealSegment && t.call.segment.Header == nil {
		t.call.segment.Header = bytes.Clone(out[len(dst) : len(dst)+envelope.StreamHeaderSize])
		t.call.KeyIndex, t.call.KeyVersion, t.call.KeyAlgorithm = calls[0].KeyIndex, calls[0].KeyVersion, calls[0].KeyAlgorithm
	}
	return out, nil
}

// allowed returns the caller with its app as that is by now.
func (t *Stream) allowed() (*auth.Caller, error) {
	apps, err := t.service.Apps()
	if err != nil {
		return nil, err
	}
	if t.caller.Token != nil {
		tokens, err := t.service.Tokens()
		if err == nil {
			err = tokens.Alive(t.caller.Token)
		}
		if err != nil {
			return nil, err
		}
	}
	return apps.Still(&t.caller)
}
