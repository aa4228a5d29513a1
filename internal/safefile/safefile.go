// Package safefile replaces files so that a crash at any moment leaves the old content
// or the new.
package safefile

import (
	"errors"
	"os"
	"path/filepath"
)

// Write replaces the file name in dir, or makes it, with mode 0600. When it returns,
// the content is on the disk.
func Write(dir, name string, content []byte) (err error) {
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
	return SyncDir(dir)
}

// SyncDir makes sure that what was made in a directory, or removed, stays so.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
