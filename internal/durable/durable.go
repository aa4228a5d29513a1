// Package durable replaces small JSON files so that a crash at any moment leaves
// the old content or the new, and reads them back.
package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/trikey/trikey/internal/fault"
)

// Read decodes the JSON file at path into a value. A file that is not there is not
// found; one with a member that the value does not have is damaged.
func Read(path string, into any) (found bool, err error) {
	raw, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return false, fault.Wrap(fault.RecordDamaged, err, "read %s", path)
	}
	if err := json.Unmarshal(raw, into, json.RejectUnknownMembers(true)); err != nil {
		return false, fault.Wrap(fault.RecordDamaged, err, "%s is damaged; restore it from a backup", path)
	}
	return true, nil
}

// Write replaces a file of dir by a value as JSON, mode 0600. When it returns nil, the
// new content is on the disk.
func Write(dir, name string, value any) error {
	raw, err := json.Marshal(value, jsontext.WithIndent("  "))
	if err != nil {
		return err
	}
	return WriteBytes(dir, name, append(raw, '\n'))
}

// Remove removes files of dir, for good when it returns nil. One that is not there is
// removed already.
func Remove(dir string, names ...string) error {
	var failed error
	for _, name := range names {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed = errors.Join(failed, err)
		}
	}
	return errors.Join(failed, syncDir(dir))
}

// WriteBytes is Write of bytes as they are.
func WriteBytes(dir, name string, content []byte) (err error) {
	f, err := os.CreateTemp(dir, name+".new-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	if _, err := f.Write(content); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), filepath.Join(dir, name)); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
