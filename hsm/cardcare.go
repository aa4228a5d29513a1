package hsm

import (
	"context"

	"github.com/trikey/trikey/internal/secret"
)

// CardCare is what people do to cards outside of ceremonies. While a ceremony is
// under way its calls fail with fault.Conflict: the ceremony must find its cards as
// it left them.
type CardCare interface {
	// Format removes what Trikey has stored on a card, and nothing else. A card of
	// the machine's current dealing is fault.CardInUse, unless force is its serial.
	Format(ctx context.Context, card CardID, pin *secret.Bytes, force string) (FormatReport, error)

	// Initialise makes a token of a blank card: card has its label, and its serial
	// and module where several are inserted.
	Initialise(ctx context.Context, card CardID, soPIN, pin *secret.Bytes) (CardID, error)

	// ChangePIN changes a card's PIN.
	ChangePIN(ctx context.Context, card CardID, old, fresh *secret.Bytes) error
}

// FormatReport is what Format did.
type FormatReport struct {
	Card    CardID `json:"card"`
	Removed int    `json:"removed"` // Trikey's objects
	Foreign int    `json:"foreign"` // others' objects, which stay
}
