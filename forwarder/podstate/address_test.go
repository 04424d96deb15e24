package podstate

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"
)

// TestAddress: it is known once noted, and what is no address is none.
func TestAddress(t *testing.T) {
	state := t.TempDir()
	s, err := Open(state, "boot-1")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	is := func(want netip.Addr) {
		t.Helper()
		if got := Address(state); got != want {
			t.Errorf("%v, want %v", got, want)
		}
	}
	is(netip.Addr{})
	a := netip.MustParseAddr("192.0.2.1")
	if err := s.NoteAddress(a); err != nil {
		t.Fatal(err)
	}
	is(a)
	for _, bad := range []string{"", "192.0.2", "\x00\xff", "192.0.2.1 192.0.2.2"} {
		if err := os.WriteFile(filepath.Join(state, "address"), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		is(netip.Addr{})
	}
	if err := s.NoteAddress(a); err != nil {
		t.Fatal(err)
	}
	is(a)
}
