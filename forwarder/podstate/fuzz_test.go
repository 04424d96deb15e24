package podstate

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/penstock-net/penstock/forwarder/control"
)

// FuzzSalvage: a file of whatever bytes keeps no start from succeeding, is moved aside once, and gives up no address that is
// none. What of a torn record can be read is kept.
func FuzzSalvage(f *testing.F) {
	s, err := Open(f.TempDir(), boot)
	if err != nil {
		f.Fatal(err)
	}
	r := record("c1")
	s.Save(r)
	name := control.DeviceName("c1", "eth0")
	good, _ := os.ReadFile(s.path(name))
	for _, n := range []int{0, 1, len(good) / 2, len(good) - 2, len(good)} {
		f.Add(good[:n])
	}
	f.Add([]byte(`"addresses":["999.1.1.1","::ffff:10.0.0.1","fe80::1%eth0","10.244.1.2"],"network":"n","bootID":"x"`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(s.path(name), b, 0o600); err != nil {
			t.Fatal(err)
		}
		defer os.Remove(filepath.Join(s.damaged(), name+".json"))
		defer os.Remove(s.path(name))
		for again := range 2 {
			records, damaged, err := s.Load()
			if err != nil || len(records)+len(damaged) != 1 {
				t.Fatalf("%d records, %d damaged: %v", len(records), len(damaged), err)
			}
			if len(records) == 1 {
				if records[0].Name() != name {
					t.Fatalf("a record of %s in the file of %s", records[0].Name(), name)
				}
				return
			}
			d := damaged[0]
			if d.Name != name || d.Reason == "" || d.Fresh != (again == 0) {
				t.Fatalf("load %d: %+v", again, d)
			}
			for _, a := range d.Addresses {
				if !a.IsValid() || a.Zone() != "" || a.Is4In6() {
					t.Fatalf("salvaged %v", a)
				}
			}
		}
	})
}

// FuzzReleased: the notes of released addresses, whole or torn.
func FuzzReleased(f *testing.F) {
	s, err := Open(f.TempDir(), boot)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte("1700000000000 10.244.1.3\n1700000000001 fd00::3\n17"))
	f.Add([]byte("-1 ::\n99999999999999999999 1.2.3.4\nx y\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(s.released, b, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, n := range s.Released() {
			if !n.Address.IsValid() {
				t.Fatalf("noted %+v", n)
			}
		}
	})
}
