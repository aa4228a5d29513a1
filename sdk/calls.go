package sdk

import (
	"context"
	"net/http"
	"net/url"

	v1 "github.com/trikey/trikey/api/v1"
	"github.com/trikey/trikey/internal/envelope"
)

// Key names a key: made by Index or Name.
type Key = v1.KeyRef

// Index is the key of that index.
func Index(index uint32) Key { return v1.Key(index) }

// Name is the key of that name.
func Name(name string) Key { return v1.KeyRef(name) }

// Context is what a ciphertext is bound to: it opens only with the same. Bind all
// that tells where a message belongs, as its conversation, and nothing that changes.
type Context = v1.Context

// Sealed is a ciphertext and what it was sealed with.
type Sealed = v1.Sealed

// Opened is a plaintext and what it had been sealed with.
type Opened = v1.Opened

// EncryptRequest asks to encrypt one plaintext.
type EncryptRequest struct {
	Key       Key
	Plaintext []byte // may be empty
	Context   Context
	Algorithm string // "" is the key's own
}

// Encrypt seals a plaintext with the newest version of a key.
func (c *Client) Encrypt(ctx context.Context, r EncryptRequest) (Sealed, error) {
	if res, served, err := c.rpc.one(ctx, encryption(&r)); served {
		return sealedOf(res.GetSealed()), err
	}
	var out Sealed
	in := v1.EncryptRequest{Plaintext: present(r.Plaintext), Context: r.Context, Algorithm: r.Algorithm}
	err := c.call(ctx, http.MethodPost, "/v1/keys/"+url.PathEscape(string(r.Key))+"/encrypt", in, &out)
	return out, err
}

// present makes nothing the empty plaintext.
func present(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// DecryptRequest asks to decrypt one ciphertext.
type DecryptRequest struct {
	Ciphertext string
	Context    Context
	Key        Key // "" is the one that the ciphertext names; any other refuses it
}

// Decrypt opens a ciphertext.
func (c *Client) Decrypt(ctx context.Context, r DecryptRequest) (Opened, error) {
	raw, err := binaryOf(r.Ciphertext)
	if err == nil {
		if res, served, err := c.rpc.one(ctx, decryption(&r, raw)); served {
			return openedOf(res.GetOpened()), err
		}
	}
	if r.Key == "" {
		if err != nil {
			return Opened{}, err
		}
		header, _, err := envelope.Parse(raw)
		if err != nil {
			return Opened{}, err
		}
		r.Key = Index(header.Index)
	}
	var out Opened
	in := v1.DecryptRequest{Ciphertext: r.Ciphertext, Context: r.Context}
	err = c.call(ctx, http.MethodPost, "/v1/keys/"+url.PathEscape(string(r.Key))+"/decrypt", in, &out)
	return out, err
}

// Target is what a re-encrypted ciphertext shall be. What it leaves out stays as it
// was; the version is the key's newest, and another key seals with its own
// algorithm.
type Target = v1.Target

// ReEncryptRequest asks to seal a ciphertext anew, without its plaintext leaving
// the machine.
type ReEncryptRequest struct {
	Ciphertext string
	Context    Context
	To         Target
}

// ReEncrypt seals a ciphertext anew.
func (c *Client) ReEncrypt(ctx context.Context, r ReEncryptRequest) (Sealed, error) {
	if raw, err := binaryOf(r.Ciphertext); err == nil {
		if res, served, err := c.rpc.one(ctx, reencryption(&r, raw)); served {
			return sealedOf(res.GetSealed()), err
		}
	}
	var out Sealed
	in := v1.ReencryptRequest{Ciphertext: r.Ciphertext, Context: r.Context, To: &r.To}
	err := c.call(ctx, http.MethodPost, "/v1/reencrypt", in, &out)
	return out, err
}

// KeyInfo is what the app may see of a key.
type KeyInfo = v1.KeyInfo

// Key returns what the app may see of a key.
func (c *Client) Key(ctx context.Context, key Key) (KeyInfo, error) {
	var out KeyInfo
	err := c.call(ctx, http.MethodGet, "/v1/keys/"+url.PathEscape(string(key)), nil, &out)
	return out, err
}
