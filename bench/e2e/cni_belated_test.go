package e2e

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"syscall"
	"testing"
	"time"

	"github.com/penstock-net/penstock/bench/lab"
)

// TestCNIBelated: the daemon stands still while ADDs are killed and their DELs come. All are answered when it goes on, in whatever order
// it gets to them, and none of what the dead have asked for is left.
func TestCNIBelated(t *testing.T) {
	t.Parallel()
	lab.Require(t)
	l := lab.New(t, lab.Config{Nodes: 1})
	l.Start(t)
	n := l.Nodes[0]
	ask := func(path, body string) net.Conn {
		c, err := net.DialTimeout("unix", n.Daemon.Socket, 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(c, "POST /v1/%s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", path, len(body), body)
		return c
	}
	const pods = 40
	for range 3 {
		var dels []net.Conn
		n.Daemon.Process.Signal(syscall.SIGSTOP)
		for i := range pods {
			ask("allocate", fmt.Sprintf(`{"container":"c%d","interface":"eth0","network":"n"}`, i)).Close()
		}
		for i := range pods {
			dels = append(dels, ask("detach", fmt.Sprintf(`{"container":"c%d","interface":"eth0","network":"n"}`, i)))
		}
		n.Daemon.Process.Signal(syscall.SIGCONT)
		for i, c := range dels {
			c.SetReadDeadline(time.Now().Add(20 * time.Second))
			r, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil || r.StatusCode != http.StatusOK {
				t.Errorf("DEL %d: %v, %v", i, r, err)
			}
			c.Close()
		}
		time.Sleep(300 * time.Millisecond) // for what comes behind
		nothingLeft(t, n)
	}
}
