package forwarder

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/ring"
)

// fuzzRigs are forwarders of each encapsulation with a pod of each attachment.
// Whatever a fuzz target does to them, balance must hold.
func fuzzRigs(t testing.TB) map[encap.Kind]*rig {
	rigs := map[encap.Kind]*rig{}
	for _, kind := range kinds {
		s := testSettings(kind)
		s.ClampMSS = true
		r := newRig(t, s)
		r.f.HostFlows()
		r.attach(AttachVeth, "a1", podA1, podA1v6)
		r.attach(AttachTUN, "a2", podA2, podA2v6)
		rigs[kind] = r
	}
	return rigs
}

// law checks it for what the worker has counted since it was last asked, and returns how many frames came.
func (r *rig) law() uint64 {
	r.t.Helper()
	w := r.f.workers[0]
	t := &w.tally
	in, out := uint64(0), uint64(0)
	for _, n := range t.dropped {
		out += n
	}
	for _, n := range t.received {
		in += n
	}
	for _, n := range t.generated {
		in += n
	}
	for d := range t.forwarded {
		for _, v := range t.forwarded[d] {
			out += v.packets
		}
	}
	if in != out {
		r.t.Errorf("in %d, out %d: %+v", in, out, *t)
	}
	if t.dropped[dropNone] != 0 {
		r.t.Error("a frame was dropped without a reason")
	}
	w.ledger.publish(t)
	return in
}

// balance checks the law over what a worker has counted since its last
// publish, and that what it wrote is well formed.
func (r *rig) balance() {
	r.t.Helper()
	if r.law() == 0 {
		r.t.Error("nothing came in")
	}
	for i, name := range []string{"a1", "a2"} {
		for _, p := range r.pods[name].Sent() {
			r.written(p, 14*(1-i))
		}
	}
	for _, p := range r.hosts[0].Sent() {
		r.written(p, 0)
	}
	for _, d := range r.sends() {
		if len(d.Data) == 0 || len(d.Data) > 65507 || d.Segment > len(d.Data) {
			r.t.Errorf("a send of %d bytes in segments of %d", len(d.Data), d.Segment)
		}
	}
}

// written judges a write to a port: an IP packet that parses, with metadata that fits it.
func (r *rig) written(f ring.FakePacket, link int) {
	r.t.Helper()
	if link > 0 && len(f.Data) > link && binary.BigEndian.Uint16(f.Data[12:]) == encap.EtherTypeARP {
		return
	}
	if len(f.Data) < link {
		r.t.Fatalf("a write of %d bytes", len(f.Data))
	}
	var p encap.Packet
	if fault := encap.Parse(f.Data[link:], &p); fault != encap.OK || p.Len != len(f.Data)-link {
		r.t.Fatalf("written: %s, %d of %d bytes: % x", fault, p.Len, len(f.Data)-link, f.Data[:min(len(f.Data), 100)])
	}
	v := encap.Virtio(f.Virtio)
	if v.Flags != 0 {
		v.CsumStart -= uint16(link)
	}
	if fault := v.Check(f.Data[link:], &p); fault != encap.OK {
		r.t.Fatalf("written with metadata %+v: %s", f.Virtio, fault)
	}
}

// FuzzOutbound: any frame with any metadata from a pod or the host.
func FuzzOutbound(f *testing.F) {
	add := func(from byte, ip []byte, v ring.Virtio) {
		p := ring.FakePacket{Data: ip, Virtio: v}
		if from == 0 {
			p = fromVeth(ip, v)
		}
		f.Add(from, p.Virtio.Flags, p.Virtio.GSOType, p.Virtio.HdrLen, p.Virtio.GSOSize, p.Virtio.CsumStart, p.Virtio.CsumOffset, p.Data)
	}
	for from := range byte(3) {
		src := []netip.Addr{podA1, podA2, hostAddr}[from]
		for _, c := range podDrops {
			add(from, c.ip, c.v)
		}
		for _, dst := range []netip.Addr{podB, podA1, podA2, outsideAddr} {
			add(from, udpPacket(src, dst, 1, 2, 30), ring.Virtio{})
			add(from, udpPacket(src, dst, 1, 2, 3000, mayFragment), ring.Virtio{})
			t := tcpPacket(src, dst, 1, 3000)
			add(from, t, partial(t, 1000))
			u := udpPacket(src, dst, 1, 2, 5000, mayFragment)
			add(from, u, partial(u, 2000))
		}
	}
	add(0, arpRequest(podA1, Gateway4), ring.Virtio{})
	rigs := fuzzRigs(f)
	f.Fuzz(func(t *testing.T, from, flags, gsoType byte, hdrLen, gsoSize, csumStart, csumOffset uint16, data []byte) {
		if len(data) > ring.MaxFrame {
			return
		}
		kind := kinds[int(from>>4)%3]
		r := rigs[kind]
		r.t = t
		p := ring.FakePacket{Data: data, Virtio: ring.Virtio{Flags: flags, GSOType: gsoType, HdrLen: hdrLen, GSOSize: gsoSize, CsumStart: csumStart, CsumOffset: csumOffset}}
		w := r.f.workers[0]
		q, in := r.hosts[0], w.host
		if i := from & 3; i < 2 {
			q, in = r.pods[[]string{"a1", "a2"}[i]], r.f.ports[i]
		}
		q.Inject(p)
		w.begin()
		w.servePort(in, false)
		r.balance()
	})
}

// FuzzReceive: any buffer with any size of segments from a peer.
func FuzzReceive(f *testing.F) {
	for i, kind := range kinds {
		for _, ip := range [][]byte{udpPacket(podB, podA1, 1, 2, 30), udpPacket(podBv6, podA1v6, 1, 2, 30), tcpPacket(podB, podA2, 1, 3000),
			udpPacket(podB, hostAddr, 1, 2, 30), udpPacket(podB, podA1, 1, 2, 3000, mayFragment), raw6(podBv6, podA1v6, 58, nil)} {
			b := fromPeer(kind, nodeB, ip)
			f.Add(byte(i), byte(0), uint16(0), b)
			f.Add(byte(i), byte(3), uint16(len(b)), append(append([]byte{}, b...), b...))
			f.Add(byte(i), byte(1), uint16(500), b)
		}
	}
	rigs := fuzzRigs(f)
	f.Fuzz(func(t *testing.T, which, tos byte, segment uint16, data []byte) {
		if len(data) > 65535 {
			return
		}
		kind := kinds[int(which)%3]
		if kind == encap.KindIPIP {
			segment = 0
		}
		r := rigs[kind]
		r.t = t
		r.listen(kind, false).Inject(ring.FakeDatagram{Data: data, TOS: tos, Segment: int(segment), Addr: netip.AddrPortFrom(nodeB, 7)})
		w := r.f.workers[0]
		w.begin()
		w.serveLane(w.lanes[0], 0, true, false)
		r.balance()
	})
}
