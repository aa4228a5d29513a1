package hsm

import (
	"context"
	"time"

	"github.com/trikey/trikey/internal/secret"
)

// Console is where people meet the machine: it reads cards and conducts
// ceremonies. One ceremony is under way at a time; every other call that needs
// one fails with fault.NoCeremony, and one that would start a second with
// fault.Conflict.
type Console interface {
	CardCare

	Status(ctx context.Context) (Status, error)

	// Cards lists the tokens inserted now.
	Cards(ctx context.Context) ([]CardInfo, error)

	// Inspect logs in to a card and tells what is on it, but no share.
	Inspect(ctx context.Context, card CardID, pin *secret.Bytes) (CardReport, error)

	// Present gives one card to the unsealing. The card that completes the
	// threshold opens the machine. A card that is refused leaves those given before
	// it as they are.
	Present(ctx context.Context, card CardID, pin *secret.Bytes) (Status, error)

	// Begin starts a ceremony: it draws a root key and deals it in memory.
	Begin(ctx context.Context, plan Plan) (Progress, error)

	// Deal writes the next share to a card, closes it, opens it again and compares
	// what it reads.
	Deal(ctx context.Context, card CardID, pin *secret.Bytes) (Progress, error)

	// Verify reads a dealt card once more. When all are verified, the root key
	// has been rebuilt from what was read off the cards.
	Verify(ctx context.Context, card CardID, pin *secret.Bytes) (Progress, error)

	// Commit ends the ceremony: from then on the cards open the machine. The
	// caller names the key check value that it saw, so that two screens agree.
	Commit(ctx context.Context, kcv string) (Record, error)

	// Abort ends the ceremony, or the collecting of cards, and leaves nothing:
	// shares written to cards are removed from those that can still be opened.
	Abort(ctx context.Context) error

	// Seal closes an open machine.
	Seal(ctx context.Context) error
}

// Plan is what a dealing ceremony shall make.
type Plan struct {
	Shares    int `json:"shares"`
	Threshold int `json:"threshold"`
}

// Step is where a dealing ceremony stands.
type Step string

// The steps of a dealing ceremony.
const (
	StepDeal   Step = "deal"
	StepVerify Step = "verify"
	StepCommit Step = "commit"
)

// Progress tells how far a dealing ceremony is.
type Progress struct {
	Ceremony  ID     `json:"ceremony"`
	Step      Step   `json:"step"`
	Dealt     int    `json:"dealt"`
	Verified  int    `json:"verified"`
	Shares    int    `json:"shares"`
	Threshold int    `json:"threshold"`
	KCV       string `json:"kcv"`
}

// CardReport is what Inspect tells of a card.
type CardReport struct {
	Card   CardInfo      `json:"card"`
	Shares []ShareReport `json:"shares"`
}

// ShareReport describes one share on a card: its public part, and what the
// machine thinks of it.
type ShareReport struct {
	MachineID  ID     `json:"machine_id"`
	Generation uint32 `json:"generation"`
	SplitID    ID     `json:"split_id"`
	Index      uint8  `json:"index"`
	Threshold  uint8  `json:"threshold"`
	Shares     uint8  `json:"shares"`
	Region     string `json:"region"`
	KCV        string `json:"kcv"`
	Verdict    string `json:"verdict"` // "ok", or the code of what is wrong
	Detail     string `json:"detail,omitempty"`
}

// Record is what a machine keeps of its root: public, written when a ceremony
// commits, in the data directory.
type Record struct {
	Manifest
	Created time.Time    `json:"created"`
	Cards   []CardRecord `json:"cards"`
}

// CardRecord says which token got which share.
type CardRecord struct {
	Index  uint8  `json:"index"`
	Serial string `json:"serial"`
	Label  string `json:"label"`
}
