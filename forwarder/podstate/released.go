package podstate

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/ipam"
)

// maxReleased is when the list of released addresses is begun anew.
const maxReleased = 64 << 10

// NoteReleased appends addresses that are given back now, so that they wait after a restart too. It is not brought to disk: a
// daemon that was killed finds it, and after a power cut no pod is left that could mind.
func (s *Store) NoteReleased(addresses []netip.Addr, now time.Time) error {
	f, err := os.OpenFile(s.released, os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	var b bytes.Buffer
	for _, a := range addresses {
		fmt.Fprintf(&b, "%d %s\n", now.UnixMilli(), a)
	}
	if _, err := f.Write(b.Bytes()); err != nil {
		return err
	}
	if fi, err := f.Stat(); err == nil && fi.Size() > maxReleased {
		return s.compact(now)
	}
	return nil
}

// compact keeps only what still waits. Two at a time may lose a line, which costs a wait and nothing else.
func (s *Store) compact(now time.Time) error {
	var b bytes.Buffer
	for _, w := range s.Released() {
		if now.Sub(w.Since) < ipam.Wait {
			fmt.Fprintf(&b, "%d %s\n", w.Since.UnixMilli(), w.Address)
		}
	}
	temp := s.released + ".new"
	if err := os.WriteFile(temp, b.Bytes(), 0o600); err != nil {
		return err
	}
	return os.Rename(temp, s.released)
}

// Released lists what was noted, oldest first. What cannot be read is left out.
func (s *Store) Released() (list []ipam.Waiting) {
	b, err := read(s.released)
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(b)) {
		ms, address, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		t, err := strconv.ParseInt(ms, 10, 64)
		a, err2 := netip.ParseAddr(address)
		if ok && err == nil && err2 == nil && strings.HasSuffix(line, "\n") {
			list = append(list, ipam.Waiting{Address: a, Since: time.UnixMilli(t)})
		}
	}
	return list
}

// TakenAt is when a record's addresses were given, as a note of their release then would be.
func TakenAt(r *Record) (list []ipam.Waiting) {
	for _, a := range r.Addresses {
		list = append(list, ipam.Waiting{Address: a, Since: r.Created})
	}
	return list
}

// ByTime orders notes.
func ByTime(a, b ipam.Waiting) int { return a.Since.Compare(b.Since) }
