package sdk

import (
	"context"
	"net/http"
	"net/url"
	"strconv"

	v1 "github.com/trikey/trikey/api/v1"
)

// DataKey is a key drawn by the machine: wrapped, and in the clear where that was asked
// for. Decrypt opens Wrapped, with the same context.
type DataKey = v1.DataKey

// DataKeyRequest asks for a data key.
type DataKeyRequest struct {
	Key       Key
	Context   Context
	Bytes     int  // 16, 32 or 64; 32 when zero
	Plaintext bool // give it in the clear too
}

// DataKey has the machine draw a key for the caller's own encryption.
func (c *Client) DataKey(ctx context.Context, r DataKeyRequest) (DataKey, error) {
	if res, served, err := c.rpc.one(ctx, dataKeying(&r)); served {
		return dataKeyOf(res.GetDataKey()), err
	}
	var out DataKey
	err := c.call(ctx, http.MethodPost, keyPath(r.Key, "datakey"), v1.DataKeyRequest{Context: r.Context, Bytes: r.Bytes, Plaintext: r.Plaintext}, &out)
	return out, err
}

func keyPath(key Key, what string) string {
	return "/v1/keys/" + url.PathEscape(string(key)) + "/" + what
}

// Signed is a signature and what it was made with.
type Signed = v1.Signed

// Formats of signatures.
const (
	FormatRaw = v1.FormatRaw // 64 bytes: RFC 8032, or r | s
	FormatDER = v1.FormatDER // SEQUENCE of r and s; not for ed25519
	FormatJWS = v1.FormatJWS // JSON Web Signature, compact; not for sm2
)

// SignRequest asks for a signature.
type SignRequest struct {
	Key     Key
	Message []byte // may be empty; of a JWS, the payload
	Format  string // FormatRaw when ""
	Type    string // of a JWS: its typ, as JWT
}

// Sign signs a message with the newest version of a key.
func (c *Client) Sign(ctx context.Context, r SignRequest) (Signed, error) {
	if res, served, err := c.rpc.one(ctx, signing(&r)); served {
		return signedOf(res.GetSigned()), err
	}
	var out Signed
	err := c.call(ctx, http.MethodPost, keyPath(r.Key, "sign"), v1.SignRequest{Message: present(r.Message), Format: r.Format, Type: r.Type}, &out)
	return out, err
}

// Verified is whether a signature or code is valid.
type Verified = v1.Verified

// VerifyRequest asks whether a signature is valid.
type VerifyRequest struct {
	Key       Key
	Message   []byte
	Signature []byte
	Format    string // of Signature: FormatRaw when "", or FormatDER
	Version   uint32 // of the key, as Signed told it; the newest when zero
}

// Verify tells whether a signature is valid.
func (c *Client) Verify(ctx context.Context, r VerifyRequest) (Verified, error) {
	return c.verify(ctx, r.Key, v1.VerifyRequest{Message: present(r.Message), Signature: present(r.Signature), Format: r.Format, Version: r.Version})
}

// VerifyJWS tells whether a JWS is valid, and returns its payload when it is.
func (c *Client) VerifyJWS(ctx context.Context, key Key, jws string) (Verified, error) {
	return c.verify(ctx, key, v1.VerifyRequest{JWS: jws})
}

func (c *Client) verify(ctx context.Context, key Key, in v1.VerifyRequest) (Verified, error) {
	if res, served, err := c.rpc.one(ctx, verifying(key, &in)); served {
		return verifiedOf(res.GetVerified()), err
	}
	var out Verified
	err := c.call(ctx, http.MethodPost, keyPath(key, "verify"), in, &out)
	return out, err
}

// MacCode is a message authentication code and what it was made with.
type MacCode = v1.Code

// MacRequest asks for a code.
type MacRequest struct {
	Key     Key
	Message []byte // may be empty

	// Context makes the code a blind index: equal for equal Context and Message, to look
	// records up by. Nil is a plain code; the empty context is not nil.
	Context Context
}

// Mac computes a message authentication code with the newest version of a key.
func (c *Client) Mac(ctx context.Context, r MacRequest) (MacCode, error) {
	if res, served, err := c.rpc.one(ctx, coding(&r)); served {
		return codeOf(res.GetMac()), err
	}
	var out MacCode
	err := c.call(ctx, http.MethodPost, keyPath(r.Key, "mac"), v1.MacRequest{Message: present(r.Message), Context: indexed(r.Context)}, &out)
	return out, err
}

func indexed(c Context) *Context {
	if c == nil {
		return nil
	}
	return &c
}

// VerifyMac tells whether a code is valid. Version is that of the key, as MacCode told it;
// the newest when zero.
func (c *Client) VerifyMac(ctx context.Context, r MacRequest, mac []byte, version uint32) (Verified, error) {
	if res, served, err := c.rpc.one(ctx, codeVerifying(&r, mac, version)); served {
		return verifiedOf(res.GetVerified()), err
	}
	var out Verified
	in := v1.VerifyMacRequest{Message: present(r.Message), Mac: present(mac), Context: indexed(r.Context), Version: version}
	err := c.call(ctx, http.MethodPost, keyPath(r.Key, "mac/verify"), in, &out)
	return out, err
}

// Random returns random bytes of the machine, 1 to 1024.
func (c *Client) Random(ctx context.Context, n int) ([]byte, error) {
	if res, served, err := c.rpc.one(ctx, drawing(n)); served {
		return res.GetRandom().GetRandom(), err
	}
	var out v1.Random
	err := c.call(ctx, http.MethodGet, "/v1/random?bytes="+strconv.Itoa(n), nil, &out)
	return out.Random, err
}
