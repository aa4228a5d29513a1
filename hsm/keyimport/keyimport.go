// Package keyimport is how a machine takes in a business key that was made elsewhere:
// PKCS#11's CKM_RSA_AES_KEY_WRAP (version 3.0 section 2.1.21) to a key of one use.
//
// The machine makes an RSA pair (Desk.Begin). Whoever has the business key draws an
// AES-256 key, wraps it to the public key with RSA-OAEP (RFC 8017 section 7.1, SHA-256
// for the hash and MGF1, no label), wraps the business key under it with AES-KWP (RFC
// 5649), and sends both, one after the other, as one blob (Desk.Finish).
//
// The private key is kept in protected memory, for Life at most, and for one try: a blob
// that does not open spends it too, so that nobody can ask it twice.
package keyimport

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"math/big"
	"sync"
	"time"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// Limits of imports.
const (
	Life    = 15 * time.Minute // of an import key
	Pending = 4                // import keys at a time
)

// Sizes of a blob, in bytes.
const (
	modulusBits = 3072
	kekSize     = 32
	oaepSize    = modulusBits / 8
	kwpSize     = hsm.BusinessKeySize + 8
	BlobSize    = oaepSize + kwpSize
)

// Desk keeps the import keys of a machine.
type Desk struct {
	now func() time.Time

	mu      sync.Mutex // guards pending
	pending map[hsm.ID]pending
}

type pending struct {
	private *secret.Bytes // DER of an RSAPrivateKey (RFC 8017 appendix A.1.2)
	expires time.Time
}

// New returns a desk without keys.
func New(now func() time.Time) *Desk { return &Desk{now: now, pending: map[hsm.ID]pending{}} }

// Begin makes an import key.
func (d *Desk) Begin() (hsm.ImportKey, error) {
	if d.sweep() >= Pending {
		return hsm.ImportKey{}, full()
	}
	made := hsm.ImportKey{ID: hsm.NewID(), Expires: d.now().Add(Life)}
	var private *secret.Bytes
	err := secret.Scrub(func() error {
		key, err := rsa.GenerateKey(rand.Reader, modulusBits)
		if err != nil {
			return err
		}
		defer erase(key)
		if made.Public, err = x509.MarshalPKIXPublicKey(&key.PublicKey); err != nil {
			return err
		}
		private, err = secret.Move(x509.MarshalPKCS1PrivateKey(key))
		return err
	})
	if err != nil {
		return hsm.ImportKey{}, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.pending) >= Pending { // others were faster
		private.Wipe()
		return hsm.ImportKey{}, full()
	}
	d.pending[made.ID] = pending{private, made.Expires}
	return made, nil
}

func full() error {
	return fault.New(fault.Conflict, "import: %d imports are under way, which is as many as there may be; finish one, or wait %s", Pending, Life)
}

// Finish opens a blob with the import key of that id, which is gone then. The caller
// wipes the business key.
func (d *Desk) Finish(id hsm.ID, blob []byte) (*secret.Bytes, error) {
	d.sweep()
	d.mu.Lock()
	p, ok := d.pending[id]
	delete(d.pending, id)
	d.mu.Unlock()
	if !ok {
		return nil, fault.New(fault.NotFound, "import: there is no import %s: it is finished, expired (after %s) or of another machine; begin anew", id, Life)
	}
	defer p.private.Wipe()
	key, err := secret.New(hsm.BusinessKeySize)
	if err != nil {
		return nil, err
	}
	err = key.Use(func(dst []byte) error {
		return p.private.Use(func(der []byte) error {
			return secret.Scrub(func() error { return open(dst, der, blob) })
		})
	})
	if err != nil {
		key.Wipe()
		return nil, err
	}
	return key, nil
}

// open fills dst with the key in the blob. It does not tell what is wrong with one.
func open(dst, der, blob []byte) error {
	bad := fault.New(fault.BadRequest, "import: the blob does not open: it must be RSA-OAEP (SHA-256) of an AES-256 key to this import's public key, "+
		"followed by AES-KWP of %d key bytes, %d bytes in all; the import key is spent, begin anew", hsm.BusinessKeySize, BlobSize)
	if len(blob) != BlobSize {
		return bad
	}
	private, err := x509.ParsePKCS1PrivateKey(der)
	if err != nil {
		return err
	}
	defer erase(private)
	kek, err := rsa.DecryptOAEP(sha256.New(), nil, private, blob[:oaepSize], nil)
	if err != nil {
		return bad
	}
	defer clear(kek)
	if len(kek) != kekSize || alg.UnwrapKWP(dst, kek, blob[oaepSize:]) != nil {
		return bad
	}
	return nil
}

// Clear forgets every import key.
func (d *Desk) Clear() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range d.pending {
		p.private.Wipe()
	}
	clear(d.pending)
}

// sweep forgets what has expired, and returns how many are left.
func (d *Desk) sweep() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	for id, p := range d.pending {
		if !d.now().Before(p.expires) {
			p.private.Wipe()
			delete(d.pending, id)
		}
	}
	return len(d.pending)
}

// erase zeroes what of an RSA key can be reached; the library keeps a copy that only
// the garbage collector does.
func erase(key *rsa.PrivateKey) {
	numbers := append([]*big.Int{key.D, key.Precomputed.Dp, key.Precomputed.Dq, key.Precomputed.Qinv}, key.Primes...)
	for _, n := range numbers {
		if n != nil {
			clear(n.Bits())
		}
	}
}
