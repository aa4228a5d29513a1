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
//
// A ceremony goes Begin, Gather for each card that authorises it, Deal for each card
// that gets a share, Verify for each of those, Commit; which of these it has, its Kind
// says. Until Commit it can be aborted and leaves nothing.
type Console interface {
	CardCare
	Windows
	Joins

	Status(ctx context.Context) (Status, error)

	// Cards lists the tokens inserted now.
	Cards(ctx context.Context) ([]CardInfo, error)

	// Inspect logs in to a card and tells what is on it, but no share.
	Inspect(ctx context.Context, card CardID, pin *secret.Bytes) (CardReport, error)

	// Present gives one card to the unsealing. The card that completes the
	// threshold opens the machine. A card that is refused leaves those given before
	// it as they are.
	Present(ctx context.Context, card CardID, pin *secret.Bytes) (Status, error)

	// Begin starts a ceremony.
	Begin(ctx context.Context, plan Plan) (Progress, error)

	// Gather gives a card of the machine to the ceremony: as one that authorises it,
	// or that is to be tested, or erased.
	Gather(ctx context.Context, card CardID, pin *secret.Bytes) (Progress, error)

	// Deal writes the next share to a card, closes it, opens it again and compares
	// what it reads.
	Deal(ctx context.Context, card CardID, pin *secret.Bytes) (Progress, error)

	// Verify reads a dealt card once more. When all are verified, the root key
	// has been rebuilt from what was read off the cards.
	Verify(ctx context.Context, card CardID, pin *secret.Bytes) (Progress, error)

	// Commit does what the ceremony is for: from then on it counts. The caller
	// names the key check value that it saw, so that two screens agree.
	Commit(ctx context.Context, kcv string) (Report, error)

	// Abort ends the ceremony, or the collecting of cards, and leaves nothing:
	// shares written to cards are removed from those that can still be opened.
	Abort(ctx context.Context) error

	// Progress tells how far the ceremony is, also while a step is under way.
	Progress(ctx context.Context) (Progress, error)

	// Seal closes an open machine.
	Seal(ctx context.Context) error
}

// CeremonyKind is what a ceremony does.
type CeremonyKind string

// The kinds of ceremonies.
const (
	Init        CeremonyKind = "init"         // a first root key, dealt to cards
	VerifyCards CeremonyKind = "verify-cards" // a drill: the cards rebuild the root, nothing changes
	Resplit     CeremonyKind = "resplit"      // the same root, dealt anew; the cards before are superseded
	ReplaceCard CeremonyKind = "replace-card" // a resplit without cards that were lost
	RotateRoot  CeremonyKind = "rotate-root"  // a new root; every wrapped key moves to it
	Destroy     CeremonyKind = "destroy"      // the root is gone for good
)

// Plan is what a ceremony shall do.
type Plan struct {
	Kind CeremonyKind `json:"kind"`

	// Shares and Threshold are what is dealt; as they are now when both are 0.
	Shares    int `json:"shares,omitzero"`
	Threshold int `json:"threshold,omitzero"`

	Lost   []string `json:"lost,omitempty"`   // ReplaceCard: serials of the cards that are lost
	Resume bool     `json:"resume,omitzero"`  // RotateRoot, Destroy: take up the one that was interrupted
	People []string `json:"people,omitempty"` // who takes part, as the report names them
}

// Step is where a ceremony stands.
type Step string

// The steps of a ceremony.
const (
	StepGather Step = "gather"
	StepDeal   Step = "deal"
	StepVerify Step = "verify"
	StepCommit Step = "commit"
)

// Progress tells how far a ceremony is.
type Progress struct {
	Ceremony  ID           `json:"ceremony"`
	Kind      CeremonyKind `json:"kind"`
	Step      Step         `json:"step"`
	Gathered  int          `json:"gathered"`
	Need      int          `json:"need"` // cards to gather
	Dealt     int          `json:"dealt"`
	Verified  int          `json:"verified"`
	Shares    int          `json:"shares"`
	Threshold int          `json:"threshold"`
	KCV       string       `json:"kcv"`
	Done      int          `json:"done,omitzero"` // records moved to the next root
	Total     int          `json:"total,omitzero"`
}

// Report is the record of a ceremony that was committed, signed by the machine's
// identity key. Nothing in it is secret.
type Report struct {
	Ceremony ID           `json:"ceremony"`
	Kind     CeremonyKind `json:"kind"`
	Started  time.Time    `json:"started"`
	Ended    time.Time    `json:"ended"`
	Host     string       `json:"host"`
	People   []string     `json:"people"`

	MachineID  ID     `json:"machine_id"`
	RootID     ID     `json:"root_id"`
	Generation uint32 `json:"generation"`
	SplitID    ID     `json:"split_id"`
	Threshold  uint8  `json:"threshold"`
	Shares     uint8  `json:"shares"`
	Region     string `json:"region"`
	KCV        string `json:"kcv"`

	Cards []ReportCard `json:"cards"`
	Notes []string     `json:"notes,omitempty"` // what was left to do, or could not be done

	PublicKey   []byte `json:"public_key"`  // Ed25519, of the machine
	Fingerprint string `json:"fingerprint"` // of the public key: SHA-256, hex
	Signature   []byte `json:"signature,omitempty"`
}

// ReportCard says what a card did in a ceremony.
type ReportCard struct {
	Index  uint8  `json:"index"` // of the share on it after the ceremony, or before it was erased
	Serial string `json:"serial"`
	Label  string `json:"label"`
	Role   string `json:"role"`
}

// Roles of cards in a report.
const (
	RoleAuthorised = "authorised the ceremony"
	RoleDealt      = "got a share, read back and verified"
	RoleTested     = "holds a good share"
	RoleAbsent     = "was not shown"
	RoleErased     = "was erased"
	RoleLost       = "declared lost"
)

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
