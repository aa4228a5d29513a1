package v1

// The bodies of data keys, codes, signatures and random bytes.

// DataKeyRequest is the body of POST /v1/keys/{key}/datakey.
type DataKeyRequest struct {
	Context   Context `json:"context,omitempty"`
	Bytes     int     `json:"bytes,omitzero"`     // 16, 32 or 64; 32 when left out
	Plaintext bool    `json:"plaintext,omitzero"` // give it in the clear too
}

// DataKey is the answer of datakey. Wrapped is an ordinary ciphertext of the key, which
// decrypt opens.
type DataKey struct {
	Plaintext []byte `json:"plaintext,omitempty"`
	Wrapped   string `json:"wrapped"`
	Key       uint32 `json:"key"`
	Version   uint32 `json:"version"`
	Algorithm string `json:"algorithm"`
}

// Formats of signatures.
const (
	FormatRaw = "raw" // 64 bytes: RFC 8032, or r | s
	FormatDER = "der" // SEQUENCE of r and s; not for ed25519
	FormatJWS = "jws" // JSON Web Signature, compact (RFC 7515); not for sm2
)

// SignRequest is the body of POST /v1/keys/{key}/sign.
type SignRequest struct {
	Message []byte `json:"message"`          // required; of a JWS, the payload
	Format  string `json:"format,omitempty"` // raw when left out
	Type    string `json:"type,omitempty"`   // of a JWS: its typ, as JWT
}

// Signed is the answer of sign: Signature, or JWS where that was the format.
type Signed struct {
	Signature []byte `json:"signature,omitempty"`
	JWS       string `json:"jws,omitempty"`
	Key       uint32 `json:"key"`
	Version   uint32 `json:"version"`
	Algorithm string `json:"algorithm"`
}

// VerifyRequest is the body of POST /v1/keys/{key}/verify: JWS alone, or Message and
// Signature.
type VerifyRequest struct {
	Message   []byte `json:"message,omitzero"`
	Signature []byte `json:"signature,omitzero"`
	Format    string `json:"format,omitempty"` // of Signature: raw when left out, or der
	JWS       string `json:"jws,omitempty"`
	Version   uint32 `json:"version,omitzero"` // of the key; the newest when left out. A JWS names its own
}

// Verified is the answer of verify and mac/verify.
type Verified struct {
	Valid   bool   `json:"valid"`
	Payload []byte `json:"payload,omitempty"` // of a JWS that is valid
	Key     uint32 `json:"key,omitzero"`
	Version uint32 `json:"version,omitzero"`
}

// MacRequest is the body of POST /v1/keys/{key}/mac. With a context, even the empty one, the
// code is a blind index: of the canonical context and the message together.
type MacRequest struct {
	Message []byte   `json:"message"` // required; may be empty
	Context *Context `json:"context,omitzero"`
}

// Code is the answer of mac.
type Code struct {
	Mac       []byte `json:"mac"`
	Key       uint32 `json:"key"`
	Version   uint32 `json:"version"`
	Algorithm string `json:"algorithm"`
}

// VerifyMacRequest is the body of POST /v1/keys/{key}/mac/verify.
type VerifyMacRequest struct {
	Message []byte   `json:"message"`
	Mac     []byte   `json:"mac"`
	Context *Context `json:"context,omitzero"`
	Version uint32   `json:"version,omitzero"` // of the key; the newest when left out
}

// Random is the answer of GET /v1/random.
type Random struct {
	Random []byte `json:"random"`
}

// KeySet is the answer of GET /.well-known/jwks.json (RFC 7517 section 5).
type KeySet struct {
	Keys []JWK `json:"keys"`
}

// JWK is a public key (RFC 7517, RFC 7518 section 6.2, RFC 8037).
type JWK struct {
	Type      string `json:"kty"` // OKP or EC
	Curve     string `json:"crv"`
	X         string `json:"x"`
	Y         string `json:"y,omitempty"`
	KeyID     string `json:"kid"`
	Algorithm string `json:"alg"`
	Use       string `json:"use"`
}

// PublicKey is the public key of a version of a key that signs.
type PublicKey struct {
	Version uint32 `json:"version"`
	PEM     string `json:"pem"` // SubjectPublicKeyInfo
	KeyID   string `json:"kid"`
}
