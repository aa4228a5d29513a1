package hsm

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"github.com/go-json-experiment/json"

	"github.com/trikey/trikey/internal/fault"
)

// ReportDir is where reports of ceremonies are, in the data directory.
const ReportDir = "ceremonies"

// Name is the name of a report's files, without their ending.
func (r Report) Name() string {
	return fmt.Sprintf("%s-%s-%.8s", r.Ended.Format("20060102T150405Z"), r.Kind, r.Ceremony)
}

// Message is what a report's signature (Ed25519, RFC 8032) is over: a line
// "trikey/v1/report", then the report as JSON without its signature.
func (r Report) Message() ([]byte, error) {
	r.Signature = nil
	body, err := json.Marshal(r, json.Deterministic(true))
	return append([]byte("trikey/v1/report\n"), body...), err
}

// Check checks the report's signature, and that it is by the machine of that
// fingerprint, if one is given.
func (r Report) Check(fingerprint string) error {
	message, err := r.Message()
	if err != nil {
		return err
	}
	actual := Fingerprint(r.PublicKey)
	switch {
	case len(r.PublicKey) != ed25519.PublicKeySize || !ed25519.Verify(r.PublicKey, message, r.Signature):
		return fault.New(fault.RecordDamaged, "the signature does not match: the report was altered")
	case actual != r.Fingerprint || fingerprint != "" && fingerprint != actual:
		return fault.New(fault.RecordDamaged, "the report is signed by the machine with fingerprint %s, not %s", actual, fingerprint)
	}
	return nil
}

// Fingerprint is that of a public key: SHA-256, in hex.
func Fingerprint(public []byte) string {
	sum := sha256.Sum256(public)
	return hex.EncodeToString(sum[:])
}
