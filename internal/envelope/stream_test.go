package envelope_test

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"github.com/trikey/trikey/internal/envelope"
	"github.com/trikey/trikey/internal/fault"
)

func cut(t *testing.T, r io.Reader, size int, first uint32) (all []envelope.Segment, err error) {
	t.Helper()
	from := envelope.NewSegments(r, make([]byte, size+1), size, first)
	for {
		s, err := from.Next()
		if err != nil {
			return all, err
		}
		s.Bytes = bytes.Clone(s.Bytes)
		all = append(all, s)
	}
}

func TestSegments(t *testing.T) {
	for _, test := range []struct {
		n    int
		want []int
	}{{0, []int{0}}, {1, []int{1}}, {7, []int{7}}, {8, []int{8}}, {9, []int{8, 1}}, {16, []int{8, 8}}, {17, []int{8, 8, 1}}} {
		content := bytes.Repeat([]byte("abcdefg"), 3)[:test.n]
		for name, r := range map[string]io.Reader{
			"whole": bytes.NewReader(content), "bytes": iotest.OneByteReader(bytes.NewReader(content)), "end with data": iotest.DataErrReader(bytes.NewReader(content)),
		} {
			all, err := cut(t, r, 8, 5)
			if !errors.Is(err, io.EOF) || len(all) != len(test.want) {
				t.Fatalf("%s, %d bytes: %d segments, %v", name, test.n, len(all), err)
			}
			var joined []byte
			for i, s := range all {
				joined = append(joined, s.Bytes...)
				if len(s.Bytes) != test.want[i] || s.Last != (i == len(all)-1) || s.Counter != uint32(5+i) {
					t.Errorf("%s, %d bytes: segment %d is %+v", name, test.n, i, s)
				}
			}
			if !bytes.Equal(joined, content) {
				t.Errorf("%s: %q became %q", name, content, joined)
			}
		}
	}
	// An end that comes too early is no end.
	for _, failed := range []error{io.ErrUnexpectedEOF, errors.New("reset")} {
		all, err := cut(t, io.MultiReader(bytes.NewReader(make([]byte, 20)), iotest.ErrReader(failed)), 8, 0)
		if !errors.Is(err, failed) || len(all) != 2 || all[1].Last {
			t.Errorf("%v: %+v, %v", failed, all, err)
		}
	}
	// 2^32 segments and no more.
	all, err := cut(t, bytes.NewReader(make([]byte, 24)), 8, 1<<32-2)
	if !errors.Is(err, fault.TooLarge) || len(all) != 2 {
		t.Errorf("%d segments, %v", len(all), err)
	}
	if all, err := cut(t, bytes.NewReader(make([]byte, 16)), 8, 1<<32-2); !errors.Is(err, io.EOF) || len(all) != 2 || !all[1].Last {
		t.Errorf("%+v, %v", all, err)
	}
}

func TestValidSegment(t *testing.T) {
	const whole = envelope.SegmentSize
	for _, test := range []struct {
		counter uint32
		last    bool
		n       int
		want    bool
	}{
		{0, true, 0, true},
		{0, true, 1, true},
		{0, true, whole, true},
		{0, true, whole + 1, false},
		{0, true, -1, false},
		{1, true, 0, false},
		{1, true, 1, true},
		{1, true, -16, false},
		{0, false, whole, true},
		{0, false, whole - 1, false},
		{0, false, 0, false},
		{0, false, whole + 1, false},
		{1<<32 - 1, false, whole, false},
		{1<<32 - 1, true, whole, true},
	} {
		if got := envelope.ValidSegment(test.counter, test.last, test.n); got != test.want {
			t.Errorf("%+v: %v", test, got)
		}
	}
}

func TestStreamSize(t *testing.T) {
	const head, sealed = envelope.StreamHeaderSize, envelope.SealedSegmentSize
	for _, test := range []struct {
		size, segments, plaintext int64
		ok                        bool
	}{
		{0, 0, 0, false},
		{head, 0, 0, false},
		{head + 15, 0, 0, false},
		{head + 16, 1, 0, true},
		{head + 17, 1, 1, true},
		{head + sealed, 1, 65536, true},
		{head + sealed + 16, 2, 65536, false},
		{head + sealed + 17, 2, 65537, true},
		{head + 3*sealed, 3, 3 * 65536, true},
	} {
		if segments, plaintext, ok := envelope.StreamSize(test.size); ok != test.ok || ok && (segments != test.segments || plaintext != test.plaintext) {
			t.Errorf("%d: %d, %d, %v", test.size, segments, plaintext, ok)
		}
	}
}

// Two places never have one nonce, and no nonce is that of another stream's prefix.
func FuzzStream(f *testing.F) {
	f.Add(bytes.Repeat([]byte{2}, 60), uint32(0), true, uint32(1))
	f.Add([]byte{2}, uint32(1<<32-1), false, uint32(0))
	f.Add(sample, uint32(256), false, uint32(1))
	f.Fuzz(func(t *testing.T, b []byte, counter uint32, last bool, other uint32) {
		h, rest, err := envelope.ParseStream(b)
		if err != nil {
			if len(b) >= envelope.StreamHeaderSize && b[0] == envelope.StreamVersion {
				t.Errorf("%x: %v", b, err)
			}
			return
		}
		if !bytes.Equal(append(h.Append(nil), rest...), b) {
			t.Errorf("%x does not survive", b)
		}
		nonce := h.Nonce(counter, last)
		if nonce == h.Nonce(counter, !last) || (nonce == h.Nonce(other, last)) != (counter == other) || !bytes.HasPrefix(nonce[:], h.Prefix[:]) {
			t.Errorf("%x, %d, %v: %x", b, counter, last, nonce)
		}
	})
}

// However a stream arrives, its segments are the same, and all of it.
func FuzzSegments(f *testing.F) {
	f.Add([]byte{}, uint8(8), uint32(0), uint8(1))
	f.Add([]byte("exactly eight in two"[:16]), uint8(8), uint32(3), uint8(3))
	f.Add([]byte("a byte more than one"), uint8(19), uint32(1<<32-1), uint8(255))
	f.Fuzz(func(t *testing.T, content []byte, size uint8, first uint32, step uint8) {
		n := max(1, int(size))
		all, err := cut(t, &steps{bytes.NewReader(content), max(1, int(step))}, n, first)
		var joined []byte
		for i, s := range all {
			joined = append(joined, s.Bytes...)
			if s.Counter != first+uint32(i) || s.Counter < first || !s.Last && len(s.Bytes) != n || s.Last && i < len(all)-1 || len(s.Bytes) == 0 && len(all) > 1 {
				t.Errorf("segment %d of %d: %+v", i, len(all), s)
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			if !bytes.Equal(joined, content) || !all[len(all)-1].Last {
				t.Errorf("%q became %q", content, joined)
			}
		case !errors.Is(err, fault.TooLarge) || uint64(first)+uint64(len(content)/n) < 1<<32:
			t.Error(err)
		}
	})
}

// steps gives at most so many bytes at once.
type steps struct {
	io.Reader
	n int
}

func (s *steps) Read(b []byte) (int, error) { return s.Reader.Read(b[:min(len(b), s.n)]) }

// A range that is accepted is written as it was read.
func FuzzSegmentRange(f *testing.F) {
	for _, text := range []string{"0-", "3-7", "7-3", "-", "1", "01-", "4294967295-4294967295", "+1-", "1-2-3", "4294967296-"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := envelope.ParseSegmentRange(text)
		if err == nil && (r.String() != text || !r.ToEnd && r.Last < r.First) {
			t.Errorf("%q is read as %+v", text, r)
		}
		if err != nil && !errors.Is(err, fault.BadRequest) {
			t.Errorf("%q: %v", text, err)
		}
	})
}
