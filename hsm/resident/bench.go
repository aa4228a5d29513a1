package resident

import (
	"context"
	"errors"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/hsm/engine"
	"github.com/trikey/trikey/internal/envelope"
	"github.com/trikey/trikey/internal/fault"
)

// bench is where one call works.
type bench struct {
	engine  *Engine
	ctx     context.Context
	scratch []byte // additional data of one operation
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
		return b.sealRecord(op)
	case hsm.OpenRecord:
		return b.openRecord(op)
	case hsm.Rewrap:
		return b.rewrap(op.Output, op.Key, op.Generation)
	case hsm.DataKey:
		return engine.DataKey(op, func(raw []byte) ([]byte, error) { return b.encrypt(op.Output, op.Key, op.Algorithm, op.Context, raw) })
	case hsm.Random:
		return engine.Random(op.Output, op.Size)
	case hsm.Mac, hsm.VerifyMac, hsm.Sign, hsm.Verify, hsm.PublicKey:
		return op.Output, errSealsOnly
	case hsm.Export:
		return op.Output, errStays
	case hsm.Forget:
		if s, err := b.engine.At(op.Key.Generation()); err == nil { // a root that is not open has none
			s.businesses.Remove(op.Key)
		}
		return op.Output, nil
	case hsm.SealSegment, hsm.OpenSegment:
		return op.Output, errStream
	}
	return op.Output, fault.New(fault.BadRequest, "operation: unknown kind %d", op.Kind)
}

// errStays: AES key wrap to an RSA key in one step (CKM_RSA_AES_KEY_WRAP) is not what tokens
// of this engine have to do, and in two steps the host would have the key between them.
var errStays = fault.New(fault.AlgorithmNotAllowed, "this machine's engine (machine.engine: token) gives no key out: its keys cannot leave the token; "+
	"keys to be exported are made on a machine with machine.engine: host")

// errStream: a stream has a key of its own, derived for it, and this engine's token
// derives none. Under the business key itself the nonce prefixes of streams would repeat
// long before the random nonces of messages do.
var errStream = fault.New(fault.AlgorithmNotAllowed, "this machine's engine (machine.engine: token) does not seal or open streams: "+
	"cut the data into messages, or use a machine with machine.engine: host")

func (b *bench) encrypt(dst []byte, key hsm.WrappedKey, suite alg.ID, canonical, plaintext []byte) ([]byte, error) {
	out := dst
	err := b.with(key, func(k *business) error {
		if suite == 0 {
			suite = k.header.Algorithm
		}
		if err := served(suite); err != nil {
			return err
		}
		if err := b.engine.spent.take(k.header, b.engine.cfg.Messages); err != nil {
			return err
		}
		header := newHeader(k.header)
		b.scratch = header.AppendSaltedAAD(b.scratch[:0], canonical)
		sealed, err := k.key.Seal(b.ctx, header.Append(dst), header.Nonce[:], plaintext, b.scratch)
		if err == nil {
			out = sealed
		}
		return err
	})
	return out, err
}

// decrypt returns fault.DecryptFailed whatever the ciphertext's fault is, but for one of
// a suite that the host engine computes; other errors are the machine's own.
func (b *bench) decrypt(dst []byte, key hsm.WrappedKey, canonical, ciphertext []byte) ([]byte, error) {
	header, sealed, err := envelope.Parse(ciphertext)
	if err != nil {
		return dst, err
	}
	if id := alg.ID(header.Suite); id != alg.AES256GCMResident {
		if _, err := alg.Lookup(id); err != nil {
			return dst, fault.DecryptFailed
		}
		return dst, fault.New(fault.AlgorithmNotAllowed, "%s of a host engine: this machine's engine (machine.engine: token) cannot "+
			"compute its message key; use a machine with machine.engine: host", id)
	}
	out := dst
	err = b.with(key, func(k *business) (err error) {
		if header.Index != k.header.Index || header.Version != k.header.Version {
			return fault.DecryptFailed
		}
		b.scratch = header.AppendSaltedAAD(b.scratch[:0], canonical)
		out, err = k.key.Open(b.ctx, dst, header.Nonce[:], sealed, b.scratch)
		return err
	})
	return out, err
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

// with runs f with a key that stays in the token until f returns. A key can be evicted
// from its cache at any moment before that; then it is fetched again.
func (b *bench) with(w hsm.WrappedKey, f func(k *business) error) error {
	s, err := b.engine.At(w.Generation())
	if err != nil {
		return err
	}
	for range 8 {
		k, err := s.business(b.ctx, w)
		if err != nil {
			return err
		}
		if err = k.use(f); !errors.Is(err, errEvicted) {
			return err
		}
	}
	return fault.New(fault.Unavailable, "the machine's key cache is too small for its load; raise machine.keys")
}

// rewrap wraps a business key under the root of another generation.
func (b *bench) rewrap(dst []byte, w hsm.WrappedKey, generation uint32) ([]byte, error) {
	from, err := b.engine.At(w.Generation())
	if err != nil {
		return dst, err
	}
	to, err := b.engine.At(generation)
	if err != nil {
		return dst, err
	}
	header, wrapped, err := from.verify(w)
	if err != nil {
		return dst, err
	}
	moved, err := from.wrapping.Rewrap(b.ctx, wrapped, to.wrapping)
	if err != nil {
		return dst, err
	}
	again, err := to.bound(moved, header.Binding)
	return append(dst, again...), err
}

func (b *bench) sealRecord(op *hsm.Op) ([]byte, error) {
	s, err := b.engine.At(op.Generation)
	if err != nil {
		return op.Output, err
	}
	out := op.Output
	err = s.withRecordKey(func(c alg.Cipher) error {
		out = engine.SealRecord(op.Output, c, s.root.Generation, op.Record, op.Input)
		return nil
	})
	return out, err
}

func (b *bench) openRecord(op *hsm.Op) ([]byte, error) {
	generation, err := engine.RecordGeneration(op.Record, op.Input)
	if err != nil {
		return op.Output, err
	}
	s, err := b.engine.At(generation)
	if err != nil {
		return op.Output, engine.RecordAltered(op.Record)
	}
	out := op.Output
	err = s.withRecordKey(func(c alg.Cipher) (err error) {
		out, err = engine.OpenRecord(op.Output, c, op.Record, op.Input)
		return err
	})
	return out, err
}
