package forwarder

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/ring"
)

// stillPort reads the same frames again and again and takes every write,
// without an allocation and without a system call.
type stillPort struct {
	*ring.FakeQueue
	frames []ring.Frame
	fresh  [][]byte // the beginnings of the frames, which the worker changes
}

func (p *stillPort) Read(_ *ring.Slab, fs []ring.Frame) (int, error) {
	for i := range p.frames {
		copy(p.frames[i].Bytes(), p.fresh[i])
	}
	return copy(fs, p.frames), nil
}

func (p *stillPort) Release() {}

func (p *stillPort) Write(ps *ring.Packets, from int) (int, error) { return ps.Len() - from, nil }

// stillSocket takes every send.
type stillSocket struct{ ring.Socket }

func (stillSocket) Send(d *ring.Datagrams, from int) (int, error) { return d.Len() - from, nil }

// headBytes is how much of a frame the worker may change: all headers.
const headBytes = 128

// pipeline is one way through a worker, ready to be turned in memory.
type pipeline struct {
	name    string
	packets int // IP packets a turn, as they are on the wire
	turn    func()
	r       *rig
}

// still puts ports and sockets that cost nothing in place of the fakes.
func still(r *rig) {
	for _, w := range r.f.workers {
		for _, l := range w.lanes {
			for _, e := range l.egress {
				e.sock = stillSocket{e.sock}
			}
		}
	}
	for _, p := range append(append([]*port{}, r.f.ports...), r.f.hosts...) {
		p.io = &stillPort{FakeQueue: p.io.(*ring.FakeQueue)}
	}
}

// outboundPipeline reads these frames from a pod in each turn.
func outboundPipeline(t testing.TB, name string, kind encap.Kind, attach string, packets int, frames ...ring.FakePacket) pipeline {
	r := newRig(t, testSettings(kind))
	r.attach(attach, "a1", podA1, podA1v6)
	r.attach(AttachVeth, "a2", podA2)
	still(r)
	p, w := r.f.ports[0], r.f.workers[0]
	q := p.io.(*stillPort)
	for _, f := range frames {
		mem := append(make([]byte, ring.Headroom), f.Data...)
		q.frames = append(q.frames, ring.Frame{Mem: mem, Start: ring.Headroom, Virtio: f.Virtio})
		q.fresh = append(q.fresh, append([]byte{}, f.Data[:min(len(f.Data), headBytes)]...))
	}
	return pipeline{name, packets, func() {
		w.begin()
		w.servePort(p, false)
		w.ledger.publish(&w.tally)
	}, r}
}

// inboundPipeline receives these datagrams from node B in each turn.
func inboundPipeline(t testing.TB, name string, kind encap.Kind, attach string, ds ...ring.FakeDatagram) pipeline {
	r := newRig(t, testSettings(kind))
	r.attach(attach, "a1", podA1, podA1v6)
	still(r)
	w := r.f.workers[0]
	l := w.lanes[0]
	for i := range ds {
		ds[i].Addr = netip.AddrPortFrom(nodeB, 7)
	}
	r.listen(kind, false).Inject(ds...)
	n, err := l.sockets[0].Recv(w.inbox)
	if err != nil || n != len(ds) {
		t.Fatalf("received %d: %v", n, err)
	}
	packets := 0
	type head struct{ to, from []byte }
	var heads []head
	for i, d := range ds {
		data := w.inbox.Datagram(i).Data
		size := len(data)
		if d.Segment > 0 {
			size = d.Segment
		}
		for at := 0; at < len(data); at += size {
			to := data[at:min(len(data), at+min(size, headBytes))]
			heads = append(heads, head{to, append([]byte{}, to...)})
			packets++
		}
	}
	return pipeline{name, packets, func() {
		for _, h := range heads {
			copy(h.to, h.from)
		}
		w.begin()
		w.inbound(l, n)
		w.flush()
		w.ledger.publish(&w.tally)
	}, r}
}

// pipelines are the ways that traffic takes most.
func pipelines(t testing.TB) []pipeline {
	times := func(n int, p func(i int) ring.FakePacket) (ps []ring.FakePacket) {
		for i := range n {
			ps = append(ps, p(i))
		}
		return ps
	}
	small := func(flows, n int) func(int) ring.FakePacket {
		return func(i int) ring.FakePacket {
			ip := udpPacket(podA1, podB, uint16(1+i%flows), 2, n)
			return fromVeth(ip, partial(ip, 0))
		}
	}
	bare := func(f func(int) ring.FakePacket) func(int) ring.FakePacket {
		return func(i int) ring.FakePacket {
			p := f(i)
			p.Data = p.Data[14:]
			p.Virtio.CsumStart -= 14
			return p
		}
	}
	mixed := func(i int) ring.FakePacket {
		size := 22
		switch r := i * 7 % 12; {
		case r >= 11:
			size = 1358
		case r >= 7:
			size = 528
		}
		return small(16, size)(i)
	}
	super := func(dst netip.Addr, n int) func(int) ring.FakePacket {
		return func(i int) ring.FakePacket {
			ip := tcpPacket(podA1, dst, uint32(1+i*n), n)
			return fromVeth(ip, partial(ip, 1410))
		}
	}
	run := func(kind encap.Kind, n int, ip func(i int) []byte) ring.FakeDatagram {
		d := ring.FakeDatagram{}
		for i := range n {
			b := fromPeer(kind, nodeB, ip(i))
			d.Data = append(d.Data, b...)
			d.Segment = len(b)
		}
		return d
	}
	stream := func(i int) []byte { return tcpPacket(podB, podA1, uint32(1+i*1410), 1410) }
	whole := ring.FakeDatagram{Data: fromPeer(encap.KindVXLAN, nodeB, func() []byte {
		ip := tcpPacket(podB, podA1, 1, 1410*45)
		partial(ip, 0)
		return ip
	}())}
	v, u, x := encap.KindVXLAN, encap.KindUDP, encap.KindIPIP
	wholes := inboundPipeline(t, "in/vxlan/veth/superframe", v, AttachVeth, whole, whole, whole, whole)
	wholes.packets *= 45
	return []pipeline{
		outboundPipeline(t, "out/veth/vxlan/64B", v, AttachVeth, 64, times(64, small(1, 22))...),
		outboundPipeline(t, "out/veth/vxlan/64B/16flows", v, AttachVeth, 64, times(64, small(16, 22))...),
		outboundPipeline(t, "out/veth/vxlan/mixed/16flows", v, AttachVeth, 64, times(64, mixed)...),
		outboundPipeline(t, "out/veth/vxlan/1400B", v, AttachVeth, 64, times(64, small(1, 1372))...),
		outboundPipeline(t, "out/tun/vxlan/64B", v, AttachTUN, 64, times(64, bare(small(1, 22)))...),
		outboundPipeline(t, "out/tun/udp/64B", u, AttachTUN, 64, times(64, bare(small(1, 22)))...),
		outboundPipeline(t, "out/tun/ipip/64B", x, AttachTUN, 64, times(64, bare(small(1, 22)))...),
		outboundPipeline(t, "out/veth/vxlan/superframe", v, AttachVeth, 8*46, times(8, super(podB, 1410*46))...),
		outboundPipeline(t, "local/veth/64B", v, AttachVeth, 64, times(64, func(i int) ring.FakePacket { return fromPod(udpPacket(podA1, podA2, 1, 2, 22)) })...),
		outboundPipeline(t, "local/veth/superframe", v, AttachVeth, 8*46, times(8, super(podA2, 1410*46))...),
		outboundPipeline(t, "host/veth/64B", v, AttachVeth, 64, times(64, func(i int) ring.FakePacket { return fromPod(udpPacket(podA1, outsideAddr, 1, 2, 22)) })...),
		inboundPipeline(t, "in/vxlan/veth/64B/merged", v, AttachVeth, run(v, 64, func(i int) []byte { return udpPacket(podB, podA1, 1, 2, 22) })),
		inboundPipeline(t, "in/vxlan/veth/64B/16flows", v, AttachVeth, run(v, 64, func(i int) []byte { return udpPacket(podB, podA1, uint16(i%16), 2, 22) })),
		inboundPipeline(t, "in/vxlan/veth/stream/merged", v, AttachVeth, run(v, 44, stream), run(v, 44, func(i int) []byte { return stream(44 + i) })),
		wholes,
		inboundPipeline(t, "in/udp/tun/64B/merged", u, AttachTUN, run(u, 64, func(i int) []byte { return udpPacket(podB, podA1, 1, 2, 22) })),
		inboundPipeline(t, "in/ipip/tun/64B", x, AttachTUN, func() (ds []ring.FakeDatagram) {
			for range inboxMessages {
				ds = append(ds, ring.FakeDatagram{Data: fromPeer(x, nodeB, udpPacket(podB, podA1, 1, 2, 22))})
			}
			return ds
		}()...),
		inboundPipeline(t, "in/vxlan/host/64B", v, AttachTUN, run(v, 64, func(i int) []byte { return udpPacket(podB, hostAddr, 1, 2, 22) })),
	}
}

// TestNoAllocations: the whole path, from the frames that a port or socket has
// given to the messages handed to the kernel, allocates nothing.
func TestNoAllocations(t *testing.T) {
	for _, p := range pipelines(t) {
		p.turn()
		if n := testing.AllocsPerRun(100, p.turn); n != 0 {
			t.Errorf("%s: %v allocations for %d packets", p.name, n, p.packets)
		}
		// A capture copies, and allocates no more.
		tap := p.r.tap(TapFilter{Snap: 96})
		p.turn()
		if n := testing.AllocsPerRun(10, p.turn); n != 0 {
			t.Errorf("%s, tapped: %v allocations for %d packets", p.name, n, p.packets)
		}
		if tap.Read(func(*TapRecord) {}) == 0 {
			t.Errorf("%s: the tap sees nothing", p.name)
		}
		tap.Close()
		p.r.check(nil) // and really forwards
		if c := p.r.f.Counters(); len(c.Forwarded) == 0 {
			t.Errorf("%s forwards nothing", p.name)
		}
	}
}

// BenchmarkPipeline is the daemon's own cost a packet, without the kernel's.
func BenchmarkPipeline(b *testing.B) {
	for _, p := range pipelines(b) {
		b.Run(p.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				p.turn()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*p.packets), "ns/packet")
		})
	}
}

// BenchmarkFlows is the cost of the way back: what a packet for a pod with
// translated flows pays.
func BenchmarkFlows(b *testing.B) {
	for _, workers := range []int{1, 2, 8} {
		m := newFlowMemory(workers)
		for i := range 1000 {
			m.add(0, &flowKey{Proto: 17, Src: podB, Dst: podA1, SrcPort: uint16(i), DstPort: 7})
		}
		ip := udpPacket(podB, podA1, 60000, 7, 22)
		var p encap.Packet
		encap.Parse(ip, &p)
		b.Run(fmt.Sprint("miss/", workers), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if m.isAnswer(ip, &p) {
					b.Fatal("known")
				}
			}
		})
	}
}
