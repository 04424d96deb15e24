package podstate

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/control"
)

// maxFile bounds what is read of one file.
const maxFile = 1 << 20

// Store is the state directory. Calls for different pods may run side by side; those for one pod are the caller's to order.
type Store struct {
	state    string
	dir      string // of the pods
	released string
	boot     string
	fresh    bool

	// Moved is called when another directory stands there than before, or it was made anew: what it lacks the caller must write.
	Moved func()

	mu     sync.Mutex // of what follows
	lock   *os.File   // the state directory
	failed bool       // the last record could not be written

	trials sync.Mutex
	trial  *trial // under way; nil: none
}

// Open makes the directory if it is not there, and takes it for this daemon until Close: a second one, in another network
// namespace, would take the first one's pods for ones that are gone. boot is the kernel's boot id.
//
// The lock is on the directory itself, by flock(2): the kernel gives it up when the process dies, however it dies, it takes no
// room on a full disk, and who only reads needs none.
func Open(state, boot string) (_ *Store, err error) {
	s := &Store{state: state, dir: filepath.Join(state, "pods"), released: filepath.Join(state, "released"), boot: boot}
	if s.lock, err = take(state); err != nil {
		return nil, fmt.Errorf("state: %w", err)
	}
	defer func() {
		if err != nil {
			s.lock.Close()
		}
	}()
	err = os.Mkdir(s.dir, 0o700)
	s.fresh = err == nil
	if err == nil || errors.Is(err, fs.ErrExist) {
		err = os.MkdirAll(s.damaged(), 0o700)
	}
	if err != nil {
		return nil, fmt.Errorf("state: the directory cannot be made: %w", err)
	}
	return s, nil
}

// take makes a directory if it is not there, and locks it.
func take(state string) (lock *os.File, err error) {
	if err := os.MkdirAll(state, 0o700); err != nil {
		return nil, fmt.Errorf("the directory cannot be made: %w", err)
	}
	if lock, err = os.Open(state); err != nil {
		return nil, fmt.Errorf("the directory cannot be opened: %w", err)
	}
	switch err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); {
	case errors.Is(err, unix.EWOULDBLOCK):
		err = fmt.Errorf("another penstockd works with the directory %s: stop it, or give this one a state and a control.socket of its own", state)
	case err != nil:
		err = fmt.Errorf("the directory %s cannot be locked: %w: set state to a directory on a local disk", state, err)
	}
	if err != nil {
		lock.Close()
		return nil, err
	}
	return lock, nil
}

// Close gives the directory up.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lock.Close()
}

// Discard is Close for a daemon that never came to work with it: what Open has made goes again, so that the next Open finds the
// directory as fresh as this one did.
func (s *Store) Discard() error {
	if s.fresh { // what is not empty stays
		os.Remove(s.damaged())
		os.Remove(s.dir)
	}
	return s.Close()
}

// Fresh is whether no daemon has ever kept pods here, or a cleanup has removed them.
func (s *Store) Fresh() bool { return s.fresh }

func (s *Store) damaged() string { return filepath.Join(s.dir, "damaged") }

func (s *Store) path(name string) string { return filepath.Join(s.dir, name+".json") }

// Boot is the boot id that new records carry.
func (s *Store) Boot() string { return s.boot }

// Save writes a record. When it returns nil the record is on disk; on an error, which is control.NoSpace, nothing has changed.
func (s *Store) Save(r *Record) error {
	return s.write(r, func(path string, b []byte) error { return control.WriteFileDurably(path, b) })
}

// write has a record written in a directory that is ours.
func (s *Store) write(r *Record, replace func(path string, b []byte) error) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err = s.keep(); err == nil {
		err = replace(s.path(r.Name()), append(b, '\n'))
	}
	s.note(err)
	if err != nil {
		t := s.trouble(err)
		return control.Errorf(control.NoSpace, "%s cannot be recorded, as %s: %s; nothing was changed", r.Key(), t.Finding, t.Remedy)
	}
	return nil
}

// Remove forgets a pod: its record, and what is left of a damaged one. That there is none is no error.
func (s *Store) Remove(name string) error {
	gone := false
	for _, path := range []string{s.path(name), filepath.Join(s.damaged(), name+".json")} {
		switch err := os.Remove(path); {
		case err == nil:
			gone = true
		case !errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("the state file cannot be removed: %w", err)
		}
	}
	if !gone {
		return nil
	}
	if err := control.SyncDir(s.dir); err != nil {
		return fmt.Errorf("the removal of a state file cannot be brought to disk: %w", err)
	}
	return nil
}

// Damaged is a file that could not be read as a record.
type Damaged struct {
	Name      string       // without .json; control.DeviceName of the pod that it was about
	Path      string       // where it lies now
	Addresses []netip.Addr // what looks like an address in it
	Network   string       // if that can be read
	Reason    string
	Since     time.Time // when it was last written
	OldBoot   bool      // it names another boot than this one: its pod is gone
	Fresh     bool      // found damaged just now
}

// Load reads everything. Damaged files are moved aside and never an error; leftovers of writes that were cut short are removed.
func (s *Store) Load() (records []*Record, damaged []Damaged, err error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, nil, fmt.Errorf("state: the pods cannot be listed: %w", err)
	}
	fresh := map[string]string{}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".new-") {
			os.Remove(filepath.Join(s.dir, e.Name()))
			continue
		}
		name, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok {
			continue
		}
		b, err := read(s.path(name))
		var r *Record
		if err == nil {
			r, err = decode(name, b)
		}
		if err == nil {
			records = append(records, r)
			continue
		}
		if e := os.Rename(s.path(name), filepath.Join(s.damaged(), name+".json")); e != nil {
			return nil, nil, fmt.Errorf("state: the damaged file %s cannot be moved aside: %w", s.path(name), e)
		}
		fresh[name] = err.Error()
	}
	entries, err = os.ReadDir(s.damaged())
	if err != nil {
		return nil, nil, fmt.Errorf("state: the damaged files cannot be listed: %w", err)
	}
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ".json"); ok {
			d := s.salvage(name)
			if reason, now := fresh[name]; now {
				d.Reason, d.Fresh = reason, true
			}
			damaged = append(damaged, d)
		}
	}
	return records, damaged, nil
}

var (
	addressLike = regexp.MustCompile(`"([0-9]{1,3}(?:\.[0-9]{1,3}){3}|[0-9a-fA-F]{0,4}:[0-9a-fA-F:.]+)"`)
	networkLike = regexp.MustCompile(`"network":\s*"([^"\\]+)"`)
	bootLike    = regexp.MustCompile(`"bootID":\s*"([0-9a-f-]{36})"`)
)

// salvage finds in a damaged file what may keep an address from being given twice. A MAC has the shape of no address.
func (s *Store) salvage(name string) Damaged {
	d := Damaged{Name: name, Path: filepath.Join(s.damaged(), name+".json"), Reason: "the file is damaged"}
	if fi, err := os.Lstat(d.Path); err == nil {
		d.Since = fi.ModTime()
	}
	b, err := read(d.Path)
	if err != nil {
		d.Reason = err.Error()
		return d
	}
	for _, m := range addressLike.FindAllSubmatch(b, -1) {
		if a, err := netip.ParseAddr(string(m[1])); err == nil && a.Zone() == "" && !a.Is4In6() {
			d.Addresses = append(d.Addresses, a)
		}
	}
	if m := networkLike.FindSubmatch(b); m != nil {
		d.Network = string(m[1])
	}
	if m := bootLike.FindSubmatch(b); m != nil {
		d.OldBoot = string(m[1]) != s.boot
	}
	return d
}

// read reads a regular file; a FIFO or a link in its place is an error and no wait.
func read(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a file", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = fmt.Errorf("it is longer than %d bytes", maxFile)
	}
	return b, err
}

// Mark writes a record without waiting for the disk: for a step that a killed daemon must find, and that no power cut needs.
func (s *Store) Mark(r *Record) error {
	return s.write(r, func(path string, b []byte) error {
		f, err := os.CreateTemp(s.dir, ".new-*")
		if err != nil {
			return err
		}
		_, err = f.Write(b)
		if err = errors.Join(err, f.Close()); err == nil {
			err = os.Rename(f.Name(), path)
		}
		if err != nil {
			os.Remove(f.Name())
		}
		return err
	})
}
