package forwarder

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/ring"
)

// TestAttachTogether: while the kernel makes one pod's device others attach, and what the first has claimed is taken: its key,
// address, device and memory.
func TestAttachTogether(t *testing.T) {
	r := newRig(t, testSettings(encap.KindUDP))
	began, goOn := make(chan string, 4), make(chan struct{})
	open := r.f.env.openPacket
	r.f.env.openPacket = func(c ring.PacketConfig) (ring.Port, func() (ring.Stats, error), error) {
		if c.Device == "slow" {
			began <- c.Device
			<-goOn
		}
		return open(c)
	}
	spec := func(name, device string, a netip.Addr) PortSpec {
		return PortSpec{Container: name, Interface: "eth0", Attach: AttachVeth, Device: device, MAC: "02:00:00:00:00:01", Addresses: addrs(a)}
	}
	slow := make(chan error, 1)
	go func() { _, err := r.f.Attach(spec("a1", "slow", podA1)); slow <- err }()
	<-began

	for _, c := range []struct {
		what, want string
		call       func() error
	}{
		{"its key", "is being attached", func() error { _, err := r.f.Attach(spec("a1", "slow", podA1)); return err }},
		{"its address", "belongs to a1/eth0", func() error { _, err := r.f.Attach(spec("a3", "a3", podA1)); return err }},
		{"its device", "is attached already for a1/eth0", func() error { _, err := r.f.Attach(spec("a3", "slow", podA2)); return err }},
		{"detach", "is being attached", func() error { return r.f.Detach("a1", "eth0") }},
		{"its CIDR", "of a1/eth0", func() error {
			s := r.f.settings
			s.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.9.0/24")}
			return r.f.Reconfigure(s)
		}},
	} {
		if err := c.call(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one with %q", c.what, err, c.want)
		}
	}
	claimed := r.f.bufferLeft()
	if claimed >= r.f.settings.TotalBuffer {
		t.Error("its memory is not counted")
	}
	if _, err := r.f.Attach(spec("a2", "a2", podA2)); err != nil {
		t.Fatalf("another pod: %v", err)
	}

	close(goOn)
	if err := <-slow; err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"slow", "a2"} {
		if r.pods[name] == nil {
			t.Errorf("%s was not opened", name)
		}
	}
	if n := len(r.f.Ports()); n != 2 || len(r.f.opening) != 0 {
		t.Errorf("%d ports, %d being opened", n, len(r.f.opening))
	}
	r.receive(encap.KindUDP, 0, udpPacket(podB, podA1, 1, 2, 3))
	r.turn()
	if got := r.pods["slow"].Sent(); len(got) != 1 {
		t.Errorf("%d packets reached it", len(got))
	}
	for _, name := range []string{"a1", "a2"} {
		if err := r.f.Detach(name, "eth0"); err != nil {
			t.Error(err)
		}
	}
	if left := r.f.bufferLeft(); left != r.f.settings.TotalBuffer {
		t.Errorf("%d bytes of memory left of %d", left, r.f.settings.TotalBuffer)
	}
}

// TestAttachStopped: a device that is there when the forwarder has stopped meanwhile is given back, a TUN vanishes.
func TestAttachStopped(t *testing.T) {
	for _, attach := range []string{AttachVeth, AttachTUN} {
		t.Run(attach, func(t *testing.T) {
			r := newRig(t, testSettings(encap.KindUDP))
			began, goOn := make(chan struct{}), make(chan struct{})
			q := &keptQueue{lastingQueue: lastingQueue{ring.NewFakeQueue(), true}}
			r.f.env.openPacket = func(ring.PacketConfig) (ring.Port, func() (ring.Stats, error), error) {
				close(began)
				<-goOn
				return q, nil, nil
			}
			r.f.env.createTUN = func(ring.TUNConfig, bool) (ring.Port, ring.Offload, error) {
				close(began)
				<-goOn
				return q, 0, nil
			}
			done := make(chan error, 1)
			go func() {
				_, err := r.f.Attach(PortSpec{Container: "a1", Interface: "eth0", Attach: attach, Device: "a1", Addresses: addrs(podA1)})
				done <- err
			}()
			<-began
			if err := r.f.Stop(t.Context()); err != nil {
				t.Fatal(err)
			}
			close(goOn)
			if err := <-done; err == nil || !strings.Contains(err.Error(), "stopping") {
				t.Errorf("error %v", err)
			}
			if !q.closed || q.lasts {
				t.Errorf("closed: %v, lasts: %v", q.closed, q.lasts)
			}
		})
	}
}

// keptQueue knows whether it was closed, too.
type keptQueue struct {
	lastingQueue
	closed bool
}

func (q *keptQueue) Close() error { q.closed = true; return q.FakeQueue.Close() }

// TestPortsCloseTogether: the kernel has all sockets wait for the same grace periods, and each one's error is told.
func TestPortsCloseTogether(t *testing.T) {
	r := newRig(t, testSettings(encap.KindUDP))
	devices := []string{"p1", "p2", "p3"}
	var inside atomic.Int32
	all := make(chan struct{})
	r.f.env.openPacket = func(c ring.PacketConfig) (ring.Port, func() (ring.Stats, error), error) {
		q := ring.NewFakeQueue()
		return &slowQueue{FakeQueue: q, close: func() error {
			if inside.Add(1) == int32(len(devices)) {
				close(all)
			}
			select {
			case <-all:
			case <-time.After(5 * time.Second):
				t.Error("it is not closed together with the others")
			}
			return errors.Join(q.Close(), fmt.Errorf("%s cannot be closed", c.Device))
		}}, nil, nil
	}
	for i, d := range devices {
		a := podA1.As4()
		a[3] += byte(i)
		if _, err := r.f.Attach(PortSpec{Container: d, Interface: "eth0", Attach: AttachVeth, Device: d, MAC: "02:00:00:00:00:01", Addresses: addrs(netip.AddrFrom4(a))}); err != nil {
			t.Fatal(err)
		}
	}
	if err, want := r.f.Stop(t.Context()), "p1 cannot be closed\np2 cannot be closed\np3 cannot be closed"; err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
	for _, d := range r.f.Descriptors() {
		if strings.HasPrefix(d.Name, "pod/") {
			t.Errorf("%s stays", d.Name)
		}
	}
}

type slowQueue struct {
	*ring.FakeQueue
	close func() error
}

func (q *slowQueue) Close() error { return q.close() }

// TestReturningPodsFit: those that had found room together find it again, in whatever order they come, and leave some for others.
func TestReturningPodsFit(t *testing.T) {
	s := testSettings(encap.KindUDP)
	s.TotalBuffer = 16 << 20
	r := newRig(t, s)
	var specs []PortSpec
	a := podA1
	add := func(name, attach string) PortSpec {
		a = a.Next()
		spec := PortSpec{Container: name, Interface: "eth0", Attach: attach, Device: name, Addresses: addrs(a)}
		if attach == AttachVeth {
			spec.MAC = "02:00:00:00:00:01"
		} else {
			spec.Bandwidth = Bandwidth{IngressRate: 1e6, IngressBurst: 1e6}
		}
		return spec
	}
	attach := func(s PortSpec) error { _, err := r.f.Attach(s); return err }
	for i := range 10 {
		specs = append(specs, add(fmt.Sprintf("v%d", i), AttachVeth), add(fmt.Sprintf("t%d", i), AttachTUN))
	}
	for i := range 4 {
		specs = append(specs, add(fmt.Sprintf("w%d", i), AttachVeth))
	}
	r.f.Expect(specs)
	for _, s := range specs {
		if err := attach(s); err != nil {
			t.Fatal(err)
		}
	}
	r.f.Expect(nil)
	if left := r.f.bufferLeft(); left < s.TotalBuffer/4 {
		t.Errorf("%d bytes are left of %d", left, s.TotalBuffer)
	}
	plain := add("plain", AttachTUN)
	plain.Bandwidth = Bandwidth{}
	if err := attach(plain); err != nil {
		t.Fatal(err)
	}
	new := 0
	for err := error(nil); err == nil; new++ {
		spec := add(fmt.Sprintf("n%d", new), AttachVeth)
		fits := r.f.CanAttach(spec)
		if err = attach(spec); (err == nil) != (fits == nil) || err != nil && err.Error() != fits.Error() {
			t.Errorf("%v, and before it was %v", err, fits)
		}
		if err != nil {
			if want := fmt.Sprintf("taken by %d pods", 24+new); !strings.Contains(err.Error(), want) {
				t.Errorf("%v, want %q", err, want)
			}
		}
	}
	if new < 3 {
		t.Errorf("room for %d new pods", new)
	}
	foreign, taken := add("foreign", AttachTUN), add("taken", AttachTUN)
	foreign.Addresses, taken.Device = []netip.Addr{netip.MustParseAddr("192.0.2.9")}, plain.Device
	for _, spec := range []PortSpec{foreign, taken} {
		if err, can := attach(spec), r.f.CanAttach(spec); err == nil || can == nil || can.Error() != err.Error() {
			t.Errorf("%v, and before it was %v", err, can)
		}
	}
}
