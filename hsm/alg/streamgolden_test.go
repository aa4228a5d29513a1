package alg_test

import (
	"bytes"
	"crypto/sha256"
	"reflect"
	"testing"

	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/internal/envelope"
)

const streamFile = "stream.json"

// goldenStream is one stream: inputs first, then every value on the way. Byte i of
// the plaintext is i mod 251.
type goldenStream struct {
	Name             string            `json:"name"`
	Suite            int               `json:"suite"`
	Algorithm        string            `json:"algorithm"`
	BusinessKey      hexBytes          `json:"business_key"`
	Index            uint32            `json:"index"`
	KeyVersion       uint32            `json:"key_version"`
	Salt             hexBytes          `json:"salt"`
	NoncePrefix      hexBytes          `json:"nonce_prefix"`
	Context          map[string]string `json:"context"`
	PlaintextSize    int               `json:"plaintext_bytes"`
	PlaintextDigest  hexBytes          `json:"plaintext_sha256"`
	Info             hexBytes          `json:"info"`
	StreamKey        hexBytes          `json:"stream_key"`
	CanonicalContext hexBytes          `json:"canonical_context"`
	Header           hexBytes          `json:"header"`
	AAD              hexBytes          `json:"aad"`
	Segments         []goldenSegment   `json:"segments"`
	StreamSize       int               `json:"stream_bytes"`
	StreamDigest     hexBytes          `json:"stream_sha256"`
	Stream           hexBytes          `json:"stream"` // of short streams
}

type goldenSegment struct {
	Counter uint32   `json:"counter"`
	Last    bool     `json:"last"`
	Nonce   hexBytes `json:"nonce"`
	Size    int      `json:"plaintext_bytes"`
	Tag     hexBytes `json:"tag"`
	Digest  hexBytes `json:"sha256"` // of ciphertext and tag
}

const shortStream = 512

func streamPlaintext(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i % 251)
	}
	return b
}

func goldenStreams() (all []goldenStream) {
	for _, id := range suites() {
		for _, s := range []struct {
			name           string
			index, version uint32
			context        map[string]string
			size           int
		}{
			{"empty plaintext, no context", 1, 1, nil, 0},
			{"short", 7, 1, map[string]string{"app": "im", "conversation": "c-42"}, 100},
			{"one whole segment", 7, 3, map[string]string{"会话": "群聊一"}, 65536},
			{"a byte more than a segment", 0xffffffff, 0xffffffff, map[string]string{"a": "b"}, 65537},
			{"three segments", 200, 2, map[string]string{"b": "2", "a": "1", "aa": "3"}, 2*65536 + 1000},
		} {
			seed := func(what string, n int) []byte {
				sum := sha256.Sum256([]byte("stream" + id.String() + s.name + what))
				return sum[:n]
			}
			all = append(all, goldenStream{
				Name: s.name, Suite: int(id), Algorithm: id.String(), Index: s.index, KeyVersion: s.version, Context: s.context,
				BusinessKey: seed("key", 32), Salt: seed("salt", 16), NoncePrefix: seed("prefix", 7), PlaintextSize: s.size,
			})
		}
	}
	return all
}

// compute fills in what follows from the inputs, with the code of the product.
func (g goldenStream) compute(t *testing.T) goldenStream {
	t.Helper()
	id := alg.ID(g.Suite)
	a, err := alg.Lookup(id)
	if err != nil {
		t.Fatal(err)
	}
	h := envelope.StreamHeader{Suite: byte(id), Index: g.Index, Version: g.KeyVersion, Salt: [16]byte(g.Salt), Prefix: [7]byte(g.NoncePrefix)}
	g.Info = id.AppendStreamInfo(nil, g.Index, g.KeyVersion)
	g.StreamKey = make([]byte, a.KeySize)
	if err := id.StreamKey(g.StreamKey, g.BusinessKey, g.Salt, g.Index, g.KeyVersion); err != nil {
		t.Fatal(err)
	}
	c, err := alg.NewCipher(id, g.StreamKey)
	if err != nil {
		t.Fatal(err)
	}
	g.CanonicalContext = envelope.Context(g.Context).AppendCanonical(nil)
	g.Header, g.AAD = h.Append(nil), h.AppendAAD(nil, g.CanonicalContext)
	plaintext := streamPlaintext(g.PlaintextSize)
	digest := sha256.Sum256(plaintext)
	g.PlaintextDigest = digest[:]
	stream := bytes.Clone(g.Header)
	g.Segments = nil
	from := envelope.NewSegments(bytes.NewReader(plaintext), make([]byte, envelope.SegmentSize+1), envelope.SegmentSize, 0)
	for {
		s, err := from.Next()
		if err != nil {
			break
		}
		nonce := h.Nonce(s.Counter, s.Last)
		sealed := c.Seal(nil, nonce[:], s.Bytes, g.AAD)
		sum := sha256.Sum256(sealed)
		g.Segments = append(g.Segments, goldenSegment{s.Counter, s.Last, nonce[:], len(s.Bytes), sealed[len(s.Bytes):], sum[:]})
		stream = append(stream, sealed...)
	}
	whole := sha256.Sum256(stream)
	g.StreamSize, g.StreamDigest = len(stream), whole[:]
	g.Stream = hexBytes{}
	if len(stream) <= shortStream {
		g.Stream = stream
	}
	return g
}

func TestGoldenStream(t *testing.T) {
	if *update {
		var all []goldenStream
		for _, g := range goldenStreams() {
			all = append(all, g.compute(t))
		}
		writeVectors(t, streamFile, all)
	}
	for _, g := range readVectors[goldenStream](t, streamFile, 20) {
		if got := g.compute(t); !reflect.DeepEqual(got, g) {
			t.Errorf("%s, %s:\n got %+v\nwant %+v", g.Algorithm, g.Name, got, g)
		}
	}
}
