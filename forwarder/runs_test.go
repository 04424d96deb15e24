package forwarder

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"syscall"
	"testing"

	"github.com/google/gopacket/layers"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/ring"
	"github.com/penstock-net/penstock/table/feed"
)

// shape is what a send carried: how many datagrams and of how many bytes each.
func shapes(ds []ring.FakeDatagram) (s []string) {
	for _, d := range ds {
		n := 1
		if d.Segment > 0 {
			n = (len(d.Data) + d.Segment - 1) / d.Segment
		}
		s = append(s, fmt.Sprintf("%d×%d=%d", n, max(d.Segment, len(d.Data)/n), len(d.Data)))
	}
	return s
}

// TestRuns: which datagrams travel together, and that those of a flow keep
// their order. Sizes are of UDP payloads; 28 bytes of inner headers are added.
func TestRuns(t *testing.T) {
	for _, c := range []struct {
		name  string
		sizes []int
		want  []string
	}{
		{"one", []int{72}, []string{"1×100=100"}},
		{"equal", []int{72, 72, 72}, []string{"3×100=300"}},
		{"a shorter one ends it", []int{72, 72, 22, 72}, []string{"3×100=250", "1×100=100"}},
		{"two shorter ones", []int{72, 22, 22}, []string{"1×100=100", "2×50=100"}},
		{"a longer one begins anew", []int{22, 72, 72}, []string{"1×50=50", "2×100=200"}},
		{"alternating", []int{72, 22, 72, 22}, []string{"2×100=150", "2×100=150"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, testSettings(encap.KindUDP))
			pod := r.veth("a1", podA1)
			var want [][]byte
			for i, n := range c.sizes {
				ip := udpPacket(podA1, podB, 1000, 2, n, identified(uint16(i)))
				pod.Inject(fromPod(ip))
				want = append(want, ip[28:])
			}
			r.turn()
			sends := r.sends()
			if got := shapes(sends); fmt.Sprint(got) != fmt.Sprint(c.want) {
				t.Errorf("sends %s, want %s", got, c.want)
			}
			ds := datagrams(t, sends)
			if len(ds) != len(want) {
				t.Fatalf("%d datagrams, want %d", len(ds), len(want))
			}
			for i, d := range ds {
				if o := decode(t, d); int(o.ip4.Id) != i || !bytes.Equal(o.payload, want[i]) || o.ip4.TTL != 63 {
					t.Errorf("datagram %d: ID %d, TTL %d", i, o.ip4.Id, o.ip4.TTL)
				}
			}
			r.check(nil)
			r.expect(uint64(len(c.sizes)), 0, 0)
		})
	}
}

// TestRunLimits: no run is longer than the kernel takes, in datagrams and bytes.
func TestRunLimits(t *testing.T) {
	for _, c := range []struct{ size, count, most int }{
		{1, batchFrames, batchFrames}, {1422, batchFrames, 65400 / 1450}, {1000, batchFrames, 65400 / 1028},
	} {
		r := newRig(t, testSettings(encap.KindUDP))
		pod := r.veth("a1", podA1)
		for range c.count {
			pod.Inject(fromPod(udpPacket(podA1, podB, 1, 2, c.size)))
		}
		r.turn()
		sends := r.sends()
		n := len(sends[0].Data) / (c.size + 28)
		if n != min(c.most, int(r.f.use.maxSegments), c.count) {
			t.Errorf("%d bytes: first run of %d, want %d", c.size, n, c.most)
		}
		if got := len(datagrams(t, sends)); got != c.count {
			t.Errorf("%d datagrams, want %d", got, c.count)
		}
		counters := r.f.Counters()
		runs := 0
		for _, d := range sends {
			if d.Segment > 0 {
				runs++
			}
		}
		if counters.Sends != uint64(len(sends)) || counters.Runs != uint64(runs) {
			t.Errorf("counted %d sends and %d runs, want %d and %d", counters.Sends, counters.Runs, len(sends), runs)
		}
		r.check(nil)
	}
}

// TestRunKeys: peers and TOS do not share a run, flows do.
func TestRunKeys(t *testing.T) {
	r := newRig(t, testSettings(encap.KindUDP))
	nodeC, podC := netip.MustParseAddr("192.0.2.3"), netip.MustParseAddr("10.244.3.5")
	r.peers(
		feed.Peer{Name: "b", Address: nodeB, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.2.0/24")}},
		feed.Peer{Name: "c", Address: nodeC, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.3.0/24")}})
	pod := r.veth("a1", podA1)
	ect := func(ip *layers.IPv4) { ip.TOS = 0xb9 } // EF, ECT(1)
	for i := range 4 {
		pod.Inject(fromPod(udpPacket(podA1, podB, uint16(i), 2, 10)), fromPod(udpPacket(podA1, podC, 1, 2, 10)))
	}
	pod.Inject(fromPod(udpPacket(podA1, podB, 1, 2, 10, ect)), fromPod(udpPacket(podA1, podB, 1, 2, 10, ect)), fromPod(udpPacket(podA1, podB, 1, 2, 10)))
	r.turn()
	sends := r.sends()
	want := []struct {
		to  netip.Addr
		n   int
		tos uint8
	}{{nodeB, 4, 0}, {nodeC, 4, 0}, {nodeB, 2, 1}, {nodeB, 1, 0}}
	if len(sends) != len(want) {
		t.Fatalf("%d sends: %s", len(sends), shapes(sends))
	}
	for i, w := range want {
		if d := sends[i]; d.Addr.Addr() != w.to || len(d.Data) != 38*w.n || d.TOS != w.tos {
			t.Errorf("send %d: to %s, %d bytes, TOS %#x; want %+v", i, d.Addr, len(d.Data), d.TOS, w)
		}
	}
	r.check(nil)
	for _, p := range r.f.Counters().Peers {
		if want := map[string]uint64{"b": 7, "c": 4}[p.Name]; p.Sent.Packets != want || p.Sent.Bytes != want*38 {
			t.Errorf("peer %s: sent %+v", p.Name, p.Sent)
		}
	}
}

// TestCopyDSCP: the DSCP goes outside only when told to; ECN always does.
func TestCopyDSCP(t *testing.T) {
	for _, on := range []bool{false, true} {
		s := testSettings(encap.KindVXLAN)
		s.CopyDSCP = on
		r := newRig(t, s)
		r.veth("a1", podA1).Inject(fromPod(udpPacket(podA1, podB, 1, 2, 10, func(ip *layers.IPv4) { ip.TOS = 0xba })))
		r.turn()
		if want := map[bool]uint8{false: 2, true: 0xba}[on]; r.sends()[0].TOS != want {
			t.Errorf("copy %t: outer TOS is not %#x", on, want)
		}
	}
}

// TestMixedRuns: flows that mix sizes share runs of each size, and each flow
// keeps its order.
func TestMixedRuns(t *testing.T) {
	r := newRig(t, testSettings(encap.KindUDP))
	pod := r.veth("a1", podA1)
	rnd := rand.New(rand.NewPCG(1, 2))
	const flows, each = 16, 4
	for n := range uint16(each) {
		for flow := range uint16(flows) {
			size := []int{64, 64, 64, 64, 64, 64, 64, 570, 570, 570, 570, 1400}[rnd.IntN(12)]
			pod.Inject(fromPod(udpPacket(podA1, podB, 1000+flow, 2, size, identified(n))))
		}
	}
	r.turn()
	sends := r.sends()
	if len(sends) > 16 {
		t.Errorf("%d sends for %d datagrams: %s", len(sends), flows*each, shapes(sends))
	}
	next := map[layers.UDPPort]uint16{}
	for _, d := range datagrams(t, sends) {
		o := decode(t, d)
		if o.ip4.Id != next[o.udp.SrcPort] {
			t.Errorf("flow %d: number %d, want %d", o.udp.SrcPort, o.ip4.Id, next[o.udp.SrcPort])
		}
		next[o.udp.SrcPort]++
	}
	r.check(nil)
	r.expect(flows*each, 0, 0)
}

// TestNoRuns: without UDP_SEGMENT, and in ipip, each datagram is a send.
func TestNoRuns(t *testing.T) {
	for _, kind := range kinds {
		s := testSettings(kind)
		s.Offload.UDPSegment = false
		r := newRig(t, s)
		pod := r.veth("a1", podA1, podA1v6)
		for i := range 5 {
			pod.Inject(fromPod(udpPacket(podA1, podB, 1, uint16(i), 72)), fromPod(udpPacket(podA1v6, podBv6, 1, uint16(i), 72)))
		}
		r.turn()
		sends := r.sends()
		if len(sends) != 10 || r.f.Counters().Runs != 0 {
			t.Errorf("%s: sends %s", kind, shapes(sends))
		}
		next := map[bool]int{}
		for _, ip := range inner(t, kind, datagrams(t, sends)) {
			o := decode(t, ip)
			if v6 := o.ip6 != nil; int(o.udp.DstPort) != next[v6] {
				t.Errorf("%s: datagram %d where %d should be", kind, o.udp.DstPort, next[v6])
			} else {
				next[v6]++
			}
		}
		r.check(nil)
	}
}

// TestSendErrors: an error in the middle of what is sent costs the datagrams
// that it is about, by name, and no others.
func TestSendErrors(t *testing.T) {
	for _, c := range []struct {
		err  error
		want Reason
		rest bool // what is behind it is lost as well
	}{
		{syscall.EAGAIN, DropSendFull, true},
		{syscall.ENOBUFS, DropSendNoBuffers, false},
		{syscall.ENOMEM, DropSendNoBuffers, false},
		{syscall.EPERM, DropSendRefused, false},
		{syscall.EACCES, DropSendRefused, false},
		{syscall.EMSGSIZE, DropUnderlayMTU, false},
		{syscall.ENETUNREACH, DropUnderlayUnreachable, false},
		{syscall.EHOSTUNREACH, DropUnderlayUnreachable, false},
		{syscall.ECONNREFUSED, DropUnderlayUnreachable, false},
		{syscall.ENETDOWN, DropUnderlayUnreachable, false},
		{syscall.EFAULT, DropSendFailed, false},
		{errors.New("a surprise"), DropSendFailed, false},
	} {
		t.Run(c.err.Error(), func(t *testing.T) {
			r := newRig(t, testSettings(encap.KindUDP))
			pod := r.veth("a1", podA1)
			for i, n := range []int{72, 72, 22, 72, 72, 72, 22, 72} { // runs of 3, 4, 1
				pod.Inject(fromPod(udpPacket(podA1, podB, 1, 2, n, identified(uint16(i)))))
			}
			r.udp[0].Fail(1, c.err)
			if noBuffers(c.err) {
				r.udp[0].Fail(1, c.err) // nor for the first datagram alone
			}
			if c.err == syscall.EMSGSIZE { // each of its datagrams is asked for, so that the kernel says for how much it is too long
				for range 4 {
					r.udp[0].Fail(1, c.err)
				}
			}
			r.turn()
			want := []uint16{0, 1, 2}
			if !c.rest {
				want = append(want, 7)
			}
			ds := datagrams(t, r.sends())
			if len(ds) != len(want) {
				t.Fatalf("%d datagrams left, want %d", len(ds), len(want))
			}
			for i, d := range ds {
				if got := decode(t, d).ip4.Id; got != want[i] {
					t.Errorf("datagram %d where %d should be", got, want[i])
				}
			}
			r.check(map[Reason]uint64{c.want: uint64(8 - len(want))})
			if p := r.f.Counters().Peers[0]; p.Sent.Packets != uint64(len(want)) || p.Dropped != uint64(8-len(want)) {
				t.Errorf("peer counts %+v", p)
			}
		})
	}
}

// TestReplay: a route that refuses UDP_SEGMENT gets the same datagrams one by
// one, none lost; EIO is remembered, the others may be of this run alone.
func TestReplay(t *testing.T) {
	for _, err := range []error{syscall.EIO, syscall.EINVAL, syscall.EOPNOTSUPP, syscall.ENOBUFS, syscall.ENOMEM} {
		t.Run(err.Error(), func(t *testing.T) {
			r := newRig(t, testSettings(encap.KindVXLAN))
			pod := r.veth("a1", podA1)
			feed := func() {
				for i, n := range []int{72, 72, 22, 72, 72} {
					pod.Inject(fromPod(udpPacket(podA1, podB, 1, 2, n, identified(uint16(i)))))
				}
				seg := tcpPacket(podA1, podB, 1, 5000)
				pod.Inject(fromVeth(seg, partial(seg, 1000)))
			}
			feed()
			r.udp[1].Fail(0, err)
			r.turn()
			first := r.sends()
			ips := inner(t, encap.KindVXLAN, datagrams(t, first))
			if len(ips) != 10 {
				t.Fatalf("%d datagrams, want 10: %s", len(ips), shapes(first))
			}
			for i, ip := range ips {
				o := decode(t, ip)
				if i < 5 && int(o.ip4.Id) != i || i >= 5 && int(o.tcp.Seq) != 1+(i-5)*1000 {
					t.Errorf("datagram %d out of order", i)
				}
			}
			if first[0].Segment != 0 || len(first[0].Data) != 122 {
				t.Errorf("the refused run was sent as %s", shapes(first[:1]))
			}
			feed()
			r.turn()
			again := r.sends()
			if remembered := again[0].Segment == 0; remembered != (err == syscall.EIO) {
				t.Errorf("remembered: %t", remembered)
			}
			if n := r.f.Counters().SwitchedOff["udpSegment"]; n == 1 != (err == syscall.EIO) || n > 1 {
				t.Errorf("switched off %d times", n)
			}
			if n := len(datagrams(t, again)); n != 10 {
				t.Errorf("%d datagrams, want 10", n)
			}
			r.check(nil)
			r.expect(12, 0, 0)
		})
	}
}

// TestReplayFails: datagrams that are refused once more are counted, the rest arrive.
func TestReplayFails(t *testing.T) {
	r := newRig(t, testSettings(encap.KindUDP))
	pod := r.veth("a1", podA1)
	for i := range 6 {
		pod.Inject(fromPod(udpPacket(podA1, podB, 1, uint16(i), 72)))
	}
	s := r.udp[0]
	s.Fail(0, syscall.EIO)
	s.Fail(1, syscall.EPERM) // of the replay: counted after the run's own failure
	s.Fail(3, syscall.EMSGSIZE)
	r.turn()
	ds := datagrams(t, r.sends())
	c := r.f.Counters()
	if len(ds) != 4 || r.forwarded("wire", "udp") != 4 {
		t.Errorf("%d datagrams left, counted %d", len(ds), r.forwarded("wire", "udp"))
	}
	if n := c.Dropped["send_refused"] + c.Dropped["underlay_mtu"]; n != 2 {
		t.Errorf("%d dropped, want 2", n)
	}
}

// TestSuperframeErrors: a superframe that lost any of its pieces is dropped
// once, and the frames around it are not.
func TestSuperframeErrors(t *testing.T) {
	for fail := range 3 {
		r := newRig(t, testSettings(encap.KindUDP))
		pod := r.veth("a1", podA1)
		// Three superframes of 42 segments of 1,410 bytes, in runs of 45
		// at most: runs hold ends and beginnings of two frames.
		const size = 42 * 1410
		for i := range 3 {
			ip := tcpPacket(podA1, podB, uint32(1+i*size), size)
			pod.Inject(fromVeth(ip, partial(ip, 1410)))
		}
		r.udp[0].Fail(fail, syscall.ENOBUFS)
		r.udp[0].Fail(fail, syscall.ENOBUFS) // nor for the first datagram alone
		r.turn()
		sends := r.sends()
		c := r.f.Counters()
		lost := c.Dropped["send_no_buffers"] + c.Dropped["send_failed"]
		whole := uint64(0)
		seen := map[uint32]int{}
		for _, d := range datagrams(t, sends) {
			o := decode(t, d)
			seen[(o.tcp.Seq-1)/size] += len(o.payload)
		}
		for _, n := range seen {
			if n == size {
				whole++
			}
		}
		if len(sends) != 2 {
			t.Errorf("%d runs left, want 2", len(sends))
		}
		if got := r.forwarded("wire", "udp"); got != whole || got+lost != 3 {
			t.Errorf("run %d of %d lost: forwarded %d, dropped %d, whole on the wire %d", fail, len(sends)+1, got, lost, whole)
		}
		// The next frame is not held for the lost one.
		r.turn()
		pod.Inject(fromPod(udpPacket(podA1, podB, 1, 2, 10)))
		r.turn()
		if got := r.forwarded("wire", "udp"); got != whole+1 {
			t.Errorf("run %d lost: the frame behind was counted as lost", fail)
		}
	}
}

// TestSuperframeErrorBehindOthers: the run in which a superframe ends need not
// be the next one behind the run that was lost.
func TestSuperframeErrorBehindOthers(t *testing.T) {
	r := newRig(t, testSettings(encap.KindUDP))
	pod := r.veth("a1", podA1)
	const size = 42 * 1410
	super := func(i int) {
		ip := tcpPacket(podA1, podB, uint32(1+i*size), size)
		pod.Inject(fromVeth(ip, partial(ip, 1410)))
	}
	super(0)
	for range 2 {
		pod.Inject(fromPod(udpPacket(podA1, podB, 1, 2, 10)))
	}
	super(1) // begins in the first run, ends in the third
	r.udp[0].Fail(0, syscall.ENOBUFS)
	r.udp[0].Fail(0, syscall.ENOBUFS)
	r.turn()
	if sends := r.sends(); len(sends) != 2 {
		t.Fatalf("sends %s, want 2", shapes(sends))
	}
	r.check(map[Reason]uint64{DropSendNoBuffers: 1, DropSendFailed: 1})
}
