package forwarder

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/ring"
	"github.com/penstock-net/penstock/table/feed"
)

// state is what a refused change must leave as it was.
func (r *rig) state() string {
	s := fmt.Sprintf("%+v\n", r.f.Descriptors())
	for p, h := range r.f.table.Load().Network(1).Routes() {
		s += fmt.Sprintf("%s %d %p %p\n", p, h.kind, h.peer, h.port)
	}
	lines := strings.Split(s, "\n")
	slices.Sort(lines)
	for _, p := range r.f.Ports() {
		lines = append(lines, p.PortSpec.Container, p.PortSpec.Device)
	}
	lines = append(lines, fmt.Sprint(r.f.feedPeers, len(r.f.peers), len(r.f.endpoints), *r.f.tunnelPorts.set.Load(), r.f.tunnelPorts.ipip.Load(), *r.f.live.Load()))
	settings := r.f.settings
	settings.Log = nil
	return strings.Join(append(lines, fmt.Sprintf("%+v", settings)), "\n")
}

// TestAttachErrors: what cannot be attached is refused in one sentence and
// changes nothing.
func TestAttachErrors(t *testing.T) {
	good := PortSpec{Container: "new", Interface: "eth0", Attach: AttachTUN, Device: "new", Addresses: addrs(podA2)}
	for name, edit := range map[string]func(*PortSpec, *rig){
		"no container":      func(s *PortSpec, _ *rig) { s.Container = "" },
		"no interface":      func(s *PortSpec, _ *rig) { s.Interface = "" },
		"no device":         func(s *PortSpec, _ *rig) { s.Device = "" },
		"unknown attach":    func(s *PortSpec, _ *rig) { s.Attach = "bridge" },
		"no address":        func(s *PortSpec, _ *rig) { s.Addresses = nil },
		"foreign address":   func(s *PortSpec, _ *rig) { s.Addresses = addrs(podB) },
		"host's address":    func(s *PortSpec, _ *rig) { s.Addresses = addrs(hostAddr) },
		"taken address":     func(s *PortSpec, _ *rig) { s.Addresses = addrs(podA2, podA1) },
		"address twice":     func(s *PortSpec, _ *rig) { s.Addresses = addrs(podA2, podA2) },
		"invalid address":   func(s *PortSpec, _ *rig) { s.Addresses = addrs(netip.Addr{}) },
		"taken device":      func(s *PortSpec, _ *rig) { s.Device = "a1" },
		"taken key":         func(s *PortSpec, _ *rig) { s.Container = "a1" },
		"MTU 60":            func(s *PortSpec, _ *rig) { s.MTU = 60 },
		"MTU 70000":         func(s *PortSpec, _ *rig) { s.MTU = 70000 },
		"IPv6 with MTU 600": func(s *PortSpec, _ *rig) { s.MTU, s.Addresses = 600, addrs(podA2v6) },
		"multicast MAC":     func(s *PortSpec, _ *rig) { s.MAC = "01:00:5e:00:00:01" },
		"routed bandwidth": func(s *PortSpec, _ *rig) {
			s.Attach, s.Device, s.Bandwidth = AttachRouted, "", Bandwidth{EgressRate: 1e6, EgressBurst: 1e6}
		},
		"no MAC":         func(s *PortSpec, _ *rig) { s.MAC = "hello" },
		"no buffer left": func(s *PortSpec, r *rig) { s.Attach = AttachVeth; r.f.settings.TotalBuffer = 2<<20 + 100 },
		"device refused": func(s *PortSpec, r *rig) {
			r.f.env.createTUN = func(ring.TUNConfig, bool) (ring.Port, ring.Offload, error) { return nil, 0, errors.New("no device") }
		},
		"cannot be polled": func(s *PortSpec, r *rig) {
			r.f.env.createTUN = func(ring.TUNConfig, bool) (ring.Port, ring.Offload, error) {
				q := ring.NewFakeQueue()
				q.Close()
				return q, 0, nil
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, testSettings(encap.KindUDP))
			r.veth("a1", podA1)
			spec := good
			edit(&spec, r)
			before := r.state()
			_, err := r.f.Attach(spec)
			if err == nil {
				t.Fatal("accepted")
			}
			if strings.Contains(err.Error(), "\n") || len(err.Error()) < 10 && name != "device refused" {
				t.Errorf("error %q", err)
			}
			if r.state() != before {
				t.Errorf("state before\n%s\nafter\n%s", before, r.state())
			}
			r.turn()
			r.check(nil)
		})
	}
	t.Run("the same again", func(t *testing.T) {
		r := newRig(t, testSettings(encap.KindUDP))
		r.attach(AttachTUN, "new", podA2)
		before := r.state()
		if _, err := r.f.Attach(good); err != nil || r.state() != before {
			t.Errorf("%v", err)
		}
		if _, err := r.f.Attach(PortSpec{Container: "new", Interface: "eth0", Attach: AttachTUN, Device: "new", Addresses: addrs(podA2), MTU: 1000}); err == nil {
			t.Error("another MTU accepted")
		}
	})
}

// TestSetPeersErrors: a list with any mistake is refused whole.
func TestSetPeersErrors(t *testing.T) {
	nodeC := netip.MustParseAddr("192.0.2.3")
	cidr := func(s string) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(s)} }
	fine := feed.Peer{Name: "fine", Address: nodeC, PodCIDRs: cidr("10.244.3.0/24"), Encap: "udp", Port: 9999}
	for name, bad := range map[string]feed.Peer{
		"unknown encap":      {Name: "x", Address: stranger, Encap: "gre"},
		"no address":         {Name: "x"},
		"another family":     {Name: "x", Address: netip.MustParseAddr("2001:db8::1")},
		"our own address":    {Name: "x", Address: nodeA},
		"the same address":   {Name: "x", Address: nodeC},
		"our own pods":       {Name: "x", Address: stranger, PodCIDRs: cidr("10.244.1.0/24")},
		"another's pods":     {Name: "x", Address: stranger, PodCIDRs: cidr("10.244.3.0/24")},
		"two encaps, a port": {Name: "x", Address: stranger, Encap: "vxlan", Port: 9999},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, testSettings(encap.KindVXLAN))
			r.veth("a1", podA1)
			before := r.state()
			if err := r.f.SetPeers([]feed.Peer{fine, bad}); err == nil {
				t.Fatal("accepted")
			}
			if r.state() != before {
				t.Errorf("state before\n%s\nafter\n%s", before, r.state())
			}
		})
	}
	t.Run("socket refused", func(t *testing.T) {
		r := newRig(t, testSettings(encap.KindVXLAN))
		before := r.state()
		open := r.f.env.openUDP
		r.f.env.openUDP = func(c ring.UDPConfig) (ring.Socket, error) {
			if c.Local.Port() == 9998 {
				return nil, syscall.EADDRINUSE
			}
			return open(c)
		}
		other := feed.Peer{Name: "x", Address: stranger, Encap: "udp", Port: 9998}
		if err := r.f.SetPeers([]feed.Peer{fine, other}); err == nil {
			t.Fatal("accepted")
		}
		if r.state() != before {
			t.Errorf("state before\n%s\nafter\n%s", before, r.state())
		}
	})
}

// TestEndpoints: sockets for peers with another encapsulation come and go with
// them, and traffic flows both ways by each.
func TestEndpoints(t *testing.T) {
	r := newRig(t, testSettings(encap.KindVXLAN))
	pod := r.attach(AttachTUN, "a1", podA1, podA1v6)
	base := r.state()
	b := r.f.feedPeers[0]
	nodeC, podC := netip.MustParseAddr("192.0.2.3"), netip.MustParseAddr("10.244.3.5")
	for _, c := range []struct {
		encap string
		port  uint16
		kind  encap.Kind
	}{{"udp", 0, encap.KindUDP}, {"udp", 7777, encap.KindUDP}, {"vxlan", 4789, encap.KindVXLAN}, {"ipip", 0, encap.KindIPIP}} {
		t.Run(fmt.Sprint(c.encap, c.port), func(t *testing.T) {
			before := len(r.udp) + len(r.raw)
			r.peers(b, feed.Peer{Name: "c", Address: nodeC, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.3.0/24")}, Encap: c.encap, Port: c.port})
			opened := append(append([]*ring.FakeSocket{}, r.udp...), r.raw...)
			if len(opened) == before {
				t.Fatal("no socket opened")
			}
			pod.Inject(ring.FakePacket{Data: udpPacket(podA1, podC, 1, 2, 30)}, ring.FakePacket{Data: udpPacket(podA1, podB, 1, 2, 30)})
			r.turn()
			sends := r.sends()
			if len(sends) != 2 {
				t.Fatalf("%d sends", len(sends))
			}
			port := c.port
			if port == 0 {
				port = c.kind.DefaultPort()
			}
			for _, d := range sends {
				if want := netip.AddrPortFrom(nodeC, port); d.Addr.Addr() == nodeC && (d.Addr != want || len(d.Data) != c.kind.HeaderLen()+58) {
					t.Errorf("sent %d bytes to %s, want %s", len(d.Data), d.Addr, want)
				}
			}
			listen := r.raw
			if c.kind != encap.KindIPIP {
				listen = r.udp[len(r.udp)-1:]
				if c.kind == encap.KindVXLAN {
					listen = r.udp[len(r.udp)-2:]
				}
			}
			data := fromPeer(c.kind, nodeC, udpPacket(podC, podA1, 1, 2, 30))
			listen[0].Inject(ring.FakeDatagram{Data: data, Addr: netip.AddrPortFrom(nodeC, 1)})
			r.turn()
			if n := len(pod.Sent()); n != 1 {
				t.Errorf("the pod got %d", n)
			}
			// A pod may not speak to the new tunnel port either, now.
			loop := udpPacket(podA1, nodeC, 1, port, 3)
			if c.kind == encap.KindIPIP {
				loop = raw4(podA1, nodeC, encap.ProtoIPIP, udpPacket(podA1, podB, 1, 2, 3))
			}
			drops := func() uint64 { return r.f.Counters().Dropped["tunnel_loop"] }
			was := drops()
			pod.Inject(ring.FakePacket{Data: loop})
			r.turn()
			if drops() != was+1 {
				t.Error("its tunnel port can be reached from inside")
			}
			r.peers(b)
			if r.state() != base {
				t.Errorf("state before\n%s\nafter\n%s", base, r.state())
			}
			pod.Inject(ring.FakePacket{Data: loop})
			r.turn()
			if drops() != was+1 || len(r.hosts[0].Sent()) != 1 {
				t.Error("the port is still a tunnel port")
			}
		})
	}
}

// TestReconfigure: what may change does, at once; what may not is named.
func TestReconfigure(t *testing.T) {
	for key, edit := range map[string]func(*Settings){
		"node.address":      func(s *Settings) { s.Address = stranger },
		"encap.type":        func(s *Settings) { s.Encap = encap.KindUDP },
		"encap.port":        func(s *Settings) { s.Port++ },
		"encap.vni":         func(s *Settings) { s.VNI++ },
		"encap.sourcePorts": func(s *Settings) { s.SourcePorts = 4 },
		"workers":           func(s *Settings) { s.Workers++ },
		"priority":          func(s *Settings) { s.Priority = !s.Priority },
		"polling":           func(s *Settings) { s.Polling = !s.Polling },
		"host.device":       func(s *Settings) { s.HostDevice = "x" },
		"offload":           func(s *Settings) { s.Offload.UDPGRO = false },
		"limits":            func(s *Settings) { s.PodBuffer++ },
		"node.podCIDRs":     func(s *Settings) { s.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.7.0/24")} },
		"peer node-b": func(s *Settings) {
			s.PodCIDRs = append(slices.Clone(s.PodCIDRs), netip.MustParsePrefix("10.244.2.0/24"))
		},
	} {
		t.Run(key, func(t *testing.T) {
			r := newRig(t, testSettings(encap.KindVXLAN))
			r.veth("a1", podA1)
			before := r.state()
			s := testSettings(encap.KindVXLAN)
			edit(&s)
			err := r.f.Reconfigure(s)
			if err == nil {
				t.Fatal("accepted")
			}
			if !strings.Contains(err.Error(), key) && key != "peer node-b" {
				t.Errorf("the error does not name %s: %v", key, err)
			}
			if r.state() != before {
				t.Errorf("state before\n%s\nafter\n%s", before, r.state())
			}
		})
	}
	r := newRig(t, testSettings(encap.KindVXLAN))
	pod := r.attach(AttachTUN, "a1", podA1)
	s := testSettings(encap.KindVXLAN)
	s.CopyDSCP, s.UnderlayMTU, s.PodMTU = true, 1400, 1350
	s.Cluster = append(s.Cluster, netip.MustParsePrefix("10.99.0.0/16"))
	if err := r.f.Reconfigure(s); err != nil {
		t.Fatal(err)
	}
	pod.Inject(ring.FakePacket{Data: udpPacket(podA1, podB, 1, 2, 3, func(ip *layers.IPv4) { ip.TOS = 0x28 })},
		ring.FakePacket{Data: udpPacket(podA1, podB, 1, 2, 1351-28)}, ring.FakePacket{Data: udpPacket(podA1, netip.MustParseAddr("10.99.0.1"), 1, 2, 3)})
	r.turn()
	if d := r.sends(); len(d) != 1 || d[0].TOS != 0x28 {
		t.Error("the DSCP is not copied")
	}
	r.check(map[Reason]uint64{DropTooBig: 1, DropNoRoute: 1})
}

// TestReplace: a network and its peers come together and go together, which neither could alone; what does not fit changes nothing.
func TestReplace(t *testing.T) {
	r := newRig(t, testSettings(encap.KindVXLAN))
	pod := r.attach(AttachTUN, "a1", podA1)
	far := netip.MustParseAddr("10.99.1.7")
	was, is := r.f.settings, r.f.settings
	is.Cluster = append(slices.Clone(is.Cluster), netip.MustParsePrefix("10.99.0.0/16"))
	old := r.f.feedPeers
	c := feed.Peer{Name: "node-c", Address: stranger, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.99.1.0/24")}}
	peers := append(slices.Clone(old), c)
	send := func() int {
		pod.Inject(ring.FakePacket{Data: udpPacket(podA1, far, 1, 2, 3)})
		r.turn()
		return len(r.sends())
	}
	refused := func(what string, err error, before string) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), "peer node-c: 10.99.1.0/24 is not in the pods' network") {
			t.Errorf("%s: %v", what, err)
		}
		if r.state() != before {
			t.Errorf("%s: state before\n%s\nafter\n%s", what, before, r.state())
		}
	}
	before := r.state()
	refused("a peer whose network does not come", r.f.Replace(was, peers), before)
	if err := r.f.Replace(is, peers); err != nil {
		t.Fatal(err)
	}
	if n := send(); n != 1 {
		t.Errorf("%d datagrams to the new peer", n)
	}
	wide := r.state()
	refused("a network without its peer", r.f.Reconfigure(was), wide)
	if err := r.f.Replace(was, old); err != nil {
		t.Fatal(err)
	}
	if n := send(); n != 0 || len(r.f.peers) != len(old) {
		t.Errorf("%d datagrams to a peer that has gone, %d peers", n, len(r.f.peers))
	}
}

// TestStop: it ends in time, twice is fine, and what is asked after it is refused or harmless.
func TestStop(t *testing.T) {
	s := testSettings(encap.KindUDP)
	s.Workers = 2
	r := newRig(t, s)
	r.veth("a1", podA1)
	r.f.Start()
	r.f.Start()
	for range 2 {
		if err := r.f.Stop(t.Context()); err != nil {
			t.Error(err)
		}
	}
	r.f.Start()
	if turns, waiting := r.f.Progress(); len(turns) != 2 || len(waiting) != 2 {
		t.Error("no progress told")
	}
	spec := PortSpec{Container: "b", Interface: "e", Attach: AttachTUN, Device: "b", Addresses: addrs(podA2)}
	lent := func() int {
		fd, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	queue, opened := lent(), len(r.udp)
	for _, c := range []struct {
		what string
		do   func() error
	}{
		{"Attach", func() error { _, err := r.f.Attach(spec); return err }},
		{"AttachQueue", func() error { _, err := r.f.AttachQueue(spec, queue); return err }},
		{"Adopt", func() error { _, err := r.f.Adopt(spec, lent()); return err }},
		{"Detach", func() error { return r.f.Detach("a1", "eth0") }},
		{"SetPeers", func() error {
			return r.f.SetPeers([]feed.Peer{{Name: "c", Address: stranger, Encap: "vxlan", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.3.0/24")}}})
		}},
		{"Reconfigure", func() error { return r.f.Reconfigure(r.f.settings) }},
	} {
		done := make(chan error, 1)
		go func() { done <- c.do() }()
		select {
		case err := <-done:
			if err == nil || !strings.Contains(err.Error(), "the daemon is stopping") {
				t.Errorf("%s after the stop: %v", c.what, err)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("%s hangs after the stop", c.what)
		}
	}
	if _, err := unix.FcntlInt(uintptr(queue), unix.F_GETFD, 0); err != unix.EBADF {
		t.Errorf("the queue that was lent: %v", err)
	}
	if n := len(r.udp) - opened; n != 0 {
		t.Errorf("%d sockets were opened after the stop", n)
	}
	r.check(nil)
}

// TestStopStuck: a worker that does not come back does not keep Stop beyond its time.
func TestStopStuck(t *testing.T) {
	r := newRig(t, testSettings(encap.KindUDP))
	r.f.Start()
	stuck, release := make(chan struct{}), make(chan struct{})
	go r.f.workers[0].do(func(*worker) error { close(stuck); <-release; return nil })
	<-stuck
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	stopped := make(chan error, 1)
	go func() { stopped <- r.f.Stop(ctx) }()
	select {
	case err := <-stopped:
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Stop: %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Error("Stop waits for ever")
	}
	close(release)
	<-r.f.workers[0].done
}
