package bolt

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/trikey/trikey/internal/fault"
)

// guard runs f, and turns what a damaged page makes of it, a panic of bbolt or a
// fault of the memory mapping, into fault.StoreDamaged.
func (s *Store) guard(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		switch r := recover().(type) {
		case nil:
		case runtime.Error:
			err = s.damaged(r)
		default:
			err = s.damaged(fmt.Errorf("%v", r))
		}
	}()
	return f()
}

func (s *Store) damaged(cause error) error {
	return fault.Wrap(fault.StoreDamaged, cause, "the key store %s is damaged; it was left as it is: "+
		"keep a copy of it and restore a backup", s.cfg.Path)
}
