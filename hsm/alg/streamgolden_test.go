package alg_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
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

// The same from docs/format.md alone, with nothing of the product.
func TestGoldenStreamByHand(t *testing.T) {
	for _, g := range readVectors[goldenStream](t, streamFile, 20) {
		header := append([]byte{2, byte(g.Suite)}, binary.BigEndian.AppendUint32(nil, g.Index)...)
		header = binary.BigEndian.AppendUint32(header, g.KeyVersion)
		header = append(append(header, g.Salt...), g.NoncePrefix...)
		aad := append(bytes.Clone(header), canonicalByHand(g.Context)...)
		info := append([]byte("trikey/v1/stream"), header[1:10]...)
		key := messageKeyByHand(byte(g.Suite), g.BusinessKey, g.Salt, info)
		aead, err := aeadByHand(byte(g.Suite), key)
		if err != nil {
			t.Fatal(err)
		}
		plaintext, stream := streamPlaintext(g.PlaintextSize), bytes.Clone(header)
		for i := 0; ; i++ {
			rest := plaintext[i*65536:]
			last := len(rest) <= 65536
			nonce := binary.BigEndian.AppendUint32(bytes.Clone(g.NoncePrefix), uint32(i))
			nonce = append(nonce, 0)
			if last {
				nonce[11] = 1
			}
			piece := rest[:min(len(rest), 65536)]
			sealed := aead.Seal(nil, nonce, piece, aad)
			sum := sha256.Sum256(sealed)
			if i >= len(g.Segments) {
				t.Fatalf("%s, %s: more than %d segments", g.Algorithm, g.Name, i)
			}
			want := g.Segments[i]
			if !bytes.Equal(nonce, want.Nonce) || !bytes.Equal(sum[:], want.Digest) || !bytes.Equal(sealed[len(piece):], want.Tag) ||
				want.Last != last || int(want.Counter) != i || want.Size != len(piece) {
				t.Errorf("%s, %s: segment %d: %+v", g.Algorithm, g.Name, i, want)
			}
			stream = append(stream, sealed...)
			if last {
				break
			}
		}
		whole, plain := sha256.Sum256(stream), sha256.Sum256(plaintext)
		for what, same := range map[string]bool{
			"header": bytes.Equal(header, g.Header), "AAD": bytes.Equal(aad, g.AAD), "info": bytes.Equal(info, g.Info), "key": bytes.Equal(key, g.StreamKey),
			"stream digest": bytes.Equal(whole[:], g.StreamDigest), "plaintext digest": bytes.Equal(plain[:], g.PlaintextDigest),
			"size": len(stream) == g.StreamSize, "stream": len(stream) > shortStream && len(g.Stream) == 0 || bytes.Equal(stream, g.Stream),
		} {
			if !same {
				t.Errorf("%s, %s: another %s", g.Algorithm, g.Name, what)
			}
		}
	}
}
