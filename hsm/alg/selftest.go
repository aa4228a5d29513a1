package alg

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"hash"

	"github.com/emmansun/gmsm/sm3"

	"github.com/trikey/trikey/internal/fault"
)

// SelfTest runs known answers through every suite and derivation. A machine does
// not open when it fails. The error names the test.
func SelfTest() error { return knownAnswers.run() }

// answers are known-answer tests, in hexadecimal.
type answers struct {
	seal []sealAnswer
	hkdf []hkdfAnswer
	cmac []cmacAnswer
}

type sealAnswer struct {
	source                                 string
	suite                                  ID
	key, nonce, aad, plaintext, ciphertext string // the ciphertext ends with its tag
}

type hkdfAnswer struct {
	source               string
	hash                 func() hash.Hash
	ikm, salt, info, okm string
}

type cmacAnswer struct{ source, key, message, mac string }

func (a answers) run() error {
	for _, k := range a.seal {
		if !k.passes() {
			return failed(k.source)
		}
	}
	for _, k := range a.hkdf {
		okm := make([]byte, len(k.okm)/2)
		if err := HKDF(k.hash, okm, unhex(k.ikm), unhex(k.salt), unhex(k.info)); err != nil || !bytes.Equal(okm, unhex(k.okm)) {
			return failed(k.source)
		}
	}
	for _, k := range a.cmac {
		if sum, err := cmac(unhex(k.key), unhex(k.message)); err != nil || !bytes.Equal(sum, unhex(k.mac)) {
			return failed(k.source)
		}
	}
	return nil
}

func (k sealAnswer) passes() bool {
	c, err := NewCipher(k.suite, unhex(k.key))
	if err != nil {
		return false
	}
	defer c.Erase()
	nonce, aad, want := unhex(k.nonce), unhex(k.aad), unhex(k.ciphertext)
	if !bytes.Equal(c.Seal(nil, nonce, unhex(k.plaintext), aad), want) {
		return false
	}
	if opened, err := c.Open(nil, nonce, want, aad); err != nil || !bytes.Equal(opened, unhex(k.plaintext)) {
		return false
	}
	want[len(want)-1] ^= 1
	_, err = c.Open(nil, nonce, want, aad)
	return err != nil
}

func failed(source string) error {
	return fault.New(fault.SelfTestFailed, "the known-answer self-test %q failed: this build or this processor computes wrongly; "+
		"nothing was opened", source)
}

// unhex decodes a constant of the table; one that is not hexadecimal is empty,
// and fails its test.
func unhex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		return nil
	}
	return b
}

var knownAnswers = answers{
	seal: []sealAnswer{
		{
			source: "AES-256-GCM, GCM specification, test case 14", suite: AES256GCM,
			key:   "0000000000000000000000000000000000000000000000000000000000000000",
			nonce: "000000000000000000000000", plaintext: "00000000000000000000000000000000",
			ciphertext: "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919",
		},
		{
			source: "AES-128-GCM, GCM specification, test case 2", suite: AES128GCM,
			key:   "00000000000000000000000000000000",
			nonce: "000000000000000000000000", plaintext: "00000000000000000000000000000000",
			ciphertext: "0388dace60b6a392f328c2b971b2fe78ab6e47d42cec13bdf53a67b21257bddf",
		},
		{
			source: "AES-256-GCM, GCM specification, test case 16", suite: AES256GCM,
			key:   "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308",
			nonce: "cafebabefacedbaddecaf888", aad: "feedfacedeadbeeffeedfacedeadbeefabaddad2",
			plaintext: "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72" +
				"1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39",
			ciphertext: "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa" +
				"8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f66276fc6ece0f4e1768cddf8853bb2d551b",
		},
		{
			source: "AES-128-GCM, GCM specification, test case 4", suite: AES128GCM,
			key:   "feffe9928665731c6d6a8f9467308308",
			nonce: "cafebabefacedbaddecaf888", aad: "feedfacedeadbeeffeedfacedeadbeefabaddad2",
			plaintext: "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72" +
				"1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39",
			ciphertext: "42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e" +
				"21d514b25466931c7d8f6a5aac84aa051ba30b396a0aac973d58e0915bc94fbc3221a5db94fae95ae7121a47",
		},
		{
			source: "ChaCha20-Poly1305, RFC 8439 section 2.8.2", suite: ChaCha20Poly1305,
			key:   "808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f",
			nonce: "070000004041424344454647", aad: "50515253c0c1c2c3c4c5c6c7",
			plaintext: "4c616469657320616e642047656e746c656d656e206f662074686520636c617373206f66202739393a204966204920636f756c64206f66" +
				"66657220796f75206f6e6c79206f6e652074697020666f7220746865206675747572652c2073756e73637265656e20776f756c642062652069742e",
			ciphertext: "d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d63dbea45e8ca9671282fafb69da92728b1a71de0a9e06" +
				"0b2905d6a5b67ecd3b3692ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc3ff4def08e4b7a9de576d26586cec64b6116" +
				"1ae10b594f09e26a7e902ecbd0600691",
		},
		{
			source: "SM4-GCM, RFC 8998 appendix A.1", suite: SM4GCM,
			key:   "0123456789abcdeffedcba9876543210",
			nonce: "00001234567800000000abcd", aad: "feedfacedeadbeeffeedfacedeadbeefabaddad2",
			plaintext: "aaaaaaaaaaaaaaaabbbbbbbbbbbbbbbbccccccccccccccccdddddddddddddddd" +
				"eeeeeeeeeeeeeeeeffffffffffffffffeeeeeeeeeeeeeeeeaaaaaaaaaaaaaaaa",
			ciphertext: "17f399f08c67d5ee19d0dc9969c4bb7d5fd46fd3756489069157b282bb200735" +
				"d82710ca5c22f0ccfa7cbf93d496ac15a56834cbcf98c397b4024a2691233b8d83de3541e4c2b58177e065a9bf7b62ec",
		},
	},
	hkdf: []hkdfAnswer{
		{
			source: "HKDF-SHA-256, RFC 5869 appendix A.1", hash: sha256.New,
			ikm: "0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b", salt: "000102030405060708090a0b0c", info: "f0f1f2f3f4f5f6f7f8f9",
			okm: "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
		},
		{
			source: "HKDF-SM3, the input of RFC 5869 appendix A.1, computed with OpenSSL 3", hash: sm3.New,
			ikm: "0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b", salt: "000102030405060708090a0b0c", info: "f0f1f2f3f4f5f6f7f8f9",
			okm: "c69fe91b7aaee2dd5718d72dcaee0cce93f1b8e41f792da51261b6a517e68b36ed2c595572b01dfa359b",
		},
	},
	cmac: []cmacAnswer{
		{
			source:  "AES-256-CMAC, NIST SP 800-38B appendix D.3, example 10",
			key:     "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4",
			message: "6bc1bee22e409f96e93d7e117393172a",
			mac:     "28a7023f452e8f82bd4bf28d8c37c35c",
		},
	},
}
