// Package life says what states a key version can be in, which follows which, and how
// the times of its life are written.
package life

import (
	"slices"

	"github.com/trikey/trikey/internal/fault"
)

// State is the state of a key version, in the terms of NIST SP 800-57 part 1 revision 5,
// section 7.
type State string

// The states of a key version.
const (
	PreActive   State = "pre-active"  // made, and not used yet
	Active      State = "active"      // seals and opens
	Suspended   State = "suspended"   // does neither, for a time
	Deactivated State = "deactivated" // opens only: its cryptoperiod for sealing is over
	Compromised State = "compromised" // opens only, and only for whom that is granted
	Destroyed   State = "destroyed"   // its key is gone
)

// States returns every state, in the order of a life.
func States() []State {
	return []State{PreActive, Active, Suspended, Deactivated, Compromised, Destroyed}
}

// transitions are those of SP 800-57 part 1, section 7. Nothing comes back from
// deactivation: a key that shall seal again gets a new version. Nothing but destruction
// follows a compromise.
var transitions = map[State][]State{
	PreActive:   {Active, Compromised, Destroyed},
	Active:      {Suspended, Deactivated, Compromised, Destroyed},
	Suspended:   {Active, Deactivated, Compromised, Destroyed},
	Deactivated: {Compromised, Destroyed},
	Compromised: {Destroyed},
	Destroyed:   nil,
}

// May reports whether a version of this state may become one of that.
func (s State) May(to State) bool { return slices.Contains(transitions[s], to) }

// To returns the state after a transition, or fault.Conflict where there is none.
func (s State) To(to State) (State, error) {
	if !s.May(to) {
		return s, fault.New(fault.Conflict, "a version that is %s cannot become %s", s, to)
	}
	return to, nil
}
