package alg_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"testing"

	"github.com/go-json-experiment/json"

	"github.com/trikey/trikey/hsm/alg"
)

// hexBytes decodes a hexadecimal field of a vector.
type hexBytes []byte

func (h *hexBytes) UnmarshalText(text []byte) error {
	*h = make([]byte, hex.DecodedLen(len(text)))
	_, err := hex.Decode(*h, text)
	return err
}

func (h hexBytes) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h), nil }

// eachVector runs f on every test of a file, and fails if there are fewer than
// want: a vector file that went missing must not pass.
func eachVector(t *testing.T, file string, want int, f func(t *testing.T, g wycheproofGroup, v wycheproofTest)) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", "wycheproof", file))
	if err != nil {
		t.Fatal(err)
	}
	var vectors struct {
		TestGroups []wycheproofGroup `json:"testGroups"`
	}
	if err := json.Unmarshal(raw, &vectors); err != nil {
		t.Fatal(err)
	}
	ran := 0
	for _, g := range vectors.TestGroups {
		for _, v := range g.Tests {
			f(t, g, v)
			ran++
		}
	}
	if ran < want {
		t.Errorf("%s: ran %d vectors, want at least %d", file, ran, want)
	}
}

type wycheproofGroup struct {
	KeySize   int              `json:"keySize"`
	PublicKey hexBytes         `json:"publicKey"`
	Tests     []wycheproofTest `json:"tests"`
}

type wycheproofTest struct {
	ID     int      `json:"tcId"`
	Key    hexBytes `json:"key"`
	IV     hexBytes `json:"iv"`
	AAD    hexBytes `json:"aad"`
	Msg    hexBytes `json:"msg"`
	CT     hexBytes `json:"ct"`
	Tag    hexBytes `json:"tag"`
	Sig    hexBytes `json:"sig"`
	IKM    hexBytes `json:"ikm"`
	Salt   hexBytes `json:"salt"`
	Info   hexBytes `json:"info"`
	OKM    hexBytes `json:"okm"`
	Size   int      `json:"size"`
	Result string   `json:"result"`
}

func TestWycheproofAEAD(t *testing.T) {
	for _, test := range []struct {
		file  string
		want  int
		suite func(keySize int) alg.ID
	}{
		{"aes_gcm_test.json", 133, func(bits int) alg.ID {
			if bits == 256 {
				return alg.AES256GCM
			}
			return alg.AES128GCM
		}},
		{"chacha20_poly1305_test.json", 316, func(int) alg.ID { return alg.ChaCha20Poly1305 }},
		{"sm4_gcm_test.json", 65, func(int) alg.ID { return alg.SM4GCM }},
		{"aead_aes_siv_cmac_test.json", 155, func(int) alg.ID { return alg.AES256SIV }},
	} {
		eachVector(t, test.file, test.want, func(t *testing.T, g wycheproofGroup, v wycheproofTest) {
			c := newCipher(t, test.suite(g.KeySize), v.Key)
			defer c.Erase()
			sealed := append(bytes.Clone(v.CT), v.Tag...)
			opened, err := c.Open(nil, v.IV, sealed, v.AAD)
			if valid := v.Result == "valid"; valid != (err == nil) || valid && !bytes.Equal(opened, v.Msg) {
				t.Errorf("%s: test %d, %s: %v", test.file, v.ID, v.Result, err)
			}
			if v.Result == "valid" && !bytes.Equal(c.Seal(nil, v.IV, v.Msg, v.AAD), sealed) {
				t.Errorf("%s: test %d seals to something else", test.file, v.ID)
			}
		})
	}
}

func TestWycheproofHKDF(t *testing.T) {
	eachVector(t, "hkdf_sha256_test.json", 86, func(t *testing.T, _ wycheproofGroup, v wycheproofTest) {
		okm := make([]byte, v.Size)
		err := alg.HKDF(sha256.New, okm, v.IKM, v.Salt, v.Info)
		if valid := v.Result == "valid"; valid != (err == nil) || valid && !bytes.Equal(okm, v.OKM) {
			t.Errorf("test %d, %s: %v", v.ID, v.Result, err)
		}
	})
}

func TestWycheproofCMAC(t *testing.T) {
	eachVector(t, "aes_cmac_test.json", 102, func(t *testing.T, _ wycheproofGroup, v wycheproofTest) {
		sum, err := alg.CMAC(v.Key, v.Msg)
		if err != nil || bytes.Equal(sum, v.Tag) != (v.Result == "valid") {
			t.Errorf("test %d, %s: %v", v.ID, v.Result, err)
		}
	})
}

func TestWycheproofHMAC(t *testing.T) {
	for file, id := range map[string]alg.ID{"hmac_sha256_test.json": alg.HMACSHA256, "hmac_sm3_test.json": alg.HMACSM3} {
		eachVector(t, file, 81, func(t *testing.T, _ wycheproofGroup, v wycheproofTest) {
			sum, err := alg.Authenticate(id, v.Key, v.Msg)
			if err != nil || bytes.Equal(sum, v.Tag) != (v.Result == "valid") {
				t.Errorf("%s: test %d, %s: %v", file, v.ID, v.Result, err)
			}
		})
	}
}

func TestWycheproofSignatures(t *testing.T) {
	for _, test := range []struct {
		file   string
		want   int
		id     alg.ID
		decode func([]byte) ([]byte, error)
	}{
		{"ed25519_test.json", 151, alg.Ed25519, nil},
		{"ecdsa_secp256r1_sha256_p1363_test.json", 262, alg.ECDSAP256, nil},
		{"ecdsa_secp256r1_sha256_test.json", 484, alg.ECDSAP256, alg.FromDER},
	} {
		eachVector(t, test.file, test.want, func(t *testing.T, g wycheproofGroup, v wycheproofTest) {
			var bad error
			signature := []byte(v.Sig)
			if test.decode != nil {
				signature, bad = test.decode(v.Sig)
			}
			good, err := alg.Verify(test.id, g.PublicKey, v.Msg, signature)
			if good = good && bad == nil; err != nil || good != (v.Result == "valid") {
				t.Errorf("%s: test %d, %s: %v, %v, %v", test.file, v.ID, v.Result, good, bad, err)
			}
		})
	}
}

func TestWycheproofKWP(t *testing.T) {
	ran := 0
	eachVector(t, "aes_kwp_test.json", 94, func(t *testing.T, _ wycheproofGroup, v wycheproofTest) {
		if len(v.Msg) < 9 {
			return // shorter than what is unwrapped here; one block of its own in RFC 5649
		}
		ran++
		key := make([]byte, len(v.Msg))
		err := alg.UnwrapKWP(key, v.Key, v.CT)
		if valid := v.Result != "invalid"; valid != (err == nil) || valid && !bytes.Equal(key, v.Msg) {
			t.Errorf("test %d, %s: %v", v.ID, v.Result, err)
		}
		if wrapped, err := alg.WrapKWP(v.Key, v.Msg); v.Result == "valid" && (err != nil || !bytes.Equal(wrapped, v.CT)) {
			t.Errorf("test %d, wrapping: %x, %v", v.ID, wrapped, err)
		}
	})
	if ran < 60 {
		t.Errorf("%d vectors fit", ran)
	}
}
