package control

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestPodCalls(t *testing.T) {
	f := newFake()
	c, _ := start(t, f)
	ctx := t.Context()
	a, err := c.Allocate(ctx, AllocateRequest{Container: "c1", Interface: "eth0", Network: "n"})
	if err != nil || a.Device != DeviceName("c1", "eth0") || !a.Gateway4.IsValid() || a.Gateway6.IsValid() {
		t.Errorf("Allocate: %+v, %v", a, err)
	}
	if g, err := c.GC(ctx, GCRequest{Network: "n", Valid: []PodKey{{"c1", "eth0"}}}); err != nil || len(g.Removed) != 1 || g.Removed[0] != (PodKey{"c1", "eth0"}) {
		t.Errorf("GC: %+v, %v", g, err)
	}
	if p, err := c.Pods(ctx); err != nil || len(p) != 1 || p[0].Phase != PhaseWaiting {
		t.Errorf("Pods: %+v, %v", p, err)
	}
	if i, err := c.IPAM(ctx); err != nil || i.CIDRs[0].Free != 1<<64-1 {
		t.Errorf("IPAM: %+v, %v", i, err)
	}
	for code := range statusOf {
		f.err = Errorf(code, "because")
		if _, err := c.Check(ctx, CheckRequest{}); CodeOf(err) != code || err.Error() != "because" {
			t.Errorf("%s: got %v (%s)", code, err, CodeOf(err))
		}
	}
}

func TestAdopt(t *testing.T) {
	f := newFake()
	c, socket := start(t, f)
	file := filepath.Join(t.TempDir(), "queue")
	os.WriteFile(file, []byte("queue"), 0o600)
	q, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	for range 3 {
		if err := c.Adopt(t.Context(), PodKey{"c1", "eth0"}, q); err != nil {
			t.Fatal(err)
		}
	}
	if strings.Join(f.adopted, "|") != "c1/eth0 queue <nil>|c1/eth0 queue <nil>|c1/eth0 queue <nil>" {
		t.Errorf("%q", f.adopted)
	}
	f.err = Errorf(Conflict, "it does not wait")
	if err := c.Adopt(t.Context(), PodKey{"c1", "eth0"}, q); CodeOf(err) != Conflict || err.Error() != "it does not wait" {
		t.Errorf("refused: %v (%s)", err, CodeOf(err))
	}
	if err := New(socket+"x").Adopt(t.Context(), PodKey{"c1", "eth0"}, q); !errors.Is(err, ErrUnreachable) {
		t.Errorf("nobody there: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Adopt(ctx, PodKey{"c1", "eth0"}, q); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// What comes instead of a message with one descriptor is refused, and no descriptor stays open.
func TestAdoptRefuses(t *testing.T) {
	f := newFake()
	_, socket := start(t, f)
	hello := "POST /v1/adopt HTTP/1.1\r\nHost: p\r\nConnection: Upgrade\r\nUpgrade: penstock-adopt\r\nContent-Length: 0\r\n\r\n"
	count := func() int { l, _ := os.ReadDir("/proc/self/fd"); return len(l) }
	before := count()
	for name, test := range map[string]struct {
		body string
		fds  int
		want string
	}{
		"none":         {`{"container":"c","interface":"e"}`, 0, "one descriptor"},
		"two":          {`{"container":"c","interface":"e"}`, 2, "one descriptor"},
		"unknown key":  {`{"container":"c","interface":"e","x":1}`, 1, "not understood"},
		"not JSON":     {`hello`, 1, "not a JSON object"},
		"many":         {`{"container":"c","interface":"e"}`, 30, "descriptor"},
		"hang up":      {"", 0, ""},
		"without text": {"", 1, ""},
	} {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		u := conn.(*net.UnixConn)
		u.SetDeadline(time.Now().Add(30 * time.Second))
		u.Write([]byte(hello))
		b := make([]byte, 1024)
		if n, err := u.Read(b); err != nil || !strings.HasPrefix(string(b[:n]), "HTTP/1.1 101") {
			t.Fatalf("%s: %q, %v", name, b[:n], err)
		}
		var fds []int
		for range test.fds {
			fds = append(fds, 0)
		}
		var oob []byte
		if len(fds) > 0 {
			oob = unix.UnixRights(fds...)
		}
		if test.body != "" {
			u.WriteMsgUnix([]byte(test.body), oob, nil)
			n, _ := u.Read(b)
			if !strings.Contains(string(b[:n]), test.want) || !strings.Contains(string(b[:n]), "error") {
				t.Errorf("%s: %q, want %q", name, b[:n], test.want)
			}
		}
		u.Close()
	}
	if len(f.adopted) > 0 {
		t.Errorf("adopted %q", f.adopted)
	}
	for deadline := time.Now().Add(30 * time.Second); count() > before && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
	}
	if n := count(); n > before {
		t.Errorf("%d descriptors before, %d after", before, n)
	}
}

func TestPending(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "run", "p.sock")
	if p, err := Pending(socket); err != nil || len(p) != 0 {
		t.Errorf("%v, %v", p, err)
	}
	os.Mkdir(filepath.Dir(socket), 0o700)
	for range 2 {
		if err := WritePending(socket, DetachRequest{Container: "c1", Interface: "eth0"}); err != nil {
			t.Fatal(err)
		}
	}
	if err := WritePending(socket, DetachRequest{Container: "c1"}); err == nil {
		t.Error("a delete of nobody")
	}
	if !IsPending(socket, "c1", "eth0") || IsPending(socket, "c1", "eth1") {
		t.Error("IsPending is wrong")
	}
	dir := PendingDir(socket)
	os.WriteFile(filepath.Join(dir, "ps00000000000.json"), []byte("{garbage"), 0o600)
	os.WriteFile(filepath.Join(dir, "ps00000000001.json"), []byte(`{"container":"c1","interface":"eth0"}`), 0o600) // not its name
	os.WriteFile(filepath.Join(dir, ".new-1"), nil, 0o600)
	os.Symlink("/dev/zero", filepath.Join(dir, "ps00000000002.json"))
	unix.Mkfifo(filepath.Join(dir, "ps00000000003.json"), 0o600)
	p, err := Pending(socket)
	name := DeviceName("c1", "eth0")
	if err != nil || len(p) != 3 || p[name].Container != "c1" || p["ps00000000000"].Container != "" || p["ps00000000001"].Container != "" {
		t.Errorf("%v, %v", p, err)
	}
	for range 2 {
		if err := RemovePending(socket, name); err != nil {
			t.Error(err)
		}
	}
	if IsPending(socket, "c1", "eth0") {
		t.Error("it still waits")
	}
}

func TestNetnsID(t *testing.T) {
	a, err := NetnsID("/proc/self/ns/net")
	b, err2 := NetnsID("/proc/thread-self/ns/net")
	if err != nil || err2 != nil || a != b || !strings.Contains(a, ":") {
		t.Errorf("%q, %v; %q, %v", a, err, b, err2)
	}
	if _, err := NetnsID("/nonexistent"); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}
