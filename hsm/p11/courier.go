package p11

import (
	"context"
	"crypto/rsa"
	"crypto/x509"
	"errors"

	"github.com/miekg/pkcs11"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// transportLabel is that of a receiver's keys. They are session objects (PKCS#11,
// section 4.4): the token has them no longer once the process is gone.
const transportLabel = "trikey chip transport"

// minTransportBits is the shortest RSA key that a key is sent to: 128 bits of security
// (NIST SP 800-57 part 1, table 2).
const minTransportBits = 3072

// receiver is an RSA pair in the owner's session.
type receiver struct {
	chip            *Chip
	public, private pkcs11.ObjectHandle
	der             []byte
}

// NewReceiver makes an RSA pair in the chip, for one transport.
func (c *Chip) NewReceiver(context.Context) (hsm.Receiver, error) {
	r := &receiver{chip: c}
	err := c.owner.call("make a transport key in the chip", func(p *pkcs11.Ctx) (err error) {
		public, private := loadingTemplates(false, transportLabel)
		r.public, r.private, err = p.GenerateKeyPair(c.owner.handle, mechanism(pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN, nil), public, private)
		return err
	})
	if err != nil {
		return nil, err
	}
	public, err := c.publicKey(r.public)
	if err == nil {
		r.der, err = x509.MarshalPKIXPublicKey(public)
	}
	if err == nil {
		err = r.check()
	}
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// check sees that the chip keeps the private key as it was told to.
func (r *receiver) check() error {
	for kind, want := range map[uint]byte{
		pkcs11.CKA_SENSITIVE: 1, pkcs11.CKA_EXTRACTABLE: 0, pkcs11.CKA_TOKEN: 0, pkcs11.CKA_DECRYPT: 0, pkcs11.CKA_UNWRAP: 1,
	} {
		value, err := r.chip.owner.attribute(r.private, kind)
		if err != nil {
			return err
		}
		if len(value) != 1 || value[0] != want {
			return fault.New(fault.ChipFault, "the chip does not keep a transport key as it was told to (attribute %#x is %v)", kind, value)
		}
	}
	return nil
}

// Public is DER of a SubjectPublicKeyInfo.
func (r *receiver) Public() []byte { return r.der }

// Receive unwraps a key inside the chip.
func (r *receiver) Receive(_ context.Context, wrapped []byte) (hsm.ChipKey, error) {
	return r.chip.unwrapKey(r.private, wrapped)
}

// Close destroys the pair.
func (r *receiver) Close() error {
	return r.chip.owner.call("forget a transport key in the chip", func(p *pkcs11.Ctx) error {
		return errors.Join(p.DestroyObject(r.chip.owner.handle, r.private), p.DestroyObject(r.chip.owner.handle, r.public))
	})
}

// Send encrypts an AES-256 key to another chip's receiver.
func (c *Chip) Send(_ context.Context, receiver []byte, key *secret.Bytes) ([]byte, error) {
	parsed, err := x509.ParsePKIXPublicKey(receiver)
	public, ok := parsed.(*rsa.PublicKey)
	if err != nil || !ok || public.N.BitLen() < minTransportBits {
		return nil, fault.New(fault.BadRequest, "the transport key is not an RSA key of %d bits or more; have the request made again (trikey machine join-request)", minTransportBits)
	}
	return encryptTo(public, key)
}
