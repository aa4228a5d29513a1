// Package softhsm makes SoftHSM tokens in a directory of their own, for the demo
// and for tests. Nothing outside the directory is read or changed.
//
// A Reader here is a copy of the library with a configuration: two readers are two
// instances of the library, as two makers' drivers would be.
package softhsm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/p11"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// ModuleVariable names the library where it is not in its usual place.
const ModuleVariable = "TRIKEY_SOFTHSM_MODULE"

// Find returns the path of the SoftHSM library.
func Find() (string, error) {
	if path := os.Getenv(ModuleVariable); path != "" {
		return path, nil
	}
	for _, pattern := range []string{
		"/usr/lib/softhsm/libsofthsm2.so", "/usr/lib/*/softhsm/libsofthsm2.so", "/usr/lib64/softhsm/libsofthsm2.so",
		"/usr/local/lib/softhsm/libsofthsm2.so", "/opt/homebrew/lib/softhsm/libsofthsm2.so",
	} {
		if found, _ := filepath.Glob(pattern); len(found) > 0 {
			return found[0], nil
		}
	}
	return "", fault.New(fault.ModuleFault, "SoftHSM is not installed: apt-get install softhsm2, or set %s to libsofthsm2.so", ModuleVariable)
}

// NewReader makes dir, with lib/softhsm.so, softhsm2.conf and tokens/ in it, and returns
// the module there.
func NewReader(dir string) (p11.ModuleConfig, error) {
	var cfg p11.ModuleConfig
	dir, err := filepath.Abs(dir)
	if err != nil {
		return cfg, err
	}
	library, err := Find()
	if err != nil {
		return cfg, err
	}
	content, err := os.ReadFile(library)
	if err != nil {
		return cfg, fault.Wrap(fault.ModuleFault, err, "read the SoftHSM library")
	}
	tokens, conf := filepath.Join(dir, "tokens"), filepath.Join(dir, "softhsm2.conf")
	cfg = p11.ModuleConfig{Path: filepath.Join(dir, "lib", "softhsm.so"), Env: map[string]string{"SOFTHSM2_CONF": conf}}
	return cfg, errors.Join(
		os.MkdirAll(tokens, 0o700), os.MkdirAll(filepath.Dir(cfg.Path), 0o700),
		os.WriteFile(cfg.Path, content, 0o600),
		os.WriteFile(conf, fmt.Appendf(nil, "directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\nslots.removable = true\n", tokens), 0o600),
	)
}

// NewToken makes one more token in a reader.
func NewToken(cfg p11.ModuleConfig, label string, pin *secret.Bytes) (hsm.CardID, error) {
	// The SO PIN is drawn and forgotten: a token of the demo is never unlocked.
	soPIN, err := NewPIN(16)
	if err != nil {
		return hsm.CardID{}, err
	}
	defer soPIN.Wipe()
	return p11.InitToken(cfg, label, soPIN, pin)
}

// NewPIN draws a PIN of n digits.
func NewPIN(n int) (*secret.Bytes, error) {
	random, err := secret.Random(n)
	if err != nil {
		return nil, err
	}
	return random, random.Use(func(b []byte) error {
		for i := range b {
			b[i] = '0' + b[i]%10
		}
		return nil
	})
}
