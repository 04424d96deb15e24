package forwarder

import (
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/ring"
	"github.com/penstock-net/penstock/table/feed"
)

// TestRejected: what a peer sends against the rules is counted by itself, with the last reason and when, and is no sign of life; what
// becomes of an accepted packet later is another matter.
func TestRejected(t *testing.T) {
	second := int64(1_800_000_000)
	good := udpPacket(podB, podA1, 1, 2, 30)
	type step struct {
		what              string
		d                 ring.FakeDatagram
		fail              error // of the pod's device
		rejected, dropped uint64
		as                Reason
		heard             bool
		received          uint64
	}
	from := func(b []byte) ring.FakeDatagram {
		return ring.FakeDatagram{Data: b, Addr: netip.AddrPortFrom(nodeB, 7)}
	}
	flip := func(b []byte, at int, by byte) []byte { b[at] ^= by; return b }
	half := from(append(vxlanFrom(nodeB, good), flip(vxlanFrom(nodeB, good), 6, 7)...)) // a run: one that is good, one of another VNI
	half.Segment = len(half.Data) / 2
	r := newRig(t, testSettings(encap.KindVXLAN))
	r.f.env.now = func() time.Time { return time.Unix(second, 0) }
	pod := r.attach(AttachTUN, "a1", podA1)
	for _, s := range []step{
		{what: "another VNI", d: from(flip(vxlanFrom(nodeB, good), 6, 7)), rejected: 1, dropped: 1, as: DropWrongVNI, received: 1},
		{what: "another's address", d: from(vxlanFrom(nodeB, udpPacket(podA2, podA1, 1, 2, 9))), rejected: 1, dropped: 1, as: DropInnerSource, received: 1},
		{what: "cut", d: ring.FakeDatagram{Data: vxlanFrom(nodeB, good), Addr: netip.AddrPortFrom(nodeB, 7), Truncated: true}, rejected: 1, dropped: 1, as: DropTruncated, received: 1},
		{what: "good", d: from(vxlanFrom(nodeB, good)), heard: true, received: 1},
		{what: "one of two", d: half, rejected: 1, dropped: 1, as: DropWrongVNI, heard: true, received: 2},
		{what: "too big for the pod", d: from(vxlanFrom(nodeB, udpPacket(podB, podA1, 1, 2, 1480))), dropped: 1, heard: true, received: 1},
		{what: "a pod that has gone", d: from(vxlanFrom(nodeB, udpPacket(podB, netip.MustParseAddr("10.244.1.77"), 1, 2, 9))), dropped: 1, heard: true, received: 1},
		{what: "the pod takes nothing", d: from(vxlanFrom(nodeB, good)), fail: syscall.EAGAIN, heard: true, received: 1},
	} {
		was := r.f.Counters().Peers[0]
		second++
		if s.fail != nil {
			pod.Fail(0, s.fail)
		}
		r.listen(encap.KindVXLAN, false).Inject(s.d)
		r.turn()
		is := r.f.Counters().Peers[0]
		if n := is.Rejected - was.Rejected; n != s.rejected || n > 0 && (is.RejectedAs != s.as || is.LastRejected != second) || n == 0 && is.LastRejected == second {
			t.Errorf("%s: %d rejected, the last as %s at %d", s.what, n, is.RejectedAs, is.LastRejected)
		}
		if heard := is.LastSeen == second; heard != s.heard || is.Got.Packets-was.Got.Packets != s.received || is.Dropped-was.Dropped != s.dropped {
			t.Errorf("%s: heard %v, %d received, %d dropped", s.what, heard, is.Got.Packets-was.Got.Packets, is.Dropped-was.Dropped)
		}
	}
}

// TestRejectedWrongEncap: a peer is told apart from a stranger when it comes by another encapsulation than its own.
func TestRejectedWrongEncap(t *testing.T) {
	r := newRig(t, testSettings(encap.KindVXLAN))
	r.peers(
		feed.Peer{Name: "node-b", Address: nodeB, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.2.0/24")}},
		feed.Peer{Name: "node-c", Address: netip.MustParseAddr("192.0.2.3"), Encap: "udp", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.3.0/24")}})
	r.udp[2].Inject(ring.FakeDatagram{Data: make([]byte, 200), Segment: 100, Addr: netip.AddrPortFrom(nodeB, 8285)})
	r.turn()
	for _, p := range r.f.Counters().Peers {
		if want := map[string]uint64{"node-b": 2}[p.Name]; p.Rejected != want || p.Got.Packets != want || p.Dropped != want || p.LastSeen != 0 || want > 0 && p.RejectedAs != DropWrongEncap {
			t.Errorf("%+v", p)
		}
	}
}

// TestNobodyListens: only the peer's own node, about the tunnel, says that nobody takes it there; and nothing but that is noted.
func TestNobodyListens(t *testing.T) {
	for _, kind := range kinds {
		r := newRig(t, testSettings(kind))
		port := kind.DefaultPort()
		w := r.f.workers[0]
		w.begin()
		p := w.view.Peer(nodeB).peer
		for _, c := range []struct {
			what     string
			to       netip.AddrPort
			offender netip.Addr
			origin   ring.ErrorOrigin
			errno    syscall.Errno
			want     bool
		}{
			{"port unreachable", netip.AddrPortFrom(nodeB, port), nodeB, ring.OriginICMP, syscall.ECONNREFUSED, true},
			{"protocol unreachable", netip.AddrPortFrom(nodeB, port), nodeB, ring.OriginICMP, syscall.ENOPROTOOPT, true},
			{"in IPv6's form", netip.AddrPortFrom(nodeB, port), netip.AddrFrom16(nodeB.As16()), ring.OriginICMP6, syscall.ECONNREFUSED, true},
			{"by a router", netip.AddrPortFrom(nodeB, port), stranger, ring.OriginICMP, syscall.ECONNREFUSED, false},
			{"by a pod of the peer", netip.AddrPortFrom(nodeB, port), podB, ring.OriginICMP, syscall.ECONNREFUSED, false},
			{"by nobody", netip.AddrPortFrom(nodeB, port), netip.Addr{}, ring.OriginICMP, syscall.ECONNREFUSED, false},
			{"by ourselves", netip.AddrPortFrom(nodeB, port), nodeB, ring.OriginLocal, syscall.ECONNREFUSED, false},
			{"host unreachable", netip.AddrPortFrom(nodeB, port), nodeB, ring.OriginICMP, syscall.EHOSTUNREACH, false},
			{"of the native stream", netip.AddrPortFrom(nodeB, 7471), nodeB, ring.OriginICMP, syscall.ECONNREFUSED, false},
			{"about a stranger", netip.AddrPortFrom(stranger, port), stranger, ring.OriginICMP, syscall.ECONNREFUSED, false},
		} {
			p.state.nobodyListens.Store(0)
			w.socketError(&ring.SocketError{Peer: c.to, Offender: c.offender, Origin: c.origin, Errno: c.errno})
			if got := r.f.Counters().Peers[0]; (got.NobodyListens == w.now) != c.want || got.NobodyListens != 0 && !c.want || got.MTU != p.mtu {
				t.Errorf("%s, %s: %+v", kind, c.what, got)
			}
		}
	}
}
