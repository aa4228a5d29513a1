package p11

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // OAEP's security does not rest on collision resistance, and SoftHSM knows no other hash
	"errors"
	"fmt"
	"math/big"
	"strings"
	"sync"

	"github.com/miekg/pkcs11"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// Labels of the chip's keys. Each key has one use, and the chip is told so: a key
// that could both wrap and decrypt would give away what it wraps.
const (
	storageLabel = "trikey chip storage" // AES-256: seals the root
	loadingLabel = "trikey chip loading" // RSA-3072: unwraps keys into the chip
)

const (
	nonceSize = 12
	tagBits   = 128
	chipAAD   = "trikey/v1/chip"
	// maxWorkers bounds the sessions that work at the same time.
	maxWorkers = 8
)

// ChipConfig names the token that is the machine's chip.
type ChipConfig struct {
	Module ModuleConfig
	Label  string        // of the token
	Serial string        // "" is any
	PIN    *secret.Bytes // used while opening only
}

// Chip is a token that guards the machine's root.
type Chip struct {
	m       *module
	token   token
	owner   *session      // keeps the token logged in and session objects alive
	workers chan *session // idle sessions; nil where one is yet to be opened
	storage pkcs11.ObjectHandle
	unwrap  pkcs11.ObjectHandle
	public  *rsa.PublicKey
	objects sync.Mutex // held while a session object of resident.go is made or destroyed
}

var _ hsm.Chip = (*Chip)(nil)

// ProvisionChip makes the chip's keys on an initialised token.
func ProvisionChip(cfg ChipConfig) (err error) {
	c, err := loginChip(cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	switch err := c.findKeys(); {
	case err == nil:
		return fault.New(fault.Conflict, "the chip %s has its keys already", describe(c.token.info.CardID))
	case !errors.Is(err, fault.ChipFault):
		return err
	}
	return c.owner.call("make the chip's keys", func(p *pkcs11.Ctx) error {
		if _, err := p.GenerateKey(c.owner.handle, mechanism(pkcs11.CKM_AES_KEY_GEN, nil), storageTemplate()); err != nil {
			return err
		}
		public, private := loadingTemplates(true, loadingLabel)
		_, _, err := p.GenerateKeyPair(c.owner.handle, mechanism(pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN, nil), public, private)
		return err
	})
}

// OpenChip logs in to the chip.
func OpenChip(cfg ChipConfig) (*Chip, error) {
	c, err := loginChip(cfg)
	if err != nil {
		return nil, err
	}
	if err := c.findKeys(); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func loginChip(cfg ChipConfig) (*Chip, error) {
	m, err := openModule(cfg.Module)
	if err != nil {
		return nil, err
	}
	c := &Chip{m: m, workers: make(chan *session, maxWorkers)}
	for range maxWorkers {
		c.workers <- nil
	}
	if c.token, err = m.find(hsm.CardID{Label: cfg.Label, Serial: cfg.Serial}); err == nil {
		c.owner, err = m.login(c.token, cfg.PIN, fault.ChipFault, unlessItLocks)
	}
	if err != nil {
		return nil, errors.Join(fault.Wrap(fault.CodeOf(err), err, "the machine's chip"), m.close())
	}
	return c, nil
}

func (c *Chip) findKeys() error {
	one := func(class uint, label string) (pkcs11.ObjectHandle, error) {
		found, err := c.owner.objects(pkcs11.NewAttribute(pkcs11.CKA_CLASS, class), pkcs11.NewAttribute(pkcs11.CKA_LABEL, label))
		if err == nil && len(found) != 1 {
			err = fault.New(fault.ChipFault, "the chip %s has %d keys %q, not one: it was not provisioned for Trikey",
				describe(c.token.info.CardID), len(found), label)
		}
		if err != nil {
			return 0, err
		}
		return found[0], nil
	}
	var err error
	if c.storage, err = one(pkcs11.CKO_SECRET_KEY, storageLabel); err != nil {
		return err
	}
	if c.unwrap, err = one(pkcs11.CKO_PRIVATE_KEY, loadingLabel); err != nil {
		return err
	}
	public, err := one(pkcs11.CKO_PUBLIC_KEY, loadingLabel)
	if err != nil {
		return err
	}
	c.public, err = c.publicKey(public)
	return err
}

// publicKey reads the public half of an RSA pair.
func (c *Chip) publicKey(public pkcs11.ObjectHandle) (*rsa.PublicKey, error) {
	modulus, err := c.owner.attribute(public, pkcs11.CKA_MODULUS)
	if err != nil {
		return nil, err
	}
	exponent, err := c.owner.attribute(public, pkcs11.CKA_PUBLIC_EXPONENT)
	if err != nil {
		return nil, err
	}
	return &rsa.PublicKey{N: new(big.Int).SetBytes(modulus), E: int(new(big.Int).SetBytes(exponent).Int64())}, nil
}

// Describe names the chip.
func (c *Chip) Describe() string {
	i := c.token.info
	text := fmt.Sprintf("%s %s, token %q serial %s", i.Manufacturer, i.Model, i.Label, i.Serial)
	if strings.Contains(i.Manufacturer+i.Model, "SoftHSM") {
		text += " (SoftHSM: for tests only, it guards nothing from the host)"
	}
	return text
}

// Close ends all sessions with the chip, and with them the keys loaded into it.
func (c *Chip) Close() error {
	if c.owner != nil {
		c.owner.close() // not a logout: sessions at work would lose it under their hands
	}
	return c.m.close()
}

// work runs f in a session of its own. A session in which anything failed is not
// used again.
func (c *Chip) work(ctx context.Context, what string, f func(p *pkcs11.Ctx, s pkcs11.SessionHandle) error) error {
	var s *session
	select {
	case s = <-c.workers:
	case <-ctx.Done():
		return ctx.Err()
	}
	if s == nil {
		s = &session{m: c.m, code: fault.ChipFault}
		if err := s.open(c.token.slot); err != nil {
			c.workers <- nil
			return err
		}
	}
	err := s.call(what, func(p *pkcs11.Ctx) error { return f(p, s.handle) })
	if err != nil {
		s.close()
		s = nil
	}
	c.workers <- s
	return err
}

// seal encrypts with AES-GCM inside the chip.
func (c *Chip) seal(ctx context.Context, key pkcs11.ObjectHandle, nonce []byte, plaintext *secret.Bytes, aad []byte) (sealed []byte, err error) {
	err = plaintext.Use(func(b []byte) (err error) { sealed, err = c.encrypt(ctx, key, nonce, b, aad); return err })
	return sealed, err
}

func (c *Chip) encrypt(ctx context.Context, key pkcs11.ObjectHandle, nonce, plaintext, aad []byte) (sealed []byte, err error) {
	err = c.work(ctx, "encrypt in the chip", func(p *pkcs11.Ctx, s pkcs11.SessionHandle) (err error) {
		params := pkcs11.NewGCMParams(nonce, aad, tagBits)
		defer params.Free()
		if err := p.EncryptInit(s, mechanism(pkcs11.CKM_AES_GCM, params), key); err != nil {
			return err
		}
		sealed, err = p.Encrypt(s, plaintext)
		return err
	})
	return sealed, err
}

// open decrypts with AES-GCM inside the chip, into protected memory.
func (c *Chip) open(ctx context.Context, key pkcs11.ObjectHandle, nonce, sealed, aad []byte) (*secret.Bytes, error) {
	plaintext, err := c.decrypt(ctx, key, nonce, sealed, aad)
	if err != nil {
		return nil, err
	}
	return secret.Move(plaintext)
}

// decrypt decrypts with AES-GCM inside the chip. A tag that does not match is
// fault.DecryptFailed.
func (c *Chip) decrypt(ctx context.Context, key pkcs11.ObjectHandle, nonce, sealed, aad []byte) (plaintext []byte, err error) {
	mismatch := false
	err = c.work(ctx, "decrypt in the chip", func(p *pkcs11.Ctx, s pkcs11.SessionHandle) (err error) {
		params := pkcs11.NewGCMParams(nonce, aad, tagBits)
		defer params.Free()
		if err := p.DecryptInit(s, mechanism(pkcs11.CKM_AES_GCM, params), key); err != nil {
			return err
		}
		plaintext, err = p.Decrypt(s, sealed)
		mismatch = isMismatch(err)
		return err
	})
	if mismatch {
		return nil, fault.DecryptFailed
	}
	return plaintext, err
}

// isMismatch reports whether C_Decrypt says that a tag does not match. SoftHSM
// says CKR_GENERAL_ERROR, which for a call that got as far can mean nothing else.
func isMismatch(err error) bool {
	var rv pkcs11.Error
	return errors.As(err, &rv) && (rv == pkcs11.CKR_ENCRYPTED_DATA_INVALID || rv == pkcs11.CKR_ENCRYPTED_DATA_LEN_RANGE ||
		rv == pkcs11.CKR_GENERAL_ERROR)
}

// Seal encrypts a key under the storage key: nonce 12 | ciphertext | tag 16.
func (c *Chip) Seal(ctx context.Context, key *secret.Bytes) ([]byte, error) {
	nonce := make([]byte, nonceSize)
	_, _ = rand.Read(nonce) // never fails
	sealed, err := c.seal(ctx, c.storage, nonce, key, []byte(chipAAD))
	return append(nonce, sealed...), err
}

// Open decrypts what Seal made.
func (c *Chip) Open(ctx context.Context, sealed []byte) (*secret.Bytes, error) {
	if len(sealed) < nonceSize {
		return nil, fault.DecryptFailed
	}
	return c.open(ctx, c.storage, sealed[:nonceSize], sealed[nonceSize:], []byte(chipAAD))
}

// Renew destroys the storage key and makes another.
func (c *Chip) Renew(context.Context) error {
	return c.owner.call("renew the chip's storage key", func(p *pkcs11.Ctx) error {
		fresh, err := p.GenerateKey(c.owner.handle, mechanism(pkcs11.CKM_AES_KEY_GEN, nil), storageTemplate())
		if err != nil {
			return err
		}
		if err := p.DestroyObject(c.owner.handle, c.storage); err != nil {
			return errors.Join(err, p.DestroyObject(c.owner.handle, fresh))
		}
		c.storage = fresh
		return nil
	})
}

// encryptTo encrypts a key to a chip's public key by RSA-OAEP (RFC 8017).
func encryptTo(public *rsa.PublicKey, key *secret.Bytes) (wrapped []byte, err error) {
	err = key.Use(func(k []byte) error {
		return secret.Scrub(func() (err error) {
			wrapped, err = rsa.EncryptOAEP(sha1.New(), rand.Reader, public, k, nil) //nolint:gosec // see the import
			return err
		})
	})
	if err != nil {
		return nil, fault.Wrap(fault.ChipFault, err, "encrypt a key to the chip")
	}
	return wrapped, nil
}

func loadingOAEP() []*pkcs11.Mechanism {
	return mechanism(pkcs11.CKM_RSA_PKCS_OAEP, pkcs11.NewOAEPParams(pkcs11.CKM_SHA_1, pkcs11.CKG_MGF1_SHA1, pkcs11.CKZ_DATA_SPECIFIED, nil))
}

// Load hands a key to the chip: encrypted to its public key, unwrapped inside it.
// Nothing but the chip sees the key after that.
func (c *Chip) Load(_ context.Context, key *secret.Bytes) (hsm.ChipKey, error) {
	wrapped, err := encryptTo(c.public, key)
	if err != nil {
		return nil, err
	}
	return c.unwrapKey(c.unwrap, wrapped)
}

// unwrapKey keeps an AES-256 key in the chip that was encrypted to one of its pairs.
func (c *Chip) unwrapKey(private pkcs11.ObjectHandle, wrapped []byte) (hsm.ChipKey, error) {
	loaded := &chipKey{chip: c}
	// In the owner's session: the key lives as long as that does.
	err := c.owner.call("load a key into the chip", func(p *pkcs11.Ctx) (err error) {
		loaded.handle, err = p.UnwrapKey(c.owner.handle, loadingOAEP(), private, wrapped, sessionTemplate())
		return err
	})
	if err != nil {
		return nil, err
	}
	// The chip is not believed to have applied what it was told.
	if err := loaded.check(); err != nil {
		return nil, errors.Join(err, loaded.Close())
	}
	return loaded, nil
}

// chipKey is a session object of the chip.
type chipKey struct {
	chip   *Chip
	handle pkcs11.ObjectHandle
}

func (k *chipKey) check() error {
	for kind, want := range map[uint]byte{pkcs11.CKA_SENSITIVE: 1, pkcs11.CKA_EXTRACTABLE: 0, pkcs11.CKA_TOKEN: 0, pkcs11.CKA_WRAP: 0} {
		value, err := k.chip.owner.attribute(k.handle, kind)
		if err != nil {
			return err
		}
		if len(value) != 1 || value[0] != want {
			return fault.New(fault.ChipFault, "the chip does not keep a key as it was told to (attribute %#x is %v)", kind, value)
		}
	}
	return nil
}

// Seal encrypts a short secret.
func (k *chipKey) Seal(ctx context.Context, nonce []byte, plaintext *secret.Bytes, aad []byte) ([]byte, error) {
	return k.chip.seal(ctx, k.handle, nonce, plaintext, aad)
}

// Open decrypts into protected memory.
func (k *chipKey) Open(ctx context.Context, nonce, sealed, aad []byte) (*secret.Bytes, error) {
	return k.chip.open(ctx, k.handle, nonce, sealed, aad)
}

// Close destroys the key.
func (k *chipKey) Close() error {
	return k.chip.owner.call("forget a key in the chip", func(p *pkcs11.Ctx) error { return p.DestroyObject(k.chip.owner.handle, k.handle) })
}

// Templates set every attribute that matters: the defaults of a token are whatever
// its maker chose, and often wrong.
