package hsm

import (
	"context"
	"sync/atomic"
)

// PINTryLimit is how many tries of a card's PIN may fail at a machine before it makes
// another only when a person confirms it. Most cards lock at the third; not all tell.
const PINTryLimit = 2

// PINTriesLeft returns how many tries the machine makes before it asks a person to
// confirm one.
func (c CardInfo) PINTriesLeft() int {
	used := c.PINTries
	if c.PINCountLow {
		used = max(used, 1) // at another machine: at least once
	}
	if c.PINLocked || c.PINFinalTry {
		return 0
	}
	return max(PINTryLimit-used, 0)
}

type lastTryKey struct{}

// lastTry is a confirmation. It is good for one try: a step that logs in more than
// once must not make more of it than the person has confirmed.
type lastTry struct {
	serial string
	spent  atomic.Bool
}

// ConfirmLastTry returns the context of a request for which a person has confirmed, by
// typing the card's serial, that its PIN may be tried once although that may lock the
// card. It travels in the context since it belongs to one request, not to the card.
func ConfirmLastTry(ctx context.Context, serial string) context.Context {
	if serial == "" {
		return ctx
	}
	return context.WithValue(ctx, lastTryKey{}, &lastTry{serial: serial})
}

// LastTry returns the serial that was confirmed, "" where none was.
func LastTry(ctx context.Context) string {
	if l, ok := ctx.Value(lastTryKey{}).(*lastTry); ok {
		return l.serial
	}
	return ""
}

// SpendLastTry reports whether a try on the card of that serial was confirmed and not
// made yet. From then on it counts as made.
func SpendLastTry(ctx context.Context, serial string) bool {
	l, ok := ctx.Value(lastTryKey{}).(*lastTry)
	return ok && l.serial == serial && l.spent.CompareAndSwap(false, true)
}
