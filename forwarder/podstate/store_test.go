package podstate

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/control"
)

const boot = "9f0c5f3e-1111-2222-3333-444455556666"

func record(container string) *Record {
	return &Record{Version: 1, BootID: boot, Container: container, Interface: "eth0", Network: "n", Attach: control.AttachVeth, Device: control.DeviceName(container, "eth0"),
		MAC: "0a:bb:cc:dd:ee:ff", Addresses: []netip.Addr{netip.MustParseAddr("10.244.1.2"), netip.MustParseAddr("fd00:10:244:1::2")}, Source: control.SourceIPAM, MTU: 1450,
		Bandwidth: &control.Bandwidth{IngressRate: 5, IngressBurst: 6}, Phase: control.PhaseAttached, Created: time.Unix(1_700_000_000, 5).UTC()}
}

func open(t *testing.T) *Store {
	t.Helper()
	s, err := Open(t.TempDir(), boot)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// TestOneOwner: the directory is one daemon's until it gives it up, and fresh until one has worked with it.
func TestOneOwner(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "state")
	reopen := func(fresh bool) *Store {
		t.Helper()
		s, err := Open(dir, boot)
		if err != nil {
			t.Fatal(err)
		}
		if s.Fresh() != fresh {
			t.Errorf("fresh: %v", s.Fresh())
		}
		return s
	}
	s := reopen(true)
	_, err := Open(dir, boot)
	if err == nil || !strings.Contains(err.Error(), "another penstockd works with the directory "+dir) {
		t.Errorf("a second owner: %v", err)
	}
	if err := s.Discard(); err != nil {
		t.Error(err)
	}
	s = reopen(true)
	if err := s.Save(record("c1")); err != nil {
		t.Error(err)
	}
	s.Discard()
	s = reopen(false)
	defer s.Close()
	if got, _, err := s.Load(); err != nil || len(got) != 1 {
		t.Errorf("a discarded store has taken a pod with it: %v, %v", got, err)
	}
}

func TestRoundTrip(t *testing.T) {
	s := open(t)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			r := record(fmt.Sprint("c", i))
			for _, save := range []func(*Record) error{s.Save, s.Mark, s.Save} {
				if err := save(r); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	os.WriteFile(filepath.Join(s.dir, ".new-9"), []byte("{"), 0o600)
	os.WriteFile(filepath.Join(s.dir, "README"), []byte("?"), 0o600)
	got, damaged, err := s.Load()
	if err != nil || len(got) != 20 || len(damaged) != 0 {
		t.Fatalf("%d, %v, %v", len(got), damaged, err)
	}
	for _, r := range got {
		if d := cmp.Diff(record(r.Container), r, cmpopts.EquateComparable(netip.Addr{})); d != "" {
			t.Error(d)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(s.dir, ".new*")); left != nil {
		t.Errorf("left %v", left)
	}
	for range 2 {
		if err := s.Remove(got[0].Name()); err != nil {
			t.Error(err)
		}
	}
	if fi, err := os.Stat(s.path(got[1].Name())); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", fi.Mode(), err)
	}
}

// Every way to damage a file: it is moved aside, the others are read, and its addresses are found if they can be.
func TestDamaged(t *testing.T) {
	name := control.DeviceName("c1", "eth0")
	s := open(t)
	if err := s.Save(record("c1")); err != nil {
		t.Fatal(err)
	}
	good, _ := os.ReadFile(s.path(name))
	edit := func(old, new string) []byte { return []byte(strings.Replace(string(good), old, new, 1)) }
	for what, test := range map[string]struct {
		b         []byte
		addresses int
		old       bool
	}{
		"empty":           {nil, 0, false},
		"zeros":           {make([]byte, len(good)), 0, false},
		"cut":             {good[:len(good)-40], 2, false},
		"unknown key":     {edit(`"mtu"`, `"mtv"`), 2, false},
		"version":         {edit(`"version": 1`, `"version": 2`), 2, false},
		"other pod":       {edit(`"c1"`, `"c2"`), 2, false},
		"phase":           {edit(`attached`, `attacked`), 2, false},
		"attach":          {edit(`"veth"`, `"x"`), 2, false},
		"source":          {edit(`"ipam"`, `""`), 2, false},
		"bad address":     {edit(`10.244.1.2`, `10.244.1.256`), 1, false},
		"mapped address":  {edit(`10.244.1.2`, `::ffff:10.244.1.2`), 1, false},
		"twice":           {edit(`fd00:10:244:1::2`, `10.244.1.2`), 2, false},
		"no addresses":    {edit(`"addresses"`, `"adresses"`), 2, false},
		"mtu":             {edit(`1450`, `3`), 2, false},
		"more behind":     {append(good, '{'), 2, false},
		"another boot":    {edit(boot+`"`, "00000000-1111-2222-3333-444455556666\", \"x\": 1"), 2, true},
		"flipped garbage": {[]byte("\x00\xff{\"addresses\": [\"10.244.1.2\"\n\x01"), 1, false},
		"large":           {append(good, make([]byte, maxFile)...), 0, false},
	} {
		s := open(t)
		s.Save(record("c9"))
		os.WriteFile(s.path(name), test.b, 0o600)
		for round := range 2 {
			got, damaged, err := s.Load()
			if err != nil || len(got) != 1 || got[0].Container != "c9" || len(damaged) != 1 {
				t.Errorf("%s: %v, %v, %v", what, got, damaged, err)
				break
			}
			d := damaged[0]
			if d.Name != name || len(d.Addresses) != test.addresses || d.OldBoot != test.old || d.Reason == "" || d.Fresh != (round == 0) {
				t.Errorf("%s: %+v", what, d)
			}
		}
		if err := s.Remove(name); err != nil {
			t.Error(err)
		}
		if _, damaged, _ := s.Load(); len(damaged) != 0 {
			t.Errorf("%s: it stays: %v", what, damaged)
		}
	}
	// No file at all.
	unix.Mkfifo(s.path(control.DeviceName("fifo", "eth0")), 0o600)
	os.Symlink("/dev/zero", s.path(control.DeviceName("link", "eth0")))
	if got, damaged, err := s.Load(); err != nil || len(got) != 1 || len(damaged) != 2 {
		t.Errorf("%v, %v, %v", got, damaged, err)
	}
}

func TestFullDiskChangesNothing(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=16k"); err != nil {
		t.Skip("no tmpfs can be mounted here")
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	s, err := Open(dir, boot)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close() // before the unmount
	first := record("first")
	if err := s.Save(first); err != nil {
		t.Fatal(err)
	}
	for i := 0; err == nil; i++ {
		err = s.Save(record(fmt.Sprint("c", i)))
	}
	changed := *first
	changed.MTU = 1400
	for _, e := range []error{err, s.Save(&changed), s.Mark(&changed)} {
		if control.CodeOf(e) != control.NoSpace || !errors.As(e, new(*control.Error)) || !strings.Contains(e.Error(), "make room") {
			t.Errorf("%v (%s)", e, control.CodeOf(e))
		}
	}
	got, damaged, err := s.Load()
	if err != nil || len(damaged) != 0 {
		t.Error(damaged, err)
	}
	for _, r := range got {
		if r.Container == "first" && r.MTU != 1450 {
			t.Error("the old record was touched")
		}
	}
	if left, _ := filepath.Glob(filepath.Join(s.dir, ".new*")); left != nil {
		t.Errorf("left %v", left)
	}
}

func TestReleased(t *testing.T) {
	s := open(t)
	if l := s.Released(); len(l) != 0 {
		t.Error(l)
	}
	now := time.UnixMilli(time.Now().UnixMilli())
	a := netip.MustParseAddr("10.244.1.2")
	for i := range 5000 { // until it is begun anew
		if err := s.NoteReleased([]netip.Addr{a}, now.Add(time.Duration(i)*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	fi, _ := os.Stat(s.released)
	l := s.Released()
	if fi.Size() > maxReleased+100 || len(l) < 50 || !l[len(l)-1].Since.Equal(now.Add(4999*time.Second)) {
		t.Errorf("%d bytes, %d notes, the last %v", fi.Size(), len(l), l[len(l)-1])
	}
	f, _ := os.OpenFile(s.released, os.O_APPEND|os.O_WRONLY, 0)
	fmt.Fprintf(f, "17 10.244.1.3") // cut: it may be .35
	f.Close()
	if n := s.Released(); len(n) != len(l) {
		t.Error("a cut line was believed")
	}
}

func FuzzDecode(f *testing.F) {
	s, err := Open(f.TempDir(), boot)
	if err != nil {
		f.Fatal(err)
	}
	s.Save(record("c1"))
	name := control.DeviceName("c1", "eth0")
	good, _ := os.ReadFile(s.path(name))
	f.Add(good)
	f.Add([]byte(`{"version":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decode(name, b)
		if err != nil {
			return
		}
		// What is taken for a record can be written and read again.
		if err := s.Mark(r); err != nil {
			t.Fatal(err)
		}
		b, _ = os.ReadFile(s.path(name))
		if again, err := decode(name, b); err != nil || again.Key() != r.Key() || len(again.Addresses) != len(r.Addresses) {
			t.Fatalf("%v: %s", err, b)
		}
	})
}
