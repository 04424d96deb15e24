package podstate

import (
	"path/filepath"
	"strings"

	"github.com/penstock-net/penstock/forwarder/control"
)

// Device is host.device of the daemon that worked with a state directory last; empty if none has said. Where it has another name now, the
// old device is left over.
func Device(state string) string {
	b, _ := read(filepath.Join(state, "device"))
	return strings.TrimSpace(string(b))
}

// NoteDevice keeps the device's name for the next daemon.
func (s *Store) NoteDevice(name string) error {
	state := filepath.Dir(s.dir)
	if Device(state) == name {
		return nil
	}
	return control.WriteFileDurably(filepath.Join(state, "device"), []byte(name+"\n"))
}
