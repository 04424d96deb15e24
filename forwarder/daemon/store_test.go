package daemon

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The service manager gets a descriptor under its name, and is told to let it go.
func TestQueueGoesToTheStore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	queue, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer queue.Close()
	if err := (linux{}).StoreQueue("ps1", int(queue.Fd())); err != nil {
		t.Errorf("without a service manager: %v", err)
	}
	t.Setenv("NOTIFY_SOCKET", path)
	if err := (linux{}).StoreQueue("ps1", int(queue.Fd())); err != nil {
		t.Fatal(err)
	}
	linux{}.ForgetQueue("ps1")
	b, oob := make([]byte, 256), make([]byte, 256)
	n, noob, _, _, err := c.ReadMsgUnix(b, oob)
	if err != nil || string(b[:n]) != "FDSTORE=1\nFDPOLL=0\nFDNAME=ps1" {
		t.Errorf("%q, %v", b[:n], err)
	}
	m, _ := unix.ParseSocketControlMessage(oob[:noob])
	if len(m) != 1 {
		t.Fatal("no descriptor came along")
	}
	fds, _ := unix.ParseUnixRights(&m[0])
	for _, fd := range fds {
		unix.Close(fd)
	}
	if n, noob, _, _, _ = c.ReadMsgUnix(b, oob); noob != 0 || string(b[:n]) != "FDSTOREREMOVE=1\nFDNAME=ps1" {
		t.Errorf("%q", b[:n])
	}
}

// And the next daemon gets it back, once.
func TestQueuesComeFromTheStore(t *testing.T) {
	if os.Getenv("STORE_TEST") != "" {
		q := linux{}.StoredQueues()
		for _, name := range []string{"ps1", "ps2"} {
			b := make([]byte, 16)
			n, err := unix.Pread(q[name], b, 0)
			fmt.Printf("%s=%s %v;", name, b[:n], err)
		}
		fmt.Printf("%d %d;", len(q), len(linux{}.StoredQueues()))
		return
	}
	var files []*os.File
	for _, name := range []string{"one", "two", "twice"} {
		p := filepath.Join(t.TempDir(), name)
		os.WriteFile(p, []byte(name), 0o600)
		f, err := os.Open(p)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files = append(files, f)
	}
	cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ exec "$0" -test.run=TestQueuesComeFromTheStore`, os.Args[0])
	cmd.Env = append(os.Environ(), "STORE_TEST=1", "LISTEN_FDS=3", "LISTEN_FDNAMES=ps1:ps2:ps2")
	cmd.ExtraFiles = files
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "ps1=one <nil>;ps2=two <nil>;2 0;") {
		t.Errorf("%s, %v", out, err)
	}
}
