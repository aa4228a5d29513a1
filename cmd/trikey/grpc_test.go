package main_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	pb "github.com/trikey/trikey/api/v1/cryptopb"
	"github.com/trikey/trikey/sdk"
)

// roots are the site's authorities.
func (s *site) roots() *x509.CertPool {
	s.t.Helper()
	pem, err := os.ReadFile(s.path("ca.pem"))
	if err != nil {
		s.t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	return roots
}

// dial connects over gRPC, as nobody.
func (s *site) dial(opts ...grpc.DialOption) *grpc.ClientConn {
	s.t.Helper()
	creds := credentials.NewTLS(&tls.Config{RootCAs: s.roots(), MinVersion: tls.VersionTLS13})
	opts = append(opts, grpc.WithTransportCredentials(creds), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)))
	conn, err := grpc.NewClient("passthrough:///"+s.grpc, opts...)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func basic(key, secret string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(key+":"+secret))
}

// crypto is a client that calls as the app, and its context.
func (s *site) crypto() (pb.CryptoClient, *grpc.ClientConn, metadata.MD) {
	s.t.Helper()
	conn := s.dial()
	return pb.NewCryptoClient(conn), conn, metadata.Pairs("authorization", basic(s.key, s.secret))
}

// reason returns the status code and the ErrorInfo's reason of an error.
func reason(err error) (codes.Code, string) {
	st, _ := status.FromError(err)
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetDomain() == "trikey" {
			return st.Code(), info.GetReason()
		}
	}
	return st.Code(), ""
}

// newSDK is a client of the site as its app; over gRPC where that is asked for.
func (s *site) newSDK(rpc bool) *sdk.Client {
	s.t.Helper()
	cfg := sdk.Config{Addresses: []string{s.api}, AppKey: s.key, AppSecret: s.secret, RootCAs: s.roots(), Timeout: 20 * time.Second}
	if rpc {
		// HTTP would hide that gRPC does not work.
		cfg.Addresses, cfg.GRPC = []string{"https://127.0.0.1:1"}, []string{s.grpc}
	}
	c, err := sdk.New(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(c.Close)
	return c
}

// TestTransports runs one contract over both transports of the SDK: what one has
// sealed the other opens.
func TestTransports(t *testing.T) {
	t.Parallel()
	s := openSite(t)
	s.ok("key", "create", "--index", "20", "--name", "code", "--purpose", "mac", "--algorithm", "hmac-sha256")
	s.ok("key", "create", "--index", "21", "--name", "signer", "--purpose", "sign", "--algorithm", "ecdsa-p256")
	s.createApp("every", "127.0.0.1/32", "keys=1-99;ops="+allOps+",datakey,mac,sign,verify")
	clients := map[string]*sdk.Client{"http": s.newSDK(false), "grpc": s.newSDK(true)}
	for name, c := range clients {
		for other, d := range clients {
			t.Run(name+" to "+other, func(t *testing.T) { transportContract(t, c, d) })
		}
	}
}

func transportContract(t *testing.T, c, d *sdk.Client) {
	ctx, bound, moved := t.Context(), sdk.Context{"c": "1"}, sdk.Context{"c": "2"}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, plaintext := range []string{"", "hello", strings.Repeat("x", 100_000)} {
		sealed, err := c.Encrypt(ctx, sdk.EncryptRequest{Key: sdk.Name("chat"), Plaintext: []byte(plaintext), Context: bound})
		must(err)
		if sealed.Key != 7 || sealed.Version != 1 || sealed.Algorithm != "aes-256-gcm" || !strings.HasPrefix(sealed.Ciphertext, "tk1.") {
			t.Errorf("%+v", sealed)
		}
		opened, err := d.Decrypt(ctx, sdk.DecryptRequest{Ciphertext: sealed.Ciphertext, Context: bound})
		if err != nil || string(opened.Plaintext) != plaintext || opened.Plaintext == nil || opened.Key != 7 || opened.Version != 1 {
			t.Errorf("%+v, %v", opened, err)
		}
		again, err := c.ReEncrypt(ctx, sdk.ReEncryptRequest{Ciphertext: sealed.Ciphertext, Context: bound, To: sdk.Target{Key: sdk.Index(8), Context: &moved}})
		if err != nil || again.Key != 8 || again.Algorithm != "sm4-gcm" {
			t.Errorf("%+v, %v", again, err)
		}
		if opened, err = d.Decrypt(ctx, sdk.DecryptRequest{Ciphertext: again.Ciphertext, Context: moved, Key: sdk.Name("sm")}); err != nil || string(opened.Plaintext) != plaintext {
			t.Errorf("%+v, %v", opened, err)
		}
		for what, err := range map[string]error{
			"other context": second(d.Decrypt(ctx, sdk.DecryptRequest{Ciphertext: sealed.Ciphertext, Context: moved})),
			"other key":     second(d.Decrypt(ctx, sdk.DecryptRequest{Ciphertext: sealed.Ciphertext, Context: bound, Key: sdk.Index(8)})),
			"cut off":       second(d.Decrypt(ctx, sdk.DecryptRequest{Ciphertext: sealed.Ciphertext[:40], Context: bound})),
			"no ciphertext": second(d.Decrypt(ctx, sdk.DecryptRequest{Ciphertext: "words", Context: bound})),
		} {
			if !errors.Is(err, sdk.ErrDecryptFailed) {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
	for what, test := range map[string]struct {
		err  error
		want string
	}{
		"no grant":      {second(c.Encrypt(ctx, sdk.EncryptRequest{Key: sdk.Index(200)})), "forbidden"},
		"no key":        {second(c.Encrypt(ctx, sdk.EncryptRequest{Key: sdk.Index(9)})), "key_not_found"},
		"algorithm":     {second(c.Encrypt(ctx, sdk.EncryptRequest{Key: sdk.Index(7), Algorithm: "rot13"})), "bad_request"},
		"purpose":       {second(c.Encrypt(ctx, sdk.EncryptRequest{Key: sdk.Index(20)})), "algorithm_not_allowed"},
		"data key size": {second(c.DataKey(ctx, sdk.DataKeyRequest{Key: sdk.Index(7), Bytes: 17})), "bad_request"},
		"much random":   {second(c.Random(ctx, 1025)), "bad_request"},
		"no random":     {second(c.Random(ctx, 0)), "bad_request"},
		"format":        {second(c.Sign(ctx, sdk.SignRequest{Key: sdk.Index(21), Format: "x"})), "bad_request"},
		"long context":  {second(c.Encrypt(ctx, sdk.EncryptRequest{Key: sdk.Index(7), Context: sdk.Context{"k": strings.Repeat("x", 5000)}})), "bad_request"},
	} {
		if sdk.Code(test.err) != test.want {
			t.Errorf("%s: %v; want %s", what, test.err, test.want)
		}
	}

	requests := make([]sdk.EncryptRequest, 2500)
	for i := range requests {
		requests[i] = sdk.EncryptRequest{Key: sdk.Index(7), Plaintext: []byte{byte(i), byte(i >> 8)}, Context: bound}
	}
	requests[13].Key = sdk.Index(200)
	sealed, err := c.EncryptBatch(ctx, requests)
	must(err)
	toOpen, toSealAnew := make([]sdk.DecryptRequest, len(sealed)), make([]sdk.ReEncryptRequest, len(sealed))
	for i, r := range sealed {
		if (i == 13) != errors.Is(r.Err, sdk.ErrForbidden) || (i == 13) == (r.Err == nil) {
			t.Fatalf("item %d: %+v", i, r)
		}
		toOpen[i] = sdk.DecryptRequest{Ciphertext: r.Ciphertext, Context: bound}
		toSealAnew[i] = sdk.ReEncryptRequest{Ciphertext: r.Ciphertext, Context: bound}
	}
	opened, err := d.DecryptBatch(ctx, toOpen)
	must(err)
	for i, r := range opened {
		if (i == 13) != (r.Err != nil) || i != 13 && string(r.Plaintext) != string([]byte{byte(i), byte(i >> 8)}) {
			t.Fatalf("item %d: %+v", i, r)
		}
	}
	anew, err := c.ReEncryptBatch(ctx, toSealAnew)
	if must(err); len(anew) != len(sealed) || anew[0].Err != nil || anew[0].Ciphertext == sealed[0].Ciphertext || anew[13].Err == nil {
		t.Errorf("%+v", anew[0])
	}

	key, err := c.DataKey(ctx, sdk.DataKeyRequest{Key: sdk.Index(7), Plaintext: true, Context: bound})
	must(err)
	unwrapped, err := d.Decrypt(ctx, sdk.DecryptRequest{Ciphertext: key.Wrapped, Context: bound})
	if must(err); string(unwrapped.Plaintext) != string(key.Plaintext) || len(key.Plaintext) != 32 {
		t.Errorf("%+v", key)
	}
	plain, index := sdk.MacRequest{Key: sdk.Index(20), Message: []byte("m")}, sdk.MacRequest{Key: sdk.Index(20), Message: []byte("m"), Context: sdk.Context{}}
	codes := map[string]bool{}
	for _, r := range []sdk.MacRequest{plain, index} {
		code, err := c.Mac(ctx, r)
		must(err)
		same, err := d.Mac(ctx, r)
		must(err)
		codes[string(code.Mac)] = string(code.Mac) == string(same.Mac)
		if v, err := d.VerifyMac(ctx, r, code.Mac, code.Version); err != nil || !v.Valid {
			t.Errorf("%+v, %v", v, err)
		}
		code.Mac[0]++
		if v, err := d.VerifyMac(ctx, r, code.Mac, 0); err != nil || v.Valid {
			t.Errorf("%+v, %v", v, err)
		}
	}
	if len(codes) != 2 {
		t.Errorf("a code and a blind index are the same")
	}
	for _, format := range []string{"", sdk.FormatRaw, sdk.FormatDER} {
		signed, err := c.Sign(ctx, sdk.SignRequest{Key: sdk.Index(21), Message: []byte("m"), Format: format})
		must(err)
		if v, err := d.Verify(ctx, sdk.VerifyRequest{Key: sdk.Index(21), Message: []byte("m"), Signature: signed.Signature, Format: format}); err != nil || !v.Valid {
			t.Errorf("%s: %+v, %v", format, v, err)
		}
		if v, err := d.Verify(ctx, sdk.VerifyRequest{Key: sdk.Index(21), Message: []byte("n"), Signature: signed.Signature, Format: format}); err != nil || v.Valid {
			t.Errorf("%s: %+v, %v", format, v, err)
		}
	}
	signed, err := c.Sign(ctx, sdk.SignRequest{Key: sdk.Index(21), Message: []byte("{}"), Format: sdk.FormatJWS, Type: "JWT"})
	must(err)
	if v, err := d.VerifyJWS(ctx, sdk.Index(21), signed.JWS); err != nil || !v.Valid || string(v.Payload) != "{}" {
		t.Errorf("%+v, %v", v, err)
	}
	if random, err := c.Random(ctx, 100); err != nil || len(random) != 100 {
		t.Errorf("%x, %v", random, err)
	}
}

// second is the error of a call whose result is of no interest.
func second[T any](_ T, err error) error { return err }
