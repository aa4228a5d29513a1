package api

import (
	"cmp"
	"encoding/base64"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"

	v1 "github.com/trikey/trikey/api/v1"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/httpsig"
	"github.com/trikey/trikey/kms/auth"
)

// Proxies are the addresses whose X-Forwarded-For is believed. They may be changed while
// they are asked; the zero value and nil trust nobody.
type Proxies struct {
	list atomic.Pointer[[]netip.Prefix]
}

// NewProxies returns proxies of these addresses.
func NewProxies(list []netip.Prefix) *Proxies {
	p := &Proxies{}
	p.Set(list)
	return p
}

// Set replaces the addresses.
func (p *Proxies) Set(list []netip.Prefix) { p.list.Store(&list) }

// Trusts reports whether an address is one of a proxy.
func (p *Proxies) Trusts(addr netip.Addr) bool {
	if p == nil {
		return false
	}
	list := p.list.Load()
	return list != nil && slices.ContainsFunc(*list, func(in netip.Prefix) bool { return in.Contains(addr) })
}

// single are the header fields of which a request has at most one: readers that take the
// first and readers that take the last would see two requests.
var single = []string{"Authorization", "Content-Type", "Content-Encoding", v1.HeaderContext, v1.HeaderAlgorithm, v1.HeaderSegments, v1.HeaderStream, v1.HeaderResult, "Signature", "Signature-Input", "Content-Digest"}

// unreadable is what claimed returns where an AppKey should be and none can be read.
const unreadable = "?"

// claimed returns the AppKey that a request names, with its secret or a signature by it;
// "" when it names none: tokens and certificates cannot be guessed. Of HTTP Basic it
// decodes the AppKey alone, not the secret behind it.
func claimed(r *http.Request) string {
	header := r.Header.Get("Authorization")
	const scheme = "Basic "
	if len(header) < len(scheme) || !strings.EqualFold(header[:len(scheme)], scheme) {
		if header != "" || !httpsig.Present(r) {
			return ""
		}
		// A signature has one keyid, or is refused.
		_, keyID, _ := strings.Cut(r.Header.Get("Signature-Input"), `;keyid="`)
		keyID, _, _ = strings.Cut(keyID, `"`)
		return cmp.Or(keyID, unreadable)
	}
	// The 18 characters of an AppKey, the colon and two more are 28 of base64.
	var head [21]byte
	if n := len(scheme) + base64.StdEncoding.EncodedLen(len(head)); len(header) >= n {
		if _, err := base64.StdEncoding.Decode(head[:], []byte(header[len(scheme):n])); err == nil && head[18] == ':' {
			return string(head[:18])
		}
	}
	return unreadable
}

// admit finds out who calls, for those who are let so far. It is for every way in.
func (s *server) admit(r *http.Request, from netip.Addr) (*auth.Caller, error) {
	for _, name := range single {
		if len(r.Header[name]) > 1 {
			return nil, fault.New(fault.BadRequest, "%s: given twice", name)
		}
	}
	caller, err := s.cfg.Guard.Admit(claimed(r), from, func() (*auth.Caller, error) { return s.identify(r, from) })
	if code := fault.CodeOf(err); code == fault.LockedOut || code == fault.RateLimited {
		s.cfg.Metrics.authFailure(string(code)) // identify was not asked
	}
	return caller, err
}
