package httpsig

import (
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"errors"
	"hash"
	"io"
	"net/http"

	"github.com/dunglas/httpsfv"
)

// The hashes of a Content-Digest that are taken (RFC 9530, section 5).
var hashes = map[string]func() hash.Hash{"sha-256": sha256.New, "sha-512": sha512.New}

// contentDigest takes in what the body's digest shall be. Of several one is enough: the
// signature covers the field as a whole.
func (s *Signature) contentDigest(r *http.Request) error {
	lines := r.Header.Values(HeaderDigest)
	if len(lines) != 1 || len(lines[0]) > maxField {
		return invalid("%s: a signed request with a body has this field once", HeaderDigest)
	}
	dictionary, err := httpsfv.UnmarshalDictionary(lines)
	if err != nil {
		return invalid("%s: not a dictionary of RFC 9651 (%v)", HeaderDigest, err)
	}
	for _, name := range dictionary.Names() {
		m, _ := dictionary.Get(name)
		item, _ := m.(httpsfv.Item)
		made := hashes[name]
		if value, ok := item.Value.([]byte); ok && made != nil && len(value) == made().Size() {
			s.hash, s.digest = name, value
		}
	}
	if s.digest == nil {
		return invalid("%s: has neither sha-256 nor sha-512", HeaderDigest)
	}
	return nil
}

// Body returns the request's body as one that fails, at its end, unless it is the one
// that was signed. Who uses nothing of it before the end uses nothing that was altered.
func (s *Signature) Body(body io.ReadCloser) io.ReadCloser {
	if s.digest == nil {
		return body
	}
	return &checked{ReadCloser: body, hash: hashes[s.hash](), want: s.digest}
}

type checked struct {
	io.ReadCloser
	hash hash.Hash
	want []byte
}

// Read reads from the body.
func (c *checked) Read(b []byte) (int, error) {
	n, err := c.ReadCloser.Read(b)
	c.hash.Write(b[:n])
	if errors.Is(err, io.EOF) && subtle.ConstantTimeCompare(c.hash.Sum(nil), c.want) != 1 {
		return n, invalid("the body is not the one of the %s; digest the bytes that are sent", HeaderDigest)
	}
	return n, err
}
