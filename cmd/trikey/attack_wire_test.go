package main_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/trikey/trikey/cmd/trikey/config"
	"github.com/trikey/trikey/internal/httpsig"
)

// socket is a TLS connection to a listener, for bytes that no client library sends.
func (s *site) socket(address string, protocols ...string) *tls.Conn {
	s.t.Helper()
	dialer := &tls.Dialer{
		NetDialer: &net.Dialer{Timeout: 30 * time.Second},
		Config:    &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: protocols, InsecureSkipVerify: true}, // other names than the certificate's are tried
	}
	c, err := dialer.DialContext(s.t.Context(), "tcp", address)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		s.t.Fatal(err)
	}
	return c.(*tls.Conn)
}

// said sends bytes to the API, and after them a request for what there is not, which ends
// the connection. It returns the statuses of the answers before that one.
func (s *site) said(text string) string {
	s.t.Helper()
	c := s.socket(strings.TrimPrefix(s.api, "https://"))
	if _, err := io.WriteString(c, text+"GET /end HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil {
		s.t.Fatal(err)
	}
	var all []string
	for r := bufio.NewReader(c); ; {
		answer, err := http.ReadResponse(r, nil)
		if err != nil {
			return strings.Join(all, " ")
		}
		raw, err := io.ReadAll(answer.Body)
		if strings.Contains(string(raw), "there is no /end here") {
			return strings.Join(all, " ")
		}
		all = append(all, fmt.Sprint(answer.StatusCode))
		if err != nil {
			all = append(all, "cut off")
		}
	}
}

// TestSmuggling: of bytes that two readers could take for different requests, the service
// makes one, or none; and no spelling of a path, header or target is a way around a rule.
func TestSmuggling(t *testing.T) {
	t.Parallel()
	s := openSite(t)
	who := "Host: x\r\nAuthorization: " + basic(s.key, s.secret) + "\r\n"
	const body, line, size = `{"plaintext":""}`, "POST /v1/keys/7/encrypt HTTP/1.1\r\n", "Content-Length: 16\r\n"
	second := "GET /v1/keys/7 HTTP/1.1\r\n" + who + "\r\n"
	chunked := fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(body), body)
	tests := map[string]struct{ text, want string }{
		"nothing wrong":                 {line + who + size + "\r\n" + body, "200"},
		"two requests in one go":        {line + who + size + "\r\n" + body + second, "200 200"},
		"a second one of nobody":        {line + who + size + "\r\n" + body + "GET /v1/keys/7 HTTP/1.1\r\nHost: x\r\n\r\n", "200 401"},
		"chunks":                        {line + who + "Transfer-Encoding: chunked\r\n\r\n" + chunked, "200"},
		"a length and chunks":           {line + who + size + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + second, "400"},
		"chunks and a length":           {line + who + "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n" + chunked + second, "200"},
		"chunks twice":                  {line + who + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked, "501"},
		"chunks, spelt otherwise":       {line + who + size + "Transfer-Encoding: xchunked\r\n\r\n" + body + second, "501"},
		"chunks, with a tab":            {line + who + size + "Transfer-Encoding: \x0bchunked\r\n\r\n" + body + second, "400"},
		"a blank before the colon":      {line + who + size + "Transfer-Encoding : chunked\r\n\r\n" + body + second, "400"},
		"two lengths":                   {line + who + size + "Content-Length: 5\r\n\r\n" + body, "400"},
		"a length with a sign":          {line + who + "Content-Length: +16\r\n\r\n" + body, "400"},
		"a list of lengths":             {line + who + "Content-Length: 16, 16\r\n\r\n" + body, "400"},
		"a hexadecimal length":          {line + who + "Content-Length: 0x10\r\n\r\n" + body, "400"},
		"a chunk of a negative size":    {line + who + "Transfer-Encoding: chunked\r\n\r\n-1\r\n", "400"},
		"a chunk of an endless size":    {line + who + "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n", "400"},
		"credentials in a trailer":      {line + "Host: x\r\nTransfer-Encoding: chunked\r\nTrailer: Authorization\r\n\r\n" + strings.TrimSuffix(chunked, "\r\n") + "Authorization: " + basic(s.key, s.secret) + "\r\n\r\n", "401"},
		"a folded line with a header":   {line + "Host: x\r\nX-A: b\r\n Authorization: " + basic(s.key, s.secret) + "\r\n" + size + "\r\n" + body, "401"},
		"a folded first line":           {line + " " + who + size + "\r\n" + body, "400"},
		"a carriage return in a value":  {line + "Host: x\r\nX-A: b\rAuthorization: " + basic(s.key, s.secret) + "\r\n" + size + "\r\n" + body, "400"},
		"a zero byte in a value":        {line + who + "X-A: \x00\r\n" + size + "\r\n" + body, "400"},
		"a name with a blank":           {line + who + "X A: b\r\n" + size + "\r\n" + body, "400"},
		"two hosts":                     {line + who + "Host: y\r\n" + size + "\r\n" + body, "400"},
		"no host":                       {line + "Authorization: " + basic(s.key, s.secret) + "\r\n" + size + "\r\n" + body, "400"},
		"two authorizations":            {line + who + "Authorization: Basic eDp5\r\n" + size + "\r\n" + body, "400"},
		"two, spelt differently":        {line + who + "AUTHORIZATION: Basic eDp5\r\n" + size + "\r\n" + body, "400"},
		"a proxy's authorization":       {line + "Host: x\r\nProxy-Authorization: " + basic(s.key, s.secret) + "\r\n" + size + "\r\n" + body, "401"},
		"a cookie":                      {line + "Host: x\r\nCookie: Authorization=" + basic(s.key, s.secret) + "\r\n" + size + "\r\n" + body, "401"},
		"an underscore":                 {line + "Host: x\r\nAuthorization_: " + basic(s.key, s.secret) + "\r\n" + size + "\r\n" + body, "401"},
		"credentials in the target":     {"POST https://" + s.key + ":" + s.secret + "@x/v1/keys/7/encrypt HTTP/1.1\r\nHost: x\r\n" + size + "\r\n" + body, "401"},
		"another method in a header":    {"GET /v1/keys/7/encrypt HTTP/1.1\r\n" + who + "X-HTTP-Method-Override: POST\r\n" + size + "\r\n" + body, "405"},
		"an absolute target, elsewhere": {"POST http://127.0.0.1:1/v1/keys/200/encrypt HTTP/1.1\r\n" + who + size + "\r\n" + body, "403"},
		"a tunnel":                      {"CONNECT 127.0.0.1:22 HTTP/1.1\r\n" + who + "\r\n", "404"},
		"the whole service":             {"OPTIONS * HTTP/1.1\r\n" + who + "\r\n", "200"},
		"an upgrade to plain HTTP/2":    {line + who + "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n" + size + "\r\n" + body, "200"},
		"the preface of HTTP/2":         {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "405"},
		"HTTP/0.9":                      {"GET /v1/keys/7\r\n\r\n", "400"},
		"HTTP/3.0":                      {"GET /v1/keys/7 HTTP/3.0\r\n" + who + "\r\n", "505"},
	}
	for path, want := range map[string]string{
		"/v1/keys/%37/encrypt":       "200", // the same key, spelt otherwise: the same grants
		"/v1/keys/%32%30%30/encrypt": "403", "/v1/keys/7%2F..%2F200/encrypt": "403", "/v1/keys/7%00/encrypt": "403", "/v1/keys/7;200/encrypt": "403",
		"/v1/keys/..%2f..%2f..%2fadmin%2fv1%2fkeys/encrypt": "403", "/v1/keys/7%252f/encrypt": "403", "/v1/keys/%2e%2e/encrypt": "403",
		"/v1/keys/7/../200/encrypt": "404", "/v1/keys/../keys/7/encrypt": "404", "//v1/keys/7/encrypt": "404", "/v1//keys/7/encrypt": "404",
		"/v1/keys/7/encrypt/": "404", "/v1/keys/7/encrypt/.": "404", "/v1/keys//encrypt": "404", "/v1/%6beys/7/encrypt": "404", "/V1/keys/7/encrypt": "404",
		"/v1/keys/7\\encrypt": "405", "/admin/v1/keys": "404", "/v1/../admin/v1/keys": "404", "/metrics": "404", "/debug/pprof/": "404",
		"/v1/keys/7/encrypt?key=200": "200", "/v1/keys/200/encrypt?key=7": "403", "v1/keys/7/encrypt": "400", "/v1/keys/%/encrypt": "400",
	} {
		tests[path] = struct{ text, want string }{"POST " + path + " HTTP/1.1\r\n" + who + size + "\r\n" + body, want}
	}
	for name, test := range tests {
		if got := s.said(test.text); got != test.want {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
	if n := s.metric(`trikey_auth_failures_total{reason="locked_out"}`); n != 0 {
		t.Errorf("%v of these were refused for another reason than their own", n)
	}

	if strings.Contains(s.log.String(), "request failed") {
		t.Errorf("the service failed:\n%s", s.log)
	}
	// What is signed for one target is not taken at another spelling of it.
	for what, target := range map[string]string{
		"as it was signed": "/v1/keys/7/encrypt", "absolute": "https://x/v1/keys/7/encrypt", "escaped": "/v1/keys/%37/encrypt",
		"with a query": "/v1/keys/7/encrypt?x=1", "of another key": "/v1/keys/8/encrypt",
	} {
		s.ok("app", "unlock", "im")
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.api+"/v1/keys/7/encrypt", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Host = "x"
		if err := httpsig.Sign(req, []byte(body), httpsig.Key{ID: s.key, Secret: []byte(s.secret)}, time.Now()); err != nil {
			t.Fatal(err)
		}
		var head strings.Builder
		_ = req.Header.Write(&head)
		want := map[bool]string{true: "200", false: "401"}[what == "as it was signed"]
		if got := s.said("POST " + target + " HTTP/1.1\r\nHost: x\r\n" + size + head.String() + "\r\n" + body); got != want {
			t.Errorf("signed, %s: %q, want %q", what, got, want)
		}
	}
}

// TestMappedAddress: a listener of IPv6 sees callers of IPv4 as ::ffff:127.0.0.1. They are
// who they are, and nobody else: neither ::1 nor what a proxy's header maps.
func TestMappedAddress(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	_, port, err := net.SplitHostPort(strings.TrimPrefix(s.api, "https://"))
	if err != nil {
		t.Fatal(err)
	}
	s.configure(func(c *config.Config) {
		c.API.Listen = "[::]:" + port
		c.API.TrustedProxies = append(c.API.TrustedProxies, prefix(t, "127.0.0.9/32"))
	})
	s.open()
	s.ok("key", "create", "--index", "7", "--name", "chat")
	s.createApp("im", "127.0.0.1/32", "keys=7;ops=encrypt")
	if a := s.once(); a.status != 200 {
		t.Errorf("IPv4 at a listener of IPv6: %d %s", a.status, a.raw)
	}
	sixth := func(header string) string {
		c := s.socket("[::1]:" + port)
		_, _ = io.WriteString(c, "POST /v1/keys/7/encrypt HTTP/1.1\r\nHost: x\r\nAuthorization: "+basic(s.key, s.secret)+"\r\n"+header+"Content-Length: 16\r\n\r\n"+`{"plaintext":""}`)
		r, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = r.Body.Close() }()
		raw, _ := io.ReadAll(r.Body)
		return string(raw)
	}
	for _, header := range []string{"", "X-Forwarded-For: 127.0.0.1\r\n", "X-Forwarded-For: ::ffff:127.0.0.1\r\n", "X-Forwarded-For: ::ffff:7f00:1\r\n"} {
		if got := sixth(header); !strings.Contains(got, "ip_not_allowed") {
			t.Errorf("from ::1, %q: %s", header, got)
		}
	}
	s.from(9) // the proxy
	for forwarded, status := range map[string]int{
		"127.0.0.1": 200, "::ffff:127.0.0.1": 200, "::ffff:7f00:1": 200, "::127.0.0.1": 403, "64:ff9b::7f00:1": 403, "::1": 403,
		"127.1": 403, "0177.0.0.1": 403, "2130706433": 403, "127.0.0.1:80": 403, "127.0.0.1%lo": 403, "127.0.0.1, ::ffff:127.0.0.2": 403,
	} {
		s.ok("app", "unlock", "im") // some of these are one network
		if a := s.post("/v1/keys/7/encrypt", object{"plaintext": ""}, "X-Forwarded-For", forwarded); a.status != status {
			t.Errorf("X-Forwarded-For %s: %d %s, want %d", forwarded, a.status, a.raw, status)
		}
	}
}
