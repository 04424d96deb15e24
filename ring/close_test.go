//go:build linux

package ring

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// TestCloseTwice: who closes twice closes nobody else's descriptor, which has the number meanwhile.
func TestCloseTwice(t *testing.T) {
	type closer interface {
		FD() int
		Close() error
	}
	open := map[string]func() (closer, error){
		"UDP":   func() (closer, error) { return OpenUDP(UDPConfig{Local: netip.MustParseAddrPort("127.0.0.1:0")}) },
		"queue": func() (closer, error) { return probeQueue(false, false) },
		"uring": func() (closer, error) { return NewUring() },
		"poller": func() (closer, error) {
			p, err := NewPoller()
			return pollerFD{p}, err
		},
	}
	for name, open := range open {
		c, err := open()
		if err != nil {
			t.Logf("%s: %v", name, err)
			continue
		}
		fd := c.FD()
		if err := c.Close(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		null, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Dup3(null, fd, unix.O_CLOEXEC); err != nil && null != fd {
			t.Fatal(err)
		}
		if err := c.Close(); err != unix.EBADF {
			t.Errorf("%s, closed again: %v", name, err)
		}
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
			t.Errorf("%s: another's descriptor was closed: %v", name, err)
		}
		unix.Close(fd)
		if null != fd {
			unix.Close(null)
		}
	}
}

type pollerFD struct{ *Poller }

func (p pollerFD) FD() int { return p.fd }
