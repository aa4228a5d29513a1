package main_test

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/trikey/trikey/sdk"
)

const (
	streamHeader  = 33
	segment       = 64 << 10
	sealedSegment = segment + 16
)

// streamed is the answer of a stream call: what came of it, and whether it ended well.
type streamed struct {
	answer
	broken error  // the answer was broken off
	result string // the trailer
	proto  string
}

// stream sends a body to POST /v1/stream/….
func (s *site) stream(path string, body io.Reader, context object, header ...string) streamed {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodPost, s.api+"/v1/stream/"+path, body)
	if err != nil {
		s.t.Fatal(err)
	}
	req.SetBasicAuth(s.key, s.secret)
	req.Header.Set("Content-Type", "application/octet-stream")
	if context != nil {
		raw, err := json.Marshal(context)
		if err != nil {
			s.t.Fatal(err)
		}
		req.Header.Set("Trikey-Context", base64.StdEncoding.EncodeToString(raw))
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := s.client.Do(req)
	if err != nil {
		return streamed{broken: err}
	}
	defer func() { _ = res.Body.Close() }()
	a := streamed{answer: answer{status: res.StatusCode, header: res.Header}, proto: res.Proto}
	a.raw, a.broken = io.ReadAll(res.Body)
	a.result = res.Trailer.Get("Trikey-Result")
	if strings.HasSuffix(res.Header.Get("Content-Type"), "json") {
		_ = json.Unmarshal(a.raw, &a.body)
	}
	return a
}

func randomBytes(t *testing.T, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return b
}

// sealStream returns a stream of a plaintext.
func (s *site) sealStream(key string, plaintext []byte, context object, header ...string) []byte {
	s.t.Helper()
	a := s.stream(key+"/encrypt", bytes.NewReader(plaintext), context, header...)
	if a.status != 200 || a.broken != nil {
		s.t.Fatalf("encrypt: %d %v %.300s", a.status, a.broken, a.raw)
	}
	return a.raw
}

func TestStreamRoundTrip(t *testing.T) {
	t.Parallel()
	s := openSite(t)
	context := object{"conversation": "c-1"}
	for _, algorithm := range []string{"aes-256-gcm", "aes-128-gcm", "chacha20-poly1305", "sm4-gcm"} {
		for _, size := range []int{0, 1, segment - 1, segment, segment + 1, 2 * segment, 2*segment + 77} {
			plaintext := randomBytes(t, size)
			sealed := s.sealStream("7", plaintext, context, "Trikey-Algorithm", algorithm)
			segments := max(1, (size+segment-1)/segment)
			if len(sealed) != streamHeader+size+16*segments || sealed[0] != 2 {
				t.Errorf("%s, %d bytes: a stream of %d bytes, format %d", algorithm, size, len(sealed), sealed[0])
			}
			for _, result := range []string{"", "trailer"} {
				a := s.stream("chat/decrypt", bytes.NewReader(sealed), context, "Trikey-Result", result)
				if a.status != 200 || a.broken != nil || !bytes.Equal(a.raw, plaintext) || (a.result == "ok") != (result != "") ||
					a.header.Get("Trikey-Key") != "7" || a.header.Get("Trikey-Version") != "1" || a.header.Get("Trikey-Algorithm") != algorithm {
					t.Errorf("%s, %d bytes: %d %v %q %v, %d bytes", algorithm, size, a.status, a.broken, a.result, a.header, len(a.raw))
				}
			}
			for text, want := range map[string][2]int{
				base64.StdEncoding.EncodeToString(sealed[:streamHeader]): {0, 0}, base64.StdEncoding.EncodeToString(sealed): {segments, size},
			} {
				i := s.post("/v1/ciphertext/inspect", object{"ciphertext": text})
				got, _ := i.body["segments"].(float64)
				if i.body["format"] != 2.0 || i.body["key"] != 7.0 || i.text("algorithm") != algorithm || int(got) != want[0] || i.body["plaintext_bytes"] != float64(want[1]) {
					t.Errorf("inspect: %s, want %v", i.raw, want)
				}
			}
		}
	}
	if bytes.Equal(s.sealStream("7", nil, nil)[:streamHeader], s.sealStream("7", nil, nil)[:streamHeader]) {
		t.Error("two streams have one salt")
	}
	res, err := http.Get(s.ops + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	metrics, _ := io.ReadAll(res.Body)
	_ = res.Body.Close()
	for _, want := range []string{`trikey_requests_total{app="im",code="ok",op="stream_encrypt"} 30`, `trikey_stream_bytes_total{op="stream_decrypt"}`, `trikey_items_total{op="stream_encrypt"} 46`} {
		if !bytes.Contains(metrics, []byte(want)) {
			t.Errorf("the metrics lack %s", want)
		}
	}
}

// damaged returns everything that may be wrong with a stream of three segments.
func damaged(good, other []byte) map[string][]byte {
	at := func(n int) int { return streamHeader + n*sealedSegment }
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	header, first, second, last := good[:at(0)], good[at(0):at(1)], good[at(1):at(2)], good[at(2):]
	cases := map[string][]byte{
		"nothing": {}, "the header alone": header, "half a header": header[:20],
		"cut after the first segment": good[:at(1)], "cut after the second segment": good[:at(2)],
		"cut inside the first": good[:at(0)+100], "cut to less than a tag": good[:at(0)+5], "cut inside the second": good[:at(1)+100], "cut inside the last": good[:len(good)-1],
		"cut to the tag of the last": good[:at(2)+16],
		"a byte more":                join(good, []byte{0}), "an empty segment more": join(good, last[len(last)-16:]),
		"the last segment twice": join(good, last), "another stream after it": join(good, other),
		"first two swapped": join(header, second, first, last), "last two swapped": join(header, first, last, second),
		"the first twice": join(header, first, first, second, last), "the second twice": join(header, first, second, second, last),
		"without the first": join(header, second, last), "without the second": join(header, first, last), "the last alone": join(header, last),
		"a segment of another stream": join(header, first, other[at(1):at(2)], last), "the end of another stream": join(header, first, second, other[at(2):]),
		"the header of another stream": join(other[:at(0)], first, second, last),
	}
	for i := range at(0) {
		cases[fmt.Sprintf("header byte %d changed", i)] = flip(good, i)
	}
	for n := range 3 {
		cases[fmt.Sprintf("segment %d changed at its beginning", n)] = flip(good, at(n))
		cases[fmt.Sprintf("segment %d changed at its end", n)] = flip(good, min(at(n+1), len(good))-1)
	}
	return cases
}

func flip(b []byte, at int) []byte {
	b = bytes.Clone(b)
	b[at] ^= 1
	return b
}

// TestStreamDamage: whatever is wrong with a stream, no caller gets a byte that is not
// at its place, nor can take what it gets for the whole.
func TestStreamDamage(t *testing.T) {
	t.Parallel()
	s := openSite(t)
	context := object{"conversation": "c-1"}
	plaintext := randomBytes(t, 2*segment+1000)
	good := s.sealStream("7", plaintext, context)
	refused := func(name, key string, stream []byte, context object) {
		t.Helper()
		for _, result := range []string{"", "trailer"} {
			a := s.stream(key+"/decrypt", bytes.NewReader(stream), context, "Trikey-Result", result)
			if a.status == 422 && a.code() == "decrypt_failed" {
				continue // before anything was answered
			}
			told := result == "" && a.broken != nil || result != "" && a.status == 200 && a.broken == nil && a.result == "decrypt_failed"
			if !told || !bytes.HasPrefix(plaintext, a.raw) {
				t.Errorf("%s, %q: %d, %d bytes, %v, trailer %q", name, result, a.status, len(a.raw), a.broken, a.result)
			}
		}
	}
	cases := damaged(good, s.sealStream("7", randomBytes(t, len(plaintext)), context))
	if len(cases) < 60 {
		t.Fatalf("%d cases", len(cases))
	}
	for name, stream := range cases {
		refused(name, "7", stream, context)
	}
	refused("another context", "7", good, object{"conversation": "c-2"})
	refused("no context", "7", good, nil)
	refused("another key", "8", good, context)
	renamed := bytes.Clone(good)
	renamed[5] = 8
	refused("another key, and so its header", "8", renamed, context)
	// A ciphertext and a stream never pass for each other.
	if a := s.post("/v1/keys/7/decrypt", good, "Content-Type", "application/octet-stream"); a.code() != "decrypt_failed" {
		t.Errorf("a stream as a ciphertext: %s", a.raw)
	}
	s.wantError(s.stream("9/encrypt", strings.NewReader("x"), nil).answer, 404, "key_not_found")
	s.wantError(s.stream("200/encrypt", strings.NewReader("x"), nil).answer, 403, "forbidden")
	s.wantError(s.stream("200/decrypt", bytes.NewReader(good), nil).answer, 403, "forbidden")
	s.wantError(s.stream("7/encrypt", strings.NewReader("x"), nil, "Content-Type", "application/json").answer, 415, "unsupported_media_type")
	s.wantError(s.stream("7/encrypt", strings.NewReader("x"), nil, "Trikey-Context", "?").answer, 400, "bad_request")
	s.wantError(s.stream("7/encrypt", strings.NewReader("x"), nil, "Trikey-Algorithm", "rot13").answer, 400, "bad_request")
	if a := s.stream("7/decrypt", bytes.NewReader(good), context); !bytes.Equal(a.raw, plaintext) {
		t.Errorf("the stream itself: %d %v", a.status, a.broken)
	}
}

// TestStreamSegments opens parts of a stream.
func TestStreamSegments(t *testing.T) {
	t.Parallel()
	s := openSite(t)
	plaintext := randomBytes(t, 4*segment+1000)
	good := s.sealStream("7", plaintext, nil)
	header := base64.StdEncoding.EncodeToString(good[:streamHeader])
	part := func(from, to int) []byte {
		return good[streamHeader+from*sealedSegment : min(streamHeader+to*sealedSegment, len(good))]
	}
	for _, test := range []struct {
		segments string
		body     []byte
		want     []byte // nil: refused
	}{
		{"0-", part(0, 5), plaintext},
		{"3-", part(3, 5), plaintext[3*segment:]},
		{"4-", part(4, 5), plaintext[4*segment:]},
		{"0-0", part(0, 1), plaintext[:segment]},
		{"1-2", part(1, 3), plaintext[segment : 3*segment]},
		{"2-", part(3, 5), nil},  // others than it says
		{"1-2", part(2, 4), nil}, // the same
		{"3-", part(3, 4), nil},  // the end is missing
		{"1-3", part(1, 3), nil}, // one is missing
		{"1-1", part(1, 3), nil}, // one too many
		{"3-4", part(3, 5), nil}, // its last is the stream's last, which 3- asks for
		{"5-", nil, nil},
		{"1-1", nil, nil},
	} {
		a := s.stream("7/decrypt", bytes.NewReader(test.body), nil, "Trikey-Segments", test.segments, "Trikey-Stream-Header", header)
		if test.want == nil {
			if a.status != 422 && a.broken == nil {
				t.Errorf("%s: %d, %d bytes", test.segments, a.status, len(a.raw))
			}
		} else if a.status != 200 || a.broken != nil || !bytes.Equal(a.raw, test.want) {
			t.Errorf("%s: %d %v, %d bytes", test.segments, a.status, a.broken, len(a.raw))
		}
	}
	for _, bad := range [][2]string{{"1", header}, {"-1", header}, {"2-1", header}, {"1-", ""}, {"", header}, {"1-", "AA=="}, {"01-", header}, {"0-4294967296", header}} {
		s.wantError(s.stream("7/decrypt", bytes.NewReader(nil), nil, "Trikey-Segments", bad[0], "Trikey-Stream-Header", bad[1]).answer, 400, "bad_request")
	}
}

// slow is a body that is sent as the test says.
type slow struct{ *io.PipeWriter }

func (s *site) slowly(path string, context object, header ...string) (slow, chan streamed) {
	r, w := io.Pipe()
	done := make(chan streamed, 1)
	go func() { done <- s.stream(path, r, context, header...); _ = r.Close() }()
	return slow{w}, done
}

// TestStreamUnderWay is about what changes while a stream is under way.
func TestStreamUnderWay(t *testing.T) {
	t.Parallel()
	s := openSite(t)
	part := randomBytes(t, 2*segment)
	// The caller goes away in the middle: that is no end of the plaintext.
	w, done := s.slowly("7/encrypt", nil)
	if _, err := w.Write(part); err != nil {
		t.Fatal(err)
	}
	_ = w.CloseWithError(errors.New("the caller went away"))
	if a := <-done; a.broken == nil {
		t.Errorf("a body that broke off: %d, %d bytes", a.status, len(a.raw))
	}
	// The key is rotated: the stream stays under the version it began with.
	w, done = s.slowly("7/encrypt", nil)
	_, _ = w.Write(part)
	s.ok("key", "rotate", "7")
	_, _ = w.Write(part)
	_ = w.Close()
	a := <-done
	if a.broken != nil || a.header.Get("Trikey-Version") != "1" {
		t.Fatalf("rotated meanwhile: %d %v", a.status, a.broken)
	}
	if back := s.stream("7/decrypt", bytes.NewReader(a.raw), nil); !bytes.Equal(back.raw, append(bytes.Clone(part), part...)) {
		t.Errorf("rotated meanwhile: %d %v, %d bytes", back.status, back.broken, len(back.raw))
	}
	// The grant is taken away.
	w, done = s.slowly("7/encrypt", nil, "Trikey-Result", "trailer")
	_, _ = w.Write(part)
	s.ok("app", "revoke", "im", "keys=7;ops=encrypt")
	_, _ = w.Write(part)
	_ = w.Close()
	if a := <-done; a.result != "forbidden" {
		t.Errorf("a grant taken away: %d %v, trailer %q", a.status, a.broken, a.result)
	}
	s.ok("app", "grant", "im", "keys=7;ops=encrypt")
	// The machine is sealed.
	w, done = s.slowly("7/encrypt", nil)
	_, _ = w.Write(part)
	s.ok("machine", "seal")
	_, _ = w.Write(part)
	_ = w.Close()
	if a := <-done; a.broken == nil {
		t.Errorf("sealed meanwhile: %d, %d bytes", a.status, len(a.raw))
	}
}

// pattern is a plaintext of some length that needs no memory.
type pattern struct {
	left int
	sum  hash.Hash
	next byte
}

func (p *pattern) Read(b []byte) (int, error) {
	if p.left == 0 {
		return 0, io.EOF
	}
	b = b[:min(len(b), p.left)]
	for i := range b {
		b[i] = p.next + byte(i)*31
	}
	p.next += 7
	p.left -= len(b)
	p.sum.Write(b)
	return len(b), nil
}

// TestLargeStream sends 256 MiB through the commands of an app, and sees that neither
// they nor the service keep it in memory.
func TestLargeStream(t *testing.T) {
	t.Parallel()
	s := openSite(t)
	env := s.appEnv()
	before := peak(t, s.serve.Process.Pid)
	const size = 256 << 20
	plaintext := &pattern{left: size, sum: sha256.New()}
	encrypt := exec.CommandContext(t.Context(), trikey, "encrypt", "--stream", "--key", "7", "--context", "file=1")
	decrypt := exec.CommandContext(t.Context(), trikey, "decrypt", "--context", "file=1")
	encrypt.Env, decrypt.Env = append(os.Environ(), env...), append(os.Environ(), env...)
	encrypt.Stdin = plaintext
	var err error
	if decrypt.Stdin, err = encrypt.StdoutPipe(); err != nil {
		t.Fatal(err)
	}
	got := sha256.New()
	var said bytes.Buffer
	decrypt.Stdout, decrypt.Stderr, encrypt.Stderr = got, &said, &said
	if err := errors.Join(encrypt.Start(), decrypt.Start()); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(decrypt.Wait(), encrypt.Wait()); err != nil {
		t.Fatalf("%v %s", err, &said)
	}
	if !bytes.Equal(got.Sum(nil), plaintext.sum.Sum(nil)) {
		t.Error("another plaintext came back")
	}
	after := peak(t, s.serve.Process.Pid)
	t.Logf("peak memory of the service: %d KiB before, %d KiB after", before, after)
	if after > before+48<<10 {
		t.Errorf("the service took %d KiB for a stream of %d KiB", after-before, size>>10)
	}
}

// peak returns the most memory a process has had, in KiB.
func peak(t *testing.T, pid int) int {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		if f := strings.Fields(line); f[0] == "VmHWM:" {
			n, err := strconv.Atoi(f[1])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatal("no VmHWM")
	return 0
}

// appEnv is the environment of the app's own commands.
func (s *site) appEnv() []string {
	s.t.Helper()
	secret := filepath.Join(s.t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte(s.secret+"\n"), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return []string{"TRIKEY_APP_KEY=" + s.key, "TRIKEY_APP_SECRET_FILE=" + secret, "TRIKEY_ADDR=" + s.api, "TRIKEY_CACERT=" + s.path("ca.pem")}
}

// TestStreamCommands: a file is there whole or not at all.
func TestStreamCommands(t *testing.T) {
	t.Parallel()
	s := openSite(t)
	env, dir := s.appEnv(), t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	plaintext := randomBytes(t, 3*segment+5)
	if err := os.WriteFile(file("plain"), plaintext, 0o600); err != nil {
		t.Fatal(err)
	}
	if r := run(t, nil, env, "encrypt", "--stream", "--key", "7", "--in", file("plain"), "--out", file("sealed")); r.code != 0 || r.out != "" {
		t.Fatalf("%+v", r)
	}
	if r := run(t, nil, env, "decrypt", "--in", file("sealed"), "--out", file("back")); r.code != 0 {
		t.Errorf("%+v", r)
	}
	if back, err := os.ReadFile(file("back")); err != nil || !bytes.Equal(back, plaintext) {
		t.Errorf("%d bytes came back, %v", len(back), err)
	}
	sealed, err := os.ReadFile(file("sealed"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file("cut"), sealed[:len(sealed)-40], 0o600); err != nil {
		t.Fatal(err)
	}
	if r := run(t, nil, env, "decrypt", "--in", file("cut"), "--out", file("none")); r.code != 6 {
		t.Errorf("a stream that was cut off: %+v", r)
	}
	if r := run(t, nil, env, "decrypt", "--in", file("sealed"), "--context", "c=1", "--out", file("back")); r.code != 6 {
		t.Errorf("another context: %+v", r)
	}
	if back, err := os.ReadFile(file("back")); err != nil || !bytes.Equal(back, plaintext) {
		t.Errorf("a failed command changed its --out: %d bytes, %v", len(back), err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 4 {
		t.Errorf("%v %v", left, err)
	}
	if r := run(t, bytes.NewReader(sealed), nil, "inspect", "-o", "json"); !strings.Contains(r.out, `"segments": 4`) || !strings.Contains(r.out, `"format": 2`) {
		t.Errorf("%+v", r)
	}
	// The text of a ciphertext goes through files too.
	if r := run(t, nil, env, "encrypt", "--key", "7", "--in", file("plain"), "--out", file("text")); r.code != 0 {
		t.Errorf("%+v", r)
	}
	if r := run(t, nil, env, "decrypt", "--in", file("text")); r.out != string(plaintext) {
		t.Errorf("%d %s", r.code, r.err)
	}
}

// TestStreamClient is the SDK against the service.
func TestStreamClient(t *testing.T) {
	t.Parallel()
	s := openSite(t)
	c, err := sdk.New(sdk.Config{Addresses: []string{"https://127.0.0.1:1", s.api}, AppKey: s.key, AppSecret: s.secret, CAFile: s.path("ca.pem")})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	context := sdk.Context{"file": "1"}
	plaintext := randomBytes(t, 2*segment+9)
	through := func(open func() (io.ReadCloser, error)) ([]byte, error) {
		r, err := open()
		if err != nil {
			return nil, err
		}
		defer func() { _ = r.Close() }()
		return io.ReadAll(r)
	}
	sealed, err := through(func() (io.ReadCloser, error) {
		return c.EncryptStream(t.Context(), sdk.StreamRequest{Key: sdk.Name("chat"), Context: context}, bytes.NewReader(plaintext))
	})
	if err != nil {
		t.Fatal(err)
	}
	decrypt := func(r sdk.StreamRequest, body []byte) ([]byte, error) {
		return through(func() (io.ReadCloser, error) { return c.DecryptStream(t.Context(), r, bytes.NewReader(body)) })
	}
	if back, err := decrypt(sdk.StreamRequest{Context: context}, sealed); err != nil || !bytes.Equal(back, plaintext) {
		t.Errorf("%d bytes, %v", len(back), err)
	}
	second := sdk.StreamRequest{Context: context, StreamHeader: sealed[:sdk.StreamHeaderSize], Segments: &sdk.SegmentRange{First: 1, Last: 1}}
	if back, err := decrypt(second, sealed[sdk.StreamHeaderSize+sdk.SealedSegmentSize:][:sdk.SealedSegmentSize]); err != nil || !bytes.Equal(back, plaintext[segment:2*segment]) {
		t.Errorf("the second segment: %d bytes, %v", len(back), err)
	}
	for name, test := range map[string]struct {
		request sdk.StreamRequest
		body    []byte
	}{
		"cut in the first": {sdk.StreamRequest{Context: context}, sealed[:1000]}, "cut later": {sdk.StreamRequest{Context: context}, sealed[:len(sealed)-1]},
		"another context": {sdk.StreamRequest{}, sealed}, "another key": {sdk.StreamRequest{Key: sdk.Index(8), Context: context}, sealed},
		"nothing": {sdk.StreamRequest{}, nil}, "words": {sdk.StreamRequest{}, []byte(strings.Repeat("words", 100))},
	} {
		if back, err := decrypt(test.request, test.body); !errors.Is(err, sdk.ErrDecryptFailed) || !bytes.HasPrefix(plaintext, back) {
			t.Errorf("%s: %d bytes, %v", name, len(back), err)
		}
	}
	if _, err := through(func() (io.ReadCloser, error) {
		return c.EncryptStream(t.Context(), sdk.StreamRequest{Key: sdk.Index(200)}, strings.NewReader("x"))
	}); !errors.Is(err, sdk.ErrForbidden) {
		t.Errorf("no grant: %v", err)
	}
}

// TestStreamHTTP2: the same over HTTP/2, where the connection outlives a stream that is
// broken off.
func TestStreamHTTP2(t *testing.T) {
	t.Parallel()
	s := openSite(t)
	transport := s.client.Transport.(*http.Transport).Clone()
	transport.ForceAttemptHTTP2 = true
	s.client.Transport = transport
	plaintext := randomBytes(t, 40*segment+5)
	sealed := s.sealStream("7", plaintext, nil)
	for range 3 {
		if a := s.stream("7/decrypt", bytes.NewReader(sealed), nil); a.status != 200 || a.broken != nil || !bytes.Equal(a.raw, plaintext) || a.proto != "HTTP/2.0" {
			t.Errorf("%s: %d %v, %d bytes", a.proto, a.status, a.broken, len(a.raw))
		}
		if a := s.stream("7/decrypt", bytes.NewReader(flip(sealed, len(sealed)-1)), nil); a.broken == nil || !bytes.HasPrefix(plaintext, a.raw) {
			t.Errorf("a broken end: %d, %d bytes", a.status, len(a.raw))
		}
		if a := s.stream("7/decrypt", bytes.NewReader(flip(sealed, len(sealed)-1)), nil, "Trikey-Result", "trailer"); a.result != "decrypt_failed" || a.broken != nil {
			t.Errorf("a broken end: %d %v %q", a.status, a.broken, a.result)
		}
		s.wantError(s.stream("7/decrypt", bytes.NewReader(flip(sealed, 100)), nil).answer, 422, "decrypt_failed")
	}
}
