package main_test

import (
	"errors"
	"regexp"
	"testing"
	"time"

	"github.com/trikey/trikey/sdk"
)

// httpEncrypts are the metrics of encryptions over HTTP; those of streams are called do.
var httpEncrypts = regexp.MustCompile(`trikey_requests_total\{[^}]*op="encrypt"\}`)

// TestGRPCCallers: each credential that HTTP takes is taken over gRPC, but signatures, and
// for as long as it is good: streams that are open notice.
func TestGRPCCallers(t *testing.T) {
	t.Parallel()
	s := openSite(t)
	s.ok("key", "create", "--index", "21", "--name", "signer", "--purpose", "sign", "--algorithm", "ecdsa-p256")
	s.createApp("every", "127.0.0.1/32", "keys=1-99;ops="+allOps+",sign,verify")
	client := func(change func(*sdk.Config)) *sdk.Client {
		t.Helper()
		// The address that HTTP has serves nothing but tokens: gRPC alone must do the rest.
		cfg := sdk.Config{Addresses: []string{s.api}, GRPC: []string{s.grpc}, RootCAs: s.roots(), Timeout: 20 * time.Second}
		change(&cfg)
		c, err := sdk.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		return c
	}
	overHTTP := func() int { return len(httpEncrypts.FindAllString(s.metrics(), -1)) }
	before := overHTTP()
	encrypt := func(c *sdk.Client, conversation string) error {
		return second(c.Encrypt(t.Context(), sdk.EncryptRequest{Key: sdk.Index(7), Context: sdk.Context{"conversation": conversation}}))
	}
	want := func(what string, got, want error) {
		t.Helper()
		if !errors.Is(got, want) {
			t.Errorf("%s: %v; want %v", what, got, want)
		}
	}

	tokens := client(func(c *sdk.Config) { c.AppKey, c.AppSecret, c.Tokens = s.key, s.secret, true })
	want("tokens of the SDK's", encrypt(tokens, "c1"), nil)

	token := s.userToken("encrypt")
	file := s.path("token")
	s.write(file, []byte(token))
	alice := client(func(c *sdk.Config) { c.TokenFile = file })
	want("a user, in the conversation", encrypt(alice, "c1"), nil)
	want("a user, in another", encrypt(alice, "c2"), sdk.ErrForbidden)
	want("a user's signature", second(alice.Sign(t.Context(), sdk.SignRequest{Key: sdk.Index(21)})), sdk.ErrForbidden)
	if err := tokens.RevokeToken(t.Context(), token); err != nil {
		t.Fatal(err)
	}
	want("revoked, on an open stream", encrypt(alice, "c1"), sdk.ErrUnauthorized)
	s.write(file, []byte(s.userToken("encrypt")))
	want("a new token", encrypt(alice, "c1"), nil)

	own := newIdentity(t, nil)
	cert, key := own.files(own.certificate(nil))
	s.ok("app", "add-cert", "every", cert)
	certified := client(func(c *sdk.Config) { c.CertFile, c.KeyFile = cert, key })
	want("a certificate", encrypt(certified, "c1"), nil)
	var shown struct{ Certificates []struct{ SPKI string } }
	s.ok("app", "show", "every", "-o", "json").json(t, &shown)
	s.ok("app", "remove-cert", "every", "--spki", shown.Certificates[0].SPKI)
	want("removed, on an open stream", encrypt(certified, "c1"), sdk.ErrUnauthorized)

	if overHTTP() != before {
		t.Error("something was encrypted over HTTP")
	}
	if _, err := sdk.New(sdk.Config{Addresses: []string{s.api}, GRPC: []string{s.grpc}, AppKey: "a", AppSecret: "b", Sign: true}); !errors.Is(err, sdk.ErrBadRequest) {
		t.Errorf("signed requests over gRPC: %v", err)
	}
}
