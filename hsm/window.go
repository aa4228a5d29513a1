package hsm

import "context"

// Window is a machine waiting for the shares of custodians who are elsewhere. Nothing
// in it is secret. Its key is made for it alone, so a share that was sealed to one
// window is worthless to any other.
type Window struct {
	ID        ID     `json:"window"`
	MachineID ID     `json:"machine_id"`
	SplitID   ID     `json:"split_id"`
	Need      int    `json:"threshold"`  // cards that open the machine
	Have      int    `json:"have"`       // cards given, here or elsewhere
	PublicKey []byte `json:"public_key"` // HPKE, DHKEM(X25519, HKDF-SHA256)
}

// Submission is a share on its way to a window.
type Submission struct {
	Window ID     `json:"window"`
	Sealed []byte `json:"sealed"` // encapsulated key | ciphertext
}

// Receipt tells a custodian who is elsewhere what came of a submission.
type Receipt struct {
	State State `json:"state"`
	Have  int   `json:"have"`
	Need  int   `json:"need"`
}

// Windows is the console's side of a window. One is open at a time; it closes when the
// machine opens, is sealed or begins a ceremony, when no card comes for too long, when
// too many submissions were refused, when its owner no longer watches it, and when
// another takes its place. A call about a window that is not open fails with
// fault.NoWindow.
type Windows interface {
	// OpenWindow opens a window in place of any other.
	OpenWindow(ctx context.Context) (Window, error)

	// WatchWindow tells how far a window is, and keeps it open for a while longer.
	WatchWindow(ctx context.Context, id ID) (Window, error)

	// CloseWindow closes a window; the cards given so far stay given.
	CloseWindow(ctx context.Context, id ID) error
}

// Submissions is the network's side of a window.
type Submissions interface {
	// Window returns the window that is open.
	Window(ctx context.Context) (Window, error)

	// Submit gives the share in a submission to the unsealing, as Console.Present
	// gives that on a card.
	Submit(ctx context.Context, in Submission) (Receipt, error)
}
