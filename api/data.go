package api

import (
	"encoding/base64"
	"net/http"
	"strconv"

	v1 "github.com/trikey/trikey/api/v1"
	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/internal/envelope"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/jsonhttp"
	"github.com/trikey/trikey/kms"
	"github.com/trikey/trikey/kms/life"
)

// do carries out one call.
func (s *server) do(r *request, c kms.Call) (kms.Call, error) {
	r.items = 1
	calls := []kms.Call{c}
	if err := s.cfg.Service.Do(r.Context(), r.caller, calls); err != nil {
		return c, err
	}
	r.calls = calls
	return calls[0], calls[0].Err
}

func (s *server) encrypt(r *request) error {
	if isRaw(r.Request) {
		return s.raw(r, hsm.Encrypt, v1.MaxPlaintext)
	}
	var in v1.EncryptRequest
	if err := r.decode(&in); err != nil {
		return err
	}
	if in.Plaintext == nil {
		return required("plaintext")
	}
	c, err := s.do(r, kms.Call{
		Kind: hsm.Encrypt, Key: r.key(), Algorithm: in.Algorithm, Context: envelope.Context(in.Context), Input: in.Plaintext,
		Output: make([]byte, 0, len(in.Plaintext)+envelope.Overhead),
	})
	if err != nil {
		return err
	}
	return r.answer(sealed(&c))
}

func (s *server) decrypt(r *request) error {
	if isRaw(r.Request) {
		return s.raw(r, hsm.Decrypt, v1.MaxPlaintext+envelope.Overhead+maxPadding)
	}
	var in v1.DecryptRequest
	if err := r.decode(&in); err != nil {
		return err
	}
	if in.Ciphertext == "" {
		return required("ciphertext")
	}
	input, err := decodeText(in.Ciphertext)
	if err != nil {
		// A key that the caller has no grant for stays forbidden.
		input = nil
	}
	c, err := s.do(r, kms.Call{Kind: hsm.Decrypt, Key: r.key(), Context: envelope.Context(in.Context), Input: input})
	if err != nil {
		return err
	}
	return r.answer(v1.Opened{Plaintext: filled(c.Output), Key: c.KeyIndex, Version: c.KeyVersion})
}

func (s *server) reencrypt(r *request) error {
	var in v1.ReencryptRequest
	if err := r.decode(&in); err != nil {
		return err
	}
	if in.Ciphertext == "" {
		return required("ciphertext")
	}
	input, err := decodeText(in.Ciphertext)
	if err != nil {
		return err
	}
	c, err := s.do(r, reencryption(input, in.Context, in.To))
	if err != nil {
		return err
	}
	return r.answer(sealed(&c))
}

// reencryption makes the call of a re-encryption: what the target leaves out stays
// as it was; but the version is the key's newest, and another key seals with its own
// algorithm.
func reencryption(input []byte, context v1.Context, to *v1.Target) kms.Call {
	c := kms.Call{Kind: hsm.Reencrypt, Context: envelope.Context(context), ToContext: envelope.Context(context), Input: input}
	if to != nil {
		c.ToKey, c.Algorithm = string(to.Key), to.Algorithm
		if to.Context != nil {
			c.ToContext = envelope.Context(*to.Context)
		}
	}
	return c
}

func (s *server) inspect(r *request) error {
	var in v1.InspectRequest
	if err := r.decode(&in); err != nil {
		return err
	}
	found, err := Inspect(in.Ciphertext)
	if err != nil {
		return err
	}
	return r.answer(found)
}

func (s *server) key(r *request) error {
	info, err := s.keyInfo(r)
	if err != nil {
		return err
	}
	return r.answer(info)
}

// keyInfo is what the caller may see of the key that the request names.
func (s *server) keyInfo(r *request) (v1.KeyInfo, error) {
	k, err := s.cfg.Service.Visible(r.caller, r.key())
	if err != nil {
		return v1.KeyInfo{}, err
	}
	info := v1.KeyInfo{
		Index: k.Index, Name: k.Name, Version: k.Current().Version, Algorithm: k.Algorithm.String(),
		Purpose: k.Purpose().String(), State: string(k.State()), Versions: []uint32{},
	}
	for _, v := range k.Versions {
		if v.State != life.Destroyed {
			info.Versions = append(info.Versions, v.Version)
		}
	}
	if k.Settings != nil {
		info.RequireContext, info.StrictContext = k.Settings.Context.String(), k.Settings.Context.Strict
	}
	info.Public, err = publicKeys(k)
	return info, err
}

// publicKeys returns the public keys of a key that signs, none for any other.
func publicKeys(k *kms.Key) ([]v1.PublicKey, error) {
	var all []v1.PublicKey
	for _, v := range k.Versions {
		if len(v.Public) == 0 {
			continue
		}
		text, err := alg.PublicPEM(k.Algorithm, v.Public)
		if err != nil {
			return nil, err
		}
		all = append(all, v1.PublicKey{Version: v.Version, PEM: text, KeyID: kms.KeyID(k.Index, v.Version)})
	}
	return all, nil
}

// maxPadding is the most that a suite adds to a plaintext beside the overhead.
const maxPadding = 16

// isRaw reports whether the body is the message itself and not JSON.
func isRaw(r *http.Request) bool { return r.Header.Get("Content-Type") == v1.OctetStream }

// raw serves encrypt and decrypt with raw bodies.
func (s *server) raw(r *request, kind hsm.Kind, limit int64) error {
	context, err := headerContext(r.Header.Get(v1.HeaderContext))
	if err != nil {
		return err
	}
	body := jsonhttp.Buffer()
	defer jsonhttp.Release(body)
	if err := jsonhttp.ReadBody(r.in, r.Request, limit, body); err != nil {
		return err
	}
	c, err := s.do(r, kms.Call{
		Kind: kind, Key: r.key(), Algorithm: r.Header.Get(v1.HeaderAlgorithm), Context: context, Input: body.Bytes(),
		Output: make([]byte, 0, body.Len()+envelope.Overhead),
	})
	if err != nil {
		return err
	}
	h := r.w.Header()
	h.Set("Content-Type", v1.OctetStream)
	h.Set("Content-Length", strconv.Itoa(len(c.Output)))
	h.Set("Cache-Control", "no-store")
	h.Set(v1.HeaderKey, strconv.FormatUint(uint64(c.KeyIndex), 10))
	h.Set(v1.HeaderVersion, strconv.FormatUint(uint64(c.KeyVersion), 10))
	h.Set(v1.HeaderAlgorithm, c.KeyAlgorithm.String())
	_, _ = r.w.Write(c.Output) // a client that went away is no failure of ours
	return nil
}

// headerContext reads the context of a call with a raw body.
func headerContext(header string) (envelope.Context, error) {
	if header == "" {
		return nil, nil
	}
	raw, err := base64.StdEncoding.DecodeString(header)
	if err != nil {
		return nil, fault.New(fault.BadRequest, "%s: not base64 of a JSON object", v1.HeaderContext)
	}
	var c v1.Context
	if err := jsonhttp.Unmarshal(raw, &c); err != nil {
		return nil, fault.New(fault.BadRequest, "%s: %v", v1.HeaderContext, err)
	}
	return envelope.Context(c), nil
}

func required(field string) error {
	return fault.New(fault.BadRequest, "%s: required", field)
}

func decodeText(text string) ([]byte, error) {
	return envelope.DecodeText(make([]byte, 0, len(text)), []byte(text))
}

func sealed(c *kms.Call) v1.Sealed {
	return v1.Sealed{Ciphertext: encodeText(c.Output), Key: c.KeyIndex, Version: c.KeyVersion, Algorithm: c.KeyAlgorithm.String()}
}

func encodeText(binary []byte) string {
	size := len(envelope.TextPrefix) + base64.RawURLEncoding.EncodedLen(len(binary))
	return string(envelope.AppendText(make([]byte, 0, size), binary))
}

// filled makes the empty plaintext an empty string in JSON, not null.
func filled(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}
