package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Pending deletes: a DEL that finds the daemon dead must succeed all the same, so it leaves a file beside the socket and the
// daemon does the daemon's part later.
//
//	/run/penstock/pending/ps0123456789a.json   {"container":…,"interface":…}
//	                      └ DeviceName: even a file that cannot be read says which pod is meant

// PendingDir is where the deletes for the daemon behind a socket wait: pending beside penstock.sock, and NAME.pending beside any
// other NAME.sock, so that daemons whose sockets are in one directory do not take each other's.
func PendingDir(socket string) string {
	dir, name := filepath.Split(socket)
	if name == filepath.Base(DefaultSocket) {
		return filepath.Join(dir, "pending")
	}
	return filepath.Join(dir, strings.TrimSuffix(name, ".sock")+".pending")
}

// PendingPath is the file of one pod's delete.
func PendingPath(socket, container, iface string) string {
	return filepath.Join(PendingDir(socket), DeviceName(container, iface)+".json")
}

// WritePending leaves a delete for the daemon. When it returns nil the file is on disk. Writing it twice is writing it once.
func WritePending(socket string, r DetachRequest) error {
	if r.Container == "" || r.Interface == "" {
		return errors.New("a delete cannot be queued without container and interface")
	}
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	dir := PendingDir(socket)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("the delete of %s/%s cannot be queued: %w", r.Container, r.Interface, err)
	}
	if err := WriteFileDurably(PendingPath(socket, r.Container, r.Interface), b); err != nil {
		return fmt.Errorf("the delete of %s/%s cannot be queued: %w", r.Container, r.Interface, err)
	}
	return nil
}

// Pending lists the deletes that wait: by file name without .json, which is the DeviceName. A file that is not understood has
// an empty request. Files being written are left out.
func Pending(socket string) (map[string]DetachRequest, error) {
	dir := PendingDir(socket)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("the queued deletes cannot be listed: %w", err)
	}
	all := map[string]DetachRequest{}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok || !e.Type().IsRegular() {
			continue
		}
		b, err := readSmall(filepath.Join(dir, e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // done meanwhile
		}
		var r DetachRequest
		if err != nil || json.Unmarshal(b, &r) != nil || DeviceName(r.Container, r.Interface) != name {
			r = DetachRequest{}
		}
		all[name] = r
	}
	return all, nil
}

// RemovePending removes a delete that is done; that there is none is no error.
func RemovePending(socket, name string) error {
	err := os.Remove(filepath.Join(PendingDir(socket), name+".json"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("a queued delete cannot be removed: %w", err)
	}
	return nil
}

// SweepPending removes what plugins have left that were killed while they queued a delete, if it is older than an age: a younger
// one may still be writing.
func SweepPending(socket string, age time.Duration) error {
	dir := PendingDir(socket)
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the queued deletes cannot be listed: %w", err)
	}
	var errs []error
	for _, e := range entries {
		fi, err := e.Info()
		if err != nil || !strings.HasPrefix(e.Name(), newPrefix) || time.Since(fi.ModTime()) < age {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("half a queued delete cannot be removed: %w", err))
		}
	}
	return errors.Join(errs...)
}

// newPrefix is that of files being written.
const newPrefix = ".new-"

func readSmall(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, MaxBody))
}

// WriteFileDurably replaces a file so that whoever reads it finds the old or the new content, whole, whatever happens, and the
// new one once it has returned nil. Mode 0600. On an error nothing has changed.
func WriteFileDurably(path string, b []byte) error { return replaceFile(path, b, SyncDir) }

func replaceFile(path string, b []byte, syncDir func(string) error) (err error) {
	dir := filepath.Dir(path)
	old, unread := readSmall(path)
	f, err := os.CreateTemp(dir, newPrefix+"*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if _, err = f.Write(b); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	if err = syncDir(dir); err != nil {
		putBack(path, old, unread)
	}
	return err
}

// putBack makes a file what it was before it was replaced, as well as a disk allows that has just failed: what is found there later is
// believed, and whoever wanted it written was told that it is not.
func putBack(path string, old []byte, unread error) {
	temp := filepath.Join(filepath.Dir(path), newPrefix+filepath.Base(path))
	if errors.Is(unread, fs.ErrNotExist) {
		os.Remove(path)
		return
	}
	// Where the old content cannot be had or written, the new one is better than none: it may be all that is known of a pod that runs.
	if unread != nil || len(old) == MaxBody || os.WriteFile(temp, old, 0o600) != nil || os.Rename(temp, path) != nil {
		os.Remove(temp)
	}
}

// SyncDir brings the names in a directory to disk.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// IsPending is whether a delete waits under a file name that Pending has listed.
func IsPending(socket, name string) bool {
	_, err := os.Lstat(filepath.Join(PendingDir(socket), name+".json"))
	return err == nil
}
