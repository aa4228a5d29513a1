package hsm

import (
	"fmt"
	"slices"
	"strings"

	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/internal/fault"
)

// Purpose is what a business key may be used for. A key has one; it is bound in the
// wrapped key (NIST SP 800-57 part 1 section 5.2: one key, one purpose).
type Purpose uint8

// The purposes of business keys.
const (
	PurposeSeal          Purpose = 1 // encrypt, decrypt, re-encrypt; data keys
	PurposeDeterministic Purpose = 2 // the same, but equal plaintexts seal to equal ciphertexts
	PurposeMAC           Purpose = 3 // message authentication codes, blind indexes
	PurposeSign          Purpose = 4 // digital signatures
)

var purposes = []struct {
	name    string
	class   alg.Class
	usual   alg.ID
	forWhat string
}{
	PurposeSeal:          {"seal", alg.Sealing, alg.AES256GCM, "to encrypt and decrypt"},
	PurposeDeterministic: {"deterministic", alg.Deterministic, alg.AES256SIV, "to encrypt and decrypt deterministically"},
	PurposeMAC:           {"mac", alg.Authentication, alg.HMACSHA256, "to compute and verify codes"},
	PurposeSign:          {"sign", alg.Signature, alg.Ed25519, "to sign and verify"},
}

func (p Purpose) known() bool { return p > 0 && int(p) < len(purposes) }

// String returns the purpose's name.
func (p Purpose) String() string {
	if p.known() {
		return purposes[p].name
	}
	return fmt.Sprintf("purpose(%d)", uint8(p))
}

// PurposeNames returns the names of all purposes.
func PurposeNames() []string {
	var names []string
	for _, p := range purposes[1:] {
		names = append(names, p.name)
	}
	return names
}

// ParsePurpose reads a purpose's name.
func ParsePurpose(name string) (Purpose, error) {
	if at := slices.Index(PurposeNames(), name); at >= 0 {
		return Purpose(at + 1), nil
	}
	return 0, fault.New(fault.BadRequest, "purpose: unknown %q; known: %s", name, strings.Join(PurposeNames(), ", "))
}

// Usual returns the algorithm of keys that are made for the purpose without naming one.
func (p Purpose) Usual() alg.ID {
	if p.known() {
		return purposes[p].usual
	}
	return 0
}

// Encrypts reports whether keys of the purpose encrypt and decrypt.
func (p Purpose) Encrypts() bool { return p == PurposeSeal || p == PurposeDeterministic }

// Check reports why keys of the purpose do not serve the algorithm; nil when they do.
func (p Purpose) Check(id alg.ID) error {
	if !p.known() {
		return fault.New(fault.BadRequest, "purpose: there is none of the number %d", uint8(p))
	}
	if id == alg.AES256GCMResident && p == PurposeSeal {
		return nil // a token's; whether it is this machine's, the engine says
	}
	a, err := alg.Lookup(id)
	if err == nil && a.Class != purposes[p].class {
		err = fault.New(fault.AlgorithmNotAllowed, "a key of the purpose %s serves only %s, not %s",
			p, strings.Join(alg.Names(purposes[p].class), ", "), a.Name)
	}
	return err
}

// Refusal is the error of using a key of the purpose for anything else.
func (p Purpose) Refusal(index uint32, what string) error {
	made := "for an unknown purpose"
	if p.known() {
		made = purposes[p].forWhat + ` (purpose "` + p.String() + `")`
	}
	return fault.New(fault.AlgorithmNotAllowed, "key %d was made %s and does not %s; use a key made for that", index, made, what)
}
