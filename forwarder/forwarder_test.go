package forwarder

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/google/gopacket/layers"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/ring"
)

func TestPodToPeer(t *testing.T) {
	for _, kind := range []encap.Kind{encap.KindUDP, encap.KindVXLAN, encap.KindIPIP} {
		t.Run(kind.String(), func(t *testing.T) {
			r := newRig(t, testSettings(kind))
			pod := r.veth("a1", podA1)
			ip := udpPacket(podA1, podB, 1000, 2000, 100)
			pod.Inject(fromPod(ip), fromPod(ip), fromPod(udpPacket(podA1, podB, 1000, 2000, 50)))
			r.turn()
			var sent []ring.FakeDatagram
			for _, s := range append(r.udp, r.raw...) {
				sent = append(sent, s.Sent()...)
			}
			want := 1 // one run: 100, 100, 50
			if kind == encap.KindIPIP {
				want = 3
			}
			if len(sent) != want {
				t.Fatalf("%d sends, want %d", len(sent), want)
			}
			if sent[0].Addr.Addr() != nodeB {
				t.Errorf("sent to %s", sent[0].Addr)
			}
			inner := sent[0].Data[kind.HeaderLen():][:len(ip)]
			if p := parse(t, inner); p.TTL != 63 || encap.CheckL4(inner, &p) != encap.ChecksumGood {
				t.Errorf("TTL %d, checksum %v", p.TTL, encap.CheckL4(inner, &p))
			}
			if !bytes.Equal(inner[20:], ip[20:]) {
				t.Error("payload changed")
			}
			r.check(nil)
		})
	}
}

func TestPeerToPod(t *testing.T) {
	r := newRig(t, testSettings(encap.KindVXLAN))
	pod := r.veth("a1", podA1)
	var run []byte
	for i := range 5 {
		run = append(run, vxlanFrom(nodeB, tcpPacket(podB, podA1, uint32(1+i*1000), 1000))...)
	}
	r.udp[0].Inject(ring.FakeDatagram{Data: run, Addr: netip.AddrPortFrom(nodeB, 5555), Segment: len(run) / 5})
	r.turn()
	got := pod.Sent()
	if len(got) != 1 {
		t.Fatalf("%d writes, want 1 merged", len(got))
	}
	v := got[0].Virtio
	if v.GSOType != ring.GSOTCPv4 || v.GSOSize != 1000 || len(got[0].Data) != 14+40+5000 || v.CsumStart != 34 {
		t.Errorf("virtio %+v, %d bytes", v, len(got[0].Data))
	}
	r.check(nil)
}

func TestDrops(t *testing.T) {
	for _, c := range []struct {
		name   string
		pod    []byte
		want   Reason
		answer bool
	}{
		{"spoofed", udpPacket(podA2, podB, 1, 2, 10), DropSpoofed, false},
		{"ttl", udpPacket(podA1, podB, 1, 2, 10, func(ip *layers.IPv4) { ip.TTL = 1 }), DropTTLExpired, true},
		{"no route", udpPacket(podA1, netip.MustParseAddr("10.244.77.1"), 1, 2, 10), DropNoRoute, true},
		{"no pod", udpPacket(podA1, netip.MustParseAddr("10.244.1.77"), 1, 2, 10), DropNoPod, true},
		{"too big", udpPacket(podA1, podB, 1, 2, 1473), DropTooBig, true},
		{"multicast", udpPacket(podA1, netip.MustParseAddr("224.0.0.5"), 1, 2, 10), DropMulticast, false},
		{"tunnel in tunnel", udpPacket(podA1, nodeB, 1, 8472, 10), DropTunnelLoop, false},
		{"short", []byte{0x45}, DropShort, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, testSettings(encap.KindVXLAN))
			pod := r.veth("a1", podA1)
			pod.Inject(fromPod(c.pod))
			r.turn()
			r.check(map[Reason]uint64{c.want: 1})
			if got := pod.Sent(); (len(got) == 1) != c.answer {
				t.Errorf("%d answers", len(got))
			}
		})
	}
}
