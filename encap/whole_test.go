package encap

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// TestWhole: the outer header of an uncut superframe, decoded by an independent library.
func TestWhole(t *testing.T) {
	for _, c := range []struct{ src, dst string }{{"192.0.2.1:5000", "192.0.2.2:8472"}, {"[2001:db8::1]:5000", "[2001:db8::2]:8472"}} {
		for _, inner6 := range []bool{false, true} {
			src, dst := netip.MustParseAddrPort(c.src), netip.MustParseAddrPort(c.dst)
			w := NewWhole(src, dst, NewVXLANHeader(7, MAC{2, 2}, MAC{2, 1}))
			w.SetLink(MAC{2, 9, 1}, MAC{2, 9, 2})
			inner := bytes.Repeat([]byte{0xab}, 60000)
			b := make([]byte, w.Len()+len(inner))
			copy(b[w.Len():], inner)
			w.Put(b, len(inner), 0xb9, inner6)

			p := gopacket.NewPacket(b, layers.LayerTypeEthernet, gopacket.NoCopy)
			eth := p.Layer(layers.LayerTypeEthernet).(*layers.Ethernet)
			if !bytes.Equal(eth.DstMAC, []byte{2, 9, 2, 0, 0, 0}) || !bytes.Equal(eth.SrcMAC, []byte{2, 9, 1, 0, 0, 0}) {
				t.Errorf("%s: link %s → %s", c.src, eth.SrcMAC, eth.DstMAC)
			}
			tos := uint8(0)
			var network gopacket.NetworkLayer
			if src.Addr().Is4() {
				ip := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4)
				tos, network = ip.TOS, ip
				if ip.Flags != layers.IPv4DontFragment || int(ip.Length) != len(b)-EthernetLen || Fold(Sum(b[EthernetLen:EthernetLen+IPv4Len], 0)) != 0xffff {
					t.Errorf("outer IPv4 %+v", ip)
				}
			} else {
				ip := p.Layer(layers.LayerTypeIPv6).(*layers.IPv6)
				tos, network = ip.TrafficClass, ip
				if int(ip.Length) != len(b)-EthernetLen-IPv6Len {
					t.Errorf("outer IPv6 %+v", ip)
				}
			}
			if tos != 0xb9 || network.NetworkFlow().Src().String() != src.Addr().String() || network.NetworkFlow().Dst().String() != dst.Addr().String() {
				t.Errorf("%s: TOS %#x, %s", c.src, tos, network.NetworkFlow())
			}
			u := p.Layer(layers.LayerTypeUDP).(*layers.UDP)
			if uint16(u.SrcPort) != src.Port() || uint16(u.DstPort) != dst.Port() || int(u.Length) != len(b)-w.OuterL4() {
				t.Errorf("UDP %+v", u)
			}
			// The field holds the pseudo-header's sum, uncomplemented: what udp_set_csum leaves for GSO.
			pseudo := Packet{Src: src.Addr(), Dst: dst.Addr(), Proto: ProtoUDP, Version: 4}
			if w.Outer6() {
				pseudo.Version = 6
			}
			if want := Fold(PseudoSum(&pseudo, int(u.Length))); u.Checksum != want {
				t.Errorf("checksum %#x, want %#x", u.Checksum, want)
			}
			if v := VXLAN(b[w.OuterL4()+UDPLen:]); !v.Valid() || v.VNI() != 7 {
				t.Error("VXLAN header")
			}
			want := uint16(EtherTypeIPv4)
			if inner6 {
				want = EtherTypeIPv6
			}
			if got := Ethernet(b[w.OuterL4()+UDPLen+VXLANLen:]).EtherType(); got != want {
				t.Errorf("inner type %#x", got)
			}
			if !w.Fits(0xffff-(w.Len()-EthernetLen)) || w.Fits(0x10000-(w.Len()-EthernetLen)) {
				t.Error("Fits is wrong at its border")
			}
		}
	}
}

func TestWholeDoesNotAllocate(t *testing.T) {
	w := NewWhole(netip.MustParseAddrPort("192.0.2.1:5000"), netip.MustParseAddrPort("192.0.2.2:8472"), NewVXLANHeader(7, MAC{2, 2}, MAC{2, 1}))
	b := make([]byte, w.Len())
	if n := testing.AllocsPerRun(100, func() { w.Put(b, 60000, 0, false) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
