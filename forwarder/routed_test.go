package forwarder

import (
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/ring"
)

// TestRoutedPod: whatever is for a routed pod goes to the host, whatever the host sends in its name is no translated flow, and
// nothing goes round between the host and us.
func TestRoutedPod(t *testing.T) {
	r := newRig(t, testSettings(encap.KindUDP))
	r.f.TrackFlows()
	routed := netip.MustParseAddr("10.244.1.77")
	if _, err := r.f.Attach(PortSpec{Container: "r", Interface: "eth0", Attach: AttachRouted, Addresses: []netip.Addr{routed}}); err != nil {
		t.Fatal(err)
	}
	pod := r.attach(AttachTUN, "a1", podA1)
	host := r.hosts[0]

	pod.Inject(ring.FakePacket{Data: udpPacket(podA1, routed, 1, 2, 10)})
	r.turn()
	if got := host.Sent(); len(got) != 1 {
		t.Errorf("from a pod: %d packets to the host, want 1", len(got))
	}
	r.receive(encap.KindUDP, 0, udpPacket(podB, routed, 1, 2, 10))
	r.turn()
	if got := host.Sent(); len(got) != 1 {
		t.Errorf("from the wire: %d packets to the host, want 1", len(got))
	}
	// What the routed pod sends: its answers go straight back, as no flow was remembered.
	host.Inject(ring.FakePacket{Data: udpPacket(routed, podB, 2, 1, 10)})
	r.turn()
	if n := r.f.flows.size(); n != 0 {
		t.Errorf("%d flows remembered", n)
	}
	r.check(nil)
	host.Inject(ring.FakePacket{Data: udpPacket(outsideAddr, routed, 2, 1, 10)})
	r.turn()
	r.check(map[Reason]uint64{DropNoRoute: 1})
	host.Sent()

	// A reload of the table keeps it; detached, the address is nobody's.
	r.peers()
	pod.Inject(ring.FakePacket{Data: udpPacket(podA1, routed, 1, 2, 10)})
	r.turn()
	if got := host.Sent(); len(got) != 1 {
		t.Errorf("after a reload: %d packets to the host, want 1", len(got))
	}
	if err := r.f.Detach("r", "eth0"); err != nil {
		t.Fatal(err)
	}
	pod.Inject(ring.FakePacket{Data: udpPacket(podA1, routed, 1, 2, 10)})
	r.turn()
	r.check(map[Reason]uint64{DropNoRoute: 1, DropNoPod: 1})
}

// TestAdoptOwnsTheDescriptor: whatever comes of it, the descriptor is the forwarder's.
func TestAdoptOwnsTheDescriptor(t *testing.T) {
	t.Run("Adopt", func(t *testing.T) { ownsTheDescriptor(t, (*Forwarder).Adopt) })
	t.Run("AttachQueue", func(t *testing.T) { ownsTheDescriptor(t, (*Forwarder).AttachQueue) })
}

func ownsTheDescriptor(t *testing.T, adopt func(*Forwarder, PortSpec, int) (PortInfo, error)) {
	r := newRig(t, testSettings(encap.KindUDP))
	r.f.env.adoptTUN = func(fd int, _ bool) (ring.Port, ring.Offload, error) {
		unix.Close(fd)
		return ring.NewFakeQueue(), ring.OffloadCSUM | ring.OffloadTSO4, nil
	}
	open := func() int {
		fd, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	closed := func(fd int) bool { _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); return err == unix.EBADF }
	spec := PortSpec{Container: "c", Interface: "eth0", Attach: AttachTUN, Device: "t", Addresses: []netip.Addr{podA1}}
	fd := open()
	if _, err := adopt(r.f, spec, fd); err != nil || len(r.f.Ports()) != 1 {
		t.Fatal(err)
	}
	if fd = open(); true {
		if _, err := adopt(r.f, spec, fd); err != nil || !closed(fd) {
			t.Errorf("adopted twice: %v, closed %v", err, closed(fd))
		}
	}
	bad := spec
	bad.Container, bad.Addresses = "d", []netip.Addr{outsideAddr}
	fd = open()
	if _, err := adopt(r.f, bad, fd); err == nil || !closed(fd) {
		t.Errorf("a bad spec: %v, closed %v", err, closed(fd))
	}
	bad = spec
	bad.Container, bad.Attach, bad.Device, bad.Addresses = "e", AttachVeth, "v", []netip.Addr{netip.MustParseAddr("10.244.1.99")}
	fd = open()
	if _, err := adopt(r.f, bad, fd); err == nil || !closed(fd) {
		t.Errorf("a veth: %v, closed %v", err, closed(fd))
	}
}

// lastingQueue remembers whether its device is to outlive it.
type lastingQueue struct {
	*ring.FakeQueue
	lasts bool
}

func (q *lastingQueue) SetPersist(on bool) error { q.lasts = on; return nil }

// TestFailedAdoptionKeepsTheTUN: the device is a living pod's. One that an attach has made goes when the attach fails, and an
// adopted one goes when its pod is detached.
func TestFailedAdoptionKeepsTheTUN(t *testing.T) {
	spec := PortSpec{Container: "c", Interface: "eth0", Attach: AttachTUN, Device: "t", Addresses: []netip.Addr{podA1}}
	for _, polled := range []bool{false, true} {
		r := newRig(t, testSettings(encap.KindUDP))
		q := &lastingQueue{ring.NewFakeQueue(), true}
		if !polled {
			q.Close() // epoll takes no closed descriptor
		}
		r.f.env.adoptTUN = func(int, bool) (ring.Port, ring.Offload, error) { return q, 0, nil }
		r.f.env.createTUN = func(ring.TUNConfig, bool) (ring.Port, ring.Offload, error) { return q, 0, nil }
		if _, err := r.f.Adopt(spec, -1); (err == nil) != polled {
			t.Fatalf("polled %v: %v", polled, err)
		}
		if !q.lasts {
			t.Errorf("polled %v: adoption has taken the pod's TUN", polled)
		}
		if polled {
			r.f.Detach("c", "eth0")
		} else if _, err := r.f.Attach(spec); err == nil {
			t.Fatal("a closed queue was attached")
		}
		if q.lasts {
			t.Errorf("polled %v: the TUN is left", polled)
		}
	}
}

// TestAttachQueue: a TUN that somebody else has made lasts once it is attached, is gone when that fails or the pod goes, and its
// bandwidth bounds what it hands over and how much may wait in it.
func TestAttachQueue(t *testing.T) {
	spec := PortSpec{Container: "c", Interface: "eth0", Attach: AttachTUN, Device: "t", Addresses: []netip.Addr{podA1}}
	r := newRig(t, testSettings(encap.KindUDP))
	q := &lastingQueue{FakeQueue: ring.NewFakeQueue()}
	r.f.env.adoptTUN = func(int, bool) (ring.Port, ring.Offload, error) {
		return q, ring.OffloadCSUM | ring.OffloadTSO4 | ring.OffloadUSO4, nil
	}
	i, err := r.f.AttachQueue(spec, -1)
	if err != nil || !q.lasts || i.QueueLen != 0 || len(r.f.Ports()) != 1 {
		t.Fatalf("%+v, %v, lasts %v", i, err, q.lasts)
	}
	if p := r.f.findPort("c", "eth0"); !p.gso || !p.uso {
		t.Errorf("superframes: TCP %v, UDP %v", p.gso, p.uso)
	}
	if r.f.Detach("c", "eth0"); q.lasts {
		t.Error("the TUN of a detached pod is left")
	}
	q.FakeQueue = ring.NewFakeQueue()
	spec.Bandwidth = Bandwidth{EgressRate: 10e6, EgressBurst: 10e6}
	if i, err = r.f.AttachQueue(spec, -1); err != nil || i.QueueLen != r.f.findPort("c", "eth0").throttle.tunQueue(i.MTU) || i.QueueLen < 1 {
		t.Errorf("%d packets may wait: %v", i.QueueLen, err)
	}
	r.f.Detach("c", "eth0")
	q.FakeQueue = ring.NewFakeQueue()
	q.Close() // epoll takes no closed descriptor
	if _, err = r.f.AttachQueue(spec, -1); err == nil || q.lasts || len(r.f.Ports()) != 0 {
		t.Errorf("a closed queue: %v, lasts %v", err, q.lasts)
	}
	r.f.env.adoptTUN = func(int, bool) (ring.Port, ring.Offload, error) { return nil, 0, unix.EBADFD }
	if _, err = r.f.AttachQueue(spec, -1); !errors.Is(err, unix.EBADFD) || len(r.f.Ports()) != 0 || len(r.f.opening) != 0 {
		t.Errorf("no queue at all: %v", err)
	}
}
