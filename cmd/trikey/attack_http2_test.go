package main_test

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/protobuf/proto"

	pb "github.com/trikey/trikey/api/v1/cryptopb"
)

// http2 sends one request as HTTP/2 frames, whatever its header says, and returns its
// status, that of gRPC, or how the stream or the connection was ended.
func (s *site) http2(address string, header [][2]string, data []byte) string {
	s.t.Helper()
	c := s.socket(address, "h2")
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for _, f := range header {
		_ = encoder.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	f := http2.NewFramer(c, c)
	f.AllowIllegalWrites = true
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	// That it cannot be sent, because the service has ended the connection, is read below.
	_, _ = io.WriteString(c, http2.ClientPreface)
	_ = f.WriteSettings()
	for first := true; first || block.Len() > 0; first = false {
		part := block.Next(16 << 10)
		if first {
			_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: part, EndHeaders: block.Len() == 0, EndStream: data == nil})
		} else {
			_ = f.WriteContinuation(1, block.Len() == 0, part)
		}
	}
	for data != nil {
		part := data[:min(len(data), 16<<10)]
		data = data[len(part):]
		_ = f.WriteData(1, len(data) == 0, part)
		if len(data) == 0 {
			break
		}
	}
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return "closed"
		}
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				_ = f.WriteSettingsAck()
			}
		case *http2.MetaHeadersFrame:
			for _, h := range frame.Fields {
				if h.Name == "grpc-status" {
					return "grpc " + h.Value
				}
			}
			if status := frame.PseudoValue("status"); status != "200" || frame.StreamEnded() {
				return status
			}
			if !strings.HasPrefix(address, s.grpc) {
				return "200"
			}
		case *http2.RSTStreamFrame:
			return "reset"
		case *http2.GoAwayFrame:
			return "goaway"
		}
	}
}

func fields(pairs ...string) (all [][2]string) {
	for i := 0; i < len(pairs); i += 2 {
		all = append(all, [2]string{pairs[i], pairs[i+1]})
	}
	return all
}

// TestHTTP2Games: what HTTP/2 can say twice, or in a way that HTTP/1.1 reads otherwise.
func TestHTTP2Games(t *testing.T) {
	t.Parallel()
	s := openSite(t)
	who := basic(s.key, s.secret)
	base := fields(":method", "POST", ":scheme", "https", ":authority", "x", ":path", "/v1/keys/7/encrypt", "authorization", who)
	with := func(pairs ...string) [][2]string { return append(append([][2]string{}, base...), fields(pairs...)...) }
	replaced := func(name, value string) [][2]string {
		out := append([][2]string{}, base...)
		for i := range out {
			if out[i][0] == name {
				out[i][1] = value
			}
		}
		return out
	}
	body := []byte(`{"plaintext":""}`)
	for name, test := range map[string]struct {
		header [][2]string
		want   string // "": refused in whatever way
	}{
		"nothing wrong":            {base, "200"},
		"another path besides":     {with(":path", "/v1/keys/200/encrypt"), ""},
		"another method besides":   {with(":method", "GET"), ""},
		"a pseudo header at last":  {with("x-a", "b", ":authority", "y"), ""},
		"a pseudo header of none":  {with(":x", "y"), ""},
		"a host beside":            {with("host", "y"), "200"}, // credentials do not depend on it; a signature has :authority
		"a name in capitals":       {with("X-A", "b"), ""},
		"chunks":                   {with("transfer-encoding", "chunked"), ""},
		"a connection":             {with("connection", "close"), ""},
		"a shorter length":         {with("content-length", "5"), ""},
		"a longer length":          {with("content-length", "50"), ""},
		"a line break in a value":  {with("x-a", "b\r\nauthorization: x"), ""},
		"two authorizations":       {with("authorization", "Basic eDp5"), "400"},
		"a path that is none":      {replaced(":path", "v1/keys/7/encrypt"), ""},
		"an absolute path":         {replaced(":path", "https://x/v1/keys/7/encrypt"), "200"},
		"a method with a blank":    {replaced(":method", "POST /v1/keys/8/encrypt HTTP/1.1"), ""},
		"a user in the authority":  {replaced(":authority", "a:b@x"), ""},
		"no authorization":         {replaced("authorization", ""), "401"},
		"a header of a megabyte":   {with("x-a", strings.Repeat("a", 1<<20)), ""},
		"ten thousand headers":     {with(strings.Split(strings.Repeat("x-a,b,", 10_000)+"x,y", ",")...), ""},
		"an extended CONNECT":      {append(fields(":protocol", "websocket"), replaced(":method", "CONNECT")...), ""},
		"credentials in a cookie":  {append(append([][2]string{}, base[:4]...), [2]string{"cookie", "authorization=" + who}), "401"},
		"a key that is not given":  {replaced(":path", "/v1/keys//encrypt"), "404"},
		"a key of somebody else's": {replaced(":path", "/v1/keys/%32%30%30/encrypt"), "403"},
	} {
		s.ok("app", "unlock", "im")
		if got := s.http2(strings.TrimPrefix(s.api, "https://"), test.header, body); got != test.want && (test.want != "" || got == "200") {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
	if a := s.once(); a.status != 200 {
		t.Errorf("afterwards: %d %s", a.status, a.raw)
	}
}

// TestGRPCGames: metadata and messages that no gRPC library sends.
func TestGRPCGames(t *testing.T) {
	t.Parallel()
	s := openSite(t)
	raw, err := proto.Marshal(&pb.EncryptRequest{Key: "7"})
	if err != nil {
		t.Fatal(err)
	}
	framed := func(flag byte, size uint32, message []byte) []byte {
		return append(binary.BigEndian.AppendUint32([]byte{flag}, size), message...)
	}
	good := framed(0, uint32(len(raw)), raw)
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	_, _ = z.Write(make([]byte, 16<<20))
	_ = z.Close()
	who := basic(s.key, s.secret)
	base := fields(":method", "POST", ":scheme", "https", ":authority", "x", ":path", "/trikey.v1.Crypto/Encrypt", "content-type", "application/grpc", "te", "trailers")
	as := func(pairs ...string) [][2]string { return append(append([][2]string{}, base...), fields(pairs...)...) }
	replaced := func(name, value string) [][2]string {
		out := as("authorization", who)
		for i := range out {
			if out[i][0] == name {
				out[i][1] = value
			}
		}
		return out
	}
	for name, test := range map[string]struct {
		header [][2]string
		data   []byte
		want   string // "": anything but "grpc 0"
	}{
		"nothing wrong":                 {as("authorization", who), good, "grpc 0"},
		"two authorizations":            {as("authorization", who, "authorization", "Basic eDp5"), good, "grpc 3"},
		"two in one":                    {as("authorization", who+", Basic eDp5"), good, "grpc 16"},
		"a binary authorization":        {as("authorization-bin", b64(who)), good, "grpc 16"},
		"a binary one beside":           {as("authorization", "Basic eDp5", "authorization-bin", b64(who)), good, "grpc 16"},
		"a name in capitals":            {as("Authorization", who), good, ""},
		"binary metadata that is none":  {as("authorization", who, "x-bin", "!"), good, ""},
		"credentials in the authority":  {append(fields(":authority", s.key+":"+s.secret+"@x"), base[3:]...), good, ""},
		"another authority":             {replaced(":authority", "elsewhere.example"), good, "grpc 0"}, // no credential depends on it
		"two authorities":               {append(fields(":authority", "y"), as("authorization", who)...), good, ""},
		"no authority":                  {append(append([][2]string{}, base[:2]...), append(base[3:len(base):len(base)], [2]string{"authorization", who})...), good, ""},
		"another path besides":          {append(fields(":path", "/trikey.v1.Crypto/Decrypt"), as("authorization", who)...), good, ""},
		"a path with a way up":          {replaced(":path", "/trikey.v1.Crypto/../trikey.v1.Crypto/Encrypt"), good, "grpc 12"},
		"an escaped path":               {replaced(":path", "/trikey.v1.Crypto/%45ncrypt"), good, "grpc 12"},
		"GET":                           {replaced(":method", "GET"), good, ""},
		"JSON":                          {replaced("content-type", "application/json"), good, ""},
		"metadata of a megabyte":        {as("authorization", who, "x", strings.Repeat("x", 1<<20)), good, ""},
		"a deadline that is none":       {as("authorization", who, "grpc-timeout", "-1S"), good, ""},
		"a bomb":                        {as("authorization", who, "grpc-encoding", "gzip"), framed(1, uint32(bomb.Len()), bomb.Bytes()), "grpc 12"},
		"a bomb without its name":       {as("authorization", who), framed(1, uint32(bomb.Len()), bomb.Bytes()), ""},
		"an encoding that nobody knows": {as("authorization", who, "grpc-encoding", "zstd"), framed(1, 4, []byte("zstd")), "grpc 12"},
		"a flag that is none":           {as("authorization", who), framed(7, uint32(len(raw)), raw), ""},
		"four gigabytes":                {as("authorization", who), framed(0, 1<<32-1, raw), "grpc 8"},
		"four gigabytes of nobody":      {base, framed(0, 1<<32-1, raw), "grpc 16"},
		"a message cut off":             {as("authorization", who), good[:len(good)-1], ""},
		"two messages":                  {as("authorization", who), append(append([]byte{}, good...), good...), ""},
		"no message":                    {as("authorization", who), []byte{}, ""},
		"words":                         {as("authorization", who), framed(0, 5, []byte("words")), ""},
	} {
		s.ok("app", "unlock", "im")
		got := s.http2(s.grpc, test.header, test.data)
		if got != test.want && (test.want != "" || got == "grpc 0" || got == "200") {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
	if got := s.http2(s.grpc, as("authorization", who), good); got != "grpc 0" {
		t.Errorf("afterwards: %q", got)
	}
}

// TestSlowEverywhere: on no listener does a connection last that sends next to nothing.
func TestSlowEverywhere(t *testing.T) {
	t.Parallel()
	o := newOffice(t, nil)
	s := o.site
	s.ok("key", "create", "--index", "7", "--name", "chat")
	s.createApp("im", "127.0.0.1/32", "keys=7;ops=encrypt")
	api, admin := strings.TrimPrefix(s.api, "https://"), strings.TrimPrefix(o.addr, "https://")
	head := func(path string) string {
		return "POST " + path + " HTTP/1.1\r\nHost: x\r\nAuthorization: " + basic(s.key, s.secret) + "\r\n"
	}
	body := "Content-Type: application/json\r\nContent-Length: 4000\r\n\r\n{"
	var unary bytes.Buffer
	encoder := hpack.NewEncoder(&unary)
	for _, f := range fields(":method", "POST", ":scheme", "https", ":authority", "x", ":path", "/trikey.v1.Crypto/Encrypt",
		"content-type", "application/grpc", "te", "trailers", "authorization", basic(s.key, s.secret)) {
		_ = encoder.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	var message bytes.Buffer
	f := http2.NewFramer(&message, nil)
	_, _ = io.WriteString(&message, http2.ClientPreface)
	_ = f.WriteSettings()
	_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: unary.Bytes(), EndHeaders: true})
	_ = f.WriteData(1, false, []byte{0, 0, 0, 1, 0, 'x'})
	type end struct {
		name string
		err  error
	}
	tests := []struct {
		name, address, begin, drip string
		plain                      bool
		answered                   bool // the stream ends, by an answer, and not its connection
	}{
		{name: "header, admin", address: admin, begin: head("/admin/v1/login"), drip: "X-A: b\r\n"},
		{name: "header, ops", address: strings.TrimPrefix(s.ops, "http://"), begin: "GET /livez HTTP/1.1\r\nHost: x\r\n", drip: "X-A: b\r\n", plain: true},
		{name: "body, api", address: api, begin: head("/v1/keys/7/encrypt") + body, drip: " "},
		{name: "body, admin", address: admin, begin: head("/admin/v1/login") + body, drip: " "},
		{name: "body, ops", address: strings.TrimPrefix(s.ops, "http://"), begin: "POST /livez HTTP/1.1\r\nHost: x\r\n" + body, drip: " ", plain: true},
		{name: "beginning, gRPC", address: s.grpc, begin: "P", drip: ""},
		{name: "message, gRPC", address: s.grpc, begin: message.String(), drip: "", answered: true},
	}
	ends := make(chan end, len(tests))
	for _, test := range tests {
		go func() {
			ends <- end{test.name, s.dripped(test.address, test.begin, test.drip, test.answered, test.plain)}
		}()
	}
	for range tests {
		if e := <-ends; e.err != nil {
			t.Errorf("%s: %v", e.name, e.err)
		}
	}
	// A body without an end is refused when it is too large, wherever it would end.
	c := s.socket(api)
	if _, err := io.WriteString(c, head("/v1/keys/7/encrypt")+"Transfer-Encoding: chunked\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	chunk := fmt.Appendf(nil, "%x\r\n%s\r\n", 1<<20, make([]byte, 1<<20))
	sent := 0
	for ; sent < 10<<10; sent++ {
		if _, err := c.Write(chunk); err != nil {
			break
		}
	}
	if sent > 200 {
		t.Errorf("%d MiB of one body were read", sent)
	}
	t.Logf("of a body of 10 GiB in chunks, %d MiB were taken", sent)
}

// dripped sends the beginning of something, and then a little again and again, until the
// other side has had enough.
func (s *site) dripped(address, begin, drip string, answered, plain bool) error {
	var c io.ReadWriteCloser
	if plain {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			err = conn.SetDeadline(time.Now().Add(2 * time.Minute))
		}
		if err != nil {
			return err
		}
		c = conn
	} else {
		protocols := []string{"http/1.1"}
		if address == s.grpc {
			protocols = []string{"h2"}
		}
		c = s.socket(address, protocols...)
	}
	defer func() { _ = c.Close() }()
	if _, err := io.WriteString(c, begin); err != nil {
		return err
	}
	over := make(chan error, 1)
	go func() {
		var got []byte
		buffer := make([]byte, 4096)
		for {
			n, err := c.Read(buffer)
			got = append(got, buffer[:n]...)
			switch {
			case answered && hasHeaders(got):
				over <- nil
				return
			case err != nil && strings.Contains(err.Error(), "timeout"):
				over <- fmt.Errorf("still open; %q", got)
				return
			case err != nil && answered:
				over <- fmt.Errorf("ended with %q, %w", got, err)
				return
			case err != nil:
				over <- nil
				return
			}
		}
	}()
	for tick := time.NewTicker(200 * time.Millisecond); ; {
		select {
		case err := <-over:
			tick.Stop()
			return err
		case <-tick.C:
			_, _ = io.WriteString(c, drip)
		}
	}
}

// hasHeaders reports whether there is a HEADERS frame (RFC 9113 section 6.2) among frames.
func hasHeaders(frames []byte) bool {
	for len(frames) >= 9 {
		size := 9 + int(frames[0])<<16 + int(frames[1])<<8 + int(frames[2])
		if frames[3] == byte(http2.FrameHeaders) {
			return true
		}
		frames = frames[min(size, len(frames)):]
	}
	return false
}
