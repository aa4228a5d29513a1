package alert

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
	"github.com/trikey/trikey/internal/webhook"
)

// SecretPrefix is what a webhook's secret begins with; base64 of 24 to 64 bytes follows.
const SecretPrefix = "whsec_"

// Webhook posts alerts as Standard Webhooks (standardwebhooks.com, 1.0.0): JSON of
// {type, timestamp, data}, with the header fields webhook-id, webhook-timestamp and
// webhook-signature, the latter v1 and HMAC-SHA256 over id, timestamp and body.
type Webhook struct {
	url    string
	secret *secret.Bytes // decoded
	client *http.Client
}

// NewWebhook returns a webhook for an https URL, whose certificate is checked with roots,
// or where those are nil with the system's authorities. text is the secret as in its
// file, and stays the caller's.
func NewWebhook(url string, roots *x509.CertPool, text *secret.Bytes) (*Webhook, error) {
	if !strings.HasPrefix(url, "https://") {
		return nil, fault.New(fault.BadConfig, "alerts.webhook.url: not an https URL")
	}
	var key *secret.Bytes
	err := text.Use(func(b []byte) error {
		encoded, ok := bytes.CutPrefix(b, []byte(SecretPrefix))
		n := base64.StdEncoding.DecodedLen(len(encoded))
		if !ok || n < 24 || n > 66 {
			return fault.New(fault.BadConfig, "alerts.webhook.secret_file: not %s and base64 of 24 to 64 bytes", SecretPrefix)
		}
		room, err := secret.New(n)
		if err != nil {
			return err
		}
		defer room.Wipe()
		return room.Use(func(p []byte) error {
			n, err := base64.StdEncoding.Decode(p, encoded)
			if err != nil || n < 24 || n > 64 {
				return fault.New(fault.BadConfig, "alerts.webhook.secret_file: not %s and base64 of 24 to 64 bytes", SecretPrefix)
			}
			key, err = secret.Fill(n, func(b []byte) error { copy(b, p); return nil })
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}, Proxy: http.ProxyFromEnvironment, IdleConnTimeout: time.Minute,
	}
	return &Webhook{url, key, &http.Client{
		Transport: transport, Timeout: 15 * time.Second,
		// An answer elsewhere is no delivery, and the body is not for others.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// Name names the webhook without its path and query, which may be secret.
func (w *Webhook) Name() string { return webhook.Host(w.url) }

// Close forgets the secret.
func (w *Webhook) Close() {
	w.secret.Wipe()
	w.client.CloseIdleConnections()
}

type payload struct {
	Type      string    `json:"type"`
	Timestamp time.Time `json:"timestamp"`
	Data      Alert     `json:"data"`
}

func (w *Webhook) post(ctx context.Context, m message, now time.Time) error {
	body, err := json.Marshal(payload{"trikey." + string(m.alert.Kind), m.alert.Time, m.alert})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	at := strconv.FormatInt(now.Unix(), 10)
	signature, err := w.sign(m.id, at, body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Webhook-Id", m.id)
	req.Header.Set("Webhook-Timestamp", at)
	req.Header.Set("Webhook-Signature", signature)
	return webhook.Deliver(w.client, req, w.Name())
}

// sign returns the signature of a message, with its scheme.
func (w *Webhook) sign(id, at string, body []byte) (signature string, err error) {
	err = w.secret.Use(func(key []byte) error {
		return secret.Derive(func() error {
			mac := hmac.New(sha256.New, key)
			_, _ = fmt.Fprintf(mac, "%s.%s.%s", id, at, body)
			signature = "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
			return nil
		})
	})
	return signature, err
}
