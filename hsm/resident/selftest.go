package resident

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// RFC 3394 section 4.6: 256 bits of key data under a 256-bit key. The key data is also
// the key of the AES-GCM that is compared with the host's, whose own answers are known.
const (
	answerKEK     = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
	answerKey     = "00112233445566778899aabbccddeeff000102030405060708090a0b0c0d0e0f"
	answerWrapped = "28c9f404c4b810f4cbccb35cfb87f8263f5786e2d80ed326cbc7f0e71a99f43bfb988b9b7a02dd21"
)

// selfTest has the token wrap, unwrap, seal and open known answers. alg.SelfTest has
// passed.
func selfTest(ctx context.Context, token hsm.Token) (err error) {
	kek, err := secret.Move(unhex(answerKEK))
	if err != nil {
		return err
	}
	defer kek.Wipe()
	w, err := token.LoadWrapper(ctx, kek)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	again, err := w.Rewrap(ctx, unhex(answerWrapped), w)
	if err != nil {
		return err
	}
	if !bytes.Equal(again, unhex(answerWrapped)) {
		return failed("AES key wrap, RFC 3394 section 4.6")
	}
	key, err := w.Unwrap(ctx, again)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, key.Close()) }()
	return testGCM(ctx, key)
}

func testGCM(ctx context.Context, key hsm.ResidentKey) error {
	c, err := alg.NewCipher(alg.AES256GCM, unhex(answerKey))
	if err != nil {
		return err
	}
	defer c.Erase()
	nonce, plaintext, aad := []byte("twelve bytes"), []byte("a plaintext of more than one block of AES"), []byte("additional data")
	want := c.Seal(nil, nonce, plaintext, aad)
	sealed, err := key.Seal(ctx, nil, nonce, plaintext, aad)
	if err != nil {
		return err
	}
	opened, err := key.Open(ctx, nil, nonce, want, aad)
	if err != nil || !bytes.Equal(sealed, want) || !bytes.Equal(opened, plaintext) {
		return errors.Join(failed("AES-256-GCM, as the host computes it"), err)
	}
	want[len(want)-1] ^= 1
	if _, err := key.Open(ctx, nil, nonce, want, aad); !errors.Is(err, fault.DecryptFailed) {
		return errors.Join(failed("AES-256-GCM, a changed tag"), err)
	}
	return nil
}

func failed(what string) error {
	return fault.New(fault.SelfTestFailed, "the known-answer self-test %q failed inside the token: it computes wrongly; "+
		"nothing was opened", what)
}

// unhex decodes a constant; one that is not hexadecimal is empty, and fails its test.
func unhex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		return nil
	}
	return b
}
