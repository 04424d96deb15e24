package forwarder

import (
	"bytes"
	"encoding/binary"
	"syscall"
	"testing"
	"time"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/ring"
)

// fakeTunnel keeps what is written, or refuses it.
type fakeTunnel struct {
	sent [][]byte
	err  syscall.Errno
	fail map[int]syscall.Errno // by how many were tried before
	n    int
	most int // of one Write; 0: all
}

func (f *fakeTunnel) Write(frames [][]byte, errs []syscall.Errno) (n int) {
	for i, b := range frames {
		if errs[i] = f.err; f.fail[f.n] != 0 {
			errs[i] = f.fail[f.n]
		}
		if f.n++; errs[i] == 0 {
			f.sent = append(f.sent, bytes.Clone(b))
		}
		if n++; n == f.most {
			break
		}
	}
	return n
}

func (f *fakeTunnel) BatchWrites(*ring.Uring) {}
func (f *fakeTunnel) FD() int                 { return -1 }
func (f *fakeTunnel) Close() error            { return nil }

// superframe is n bytes of TCP payload from a pod, to be cut into mss, as the kernel hands it over.
func tcpSuperframe(n, mss int) ring.FakePacket {
	ip := tcpPacket(podA1, podB, 1, n)
	p := fromPod(ip)
	var q encap.Packet
	encap.Parse(ip, &q)
	sum := encap.Fold(encap.PseudoSum(&q, len(ip)-20))
	at := encap.EthernetLen + 20 + 16
	p.Data[at], p.Data[at+1] = byte(sum>>8), byte(sum)
	p.Virtio = ring.Virtio{Flags: ring.NeedsCsum, GSOType: ring.GSOTCPv4, HdrLen: 54, GSOSize: uint16(mss), CsumStart: 34, CsumOffset: 16}
	return p
}

func newWholeRig(t *testing.T, kind encap.Kind) (*rig, *fakeTunnel, *ring.FakeQueue) {
	return newWholeRigOf(t, testSettings(kind))
}

func newWholeRigOf(t *testing.T, s Settings) (*rig, *fakeTunnel, *ring.FakeQueue) {
	r := newRig(t, s)
	tap := &fakeTunnel{}
	r.f.workers[0].tunnel = tap
	pod := r.veth("a1", podA1)
	r.f.SetUplinkPath(nodeB, &UplinkPath{Source: encap.MAC{2, 9, 1}, NextHop: encap.MAC{2, 9, 2}})
	return r, tap, pod
}

// TestSuperframeLeavesWhole: one write for a superframe, in order with the
// small packets of its flow, and the inner packet unchanged but for its TTL.
func TestSuperframeLeavesWhole(t *testing.T) {
	r, tap, pod := newWholeRig(t, encap.KindVXLAN)
	pod.Inject(tcpSuperframe(40000, 1400))
	r.turn()
	if len(tap.sent) != 1 {
		t.Fatalf("%d writes to the TAP", len(tap.sent))
	}
	b := tap.sent[0]
	v, _ := ring.ParseVirtio(b)
	outer := 14 + 20 + 8 + 8 + 14
	if v.GSOType != ring.GSOTCPv4|0x20 || v.Flags != 1|8 || v.GSOSize != 1400 || int(v.CsumStart) != outer+20 || v.CsumOffset != 16 || int(v.HdrLen) != outer+40 {
		t.Errorf("virtio %+v", v)
	}
	if b[20] != 34 || b[22] != byte(outer) {
		t.Errorf("outer L4 %d, inner L3 %d", b[20], b[22])
	}
	inner := b[ring.TunnelHeaderLen+outer:]
	if p := parse(t, inner); p.Len != 40040 || p.TTL != 63 || p.Dst != podB {
		t.Errorf("inner %+v", p)
	}
	r.check(nil)
	if c := r.f.Counters(); c.Whole != 1 || c.Segmented != 0 {
		t.Errorf("whole %d, segmented %d", c.Whole, c.Segmented)
	}
}

// TestRefusedSuperframeIsCut: whatever the kernel says, not a byte is lost, and
// a kind that it does not know is not tried again.
func TestRefusedSuperframeIsCut(t *testing.T) {
	for _, refused := range []syscall.Errno{syscall.EINVAL, syscall.EIO, syscall.ENOBUFS} {
		t.Run(refused.Error(), func(t *testing.T) {
			r, tap, pod := newWholeRig(t, encap.KindVXLAN)
			tap.err = refused
			pod.Inject(tcpSuperframe(40000, 1400))
			r.turn()
			tap.err = 0
			pod.Inject(tcpSuperframe(40000, 1400))
			r.turn()
			if again := len(tap.sent) == 1; again == (refused == syscall.EINVAL) {
				t.Errorf("tried again: %v", again)
			}
			payload := 0
			for _, s := range r.udp {
				for _, d := range s.Sent() {
					for b := d.Data; len(b) > 0; {
						n := len(b)
						if d.Segment > 0 {
							n = min(n, d.Segment)
						}
						p := parse(t, b[22:n])
						if encap.CheckL4(b[22:n], &p) != encap.ChecksumGood {
							t.Error("checksum")
						}
						payload += p.Len - 40
						b = b[n:]
					}
				}
			}
			want := 40000
			if refused == syscall.EINVAL {
				want = 80000
			}
			if payload != want {
				t.Errorf("%d bytes by the sockets, want %d", payload, want)
			}
			r.check(nil)
		})
	}
}

// TestSuperframesTogether: several leave by one write, however many of them it tries; one that is refused is cut if none of
// its flow has left behind it, and lost if one has, as it would come too late.
func TestSuperframesTogether(t *testing.T) {
	const late = syscall.ENOBUFS
	for _, c := range []struct {
		name  string
		flows string // the flow of each superframe
		most  int
		fail  map[int]syscall.Errno
		cut   int // of the superframes
		lost  uint64
	}{
		{name: "all", flows: "aabba"},
		{name: "two at a time", flows: "aabbaab", most: 2},
		{name: "one of another flow", flows: "abbb", fail: map[int]syscall.Errno{0: late}, cut: 1},
		{name: "the last of its flow", flows: "aabb", fail: map[int]syscall.Errno{1: late}, cut: 1},
		{name: "one with another behind it", flows: "aba", fail: map[int]syscall.Errno{0: late}, lost: 1},
		{name: "the first two of three", flows: "aaa", fail: map[int]syscall.Errno{0: late, 1: late}, lost: 2},
		{name: "the last two of three", flows: "aaa", fail: map[int]syscall.Errno{1: late, 2: late}, cut: 2},
		{name: "all of a kind", flows: "abab", fail: map[int]syscall.Errno{0: syscall.EINVAL, 1: syscall.EINVAL, 2: syscall.EINVAL, 3: syscall.EINVAL}, cut: 4},
		{name: "behind what was tried", flows: "aab", most: 2, fail: map[int]syscall.Errno{1: late}, cut: 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, tap, pod := newWholeRig(t, encap.KindVXLAN)
			tap.most, tap.fail = c.most, c.fail
			for _, flow := range []byte(c.flows) {
				p := tcpSuperframe(10000, 1400)
				p.Data[encap.EthernetLen+20+1] = flow // its source port; the partial checksum has no ports in it
				pod.Inject(p)
			}
			r.turn()
			if got, want := len(tap.sent), len(c.flows)-c.cut-int(c.lost); got != want {
				t.Errorf("%d left whole, want %d", got, want)
			}
			if n := r.f.Counters(); n.Segmented != uint64(c.cut) || n.Whole != uint64(len(tap.sent)) {
				t.Errorf("%d were cut, want %d; %d whole", n.Segmented, c.cut, n.Whole)
			}
			var drops map[Reason]uint64
			if c.lost > 0 {
				drops = map[Reason]uint64{DropSendNoBuffers: c.lost}
			}
			r.check(drops)
			r.expect(uint64(len(c.flows))-c.lost, 0, 0)
		})
	}
}

// TestCutSuperframeIsLost: what the socket does not take either has the reason of any other datagram.
func TestCutSuperframeIsLost(t *testing.T) {
	for err, want := range map[syscall.Errno]Reason{syscall.EAGAIN: DropSendFull, syscall.ENOBUFS: DropSendNoBuffers} {
		r, tap, pod := newWholeRig(t, encap.KindVXLAN)
		tap.err = syscall.EIO
		r.udp[1].Fail(0, err)
		if noBuffers(err) {
			r.udp[1].Fail(0, err)
		}
		pod.Inject(tcpSuperframe(40000, 1400))
		r.turn()
		r.check(map[Reason]uint64{want: 1})
	}
}

// TestCutSuperframeRefused: a superframe that the TAP refuses, over a route that refuses UDP_SEGMENT in the middle of it,
// arrives all the same, in order, and the route is remembered.
func TestCutSuperframeRefused(t *testing.T) {
	for _, err := range []syscall.Errno{syscall.EIO, syscall.EINVAL, syscall.ENOBUFS} {
		r, tap, pod := newWholeRig(t, encap.KindVXLAN)
		tap.err = syscall.EINVAL
		r.udp[1].Fail(1, err) // the second of several runs
		pod.Inject(tcpSuperframe(40000, 100))
		r.turn()
		next := uint32(0)
		ds := datagrams(t, r.udp[1].Sent())
		for _, b := range ds {
			p := parse(t, b[22:])
			seq := binary.BigEndian.Uint32(b[22+20+4:])
			if next != 0 && seq != next {
				t.Errorf("%v: sequence number %d, want %d", err, seq, next)
			}
			if encap.CheckL4(b[22:], &p) != encap.ChecksumGood {
				t.Errorf("%v: checksum", err)
			}
			next = seq + uint32(p.Len-40)
		}
		r.check(nil)
		c := r.f.Counters()
		if c.SwitchedOff["tunnelGSO"] != 1 || c.SwitchedOff["udpSegment"] == 1 != (err == syscall.EIO) {
			t.Errorf("%v: switched off %v", err, c.SwitchedOff)
		}
		if len(ds) != 400 {
			t.Errorf("%v: %d datagrams of 400", err, len(ds))
		}
	}
}

// TestCutSuperframeOfLongSegments: on an underlay whose MTU is nearly an IP packet's, one segment is longer than a run may be.
func TestCutSuperframeOfLongSegments(t *testing.T) {
	s := testSettings(encap.KindVXLAN)
	s.UnderlayMTU = 65535
	r, tap, pod := newWholeRigOf(t, s)
	tap.err = syscall.EIO
	pod.Inject(tcpSuperframe(65400, 65370))
	done := make(chan struct{})
	go func() { r.turn(); close(done) }()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatal("it is cut for ever")
	}
	if n := len(r.udp[1].Sent()); n != 2 {
		t.Errorf("%d datagrams, want 2", n)
	}
	r.check(nil)
}

// TestNotWhole: no way, ipip, or too long for an IP packet: cut, as ever.
func TestNotWhole(t *testing.T) {
	for _, c := range []struct {
		name string
		kind encap.Kind
		path *UplinkPath
		size int
	}{
		{"no way", encap.KindVXLAN, nil, 40000},
		{"ipip", encap.KindIPIP, &UplinkPath{}, 40000},
		{"udp", encap.KindUDP, &UplinkPath{}, 40000},
		{"too long", encap.KindVXLAN, &UplinkPath{}, 65490},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, tap, pod := newWholeRig(t, c.kind)
			r.f.SetUplinkPath(nodeB, c.path)
			pod.Inject(tcpSuperframe(c.size, 1400))
			r.turn()
			if len(tap.sent) != 0 {
				t.Error("went to the TAP")
			}
			r.check(nil)
			if n := r.f.Counters().Segmented; n != 1 {
				t.Errorf("segmented %d", n)
			}
		})
	}
}
