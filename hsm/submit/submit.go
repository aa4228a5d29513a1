// Package submit carries the share of a custodian who is elsewhere to the machine.
//
// The custodian's own computer reads the card, and encrypts the share by HPKE (RFC
// 9180; DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM, mode base) to a key that
// the machine made for this one unsealing. TLS tells the custodian which host answers;
// the fingerprint of the key, which both people see and compare over a line that the
// network does not carry, tells that no other machine made it.
//
// HPKE's info is
//
//	"trikey/v1/submit" | machine id 16 | split id 16 | window id 16
//
// and its AAD is empty, so that a submission opens in the window that it was made for
// and in no other. Nothing authenticates the sender but the share itself, which the
// machine compares with the commitment in its record.
package submit

import (
	"crypto/ecdh"
	"crypto/hpke"
	"crypto/sha256"
	"encoding/base32"
	"slices"
	"strings"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

const infoPrefix = "trikey/v1/submit"

func info(w hsm.Window) []byte {
	return slices.Concat([]byte(infoPrefix), w.MachineID[:], w.SplitID[:], w.ID[:])
}

const (
	fingerprintSize = 10 // bytes of the hash: 80 bits
	groupSize       = 4
)

// Fingerprint names a window's key for people: the first 80 bits of
// SHA-256(machine id | split id | window id | public key) in base32 (RFC 4648), in
// groups of four.
func Fingerprint(w hsm.Window) string {
	sum := sha256.Sum256(slices.Concat(w.MachineID[:], w.SplitID[:], w.ID[:], w.PublicKey))
	text := base32.StdEncoding.EncodeToString(sum[:fingerprintSize])
	var groups []string
	for group := range slices.Chunk([]byte(text), groupSize) {
		groups = append(groups, string(group))
	}
	return strings.Join(groups, "-")
}

// SameFingerprint compares what a person has typed, in any case and with any dashes and
// blanks, with a fingerprint or a part of it.
func SameFingerprint(typed, fingerprint string) bool {
	plain := strings.NewReplacer("-", "", " ", "")
	return strings.EqualFold(plain.Replace(strings.TrimSpace(typed)), plain.Replace(fingerprint))
}

// Key is the key pair of a window.
type Key struct {
	private *secret.Bytes
	public  *ecdh.PublicKey
}

// NewKey draws a key pair.
func NewKey() (*Key, error) {
	// Any 32 bytes are a private key (RFC 7748, section 5; RFC 9180, section 7.1.2).
	private, err := secret.Random(32)
	if err != nil {
		return nil, err
	}
	k := &Key{private: private}
	err = k.use(func(p *ecdh.PrivateKey) error {
		k.public = p.PublicKey()
		return nil
	})
	if err != nil {
		k.Wipe()
		return nil, err
	}
	return k, nil
}

// use makes the private key of its bytes for as long as f runs.
func (k *Key) use(f func(*ecdh.PrivateKey) error) error {
	return k.private.Use(func(b []byte) error {
		return secret.Scrub(func() error {
			p, err := ecdh.X25519().NewPrivateKey(b)
			if err != nil {
				return err
			}
			defer secret.Erase(p)
			return f(p)
		})
	})
}

// Public returns the public key as it crosses the wire.
func (k *Key) Public() []byte { return k.public.Bytes() }

// Wipe forgets the private key.
func (k *Key) Wipe() { k.private.Wipe() }

// exchanger is a Key for the length of one decryption. HPKE asks it for the shared
// X25519 value, which would else stay on the heap.
type exchanger struct {
	*Key
	shared []byte
}

func (e *exchanger) PublicKey() *ecdh.PublicKey { return e.public }

func (e *exchanger) Curve() ecdh.Curve { return ecdh.X25519() }

func (e *exchanger) ECDH(peer *ecdh.PublicKey) ([]byte, error) {
	err := e.use(func(p *ecdh.PrivateKey) (err error) {
		e.shared, err = p.ECDH(peer)
		return err
	})
	return e.shared, err
}

// Open decrypts what was sealed to a window with this key, into protected memory.
func (k *Key) Open(w hsm.Window, sealed []byte) (*secret.Bytes, error) {
	e := &exchanger{Key: k}
	defer func() { clear(e.shared) }()
	private, err := hpke.NewDHKEMPrivateKey(e)
	if err != nil {
		return nil, err
	}
	var plain []byte
	err = secret.Scrub(func() (err error) {
		plain, err = hpke.Open(private, hpke.HKDFSHA256(), hpke.AES256GCM(), info(w), sealed)
		return err
	})
	if err != nil {
		return nil, fault.New(fault.DecryptFailed, "the submission does not open: it was sealed to the key of another window, or was changed "+
			"on its way; submit the card again")
	}
	return secret.Move(plain)
}

// Seal encrypts a share's envelope to a window.
func Seal(w hsm.Window, envelope *secret.Bytes) (sealed []byte, err error) {
	public, err := hpke.DHKEM(ecdh.X25519()).NewPublicKey(w.PublicKey)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "the machine's key for submissions cannot be used; nothing was sent")
	}
	err = envelope.Use(func(b []byte) error {
		return secret.Scrub(func() (err error) {
			sealed, err = hpke.Seal(public, hpke.HKDFSHA256(), hpke.AES256GCM(), info(w), b)
			return err
		})
	})
	return sealed, err
}
