package sdk

import (
	"encoding/base64"

	"google.golang.org/protobuf/proto"

	v1 "github.com/trikey/trikey/api/v1"
	pb "github.com/trikey/trikey/api/v1/cryptopb"
	"github.com/trikey/trikey/internal/envelope"
)

// Requests as operations of the gRPC stream, and its results as what calls return.

func encryption(r *EncryptRequest) *pb.Operation {
	return &pb.Operation{Operation: &pb.Operation_Encrypt{Encrypt: &pb.EncryptRequest{
		Key: string(r.Key), Plaintext: r.Plaintext, Context: pairsOf(r.Context), Algorithm: r.Algorithm,
	}}}
}

func decryption(r *DecryptRequest, raw []byte) *pb.Operation {
	return &pb.Operation{Operation: &pb.Operation_Decrypt{Decrypt: &pb.DecryptRequest{
		Key: string(r.Key), Ciphertext: raw, Context: pairsOf(r.Context),
	}}}
}

func reencryption(r *ReEncryptRequest, raw []byte) *pb.Operation {
	return &pb.Operation{Operation: &pb.Operation_Reencrypt{Reencrypt: &pb.ReencryptRequest{
		Ciphertext: raw, Context: pairsOf(r.Context),
		To: &pb.Target{Key: string(r.To.Key), Algorithm: r.To.Algorithm, Context: presentContext(r.To.Context)},
	}}}
}

func dataKeying(r *DataKeyRequest) *pb.Operation {
	return &pb.Operation{Operation: &pb.Operation_DataKey{DataKey: &pb.DataKeyRequest{
		Key: string(r.Key), Context: pairsOf(r.Context), Bytes: uint32(r.Bytes), Plaintext: r.Plaintext,
	}}}
}

func coding(r *MacRequest) *pb.Operation {
	return &pb.Operation{Operation: &pb.Operation_Mac{Mac: &pb.MacRequest{
		Key: string(r.Key), Message: r.Message, Context: presentContext(indexed(r.Context)),
	}}}
}

func codeVerifying(r *MacRequest, mac []byte, version uint32) *pb.Operation {
	return &pb.Operation{Operation: &pb.Operation_VerifyMac{VerifyMac: &pb.VerifyMacRequest{
		Key: string(r.Key), Message: r.Message, Context: presentContext(indexed(r.Context)), Mac: mac, Version: version,
	}}}
}

func signing(r *SignRequest) *pb.Operation {
	return &pb.Operation{Operation: &pb.Operation_Sign{Sign: &pb.SignRequest{
		Key: string(r.Key), Message: r.Message, Format: r.Format, Type: r.Type,
	}}}
}

func verifying(key Key, r *v1.VerifyRequest) *pb.Operation {
	return &pb.Operation{Operation: &pb.Operation_Verify{Verify: &pb.VerifyRequest{
		Key: string(key), Message: r.Message, Signature: r.Signature, Format: r.Format, Jws: r.JWS, Version: r.Version,
	}}}
}

func drawing(n int) *pb.Operation {
	if n == 0 {
		n = -1 // 0 is not given at all, and that is 32; but it is what HTTP refuses
	}
	return &pb.Operation{Operation: &pb.Operation_Random{Random: &pb.RandomRequest{Bytes: uint32(n)}}}
}

func presentContext(c *Context) *pb.Context {
	if c == nil {
		return nil
	}
	return &pb.Context{Fields: pairsOf(*c)}
}

func pairsOf(c Context) []*pb.Pair {
	if len(c) == 0 {
		return nil
	}
	pairs, all := make([]pb.Pair, len(c)), make([]*pb.Pair, 0, len(c))
	for k, v := range c {
		p := &pairs[len(all)]
		p.Key, p.Value = k, v
		all = append(all, p)
	}
	return all
}

// sizeOf bounds the bytes of an operation's message from above.
func sizeOf(op *pb.Operation) int {
	n := perOperation
	context := func(pairs []*pb.Pair) {
		for _, p := range pairs {
			n += len(p.GetKey()) + len(p.GetValue()) + perPair
		}
	}
	switch o := op.GetOperation().(type) {
	case *pb.Operation_Encrypt:
		n += len(o.Encrypt.GetKey()) + len(o.Encrypt.GetPlaintext()) + len(o.Encrypt.GetAlgorithm())
		context(o.Encrypt.GetContext())
	case *pb.Operation_Decrypt:
		n += len(o.Decrypt.GetKey()) + len(o.Decrypt.GetCiphertext())
		context(o.Decrypt.GetContext())
	default:
		n += proto.Size(op)
	}
	return n
}

// What the fields of an operation take beside their bytes, at most.
const (
	perOperation = 64
	perPair      = 20
)

// binaryOf returns the binary form of a ciphertext. One that is none never leaves the
// client.
func binaryOf(text string) ([]byte, error) {
	return envelope.DecodeText(make([]byte, 0, len(text)), []byte(text))
}

func textOf(binary []byte) string {
	if len(binary) == 0 {
		return ""
	}
	size := len(envelope.TextPrefix) + base64.RawURLEncoding.EncodedLen(len(binary))
	return string(envelope.AppendText(make([]byte, 0, size), binary))
}

func sealedOf(r *pb.Sealed) Sealed {
	return Sealed{Ciphertext: textOf(r.GetCiphertext()), Key: r.GetKey(), Version: r.GetVersion(), Algorithm: r.GetAlgorithm()}
}

func openedOf(r *pb.Opened) Opened {
	if r == nil {
		return Opened{}
	}
	return Opened{Plaintext: present(r.GetPlaintext()), Key: r.GetKey(), Version: r.GetVersion()}
}

func dataKeyOf(r *pb.DataKeyResponse) DataKey {
	return DataKey{
		Plaintext: r.GetPlaintext(), Wrapped: textOf(r.GetWrapped()), Key: r.GetKey(), Version: r.GetVersion(), Algorithm: r.GetAlgorithm(),
	}
}

func codeOf(r *pb.Code) MacCode {
	return MacCode{Mac: r.GetMac(), Key: r.GetKey(), Version: r.GetVersion(), Algorithm: r.GetAlgorithm()}
}

func verifiedOf(r *pb.Verified) Verified {
	return Verified{Valid: r.GetValid(), Payload: r.GetPayload(), Key: r.GetKey(), Version: r.GetVersion()}
}

func signedOf(r *pb.Signed) Signed {
	return Signed{Signature: r.GetSignature(), JWS: r.GetJws(), Key: r.GetKey(), Version: r.GetVersion(), Algorithm: r.GetAlgorithm()}
}
