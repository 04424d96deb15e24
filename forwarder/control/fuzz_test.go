package control

import (
	"os"
	"path/filepath"
	"testing"
)

// FuzzPending: a queued delete of whatever bytes names the pod of its file, or nobody.
func FuzzPending(f *testing.F) {
	socket := filepath.Join(f.TempDir(), "p.sock")
	if err := WritePending(socket, DetachRequest{Container: "c", Interface: "eth0"}); err != nil {
		f.Fatal(err)
	}
	path := PendingPath(socket, "c", "eth0")
	good, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)-3])
	f.Add([]byte(`{"container":"other","interface":"eth0"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		all, err := Pending(socket)
		r, there := all[DeviceName("c", "eth0")]
		if err != nil || !there || len(all) != 1 || r.Container+r.Interface != "" && (r.Container != "c" || r.Interface != "eth0") {
			t.Fatalf("%q: %+v, %v", b, all, err)
		}
	})
}
