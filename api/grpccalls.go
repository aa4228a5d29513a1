package api

import (
	"encoding/hex"

	v1 "github.com/trikey/trikey/api/v1"
	pb "github.com/trikey/trikey/api/v1/cryptopb"
	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/envelope"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms"
)

// What gRPC asks for becomes the same calls of the service as what HTTP asks for, and
// their results its answers.

func grpcEncrypt(in *pb.EncryptRequest) (kms.Call, error) {
	if err := known(in); err != nil {
		return kms.Call{}, err
	}
	if in.GetKey() == "" {
		return kms.Call{}, required("key")
	}
	bound, err := grpcPairs(in.GetContext())
	return kms.Call{
		Kind: hsm.Encrypt, Key: in.GetKey(), Algorithm: in.GetAlgorithm(), Context: bound,
		Input: in.GetPlaintext(), Output: make([]byte, 0, len(in.GetPlaintext())+envelope.Overhead),
	}, err
}

func grpcDecrypt(in *pb.DecryptRequest) (kms.Call, error) {
	if err := known(in); err != nil {
		return kms.Call{}, err
	}
	if len(in.GetCiphertext()) == 0 {
		return kms.Call{Key: in.GetKey()}, required("ciphertext")
	}
	bound, err := grpcPairs(in.GetContext())
	return kms.Call{Kind: hsm.Decrypt, Key: in.GetKey(), Context: bound, Input: in.GetCiphertext()}, err
}

func grpcReencrypt(in *pb.ReencryptRequest) (kms.Call, error) {
	if err := known(in, in.GetTo(), in.GetTo().GetContext()); err != nil {
		return kms.Call{}, err
	}
	if len(in.GetCiphertext()) == 0 {
		return kms.Call{}, required("ciphertext")
	}
	bound, err := grpcPairs(in.GetContext())
	if err != nil {
		return kms.Call{}, err
	}
	var to *v1.Target
	if t := in.GetTo(); t != nil {
		to = &v1.Target{Key: v1.KeyRef(t.GetKey()), Algorithm: t.GetAlgorithm()}
		if to.Context, err = grpcContext(t.GetContext()); err != nil {
			return kms.Call{}, err
		}
	}
	return reencryption(in.GetCiphertext(), v1.Context(bound), to), nil
}

func grpcDataKey(in *pb.DataKeyRequest) (kms.Call, error) {
	if err := known(in); err != nil {
		return kms.Call{}, err
	}
	n := in.GetBytes()
	if n == 0 {
		n = 32
	}
	if in.GetKey() == "" {
		return kms.Call{}, required("key")
	}
	bound, err := grpcPairs(in.GetContext())
	if err != nil {
		return kms.Call{}, err
	}
	return dataKeyCall(in.GetKey(), v1.DataKeyRequest{Context: v1.Context(bound), Bytes: int(n), Plaintext: in.GetPlaintext()})
}

func grpcMac(in *pb.MacRequest) (kms.Call, error) {
	if err := known(in, in.GetContext()); err != nil {
		return kms.Call{}, err
	}
	if in.GetKey() == "" {
		return kms.Call{}, required("key")
	}
	bound, err := grpcContext(in.GetContext())
	return macCall(in.GetKey(), v1.MacRequest{Message: in.GetMessage(), Context: bound}), err
}

func grpcVerifyMac(in *pb.VerifyMacRequest) (kms.Call, error) {
	if err := known(in, in.GetContext()); err != nil {
		return kms.Call{}, err
	}
	switch {
	case in.GetKey() == "":
		return kms.Call{}, required("key")
	case len(in.GetMac()) == 0:
		return kms.Call{Key: in.GetKey()}, required("mac")
	}
	bound, err := grpcContext(in.GetContext())
	return verifyMacCall(in.GetKey(), v1.VerifyMacRequest{
		Message: in.GetMessage(), Mac: in.GetMac(), Context: bound, Version: in.GetVersion(),
	}), err
}

func grpcSign(in *pb.SignRequest) (kms.Call, error) {
	if err := known(in); err != nil {
		return kms.Call{}, err
	}
	if in.GetKey() == "" {
		return kms.Call{}, required("key")
	}
	return signCall(in.GetKey(), v1.SignRequest{Message: filled(in.GetMessage()), Format: in.GetFormat(), Type: in.GetType()})
}

func grpcVerify(in *pb.VerifyRequest) (kms.Call, error) {
	if err := known(in); err != nil {
		return kms.Call{}, err
	}
	if in.GetKey() == "" {
		return kms.Call{}, required("key")
	}
	message, signature := in.GetMessage(), in.GetSignature()
	if in.GetJws() == "" { // proto3 has no difference between the empty message and none
		message = filled(message)
	}
	if len(signature) == 0 {
		signature = nil
	}
	return verifyCall(in.GetKey(), v1.VerifyRequest{
		Message: message, Signature: signature, Format: in.GetFormat(), JWS: in.GetJws(), Version: in.GetVersion(),
	})
}

func grpcRandom(in *pb.RandomRequest) (kms.Call, error) {
	if err := known(in); err != nil {
		return kms.Call{}, err
	}
	n := in.GetBytes()
	if n == 0 {
		n = 32
	}
	return kms.Call{Kind: hsm.Random, Size: int(n)}, nil
}

// grpcContext is nil for a context that is absent.
func grpcContext(c *pb.Context) (*v1.Context, error) {
	if c == nil {
		return nil, nil //nolint:nilnil // absent is what nil is
	}
	fields, err := grpcPairs(c.GetFields())
	return (*v1.Context)(&fields), err
}

// grpcPairs makes a context of its fields, none of which may be there twice.
func grpcPairs(pairs []*pb.Pair) (envelope.Context, error) {
	if len(pairs) == 0 {
		return nil, nil
	}
	c := make(envelope.Context, len(pairs))
	for _, p := range pairs {
		if err := known(p); err != nil {
			return nil, err
		}
		c[p.GetKey()] = p.GetValue()
	}
	if len(c) != len(pairs) {
		return nil, fault.New(fault.BadRequest, "context: a field is given twice")
	}
	return c, nil
}

func grpcSealed(c *kms.Call) *pb.Sealed {
	return &pb.Sealed{Ciphertext: c.Output, Key: c.KeyIndex, Version: c.KeyVersion, Algorithm: c.KeyAlgorithm.String()}
}

func grpcOpened(c *kms.Call) *pb.Opened {
	return &pb.Opened{Plaintext: c.Output, Key: c.KeyIndex, Version: c.KeyVersion}
}

func grpcDataKeyOf(c *kms.Call) *pb.DataKeyResponse {
	return &pb.DataKeyResponse{
		Plaintext: c.Plain, Wrapped: c.Output, Key: c.KeyIndex, Version: c.KeyVersion, Algorithm: c.KeyAlgorithm.String(),
	}
}

func grpcCode(c *kms.Call) *pb.Code {
	return &pb.Code{Mac: c.Output, Key: c.KeyIndex, Version: c.KeyVersion, Algorithm: c.KeyAlgorithm.String()}
}

func grpcVerified(c *kms.Call) *pb.Verified {
	v := verifiedBy(c)
	return &pb.Verified{Valid: v.Valid, Payload: v.Payload, Key: v.Key, Version: v.Version}
}

func grpcSigned(c *kms.Call, format string) (*pb.Signed, error) {
	out, err := signedBy(c, format)
	return &pb.Signed{Signature: out.Signature, Jws: out.JWS, Key: out.Key, Version: out.Version, Algorithm: out.Algorithm}, err
}

func grpcInspection(found v1.Inspection) (*pb.Inspection, error) {
	salt, err := hex.DecodeString(found.Salt)
	if err != nil {
		return nil, err
	}
	nonce, err := hex.DecodeString(found.Nonce)
	return &pb.Inspection{
		Format: uint32(found.Format), Algorithm: found.Algorithm, Suite: uint32(found.Suite), Key: found.Key, Version: found.Version,
		Salt: salt, Nonce: nonce, PlaintextBytes: uint64(found.Plaintext), CiphertextBytes: uint64(found.Ciphertext), Segments: uint64(found.Segments),
	}, err
}

func grpcKeyInfo(k v1.KeyInfo) *pb.KeyInfo {
	out := &pb.KeyInfo{
		Index: k.Index, Name: k.Name, Version: k.Version, Versions: k.Versions, Algorithm: k.Algorithm, Purpose: k.Purpose, State: k.State,
		RequireContext: k.RequireContext, StrictContext: k.StrictContext,
	}
	for _, p := range k.Public {
		out.PublicKeys = append(out.PublicKeys, &pb.KeyInfo_PublicKey{Version: p.Version, Pem: p.PEM, Kid: p.KeyID})
	}
	return out
}
