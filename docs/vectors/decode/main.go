// Command decode recomputes every golden vector of docs/vectors from docs/format.md
// alone: a second reading of the format, which shares no code with the product. It uses
// the standard library, and for the Chinese algorithms and ChaCha20-Poly1305, which that
// does not have, emmansun/gmsm and golang.org/x/crypto.
//
//	go run ./docs/vectors/decode docs/vectors
//
// It prints how many vectors of each file it recomputed. At the first value that differs
// it says which, and exits with 1.
package main

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	dir := "docs/vectors"
	if len(os.Args) > 1 {
		dir = os.Args[1]
	}
	for _, file := range []string{"ciphertext.json", "context.json", "kcv.json", "mac.json", "sign.json", "import.json", "stream.json", "resident.json"} {
		raw, err := os.ReadFile(filepath.Join(dir, file))
		if err == nil {
			var n int
			if n, err = check(file, raw); err == nil {
				fmt.Printf("%-16s %d vectors\n", file, n)
				continue
			}
		}
		fmt.Fprintln(os.Stderr, "decode:", err)
		os.Exit(1)
	}
}

// vector is a vector of any of the files.
type vector struct {
	Name        string            `json:"name"`
	Suite       byte              `json:"suite"`
	Algorithm   string            `json:"algorithm"`
	BusinessKey octets            `json:"business_key"`
	Index       uint32            `json:"index"`
	KeyVersion  uint32            `json:"key_version"`
	Salt        octets            `json:"salt"`
	Nonce       octets            `json:"nonce"`
	Context     map[string]string `json:"context"`
	Plaintext   octets            `json:"plaintext"`
	Info        octets            `json:"info"`
	MessageKey  octets            `json:"message_key"`
	Canonical   octets            `json:"canonical_context"`
	Header      octets            `json:"header"`
	AAD         octets            `json:"aad"`
	Ciphertext  octets            `json:"ciphertext"`
	Text        string            `json:"text"`

	Valid            bool   `json:"valid"`
	CanonicalOfValid octets `json:"canonical"`

	Key     octets `json:"key"`
	Derived octets `json:"derived_key"`
	CMAC    octets `json:"cmac"`
	KCV     string `json:"kcv"`

	BlindIndex bool   `json:"blind_index"`
	Message    octets `json:"message"`
	Input      octets `json:"input"`
	Mac        octets `json:"mac"`

	PublicKey octets `json:"public_key"`
	PublicPEM string `json:"public_pem"`
	Signature octets `json:"signature"`

	NoncePrefix     octets    `json:"nonce_prefix"`
	PlaintextBytes  int       `json:"plaintext_bytes"`
	PlaintextSHA256 octets    `json:"plaintext_sha256"`
	StreamKey       octets    `json:"stream_key"`
	Segments        []segment `json:"segments"`
	StreamBytes     int       `json:"stream_bytes"`
	StreamSHA256    octets    `json:"stream_sha256"`
	Stream          octets    `json:"stream"`

	PrivateKey octets `json:"private_key"`
	KEK        octets `json:"kek"`
	Blob       octets `json:"blob"`
}

// octets are bytes in hexadecimal.
type octets []byte

func (o *octets) UnmarshalText(text []byte) (err error) {
	*o, err = hex.DecodeString(string(text))
	return err
}

var checks = map[string]func(*vector) error{
	"ciphertext.json": (*vector).ciphertext, "context.json": (*vector).context, "kcv.json": (*vector).kcv,
	"mac.json": (*vector).mac, "sign.json": (*vector).sign, "import.json": (*vector).imported, "stream.json": (*vector).stream,
	"resident.json": (*vector).resident,
}

// check recomputes every vector of a file, and returns how many there are.
func check(file string, raw []byte) (int, error) {
	var all []vector
	strict := json.NewDecoder(bytes.NewReader(raw))
	strict.DisallowUnknownFields()
	if err := strict.Decode(&all); err != nil {
		return 0, fmt.Errorf("%s: %w", file, err)
	}
	if len(all) == 0 {
		return 0, fmt.Errorf("%s has no vectors", file)
	}
	for i := range all {
		if err := checks[file](&all[i]); err != nil {
			return 0, fmt.Errorf("%s: %s %q: %w", file, all[i].Algorithm, all[i].Name, err)
		}
	}
	return len(all), nil
}

// step is one value on the way: what it is called, what was computed, what the vector has.
type step struct {
	what      string
	got, want []byte
}

func compare(steps ...step) error {
	for _, s := range steps {
		if !bytes.Equal(s.got, s.want) {
			return fmt.Errorf("%s is %x, not %x", s.what, s.got, s.want)
		}
	}
	return nil
}
