package people

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"strings"
	"unicode/utf8"

	"golang.org/x/crypto/argon2"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// Bounds of passwords: NIST SP 800-63B, section 5.1.1, asks for a length, and for no rules
// of composition.
const (
	minPassword = 12  // characters
	maxPassword = 256 // bytes
	minDistinct = 5   // different characters: not aaaa…, not 1212…
)

func checkPassword(name string, password *secret.Bytes) error {
	return password.Use(func(b []byte) error {
		seen := map[rune]bool{}
		for rest := b; len(rest) > 0; {
			r, n := utf8.DecodeRune(rest)
			seen[r], rest = true, rest[n:]
		}
		switch {
		case !utf8.Valid(b) || len(b) > maxPassword:
			return fault.New(fault.BadRequest, "password: is not text of at most %d bytes", maxPassword)
		case utf8.RuneCount(b) < minPassword:
			return fault.New(fault.BadRequest, "password: has fewer than %d characters; several words make a good one", minPassword)
		case len(seen) < minDistinct:
			return fault.New(fault.BadRequest, "password: repeats the same few characters")
		case bytes.Contains(bytes.ToLower(b), []byte(plainName(name))) && utf8.RuneCount(b)-len(name) < minPassword/2:
			return fault.New(fault.BadRequest, "password: is little more than the name")
		}
		return nil
	})
}

// The parameters of Argon2id: the second recommended option of RFC 9106, section 4.
const (
	argonTime    = 3
	argonMemory  = 64 << 10 // KiB
	argonThreads = 4
	argonSalt    = 16
	argonKey     = 32
)

// phc is how a hash is written (the PHC string format): parameters, salt, hash.
const phc = "$argon2id$v=%d$m=%d,t=%d,p=%d$%s"

// hash returns the hash of a new password.
func (g *Registry) hash(ctx context.Context, password *secret.Bytes) (string, error) {
	salt := make([]byte, argonSalt)
	_, _ = rand.Read(salt) // never fails
	sum, err := g.argon(ctx, password, salt, argonTime, argonMemory, argonThreads, argonKey)
	if err != nil {
		return "", err
	}
	b64 := base64.RawStdEncoding.EncodeToString
	return fmt.Sprintf(phc, argon2.Version, argonMemory, argonTime, argonThreads, b64(salt)+"$"+b64(sum)), nil
}

// matches reports whether a password is the one of a hash. For nobody's hash, "", it does
// the same work, and is not.
func (g *Registry) matches(ctx context.Context, hash string, password *secret.Bytes) (bool, error) {
	known := hash != ""
	if !known {
		hash = fmt.Sprintf(phc, argon2.Version, argonMemory, argonTime, argonThreads,
			strings.Repeat("A", base64.RawStdEncoding.EncodedLen(argonSalt))+"$"+strings.Repeat("A", base64.RawStdEncoding.EncodedLen(argonKey)))
	}
	var version int
	var memory, time uint32
	var threads uint8
	var rest string
	if n, err := fmt.Sscanf(hash, phc, &version, &memory, &time, &threads, &rest); err != nil || n != 5 || version != argon2.Version {
		return false, fault.New(fault.RecordDamaged, "the hash of a password is not what this release writes; was it written by a newer one?")
	}
	saltText, sumText, _ := strings.Cut(rest, "$")
	salt, err := base64.RawStdEncoding.DecodeString(saltText)
	sum, sumErr := base64.RawStdEncoding.DecodeString(sumText)
	if err != nil || sumErr != nil || len(sum) < argonKey {
		return false, fault.New(fault.RecordDamaged, "the hash of a password is not of the PHC form")
	}
	actual, err := g.argon(ctx, password, salt, time, memory, threads, uint32(len(sum)))
	if err != nil {
		return false, err
	}
	equal := subtle.ConstantTimeCompare(actual, sum) == 1
	return equal && known, nil
}

// argon computes Argon2id, some at a time: each takes 64 MiB, and logins of strangers must
// not take all there is.
func (g *Registry) argon(ctx context.Context, password *secret.Bytes, salt []byte, time, memory uint32, threads uint8, size uint32) (sum []byte, err error) {
	select {
	case g.waiting <- struct{}{}:
		defer func() { <-g.waiting }()
	default:
		return nil, fault.New(fault.Unavailable, "too many people log in at this moment; try again in some seconds")
	}
	select {
	case g.hashing <- struct{}{}:
		defer func() { <-g.hashing }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	err = password.Use(func(b []byte) error {
		sum = argon2.IDKey(b, salt, time, memory, threads, size)
		return nil
	})
	return sum, err
}
