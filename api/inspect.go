package api

import (
	"encoding/base64"
	"encoding/hex"
	"strings"

	v1 "github.com/trikey/trikey/api/v1"
	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/internal/envelope"
	"github.com/trikey/trikey/internal/fault"
)

// Inspect reads the public part of a ciphertext's text form, or of the beginning of a
// stream in base64.
func Inspect(text string) (v1.Inspection, error) {
	if text == "" {
		return v1.Inspection{}, required("ciphertext")
	}
	if !strings.HasPrefix(text, envelope.TextPrefix) {
		if raw, err := base64.StdEncoding.DecodeString(text); err == nil && len(raw) > 0 && raw[0] == envelope.StreamVersion {
			return InspectStream(raw, int64(len(raw)))
		}
	}
	raw, err := decodeText(text)
	if err != nil {
		return v1.Inspection{}, fault.New(fault.BadRequest, "ciphertext: %v", err)
	}
	return inspectBinary(raw)
}

// inspectBinary reads the public part of a ciphertext's binary form.
func inspectBinary(raw []byte) (v1.Inspection, error) {
	h, rest, err := envelope.Parse(raw)
	if err != nil {
		return v1.Inspection{}, fault.New(fault.BadRequest, "ciphertext: %v", err)
	}
	plaintext := len(rest) - envelope.TagSize
	if suite, err := alg.Suite(alg.ID(h.Suite)); err == nil && suite.Padding > 0 {
		plaintext = max(0, plaintext-1) // the padding is one byte or more
	}
	return v1.Inspection{
		Format: envelope.Version, Algorithm: alg.ID(h.Suite).String(), Suite: int(h.Suite), Key: h.Index, Version: h.Version,
		Salt: hex.EncodeToString(h.Salt[:]), Nonce: hex.EncodeToString(h.Nonce[:]),
		Plaintext: plaintext, Ciphertext: len(raw),
	}, nil
}

// InspectStream reads the public part of a stream of size bytes from its beginning.
// A size that no stream has leaves segments and plaintext at 0: it is a part of one.
func InspectStream(beginning []byte, size int64) (v1.Inspection, error) {
	h, _, err := envelope.ParseStream(beginning)
	if err != nil {
		return v1.Inspection{}, fault.New(fault.BadRequest, "ciphertext: %v", err)
	}
	found := v1.Inspection{
		Format: envelope.StreamVersion, Algorithm: alg.ID(h.Suite).String(), Suite: int(h.Suite), Key: h.Index, Version: h.Version,
		Salt: hex.EncodeToString(h.Salt[:]), Nonce: hex.EncodeToString(h.Prefix[:]), Ciphertext: int(size),
	}
	if segments, plaintext, ok := envelope.StreamSize(size); ok {
		found.Segments, found.Plaintext = int(segments), int(plaintext)
	}
	return found, nil
}
