package main_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	pb "github.com/trikey/trikey/api/v1/cryptopb"
	"github.com/trikey/trikey/sdk"
)

// encryptions are encryptions of n plaintexts, with ids from first on.
func encryptions(first uint64, n, size int) *pb.DoRequest {
	m := &pb.DoRequest{}
	for i := range uint64(n) {
		m.Operations = append(m.Operations, &pb.Operation{
			Id: first + i, Operation: &pb.Operation_Encrypt{Encrypt: &pb.EncryptRequest{Key: "7", Plaintext: make([]byte, size)}},
		})
	}
	return m
}

// do begins a stream as the app.
func (s *site) do(ctx context.Context) pb.Crypto_DoClient {
	s.t.Helper()
	c, _, md := s.crypto()
	stream, err := c.Do(metadata.NewOutgoingContext(ctx, md))
	if err != nil {
		s.t.Fatal(err)
	}
	return stream
}

// exchange sends a message and returns the answer.
func exchange(t *testing.T, stream pb.Crypto_DoClient, in *pb.DoRequest) *pb.DoResponse {
	t.Helper()
	if err := stream.Send(in); err != nil {
		t.Fatal(err)
	}
	out, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// outcome is the code that all results of a message have, "ok" without one.
func outcome(t *testing.T, in *pb.DoRequest, out *pb.DoResponse) string {
	t.Helper()
	code := ""
	for i, r := range out.GetResults() {
		this := "ok"
		if e := r.GetError(); e != nil {
			this = e.GetCode()
		}
		if code == "" {
			code = this
		}
		if this != code || r.GetId() != in.GetOperations()[i].GetId() {
			t.Errorf("result %d: id %d, %s", i, r.GetId(), this)
		}
	}
	if len(out.GetResults()) != len(in.GetOperations()) {
		t.Errorf("%d results for %d operations", len(out.GetResults()), len(in.GetOperations()))
	}
	return code
}

// TestGRPCStream: what a stream may do is looked at for each of its messages.
func TestGRPCStream(t *testing.T) {
	t.Parallel()
	s := openSite(t)
	stream := s.do(t.Context())
	few := encryptions(1, 3, 10)
	for _, step := range []struct {
		what string
		do   func()
		want string
	}{
		{"at first", func() {}, "ok"},
		{"without the grant", func() { s.ok("app", "revoke", "im", "keys=7;ops=encrypt") }, "forbidden"},
		{"with it again", func() { s.ok("app", "grant", "im", "keys=7;ops=encrypt") }, "ok"},
		{"from an address that is not allowed", func() { s.ok("app", "deny-ip", "im", "127.0.0.1/32") }, "ip_not_allowed"},
		{"from one that is", func() { s.ok("app", "allow-ip", "im", "127.0.0.1/32") }, "ok"},
		{"sealed", func() { s.ok("machine", "seal") }, "sealed"},
		{"open again", func() { s.unseal("1", "2", "3") }, "ok"},
		{"its secret dropped", func() {
			s.ok("app", "rotate-secret", "im")
			s.ok("app", "rotate-secret", "im")
		}, "unauthorized"},
		{"disabled", func() { s.ok("app", "disable", "im") }, "unauthorized"},
	} {
		step.do()
		if got := outcome(t, few, exchange(t, stream, few)); got != step.want {
			t.Errorf("%s: %s, want %s", step.what, got, step.want)
		}
	}

	s.createApp("other", "127.0.0.1/32", "keys=1-99;ops="+allOps)
	stream = s.do(t.Context())
	many := encryptions(1, 1001, 1)
	if got := outcome(t, many, exchange(t, stream, many)); got != "too_large" {
		t.Errorf("1001 operations: %s", got)
	}
	mixed := encryptions(7, 2, 5)
	mixed.Operations[1].Operation = &pb.Operation_Random{Random: &pb.RandomRequest{Bytes: 5}}
	mixed.Operations = append(mixed.Operations, &pb.Operation{Id: 7})
	out := exchange(t, stream, mixed).GetResults()
	if len(out[0].GetSealed().GetCiphertext()) != 59 || len(out[1].GetRandom().GetRandom()) != 5 || out[2].GetError().GetCode() != "bad_request" || out[2].GetId() != 7 {
		t.Errorf("%v", out)
	}
	// What was sent before the end is answered before the end.
	for i := range uint64(20) {
		if err := stream.Send(encryptions(100*i, 50, 100)); err != nil {
			t.Fatal(err)
		}
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	answered := map[uint64]bool{}
	for {
		out, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range out.GetResults() {
			if answered[r.GetId()] || r.GetSealed() == nil {
				t.Errorf("result %d: %v", r.GetId(), r)
			}
			answered[r.GetId()] = true
		}
	}
	if len(answered) != 1000 {
		t.Errorf("%d of 1000 operations were answered", len(answered))
	}
	s.stop()
	log := s.auditLog()
	for _, want := range []string{
		`"op":"encrypt","actor":"im","address":"127.0.0.1","key":7,"version":1,"items":3,"outcome":"ok"`,
		`"op":"encrypt","actor":"im","address":"127.0.0.1","key":7,"items":3,"outcome":"forbidden"`,
		`"kind":"auth","op":"do","actor":"im","address":"127.0.0.1","items":1,"outcome":"ip_not_allowed"`,
		`"op":"random","actor":"other","address":"127.0.0.1","items":1,"outcome":"ok"`,
		`"op":"do","actor":"other","address":"127.0.0.1","items":1,"outcome":"bad_request"`,
	} {
		if !strings.Contains(log, want) {
			t.Errorf("the audit log lacks %s", want)
		}
	}
}

// TestGRPCOutOfOrder: a small operation does not wait for a large one before it.
func TestGRPCOutOfOrder(t *testing.T) {
	t.Parallel()
	s := openSite(t)
	stream := s.do(t.Context())
	for range 100 {
		large := encryptions(1, 1, 7<<20)
		large.Operations[0].GetEncrypt().Algorithm = "sm4-cbc-hmac-sm3"
		for _, m := range []*pb.DoRequest{large, encryptions(2, 1, 1)} {
			if err := stream.Send(m); err != nil {
				t.Fatal(err)
			}
		}
		var order []uint64
		for range 2 {
			out, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			order = append(order, out.GetResults()[0].GetId())
		}
		if order[0] == 2 {
			return
		}
	}
	t.Error("100 small operations were answered after the large ones before them")
}

// TestGRPCSlowReader: who sends and does not read is not read from either.
func TestGRPCSlowReader(t *testing.T) {
	t.Parallel()
	s := openSite(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	before := peak(t, s.serve.Process.Pid)
	stream := s.do(ctx)
	var messages atomic.Int64
	ended := make(chan error, 1)
	go func() {
		for {
			if err := stream.Send(encryptions(0, 100, 10<<10)); err != nil { // 1 MB
				ended <- err
				return
			}
			messages.Add(1)
		}
	}()
	// It has stopped when nothing was sent for two seconds.
	const most = 200
	for sent, since := int64(-1), time.Now(); time.Since(since) < 2*time.Second; time.Sleep(50 * time.Millisecond) {
		if now := messages.Load(); now != sent {
			sent, since = now, time.Now()
		}
		if sent > most {
			t.Fatalf("%d MB were taken from a caller that reads nothing", sent)
		}
	}
	if grown := peak(t, s.serve.Process.Pid) - before; grown > 256<<10 {
		t.Errorf("the service grew by %d MiB", grown>>10)
	}
	cancel()
	<-ended
	if sealed := s.encrypt("7", []byte("x"), nil); sealed == "" {
		t.Error("nobody else is served")
	}
}

// TestGRPCShutdown: a service that ends answers what it has read.
func TestGRPCShutdown(t *testing.T) {
	t.Parallel()
	s := openSite(t)
	stream := s.do(t.Context())
	ended := make(chan struct{})
	go func() { // more than the service reads at once: it is always in the middle
		defer close(ended)
		for n := uint64(0); stream.Send(encryptions(1000*n, 500, 2000)) == nil; n++ {
		}
	}()
	for messages := 0; ; messages++ {
		out, err := stream.Recv()
		if err != nil {
			if code, why := reason(err); code != codes.Unavailable || why != "unavailable" || messages < 10 {
				t.Errorf("after %d messages: %v", messages, err)
			}
			break
		}
		if len(out.GetResults()) != 500 || out.GetResults()[499].GetSealed() == nil {
			t.Errorf("%d results", len(out.GetResults()))
		}
		if messages == 10 {
			if err := s.serve.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
		}
	}
	<-ended
	<-s.exited
	if code := s.serve.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit code %d:\n%s", code, s.log)
	}
}

// TestGRPCLoad: 100,000 operations of many callers, each right, while calls are cancelled
// and the service is killed and comes back.
func TestGRPCLoad(t *testing.T) {
	t.Parallel()
	s := openSite(t)
	c := s.newSDK(true)
	const callers, each = 100, 1000
	run := func(n int, f func(caller, i int) error) {
		t.Helper()
		var wg sync.WaitGroup
		for caller := range callers {
			wg.Go(func() {
				for i := range n {
					if err := f(caller, i); err != nil {
						t.Errorf("caller %d, operation %d: %v", caller, i, err)
						return
					}
				}
			})
		}
		wg.Wait()
	}
	round := func(caller, i int) error {
		text, bound := fmt.Appendf(nil, "%d of %d", i, caller), sdk.Context{"caller": fmt.Sprint(caller)}
		sealed, err := c.Encrypt(t.Context(), sdk.EncryptRequest{Key: sdk.Index(7), Plaintext: text, Context: bound})
		if err != nil {
			return err
		}
		opened, err := c.Decrypt(t.Context(), sdk.DecryptRequest{Ciphertext: sealed.Ciphertext, Context: bound})
		if err == nil && !bytes.Equal(opened.Plaintext, text) {
			err = fmt.Errorf("%q came back as %q", text, opened.Plaintext)
		}
		return err
	}
	run(each/2, func(caller, i int) error {
		if i%10 == 0 { // a call that is given up does not disturb the others
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*time.Microsecond)
			defer cancel()
			_, err := c.Encrypt(ctx, sdk.EncryptRequest{Key: sdk.Index(7), Plaintext: []byte("given up")})
			if err != nil && !errors.Is(err, context.DeadlineExceeded) {
				return err
			}
		}
		return round(caller, i)
	})
	s.kill()
	if err := second(c.Encrypt(t.Context(), sdk.EncryptRequest{Key: sdk.Index(7)})); !errors.Is(err, sdk.ErrUnavailable) {
		t.Errorf("while nobody is there: %v", err)
	}
	s.open()
	s.eventually("the client has connected again", func() bool {
		return second(c.Encrypt(t.Context(), sdk.EncryptRequest{Key: sdk.Index(7)})) == nil
	})
	run(1, round)
}

// TestGRPCFallback: the SDK calls over HTTP where gRPC cannot be reached.
func TestGRPCFallback(t *testing.T) {
	t.Parallel()
	s := openSite(t)
	for name, addresses := range map[string][]string{"nobody listens": {"127.0.0.1:1"}, "not gRPC": {strings.TrimPrefix(s.api, "https://")}, "the second": {"127.0.0.1:1", s.grpc}} {
		c, err := sdk.New(sdk.Config{Addresses: []string{s.api}, GRPC: addresses, AppKey: s.key, AppSecret: s.secret, RootCAs: s.roots(), Timeout: 10 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		sealed, err := c.Encrypt(t.Context(), sdk.EncryptRequest{Key: sdk.Index(7), Plaintext: []byte("x")})
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		opened, err := c.DecryptBatch(t.Context(), []sdk.DecryptRequest{{Ciphertext: sealed.Ciphertext}, {Ciphertext: "words"}})
		if err != nil || string(opened[0].Plaintext) != "x" || !errors.Is(opened[1].Err, sdk.ErrDecryptFailed) {
			t.Errorf("%s: %+v, %v", name, opened, err)
		}
		c.Close()
	}
}
