package alg

import (
	"crypto/sha256"

	"github.com/trikey/trikey/internal/fault"
)

// AES256GCMResident is AES-256-GCM under the business key itself, inside a token
// that the key does not leave (docs/format.md, docs/adr/0010). It is no suite of
// the table: nothing on the host can compute it, so that Lookup refuses it. Its number
// is more than one bit away from theirs: no single fault makes one kind of the other.
const AES256GCMResident ID = 0x61

const residentName = "aes-256-gcm-resident"

// ErrResident is what a machine says that is asked for the suite of another kind of
// engine.
var ErrResident = fault.New(fault.AlgorithmNotAllowed, "suite %d, %s, is computed inside a token only: use a machine with "+
	"machine.engine: token, whose keys it is under", byte(AES256GCMResident), residentName)

// MAC returns the HMAC-SHA-256 (RFC 2104) of the parts, one after the other, and
// erases what it was computed with.
func MAC(key []byte, parts ...[]byte) []byte { return mac(sha256.New, key, parts...) }
