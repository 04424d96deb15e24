package forwarder

import (
	"encoding/binary"
	"net/netip"
	"syscall"
	"testing"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/ring"
)

// FuzzSocketError: an ICMP error that quotes whatever bytes lowers a path's MTU only if it says less than we knew and a packet of
// ours can have been that long, never under the least MTU, and never that of another peer.
func FuzzSocketError(f *testing.F) {
	for i, kind := range kinds {
		for _, ip := range [][]byte{udpPacket(podA1, podB, 1, 2, 1400), udpPacket(podA1v6, podBv6, 1, 2, 1300), udpPacket(podA1, podB, 1, 2, 30)} {
			h := encap.Header{}
			if kind == encap.KindVXLAN {
				h = encap.NewVXLANHeader(1, encap.VTEPMAC(nodeB, 1), encap.VTEPMAC(nodeA, 1))
			}
			b := make([]byte, h.Len())
			h.Put(b, ip[0]>>4 == 6)
			b = append(b, ip...)
			f.Add(byte(i), uint16(1300), byte(2), true, b)
			f.Add(byte(i), uint16(0), byte(2), true, b[:min(len(b), 8)])
			f.Add(byte(i), uint16(1400), byte(2), false, b)
		}
	}
	rigs := fuzzRigs(f)
	f.Fuzz(func(t *testing.T, which byte, mtu uint16, origin byte, known bool, quoted []byte) {
		kind := kinds[int(which)%3]
		r := rigs[kind]
		w := r.f.workers[0]
		w.begin()
		p := r.f.peers[nodeB]
		p.state.pathMTU.Store(0)
		from := nodeB
		if !known {
			from = stranger
		}
		e := ring.SocketError{Peer: netip.AddrPortFrom(from, 1), Offender: stranger, Origin: ring.ErrorOrigin(origin % 4), Errno: syscall.EMSGSIZE, MTU: int(mtu), Quoted: quoted}
		w.socketError(&e)
		learned := p.state.learned(w.now)
		if learned == 0 {
			return
		}
		if e.Origin == ring.OriginLocal { // what this host says of a device is so
			if !known || learned != max(int(mtu), minDeviceMTU) || encap.PodMTU(learned, kind, false) >= p.mtu {
				t.Fatalf("learned %d of %+v", learned, e)
			}
			return
		}
		if !known || learned < minLearnedMTU || learned != max(int(mtu), minLearnedMTU) {
			t.Fatalf("learned %d of %+v", learned, e)
		}
		// What is quoted was longer than the MTU that is told.
		inner := quoted[min(p.header.Len(), len(quoted)):]
		length := -1
		switch {
		case len(inner) >= 6 && inner[0]>>4 == 4:
			length = int(binary.BigEndian.Uint16(inner[2:]))
		case len(inner) >= 6 && inner[0]>>4 == 6:
			length = 40 + int(binary.BigEndian.Uint16(inner[4:]))
		case len(inner) < 6 && kind != encap.KindIPIP:
			return
		}
		if length+kind.Overhead(false) <= int(mtu) {
			t.Fatalf("learned %d of a quoted packet of %d bytes", learned, length)
		}
	})
}
