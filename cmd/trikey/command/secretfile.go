package command

import (
	"io"
	"os"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// maxSecretFile bounds a PIN or another secret in a file.
const maxSecretFile = 4096

// readSecretFile reads a secret from a file that only its owner can read. Line
// ends after it are not part of it.
func readSecretFile(path string) (*secret.Bytes, error) {
	if path == "" {
		return nil, fault.New(fault.BadConfig, "no file is named")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fault.Wrap(fault.BadConfig, err, "the file cannot be read")
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Mode().IsRegular() && info.Mode().Perm()&0o077 != 0 {
		return nil, fault.New(fault.FileMode, "%s can be read by others than its owner (mode %04o): chmod 600 %s", path, info.Mode().Perm(), path)
	}
	return readSecret(f)
}

func readSecret(r io.Reader) (*secret.Bytes, error) {
	whole, err := secret.Read(r, maxSecretFile)
	if err != nil {
		return nil, fault.Wrap(fault.BadRequest, err, "the secret cannot be read")
	}
	defer whole.Wipe()
	var trimmed *secret.Bytes
	err = whole.Use(func(b []byte) (err error) {
		n := len(b)
		for n > 0 && (b[n-1] == '\n' || b[n-1] == '\r') {
			n--
		}
		trimmed, err = secret.Fill(n, func(p []byte) error { copy(p, b[:n]); return nil })
		return err
	})
	return trimmed, err
}
