package soft

import (
	"context"
	"crypto/rand"
	"errors"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/hsm/engine"
	"github.com/trikey/trikey/internal/envelope"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// bench is where one call works: the ciphers it has built so far, which
// neighbouring operations share and clear erases.
type bench struct {
	engine  *Engine
	ctx     context.Context
	ciphers []ready
	scratch []byte // additional data of one operation
}

// ready is a cipher and the message key it was built from.
type ready struct {
	id     messageID
	cipher alg.Cipher
}

// maxReady bounds the ciphers that are alive at once in a call.
const maxReady = 32

func (b *bench) clear() {
	for _, r := range b.ciphers {
		r.cipher.Erase()
	}
	b.ciphers = b.ciphers[:0]
}

func (b *bench) do(op *hsm.Op) ([]byte, error) {
	switch op.Kind {
	case hsm.Encrypt:
		return b.encrypt(op.Output, op.Key, op.Algorithm, op.Context, op.Input)
	case hsm.Decrypt:
		return b.decrypt(op.Output, op.Key, op.Context, op.Input)
	case hsm.Reencrypt:
		return b.reencrypt(op)
	case hsm.SealRecord:
		return b.sealRecord(op.Output, op.Generation, op.Record, op.Input)
	case hsm.OpenRecord:
		return b.openRecord(op.Output, op.Record, op.Input)
	case hsm.Rewrap:
		return b.rewrap(op.Output, op.Key, op.Generation)
	case hsm.DataKey:
		return b.dataKey(op)
	case hsm.Random:
		return engine.Random(op.Output, op.Size)
	case hsm.Mac, hsm.VerifyMac, hsm.Sign, hsm.Verify, hsm.PublicKey:
		return b.keyed(op)
	case hsm.Export:
		return b.export(op)
	case hsm.SealSegment:
		return b.sealSegment(op)
	case hsm.OpenSegment:
		return b.openSegment(op)
	case hsm.Forget:
		return op.Output, b.forget(op.Key)
	}
	return op.Output, fault.New(fault.BadRequest, "operation: unknown kind %d", op.Kind)
}

func (b *bench) encrypt(dst []byte, key hsm.WrappedKey, suite alg.ID, canonical, plaintext []byte) ([]byte, error) {
	s, k, err := b.business(key)
	if err != nil {
		return dst, err
	}
	if suite == 0 {
		suite = k.header.Algorithm
	}
	if !k.header.Purpose.Encrypts() {
		return dst, k.header.Purpose.Refusal(k.header.Index, "encrypt")
	}
	if err := k.header.Purpose.Check(suite); err != nil {
		return dst, err
	}
	header := envelope.Header{Suite: byte(suite), Index: k.header.Index, Version: k.header.Version}
	if k.header.Purpose != hsm.PurposeDeterministic { // whose salt and nonce are zero
		header.Salt = s.salt()
		_, _ = rand.Read(header.Nonce[:]) // from the kernel, never a counter; never fails
	}
	c, err := b.cipher(s, key, k, messages, suite, header.Salt)
	if err != nil {
		return dst, err
	}
	b.scratch = header.AppendAAD(b.scratch[:0], canonical)
	return c.Seal(header.Append(dst), header.Nonce[:], plaintext, b.scratch), nil
}

// decrypt returns fault.DecryptFailed whatever the ciphertext's fault is, but for one of
// a token's suite; other errors are the machine's own.
func (b *bench) decrypt(dst []byte, key hsm.WrappedKey, canonical, ciphertext []byte) ([]byte, error) {
	header, sealed, err := envelope.Parse(ciphertext)
	if err != nil {
		return dst, err
	}
	if alg.ID(header.Suite) == alg.AES256GCMResident {
		return dst, alg.ErrResident
	}
	s, k, err := b.business(key)
	if err != nil {
		return dst, err
	}
	if !k.header.Purpose.Encrypts() {
		return dst, k.header.Purpose.Refusal(k.header.Index, "decrypt")
	}
	if k.header.Purpose.Check(alg.ID(header.Suite)) != nil || header.Index != k.header.Index || header.Version != k.header.Version {
		return dst, fault.DecryptFailed
	}
	c, err := b.cipher(s, key, k, messages, alg.ID(header.Suite), header.Salt)
	if err != nil {
		return dst, err
	}
	b.scratch = header.AppendAAD(b.scratch[:0], canonical)
	out, err := c.Open(dst, header.Nonce[:], sealed, b.scratch)
	if err != nil {
		return dst, fault.DecryptFailed
	}
	return out, nil
}

// reencrypt opens and seals in one step; the plaintext is wiped before it ends.
func (b *bench) reencrypt(op *hsm.Op) ([]byte, error) {
	plaintext, err := b.decrypt(make([]byte, 0, len(op.Input)), op.Key, op.Context, op.Input)
	if err != nil {
		return op.Output, err
	}
	defer clear(plaintext)
	return b.encrypt(op.Output, op.To, op.Algorithm, op.ToContext, plaintext)
}

// business returns an unwrapped business key, and the session of the root that
// wrapped it.
func (b *bench) business(w hsm.WrappedKey) (*session, *business, error) {
	s, err := b.engine.At(w.Generation())
	if err != nil {
		return nil, nil, err
	}
	k, err := s.business(b.ctx, w)
	return s, k, err
}

// forget drops a business key, and what was derived from it, here and in the caches. A
// root that is not open has none.
func (b *bench) forget(w hsm.WrappedKey) error {
	b.clear()
	if s, err := b.engine.At(w.Generation()); err == nil {
		s.forget(w)
	}
	return nil
}

// rewrap wraps a business key under the root of another generation, and sees that it
// opens there before it gives it away.
func (b *bench) rewrap(dst []byte, w hsm.WrappedKey, generation uint32) ([]byte, error) {
	from, err := b.engine.At(w.Generation())
	if err != nil {
		return dst, err
	}
	to, err := b.engine.At(generation)
	if err != nil {
		return dst, err
	}
	header, key, err := from.unwrap(b.ctx, w)
	if err != nil {
		return dst, err
	}
	defer key.Wipe()
	moved, err := to.wrap(b.ctx, key, header.Binding)
	if err != nil {
		return dst, err
	}
	_, again, err := to.unwrap(b.ctx, moved)
	if err != nil {
		return dst, err
	}
	defer again.Wipe()
	if !again.Equal(key) {
		return dst, fault.New(fault.ChipFault, "the chip does not give back the key it wrapped; replace or repair it")
	}
	return append(dst, moved...), nil
}

// cipher returns a cipher for a message key, one that the call has built already
// where there is one.
func (b *bench) cipher(s *session, wrapped hsm.WrappedKey, k *business, u use, suite alg.ID, salt [envelope.SaltSize]byte) (alg.Cipher, error) {
	id := k.derived(u, suite, salt)
	for i := len(b.ciphers) - 1; i >= 0; i-- {
		if b.ciphers[i].id == id {
			return b.ciphers[i].cipher, nil
		}
	}
	if len(b.ciphers) == maxReady {
		b.clear()
	}
	c, err := b.build(s, wrapped, k, u, suite, salt)
	if err == nil {
		b.ciphers = append(b.ciphers, ready{id, c})
	}
	return c, err
}

// build makes a cipher from its page. A key can be evicted from its cache, and
// wiped, at any moment before it is used; then it is fetched again.
func (b *bench) build(s *session, wrapped hsm.WrappedKey, k *business, u use, suite alg.ID, salt [envelope.SaltSize]byte) (c alg.Cipher, err error) {
	for range 8 {
		var key *secret.Bytes
		if key, err = s.message(k, u, suite, salt); err == nil {
			err = key.Use(func(raw []byte) (err error) { c, err = alg.NewCipher(suite, raw); return err })
		}
		if !errors.Is(err, secret.ErrWiped) {
			return c, err
		}
		if k, err = s.business(b.ctx, wrapped); err != nil {
			return c, err
		}
	}
	return c, errCacheTooSmall
}

// recordCipher returns the cipher of the record key, built once for the call.
func (b *bench) recordCipher(s *session) (c alg.Cipher, err error) {
	id := messageID{serial: uint64(s.root.Generation)} // no message key has the suite 0
	for _, r := range b.ciphers {
		if r.id == id {
			return r.cipher, nil
		}
	}
	err = s.record.Use(func(key []byte) error {
		return secret.Scrub(func() (err error) { c, err = alg.NewCipher(alg.AES256GCM, key); return err })
	})
	if err == nil {
		b.ciphers = append(b.ciphers, ready{id, c})
	}
	return c, err
}

func (b *bench) sealRecord(dst []byte, generation uint32, id hsm.RecordID, plaintext []byte) ([]byte, error) {
	s, err := b.engine.At(generation)
	if err != nil {
		return dst, err
	}
	c, err := b.recordCipher(s)
	if err != nil {
		return dst, err
	}
	return engine.SealRecord(dst, c, s.root.Generation, id, plaintext), nil
}

func (b *bench) openRecord(dst []byte, id hsm.RecordID, sealed []byte) ([]byte, error) {
	generation, err := engine.RecordGeneration(id, sealed)
	if err != nil {
		return dst, err
	}
	s, err := b.engine.At(generation)
	if err != nil {
		return dst, engine.RecordAltered(id)
	}
	c, err := b.recordCipher(s)
	if err != nil {
		return dst, err
	}
	return engine.OpenRecord(dst, c, id, sealed)
}

var errCacheTooSmall = fault.New(fault.Unavailable, "the machine's key cache is too small for its load; raise machine.keys")
