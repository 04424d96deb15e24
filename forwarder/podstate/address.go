package podstate

import (
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/penstock-net/penstock/forwarder/control"
)

// Address is the address on the underlay of the daemon that has left pods in a state directory, as peers know it; invalid if none has,
// or it is not known. It needs no Store: a daemon asks before it has one.
func Address(state string) netip.Addr {
	if pods, _ := filepath.Glob(filepath.Join(state, "pods", "*.json")); len(pods) == 0 {
		return netip.Addr{}
	}
	return noted(state)
}

// NoteAddress keeps the address for the next daemon.
func (s *Store) NoteAddress(a netip.Addr) error {
	state := filepath.Dir(s.dir)
	if noted(state) == a {
		return nil
	}
	return control.WriteFileDurably(addressFile(state), []byte(a.String()+"\n"))
}

func addressFile(state string) string { return filepath.Join(state, "address") }

func noted(state string) netip.Addr {
	b, _ := read(addressFile(state))
	a, _ := netip.ParseAddr(strings.TrimSpace(string(b)))
	return a
}
