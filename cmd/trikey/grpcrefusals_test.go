package main_test

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"

	pb "github.com/trikey/trikey/api/v1/cryptopb"
)

// reflected asks the service what it has, as a client does that knows nothing of it.
func reflected(t *testing.T, conn *grpc.ClientConn) (names []string, service protoreflect.ServiceDescriptor) {
	t.Helper()
	stream, err := reflectionpb.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ask := func(r *reflectionpb.ServerReflectionRequest) *reflectionpb.ServerReflectionResponse {
		if err := stream.Send(r); err != nil {
			t.Fatal(err)
		}
		out, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	list := ask(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}})
	for _, s := range list.GetListServicesResponse().GetService() {
		names = append(names, s.GetName())
	}
	file := ask(&reflectionpb.ServerReflectionRequest{
		MessageRequest: &reflectionpb.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: "trikey.v1.Crypto"},
	})
	set := &descriptorpb.FileDescriptorSet{}
	for _, raw := range file.GetFileDescriptorResponse().GetFileDescriptorProto() {
		f := &descriptorpb.FileDescriptorProto{}
		if err := proto.Unmarshal(raw, f); err != nil {
			t.Fatal(err)
		}
		set.File = append(set.File, f)
	}
	files, err := protodesc.NewFiles(set)
	if err != nil {
		t.Fatal(err)
	}
	found, err := files.FindDescriptorByName("trikey.v1.Crypto")
	if err != nil {
		t.Fatal(err)
	}
	return names, found.(protoreflect.ServiceDescriptor)
}

// TestGRPCReflection calls every method with what reflection tells of it, in JSON.
func TestGRPCReflection(t *testing.T) {
	t.Parallel()
	s := openSite(t)
	s.ok("key", "create", "--index", "20", "--name", "code", "--purpose", "mac", "--algorithm", "hmac-sha256")
	s.ok("key", "create", "--index", "21", "--name", "signer", "--purpose", "sign", "--algorithm", "ecdsa-p256")
	s.createApp("every", "127.0.0.1/32", "keys=1-99;ops="+allOps+",datakey,mac,sign,verify")
	_, conn, md := s.crypto()
	names, service := reflected(t, conn)
	if got := strings.Join(names, " "); !strings.Contains(got, "trikey.v1.Crypto") || !strings.Contains(got, "grpc.health.v1.Health") {
		t.Errorf("services: %s", got)
	}
	ctx := metadata.NewOutgoingContext(t.Context(), md)
	call := func(method, in string) object {
		t.Helper()
		m := service.Methods().ByName(protoreflect.Name(method))
		request, answer := dynamicpb.NewMessage(m.Input()), dynamicpb.NewMessage(m.Output())
		if err := protojson.Unmarshal([]byte(in), request); err != nil {
			t.Fatal(err)
		}
		if err := conn.Invoke(ctx, "/trikey.v1.Crypto/"+method, request, answer); err != nil {
			t.Fatalf("%s: %v", method, err)
		}
		raw, err := protojson.Marshal(answer)
		if err != nil {
			t.Fatal(err)
		}
		var out object
		if err := json.Unmarshal(raw, &out); err != nil {
			t.Fatal(err)
		}
		return out
	}
	text := func(o object, field string) string { v, _ := json.Marshal(o[field]); return string(v) }
	sealed := text(call("Encrypt", `{"key":"chat","plaintext":"aGVsbG8=","context":[{"key":"c","value":"1"}]}`), "ciphertext")
	plain := text(call("Encrypt", `{"key":"7","plaintext":"aGVsbG8="}`), "ciphertext")
	mac := text(call("Mac", `{"key":"20","message":"aGVsbG8="}`), "mac")
	signature := text(call("Sign", `{"key":"21","message":"aGVsbG8="}`), "signature")
	called := map[string]bool{"Do": true, "Encrypt": true, "Mac": true, "Sign": true} // Do: TestGRPCStream
	for _, test := range []struct{ method, in, want string }{
		{"Decrypt", `{"ciphertext":` + sealed + `,"context":[{"key":"c","value":"1"}]}`, `"plaintext":"aGVsbG8="`},
		{"Reencrypt", `{"ciphertext":` + plain + `,"to":{"key":"8"}}`, `"algorithm":"sm4-gcm"`},
		{"BatchEncrypt", `{"items":[{"request":{"key":"7"},"reference":"a"},{"request":{"key":"200"},"reference":"b"},{"reference":"c"}]}`, `"code":"forbidden"`},
		{"BatchDecrypt", `{"items":[{"request":{"ciphertext":` + plain + `},"reference":"a"},{"request":{"ciphertext":` + sealed + `}}]}`, `"code":"decrypt_failed"`},
		{"BatchReencrypt", `{"items":[{"request":{"ciphertext":` + plain + `},"reference":"a"}]}`, `"reference":"a"`},
		{"DataKey", `{"key":"7"}`, `"wrapped":`},
		{"VerifyMac", `{"key":"20","message":"aGVsbG8=","mac":` + mac + `}`, `"valid":true`},
		{"Verify", `{"key":"21","message":"aGVsbG8=","signature":` + signature + `}`, `"valid":true`},
		{"Random", `{"bytes":3}`, `"random":"`},
		{"Inspect", `{"ciphertext":` + sealed + `}`, `"plaintextBytes":"5"`},
		{"GetKey", `{"key":"chat"}`, `"index":7`},
	} {
		called[test.method] = true
		if out, _ := json.Marshal(call(test.method, test.in)); !strings.Contains(string(out), test.want) {
			t.Errorf("%s: %s lacks %s", test.method, out, test.want)
		}
	}
	for i := range service.Methods().Len() {
		if name := string(service.Methods().Get(i).Name()); !called[name] {
			t.Errorf("%s is not called here", name)
		}
	}
}

// TestGRPCRefusals is the table of what gRPC refuses, and how.
func TestGRPCRefusals(t *testing.T) {
	t.Parallel()
	s := openSite(t)
	c, _, md := s.crypto()
	authorization := md.Get("authorization")[0]
	unknown := &pb.EncryptRequest{Key: "7"}
	unknown.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 99, protowire.VarintType), 1))
	many := &pb.BatchEncryptRequest{}
	for range 1001 {
		many.Items = append(many.Items, &pb.BatchEncryptRequest_Item{Request: &pb.EncryptRequest{Key: "7"}})
	}
	ok := &pb.EncryptRequest{Key: "7"}
	with := func(pairs ...string) metadata.MD { return metadata.Pairs(pairs...) }
	encrypt := func(in *pb.EncryptRequest) func(context.Context) error {
		return func(ctx context.Context) error { return second(c.Encrypt(ctx, in)) }
	}
	for _, test := range []struct {
		name   string
		md     metadata.MD
		call   func(context.Context) error
		code   codes.Code
		reason string
	}{
		{"all is well", md, encrypt(ok), codes.OK, ""},
		{"nobody", with(), encrypt(ok), codes.Unauthenticated, "unauthorized"},
		{"wrong secret", with("authorization", basic(s.key, "x")), encrypt(ok), codes.Unauthenticated, "unauthorized"},
		{"two callers", with("authorization", authorization, "authorization", basic("x", "y")), encrypt(ok), codes.InvalidArgument, "bad_request"},
		{"the same caller twice", with("authorization", authorization, "Authorization", authorization), encrypt(ok), codes.InvalidArgument, "bad_request"},
		{"in binary metadata", with("authorization-bin", authorization), encrypt(ok), codes.Unauthenticated, "unauthorized"},
		{"not basic", with("authorization", "Basic !"), encrypt(ok), codes.Unauthenticated, "unauthorized"},
		{"binary metadata beside", with("authorization", authorization, "x-bin", "\x00\xff"), encrypt(ok), codes.OK, ""},
		{"forwarded for", with("authorization", authorization, "x-forwarded-for", "192.0.2.1"), encrypt(ok), codes.OK, ""},
		{"signed", with("authorization", authorization, "signature", "trikey=:AAAA:", "signature-input", `trikey=("@method");created=1;keyid="x"`), encrypt(ok), codes.Unauthenticated, "signature_invalid"},
		{"no key", md, encrypt(&pb.EncryptRequest{}), codes.InvalidArgument, "bad_request"},
		{"no such key", md, encrypt(&pb.EncryptRequest{Key: "9"}), codes.NotFound, "key_not_found"},
		{"no grant", md, encrypt(&pb.EncryptRequest{Key: "200"}), codes.PermissionDenied, "forbidden"},
		{"no grant, no key", md, encrypt(&pb.EncryptRequest{Key: "201"}), codes.PermissionDenied, "forbidden"},
		{"unknown algorithm", md, encrypt(&pb.EncryptRequest{Key: "7", Algorithm: "rot13"}), codes.InvalidArgument, "bad_request"},
		{"unknown field", md, encrypt(unknown), codes.InvalidArgument, "bad_request"},
		{"a field of the context twice", md, encrypt(&pb.EncryptRequest{Key: "7", Context: []*pb.Pair{{Key: "c", Value: "1"}, {Key: "c", Value: "1"}}}), codes.InvalidArgument, "bad_request"},
		{"too large", md, encrypt(&pb.EncryptRequest{Key: "7", Plaintext: make([]byte, 8<<20)}), codes.ResourceExhausted, ""},
		{"too large, of nobody", with(), encrypt(&pb.EncryptRequest{Key: "7", Plaintext: make([]byte, 8<<20)}), codes.Unauthenticated, "unauthorized"},
		{"large enough", md, encrypt(&pb.EncryptRequest{Key: "7", Plaintext: make([]byte, 8<<20-64)}), codes.OK, ""},
		{"too many items", md, func(ctx context.Context) error { return second(c.BatchEncrypt(ctx, many)) }, codes.ResourceExhausted, "too_large"},
		{"no ciphertext", md, func(ctx context.Context) error { return second(c.Decrypt(ctx, &pb.DecryptRequest{})) }, codes.InvalidArgument, "bad_request"},
		{"words", md, func(ctx context.Context) error {
			return second(c.Decrypt(ctx, &pb.DecryptRequest{Ciphertext: []byte("words")}))
		}, codes.InvalidArgument, "decrypt_failed"},
		{"other words", md, func(ctx context.Context) error {
			return second(c.Decrypt(ctx, &pb.DecryptRequest{Ciphertext: make([]byte, 100)}))
		}, codes.InvalidArgument, "decrypt_failed"},
		{"stream of nobody", with(), func(ctx context.Context) error {
			stream, err := c.Do(ctx)
			if err == nil {
				_, err = stream.Recv()
			}
			return err
		}, codes.Unauthenticated, "unauthorized"},
		{"of another type", md, func(ctx context.Context) error {
			return second(c.Random(ctx, (*pb.RandomRequest)(nil)))
		}, codes.OK, ""},
	} {
		err := test.call(metadata.NewOutgoingContext(t.Context(), test.md))
		if code, why := reason(err); code != test.code || why != test.reason {
			t.Errorf("%s: %s %q (%v); want %s %q", test.name, code, why, err, test.code, test.reason)
		}
		if err != nil && (strings.Contains(err.Error(), s.secret) || strings.Contains(err.Error(), authorization)) {
			t.Errorf("%s: the error has the secret: %v", test.name, err)
		}
	}
	// Metadata that is too large ends the call, not the service.
	big := metadata.NewOutgoingContext(t.Context(), with("authorization", authorization, "x", strings.Repeat("x", 1<<17)))
	if _, err := c.Encrypt(big, ok); err == nil {
		t.Error("128 KiB of metadata were taken")
	}
	s.createApp("abroad", "192.0.2.0/24", "keys=1-99;ops="+allOps)
	abroad := metadata.NewOutgoingContext(t.Context(), with("authorization", basic(s.key, s.secret), "x-forwarded-for", "192.0.2.1"))
	if code, why := reason(second(c.Encrypt(abroad, ok))); code != codes.PermissionDenied || why != "ip_not_allowed" {
		t.Errorf("from another address: %s %s", code, why)
	}
	if m := s.metrics(); !strings.Contains(m, `trikey_requests_total{app="im",code="ok",op="encrypt"}`) || !strings.Contains(m, `trikey_auth_failures_total{reason="ip_not_allowed"} 1`) {
		t.Error("the metrics do not count calls over gRPC")
	}
}

// TestGRPCHealth: serving means that calls are answered.
func TestGRPCHealth(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.start()
	conn := s.dial()
	health := healthpb.NewHealthClient(conn)
	watch, err := health.Watch(t.Context(), &healthpb.HealthCheckRequest{Service: "trikey.v1.Crypto"})
	if err != nil {
		t.Fatal(err)
	}
	next := func(want healthpb.HealthCheckResponse_ServingStatus) {
		t.Helper()
		for {
			out, err := watch.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if out.GetStatus() == want {
				break
			}
		}
		if out, err := health.Check(t.Context(), &healthpb.HealthCheckRequest{}); err != nil || out.GetStatus() != want {
			t.Errorf("%v, %v; want %v", out, err, want)
		}
	}
	next(healthpb.HealthCheckResponse_NOT_SERVING)
	_, err = pb.NewCryptoClient(conn).Encrypt(metadata.NewOutgoingContext(t.Context(), metadata.Pairs("authorization", basic("x", "y"))), &pb.EncryptRequest{Key: "7"})
	if code, why := reason(err); code != codes.Unavailable || why != "sealed" {
		t.Errorf("sealed: %v", err)
	}
	if r := s.unseal("1", "2", "3"); r.code != 0 {
		t.Fatalf("%+v", r)
	}
	next(healthpb.HealthCheckResponse_SERVING)
	if code, _ := reason(second(health.Check(t.Context(), &healthpb.HealthCheckRequest{Service: "other"}))); code != codes.NotFound {
		t.Errorf("another service: %s", code)
	}
	s.ok("machine", "seal")
	next(healthpb.HealthCheckResponse_NOT_SERVING)
}
