package soft

import (
	"context"
	"crypto/hmac"
	"errors"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/hsm/engine"
	"github.com/trikey/trikey/hsm/keyexport"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// dataKey draws a key and seals it, as an ordinary ciphertext of op.Key.
func (b *bench) dataKey(op *hsm.Op) ([]byte, error) {
	_, k, err := b.business(op.Key)
	switch {
	case err != nil:
		return op.Output, err
	case k.header.Purpose != hsm.PurposeSeal:
		return op.Output, k.header.Purpose.Refusal(k.header.Index, "wrap data keys")
	}
	return engine.DataKey(op, func(raw []byte) ([]byte, error) { return b.encrypt(op.Output, op.Key, op.Algorithm, op.Context, raw) })
}

// keyed carries out what is done with the business key itself, or with a private key
// that follows from it and exists for this operation only.
func (b *bench) keyed(op *hsm.Op) ([]byte, error) {
	want, what := hsm.PurposeSign, "sign"
	if op.Kind == hsm.Mac || op.Kind == hsm.VerifyMac {
		want, what = hsm.PurposeMAC, "compute codes"
	}
	out := op.Output
	err := b.withKey(op.Key, func(header hsm.WrapHeader, key []byte) error {
		if header.Purpose != want {
			return header.Purpose.Refusal(header.Index, what)
		}
		// Hashes and signatures spill the key to the stack.
		return secret.Derive(func() error {
			result, err := compute(op, header, key)
			out = append(out, result...)
			return err
		})
	})
	return out, err
}

func compute(op *hsm.Op, h hsm.WrapHeader, key []byte) ([]byte, error) {
	switch op.Kind {
	case hsm.Mac:
		return alg.Authenticate(h.Algorithm, key, op.Input)
	case hsm.VerifyMac:
		code, err := alg.Authenticate(h.Algorithm, key, op.Input)
		if err == nil && !hmac.Equal(code, op.Signature) {
			err = fault.SignatureInvalid
		}
		return nil, err
	case hsm.Sign:
		return alg.Sign(h.Algorithm, key, h.Index, h.Version, op.Input)
	}
	public, err := alg.PublicKey(h.Algorithm, key, h.Index, h.Version)
	if err != nil || op.Kind == hsm.PublicKey {
		return public, err
	}
	valid, err := alg.Verify(h.Algorithm, public, op.Input, op.Signature)
	if err == nil && !valid {
		err = fault.SignatureInvalid
	}
	return nil, err
}

// withKey lets f use a business key. The key can be evicted from its cache, and wiped,
// before it is used; then it is fetched again.
func (b *bench) withKey(w hsm.WrappedKey, f func(hsm.WrapHeader, []byte) error) error {
	for range 8 {
		_, k, err := b.business(w)
		if err != nil {
			return err
		}
		err = k.key.Use(func(raw []byte) error { return f(k.header, raw) })
		if !errors.Is(err, secret.ErrWiped) {
			return err
		}
	}
	return errCacheTooSmall
}

// export wraps a business key for somebody else's public key. Its binding says whether that
// may be, which nobody can change without the root.
func (b *bench) export(op *hsm.Op) ([]byte, error) {
	to, err := keyexport.ParseReceiver(op.Input)
	if err != nil {
		return op.Output, err
	}
	out := op.Output
	err = b.withKey(op.Key, func(header hsm.WrapHeader, key []byte) error {
		if !header.Exportable {
			return hsm.NotExportable(header.Index)
		}
		blob, err := to.Wrap(key)
		out = append(out, blob...)
		return err
	})
	return out, err
}

// BeginImport makes a one-time key.
func (e *Engine) BeginImport(ctx context.Context) (made hsm.ImportKey, err error) {
	err = e.Serve(ctx, func() error { made, err = e.imports.Begin(); return err })
	return made, err
}

// FinishImport takes a key in that was wrapped for a one-time key.
func (e *Engine) FinishImport(ctx context.Context, id hsm.ID, blob []byte, b hsm.Binding) (made hsm.GeneratedKey, err error) {
	err = e.Serve(ctx, func() error {
		if err := check(b); err != nil {
			return err
		}
		key, err := e.imports.Finish(id, blob)
		if err != nil {
			return err
		}
		defer key.Wipe()
		made, err = e.take(ctx, key, b)
		return err
	})
	return made, err
}
