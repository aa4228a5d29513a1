package auth

import (
	"crypto/sha256"
	"crypto/subtle"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
	"github.com/trikey/trikey/kms/life"
	"github.com/trikey/trikey/kms/record"
)

type digest = [sha256.Size]byte

// storedSecret is a secret as it is verified with.
type storedSecret struct {
	digest   digest
	key      *secret.Bytes // the secret as it was printed
	revision int64
	used     atomic.Int64 // Unix time of the last use on this node; 0: none since it started
}

func secretEntry(appKey string, number uint32) string {
	return secretPrefix + appKey + "/" + strconv.FormatUint(uint64(number), 10)
}

func (a *Apps) takeSecret(r record.Record) error {
	taken := &storedSecret{digest: sha256.Sum256(r.Content), revision: r.Entry}
	var err error
	if taken.key, err = secret.Move(r.Content); err != nil {
		return fault.Wrap(fault.Unavailable, err, "record %s", r.Name)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	old := a.secrets[r.Name]
	if old != nil && old.revision >= taken.revision {
		taken.key.Wipe()
		return nil
	}
	if old != nil {
		old.key.Wipe()
	}
	a.secrets[r.Name] = taken
	return nil
}

// candidates are the secrets that a caller may have. There are always MaxSecrets, so that
// an AppKey that is not known costs what a known one does: decoys where there is none.
type candidates struct {
	app     *App
	secrets [MaxSecrets]*storedSecret
	expires [MaxSecrets]time.Time
	numbers [MaxSecrets]uint32
	real    int
}

// newDecoy is what is compared with where there is no secret: one that nobody has.
func newDecoy() *storedSecret {
	raw := newSecret()
	d := &storedSecret{digest: sha256.Sum256(raw)}
	// Without it, which takes that there is no memory for secrets at all, what is not known
	// costs less, and matches nothing all the same.
	d.key, _ = secret.Move(raw)
	return d
}

func (a *Apps) candidates(appKey string) (c candidates) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	listed := nobodys
	if c.app = a.byKey[appKey]; c.app != nil {
		listed = c.app.Secrets
	}
	for i := range c.secrets {
		c.secrets[i] = a.decoy
		of := &listed[min(i, len(listed)-1)]
		// Looked up where there is none too. Of an app with one secret it is found twice.
		if stored := a.secrets[secretEntry(appKey, of.Number)]; stored != nil && i < len(listed) {
			c.secrets[c.real], c.expires[c.real], c.numbers[c.real] = stored, of.Expires, of.Number
			c.real++
		}
	}
	return c
}

// nobodys are looked up for an AppKey that is not known.
var nobodys = make([]Secret, MaxSecrets)

// match compares every candidate by equal, which answers 1 or 0, and returns which of the
// real ones it is, or -1.
func (c *candidates) match(equal func(*storedSecret) int) int {
	found := -1
	for i, s := range c.secrets {
		hit := equal(s)
		if i >= c.real {
			hit = 0
		}
		found = subtle.ConstantTimeSelect(hit, i, found)
	}
	return found
}

// bySecret finds which secret was presented.
func (c *candidates) bySecret(presented string) int {
	sum := sha256.Sum256([]byte(presented))
	return c.match(func(s *storedSecret) int { return subtle.ConstantTimeCompare(sum[:], s.digest[:]) })
}

// byMAC finds which secret a message was authenticated with, by HMAC using SHA-256.
func (c *candidates) byMAC(message, mac []byte) int {
	return c.match(func(s *storedSecret) (hit int) {
		err := s.key.Use(func(key []byte) error {
			sum, err := alg.Authenticate(alg.HMACSHA256, key, message)
			hit = subtle.ConstantTimeCompare(sum, mac)
			return err
		})
		if err != nil { // wiped: it was deleted just now
			return 0
		}
		return hit
	})
}

// SecretUse is a secret and its use.
type SecretUse struct {
	Secret
	Used time.Time // last, on this node; zero: not since it started
}

// Secrets returns the valid secrets of an app, newest last, and their use.
func (a *Apps) Secrets(app *App) (uses []SecretUse) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	for _, s := range app.Secrets {
		use := SecretUse{Secret: s}
		if stored := a.secrets[secretEntry(app.AppKey, s.Number)]; stored != nil && stored.used.Load() != 0 {
			use.Used = time.Unix(stored.used.Load(), 0).UTC()
		}
		uses = append(uses, use)
	}
	return uses
}

func newSecretOf(number uint32, now time.Time, valid life.Period) Secret {
	s := Secret{Number: number, Created: now}
	if valid != 0 {
		s.Expires = valid.After(now)
	}
	return s
}

// ExpiryWarning is how long before a secret expires it is warned of.
const ExpiryWarning = 14 * 24 * time.Hour

// Expiring reports whether a secret expires soon, or has.
func (s *Secret) Expiring(now time.Time) bool {
	return !s.Expires.IsZero() && s.Expires.Sub(now) <= ExpiryWarning
}

// Expired reports whether a secret is not valid any more.
func (s *Secret) Expired(now time.Time) bool { return !s.Expires.IsZero() && !now.Before(s.Expires) }
