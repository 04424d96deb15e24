package forwarder

import (
	"net/netip"
	"testing"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/encap/native"
	"github.com/penstock-net/penstock/ring"
)

// FuzzNativeReceive: whatever a known peer sends by either carrier, nothing panics and every frame has one end. With mend the outer headers
// are made such that what is behind them is looked at.
func FuzzNativeReceive(f *testing.F) {
	x := newNativePairBy(f, encap.KindVXLAN, native.TCP|native.UDP)
	for _, by := range []native.Carrier{native.TCP, native.UDP} {
		x.wayBy(by, false, 0)
		x.podA.Inject(ring.FakePacket{Data: udpPacket(podA1, podB, 1, 2, 30)}, superTCP(podA1, podB, 1000, 5000), ring.FakePacket{Data: udpPacket(podA1v6, podBv6, 1, 2, 1300)})
		x.a.turn()
		if by == native.TCP {
			for _, p := range uplink(x.a).Sent() {
				f.Add(true, true, uint16(0), p.Data)
				f.Add(true, false, uint16(0), p.Data)
			}
			continue
		}
		for _, d := range x.a.f.workers[0].native.sock.(*ring.FakeSocket).Sent() {
			f.Add(false, false, uint16(d.Segment), d.Data)
		}
	}
	f.Fuzz(func(t *testing.T, tcp, mend bool, segment uint16, data []byte) {
		if len(data) > 65535 {
			return
		}
		x.b.t = t
		w := x.b.f.workers[0]
		w.begin()
		if tcp {
			virtio := ring.Virtio{}
			if mend && len(data) > encap.EthernetLen+40 {
				virtio.Flags = ring.DataValid
				ip := data[encap.EthernetLen:]
				ip[0], ip[6], ip[7], ip[9] = 0x45, 0x40, 0, encap.ProtoTCP
				ip[2], ip[3], ip[10], ip[11] = byte(len(ip)>>8), byte(len(ip)), 0, 0
				copy(ip[12:], nodeA.AsSlice())
				sum := ^encap.Fold(encap.Sum(ip[:20], 0))
				ip[10], ip[11] = byte(sum>>8), byte(sum)
			}
			uplink(x.b).Inject(ring.FakePacket{Data: data, Virtio: virtio})
			w.serveTCP(false)
		} else {
			w.native.sock.(*ring.FakeSocket).Inject(ring.FakeDatagram{Data: data, Segment: int(segment), Addr: netip.AddrPortFrom(nodeA, 7)})
			w.serveNative(true, false)
		}
		for _, s := range w.native.incomplete {
			s.since = -2 * nativeExpire.Nanoseconds()
		}
		w.nativeTimers(-1)
		x.b.law()
		for _, p := range x.podB.Sent() {
			x.b.written(p, 0)
		}
		for _, p := range x.b.hosts[0].Sent() {
			x.b.written(p, 0)
		}
		for len(x.b.f.native.inbox) > 0 {
			<-x.b.f.native.inbox
		}
	})
}
