package audit

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"log/syslog"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/webhook"
)

// Sink is a place off this host where checkpoints are kept: what an attacker who owns
// the host cannot take back.
type Sink interface {
	// Name tells the sink from others, in metrics and logs.
	Name() string
	// Ship hands over a checkpoint, and returns when it is there.
	Ship(ctx context.Context, c Checkpoint) error
}

// Shipped tells how a sink is doing.
type Shipped struct {
	Size     int64 // of the newest checkpoint that is there
	Failures int64
	Err      error // of the last try
}

// shipper hands checkpoints to one sink, the newest if it is slow: each stands for all
// before it.
type shipper struct {
	sink Sink
	log  *slog.Logger
	next chan Checkpoint // holds one
	done chan struct{}

	mu sync.Mutex // guards s
	s  Shipped
}

const (
	shipTime  = 15 * time.Second // of one try
	shipAgain = 30 * time.Second // after one that failed
)

func newShipper(sink Sink, log *slog.Logger) *shipper {
	s := &shipper{sink: sink, log: log, next: make(chan Checkpoint, 1), done: make(chan struct{})}
	go s.run()
	return s
}

// ship replaces the checkpoint that waits. Only the signing goroutine calls it.
func (s *shipper) ship(c Checkpoint) {
	select {
	case <-s.next:
	default:
	}
	s.next <- c
}

// end waits until the last checkpoint was tried.
func (s *shipper) end() {
	close(s.next)
	<-s.done
}

func (s *shipper) state() Shipped {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.s
}

func (s *shipper) run() {
	defer close(s.done)
	for c := range s.next {
		for !s.try(c) {
			// Again after a while, or with the next one as soon as there is one.
			again := time.NewTimer(shipAgain)
			select {
			case newer, more := <-s.next:
				again.Stop()
				if !more {
					return
				}
				c = newer
			case <-again.C:
			}
		}
	}
}

func (s *shipper) try(c Checkpoint) bool {
	ctx, cancel := context.WithTimeout(context.Background(), shipTime)
	defer cancel()
	err := s.sink.Ship(ctx, c)
	s.mu.Lock()
	first := err != nil && s.s.Err == nil
	s.s.Err = err
	if err == nil {
		s.s.Size = c.Size
	} else {
		s.s.Failures++
	}
	s.mu.Unlock()
	if first {
		s.log.Error("a checkpoint of the audit log was not shipped; it is tried again", "sink", s.sink.Name(), "error", err)
	}
	return err == nil
}

// FileSink appends checkpoints to a file: of a mount of another host, say.
type FileSink struct{ Path string }

// Name is that of Sink.
func (f FileSink) Name() string { return "file:" + f.Path }

// Ship appends a line of JSON with the time and the checkpoint.
func (f FileSink) Ship(_ context.Context, c Checkpoint) (err error) {
	w, err := os.OpenFile(f.Path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	line, err := c.line()
	if err != nil {
		return err
	}
	if _, err := w.Write(append(line, '\n')); err != nil {
		return err
	}
	return w.Sync()
}

// WebhookSink posts checkpoints, each a signed note as text/plain, over HTTPS.
type WebhookSink struct {
	url    string
	client *http.Client
}

// NewWebhookSink returns a sink for an https URL, whose certificate is checked with the
// authorities of a PEM file, or, where ca is "", with the system's.
func NewWebhookSink(url, ca string) (*WebhookSink, error) {
	if !strings.HasPrefix(url, "https://") {
		return nil, fault.New(fault.BadConfig, "audit.ship: webhook %q is not an https URL", url)
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if ca != "" {
		pem, err := os.ReadFile(ca)
		if err != nil {
			return nil, fault.Wrap(fault.BadConfig, err, "audit.ship: the authorities of the webhook")
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fault.New(fault.BadConfig, "audit.ship: %s has no certificate", ca)
		}
	}
	return &WebhookSink{url, &http.Client{Transport: &http.Transport{TLSClientConfig: cfg, Proxy: http.ProxyFromEnvironment, IdleConnTimeout: time.Minute}}}, nil
}

// Name is that of Sink. It has no path and no query: those may be secret.
func (w *WebhookSink) Name() string { return "webhook:" + webhook.Host(w.url) }

// Ship posts the checkpoint; any answer of 2xx means that it is there.
func (w *WebhookSink) Ship(ctx context.Context, c Checkpoint) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url, strings.NewReader(string(c.Note)))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "text/plain; charset=utf-8")
	return webhook.Deliver(w.client, req, w.Name())
}

// SyslogSink sends checkpoints to a syslog daemon's unix socket, each as one message.
type SyslogSink struct{ Path string }

// Name is that of Sink.
func (s SyslogSink) Name() string { return "syslog:" + s.Path }

// Ship sends {"checkpoint":"..."} with facility authpriv.
func (s SyslogSink) Ship(_ context.Context, c Checkpoint) (err error) {
	w, err := syslog.Dial("unixgram", s.Path, syslog.LOG_AUTHPRIV|syslog.LOG_NOTICE, "trikey-audit")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	line, err := c.line()
	if err != nil {
		return err
	}
	return w.Notice(string(line))
}
