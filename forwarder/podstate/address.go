package podstate

import (
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/penstock-net/penstock/forwarder/control"
)

// Address is the address on the underlay of the last daemon of a state directory, as peers know it; invalid if there was none, or it is
// not known. It needs no Store: a daemon asks before it has one.
func Address(state string) netip.Addr {
	b, _ := read(addressFile(state))
	a, _ := netip.ParseAddr(strings.TrimSpace(string(b)))
	return a
}

// NoteAddress keeps the address for the next daemon.
func (s *Store) NoteAddress(a netip.Addr) error {
	state := filepath.Dir(s.dir)
	if Address(state) == a {
		return nil
	}
	return control.WriteFileDurably(addressFile(state), []byte(a.String()+"\n"))
}

func addressFile(state string) string { return filepath.Join(state, "address") }
