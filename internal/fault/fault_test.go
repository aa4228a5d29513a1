package fault_test

import (
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/trikey/trikey/internal/fault"
)

func TestIsComparesCodes(t *testing.T) {
	err := fmt.Errorf("outer: %w", fault.Wrap(fault.StoreDamaged, io.ErrUnexpectedEOF, "page %d", 7))
	for _, target := range []error{fault.StoreDamaged, fault.New(fault.StoreDamaged, "other text"), io.ErrUnexpectedEOF} {
		if !errors.Is(err, target) {
			t.Errorf("errors.Is(%v, %v) = false", err, target)
		}
	}
	if errors.Is(err, fault.StoreLocked) {
		t.Error("a damaged store is a locked one")
	}
	if got, want := err.Error(), "outer: page 7: unexpected EOF"; got != want {
		t.Errorf("text %q, want %q", got, want)
	}
}

func TestCodeOf(t *testing.T) {
	for _, test := range []struct {
		err  error
		want fault.Code
	}{
		{nil, ""},
		{io.EOF, fault.Internal},
		{fault.KeyNotFound, fault.KeyNotFound},
		{fmt.Errorf("x: %w", fault.New(fault.Sealed, "")), fault.Sealed},
	} {
		if got := fault.CodeOf(test.err); got != test.want {
			t.Errorf("CodeOf(%v) = %q, want %q", test.err, got, test.want)
		}
	}
}

func TestUnknownCodeIsInternal(t *testing.T) {
	c := fault.Code("from_a_newer_release")
	if c.Known() || c.Status() != 500 || c.Exit() != fault.ExitFailed || c.Retryable() {
		t.Errorf("an unknown code reads as %d/%d/%v", c.Status(), c.Exit(), c.Retryable())
	}
}
