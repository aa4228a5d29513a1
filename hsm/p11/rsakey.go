package p11

import (
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"math/big"

	"github.com/miekg/pkcs11"

	"github.com/trikey/trikey/internal/fault"
)

// cardKeyBits is what every card of the kind can do.
const cardKeyBits = 2048

// cardKey is the card's own key pair: the private half never leaves it.
type cardKey struct {
	private pkcs11.ObjectHandle
	public  *rsa.PublicKey
	id      [sha256.Size]byte // SHA-256 of the modulus
}

// findKey returns the card's key, nil when it has none. The public half is read off the
// private one: not every maker lets both have the same label.
func (s *session) findKey(label string) (*cardKey, error) {
	found, err := s.objects(pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_RSA), pkcs11.NewAttribute(pkcs11.CKA_LABEL, label))
	if err != nil || len(found) == 0 {
		return nil, err
	}
	if len(found) != 1 {
		return nil, fault.New(fault.CardDamaged, "the card has %d keys %q, not one; use another card, and replace this one", len(found), label)
	}
	modulus, err := s.attribute(found[0], pkcs11.CKA_MODULUS)
	if err != nil {
		return nil, err
	}
	exponent, err := s.attribute(found[0], pkcs11.CKA_PUBLIC_EXPONENT)
	if err != nil {
		return nil, err
	}
	k := &cardKey{private: found[0], public: &rsa.PublicKey{N: new(big.Int).SetBytes(modulus), E: int(new(big.Int).SetBytes(exponent).Int64())}}
	if k.public.N.BitLen() < cardKeyBits {
		return nil, fault.New(fault.CardDamaged, "the card's key %q has %d bits, fewer than %d; use another card", label, k.public.N.BitLen(), cardKeyBits)
	}
	k.id = sha256.Sum256(k.public.N.Bytes())
	return k, nil
}

// makeKey makes the card's key.
func (s *session) makeKey(label string) (*cardKey, error) {
	var public, private pkcs11.ObjectHandle
	err := s.m.call(fault.CardFull, "make the card's key (where the card leaves that to its maker's tool, make an RSA key with that, and set key of its module to its label)", func(p *pkcs11.Ctx) (err error) {
		for _, t := range cardKeyTemplates(label) {
			public, private, err = p.GenerateKeyPair(s.handle, mechanism(pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN, nil), t.public, t.private)
			if !isUnknownAttribute(err) {
				return err
			}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	// The card is not believed to have applied what it was told.
	for kind, want := range map[uint]byte{pkcs11.CKA_TOKEN: 1, pkcs11.CKA_SENSITIVE: 1, pkcs11.CKA_EXTRACTABLE: 0, pkcs11.CKA_DECRYPT: 1} {
		value, err := s.attribute(private, kind)
		if err == nil && (len(value) != 1 || value[0] != want) {
			err = fault.New(fault.CardFull, "the card does not keep a key as it was told to (attribute %#x is %v); use another card", kind, value)
		}
		if err != nil {
			return nil, errors.Join(err, s.call("remove a key from the card", func(p *pkcs11.Ctx) error {
				return errors.Join(p.DestroyObject(s.handle, private), p.DestroyObject(s.handle, public))
			}))
		}
	}
	k, err := s.findKey(label)
	if err == nil && k == nil {
		err = fault.New(fault.CardFull, "the card did not keep the key that it made; use another card")
	}
	return k, err
}

// isUnknownAttribute reports whether a token does not know an attribute of a template.
func isUnknownAttribute(err error) bool {
	var rv pkcs11.Error
	return errors.As(err, &rv) && (rv == pkcs11.CKR_ATTRIBUTE_TYPE_INVALID || rv == pkcs11.CKR_ATTRIBUTE_VALUE_INVALID ||
		rv == pkcs11.CKR_TEMPLATE_INCONSISTENT)
}

type pair struct{ public, private []*pkcs11.Attribute }

// cardKeyTemplates are what to ask a token for, the strictest first: many know neither
// CKA_ALLOWED_MECHANISMS nor that an object may be unmodifiable. What a public key is for
// is left to the token: anybody can do it elsewhere, and TPMs do not take a restriction.
func cardKeyTemplates(label string) []pair {
	public := []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, label),
		pkcs11.NewAttribute(pkcs11.CKA_ID, []byte(label)),
		pkcs11.NewAttribute(pkcs11.CKA_MODULUS_BITS, cardKeyBits),
		pkcs11.NewAttribute(pkcs11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1}),
		pkcs11.NewAttribute(pkcs11.CKA_WRAP, false),
	}
	private := []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
		pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true),
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, label),
		pkcs11.NewAttribute(pkcs11.CKA_ID, []byte(label)),
		pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true),
		pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, false),
		pkcs11.NewAttribute(pkcs11.CKA_DECRYPT, true),
		pkcs11.NewAttribute(pkcs11.CKA_SIGN, false),
		pkcs11.NewAttribute(pkcs11.CKA_UNWRAP, false),
	}
	fixed := append(private[:len(private):len(private)], pkcs11.NewAttribute(pkcs11.CKA_MODIFIABLE, false),
		pkcs11.NewAttribute(pkcs11.CKA_SIGN_RECOVER, false), pkcs11.NewAttribute(pkcs11.CKA_DERIVE, false))
	return []pair{
		{public, append(fixed[:len(fixed):len(fixed)], allow(pkcs11.CKM_RSA_PKCS_OAEP))},
		{public, fixed},
		{public, private},
	}
}
