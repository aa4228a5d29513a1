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
	mac  []macAnswer
	sign []signAnswer
	kwp  []kwpAnswer
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

type macAnswer struct {
	source            string
	id                ID
	key, message, mac string
}

type signAnswer struct {
	source                              string
	id                                  ID
	private, public, message, signature string
}

type kwpAnswer struct{ source, kek, key, wrapped string }

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
	for _, k := range a.mac {
		if sum, err := Authenticate(k.id, unhex(k.key), unhex(k.message)); err != nil || !bytes.Equal(sum, unhex(k.mac)) {
			return failed(k.source)
		}
	}
	for _, k := range a.sign {
		if !k.passes() {
			return failed(k.source)
		}
	}
	for _, k := range a.kwp {
		key := make([]byte, len(k.key)/2)
		if err := UnwrapKWP(key, unhex(k.kek), unhex(k.wrapped)); err != nil || !bytes.Equal(key, unhex(k.key)) {
			return failed(k.source)
		}
	}
	return nil
}

// passes computes the known public key, verifies the known signature and not another,
// and a signature made now: those of ECDSA and SM2 are never the same twice.
func (k signAnswer) passes() bool {
	s, err := signerOf(k.id)
	if err != nil {
		return false
	}
	private, message, signature := unhex(k.private), unhex(k.message), unhex(k.signature)
	public, err := s.public(private)
	if err != nil || !bytes.Equal(public, unhex(k.public)) || !s.verify(public, message, signature) {
		return false
	}
	made, err := s.sign(private, message)
	if err != nil || !s.verify(public, message, made) {
		return false
	}
	signature[0] ^= 1
	return !s.verify(public, message, signature)
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
		{
			source: "SM4-CBC with HMAC-SM3, computed with OpenSSL 3", suite: SM4CBCHMAC,
			key:   "0123456789abcdeffedcba9876543210000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
			nonce: "00001234567800000000abcd", aad: "feedfacedeadbeeffeedfacedeadbeefabaddad2",
			plaintext: "aaaaaaaaaaaaaaaabbbbbbbbbbbbbbbbccccccccccccccccdddddddddddddddd48656c6c6f",
			ciphertext: "124575403492ccb7019a633efdebe24e4347e63d268a24d6bc9585f826b113bbf20ac2e06182aee85e7c6728590d1152" +
				"52eb942d9e8a31da26c7e2754aab0884",
		},
		{
			source: "AEAD_AES_SIV_CMAC_512, Wycheproof, test 598", suite: AES256SIV,
			key: "b2871555ffe0ec56fdb08e0c88b5b2b2fd062639c0936e6255af394c80dd4bce" +
				"412c6e08fa241f1637d3819fa770526c0fd322bd42a08b28ba2b23122b05a962",
			nonce: "0fe58be96e9a0026599d7676", aad: "700c3ca5a0625573857c6155c8457fad",
			plaintext: "f520c4004faacf13b79d7b25e43f957b845bf2f2f6e1c4ed8f7116f505e3768f" +
				"b13fa34ecf593a38d698ddb61a9e62e8713f72b1d8a323e9b1bef2120ec2ab",
			ciphertext: "e1c51628ba47eabee5a509f83e022577687d63c4fb3ee758f00746b42817533c" +
				"411c45926fd2fbc9afdb9d9a1f16805118db801030a6a1ff6bf6061835c762f9ad8d309a041b6eda63965d7690e7ad",
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
	mac: []macAnswer{
		{
			source: "HMAC-SHA-256, RFC 4231 section 4.2", id: HMACSHA256,
			key: "0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b", message: "4869205468657265",
			mac: "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
		},
		{
			source: "HMAC-SM3, the input of RFC 4231 section 4.2, computed with OpenSSL 3", id: HMACSM3,
			key: "0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b", message: "4869205468657265",
			mac: "51b00d1fb49832bfb01c3ce27848e59f871d9ba938dc563b338ca964755cce70",
		},
	},
	sign: []signAnswer{
		{
			source: "Ed25519, RFC 8032 section 7.1, test 2", id: Ed25519,
			private: "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
			public:  "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c", message: "72",
			signature: "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da" +
				"085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
		},
		{
			source: "ECDSA P-256 with SHA-256, RFC 6979 appendix A.2.5", id: ECDSAP256,
			private: "c9afa9d845ba75166b5c215767b1d6934e50c3db36e89b127b8a622b120f6721",
			public: "0460fed4ba255a9d31c961eb74c6356d68c049b8923b61fa6ce669622e60f29fb6" +
				"7903fe1008b8bc99a41ae9e95628bc64f2f1b20c2d7e9f5177a3c294d4462299", message: "73616d706c65",
			signature: "efd48b2aacb6a8fd1140dd9cd45e81d69d2c877b56aaf991c34d0ea84eaf3716" +
				"f7cb1c942d657c41d436c7a1b6e29f65f3e900dbb9aff4064dc4ab2f843acda8",
		},
		{
			source: "SM2 with SM3, GB/T 32918.5 appendix A.2", id: SM2,
			private: "3945208f7b2144b13f36e38ac6d39f95889393692860b51a42fb81ef4df7c5b8",
			public: "0409f9df311e5421a150dd7d161e4bc5c672179fad1833fc076bb08ff356f35020" +
				"ccea490ce26775a52dc6ea718cc1aa600aed05fbf35e084a6632f6072da9ad13", message: "6d65737361676520646967657374",
			signature: "f5a03b0648d2c4630eeac513e1bb81a15944da3827d5b74143ac7eaceee720b3" +
				"b1b6aa29df212fd8763182bc0d421ca1bb9038fd1f7f42d4840b69c485bbc1aa",
		},
	},
	kwp: []kwpAnswer{
		{
			source: "AES key wrap with padding, RFC 5649 section 6", kek: "5840df6e29b02af1ab493b705bf16ea1ae8338f4dcc176a8",
			key:     "c37b7e6492584340bed12207808941155068f738",
			wrapped: "138bdeaa9b8fa7fc61f97742e72248ee5ae6ae5360d1ae6a5f54f373fa543b6a",
		},
	},
}
