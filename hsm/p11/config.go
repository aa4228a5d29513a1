package p11

import (
	"crypto/sha1" //nolint:gosec // OAEP's security does not rest on collision resistance, and SoftHSM knows no other hash
	"crypto/sha256"
	"hash"

	"github.com/miekg/pkcs11"

	"github.com/trikey/trikey/internal/fault"
)

// Form is how a card holds shares.
type Form string

// The forms.
const (
	// FormData is a private data object on the card. "" means this form.
	FormData Form = "data"
	// FormRSA is a file on the host, sealed to an RSA key that never leaves the card:
	// for cards that cannot hold data objects, or have no room for them.
	FormRSA Form = "rsa"
)

// ModuleConfig names a PKCS#11 library, and says how shares are kept on its cards.
type ModuleConfig struct {
	Path string            // of the shared library
	Env  map[string]string // set in the process before the library is initialised

	Form   Form
	OAEP   string // hash of RSA-OAEP, "sha1" or "sha256" (also ""): for FormRSA
	Key    string // label of the key; "" is one that Trikey makes: for FormRSA
	Shares string // directory of the sealed shares: for FormRSA
}

// key is the label of the cards' keys.
func (c ModuleConfig) key() string {
	if c.Key != "" {
		return c.Key
	}
	return "trikey card"
}

// Check reports what is wrong with the configuration.
func (c ModuleConfig) Check() error {
	if _, err := c.oaep(); err != nil {
		return err
	}
	switch {
	case c.Form != "" && c.Form != FormData && c.Form != FormRSA:
		return fault.New(fault.BadConfig, "the PKCS#11 module %s: there is no form %q; write data or rsa", c.Path, c.Form)
	case c.Form == FormRSA && c.Shares == "":
		return fault.New(fault.BadConfig, "the PKCS#11 module %s: form rsa needs a directory for the sealed shares", c.Path)
	}
	return nil
}

// oaep is RSA-OAEP (RFC 8017, section 7.1) with one hash throughout.
type oaep struct {
	id   byte // in files
	hash func() hash.Hash
	mech uint
	mgf  uint
}

// oaeps are the known hashes. Tokens, and the HSMs of other makers behind the same
// module, differ in what they know: SoftHSM knows SHA-1 only.
var oaeps = map[string]oaep{
	"sha1":   {1, sha1.New, pkcs11.CKM_SHA_1, pkcs11.CKG_MGF1_SHA1},
	"sha256": {2, sha256.New, pkcs11.CKM_SHA256, pkcs11.CKG_MGF1_SHA256},
}

func (c ModuleConfig) oaep() (oaep, error) {
	name := c.OAEP
	if name == "" {
		name = "sha256"
	}
	o, ok := oaeps[name]
	if !ok {
		return o, fault.New(fault.BadConfig, "the PKCS#11 module %s: there is no OAEP hash %q; write sha1 or sha256", c.Path, name)
	}
	return o, nil
}

// oaepByID returns the hash that a file names.
func oaepByID(id byte) (oaep, bool) {
	for _, o := range oaeps {
		if o.id == id {
			return o, true
		}
	}
	return oaep{}, false
}
