package forwarder

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/ring"
)

// TestUringLeft: a ring that cannot be made, or that the kernel serves no more, is counted, and nothing else changes.
func TestUringLeft(t *testing.T) {
	goesOn := func(t *testing.T, r *rig) {
		t.Helper()
		pod := r.attach(AttachTUN, "a1", podA1)
		r.receive(encap.KindVXLAN, 0, inTurn([]uint16{1, 2, 3}, 2)...)
		pod.Inject(ring.FakePacket{Data: udpPacket(podA1, podB, 1, 9, 20)})
		r.turn()
		if n := len(pod.Sent()); n != 3 {
			t.Errorf("%d writes to the pod", n)
		}
		r.check(nil)
		r.expect(1, 6, 0)
		if n := r.f.Counters().SwitchedOff["tunBatch"]; n != 1 {
			t.Errorf("counted %d times", n)
		}
		if w := r.f.workers[0]; w.uring != nil {
			t.Error("the worker has a ring")
		}
	}
	t.Run("cannot be made", func(t *testing.T) {
		r := newRig(t, testSettings(encap.KindVXLAN))
		r.f.use.tunBatch = true
		r.f.env.openUring = func() (*ring.Uring, error) { return nil, errors.New("no") }
		r.f.openUrings()
		goesOn(t, r)
	})
	t.Run("fails", func(t *testing.T) {
		r := newRig(t, testSettings(encap.KindVXLAN))
		r.f.use.tunBatch = true
		r.f.env.openUring = ring.NewUring
		r.f.openUrings()
		w := r.f.workers[0]
		if w.uring == nil {
			_, err := ring.NewUring()
			t.Skip("needs io_uring: ", err)
		}
		fd := w.uring.FD()
		w.leaveUring()
		if err := unix.Fstat(fd, new(unix.Stat_t)); err != unix.EBADF {
			t.Errorf("its descriptor is open: %v", err)
		}
		goesOn(t, r)
	})
}
