//go:build linux

package ring

import (
	"bytes"
	"errors"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func openUDP(t testing.TB, ns *testNS, cfg UDPConfig) *UDP {
	t.Helper()
	var u *UDP
	ns.do(func() {
		var err error
		u, err = OpenUDP(cfg)
		must(t, err)
	})
	t.Cleanup(func() { u.Close() })
	return u
}

// udpPair joins two namespaces by a veth, with addresses of both families.
func udpPair(t testing.TB) (a, b *testNS) {
	t.Helper()
	a, b = newNS(t), newNS(t)
	veth(t, a, "eth0", b, "eth0", 1500)
	a.address("eth0", "10.8.0.1/24")
	b.address("eth0", "10.8.0.2/24")
	a.address("eth0", "fd08::1/64")
	b.address("eth0", "fd08::2/64")
	// No datagram waits for a neighbour to be found.
	for _, f := range families {
		a.neighbour("eth0", f.b, b)
		b.neighbour("eth0", f.a, a)
	}
	return a, b
}

// neighbour makes addr, on the device of the same name in another namespace,
// a permanent neighbour.
func (ns *testNS) neighbour(dev string, addr netip.Addr, other *testNS) {
	ns.t.Helper()
	here, err := ns.h.LinkByName(dev)
	must(ns.t, err)
	there, err := other.h.LinkByName(dev)
	must(ns.t, err)
	must(ns.t, ns.h.NeighSet(&netlink.Neigh{LinkIndex: here.Attrs().Index, State: netlink.NUD_PERMANENT,
		IP: addr.AsSlice(), HardwareAddr: there.Attrs().HardwareAddr}))
}

var families = []struct {
	name string
	a, b netip.Addr
}{
	{"IPv4", netip.MustParseAddr("10.8.0.1"), netip.MustParseAddr("10.8.0.2")},
	{"IPv6", netip.MustParseAddr("fd08::1"), netip.MustParseAddr("fd08::2")},
}

// receive collects n datagrams, with their bytes copied.
func receive(t testing.TB, s Socket, in *Inbox, n int) (got []Datagram) {
	t.Helper()
	eventually(t, "datagrams received", func() bool {
		k, err := s.Recv(in)
		must(t, err)
		if k != in.Len() {
			t.Fatalf("Recv: %d, Len: %d", k, in.Len())
		}
		for i := range k {
			d := in.Datagram(i)
			d.Data = bytes.Clone(d.Data)
			got = append(got, d)
		}
		return len(got) >= n
	})
	return got
}

// Runs and single datagrams go out in one call in order, keep their TOS, and a
// run arrives as one.
func TestUDPSegments(t *testing.T) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			a, b := udpPair(t)
			tx := openUDP(t, a, UDPConfig{Local: netip.AddrPortFrom(f.a, 8472), SendBuffer: 4 << 20})
			rx := openUDP(t, b, UDPConfig{Local: netip.AddrPortFrom(f.b, 8472), GRO: true, RecvBuffer: 4 << 20})
			to := NewSockaddr(rx.Local())
			if to.AddrPort() != rx.Local() {
				t.Fatalf("Sockaddr of %v says %v", rx.Local(), to.AddrPort())
			}
			d := NewDatagrams(8, 64)
			for i, m := range []struct {
				tos           uint8
				segment, size int
			}{{0, 0, 100}, {0xb8 | 1, 1000, 20 * 1000}, {2, 500, 500*3 + 17}, {3, 0, 1400}} {
				if !d.Begin(&to, m.tos, m.segment) {
					t.Fatal("no room")
				}
				for left := m.size; left > 0; left -= min(left, 700) { // iovecs need not match segments
					d.Append(bytes.Repeat([]byte{byte(i)}, min(left, 700)))
				}
				if d.Bytes(i) != m.size || d.Segment(i) != m.segment || d.TOS(i) != m.tos || d.To(i) != &to {
					t.Errorf("message %d: %d bytes, segment %d, TOS %#x", i, d.Bytes(i), d.Segment(i), d.TOS(i))
				}
			}
			if n, err := tx.Send(d, 0); n != 4 || err != nil {
				t.Fatal(n, err)
			}
			got := receive(t, rx, NewInbox(8, 65535), 4)
			want := []Datagram{{TOS: 0}, {TOS: 0xb9, Segment: 1000}, {TOS: 2, Segment: 500}, {TOS: 3}}
			for i, w := range want {
				g := got[i]
				buf := make([]byte, d.Bytes(i))
				d.CopyTo(i, buf)
				if !bytes.Equal(g.Data, buf) || g.TOS != w.TOS || g.Segment != w.Segment || g.Truncated || g.From != tx.Local() {
					t.Errorf("datagram %d: %d bytes, TOS %#x, segment %d, from %v, truncated %v; want %d, %#x, %d, %v", i,
						len(g.Data), g.TOS, g.Segment, g.From, g.Truncated, len(buf), w.TOS, w.Segment, tx.Local())
				}
			}
			// Without GRO the same run comes as single datagrams.
			plain := openUDP(t, b, UDPConfig{Local: netip.AddrPortFrom(f.b, 9000), RecvBuffer: 4 << 20})
			to = NewSockaddr(plain.Local())
			d.Reset()
			d.Begin(&to, 0, 1000)
			d.Append(make([]byte, 2100))
			if n, err := tx.Send(d, 0); n != 1 || err != nil {
				t.Fatal(n, err)
			}
			got = receive(t, plain, NewInbox(8, 65535), 3)
			if len(got[0].Data) != 1000 || len(got[2].Data) != 100 || got[0].Segment != 0 {
				t.Errorf("plain: %d, %d bytes, segment %d", len(got[0].Data), len(got[2].Data), got[0].Segment)
			}
		})
	}
}

// The message that fails is named; those before and after it are sent.
func TestUDPPartial(t *testing.T) {
	for _, f := range families {
		for _, icmp := range []bool{false, true} {
			a, b := udpPair(t)
			tx := openUDP(t, a, UDPConfig{Local: netip.AddrPortFrom(f.a, 0), Errors: icmp})
			rx := openUDP(t, b, UDPConfig{Local: netip.AddrPortFrom(f.b, 9000)})
			to := NewSockaddr(rx.Local())
			d := NewDatagrams(8, 8)
			for i, n := range []int{10, 11, 3000, 12, 13} {
				d.Begin(&to, 0, 0)
				d.Append(bytes.Repeat([]byte{byte(i)}, n))
			}
			n, err := tx.Send(d, 0)
			if n != 2 || !errors.Is(err, unix.EMSGSIZE) {
				t.Fatalf("%s: Send: %d, %v; want 2, EMSGSIZE", f.name, n, err)
			}
			n, err = tx.Send(d, 3)
			if n != 2 || err != nil {
				t.Fatalf("%s: Send of the rest: %d, %v", f.name, n, err)
			}
			got := receive(t, rx, NewInbox(8, 2000), 4)
			for i, want := range []int{10, 11, 12, 13} {
				if len(got[i].Data) != want {
					t.Errorf("%s: datagram %d has %d bytes, want %d", f.name, i, len(got[i].Data), want)
				}
			}
			// A segment that is too long is refused as well.
			d.Reset()
			d.Begin(&to, 0, 2000)
			d.Append(make([]byte, 6000))
			if n, err = tx.Send(d, 0); n != 0 || err == nil {
				t.Errorf("%s: a segment of 2000 bytes: %d, %v", f.name, n, err)
			}
			if icmp {
				var local int
				tx.Errors(func(e *SocketError) {
					if e.Origin == OriginLocal && e.Errno == unix.EMSGSIZE && e.MTU == 1500 {
						local++
					}
				})
				if local == 0 {
					t.Errorf("%s: no local error with the MTU", f.name)
				}
			}
		}
	}
}

// flannel's datagrams over IPv6 have no checksum: they must be heard.
func TestUDPNoChecksum6(t *testing.T) {
	a, b := udpPair(t)
	rx := openUDP(t, b, UDPConfig{Local: netip.MustParseAddrPort("[fd08::2]:8472")})
	tx := openUDP(t, a, UDPConfig{Local: netip.MustParseAddrPort("[fd08::1]:8472")})
	must(t, unix.SetsockoptInt(tx.FD(), unix.SOL_UDP, unix.UDP_NO_CHECK6_TX, 1))
	to := NewSockaddr(rx.Local())
	d := NewDatagrams(1, 1)
	d.Begin(&to, 0, 0)
	d.Append([]byte("no checksum"))
	if n, err := tx.Send(d, 0); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	if got := receive(t, rx, NewInbox(1, 100), 1); string(got[0].Data) != "no checksum" {
		t.Errorf("got %q", got[0].Data)
	}
}

// A socket that only sends queues nothing and never wakes its worker.
func TestUDPSendOnly(t *testing.T) {
	a, b := udpPair(t)
	quiet := openUDP(t, b, UDPConfig{Local: netip.MustParseAddrPort("10.8.0.2:9000"), SendOnly: true, Errors: true})
	tx := openUDP(t, a, UDPConfig{Local: netip.MustParseAddrPort("10.8.0.1:0")})
	poller, err := NewPoller()
	must(t, err)
	defer poller.Close()
	must(t, poller.Add(quiet.FD(), 1))
	to := NewSockaddr(quiet.Local())
	d := NewDatagrams(8, 8)
	for range 8 {
		d.Begin(&to, 0, 0)
		d.Append([]byte("unwanted"))
	}
	if n, err := tx.Send(d, 0); n != 8 || err != nil {
		t.Fatal(n, err)
	}
	var ev [1]Event
	if n, err := poller.Wait(ev[:], 50); n != 0 || err != nil {
		t.Errorf("Wait: %d, %v", n, err)
	}
	if n, err := quiet.Recv(NewInbox(1, 100)); n != 0 || err != nil {
		t.Errorf("Recv: %d, %v", n, err)
	}
}

// Several sockets share a port: each flow reaches one of them, all of it.
func TestUDPReusePort(t *testing.T) {
	a, b := udpPair(t)
	cfg := UDPConfig{Local: netip.MustParseAddrPort("10.8.0.2:9000"), ReusePort: true}
	var group [3]*UDP
	for i := range group {
		group[i] = openUDP(t, b, cfg)
	}
	to := NewSockaddr(cfg.Local)
	in := NewInbox(64, 100)
	used := map[int]bool{}
	for range 24 {
		tx := openUDP(t, a, UDPConfig{Local: netip.MustParseAddrPort("10.8.0.1:0"), SendOnly: true})
		d := NewDatagrams(5, 5)
		for range 5 {
			d.Begin(&to, 0, 0)
			d.Append([]byte("x"))
		}
		if n, err := tx.Send(d, 0); n != 5 || err != nil {
			t.Fatal(n, err)
		}
		total, hit := 0, -1
		eventually(t, "the flow received", func() bool {
			for i, u := range group {
				n, err := u.Recv(in)
				must(t, err)
				if total += n; n > 0 {
					if hit >= 0 && hit != i {
						t.Fatal("one flow reached two sockets")
					}
					hit = i
				}
			}
			return total == 5
		})
		used[hit] = true
	}
	if len(used) < 2 {
		t.Error("24 flows reached the same of three sockets")
	}
	b.do(func() {
		_, err := OpenUDP(UDPConfig{Local: cfg.Local})
		if err == nil || !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), "stop what holds the port") {
			t.Errorf("a taken port: %v", err)
		}
		_, err = OpenUDP(UDPConfig{Local: netip.MustParseAddrPort("10.99.0.2:9000")})
		if err == nil || !errors.Is(err, unix.EADDRNOTAVAIL) {
			t.Errorf("a foreign address: %v", err)
		}
		if _, err = OpenUDP(UDPConfig{}); err == nil {
			t.Error("no address: no error")
		}
	})
}

func TestInboxTruncated(t *testing.T) {
	a, b := udpPair(t)
	rx := openUDP(t, b, UDPConfig{Local: netip.MustParseAddrPort("10.8.0.2:9000")})
	tx := openUDP(t, a, UDPConfig{Local: netip.MustParseAddrPort("10.8.0.1:0")})
	to := NewSockaddr(rx.Local())
	d := NewDatagrams(2, 2)
	for _, n := range []int{101, 100} {
		d.Begin(&to, 0, 0)
		d.Append(make([]byte, n))
	}
	if n, err := tx.Send(d, 0); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	got := receive(t, rx, NewInbox(2, 100), 2)
	if !got[0].Truncated || len(got[0].Data) != 100 || got[1].Truncated || len(got[1].Data) != 100 {
		t.Errorf("truncated %v and %v", got[0].Truncated, got[1].Truncated)
	}
}

func TestUDPAllocs(t *testing.T) {
	a, b := udpPair(t)
	for _, f := range families {
		rx := openUDP(t, b, UDPConfig{Local: netip.AddrPortFrom(f.b, 9000), GRO: true, RecvBuffer: 4 << 20})
		tx := openUDP(t, a, UDPConfig{Local: netip.AddrPortFrom(f.a, 0), Errors: true, SendBuffer: 4 << 20})
		to, dead := NewSockaddr(rx.Local()), NewSockaddr(netip.AddrPortFrom(f.b, 9))
		d, in, payload := NewDatagrams(8, 32), NewInbox(16, 65535), make([]byte, 30000)
		received, failed := 0, 0
		var sum int
		each := func(e *SocketError) { failed++ }
		noAllocs(t, "send and receive "+f.name, func() {
			d.Reset()
			for i := range 6 {
				d.Begin(&to, uint8(i), 1020)
				d.Append(payload[:100])
				d.Append(payload[:5000])
			}
			d.Begin(&dead, 0, 0)
			d.Append(payload[:10])
			if n, err := tx.Send(d, 0); n != 7 || err != nil {
				t.Fatal(n, err)
			}
			n, err := rx.Recv(in)
			if err != nil {
				t.Fatal(err)
			}
			for i := range n {
				g := in.Datagram(i)
				sum += len(g.Data) + int(g.TOS) + g.Segment
			}
			received += n
			tx.Errors(each)
		})
		if received < 100 || failed == 0 {
			t.Errorf("%s: only %d datagrams and %d errors", f.name, received, failed)
		}
	}
}

func TestPoller(t *testing.T) {
	p, err := NewPoller()
	must(t, err)
	defer p.Close()
	q := NewFakeQueue()
	defer q.Close()
	must(t, p.Add(q.FD(), 1<<40|9))
	var ev [4]Event
	if n, err := p.Wait(ev[:], 0); n != 0 || err != nil {
		t.Fatalf("empty: %d, %v", n, err)
	}
	q.Inject(FakePacket{Data: []byte{1}})
	for range 2 { // level triggered
		if n, err := p.Wait(ev[:], -1); n != 1 || err != nil || ev[0].Token != 1<<40|9 || !ev[0].Readable() || ev[0].Error() {
			t.Fatalf("readable: %d, %v, %+v", n, err, ev[0])
		}
	}
	must(t, p.Delete(q.FD()))
	if n, _ := p.Wait(ev[:], 0); n != 0 {
		t.Fatal("deleted, but there")
	}
	if err := p.Delete(q.FD()); err == nil {
		t.Error("deleted twice")
	}
	// A wake from elsewhere ends a wait, and is consumed.
	go func() { time.Sleep(20 * time.Millisecond); p.Wake() }()
	start := time.Now()
	if n, err := p.Wait(ev[:], 5000); n != 0 || err != nil || time.Since(start) > 4*time.Second {
		t.Fatalf("wake: %d, %v after %v", n, err, time.Since(start))
	}
	p.Wake()
	p.Wake()
	start = time.Now()
	p.Wait(ev[:], 5000)
	if n, _ := p.Wait(ev[:], 20); n != 0 || time.Since(start) > 4*time.Second {
		t.Fatal("a wake was not consumed")
	}
	// A doze ends by itself, by a wake, and for garbage collection.
	if n, err := p.Doze(ev[:], 1); n != 0 || err != nil {
		t.Fatalf("doze: %d, %v", n, err)
	}
	go func() { time.Sleep(20 * time.Millisecond); p.Wake() }()
	start = time.Now()
	if n, err := p.Doze(ev[:], 5000); n != 0 || err != nil || time.Since(start) > 4*time.Second {
		t.Fatalf("a wake while it dozes: %d, %v after %v", n, err, time.Since(start))
	}
	collected := make(chan struct{})
	go func() { time.Sleep(20 * time.Millisecond); runtime.GC(); close(collected); p.Wake() }()
	start = time.Now()
	for end := false; !end; {
		p.Doze(ev[:], 20000)
		select {
		case <-collected:
			end = true
		default:
			if time.Since(start) > 10*time.Second {
				t.Fatal("garbage collection waits for the end of a doze")
			}
		}
	}
	p.Wait(ev[:], 0) // the wake that came behind the collection, if the doze had ended before
	noAllocs(t, "Wait, Doze and Wake", func() {
		p.Wake()
		p.Doze(ev[:], 1)
		p.Wake()
		p.Wait(ev[:], 0)
		p.Wait(ev[:], 1)
	})
}
