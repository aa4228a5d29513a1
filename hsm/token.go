package hsm

import (
	"context"

	"github.com/trikey/trikey/internal/secret"
)

// Token is a chip that does more than guard the root: business keys are drawn,
// wrapped and used inside it, and never leave it but wrapped.
type Token interface {
	Chip

	// LoadWrapper hands the token an AES-256 key that wraps business keys and does
	// nothing else, until the returned Wrapper is closed.
	LoadWrapper(ctx context.Context, key *secret.Bytes) (Wrapper, error)
}

// Wrapper is a key inside a token that wraps other keys of the token by AES key wrap
// (RFC 3394). All methods may be called concurrently.
type Wrapper interface {
	// Generate draws an AES-256 key inside the token and returns it wrapped, WrapKWSize
	// bytes, with the AES-CMAC of sixteen zero bytes under it, which the caller erases.
	// The key itself is gone from the token when Generate returns.
	Generate(ctx context.Context) (wrapped, check []byte, err error)

	// Rewrap moves a wrapped key to another wrapper of the same token, inside it.
	Rewrap(ctx context.Context, wrapped []byte, to Wrapper) ([]byte, error)

	// Unwrap keeps a wrapped key in the token, to seal with, until it is closed. One that
	// this wrapper did not wrap is fault.RecordDamaged.
	Unwrap(ctx context.Context, wrapped []byte) (ResidentKey, error)

	// Close destroys the wrapping key.
	Close() error
}

// ResidentKey is an AES-256-GCM key inside a token that cannot be extracted. It is not
// to be used after, or while, it is closed.
type ResidentKey interface {
	// Seal appends the ciphertext and its 16-byte tag to dst; the nonce is 12 bytes, from
	// the kernel.
	Seal(ctx context.Context, dst, nonce, plaintext, aad []byte) ([]byte, error)

	// Open appends the plaintext to dst. A tag that does not match is
	// fault.DecryptFailed; a token that fails is fault.ChipFault.
	Open(ctx context.Context, dst, nonce, sealed, aad []byte) ([]byte, error)

	// Close destroys the key inside the token.
	Close() error
}
