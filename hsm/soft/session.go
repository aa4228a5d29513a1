package soft

import (
	"context"
	"crypto/rand"
	"errors"
	"sync/atomic"
	"time"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/hsm/engine"
	"github.com/trikey/trikey/internal/envelope"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// session is all that exists only while the machine is open.
type session struct {
	root       hsm.Manifest
	sealedRoot []byte        // the root key, as the chip encrypts it
	wrapping   hsm.ChipKey   // wraps business keys; never leaves the chip
	record     *secret.Bytes // seals records of the key store
	now        func() time.Time

	businesses *engine.Cache[hsm.WrappedKey, *business]
	messages   *engine.Cache[messageID, *secret.Bytes]

	epoch atomic.Pointer[epoch]
}

// business is an unwrapped business key.
type business struct {
	serial uint64 // tells it from every other unwrapped in this process
	header hsm.WrapHeader
	key    *secret.Bytes
}

// serial numbers business keys as they are unwrapped.
var serial atomic.Uint64

// messageID names a message key: what it is derived from.
type messageID struct {
	serial uint64
	key    keyVersion
	use    use
	suite  alg.ID
	salt   [envelope.SaltSize]byte
}

type keyVersion struct{ index, version uint32 }

// derived names a message key of a business key.
func (b *business) derived(u use, suite alg.ID, salt [envelope.SaltSize]byte) messageID {
	return messageID{b.serial, keyVersion{b.header.Index, b.header.Version}, u, suite, salt}
}

// use is what a derived key seals. A stream's header may name the salt of a message,
// or the reverse; their keys are different ones all the same.
type use uint8

const (
	messages use = iota
	streams
)

// newSession hands the root to the chip and derives what the session needs.
func newSession(ctx context.Context, cfg Config, root hsm.Root) (*session, error) {
	s := &session{root: root.Manifest, now: cfg.Now}
	var err error
	if s.sealedRoot, err = engine.SealRoot(ctx, cfg.Chip, root); err != nil {
		return nil, err
	}
	wrap, err := root.WrapKey()
	if err != nil {
		return nil, err
	}
	defer wrap.Wipe()
	if s.wrapping, err = cfg.Chip.Load(ctx, wrap); err != nil {
		return nil, err
	}
	if s.record, err = root.RecordKey(); err != nil {
		return nil, errors.Join(err, s.wrapping.Close())
	}
	s.businesses = engine.NewCache[hsm.WrappedKey](cfg.Keys, func(b *business) { b.key.Wipe() })
	s.messages = engine.NewCache[messageID](cfg.MessageKeys, func(k *secret.Bytes) { k.Wipe() })
	return s, nil
}

// Manifest is that of the root.
func (s *session) Manifest() *hsm.Manifest { return &s.root }

// SealedRoot is the root key, as the chip encrypts it.
func (s *session) SealedRoot() []byte { return s.sealedRoot }

// Close wipes everything. No call is under way: the engine's lock is held.
func (s *session) Close() error {
	s.businesses.Purge()
	s.messages.Purge()
	s.record.Wipe()
	return s.wrapping.Close()
}

// wrap seals a business key under the root, bound to b.
func (s *session) wrap(ctx context.Context, key *secret.Bytes, b hsm.Binding) (hsm.WrappedKey, error) {
	header := hsm.WrapHeader{Suite: hsm.WrapGCM, Generation: s.root.Generation, Binding: b}
	aad, err := header.Append(nil)
	if err != nil {
		return "", err
	}
	nonce := make([]byte, envelope.NonceSize)
	_, _ = rand.Read(nonce) // never fails
	sealed, err := s.wrapping.Seal(ctx, nonce, key, aad)
	if err != nil {
		return "", err
	}
	return hsm.WrappedKey(string(aad) + string(nonce) + string(sealed)), nil
}

// business returns the unwrapped key, from the cache or out of the chip.
func (s *session) business(ctx context.Context, w hsm.WrappedKey) (*business, error) {
	if b, ok := s.businesses.Get(w); ok {
		return b, nil
	}
	header, key, err := s.unwrap(ctx, w)
	if err != nil {
		return nil, err
	}
	b := &business{serial: serial.Add(1), header: header, key: key}
	s.businesses.Put(w, b)
	return b, nil
}

// forget drops a business key and its message keys: also those of an earlier unwrapping,
// which may have left the cache before them.
func (s *session) forget(w hsm.WrappedKey) {
	s.businesses.Remove(w)
	if h, err := w.Header(); err == nil {
		s.messages.RemoveIf(func(id messageID) bool { return id.key == keyVersion{h.Index, h.Version} })
	}
}

var errInToken = fault.New(fault.AlgorithmNotAllowed, "the key was made by a token engine and can be unwrapped inside a token only: "+
	"set machine.engine: token; to move its data here, decrypt on a machine with that engine and encrypt on this one")

// unwrap has the chip open a wrapped key.
func (s *session) unwrap(ctx context.Context, w hsm.WrappedKey) (hsm.WrapHeader, *secret.Bytes, error) {
	header, aad, nonce, sealed, err := w.Split()
	if err != nil {
		return header, nil, err
	}
	switch {
	case header.Region != s.root.Region:
		return header, nil, fault.New(fault.WrongRegion, "the key is of region %q, the machine of %q", header.Region, s.root.Region)
	case header.Suite == hsm.WrapKW:
		return header, nil, errInToken
	case header.Suite != hsm.WrapGCM:
		return header, nil, fault.New(fault.RecordDamaged, "wrapped key: wrap suite %d is not one that this engine opens", header.Suite)
	}
	key, err := s.wrapping.Open(ctx, []byte(nonce), []byte(sealed), []byte(aad))
	if errors.Is(err, fault.DecryptFailed) {
		err = fault.New(fault.RecordDamaged, "wrapped key of index %d version %d: altered, or wrapped by another root", header.Index, header.Version)
	}
	return header, key, err
}

// message returns the key derived from b for a use, suite and salt.
func (s *session) message(b *business, u use, suite alg.ID, salt [envelope.SaltSize]byte) (*secret.Bytes, error) {
	id := b.derived(u, suite, salt)
	if k, ok := s.messages.Get(id); ok {
		return k, nil
	}
	a, err := alg.Suite(suite)
	if err != nil {
		return nil, err
	}
	key, err := secret.Fill(a.KeySize, func(dst []byte) error {
		return b.key.Use(func(k []byte) error {
			// A business key outlives its cache in what a derivation leaves behind.
			derive := suite.MessageKey
			if u == streams {
				derive = suite.StreamKey
			}
			return secret.Derive(func() error { return derive(dst, k, salt[:], b.header.Index, b.header.Version) })
		})
	})
	if err != nil {
		return nil, err
	}
	s.messages.Put(id, key)
	return key, nil
}

// The life of a salt: message keys are renewed long before random nonces under
// one key could repeat (NIST SP 800-38D allows 2^32 per key).
const (
	epochLife     = time.Hour
	epochMessages = 1 << 30
)

// epoch is a salt that this machine encrypts under for a while.
type epoch struct {
	salt     [envelope.SaltSize]byte
	until    time.Time
	messages atomic.Int64
}

// salt returns the salt of the current epoch, counting one message.
func (s *session) salt() [envelope.SaltSize]byte {
	for {
		e := s.epoch.Load()
		if e != nil && e.messages.Add(1) <= epochMessages && s.now().Before(e.until) {
			return e.salt
		}
		next := &epoch{until: s.now().Add(epochLife)}
		_, _ = rand.Read(next.salt[:]) // never fails
		s.epoch.CompareAndSwap(e, next)
	}
}
