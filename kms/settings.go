package kms

import (
	"context"
	"regexp"
	"unicode"
	"unicode/utf8"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms/life"
	"github.com/trikey/trikey/kms/policy"
)

// Settings are what an administrator says of a key. The zero value is a key for every app
// that is granted it, which lives until somebody ends it.
type Settings struct {
	Description string            `json:"description,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`

	// Owner is the app that the key belongs to; no other can be granted it, or use
	// it under an older grant.
	Owner string `json:"owner,omitempty"`

	Rotate      life.Period `json:"rotate,omitzero"`       // a new version each such time
	RotateAfter uint64      `json:"rotate_after,omitzero"` // and after so many sealings

	// Retain is how long a version opens after it has ceased to seal; then it is
	// destroyed. Zero keeps versions for ever.
	Retain life.Period `json:"retain,omitzero"`

	Context policy.ContextRule `json:"context,omitzero"`
}

// Bounds of what describes a key.
const (
	maxDescription = 256 // bytes
	maxLabels      = 16
	maxLabelValue  = 128 // bytes
)

var labelName = regexp.MustCompile(`^[a-z][a-z0-9._/-]{0,62}$`)

func plain(text string, limit int) bool {
	if len(text) > limit || !utf8.ValidString(text) {
		return false
	}
	for _, r := range text {
		if unicode.IsControl(r) {
			return false
		}
	}
	return true
}

func (s *Settings) check() error {
	if !plain(s.Description, maxDescription) {
		return fault.New(fault.BadRequest, "description: longer than %d bytes, or not plain text of one line", maxDescription)
	}
	if len(s.Labels) > maxLabels {
		return fault.New(fault.BadRequest, "labels: %d are given, at most %d are allowed", len(s.Labels), maxLabels)
	}
	for name, value := range s.Labels {
		if !labelName.MatchString(name) {
			return fault.New(fault.BadRequest, "labels: the name %.64q is not a small letter followed by at most 62 small letters, digits, dots, slashes, dashes "+
				"or underscores", name)
		}
		if !plain(value, maxLabelValue) {
			return fault.New(fault.BadRequest, "labels.%s: longer than %d bytes, or not plain text of one line", name, maxLabelValue)
		}
	}
	return nil
}

// settings returns what was said of the key; the zero value where nothing was.
func (k *Key) settings() Settings {
	if k.Settings == nil {
		return Settings{}
	}
	return *k.Settings
}

func (k *Key) owner() string {
	if k.Settings == nil {
		return ""
	}
	return k.Settings.Owner
}

// serves reports whether the app may be granted the key.
func (k *Key) serves(app string) bool {
	owner := k.owner()
	return !k.Tokens && (owner == "" || owner == app)
}

// checkSettings checks settings and what they refer to. The owner of a key in a reserved
// range is the app that it is reserved for.
func (l *loaded) checkSettings(index uint32, s Settings) error {
	if err := s.check(); err != nil {
		return err
	}
	if s.Owner != "" {
		if _, err := l.apps.Find(s.Owner); err != nil {
			return err
		}
	}
	if app := l.ranges.of(index); app != "" && app != s.Owner {
		return fault.New(fault.Forbidden, "index %d is reserved for the app %q: a key there must be owned by it (--owner %s)", index, app, app)
	}
	return nil
}

// ChangeKey lets f change a key's settings.
func (s *Service) ChangeKey(ctx context.Context, who Actor, index uint32, f func(*Settings) error) (*Key, error) {
	return s.change(ctx, who, index, "key changed", func(l *loaded, k *Key) error {
		settings := k.settings()
		if err := f(&settings); err != nil {
			return err
		}
		k.Settings = &settings
		return l.checkSettings(index, settings)
	})
}
