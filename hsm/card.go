package hsm

import (
	"context"

	"github.com/trikey/trikey/internal/secret"
)

// CardID tells one token from another. Slot numbers do not: they change when a
// token is inserted or initialised.
type CardID struct {
	Module string `json:"module"` // path of the PKCS#11 module
	Serial string `json:"serial"`
	Label  string `json:"label"`
}

// Key is what tells two tokens apart, whichever module they are reached by: some makers
// give every token the same serial.
func (id CardID) Key() string { return id.Serial + "/" + id.Label }

// CardInfo is what a token tells before anybody logs in.
type CardInfo struct {
	CardID
	Manufacturer string `json:"manufacturer"`
	Model        string `json:"model"`
	Initialised  bool   `json:"initialised"`
	PINLocked    bool   `json:"pin_locked"`
	PINFinalTry  bool   `json:"pin_final_try"`
	PINCountLow  bool   `json:"pin_count_low"`
	PINTries     int    `json:"pin_tries"` // of this machine, since the PIN was last right
	Given        bool   `json:"given"`     // to the step under way
}

// Reader is where cards are inserted: every slot of every configured module.
type Reader interface {
	// Cards lists the tokens inserted now.
	Cards(ctx context.Context) ([]CardInfo, error)

	// Login opens the card with its PIN, trying once. The errors are
	// fault.CardAbsent, PINIncorrect, PINLocked, PINFinalTry, PINTriesSpent and
	// ModuleFault; the two before the last mean that nothing was tried, and that a
	// person may have it tried all the same (ConfirmLastTry). While the card is open
	// no other card of its module can be.
	Login(ctx context.Context, id CardID, pin *secret.Bytes) (Card, error)

	// ChangePIN changes a card's PIN. The old one is tried as Login tries it.
	ChangePIN(ctx context.Context, id CardID, old, fresh *secret.Bytes) error

	// Initialise makes a token of a blank card: id has its label, and its serial and
	// module where several are inserted. It never touches a card that is a token.
	Initialise(ctx context.Context, id CardID, soPIN, pin *secret.Bytes) (CardID, error)
}

// Card is a key card that is logged in to. It holds data objects; which of them
// are Trikey's the envelope in them says, never their label.
type Card interface {
	// Objects returns the value of every private data object.
	Objects(ctx context.Context) ([]*secret.Bytes, error)

	// Store writes a value as a private, unmodifiable data object.
	Store(ctx context.Context, label string, value *secret.Bytes) error

	// Remove deletes the data objects that hold exactly this value.
	Remove(ctx context.Context, value *secret.Bytes) error

	// Close logs out.
	Close() error
}

// Chip is the machine's own token: the key that encrypts the root never leaves
// it. All methods may be called concurrently.
type Chip interface {
	Courier

	// Describe names the chip for Status, with a warning where it is one for tests
	// only.
	Describe() string

	// Seal encrypts a key under the chip's storage key.
	Seal(ctx context.Context, key *secret.Bytes) ([]byte, error)

	// Open decrypts what Seal made, into protected memory.
	Open(ctx context.Context, sealed []byte) (*secret.Bytes, error)

	// Renew destroys the storage key and makes another: nothing that was sealed opens
	// any more.
	Renew(ctx context.Context) error

	// Load hands an AES-256 key to the chip, which keeps it as a non-extractable
	// object until the returned key is closed.
	Load(ctx context.Context, key *secret.Bytes) (ChipKey, error)

	// Close ends all sessions with the chip.
	Close() error
}

// ChipKey is an AES-256-GCM key inside the chip.
type ChipKey interface {
	// Seal encrypts a short secret; the nonce is 12 bytes, from the kernel.
	Seal(ctx context.Context, nonce []byte, plaintext *secret.Bytes, aad []byte) ([]byte, error)

	// Open decrypts into protected memory. A tag that does not match is
	// fault.DecryptFailed; a chip that fails is fault.ChipFault.
	Open(ctx context.Context, nonce, sealed, aad []byte) (*secret.Bytes, error)

	// Close destroys the key.
	Close() error
}
