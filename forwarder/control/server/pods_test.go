package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/control"
)

func TestPodCalls(t *testing.T) {
	f := newFake()
	c, _ := start(t, f)
	ctx := t.Context()
	a, err := c.Allocate(ctx, control.AllocateRequest{Container: "c1", Interface: "eth0", Network: "n"})
	if err != nil || a.Device != control.DeviceName("c1", "eth0") || !a.Gateway4.IsValid() || a.Gateway6.IsValid() {
		t.Errorf("Allocate: %+v, %v", a, err)
	}
	if g, err := c.GC(ctx, control.GCRequest{Network: "n", Valid: []control.PodKey{{Container: "c1", Interface: "eth0"}}}); err != nil || len(g.Removed) != 1 || g.Removed[0] != (control.PodKey{Container: "c1", Interface: "eth0"}) {
		t.Errorf("GC: %+v, %v", g, err)
	}
	var many []control.PodKey
	for i := range 5000 {
		many = append(many, control.PodKey{Container: fmt.Sprintf("%064d", i), Interface: "eth0"})
	}
	if g, err := c.GC(ctx, control.GCRequest{Network: "n", Valid: many}); err != nil || len(g.Removed) != len(many) {
		t.Errorf("GC of many: %d, %v", len(g.Removed), err)
	}
	if p, err := c.Pods(ctx); err != nil || len(p) != 1 || p[0].Phase != control.PhaseWaiting {
		t.Errorf("Pods: %+v, %v", p, err)
	}
	if i, err := c.IPAM(ctx); err != nil || i.CIDRs[0].Free != 1<<64-1 {
		t.Errorf("IPAM: %+v, %v", i, err)
	}
	for code := range statusOf {
		f.err = control.Errorf(code, "because")
		if _, err := c.Check(ctx, control.CheckRequest{}); control.CodeOf(err) != code || err.Error() != "because" {
			t.Errorf("%s: got %v (%s)", code, err, control.CodeOf(err))
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
		if err := c.Adopt(t.Context(), control.PodKey{Container: "c1", Interface: "eth0"}, q); err != nil {
			t.Fatal(err)
		}
	}
	if strings.Join(f.adopted, "|") != "c1/eth0 queue <nil>|c1/eth0 queue <nil>|c1/eth0 queue <nil>" {
		t.Errorf("%q", f.adopted)
	}
	attach := control.AttachRequest{Container: "c2", Interface: "eth0", Attach: control.AttachTUN, Netns: "/" + strings.Repeat("n", 4095)}
	if p, err := c.AttachQueue(t.Context(), attach, q); err != nil || p.Container != "c2" || p.QueueLen != 37 {
		t.Errorf("attached as %+v, %v", p, err)
	}
	if f.adopted[3] != "c2/eth0 queue <nil>" {
		t.Errorf("%q", f.adopted)
	}
	f.err = control.Errorf(control.Conflict, "it does not wait")
	if _, err := c.AttachQueue(t.Context(), attach, q); control.CodeOf(err) != control.Conflict || err.Error() != "it does not wait" {
		t.Errorf("refused: %v (%s)", err, control.CodeOf(err))
	}
	if err := c.Adopt(t.Context(), control.PodKey{Container: "c1", Interface: "eth0"}, q); control.CodeOf(err) != control.Conflict || err.Error() != "it does not wait" {
		t.Errorf("refused: %v (%s)", err, control.CodeOf(err))
	}
	if err := control.New(socket+"x").Adopt(t.Context(), control.PodKey{Container: "c1", Interface: "eth0"}, q); !errors.Is(err, control.ErrUnreachable) {
		t.Errorf("nobody there: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Adopt(ctx, control.PodKey{Container: "c1", Interface: "eth0"}, q); !errors.Is(err, context.Canceled) {
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
		"another pod":  {`{"container":"c","interface":"e","attach":{"container":"d","interface":"e"}}`, 1, "another pod than c/e"},
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

// TestAdoptStops: a server that stops waits for a pod that is being attached by a queue, and not for a message that has not come.
func TestAdoptStops(t *testing.T) {
	f := newFake()
	f.attaching, f.attach = make(chan struct{}), make(chan struct{})
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	s := New(f, quiet())
	go s.Serve(l)
	q, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	silent, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	silent.Write([]byte("POST /v1/adopt HTTP/1.1\r\nHost: p\r\nConnection: Upgrade\r\nUpgrade: penstock-adopt\r\nContent-Length: 0\r\n\r\n"))
	silent.Read(make([]byte, 1024))
	attached := make(chan error)
	go func() {
		_, err := control.New(l.Addr().String()).AttachQueue(t.Context(), control.AttachRequest{Container: "c", Interface: "e"}, q)
		attached <- err
	}()
	<-f.attaching
	stopped := make(chan error)
	go func() { stopped <- s.Shutdown(t.Context()) }()
	select {
	case err := <-stopped:
		t.Fatalf("it has not waited: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	close(f.attach)
	if err := <-attached; err != nil {
		t.Errorf("attached: %v", err)
	}
	if err := <-stopped; err != nil {
		t.Errorf("stopped: %v", err)
	}
}

// TestAdoptCutShort: a daemon that dies over a message has not refused it.
func TestAdoptCutShort(t *testing.T) {
	for _, answer := range []string{"", "{", `{"container":"c"`} {
		l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			c.Read(make([]byte, 4096))
			c.Write([]byte("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: penstock-adopt\r\n\r\n"))
			c.Read(make([]byte, 4096))
			c.Write([]byte(answer))
		}()
		q, _ := os.Open("/dev/null")
		_, err = control.New(l.Addr().String()).AttachQueue(t.Context(), control.AttachRequest{Container: "c", Interface: "e"}, q)
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%q: %v", answer, err)
		}
		q.Close()
		l.Close()
	}
	attach := control.AttachRequest{Container: "c", Interface: "e", Netns: strings.Repeat("n", control.MaxBody)}
	_, socket := start(t, newFake())
	q, _ := os.Open("/dev/null")
	defer q.Close()
	if _, err := control.New(socket).AttachQueue(t.Context(), attach, q); control.CodeOf(err) != control.TooLarge {
		t.Errorf("a message of more than %d bytes: %v", control.MaxBody, err)
	}
}
