package command

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"strings"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms/audit"
)

// Sign signs a statement. The signer is there before the service has anything to state.
func (n *node) Sign(ctx context.Context, statement string, message []byte) (hsm.Signature, error) {
	return n.signer.Sign(ctx, statement, message)
}

// AuditKey is that of audit.Signer.
func (n *node) AuditKey(ctx context.Context) (ed25519.PublicKey, error) {
	return n.signer.PublicKey(ctx)
}

// SignAudit is that of audit.Signer. The first line of a checkpoint is the context of the
// signature: nothing else that the machine signs is of that context.
func (n *node) SignAudit(ctx context.Context, text []byte) ([]byte, error) {
	origin, rest, _ := bytes.Cut(text, []byte("\n"))
	statement, ok := strings.CutPrefix(string(origin), hsm.SignaturePrefix)
	if !ok || !strings.HasPrefix(string(origin), audit.OriginPrefix) {
		return nil, fault.New(fault.Internal, "the audit log has a checkpoint of %q signed", origin)
	}
	s, err := n.signer.Sign(ctx, statement, rest)
	return s.Signature, err
}
