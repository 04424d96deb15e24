package forwarder

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/google/gopacket/layers"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/ring"
)

func mayFragment(ip *layers.IPv4) { ip.Flags, ip.Id = 0, 77 }

// reassemble puts fragments of one IPv4 packet together; each must fit the MTU.
func reassemble(t testing.TB, ips [][]byte, mtu int) (payload []byte, id uint16) {
	t.Helper()
	size := -1
	for i, b := range ips {
		o := decode(t, b)
		if len(b) > mtu {
			t.Errorf("fragment %d has %d bytes, the MTU is %d", i, len(b), mtu)
		}
		if i == 0 {
			id = o.ip4.Id
		} else if o.ip4.Id != id {
			t.Errorf("fragment %d: id %d, want %d", i, o.ip4.Id, id)
		}
		at := int(o.ip4.FragOffset) * 8
		if at != len(payload) {
			t.Fatalf("fragment %d at %d, want %d", i, at, len(payload))
		}
		payload = append(payload, o.ip4.Payload...)
		if o.ip4.Flags&layers.IPv4MoreFragments == 0 {
			size = len(payload)
		}
	}
	if size != len(payload) {
		t.Errorf("the last fragment ends at %d of %d bytes", size, len(payload))
	}
	return payload, id
}

// TestFragmentToPeer: a packet that is too big and may be fragmented, is.
func TestFragmentToPeer(t *testing.T) {
	for _, kind := range kinds {
		for _, n := range []int{1450 - 27, 2000, 2 * 1448, 5000, 60000} {
			t.Run(fmt.Sprintf("%s/%d", kind, n), func(t *testing.T) {
				s := testSettings(kind)
				s.PodMTU = 1450
				s.UnderlayMTU = 1450 + kind.Overhead(false)
				r := newRig(t, s)
				pod := r.veth("a1", podA1)
				ip := udpPacket(podA1, podB, 1, 2, n, mayFragment)
				want := append([]byte{}, ip[20:]...)
				// Once complete, once with a checksum left to us: it must be done before the cut.
				half := append([]byte{}, ip...)
				pod.Inject(fromPod(ip), fromVeth(half, partial(half, 0)))
				r.turn()
				ips := inner(t, kind, datagrams(t, r.sends()))
				for i := range 2 {
					part := ips[i*len(ips)/2 : (i+1)*len(ips)/2]
					if got, _ := reassemble(t, part, 1450); !bytes.Equal(got, want) {
						t.Errorf("packet %d differs", i)
					}
				}
				r.check(nil)
				r.expect(2, 0, 0)
			})
		}
	}
}

// TestFragmentUSO: a superframe of datagrams that are each too big gives the
// fragments of each, with ids of their own.
func TestFragmentUSO(t *testing.T) {
	for _, kind := range kinds {
		r := newRig(t, testSettings(kind))
		pod := r.attach(AttachTUN, "a1", podA1)
		ip := udpPacket(podA1, podB, 1, 2, 5*9000+100, mayFragment)
		want := append([]byte{}, ip[28:]...)
		mtu := r.f.Counters().Peers[0].MTU
		inject(pod, AttachTUN, ip, partial(ip, 9000), 0)
		r.turn()
		var messages []byte
		var part [][]byte
		count := 0
		for _, b := range inner(t, kind, datagrams(t, r.sends())) {
			if o := decode(t, b); o.ip4.FragOffset == 0 && part != nil {
				t.Fatal("a datagram begins before the last one ends")
			} else if part = append(part, b); o.ip4.Flags&layers.IPv4MoreFragments != 0 {
				continue
			}
			whole, id := reassemble(t, part, mtu)
			if id != uint16(77+count) {
				t.Errorf("datagram %d: id %d", count, id)
			}
			p := udpPacket(podA1, podB, 1, 2, 0, mayFragment)[:20]
			full := mangle(append(append([]byte{}, p...), whole...), func(b []byte) []byte {
				b[2], b[3] = byte(len(b)>>8), byte(len(b))
				return b
			})
			messages = append(messages, decode(t, full).payload...)
			part, count = nil, count+1
		}
		if count != 6 || !bytes.Equal(messages, want) {
			t.Errorf("%s: %d datagrams, payload equal: %t", kind, count, bytes.Equal(messages, want))
		}
		r.check(nil)
		r.expect(1, 0, 0)
	}
}

// TestFragmentBatches: so many of them that the worker's scratch and lists
// overflow on the way.
func TestFragmentBatches(t *testing.T) {
	for _, c := range []struct {
		mtu  int
		runs bool
	}{{1450, true}, {1450, false}, {576, true}, {100, false}} {
		s := testSettings(encap.KindVXLAN)
		s.PodMTU, s.UnderlayMTU, s.Offload.UDPSegment = 1450, c.mtu+50, c.runs
		r := newRig(t, s)
		pod := r.attach(AttachTUN, "a1", podA1)
		const packets = 24
		var want []byte
		for i := range packets {
			ip := udpPacket(podA1, podB, 1, 2, 3*20000, func(ip *layers.IPv4) { ip.Flags, ip.Id = 0, uint16(1000*i) })
			for j := 28; j < len(ip); j++ {
				ip[j] = byte(i*7 + j*3 + j>>8)
			}
			want = append(want, ip[28:]...)
			inject(pod, AttachTUN, ip, partial(ip, 20000), 0)
		}
		r.turn()
		var got []byte
		for _, b := range inner(t, encap.KindVXLAN, datagrams(t, r.sends())) {
			skip := 20
			if o := decode(t, b); o.ip4.FragOffset == 0 {
				skip = 28
			}
			got = append(got, b[skip:]...)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("MTU %d: the datagrams differ", c.mtu)
		}
		r.check(nil)
		r.expect(packets, 0, 0)
	}
}

// TestFragmentToPod: what is too big for a pod's smaller MTU, from another pod
// and from the wire, and cannot overtake or be overtaken by its flow.
func TestFragmentToPod(t *testing.T) {
	attachSmall := func(r *rig) *ring.FakeQueue {
		if _, err := r.f.Attach(PortSpec{Container: "a2", Interface: "eth0", Attach: AttachTUN, Device: "a2", Addresses: addrs(podA2), MTU: 600}); err != nil {
			r.t.Fatal(err)
		}
		return r.pods["a2"]
	}
	t.Run("local", func(t *testing.T) {
		r := newRig(t, testSettings(encap.KindVXLAN))
		pod, small := r.veth("a1", podA1), attachSmall(r)
		ip := udpPacket(podA1, podA2, 1, 2, 1300, mayFragment)
		pod.Inject(fromPod(ip), fromPod(udpPacket(podA1, podA2, 1, 2, 1300)))
		r.turn()
		if got, _ := reassemble(t, frameData(small.Sent()), 600); !bytes.Equal(got, ip[20:]) {
			t.Error("packet differs")
		}
		if a := pod.Sent(); len(a) != 1 || decode(t, a[0].Data[14:]).icmp4.Seq != 600 {
			t.Error("no answer, or with another MTU")
		}
		r.check(map[Reason]uint64{DropTooBig: 1})
		r.expect(0, 2, 0)
	})
	t.Run("from the wire", func(t *testing.T) {
		r := newRig(t, testSettings(encap.KindUDP))
		small := attachSmall(r)
		var order []string
		for _, n := range []int{200, 200, 1300, 200, 200} {
			r.receive(encap.KindUDP, 0, udpPacket(podB, podA2, 1, 2, n, func(ip *layers.IPv4) {
				if n > 600 {
					ip.Flags = 0
				}
			}))
		}
		r.turn()
		for _, p := range small.Sent() {
			order = append(order, fmt.Sprint(len(p.Data)))
		}
		// Two merged, three fragments in their place, two merged: none joins the
		// write that the fragments came behind.
		if want := "[428 596 596 176 428]"; fmt.Sprint(order) != want {
			t.Errorf("writes of %s bytes, want %s", order, want)
		}
		r.check(nil)
		r.expect(0, 5, 0)
	})
	t.Run("fragments of fragments", func(t *testing.T) {
		r := newRig(t, testSettings(encap.KindUDP))
		small := attachSmall(r)
		ip := udpPacket(podB, podA2, 1, 2, 2000, mayFragment)
		r.receive(encap.KindUDP, 0, fragmentOf(ip, 0, 1200), fragmentOf(ip, 1200, 808))
		r.turn()
		if got, _ := reassemble(t, frameData(small.Sent()), 600); !bytes.Equal(got, ip[20:]) {
			t.Error("packet differs")
		}
		r.check(nil)
		r.expect(0, 2, 0)
	})
	t.Run("write errors", func(t *testing.T) {
		for fail := range 3 {
			r := newRig(t, testSettings(encap.KindVXLAN))
			pod, small := r.veth("a1", podA1), attachSmall(r)
			small.Fail(fail, errAgain)
			pod.Inject(fromPod(udpPacket(podA1, podA2, 1, 2, 1300, mayFragment)), fromPod(udpPacket(podA1, podA2, 1, 2, 10)))
			r.turn()
			r.check(map[Reason]uint64{DropPortFull: 1})
			r.expect(0, 1, 0)
		}
	})
}

// frameData is the bytes of frames without a link header.
func frameData(ps []ring.FakePacket) (b [][]byte) {
	for _, p := range ps {
		b = append(b, p.Data)
	}
	return b
}
