package hsm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

const (
	// JoinLife is how long a machine that joins waits for its grant.
	JoinLife = time.Hour
	// JoinApprovals is how many custodians approve a grant, each with a card of its own.
	JoinApprovals = 2
	// JoinConfirm is how many characters of the new machine's fingerprint each of them
	// types at least: 64 bits, which nobody can give a key of their own.
	JoinConfirm = 16
)

// Contexts of the signatures of what crosses between the two machines.
const (
	JoinRequestContext = "join-request"
	JoinGrantContext   = "join-grant"
)

// Joins is how a machine gets the root from an open one without the cards being brought
// to it: the new machine asks, two custodians approve at the open peer, and the new
// machine takes what the peer grants. What crosses is two files, both signed and
// neither secret from the custodians: the root in the grant opens in one chip only.
type Joins interface {
	// RequestJoin has the chip make a key pair for one transport of the root, and
	// returns the request for it. A request made before is void.
	RequestJoin(ctx context.Context) (JoinRequest, error)

	// ApproveJoin has one custodian approve a request, with a card of the machine's.
	// Confirm is the beginning of the new machine's fingerprint, as the custodian knows
	// it. The approval that completes JoinApprovals returns the grant.
	ApproveJoin(ctx context.Context, r JoinRequest, confirm string, card CardID, pin *secret.Bytes) (JoinProgress, error)

	// Join opens the machine with a grant for its request, by the peer of that
	// fingerprint. The request is void afterwards.
	Join(ctx context.Context, g JoinGrant, peer string) (Status, error)
}

// JoinRequest is what a machine that joins asks an open one for, signed by its identity
// key. It is good until the machine ends, asks again, or Expires.
type JoinRequest struct {
	ID      ID        `json:"id"`
	Region  string    `json:"region"`
	Host    string    `json:"host"` // what it calls itself; for people
	Issued  time.Time `json:"issued"`
	Expires time.Time `json:"expires"`

	// TransportKey is DER of a SubjectPublicKeyInfo (RFC 5280, section 4.1.2.7): an RSA
	// key whose other half is in the machine's chip.
	TransportKey []byte `json:"transport_key"`

	Signature
}

// Message is what the request's signature is over.
func (r JoinRequest) Message() ([]byte, error) {
	r.Signature = Signature{}
	return json.Marshal(r, json.Deterministic(true))
}

// Check checks the request's signature.
func (r JoinRequest) Check() error {
	message, err := r.Message()
	if err != nil {
		return err
	}
	return r.Signature.Check(JoinRequestContext, message, "")
}

// Confirmed reports why what a custodian has typed is not enough of the fingerprint, in
// any case and with any blanks.
func (r JoinRequest) Confirmed(typed string) error {
	typed = strings.ToLower(strings.Join(strings.Fields(typed), ""))
	if len(typed) < JoinConfirm || !strings.HasPrefix(r.Fingerprint, typed) {
		return fault.New(fault.FingerprintWrong, "%q is not the beginning of the new machine's fingerprint %s, in at least %d characters; compare with the "+
			"screen of that machine (trikey machine status), and approve nothing that differs", typed, r.Fingerprint, JoinConfirm)
	}
	return nil
}

// AAD is the additional data that the root is sealed with:
//
//	"trikey/v1/join" | SHA-256(Message)
//
// so that it opens for this request only.
func (r JoinRequest) AAD() ([]byte, error) {
	message, err := r.Message()
	sum := sha256.Sum256(message)
	return append([]byte("trikey/v1/join"), sum[:]...), err
}

// JoinProgress tells how far the approval of a request is.
type JoinProgress struct {
	Request ID         `json:"request"`
	Have    int        `json:"have"`
	Need    int        `json:"need"`
	Grant   *JoinGrant `json:"grant,omitempty"` // when both have approved
}

// JoinGrant is the root for one machine and one request, signed by the identity key of
// the machine that gives it.
type JoinGrant struct {
	Request  ID           `json:"request"`
	Machine  string       `json:"machine"` // fingerprint of the one that joins
	Issued   time.Time    `json:"issued"`
	Expires  time.Time    `json:"expires"`
	Record   Record       `json:"record"`
	Approved []CardRecord `json:"approved"` // the cards

	Key   []byte `json:"key"`   // AES-256, to the transport key by RSA-OAEP (RFC 8017, section 7.1)
	Nonce []byte `json:"nonce"` // 12 bytes
	Root  []byte `json:"root"`  // by AES-GCM under Key

	Signature
}

// Message is what the grant's signature is over.
func (g JoinGrant) Message() ([]byte, error) {
	g.Signature = Signature{}
	return json.Marshal(g, json.Deterministic(true))
}

// Check checks that the grant is by the machine of that fingerprint, which is given in
// full.
func (g JoinGrant) Check(peer string) error {
	message, err := g.Message()
	if err != nil {
		return err
	}
	if len(peer) != 2*sha256.Size {
		return fault.New(fault.Usage, "the peer's fingerprint has %d characters, not %d; trikey machine status shows it at the peer", len(peer), 2*sha256.Size)
	}
	return g.Signature.Check(JoinGrantContext, message, strings.ToLower(peer))
}

// Same reports whether two requests, which are both checked, are one.
func (r JoinRequest) Same(o JoinRequest) bool {
	message, err := r.Message()
	other, otherErr := o.Message()
	return err == nil && otherErr == nil && bytes.Equal(message, other) && bytes.Equal(r.PublicKey, o.PublicKey)
}

// Courier is the part of a Chip that sends keys from one chip to another.
type Courier interface {
	// NewReceiver makes an RSA pair in the chip, for one transport. It ends with the
	// chip's sessions: nothing of it is kept on the token.
	NewReceiver(ctx context.Context) (Receiver, error)

	// Send encrypts an AES-256 key to another chip's receiver, DER of a
	// SubjectPublicKeyInfo.
	Send(ctx context.Context, receiver []byte, key *secret.Bytes) (wrapped []byte, err error)
}

// Receiver is a key pair in a chip that unwraps one key.
type Receiver interface {
	// Public is DER of a SubjectPublicKeyInfo.
	Public() []byte

	// Receive unwraps a key inside the chip, and keeps it there until it is closed.
	Receive(ctx context.Context, wrapped []byte) (ChipKey, error)

	// Close destroys the pair.
	Close() error
}
