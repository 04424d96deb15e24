//go:build linux

package ring

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

var (
	here4, there4 = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	here6, there6 = netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
)

// tcpTo is a segment to an address and port.
func tcpTo(t *testing.T, dst netip.Addr, from, port uint16, change func(*layers.IPv4)) []byte {
	t.Helper()
	tcp := &layers.TCP{SrcPort: layers.TCPPort(from), DstPort: layers.TCPPort(port), ACK: true}
	eth := &layers.Ethernet{SrcMAC: []byte{2, 0, 0, 0, 0, 1}, DstMAC: []byte{2, 0, 0, 0, 0, 2}, EthernetType: layers.EthernetTypeIPv4}
	var ip gopacket.SerializableLayer
	if dst.Is4() {
		h := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: there4.AsSlice(), DstIP: dst.AsSlice()}
		if change != nil {
			change(h)
		}
		must(t, tcp.SetNetworkLayerForChecksum(h))
		ip = h
	} else {
		eth.EthernetType = layers.EthernetTypeIPv6
		h := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolTCP, SrcIP: there6.AsSlice(), DstIP: dst.AsSlice()}
		must(t, tcp.SetNetworkLayerForChecksum(h))
		ip = h
	}
	b := gopacket.NewSerializeBuffer()
	must(t, gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, eth, ip, tcp, gopacket.Payload{byte(from), byte(port)}))
	return b.Bytes()
}

// TestTCPFilter: what is to the address and port comes, to the socket whose share it is; everything else is nobody's.
func TestTCPFilter(t *testing.T) {
	for _, local := range []netip.Addr{here4, here6} {
		ns := newNS(t)
		veth(t, ns, "a", ns, "b", 1500)
		b, err := ns.h.LinkByName("b")
		must(t, err)
		must(t, ns.h.LinkSetHardwareAddr(b, net.HardwareAddr{2, 0, 0, 0, 0, 2}))
		var tx *PacketSocket
		var rx [3]*PacketSocket
		ns.do(func() {
			tx = openPacket(t, PacketConfig{Device: "a"})
			for i := range rx {
				rx[i] = openPacket(t, PacketConfig{Device: "b", TCP: &TCPFilter{Local: local, Port: 7471, MinSource: 32768, Share: i, Shares: len(rx)}})
			}
		})
		other := map[netip.Addr]netip.Addr{here4: there4, here6: there6}[local]
		tagged := tcpTo(t, local, 40003, 7471, nil)
		tagged = append(append(append([]byte{}, tagged[:12]...), 0x81, 0, 0xe0, 5), tagged[12:]...)
		priority := tcpTo(t, local, 40050, 7471, nil)
		priority = append(append(append([]byte{}, priority[:12]...), 0x81, 0, 0xe0, 0), priority[12:]...)
		others := tcpTo(t, local, 40003, 7471, nil)
		others[5]++ // another host's, seen by a promiscuous device
		for _, b := range [][]byte{tcpTo(t, other, 40003, 7471, nil), tcpTo(t, local, 40003, 7472, nil), tagged, others, tcpTo(t, local, 32767, 7471, nil), udpFrame(100, 1),
			tcpTo(t, map[netip.Addr]netip.Addr{here4: here6, here6: here4}[local], 40003, 7471, nil)} {
			send(t, tx, FakePacket{Data: b})
		}
		if local.Is4() {
			for _, change := range []func(*layers.IPv4){
				func(h *layers.IPv4) { h.Flags = layers.IPv4MoreFragments },
				func(h *layers.IPv4) { h.FragOffset = 9 },
				func(h *layers.IPv4) { h.Protocol = layers.IPProtocolUDP },
			} {
				send(t, tx, FakePacket{Data: tcpTo(t, local, 40003, 7471, change)})
			}
			// Options move the ports.
			send(t, tx, FakePacket{Data: tcpTo(t, local, 32768, 7471, func(h *layers.IPv4) {
				h.Options = []layers.IPv4Option{{OptionType: 1}, {OptionType: 1}, {OptionType: 1}, {OptionType: 1}}
			})})
		} else {
			send(t, tx, FakePacket{Data: tcpTo(t, local, 32768, 7471, nil)})
		}
		send(t, tx, FakePacket{Data: priority})
		for from := uint16(40000); from < 40030; from++ {
			send(t, tx, FakePacket{Data: tcpTo(t, local, from, 7471, nil)})
		}
		for i, s := range rx {
			want := 10
			if i != 1 {
				want++ // the one with the least source port, and that with a priority
			}
			for _, f := range collect(t, s, want, 64) {
				at := 34
				if local.Is6() {
					at = 54
				} else {
					at = 14 + int(f.Data[14]&15)*4
				}
				if port := binary.BigEndian.Uint16(f.Data[at:]); int(port)%len(rx) != i || port != 32768 && port < 40000 {
					t.Errorf("%v: socket %d has one from port %d", local, i, port)
				}
			}
			if st, err := s.Stats(); err != nil || st.Received != uint64(want) {
				t.Errorf("%v: socket %d: %+v, %v, want %d", local, i, st, err, want)
			}
		}
	}
}
