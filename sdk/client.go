// Package sdk is the Go client of Trikey for IM services: encrypt, decrypt and
// re-encrypt messages by key index, one at a time or a page at once.
//
//	client, err := sdk.New(sdk.Config{
//		Addresses:     []string{"https://10.0.0.1:7443", "https://10.0.0.2:7443"},
//		AppKey:        "ak…",
//		AppSecretFile: "/etc/im/trikey.secret",
//		CAFile:        "/etc/im/trikey-ca.pem",
//	})
//	sealed, err := client.Encrypt(ctx, sdk.EncryptRequest{
//		Key: sdk.Index(7), Plaintext: text, Context: sdk.Context{"conversation": id},
//	})
//
// A client keeps connections open and may be used concurrently; make one and keep
// it. Where an address is sealed or does not answer, the call goes on to the next
// one; every call here is safe to repeat. A call ends when its context does.
package sdk

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/httpsig"
	"github.com/trikey/trikey/internal/jsonhttp"
)

// Config says which service to call, and as whom.
type Config struct {
	Addresses []string // https://host:port, in order of preference

	// GRPC are the same services' addresses for gRPC, host:port. With them, operations of all
	// callers go over a few connections, many in one message when there are many; where
	// none of them can be reached, over HTTP as without. Streams and Key are HTTP always.
	GRPC []string

	AppKey        string
	AppSecret     string // or
	AppSecretFile string // the file that has it

	// Tokens has calls carry short-lived tokens, which the client gets with the AppKey
	// and AppSecret, instead of these themselves. TokenFile is a file with a token that
	// somebody else keeps fresh; then there is no AppKey.
	Tokens    bool
	TokenFile string
	// Sign has requests signed by the AppSecret (RFC 9421) in place of sending it. Streams
	// cannot be signed.
	Sign bool

	// CertFile and KeyFile are a TLS client certificate and its key, in PEM. With them, and
	// no AppKey, the certificate is the credential.
	CertFile, KeyFile string

	// CAFile is the PEM file of the authorities that sign the service's
	// certificates; RootCAs the same in memory. Without either, the system's.
	CAFile  string
	RootCAs *x509.CertPool

	// Timeout bounds one try at one address; 10 seconds when zero.
	Timeout time.Duration

	// MaxConns is how many idle connections are kept for each address; 64 when zero.
	MaxConns int
}

// String tells of the configuration without its secret.
func (c Config) String() string {
	return fmt.Sprintf("trikey %s as %s", strings.Join(c.Addresses, ","), c.AppKey)
}

// GoString is String.
func (c Config) GoString() string { return c.String() }

// LogValue is String.
func (c Config) LogValue() slog.Value { return slog.StringValue(c.String()) }

// MarshalText is String: an encoded configuration has no secret either.
func (c Config) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// Client calls the service.
type Client struct {
	addresses   []string
	credentials credentials
	signs       bool
	http        *http.Client
	rpc         *links // nil without gRPC
	timeout     time.Duration
	preferred   atomic.Uint32 // the address that answered last
}

// String tells of the client without its secret.
func (c *Client) String() string { return "trikey client of " + strings.Join(c.addresses, ",") }

// GoString is String.
func (c *Client) GoString() string { return c.String() }

// LogValue is String.
func (c *Client) LogValue() slog.Value { return slog.StringValue(c.String()) }

// MarshalText is String.
func (c *Client) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// New returns a client. It does not connect.
func New(cfg Config) (*Client, error) {
	if len(cfg.Addresses) == 0 {
		return nil, fault.New(fault.BadRequest, "sdk: no address of a service is given")
	}
	addresses := make([]string, len(cfg.Addresses))
	for i, a := range cfg.Addresses {
		if !strings.HasPrefix(a, "https://") {
			return nil, fault.New(fault.BadRequest, "sdk: the address %q does not begin with https://", a)
		}
		addresses[i] = strings.TrimSuffix(a, "/")
	}
	if cfg.Sign && (cfg.Tokens || cfg.TokenFile != "") {
		return nil, fault.New(fault.BadRequest, "sdk: a request is signed or has a token, not both; set Sign, or Tokens or TokenFile")
	}
	if cfg.Sign && len(cfg.GRPC) > 0 {
		return nil, fault.New(fault.BadRequest, "sdk: requests are signed over HTTP alone; set Sign or GRPC, not both")
	}
	secret, err := cfg.secret()
	if err != nil {
		return nil, err
	}
	roots, err := cfg.roots()
	if err != nil {
		return nil, err
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 10 * time.Second
	}
	if cfg.MaxConns == 0 {
		cfg.MaxConns = 64
	}
	config := &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	transport := &http.Transport{
		Proxy:           nil, // messages do not pass a proxy that the environment names
		TLSClientConfig: config,
		// HTTP/1.1: for many small calls HTTP/2 costs the service twice the work.
		ForceAttemptHTTP2:   false,
		TLSNextProto:        map[string]func(string, *tls.Conn) http.RoundTripper{},
		MaxIdleConnsPerHost: cfg.MaxConns,
		IdleConnTimeout:     90 * time.Second,
		TLSHandshakeTimeout: cfg.Timeout,
		// For streams, which have no time limit as a whole.
		DialContext:        (&net.Dialer{Timeout: cfg.Timeout}).DialContext,
		DisableCompression: true,
	}
	if transport.TLSClientConfig.Certificates, err = cfg.certificates(); err != nil {
		return nil, err
	}
	c := &Client{addresses: addresses, timeout: cfg.Timeout, http: &http.Client{Transport: transport}, signs: cfg.Sign}
	if cfg.Sign {
		c.http.Transport = &signer{transport, httpsig.Key{ID: cfg.AppKey, Secret: []byte(secret)}}
	}
	c.credentials = cfg.credentials(secret, c)
	c.rpc, err = newLinks(&cfg, config, c.credentials)
	return c, err
}

func (c Config) secret() (string, error) {
	if c.AppSecretFile == "" {
		return c.AppSecret, nil
	}
	raw, err := os.ReadFile(c.AppSecretFile)
	if err != nil {
		return "", fault.Wrap(fault.BadConfig, err, "sdk: read the AppSecret")
	}
	return strings.TrimSpace(string(raw)), nil
}

func (c Config) roots() (*x509.CertPool, error) {
	if c.CAFile == "" {
		return c.RootCAs, nil
	}
	pem, err := os.ReadFile(c.CAFile)
	if err != nil {
		return nil, fault.Wrap(fault.BadConfig, err, "sdk: read the CA file")
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fault.New(fault.BadConfig, "sdk: %s has no PEM certificate", c.CAFile)
	}
	return pool, nil
}

// Close closes idle connections, and ends calls over gRPC and a request for a token that
// are under way.
func (c *Client) Close() {
	c.rpc.close()
	c.credentials.close()
	c.http.CloseIdleConnections()
}

// rounds is how often each address is tried.
const rounds = 2

// each tries the addresses in turn, beginning with the one that answered last,
// until one answers with a result or with an error that another would give too.
func (c *Client) each(ctx context.Context, try func(ctx context.Context, address string) error) error {
	first := c.preferred.Load()
	n := uint32(len(c.addresses))
	var failed error
	for i := range n * rounds {
		if i > 0 && i%n == 0 {
			if err := pause(ctx); err != nil {
				return errors.Join(err, failed)
			}
		}
		at := (first + i) % n
		err := c.once(ctx, c.addresses[at], try)
		if !fault.CodeOf(err).Retryable() {
			c.preferred.Store(at)
			return err
		}
		// Of several failures the one that an address gave itself says most.
		if failed == nil || errors.Is(err, fault.Sealed) {
			failed = err
		}
	}
	return failed
}

// once gives one address its time.
func (c *Client) once(ctx context.Context, address string, try func(ctx context.Context, address string) error) error {
	limited, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	err := try(limited, address)
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil && limited.Err() != nil {
		return fault.New(fault.Unavailable, "%s did not answer within %s", address, c.timeout)
	}
	return err
}

// pause waits a moment before the addresses are tried again, not every client the
// same.
func pause(ctx context.Context) error {
	t := time.NewTimer(50*time.Millisecond + rand.N(100*time.Millisecond))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// call sends JSON and decodes the answer. Where a token is no longer taken it tries once
// more with another.
func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	for try := 0; ; try++ {
		header := http.Header{}
		value, err := c.authorize(ctx, header)
		if err != nil {
			return err
		}
		err = c.each(ctx, func(ctx context.Context, address string) error {
			return jsonhttp.Do(ctx, c.http, method, address+path, header, in, out)
		})
		if try > 0 || !errors.Is(err, fault.Unauthorized) || !c.credentials.refused(value) {
			return err
		}
	}
}
