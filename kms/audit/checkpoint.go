package audit

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sys/unix"

	"github.com/trikey/trikey/internal/durable"
	"github.com/trikey/trikey/internal/fault"
)

// OriginPrefix begins the text of every checkpoint, and of nothing else that the
// machine's identity key signs. The rest of the origin is the beginning of the
// fingerprint of the log's first key.
const OriginPrefix = "trikey/v1/audit/"

// Checkpoint is a signed tree head (c2sp.org/tlog-checkpoint).
type Checkpoint struct {
	Origin string
	Size   int64
	Root   tlog.Hash
	Note   []byte // as it was signed

	at time.Time // when this process has seen it
}

// text is what is signed.
func (c *Checkpoint) text() string {
	return fmt.Sprintf("%s\n%d\n%s\n", c.Origin, c.Size, c.Root)
}

var errUntrusted = altered("a checkpoint is not signed by a key that is trusted")

// openCheckpoint checks the signature of a checkpoint and parses it.
func openCheckpoint(raw []byte, known note.Verifiers) (Checkpoint, error) {
	n, err := note.Open(raw, known)
	if unknown := (*note.UnverifiedNoteError)(nil); errors.As(err, &unknown) {
		return Checkpoint{}, errUntrusted
	}
	if err != nil {
		return Checkpoint{}, altered("a checkpoint's signature does not match: %v", err)
	}
	lines := strings.Split(n.Text, "\n")
	if len(lines) < 4 {
		return Checkpoint{}, altered("a checkpoint has no size and root")
	}
	c := Checkpoint{Origin: lines[0], Note: bytes.Clone(raw)}
	c.Size, err = strconv.ParseInt(lines[1], 10, 64)
	if err == nil {
		c.Root, err = tlog.ParseHash(lines[2])
	}
	if err != nil || c.text() != n.Text || c.Size < 0 {
		return Checkpoint{}, altered("a checkpoint is not of the form that the service writes")
	}
	return c, nil
}

// Fingerprint is that of a public key, as trikey machine status shows it.
func Fingerprint(public ed25519.PublicKey) string {
	sum := sha256.Sum256(public)
	return hex.EncodeToString(sum[:])
}

// keyring is the public keys that a log's checkpoints are signed with: one, and another
// after each time that the machine was destroyed and began anew.
type keyring struct {
	origin    string
	public    []ed25519.PublicKey // newest last
	verifiers []note.Verifier
}

func (k *keyring) add(public ed25519.PublicKey) (string, error) {
	if k.origin == "" {
		k.origin = OriginPrefix + Fingerprint(public)[:32]
	}
	text, err := note.NewEd25519VerifierKey(k.origin, public)
	if err != nil {
		return "", err
	}
	v, err := note.NewVerifier(text)
	if err != nil {
		return "", err
	}
	k.public, k.verifiers = append(k.public, slices.Clone(public)), append(k.verifiers, v)
	return text, nil
}

func (k *keyring) has(public ed25519.PublicKey) bool {
	return slices.ContainsFunc(k.public, func(p ed25519.PublicKey) bool { return p.Equal(public) })
}

func (k *keyring) list() note.Verifiers { return note.VerifierList(k.verifiers...) }

// parseKeys reads verifier keys (c2sp.org/signed-note), one a line.
func parseKeys(raw string) (*keyring, error) {
	k := &keyring{}
	for line := range strings.Lines(raw) {
		line = strings.TrimSpace(line)
		v, err := note.NewVerifier(line)
		if err != nil {
			return nil, altered("%s: a line is no verifier key: %v", keysFile, err)
		}
		// NewVerifier has seen that there are three parts, the last base64 of the
		// algorithm and the key.
		data, _ := base64.StdEncoding.DecodeString(strings.SplitN(line, "+", 3)[2])
		k.public, k.verifiers = append(k.public, ed25519.PublicKey(data[1:])), append(k.verifiers, v)
		if k.origin == "" {
			k.origin = v.Name()
		}
		if v.Name() != k.origin {
			return nil, altered("%s: keys of two logs", keysFile)
		}
	}
	if len(k.public) == 0 {
		return nil, altered("%s is empty", keysFile)
	}
	return k, nil
}

// presigned is a note.Signer whose signature is there already.
type presigned struct {
	note.Verifier
	signature []byte
}

func (p presigned) Sign([]byte) ([]byte, error) { return p.signature, nil }

// kept is a line of the file of all checkpoints.
type kept struct {
	Time       time.Time `json:"time"`
	Checkpoint string    `json:"checkpoint"`
}

// line is the checkpoint as a line of that file, and as sinks of lines get it.
func (c Checkpoint) line() ([]byte, error) { return json.Marshal(kept{c.at.UTC(), string(c.Note)}) }

// signing is the signing goroutine.
func (l *Log) signing(ctx context.Context) {
	defer l.running.Done()
	ticks := time.NewTicker(l.cfg.Interval)
	defer ticks.Stop()
	for {
		select {
		case <-l.want:
		case <-ticks.C:
		case <-l.signOff:
			l.sign(ctx)
			for _, s := range l.shippers {
				s.end()
			}
			return
		}
		l.sign(ctx)
	}
}

func (l *Log) wantCheckpoint() {
	select {
	case l.want <- struct{}{}:
	default: // it was asked for already
	}
}

// sign makes a checkpoint of what is on the disk.
func (l *Log) sign(ctx context.Context) {
	l.mu.Lock()
	head, last := l.head, l.signed
	l.mu.Unlock()
	var err error
	if head.size > last.Size {
		var c Checkpoint
		if c, err = l.checkpoint(ctx, &head, last); err == nil {
			last = c
			for _, s := range l.shippers {
				s.ship(c)
			}
		}
	}
	l.mu.Lock()
	if err != nil && l.signErr == nil {
		l.cfg.Log.Error("no checkpoint of the audit log could be made", "error", err)
	}
	l.signed, l.signErr = last, err
	l.tries++
	close(l.changed)
	l.changed = make(chan struct{})
	l.mu.Unlock()
}

func (l *Log) checkpoint(ctx context.Context, head *tree, last Checkpoint) (Checkpoint, error) {
	if raw, err := os.ReadFile(filepath.Join(l.cfg.Dir, checkpointFile)); last.Size > 0 && (err != nil || !bytes.Equal(raw, last.Note)) {
		err := altered("%s is not what the service wrote last", checkpointFile)
		l.tampered.Store(&err)
		return Checkpoint{}, err
	}
	public, err := l.cfg.Signer.AuditKey(ctx)
	if err != nil {
		return Checkpoint{}, err
	}
	if !l.keys.has(public) {
		if err := l.newKey(public); err != nil {
			return Checkpoint{}, err
		}
	}
	c := Checkpoint{Origin: l.origin, Size: head.size, Root: head.root(), at: l.cfg.Now()}
	signature, err := l.cfg.Signer.SignAudit(ctx, []byte(c.text()))
	if err != nil {
		return c, err
	}
	if !ed25519.Verify(public, []byte(c.text()), signature) {
		return c, fault.New(fault.ChipFault, "the machine's signature of a checkpoint is not by its key; the identity key changed meanwhile")
	}
	at := slices.IndexFunc(l.keys.public, func(p ed25519.PublicKey) bool { return p.Equal(public) })
	if c.Note, err = note.Sign(&note.Note{Text: c.text()}, presigned{l.keys.verifiers[at], signature}); err != nil {
		return c, err
	}
	return c, l.keep(c)
}

// newKey takes in that the machine has another identity key: it was destroyed.
func (l *Log) newKey(public ed25519.PublicKey) error {
	text, err := l.keys.add(public)
	if err != nil {
		return err
	}
	if err := appendDurably(filepath.Join(l.cfg.Dir, keysFile), []byte(text+"\n")); err != nil {
		return err
	}
	a := &appending{events: []Event{{Kind: Self, Op: "key", Details: map[string]string{"fingerprint": Fingerprint(public)}}}}
	return l.send(a)
}

// keep brings a checkpoint to the disk, after the hashes that it stands for.
func (l *Log) keep(c Checkpoint) error {
	if err := unix.Fdatasync(int(l.reader.Fd())); err != nil {
		return err
	}
	line, err := c.line()
	if err != nil {
		return err
	}
	if err := appendDurably(filepath.Join(l.cfg.Dir, checkpointsFile), append(line, '\n')); err != nil {
		return err
	}
	return durable.WriteBytes(l.cfg.Dir, checkpointFile, c.Note)
}

// appendDurably adds to a small file; what could be added in part only is taken off.
func appendDurably(path string, b []byte) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if _, err := f.WriteAt(b, info.Size()); err != nil {
		return errors.Join(err, f.Truncate(info.Size()))
	}
	return f.Sync()
}

// waitSigned returns a checkpoint that covers an event.
func (l *Log) waitSigned(ctx context.Context, number int64) (Checkpoint, error) {
	l.mu.Lock()
	tries := l.tries
	for {
		c, err, tried, changed := l.signed, l.signErr, l.tries, l.changed
		l.mu.Unlock()
		switch {
		case c.Size > number:
			return c, nil
		case err != nil && tried > tries:
			return c, err
		}
		l.wantCheckpoint()
		select {
		case <-changed:
		case <-ctx.Done():
			return c, ctx.Err()
		}
		l.mu.Lock()
	}
}

// Checkpoint asks for a checkpoint now, and does not wait for it.
func (l *Log) Checkpoint() {
	if l != nil {
		l.wantCheckpoint()
	}
}
