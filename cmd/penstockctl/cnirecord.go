package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/penstock-net/penstock/forwarder/control"
)

// recordName is the file beside the list in which install notes what it has written. No runtime reads a file of that name.
const recordName = "penstock.installed"

// record is what install has written and uninstall may remove: the sums of the files' contents, "" for a file that was not
// written or is gone again.
type record struct {
	List   string `json:"list,omitempty"`
	Plugin string `json:"plugin,omitempty"`
}

func (f *cniFiles) readRecord() (r record, err error) {
	path := filepath.Join(f.confDir, recordName)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err != nil {
		return r, fmt.Errorf("what cni install has written is not known, as %s cannot be read: %w: remove it, and what it stands for, by hand", path, err)
	}
	return r, nil
}

// writeRecord removes the file when there is nothing to remember.
func (f *cniFiles) writeRecord(r record) error {
	path := filepath.Join(f.confDir, recordName)
	if r == (record{}) {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s cannot be removed: %w", path, err)
		}
		return nil
	}
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return writeInto(path, bytes.NewReader(append(b, '\n')), 0o600)
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// sumOf is the digest of a file's contents, "" for one that is not there or cannot be read.
func sumOf(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return digest(b)
}

// writeInto makes the directory as well: those of CNI are made by whoever comes first.
func writeInto(path string, content io.Reader, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("%s cannot be written: %w", path, err)
	}
	return writeAtomically(path, content, mode)
}

// writeAtomically writes a file so that others see it whole or not at all, also after a power failure.
func writeAtomically(path string, content io.Reader, mode fs.FileMode) (err error) {
	dir := filepath.Dir(path)
	fail := func(err error) error { return fmt.Errorf("%s cannot be written: %w", path, err) }
	tmp, err := os.CreateTemp(dir, ".penstock-") // no runtime reads a file of that name
	if err != nil {
		return fail(err)
	}
	defer func() {
		if err != nil {
			tmp.Close()
			os.Remove(tmp.Name())
		}
	}()
	if _, err := io.Copy(tmp, content); err != nil {
		return fail(err)
	}
	if err := errors.Join(tmp.Chmod(mode), tmp.Sync(), tmp.Close()); err != nil {
		return fail(err)
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return fail(err)
	}
	return control.SyncDir(dir)
}
