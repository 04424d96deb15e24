package native

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/penstock-net/penstock/encap"
)

// TestOuter: what a device makes of a burst behind its outer header are packets whose headers say which piece each is.
func TestOuter(t *testing.T) {
	for _, a := range [][2]string{{"192.0.2.1", "192.0.2.2"}, {"2001:db8::1", "2001:db8::2"}} {
		const piece, port, tag, start, tos = 1440, 7471, 0x8001, 0xffffff00, 3
		src, dst := netip.MustParseAddr(a[0]), netip.MustParseAddr(a[1])
		o := NewOuter(src, dst, port)
		o.SetLink(encap.MAC{2, 1}, encap.MAC{2, 2})
		for _, n := range []int{1, piece, piece + 1, 64000} {
			payload := make([]byte, n)
			for i := range payload {
				payload[i] = byte(i * 7 >> 3)
			}
			b := append(make([]byte, o.Len()), payload...)
			o.Put(b, tag, start, n, 0, n, tos)
			eth := encap.Ethernet(b)
			if eth.Dst() != (encap.MAC{2, 2}) || eth.Src() != (encap.MAC{2, 1}) || (eth.EtherType() == encap.EtherTypeIPv4) != src.Is4() {
				t.Errorf("%v: an Ethernet header %x", src, b[:encap.EthernetLen])
			}
			v := o.Virtio(n, piece)
			if int(v.HdrLen) != o.Len() || v.IsGSO() != (n > piece) {
				t.Errorf("%v: %d bytes: %+v", src, n, v)
			}
			v.CsumStart -= encap.EthernetLen
			v.HdrLen -= encap.EthernetLen
			ip := eth.Payload()
			var p encap.Packet
			if f := encap.Parse(ip, &p); f != encap.OK || p.Src != src || p.Dst != dst || p.TOS != tos || v.Check(ip, &p) != encap.OK {
				t.Fatalf("%v: %d bytes: %v, %+v", src, n, f, p)
			}
			var got []byte
			check := func(ip []byte) {
				var p encap.Packet
				if f := encap.Parse(ip, &p); f != encap.OK || encap.CheckL4(ip, &p) != encap.ChecksumGood || src.Is4() && !encap.IPv4(ip).DF() {
					t.Fatalf("%v: a packet that is not right: %v", src, f)
				}
				pc, ok := ParseTCP(ip[p.L4:p.Len])
				if !ok || pc.Tag != tag || pc.Start != start || pc.Length != n || pc.Offset != len(got) || encap.TCP(ip[p.L4:]).DstPort() != port {
					t.Fatalf("%v: %d bytes: %+v, %v at %d", src, n, pc, ok, len(got))
				}
				got = append(got, pc.Data...)
			}
			if v.IsGSO() {
				var s encap.Segments
				if f := s.Init(ip, &p, v); f != encap.OK {
					t.Fatal(f)
				}
				for range s.Count() {
					h := make([]byte, s.HeaderLen())
					pay, _ := s.Next(h)
					check(append(h, pay...))
				}
			} else {
				encap.Complete(ip, &p, &v)
				check(ip)
			}
			if !bytes.Equal(got, payload) {
				t.Errorf("%v: %d of %d bytes", src, len(got), n)
			}
		}
	}
}

// burstLen is the length of a burst with n bytes of frames.
func burstLen(n, piece int) int { return n + 2*DirectoryLen(Pieces(n, piece)) }

// TestRoom: a burst with so many bytes of frames fits, and one with more does not, or hardly.
func TestRoom(t *testing.T) {
	for _, piece := range []int{MinPiece, 1220, 1440, 1460, 8900, 16384} {
		for _, head := range []int{0, UDPLen} {
			size := func(n int) int { return burstLen(n, piece) + Pieces(n, piece)*head }
			n := Room(piece, head, MaxBurst)
			if size(n) > MaxBurst || Pieces(n, piece) > MaxPieces {
				t.Errorf("%d bytes in pieces of %d take %d", n, piece, size(n))
			}
			if n += 2*entryLen + head + 1; size(n) <= MaxBurst && Pieces(n, piece) <= MaxPieces {
				t.Errorf("pieces of %d: %d bytes would fit too", piece, n)
			}
		}
	}
}
