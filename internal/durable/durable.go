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

// Write replaces a file of dir, mode 0600. When it returns nil, the new content is on
// the disk.
func Write(dir, name string, value any) (err error) {
	raw, err := json.Marshal(value, jsontext.WithIndent("  "))
	if err != nil {
		return err
	}
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
	if _, err := f.Write(append(raw, '\n')); err != nil {
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
