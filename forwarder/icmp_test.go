package forwarder

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/google/gopacket/layers"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/ring"
)

const errAgain = syscall.EAGAIN

func addrs(as ...netip.Addr) []netip.Addr { return as }

// TestICMPErrors: type, code, MTU, source, destination and quote of each answer.
func TestICMPErrors(t *testing.T) {
	hostAddr6 := netip.MustParseAddr("fd00:10:244:1::")
	ttl := func(ip *layers.IPv4) { ip.TTL = 1 }
	for _, c := range []struct {
		name      string
		ip        []byte
		typ, code uint8
		mtu       int
		src       netip.Addr
	}{
		{"no route", udpPacket(podA1, netip.MustParseAddr("10.244.9.9"), 1, 2, 900), 3, 0, 0, hostAddr},
		{"no pod", udpPacket(podA1, netip.MustParseAddr("10.244.1.9"), 1, 2, 900), 3, 1, 0, hostAddr},
		{"TTL", udpPacket(podA1, podB, 1, 2, 900, ttl), 11, 0, 0, hostAddr},
		{"TTL of an echo request", raw4(podA1, podB, 1, []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0}, ttl), 11, 0, 0, hostAddr},
		{"too big", udpPacket(podA1, podB, 1, 2, 1450), 3, 4, 1450, hostAddr},
		{"no route v6", udpPacket(podA1v6, netip.MustParseAddr("fd00:10:244:9::9"), 1, 2, 1300), 1, 0, 0, hostAddr6},
		{"no pod v6", udpPacket(podA1v6, netip.MustParseAddr("fd00:10:244:1::9"), 1, 2, 1300), 1, 3, 0, hostAddr6},
		{"hop limit", mangle(udpPacket(podA1v6, podBv6, 1, 2, 900), func(b []byte) []byte { b[7] = 0; return b }), 3, 0, 0, hostAddr6},
		{"too big v6", udpPacket(podA1v6, podBv6, 1, 2, 1450), 2, 0, 1450, hostAddr6},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, testSettings(encap.KindVXLAN))
			pod := r.veth("a1", podA1, podA1v6)
			pod.Inject(fromPod(c.ip))
			r.turn()
			got := pod.Sent()
			if len(got) != 1 {
				t.Fatalf("%d answers", len(got))
			}
			if encap.MAC(got[0].Data[:6]) != macA1 {
				t.Errorf("to MAC % x", got[0].Data[:6])
			}
			b := got[0].Data[14:]
			o := decode(t, b)
			var quote []byte
			if o.icmp4 != nil {
				if o.icmp4.TypeCode != layers.CreateICMPv4TypeCode(c.typ, c.code) || c.mtu != 0 && int(o.icmp4.Seq) != c.mtu {
					t.Errorf("%s, MTU %d", o.icmp4.TypeCode, o.icmp4.Seq)
				}
				if len(b) > 576 || o.ip4.TTL != 64 {
					t.Errorf("%d bytes, TTL %d", len(b), o.ip4.TTL)
				}
				quote = o.icmp4.Payload
			} else {
				if o.icmp6.TypeCode != layers.CreateICMPv6TypeCode(c.typ, c.code) || c.mtu != 0 && int(binary.BigEndian.Uint32(b[44:])) != c.mtu {
					t.Errorf("%s, MTU %d", o.icmp6.TypeCode, binary.BigEndian.Uint32(b[44:]))
				}
				if len(b) > 1280 {
					t.Errorf("%d bytes", len(b))
				}
				quote = b[48:]
			}
			src, dst := addresses(b)
			if asked, _ := addresses(c.ip); src != c.src || dst != asked {
				t.Errorf("from %s to %s", src, dst)
			}
			// The quote is what the pod sent, up to what routers may change: TTL and its checksum.
			n := min(len(quote), len(c.ip))
			if n < 28 || !bytes.Equal(quote[12:n], c.ip[12:n]) {
				t.Error("the quote differs")
			}
			if got := r.f.Counters().Generated["icmp"]; got != 1 {
				t.Errorf("generated %d", got)
			}
		})
	}
}

func addresses(ip []byte) (src, dst netip.Addr) {
	if ip[0]>>4 == 4 {
		return netip.AddrFrom4([4]byte(ip[12:16])), netip.AddrFrom4([4]byte(ip[16:20]))
	}
	return netip.AddrFrom16([16]byte(ip[8:24])), netip.AddrFrom16([16]byte(ip[24:40]))
}

// TestNoICMPErrors: never about ICMP errors, later fragments, groups, or what
// did not come from one host (RFC 1122 3.2.2, RFC 4443 2.4).
func TestNoICMPErrors(t *testing.T) {
	nowhere, nowhere6 := netip.MustParseAddr("10.244.9.9"), netip.MustParseAddr("fd00:10:244:9::9")
	plain := udpPacket(podA1, nowhere, 1, 2, 64)
	for name, ip := range map[string][]byte{
		"unreachable":     raw4(podA1, nowhere, 1, append([]byte{3, 1, 0, 0, 0, 0, 0, 0}, plain[:28]...)),
		"time exceeded":   raw4(podA1, nowhere, 1, append([]byte{11, 0, 0, 0, 0, 0, 0, 0}, plain[:28]...)),
		"empty ICMP":      raw4(podA1, nowhere, 1, nil),
		"later fragment":  fragmentOf(plain, 40, 32),
		"too big v6":      icmp6(podA1v6, nowhere6, 64, append([]byte{2, 0, 0, 0, 0, 0, 5, 0}, raw6(podA1v6, podBv6, 17, make([]byte, 8))...)),
		"empty ICMPv6":    raw6(podA1v6, nowhere6, 58, nil),
		"later fragment6": raw6(podA1v6, nowhere6, 44, append([]byte{17, 0, 0, 8, 0, 0, 0, 1}, make([]byte, 8)...)),
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, testSettings(encap.KindVXLAN))
			pod := r.veth("a1", podA1, podA1v6)
			pod.Inject(fromPod(ip))
			r.turn()
			r.check(map[Reason]uint64{DropNoRoute: 1})
			if n := len(pod.Sent()); n != 0 {
				t.Errorf("%d answers", n)
			}
		})
	}
	t.Run("first fragment is answered", func(t *testing.T) {
		r := newRig(t, testSettings(encap.KindVXLAN))
		pod := r.veth("a1", podA1)
		pod.Inject(fromPod(fragmentOf(plain, 0, 40)))
		r.turn()
		if n := len(pod.Sent()); n != 1 {
			t.Errorf("%d answers", n)
		}
	})
}

// TestICMPRate: each source has a burst, then a rate of its own.
func TestICMPRate(t *testing.T) {
	r := newRig(t, testSettings(encap.KindVXLAN))
	pod, other := r.attach(AttachTUN, "a1", podA1), r.attach(AttachTUN, "a2", podA2)
	flood := func(q *ring.FakeQueue, from netip.Addr, n int) int {
		ip := udpPacket(from, netip.MustParseAddr("10.244.9.9"), 1, 2, 9)
		for range n {
			q.Inject(ring.FakePacket{Data: ip})
		}
		for range (n + batchFrames - 1) / batchFrames {
			r.turn()
		}
		return len(q.Sent())
	}
	begin := time.Now()
	if got, most := flood(pod, podA1, 500), answerBurst+int(time.Since(begin).Seconds()*answerRate)+1; got < answerBurst || got > most {
		t.Errorf("%d answers to a flood, want %d to %d", got, answerBurst, most)
	}
	if got := flood(other, podA2, 5); got != 5 {
		t.Errorf("%d answers to another source, want 5", got)
	}
	var l answerLimiter
	n := 0
	for ms := range 10_000 {
		for range 3 {
			if l.allow(7, int64(ms+1)*1e6) {
				n++
			}
		}
	}
	if n < answerBurst+10*answerRate-2 || n > answerBurst+10*answerRate {
		t.Errorf("%d answers in 10 s", n)
	}
	if !l.allow(7, 1<<62) {
		t.Error("silent for years after years of silence")
	}
	drops := r.f.Counters().Dropped["no_route"]
	if drops != 505 {
		t.Errorf("%d dropped", drops)
	}
}

// TestICMPToPeer: the answer to a pod of another node travels back through the tunnel.
func TestICMPToPeer(t *testing.T) {
	for _, kind := range kinds {
		r := newRig(t, testSettings(kind))
		r.veth("a1", podA1, podA1v6)
		r.receive(kind, 0, udpPacket(podB, podA1, 1, 2, 9, func(ip *layers.IPv4) { ip.TTL = 1 }),
			mangle(udpPacket(podBv6, podA1v6, 1, 2, 9), func(b []byte) []byte { b[7] = 1; return b }))
		r.turn()
		ips := inner(t, kind, datagrams(t, r.sends()))
		if len(ips) != 2 {
			t.Fatalf("%s: %d answers", kind, len(ips))
		}
		for _, b := range ips {
			o := decode(t, b)
			if o.ip4 != nil && (o.ip4.TTL != 64 || o.icmp4.TypeCode.Type() != 11) || o.ip6 != nil && (o.ip6.HopLimit != 64 || o.icmp6.TypeCode.Type() != 3) {
				t.Errorf("%s: answer %+v %+v", kind, o.ip4, o.ip6)
			}
		}
		r.check(map[Reason]uint64{DropTTLExpired: 2})
		r.expect(2, 0, 0)
	}
}

// TestTTL: one decrement a node, none towards or from the host.
func TestTTL(t *testing.T) {
	r := newRig(t, testSettings(encap.KindUDP))
	a1, a2 := r.attach(AttachTUN, "a1", podA1), r.attach(AttachTUN, "a2", podA2)
	ttl := func(n uint8) func(*layers.IPv4) { return func(ip *layers.IPv4) { ip.TTL = n } }
	got := func(frames []ring.FakePacket) uint8 {
		t.Helper()
		if len(frames) != 1 {
			t.Fatalf("%d frames", len(frames))
		}
		return decode(t, frames[0].Data).ip4.TTL
	}
	a1.Inject(ring.FakePacket{Data: udpPacket(podA1, podA2, 1, 2, 3, ttl(2))})
	r.turn()
	if n := got(a2.Sent()); n != 1 {
		t.Errorf("pod to pod: %d", n)
	}
	a1.Inject(ring.FakePacket{Data: udpPacket(podA1, outsideAddr, 1, 2, 3, ttl(1))})
	r.turn()
	if n := got(r.hosts[0].Sent()); n != 1 {
		t.Errorf("pod to host: %d", n)
	}
	a1.Inject(ring.FakePacket{Data: udpPacket(podA1, hostAddr, 1, 2, 3, ttl(1))})
	r.turn()
	if n := got(r.hosts[0].Sent()); n != 1 {
		t.Errorf("pod to the node itself: %d", n)
	}
	r.hosts[0].Inject(ring.FakePacket{Data: udpPacket(hostAddr, podA1, 1, 2, 3, ttl(1))})
	r.turn()
	if n := got(a1.Sent()); n != 1 {
		t.Errorf("host to pod: %d", n)
	}
	r.hosts[0].Inject(ring.FakePacket{Data: udpPacket(hostAddr, podB, 1, 2, 3, ttl(1))})
	r.turn()
	if n := decode(t, r.sends()[0].Data).ip4.TTL; n != 1 {
		t.Errorf("host to peer: %d", n)
	}
	r.receive(encap.KindUDP, 0, udpPacket(podB, podA1, 1, 2, 3, ttl(2)))
	r.turn()
	if n := got(a1.Sent()); n != 1 {
		t.Errorf("peer to pod: %d", n)
	}
	r.receive(encap.KindUDP, 0, udpPacket(podB, hostAddr, 1, 2, 3, ttl(1)))
	r.turn()
	if n := got(r.hosts[0].Sent()); n != 1 {
		t.Errorf("peer to host: %d", n)
	}
	r.check(nil)
}

// TestLearnedMTUv6: a path that pretends to carry less than IPv6 can do with does not silence IPv6 pods.
func TestLearnedMTUv6(t *testing.T) {
	r := newRig(t, testSettings(encap.KindVXLAN))
	pod := r.attach(AttachTUN, "a1", podA1v6)
	r.f.peers[nodeB].state.learn(1280, time.Now())
	for _, n := range []int{1280, 1281} {
		pod.Inject(ring.FakePacket{Data: udpPacket(podA1v6, podBv6, 1, 2, n-48)})
	}
	r.turn()
	if got := r.sends(); len(got) != 1 || len(got[0].Data) != 1280+encap.KindVXLAN.HeaderLen() {
		t.Errorf("sent %s", shapes(got))
	}
	r.check(map[Reason]uint64{DropTooBig: 1})
}
