package p11

import (
	"bytes"
	"context"
	"crypto/subtle"
	"errors"
	"slices"

	"github.com/miekg/pkcs11"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

var _ hsm.Token = (*Chip)(nil)

// usages are all that a key can be allowed to do.
var usages = []uint{
	pkcs11.CKA_ENCRYPT, pkcs11.CKA_DECRYPT, pkcs11.CKA_WRAP, pkcs11.CKA_UNWRAP, pkcs11.CKA_SIGN, pkcs11.CKA_VERIFY, pkcs11.CKA_DERIVE,
}

// residentTemplate is of an AES session object that does what is listed, by one
// mechanism. Like sessionTemplate it leaves CKA_MODIFIABLE out.
func residentTemplate(extractable bool, mechanism uint64, does ...uint) []*pkcs11.Attribute {
	template := []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false),
		pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true),
		pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true),
		pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, extractable),
		allow(mechanism),
	}
	for _, usage := range usages {
		template = append(template, pkcs11.NewAttribute(usage, slices.Contains(does, usage)))
	}
	return template
}

// The three lives of keys in a token. A business key in use cannot leave it; one that
// is being wrapped can, but only wrapped, and can do nothing but show that it is the
// same key.
func wrapperTemplate() []*pkcs11.Attribute {
	return residentTemplate(false, pkcs11.CKM_AES_KEY_WRAP, pkcs11.CKA_WRAP, pkcs11.CKA_UNWRAP)
}

func workingTemplate() []*pkcs11.Attribute {
	return residentTemplate(false, pkcs11.CKM_AES_GCM, pkcs11.CKA_ENCRYPT, pkcs11.CKA_DECRYPT)
}

func movingTemplate() []*pkcs11.Attribute {
	return residentTemplate(true, pkcs11.CKM_AES_CMAC, pkcs11.CKA_SIGN)
}

// create has the owner's session make an object, and sees that the token keeps it as it
// was told to. One object is made or destroyed at a time: tokens differ in what they
// stand of a session that several threads use.
func (c *Chip) create(what string, template []*pkcs11.Attribute, f func(p *pkcs11.Ctx, s pkcs11.SessionHandle) (pkcs11.ObjectHandle, error)) (pkcs11.ObjectHandle, error) {
	c.objects.Lock()
	defer c.objects.Unlock()
	var made pkcs11.ObjectHandle
	err := c.owner.call(what, func(p *pkcs11.Ctx) (err error) {
		made, err = f(p, c.owner.handle)
		return err
	})
	if err != nil {
		return 0, err
	}
	err = c.owner.call("read a key's attributes", func(p *pkcs11.Ctx) error {
		kept, err := p.GetAttributeValue(c.owner.handle, made, template)
		if err != nil {
			return err
		}
		for i, want := range template {
			if !bytes.Equal(kept[i].Value, want.Value) {
				return fault.New(fault.ChipFault, "the chip does not keep a key as it was told to (attribute %#x is %x, not %x); "+
					"use another chip, or machine.engine: host", want.Type, kept[i].Value, want.Value)
			}
		}
		return nil
	})
	if err != nil {
		return 0, errors.Join(err, c.owner.destroy(made))
	}
	return made, nil
}

func (c *Chip) destroy(o pkcs11.ObjectHandle) error {
	c.objects.Lock()
	defer c.objects.Unlock()
	return c.owner.destroy(o)
}

func (s *session) destroy(o pkcs11.ObjectHandle) error {
	return s.call("forget a key in the chip", func(p *pkcs11.Ctx) error { return p.DestroyObject(s.handle, o) })
}

// LoadWrapper hands the chip a wrapping key, as Load does.
func (c *Chip) LoadWrapper(_ context.Context, key *secret.Bytes) (hsm.Wrapper, error) {
	sealed, err := encryptTo(c.public, key)
	if err != nil {
		return nil, err
	}
	w := &wrapper{chip: c}
	template := wrapperTemplate()
	w.handle, err = c.create("load a wrapping key into the chip", template, func(p *pkcs11.Ctx, s pkcs11.SessionHandle) (pkcs11.ObjectHandle, error) {
		return p.UnwrapKey(s, loadingOAEP(), c.unwrap, sealed, template)
	})
	if err != nil {
		return nil, err
	}
	return w, nil
}

// wrapper is a session object that wraps others.
type wrapper struct {
	chip   *Chip
	handle pkcs11.ObjectHandle
}

// Close destroys the key.
func (w *wrapper) Close() error { return w.chip.destroy(w.handle) }

func (w *wrapper) unwrap(wrapped []byte, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	if len(wrapped) != hsm.WrapKWSize {
		return 0, fault.New(fault.RecordDamaged, "a wrapped key of %d bytes, not %d; restore the key store from a backup", len(wrapped), hsm.WrapKWSize)
	}
	o, err := w.chip.create("unwrap a key in the chip", template, func(p *pkcs11.Ctx, s pkcs11.SessionHandle) (pkcs11.ObjectHandle, error) {
		return p.UnwrapKey(s, mechanism(pkcs11.CKM_AES_KEY_WRAP, nil), w.handle, wrapped, template)
	})
	var rv pkcs11.Error
	// SoftHSM says CKR_GENERAL_ERROR of an integrity check that fails.
	if errors.As(err, &rv) && (rv == pkcs11.CKR_WRAPPED_KEY_INVALID || rv == pkcs11.CKR_WRAPPED_KEY_LEN_RANGE || rv == pkcs11.CKR_GENERAL_ERROR) {
		err = fault.Wrap(fault.RecordDamaged, err, "the chip does not unwrap the key: altered, or wrapped by another root")
	}
	return o, err
}

// Unwrap keeps a wrapped key in the chip.
func (w *wrapper) Unwrap(_ context.Context, wrapped []byte) (hsm.ResidentKey, error) {
	o, err := w.unwrap(wrapped, workingTemplate())
	if err != nil {
		return nil, err
	}
	return &residentKey{w.chip, o}, nil
}

// Generate draws a key in the chip.
func (w *wrapper) Generate(ctx context.Context) (wrapped, check []byte, err error) {
	template := append(movingTemplate(), pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, hsm.BusinessKeySize))
	key, err := w.chip.create("draw a key in the chip", template, func(p *pkcs11.Ctx, s pkcs11.SessionHandle) (pkcs11.ObjectHandle, error) {
		return p.GenerateKey(s, mechanism(pkcs11.CKM_AES_KEY_GEN, nil), template)
	})
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, w.chip.destroy(key)) }()
	return w.wrap(ctx, key)
}

// Rewrap moves a key to another wrapping key.
func (w *wrapper) Rewrap(ctx context.Context, wrapped []byte, to hsm.Wrapper) (moved []byte, err error) {
	target, ok := to.(*wrapper)
	if !ok || target.chip != w.chip {
		return nil, fault.New(fault.Internal, "a key cannot move to another chip")
	}
	key, err := w.unwrap(wrapped, movingTemplate())
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.chip.destroy(key)) }()
	moved, check, err := target.wrap(ctx, key)
	clear(check)
	return moved, err
}

// wrap wraps a key, and sees that it unwraps to the same before it gives it away.
func (w *wrapper) wrap(ctx context.Context, key pkcs11.ObjectHandle) (wrapped, check []byte, err error) {
	err = w.chip.work(ctx, "wrap a key in the chip", func(p *pkcs11.Ctx, s pkcs11.SessionHandle) (err error) {
		wrapped, err = p.WrapKey(s, mechanism(pkcs11.CKM_AES_KEY_WRAP, nil), w.handle, key)
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	again, err := w.unwrap(wrapped, movingTemplate())
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, w.chip.destroy(again)) }()
	if check, err = w.chip.cmac(ctx, key); err != nil {
		return nil, nil, err
	}
	same, err := w.chip.cmac(ctx, again)
	defer clear(same)
	if err == nil && subtle.ConstantTimeCompare(check, same) != 1 {
		err = fault.New(fault.ChipFault, "the chip does not give back the key it wrapped; replace or repair it")
	}
	return wrapped, check, err
}

// cmac returns the AES-CMAC of sixteen zero bytes.
func (c *Chip) cmac(ctx context.Context, key pkcs11.ObjectHandle) (sum []byte, err error) {
	err = c.work(ctx, "check a key in the chip", func(p *pkcs11.Ctx, s pkcs11.SessionHandle) (err error) {
		if err := p.SignInit(s, mechanism(pkcs11.CKM_AES_CMAC, nil), key); err != nil {
			return err
		}
		sum, err = p.Sign(s, make([]byte, 16))
		return err
	})
	return sum, err
}

// residentKey is a business key in use.
type residentKey struct {
	chip   *Chip
	handle pkcs11.ObjectHandle
}

// Close destroys the key.
func (k *residentKey) Close() error { return k.chip.destroy(k.handle) }

// Seal encrypts inside the chip.
func (k *residentKey) Seal(ctx context.Context, dst, nonce, plaintext, aad []byte) ([]byte, error) {
	sealed, err := k.chip.encrypt(ctx, k.handle, nonce, plaintext, aad)
	if err == nil && len(sealed) != len(plaintext)+tagBits/8 {
		err = fault.New(fault.ChipFault, "the chip made %d bytes of %d; replace or repair it", len(sealed), len(plaintext))
	}
	if err != nil {
		return dst, err
	}
	return append(dst, sealed...), nil
}

// Open decrypts inside the chip.
func (k *residentKey) Open(ctx context.Context, dst, nonce, sealed, aad []byte) ([]byte, error) {
	plaintext, err := k.chip.decrypt(ctx, k.handle, nonce, sealed, aad)
	defer clear(plaintext)
	if err != nil {
		return dst, err
	}
	return append(dst, plaintext...), nil
}
