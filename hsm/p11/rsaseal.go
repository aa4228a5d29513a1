package p11

import (
	"crypto/rand"
	"crypto/rsa"
	"errors"

	"github.com/miekg/pkcs11"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// dekSize is the length of the AES-256 key that an object is sealed with.
const dekSize = 32

// seal encrypts a value under a key drawn for it, and that to the card.
func (c *rsaCard) seal(f *sealedFile, k *cardKey, value *secret.Bytes) (e sealedEntry, err error) {
	o, err := c.cfg.oaep()
	if err != nil {
		return e, err
	}
	dek, err := secret.Random(dekSize)
	if err != nil {
		return e, err
	}
	defer dek.Wipe()
	e = sealedEntry{oaep: o.id, nonce: make([]byte, nonceSize)}
	_, _ = rand.Read(e.nonce) // never fails
	err = value.Use(func(v []byte) error {
		return dek.Use(func(key []byte) error {
			return secret.Scrub(func() (err error) {
				if e.key, err = rsa.EncryptOAEP(o.hash(), rand.Reader, k.public, key, nil); err != nil {
					return fault.Wrap(fault.ModuleFault, err, "encrypt to the card's key")
				}
				cipher, err := alg.NewCipher(alg.AES256GCM, key)
				if err != nil {
					return err
				}
				defer cipher.Erase()
				e.object = cipher.Seal(nil, e.nonce, v, f.aad(&e))
				return nil
			})
		})
	})
	return e, err
}

// open has the card decrypt an entry's key, and decrypts the object with that.
func (c *rsaCard) open(f *sealedFile, k *cardKey, e *sealedEntry) (*secret.Bytes, error) {
	damaged := fault.New(fault.CardDamaged, "what was sealed to the card in %s does not open: the file is damaged; restore it from a backup, "+
		"or use another card, and replace this one", f.path)
	o, ok := oaepByID(e.oaep)
	if !ok || len(e.object) < tagBits/8 || len(e.object)-tagBits/8 > hsm.MaxEnvelope {
		return nil, damaged
	}
	dek, err := c.decrypt(o, k, e.key)
	if errors.Is(err, fault.DecryptFailed) || err == nil && dek.Len() != dekSize {
		dek.Wipe()
		return nil, damaged
	}
	if err != nil {
		return nil, err
	}
	defer dek.Wipe()
	return secret.Fill(len(e.object)-tagBits/8, func(b []byte) error {
		return dek.Use(func(key []byte) error {
			return secret.Scrub(func() error {
				cipher, err := alg.NewCipher(alg.AES256GCM, key)
				if err != nil {
					return err
				}
				defer cipher.Erase()
				if _, err := cipher.Open(b[:0], e.nonce, e.object, f.aad(e)); err != nil {
					return damaged
				}
				return nil
			})
		})
	})
}

// decrypt is RSA-OAEP inside the card. What was not encrypted to it is
// fault.DecryptFailed.
func (c *rsaCard) decrypt(o oaep, k *cardKey, ciphertext []byte) (*secret.Bytes, error) {
	var plaintext []byte
	begun, mismatch := false, false
	err := c.s.call("decrypt with the card's key", func(p *pkcs11.Ctx) (err error) {
		params := pkcs11.NewOAEPParams(o.mech, o.mgf, pkcs11.CKZ_DATA_SPECIFIED, nil)
		if err := p.DecryptInit(c.s.handle, mechanism(pkcs11.CKM_RSA_PKCS_OAEP, params), k.private); err != nil {
			return err
		}
		begun = true
		plaintext, err = p.Decrypt(c.s.handle, ciphertext)
		mismatch = isMismatch(err)
		return err
	})
	switch {
	case mismatch:
		return nil, fault.DecryptFailed
	case errors.Is(err, fault.ModuleFault) && !begun:
		return nil, fault.Wrap(fault.ModuleFault, err, "the card may not know RSA-OAEP with this hash; set oaep of its module to the other one")
	case err != nil:
		return nil, err
	}
	return secret.Move(plaintext)
}
