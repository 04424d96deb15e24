package podstate

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/control"
)

// keep sees to it that what stands under the state directory's name is ours: what was removed is made anew, and what was put in its
// place is locked before it is written to. Another daemon's is left alone.
func (s *Store) keep() error {
	moved, err := s.claim()
	if moved && s.Moved != nil {
		s.Moved()
	}
	return err
}

func (s *Store) claim() (moved bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	mine, err := s.lock.Stat()
	if err != nil {
		return false, err
	}
	// As long as it is open no other directory has its number.
	if there, err := os.Stat(s.state); err != nil || !os.SameFile(mine, there) {
		lock, err := take(s.state)
		if err != nil {
			return false, err
		}
		s.lock.Close()
		s.lock, moved = lock, true
	}
	_, err = os.Stat(s.dir)
	anew := errors.Is(err, fs.ErrNotExist)
	if err := os.MkdirAll(s.damaged(), 0o700); err != nil {
		return moved, err
	}
	return moved || anew, nil
}

// Files are the names of the records that have a file.
func (s *Store) Files() (map[string]bool, error) {
	var entries []fs.DirEntry
	err := s.keep()
	if err == nil {
		entries, err = os.ReadDir(s.dir)
	}
	if err != nil {
		return nil, errors.New(s.trouble(err).String())
	}
	names := map[string]bool{}
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ".json"); ok {
			names[name] = true
		}
	}
	return names, nil
}

// Has is whether a record has a file.
func (s *Store) Has(name string) bool {
	_, err := os.Lstat(s.path(name))
	return err == nil
}

// note remembers how the last record went.
func (s *Store) note(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed = err != nil
}

// trialPatience is how long Writable waits for a trial: CNI STATUS waits for 700 ms.
const trialPatience = 300 * time.Millisecond

// trial is whether a record could be written; trouble is valid once done is closed.
type trial struct {
	began   time.Time
	done    chan struct{}
	trouble *control.StateTrouble
}

// Writable tries whether a record could be written now, and says what is wrong if not. A disk that hangs holds up one trial, and nobody
// who asks: they are told how long it has taken.
func (s *Store) Writable() *control.StateTrouble {
	s.trials.Lock()
	t := s.trial
	if t == nil {
		t = &trial{began: time.Now(), done: make(chan struct{})}
		s.trial = t
		go func() {
			t.trouble = s.attempt()
			s.trials.Lock()
			s.trial = nil
			s.trials.Unlock()
			close(t.done)
		}()
	}
	s.trials.Unlock()
	select {
	case <-t.done:
		return t.trouble
	case <-time.After(trialPatience):
	}
	took := time.Since(t.began)
	if took < slowTrial {
		return nil // a busy disk: an ADD waits for it
	}
	return &control.StateTrouble{Finding: fmt.Sprintf("the state directory %s does not answer: a trial write has taken %s", s.dir, took.Round(time.Second)),
		Remedy: "look at its disk (dmesg)"}
}

// slowTrial is when a disk that does not answer is no longer one that is busy: an ADD would give up.
const slowTrial = 8 * time.Second

// attempt is one trial. Where all is well it does not wait for the disk.
func (s *Store) attempt() *control.StateTrouble {
	err := s.keep()
	if err == nil {
		err = s.try()
	}
	if err == nil {
		return nil
	}
	s.note(err)
	return s.trouble(err)
}

// try writes as much as a record has. That a disk fails only waiting for it tells: so it does if the last record was refused.
func (s *Store) try() error {
	f, err := os.CreateTemp(s.dir, ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if _, err := f.Write(make([]byte, 1024)); err != nil {
		return err
	}
	s.mu.Lock()
	failed := s.failed
	s.mu.Unlock()
	if !failed {
		return nil
	}
	if err := f.Sync(); err != nil {
		return err
	}
	s.note(nil)
	return nil
}

// trouble is what keeps records from being written, and what to do about it.
func (s *Store) trouble(err error) *control.StateTrouble {
	var no syscall.Errno
	if !errors.As(err, &no) { // it says all by itself
		finding, remedy, _ := strings.Cut(err.Error(), ": ")
		return &control.StateTrouble{Finding: finding, Remedy: remedy}
	}
	t := &control.StateTrouble{Finding: fmt.Sprintf("the state directory %s cannot be written (%s)", s.dir, no.Error())}
	switch no {
	case unix.ENOSPC, unix.EDQUOT, unix.EFBIG:
		t.Remedy = "make room there"
	case unix.EROFS:
		t.Remedy = "mount it read-write, or move it with its files to where it can be written and set state to that"
		if _, err := os.Stat(s.state); errors.Is(err, fs.ErrNotExist) {
			t.Finding = fmt.Sprintf("the state directory %s is gone and may not be made by this daemon (%s)", s.state, no.Error())
			t.Remedy = "make it where the daemon may write, as docs/operations.md has it (When somebody else takes away what is ours); a restart would not know the pods that run"
		}
	case unix.EIO:
		t.Remedy = "look at the disk: dmesg says what failed"
	case unix.EACCES, unix.EPERM:
		t.Remedy = "let the daemon write there: lsattr -d and getfacl show what forbids it"
	default:
		t.Remedy = "see what stands in its place: the daemon makes it anew where nothing does"
	}
	return t
}
