package alg_test

import (
	"crypto/sha256"
	"reflect"
	"testing"

	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/internal/envelope"
)

const (
	macFile  = "mac.json"
	signFile = "sign.json"
)

// macVector is a code: of the message, or as a blind index of context and message.
type macVector struct {
	Name        string            `json:"name"`
	Algorithm   string            `json:"algorithm"`
	BusinessKey hexBytes          `json:"business_key"`
	Index       bool              `json:"blind_index"`
	Context     map[string]string `json:"context"`
	Message     hexBytes          `json:"message"`
	Input       hexBytes          `json:"input"`
	Mac         hexBytes          `json:"mac"`
}

func seed(what string) []byte {
	sum := sha256.Sum256([]byte(what))
	return sum[:]
}

func macInputs() (all []macVector) {
	for _, name := range alg.Names(alg.Authentication) {
		for _, v := range []macVector{
			{Name: "the empty message"},
			{Name: "a message", Message: []byte("message")},
			{Name: "a blind index without context", Index: true, Message: []byte("+8613800000000")},
			{Name: "a blind index", Index: true, Context: map[string]string{"app": "im", "field": "phone"}, Message: []byte("+8613800000000")},
			{Name: "a blind index, Chinese", Index: true, Context: map[string]string{"字段": "姓名"}, Message: []byte("张三")},
		} {
			v.Algorithm, v.BusinessKey = name, seed(name+v.Name)
			all = append(all, v)
		}
	}
	return all
}

func (v macVector) compute(t *testing.T) macVector {
	t.Helper()
	id, err := alg.ByName(v.Algorithm)
	if err != nil {
		t.Fatal(err)
	}
	v.Input = v.Message
	if v.Index {
		v.Input = envelope.Context(v.Context).AppendIndexInput(nil, v.Message)
	}
	if v.Mac, err = alg.Authenticate(id, v.BusinessKey, v.Input); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestGoldenMac(t *testing.T) {
	if *update {
		var all []macVector
		for _, v := range macInputs() {
			all = append(all, v.compute(t))
		}
		writeVectors(t, macFile, all)
	}
	for _, v := range readVectors[macVector](t, macFile, 10) {
		if got := v.compute(t); !reflect.DeepEqual(got, v) {
			t.Errorf("%s, %s:\n got %+v\nwant %+v", v.Algorithm, v.Name, got, v)
		}
	}
}

// signVector is a key that signs, and a signature by it. Those of ECDSA and SM2 have a
// random part: they can be verified, not computed again.
type signVector struct {
	Name        string   `json:"name"`
	Algorithm   string   `json:"algorithm"`
	BusinessKey hexBytes `json:"business_key"`
	Index       uint32   `json:"index"`
	KeyVersion  uint32   `json:"key_version"`
	PublicKey   hexBytes `json:"public_key"`
	PublicPEM   string   `json:"public_pem"`
	Message     hexBytes `json:"message"`
	Signature   hexBytes `json:"signature"`
}

func signInputs() (all []signVector) {
	for _, name := range alg.Names(alg.Signature) {
		for _, v := range []signVector{
			{Name: "the empty message", Index: 1, KeyVersion: 1, Message: []byte{}},
			{Name: "a message", Index: 7, KeyVersion: 3, Message: []byte("message")},
			{Name: "largest index and version", Index: 0xffffffff, KeyVersion: 0xffffffff, Message: []byte("三把钥匙")},
		} {
			v.Algorithm, v.BusinessKey = name, seed(name+v.Name)
			all = append(all, v)
		}
	}
	return all
}

func (v signVector) compute(t *testing.T) signVector {
	t.Helper()
	id, err := alg.ByName(v.Algorithm)
	if err != nil {
		t.Fatal(err)
	}
	if v.PublicKey, err = alg.PublicKey(id, v.BusinessKey, v.Index, v.KeyVersion); err != nil {
		t.Fatal(err)
	}
	if v.PublicPEM, err = alg.PublicPEM(id, v.PublicKey); err != nil {
		t.Fatal(err)
	}
	if good, _ := alg.Verify(id, v.PublicKey, v.Message, v.Signature); good && id != alg.Ed25519 {
		return v
	}
	if v.Signature, err = alg.Sign(id, v.BusinessKey, v.Index, v.KeyVersion, v.Message); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestGoldenSign(t *testing.T) {
	if *update {
		var all []signVector
		for _, v := range signInputs() {
			all = append(all, v.compute(t))
		}
		writeVectors(t, signFile, all)
	}
	for _, v := range readVectors[signVector](t, signFile, 9) {
		if got := v.compute(t); !reflect.DeepEqual(got, v) {
			t.Errorf("%s, %s:\n got %+v\nwant %+v", v.Algorithm, v.Name, got, v)
		}
	}
}
