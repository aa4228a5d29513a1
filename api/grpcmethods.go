package api

import (
	"errors"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	v1 "github.com/trikey/trikey/api/v1"
	pb "github.com/trikey/trikey/api/v1/cryptopb"
	"github.com/trikey/trikey/internal/envelope"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/httpsig"
	"github.com/trikey/trikey/kms"
)

// grpcMethods are those of trikey.v1.Crypto. Unary ones are registered as streams of one
// message each way, which on the wire are the same: grpc-go reads the whole message of a
// unary call before any code of ours runs, and nobody whom we do not know shall have us
// read 8 MiB.
func grpcMethods() []grpc.StreamDesc {
	return []grpc.StreamDesc{
		unary("Encrypt", "encrypt", oneOp(grpcEncrypt, grpcSealed)),
		unary("Decrypt", "decrypt", oneOp(grpcDecrypt, grpcOpened)),
		unary("Reencrypt", "reencrypt", oneOp(grpcReencrypt, grpcSealed)),
		unary("BatchEncrypt", "batch_encrypt", (*grpcServer).batchEncrypt),
		unary("BatchDecrypt", "batch_decrypt", (*grpcServer).batchDecrypt),
		unary("BatchReencrypt", "batch_reencrypt", (*grpcServer).batchReencrypt),
		unary("DataKey", "datakey", oneOp(grpcDataKey, grpcDataKeyOf)),
		unary("Mac", "mac", oneOp(grpcMac, grpcCode)),
		unary("VerifyMac", "mac_verify", verification(grpcVerifyMac)),
		unary("Sign", "sign", (*grpcServer).sign),
		unary("Verify", "verify", verification(grpcVerify)),
		unary("Random", "random", oneOp(grpcRandom, func(c *kms.Call) *pb.RandomResponse { return &pb.RandomResponse{Random: c.Output} })),
		unary("Inspect", "inspect", (*grpcServer).inspect),
		unary("GetKey", "key", (*grpcServer).getKey),
		{StreamName: "Do", ServerStreams: true, ClientStreams: true, Handler: doHandler},
	}
}

// message is a pointer to a generated message.
type message[T any] interface {
	*T
	proto.Message
}

// unary is a method of one request and one answer.
func unary[In any, P message[In], Out proto.Message](name, op string, serve func(*grpcServer, *request, P) (Out, error)) grpc.StreamDesc {
	return grpc.StreamDesc{StreamName: name, Handler: func(srv any, stream grpc.ServerStream) error {
		g, _ := srv.(*grpcServer)
		return g.serve(op, stream, func(r *request) (proto.Message, error) {
			in := P(new(In))
			if err := g.receive(stream, in); err != nil {
				return nil, err
			}
			r.ref = keyOf(in)
			return serve(g, r, in)
		})
	}}
}

// receive reads the message of a unary call, and waits for it as long as HTTP does for a
// body. When the handler has returned, nothing more is received.
func (g *grpcServer) receive(stream grpc.ServerStream, in any) error {
	read := make(chan error, 1)
	g.running.Go(func() { read <- stream.RecvMsg(in) })
	late := time.NewTimer(messageTime)
	defer late.Stop()
	select {
	case err := <-read:
		return received(err)
	case <-late.C:
		return fault.New(fault.BadRequest, "the message did not come within %s; send it at once", messageTime)
	}
}

// serve answers for what server.route answers for over HTTP.
func (g *grpcServer) serve(op string, stream grpc.ServerStream, serve func(*request) (proto.Message, error)) error {
	start := time.Now()
	ctx := stream.Context()
	method, _ := grpc.MethodFromServerStream(stream)
	r := &request{Request: grpcRequest(ctx, method)}
	out, err := g.audited(op, r, serve)
	g.cfg.Metrics.observe(op, err, r, time.Since(start))
	if err != nil {
		return grpcStatus(ctx, method, public(err))
	}
	defer wipe(out)
	return stream.SendMsg(out)
}

// audited serves a request that is recorded before it is answered.
func (g *grpcServer) audited(op string, r *request, serve func(*request) (proto.Message, error)) (proto.Message, error) {
	if err := g.enter(op, r); err != nil {
		return nil, err
	}
	out, err := serve(r)
	if failed := g.record(op, r, err); failed != nil {
		return nil, failed
	}
	return out, err
}

// enter admits a caller. What HTTP signs has a body; a message of gRPC is none, and a
// signature that does not cover it would vouch for nothing.
func (g *grpcServer) enter(op string, r *request) error {
	if httpsig.Present(r.Request) {
		g.cfg.Metrics.authFailure(string(fault.SignatureInvalid))
		return g.recordFailure(op, r, fault.New(fault.SignatureInvalid, "requests are signed over HTTP alone; "+
			"call with the AppKey and AppSecret, a token, or a client certificate"))
	}
	return g.server.enter(op, r)
}

// wipe erases what an answer has of a data key.
func wipe(out proto.Message) {
	if k, ok := out.(*pb.DataKeyResponse); ok {
		clear(k.GetPlaintext())
	}
}

// known refuses what this release does not know: a caller of a later one must not think
// that it was heard.
func known(all ...proto.Message) error {
	for _, m := range all {
		if r := m.ProtoReflect(); len(r.GetUnknown()) > 0 {
			return fault.New(fault.BadRequest, "%s: it has a field that this release does not know", r.Descriptor().Name())
		}
	}
	return nil
}

// keyOf is the key that a request names, if it names one.
func keyOf(in any) string {
	if named, ok := in.(interface{ GetKey() string }); ok {
		return named.GetKey()
	}
	return ""
}

// oneOp is a method of one operation.
func oneOp[P, Out proto.Message](call func(P) (kms.Call, error), answer func(*kms.Call) Out) func(*grpcServer, *request, P) (Out, error) {
	return func(g *grpcServer, r *request, in P) (none Out, err error) {
		c, err := call(in)
		if err == nil {
			c, err = g.do(r, c)
		}
		if err != nil {
			return none, err
		}
		return answer(&c), nil
	}
}

// verification is a method whose operation may find that something is not valid.
func verification[P proto.Message](call func(P) (kms.Call, error)) func(*grpcServer, *request, P) (*pb.Verified, error) {
	return func(g *grpcServer, r *request, in P) (*pb.Verified, error) {
		c, err := call(in)
		if err != nil {
			return nil, err
		}
		if c, err = g.do(r, c); err != nil && !errors.Is(err, fault.SignatureInvalid) {
			return nil, err
		}
		c.Err = err
		return grpcVerified(&c), nil
	}
}

func (g *grpcServer) sign(r *request, in *pb.SignRequest) (*pb.Signed, error) {
	c, err := grpcSign(in)
	if err == nil {
		c, err = g.do(r, c)
	}
	if err != nil {
		return nil, err
	}
	return grpcSigned(&c, in.GetFormat())
}

func (g *grpcServer) inspect(_ *request, in *pb.InspectRequest) (*pb.Inspection, error) {
	raw := in.GetCiphertext()
	if err := known(in); err != nil {
		return nil, err
	}
	if len(raw) == 0 {
		return nil, required("ciphertext")
	}
	inspect := inspectBinary
	if raw[0] == envelope.StreamVersion {
		inspect = func(raw []byte) (v1.Inspection, error) { return InspectStream(raw, int64(len(raw))) }
	}
	found, err := inspect(raw)
	if err != nil {
		return nil, err
	}
	return grpcInspection(found)
}

func (g *grpcServer) getKey(r *request, in *pb.GetKeyRequest) (*pb.KeyInfo, error) {
	if err := known(in); err != nil {
		return nil, err
	}
	if r.ref == "" {
		return nil, required("key")
	}
	info, err := g.keyInfo(r)
	if err != nil {
		return nil, err
	}
	return grpcKeyInfo(info), nil
}
