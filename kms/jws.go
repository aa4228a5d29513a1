package kms

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"strings"

	"github.com/go-json-experiment/json"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/internal/fault"
)

// JWS asks for a JSON Web Signature in compact serialisation (RFC 7515 section 7.1).
// Sign: the call's Input is the payload, its Output the JWS. Verify: Input is the JWS,
// Output the payload.
//
// A key has one algorithm (RFC 8725 section 3.1), and its versions have one key id each:
// a header that says anything else does not verify, nor does one with a parameter that is
// not alg, kid or typ.
type JWS struct {
	Type string // Sign: the typ parameter, as JWT; "" for none

	payload []byte
}

type jwsHeader struct {
	Algorithm string `json:"alg"`
	KeyID     string `json:"kid"`
	Type      string `json:"typ,omitempty"`
}

// JOSEAlgorithm returns the name that JWS (RFC 7518, RFC 8037) has for a signature
// algorithm, and whether it has one. SM2 is not registered there.
func JOSEAlgorithm(id alg.ID) (string, bool) {
	name, ok := map[alg.ID]string{alg.Ed25519: "EdDSA", alg.ECDSAP256: "ES256"}[id]
	return name, ok
}

// KeyID names a version of a key in JWS headers and the published key set.
func KeyID(index, version uint32) string { return fmt.Sprintf("%d.%d", index, version) }

var b64 = base64.RawURLEncoding.Strict()

// prepare makes what is signed the operation's input, and returns the key's version.
func (j *JWS) prepare(c *Call, k *Key, op *hsm.Op) (uint32, error) {
	name, ok := JOSEAlgorithm(k.Algorithm)
	switch {
	case k.Purpose() != hsm.PurposeSign:
		return 0, k.Purpose().Refusal(k.Index, "sign")
	case !ok:
		return 0, fault.New(fault.AlgorithmNotAllowed, `format: JWS has no algorithm for %s; use "raw" or "der"`, k.Algorithm)
	case c.Kind == hsm.Sign:
		version := k.Newest().Version
		header, err := json.Marshal(jwsHeader{name, KeyID(k.Index, version), j.Type})
		if err != nil {
			return 0, fault.New(fault.BadRequest, "type: not valid UTF-8")
		}
		op.Input = fmt.Appendf(nil, "%s.%s", b64.EncodeToString(header), b64.EncodeToString(c.Input))
		return version, nil
	}
	return j.parse(c.Input, k, name, op)
}

// parse takes a JWS apart. Whatever is wrong with it is fault.SignatureInvalid.
func (j *JWS) parse(jws []byte, k *Key, name string, op *hsm.Op) (uint32, error) {
	end := bytes.LastIndexByte(jws, '.')
	parts := strings.Split(string(jws), ".")
	if len(parts) != 3 || bytes.ContainsAny(jws, "\r\n") { // which the decoder would skip
		return 0, fault.SignatureInvalid
	}
	header, err := b64.DecodeString(parts[0])
	if err != nil {
		return 0, fault.SignatureInvalid
	}
	var h jwsHeader
	if json.Unmarshal(header, &h, json.RejectUnknownMembers(true)) != nil || h.Algorithm != name {
		return 0, fault.SignatureInvalid
	}
	var version uint32
	for _, v := range k.Versions {
		if KeyID(k.Index, v.Version) == h.KeyID {
			version = v.Version
		}
	}
	payload, badPayload := b64.DecodeString(parts[1])
	signature, badSignature := b64.DecodeString(parts[2])
	if version == 0 || badPayload != nil || badSignature != nil {
		return 0, fault.SignatureInvalid
	}
	j.payload, op.Input, op.Signature = payload, jws[:end], signature
	return version, nil
}

// finish returns the result of an operation that succeeded.
func (j *JWS) finish(kind hsm.Kind, op *hsm.Op) []byte {
	if kind == hsm.Verify {
		return j.payload
	}
	return b64.AppendEncode(append(bytes.Clone(op.Input), '.'), op.Output)
}
