package hsmtest

import (
	"testing"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/alg"
)

// testForget: a key that was forgotten is fetched again when it is given again, because a
// machine knows nothing of keys' lives; others are not touched, and what the machine never
// saw is forgotten too.
func testForget(t *testing.T, m *machine) {
	key, other := m.key(7, 1, alg.AES256GCM), m.key(7, 2, alg.AES256GCM)
	sealed := m.must(hsm.Op{Kind: hsm.Encrypt, Key: key, Input: []byte("text")})
	another := m.must(hsm.Op{Kind: hsm.Encrypt, Key: other, Input: []byte("text")})
	for _, w := range []hsm.WrappedKey{key, key, m.key(8, 1, alg.AES256GCM), "", "nonsense"} {
		if out := m.must(hsm.Op{Kind: hsm.Forget, Key: w}); len(out) != 0 {
			t.Errorf("output %x", out)
		}
	}
	for k, c := range map[hsm.WrappedKey][]byte{key: sealed, other: another} {
		if out := m.must(hsm.Op{Kind: hsm.Decrypt, Key: k, Input: c}); string(out) != "text" {
			t.Errorf("%q", out)
		}
	}
}
