package forwarder

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/forwarder/hostnet/nstest"
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

// TestUringLive: a worker reads and writes a real TUN by its ring, and goes on when the ring fails under its hands.
func TestUringLive(t *testing.T) {
	ns := nstest.New(t)
	r := newRig(t, testSettings(encap.KindUDP))
	u, err := ring.NewUring()
	if err != nil {
		t.Skip("needs io_uring: ", err)
	}
	r.f.use.tunBatch = true
	r.f.env.openUring = func() (*ring.Uring, error) { return u, nil }
	r.f.openUrings()
	r.f.env.createTUN = func(c ring.TUNConfig, _ bool) (p ring.Port, o ring.Offload, err error) {
		ns.Do(func() {
			var qs []*ring.Queue
			if qs, err = ring.CreateTUN(c); err == nil {
				p = qs[0]
			}
		})
		return p, 0, err
	}
	if _, err := r.f.Attach(PortSpec{Container: "a1", Interface: "eth0", Attach: AttachTUN, Device: "tp0", Addresses: []netip.Addr{podA1}}); err != nil {
		t.Fatal(err)
	}
	ns.Sysctl("net/ipv6/conf/tp0/disable_ipv6", "1")
	ns.Up("tp0", podA1.String()+"/16")
	var pod *net.UDPConn
	ns.Do(func() {
		c, err := net.DialUDP("udp4", &net.UDPAddr{IP: podA1.AsSlice(), Port: 2000}, &net.UDPAddr{IP: podB.AsSlice(), Port: 9})
		if err != nil {
			t.Fatal(err)
		}
		pod = c
	})
	defer pod.Close()
	r.f.Start()
	var out, in uint64
	// exchange sends datagrams both ways, and waits until all have come.
	exchange := func(n int) {
		t.Helper()
		var ips [][]byte
		for i := range n {
			if _, err := pod.Write([]byte{byte(i)}); err != nil {
				t.Fatal(err)
			}
			ips = append(ips, udpPacket(podB, podA1, 9, 2000, 20+i)) // of all sizes: not merged
		}
		r.receive(encap.KindUDP, 0, ips...)
		for i := range n {
			var b [100]byte
			pod.SetReadDeadline(time.Now().Add(20 * time.Second))
			if got, err := pod.Read(b[:]); got != 20+i || err != nil {
				t.Fatalf("datagram %d has %d bytes, %v", i, got, err)
			}
		}
		out, in = out+uint64(n), in+uint64(n)
		for end := time.Now().Add(20 * time.Second); r.forwarded("wire", "udp") < out; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d of %d left", r.forwarded("wire", "udp"), out)
			}
		}
	}
	for range 20 {
		exchange(30)
	}
	if n := r.f.Counters().TUNBatches; n < 20 {
		t.Errorf("%d system calls of the ring", n)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if err := unix.Dup3(int(null.Fd()), u.FD(), unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		exchange(30)
	}
	if c := r.f.Counters(); c.SwitchedOff["tunBatch"] != 1 || r.f.batching.Load() != 0 {
		t.Errorf("counted %d times, %d workers have a ring", c.SwitchedOff["tunBatch"], r.f.batching.Load())
	}
	r.settleDown()
	r.check(nil)
	r.expect(out, in, 0)
}
