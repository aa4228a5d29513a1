package record

import (
	"context"
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/keystore"
)

// plain reports whether an entry is no record: which node does what (kms/lease), and the
// nonces that were used (kms/nonce).
func plain(name string) bool {
	return strings.HasPrefix(name, "lease/") || strings.HasPrefix(name, "nonce/")
}

// Inspect looks at a store without opening a record: it needs no machine, and finds what
// is not of the form that records have. It returns how many there are.
func Inspect(ctx context.Context, s keystore.Store) (records int, findings []error) {
	r, err := readRoot(ctx, s)
	if err != nil {
		return 0, []error{err}
	}
	bad := func(name, format string, args ...any) {
		findings = append(findings, fault.New(fault.RecordDamaged, "record %s: %s", name, fmt.Sprintf(format, args...)))
	}
	k := &Keeper{Store: s}
	if _, err := k.pages(ctx, "", func(entries []keystore.Entry) error {
		for _, e := range entries {
			name, ours := r.name(e.Name)
			switch {
			case e.Name == RootEntry, plain(e.Name):
			case !ours && strings.HasPrefix(e.Name, "g"):
				bad(e.Name, "of another root generation than %d: left by a rotation that was interrupted; the next rotation removes it", r.Generation)
			case !ours:
				bad(e.Name, "not a name that the service gives: somebody else put it there")
			case len(e.Value) < head || binary.BigEndian.Uint64(e.Value) == 0:
				bad(name, "not a sealed record; restore the key store from a backup")
			default:
				records++
			}
		}
		return nil
	}); err != nil {
		findings = append(findings, err)
	}
	return records, findings
}
