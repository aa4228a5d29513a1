package keystore

import (
	"fmt"
	"iter"
)

// CheckTxn reports what is wrong with a transaction, before a backend tries it.
func CheckTxn(compares []Compare, writes []Write) error {
	if len(compares) > MaxTxn || len(writes) > MaxTxn {
		return fmt.Errorf("keystore: more than %d comparisons or writes in one transaction", MaxTxn)
	}
	size := 0
	for _, c := range compares {
		if err := checkName(c.Name); err != nil {
			return err
		}
		size += len(c.Name)
	}
	seen := make(map[string]bool, len(writes))
	for _, w := range writes {
		if err := checkName(w.Name); err != nil {
			return err
		}
		switch {
		case len(w.Value) > MaxValue:
			return fmt.Errorf("keystore: %s: a value of %d bytes; at most %d are allowed", w.Name, len(w.Value), MaxValue)
		case seen[w.Name]:
			return fmt.Errorf("keystore: %s is written twice in one transaction", w.Name)
		}
		seen[w.Name] = true
		size += len(w.Name) + len(w.Value)
	}
	if size > MaxTxnBytes {
		return fmt.Errorf("keystore: a transaction of %d bytes; at most %d are allowed", size, MaxTxnBytes)
	}
	return nil
}

func checkName(name string) error {
	if name == "" || len(name) > MaxName {
		return fmt.Errorf("keystore: a name of %d bytes; 1 to %d are allowed", len(name), MaxName)
	}
	return nil
}

// Batches cuts writes into as few transactions, in order, as the limits allow. They are
// not one transaction: whoever uses it bears that a first part is written alone.
func Batches(writes []Write) iter.Seq[[]Write] {
	return func(yield func([]Write) bool) {
		for len(writes) > 0 {
			n, size := 0, 0
			for n < len(writes) && n < MaxTxn {
				size += len(writes[n].Name) + len(writes[n].Value)
				if n > 0 && size > MaxTxnBytes {
					break
				}
				n++
			}
			if !yield(writes[:n:n]) {
				return
			}
			writes = writes[n:]
		}
	}
}
