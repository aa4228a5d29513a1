// Package httpsig is Trikey's profile of HTTP Message Signatures (RFC 9421), for both
// ends of the wire: one signature by hmac-sha256 under the label trikey, over the method,
// the target URI and, where there is a body, its digest (Content-Digest, RFC 9530), with
// created, nonce and keyid.
//
// RFC 9421 leaves to an application what a signature must cover and how old it may be
// (section 1.4). This package is strict where the RFC allows a choice: the structured
// fields must be in the form that RFC 9651 serialises them in, each thing is said once,
// and what the package does not know is refused and not skipped.
package httpsig

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Label is the signature's name in Signature-Input and Signature.
const Label = "trikey"

// Algorithm is the name of HMAC using SHA-256 (RFC 9421, section 3.3.3).
const Algorithm = "hmac-sha256"

// Window is how far the time at which a signature was made may be from the verifier's.
const Window = 5 * time.Minute

// Names of fields.
const (
	HeaderInput     = "Signature-Input"
	HeaderSignature = "Signature"
	HeaderDigest    = "Content-Digest"
	headerType      = "Content-Type"
)

// Names of components (RFC 9421, section 2).
const (
	method    = "@method"
	targetURI = "@target-uri"
	digest    = "content-digest"
)

// ownPrefix begins the fields that tell how a Trikey service takes a body, in the form
// that components have.
const ownPrefix = "trikey-"

// octetStream is the media type of a body that is the message itself.
const octetStream = "application/octet-stream"

// mustCover returns the components that a signature of a request must cover: beside the
// method, the URI and the body, what else changes its meaning.
func mustCover(r *http.Request) []string {
	names := []string{method, targetURI}
	if hasBody(r) {
		names = append(names, digest)
	}
	// Where it is not covered a body is JSON: it can be made neither of the two by who
	// alters the header.
	if strings.HasPrefix(strings.ToLower(r.Header.Get(headerType)), octetStream) {
		names = append(names, "content-type")
	}
	for name := range r.Header {
		if name = strings.ToLower(name); strings.HasPrefix(name, ownPrefix) {
			names = append(names, name)
		}
	}
	return names
}

func hasBody(r *http.Request) bool {
	return r.ContentLength != 0 && r.Body != nil && r.Body != http.NoBody
}

// Digest returns the Content-Digest of a body (RFC 9530).
func Digest(body []byte) string {
	sum := sha256.Sum256(body)
	return "sha-256=:" + base64.StdEncoding.EncodeToString(sum[:]) + ":"
}

// Key is what a caller signs with.
type Key struct {
	ID     string // the AppKey
	Secret []byte // the AppSecret as it was printed
}

// nonceBytes is the randomness of a nonce.
const nonceBytes = 16

// Sign signs a request whose body, if it has one, is the given bytes. Headers that are set
// after it are not covered.
func Sign(r *http.Request, body []byte, key Key, now time.Time) error {
	if hasBody(r) {
		r.Header.Set(HeaderDigest, Digest(body))
	}
	var raw [nonceBytes]byte
	_, _ = rand.Read(raw[:]) // never fails
	names := mustCover(r)
	params := "(" + quoted(names) + ");created=" + strconv.FormatInt(now.Unix(), 10) + `;keyid="` + key.ID +
		`";alg="` + Algorithm + `";nonce="` + base64.RawURLEncoding.EncodeToString(raw[:]) + `"`
	base, err := signatureBase(r, names, params)
	if err != nil {
		return err
	}
	m := hmac.New(sha256.New, key.Secret)
	m.Write(base)
	r.Header.Set(HeaderInput, Label+"="+params)
	r.Header.Set(HeaderSignature, Label+"=:"+base64.StdEncoding.EncodeToString(m.Sum(nil))+":")
	return nil
}

// quoted writes names as the items of an inner list. None of them needs escaping.
func quoted(names []string) string { return `"` + strings.Join(names, `" "`) + `"` }
