package api

import (
	"encoding/base64"
	"errors"
	"net/http"
	"strconv"

	v1 "github.com/trikey/trikey/api/v1"
	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/internal/envelope"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/jsonhttp"
	"github.com/trikey/trikey/kms"
)

func (s *server) dataKey(r *request) error {
	in := v1.DataKeyRequest{Bytes: 32}
	if err := r.decode(&in); err != nil {
		return err
	}
	call, err := dataKeyCall(r.key(), in)
	if err != nil {
		return err
	}
	c, err := s.do(r, call)
	if err != nil {
		return err
	}
	defer clear(c.Plain)
	return r.answer(v1.DataKey{
		Plaintext: c.Plain, Wrapped: encodeText(c.Output), Key: c.KeyIndex, Version: c.KeyVersion, Algorithm: c.KeyAlgorithm.String(),
	})
}

func dataKeyCall(key string, in v1.DataKeyRequest) (kms.Call, error) {
	if in.Bytes != 16 && in.Bytes != 32 && in.Bytes != 64 {
		return kms.Call{}, fault.New(fault.BadRequest, "bytes: %d; a data key has 16, 32 or 64", in.Bytes)
	}
	return kms.Call{Kind: hsm.DataKey, Key: key, Context: envelope.Context(in.Context), Size: in.Bytes, Reveal: in.Plaintext}, nil
}

func (s *server) sign(r *request) error {
	var in v1.SignRequest
	if err := r.decode(&in); err != nil {
		return err
	}
	call, err := signCall(r.key(), in)
	if err != nil {
		return err
	}
	c, err := s.do(r, call)
	if err != nil {
		return err
	}
	out, err := signedBy(&c, in.Format)
	if err != nil {
		return err
	}
	return r.answer(out)
}

func signCall(key string, in v1.SignRequest) (kms.Call, error) {
	call := kms.Call{Kind: hsm.Sign, Key: key, Input: in.Message}
	if in.Message == nil {
		return call, required("message")
	}
	switch in.Format {
	case "", v1.FormatRaw, v1.FormatDER:
		if in.Type != "" {
			return call, fault.New(fault.BadRequest, `type: only for "format": "jws"`)
		}
	case v1.FormatJWS:
		call.JWS = &kms.JWS{Type: in.Type}
	default:
		return call, badFormat(in.Format)
	}
	return call, nil
}

// signedBy is the answer of a signature in the form that was asked for.
func signedBy(c *kms.Call, format string) (out v1.Signed, err error) {
	out = v1.Signed{Key: c.KeyIndex, Version: c.KeyVersion, Algorithm: c.KeyAlgorithm.String()}
	switch format {
	case v1.FormatJWS:
		out.JWS = string(c.Output)
	case v1.FormatDER:
		if c.KeyAlgorithm == alg.Ed25519 {
			return out, noDER()
		}
		out.Signature, err = alg.ToDER(c.Output)
	default:
		out.Signature = c.Output
	}
	return out, err
}

func badFormat(format string) error {
	return fault.New(fault.BadRequest, `format: %q; known: "raw", "der", "jws"`, format)
}

func noDER() error {
	return fault.New(fault.BadRequest, `format: signatures of ed25519 have no DER form; use "raw"`)
}

func (s *server) verify(r *request) error {
	var in v1.VerifyRequest
	if err := r.decode(&in); err != nil {
		return err
	}
	call, err := verifyCall(r.key(), in)
	if err != nil {
		return err
	}
	return s.answerVerified(r, call)
}

func verifyCall(key string, in v1.VerifyRequest) (kms.Call, error) {
	call := kms.Call{Kind: hsm.Verify, Key: key, Input: in.Message, Signature: in.Signature, Version: in.Version}
	switch {
	case in.JWS != "":
		if in.Message != nil || in.Signature != nil || in.Version != 0 || in.Format != "" && in.Format != v1.FormatJWS {
			return call, fault.New(fault.BadRequest, "jws: stands alone, without message, signature, version and other formats")
		}
		call.Input, call.JWS = []byte(in.JWS), &kms.JWS{}
	case in.Message == nil:
		return call, required("message")
	case in.Signature == nil:
		return call, required("signature")
	case in.Format == v1.FormatDER:
		raw, err := alg.FromDER(in.Signature)
		if err != nil {
			raw = []byte{} // not valid; what the caller has no grant for stays forbidden
		}
		call.Signature = raw
	case in.Format != "" && in.Format != v1.FormatRaw:
		return call, badFormat(in.Format)
	}
	return call, nil
}

// answerVerified carries a verification out.
func (s *server) answerVerified(r *request, call kms.Call) error {
	c, err := s.do(r, call)
	if c.Err = err; err != nil && !errors.Is(err, fault.SignatureInvalid) {
		return err
	}
	return r.answer(verifiedBy(&c))
}

// verifiedBy is the answer of a verification. That a signature or code is not valid is an
// answer, not an error.
func verifiedBy(c *kms.Call) v1.Verified {
	if c.Err != nil {
		return v1.Verified{Key: c.KeyIndex, Version: c.KeyVersion}
	}
	return v1.Verified{Valid: true, Payload: c.Output, Key: c.KeyIndex, Version: c.KeyVersion}
}

func (s *server) mac(r *request) error {
	var in v1.MacRequest
	if err := r.decode(&in); err != nil {
		return err
	}
	if in.Message == nil {
		return required("message")
	}
	c, err := s.do(r, macCall(r.key(), in))
	if err != nil {
		return err
	}
	return r.answer(v1.Code{Mac: c.Output, Key: c.KeyIndex, Version: c.KeyVersion, Algorithm: c.KeyAlgorithm.String()})
}

func macCall(key string, in v1.MacRequest) kms.Call {
	call := kms.Call{Kind: hsm.Mac, Key: key, Input: in.Message}
	call.Context, call.Index = indexContext(in.Context)
	return call
}

func (s *server) verifyMac(r *request) error {
	var in v1.VerifyMacRequest
	if err := r.decode(&in); err != nil {
		return err
	}
	switch {
	case in.Message == nil:
		return required("message")
	case in.Mac == nil:
		return required("mac")
	}
	return s.answerVerified(r, verifyMacCall(r.key(), in))
}

func verifyMacCall(key string, in v1.VerifyMacRequest) kms.Call {
	call := kms.Call{Kind: hsm.VerifyMac, Key: key, Input: in.Message, Signature: in.Mac, Version: in.Version}
	call.Context, call.Index = indexContext(in.Context)
	return call
}

func indexContext(c *v1.Context) (envelope.Context, bool) {
	if c == nil {
		return nil, false
	}
	return envelope.Context(*c), true
}

func (s *server) random(r *request) error {
	n := 32
	if text := r.URL.Query().Get("bytes"); text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil {
			return fault.New(fault.BadRequest, "bytes: %q is not a number from 1 to %d", text, hsm.MaxRandom)
		}
	}
	c, err := s.do(r, kms.Call{Kind: hsm.Random, Size: n})
	if err != nil {
		return err
	}
	return r.answer(v1.Random{Random: c.Output})
}

// keySet serves the public keys that were published. It asks nobody who they are.
func (s *server) keySet(w http.ResponseWriter, r *http.Request) {
	published, err := s.cfg.Service.Published()
	if err != nil {
		jsonhttp.Error(w, r, err)
		return
	}
	set := v1.KeySet{Keys: []v1.JWK{}}
	for _, k := range published {
		if jwk, ok := jwkOf(k); ok {
			set.Keys = append(set.Keys, jwk)
		}
	}
	jsonhttp.Write(w, http.StatusOK, set)
}

// jwkOf returns the JWK of a public key, and whether JOSE has one for its algorithm.
func jwkOf(k kms.PublicKey) (v1.JWK, bool) {
	name, ok := kms.JOSEAlgorithm(k.Algorithm)
	jwk := v1.JWK{KeyID: kms.KeyID(k.Index, k.Version), Algorithm: name, Use: "sig"}
	text := base64.RawURLEncoding.EncodeToString
	switch k.Algorithm {
	case alg.Ed25519:
		jwk.Type, jwk.Curve, jwk.X = "OKP", "Ed25519", text(k.Public)
	case alg.ECDSAP256: // 4 | x | y
		half := 1 + len(k.Public)/2
		jwk.Type, jwk.Curve, jwk.X, jwk.Y = "EC", "P-256", text(k.Public[1:half]), text(k.Public[half:])
	}
	return jwk, ok
}
