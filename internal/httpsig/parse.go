package httpsig

import (
	"crypto/sha256"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/dunglas/httpsfv"
)

// Bounds of what a caller may send.
const (
	maxField      = 4 << 10 // bytes of a field
	maxComponents = 32
	minNonce      = 8
	maxNonce      = 128
	maxKeyID      = 64
)

// Signature is a signature that a request has. It says what it claims: nothing of it is
// true before its MAC was compared.
type Signature struct {
	KeyID string
	Nonce string
	Base  []byte // what is signed (RFC 9421, section 2.5)
	MAC   []byte

	created time.Time
	expires time.Time // zero when it does not say

	digest []byte // of the body, by hash; nil when there is no body
	hash   string
}

// Present reports whether a request has a signature, good or not.
func Present(r *http.Request) bool {
	return len(r.Header.Values(HeaderInput)) > 0 || len(r.Header.Values(HeaderSignature)) > 0
}

// Parse returns the signature of a request. Every error is fault.SignatureInvalid.
func Parse(r *http.Request) (*Signature, error) {
	input, params, err := member[httpsfv.InnerList](r, HeaderInput)
	if err != nil {
		return nil, err
	}
	mac, _, err := member[httpsfv.Item](r, HeaderSignature)
	if err != nil {
		return nil, err
	}
	s := &Signature{}
	var ok bool
	if s.MAC, ok = mac.Value.([]byte); !ok || len(mac.Params.Names()) > 0 || len(s.MAC) != sha256.Size {
		return nil, invalid("%s: the member %q is not the %d bytes of an %s between colons", HeaderSignature, Label, sha256.Size, Algorithm)
	}
	if err := s.parameters(input.Params); err != nil {
		return nil, err
	}
	names, err := covered(r, input.Items)
	if err != nil {
		return nil, err
	}
	if s.Base, err = signatureBase(r, names, params); err != nil {
		return nil, err
	}
	if hasBody(r) {
		return s, s.contentDigest(r)
	}
	return s, nil
}

// member returns the only member of a dictionary field, which is the signature's, and how
// it is written.
func member[T httpsfv.Member](r *http.Request, name string) (value T, text string, err error) {
	lines := r.Header.Values(name)
	if len(lines) != 1 || len(lines[0]) > maxField {
		return value, "", invalid("%s: a signed request has this field once, of at most %d bytes", name, maxField)
	}
	dictionary, err := httpsfv.UnmarshalDictionary(lines)
	if err != nil {
		return value, "", invalid("%s: not a dictionary of RFC 9651 (%v)", name, err)
	}
	// What is said twice would be dropped without a word.
	if written, err := httpsfv.Marshal(dictionary); err != nil || written != strings.Trim(lines[0], " \t") {
		return value, "", invalid("%s: not in the form that RFC 9651 writes, or something in it is said twice", name)
	}
	m, _ := dictionary.Get(Label)
	value, ok := m.(T)
	if !ok || len(dictionary.Names()) != 1 {
		return value, "", invalid("%s: has not one member %q alone", name, Label)
	}
	return value, strings.TrimPrefix(strings.Trim(lines[0], " \t"), Label+"="), nil
}

// covered returns the names of the covered components, which are all that must be.
func covered(r *http.Request, items []httpsfv.Item) ([]string, error) {
	if len(items) > maxComponents {
		return nil, invalid("the signature covers more than %d components", maxComponents)
	}
	names := make([]string, 0, len(items))
	for _, item := range items {
		name, ok := item.Value.(string)
		if !ok || len(item.Params.Names()) > 0 {
			return nil, invalid("the components of a signature are names without parameters here")
		}
		if slices.Contains(names, name) {
			return nil, invalid("the signature covers %q twice", name)
		}
		names = append(names, name)
	}
	for _, name := range mustCover(r) {
		if !slices.Contains(names, name) {
			return nil, invalid("the signature does not cover %q, which it must in this request", name)
		}
	}
	return names, nil
}

// parameters takes the signature's parameters in (section 2.3).
func (s *Signature) parameters(p *httpsfv.Params) error {
	for _, name := range p.Names() {
		value, _ := p.Get(name)
		ok := false
		switch name {
		case "created", "expires":
			var at int64
			if at, ok = value.(int64); ok && name == "created" {
				s.created = time.Unix(at, 0)
			} else if ok {
				s.expires = time.Unix(at, 0)
			}
		case "keyid":
			s.KeyID, ok = value.(string)
			ok = ok && s.KeyID != "" && len(s.KeyID) <= maxKeyID
		case "nonce":
			s.Nonce, ok = value.(string)
			ok = ok && len(s.Nonce) >= minNonce && len(s.Nonce) <= maxNonce
		case "alg":
			ok = value == Algorithm
		}
		if !ok {
			return invalid("the parameter %q is not one that a signature has here, or is not of its form; alg is %s, "+
				"nonce a string of %d to %d characters", name, Algorithm, minNonce, maxNonce)
		}
	}
	if s.created.IsZero() || s.KeyID == "" || s.Nonce == "" {
		return invalid("the signature needs the parameters created, keyid and nonce")
	}
	return nil
}

// Fresh reports whether the signature was made about now.
func (s *Signature) Fresh(now time.Time) error {
	switch off := now.Sub(s.created).Round(time.Second); {
	case off > Window || off < -Window:
		return invalid("the signature was made %s away from this service's time, and may be %s; set the clock, or sign anew", off.Abs(), Window)
	case !s.expires.IsZero() && !now.Before(s.expires):
		return invalid("the signature has expired; sign anew")
	}
	return nil
}
