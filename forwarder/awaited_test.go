package forwarder

import (
	"net/netip"
	"testing"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/ring"
	"github.com/penstock-net/penstock/table/feed"
)

// TestAwait: what is for a pod that is yet to come back is dropped without an answer, from another pod, the host and the wire, also after
// the table was made anew; the pod takes its addresses over, and one that is awaited no more is nobody's.
func TestAwait(t *testing.T) {
	r := newRig(t, testSettings(encap.KindUDP))
	other := r.attach(AttachVeth, "a2", podA2)
	await := func(addresses ...netip.Addr) {
		t.Helper()
		if err := r.f.Await(addresses); err != nil {
			t.Fatal(err)
		}
	}
	send := func() (answers int) {
		other.Inject(fromPod(udpPacket(podA2, podA1, 1, 2, 3)))
		r.hosts[0].Inject(ring.FakePacket{Data: udpPacket(hostAddr, podA1, 1, 2, 3)})
		r.receive(encap.KindUDP, 0, udpPacket(podB, podA1, 1, 2, 3))
		r.turn()
		return len(other.Sent()) + len(r.hosts[0].Sent()) + len(r.sends())
	}
	await(podA1, podA1v6, podA2) // of two records with one address, the pod that is there has it
	view := r.f.table.Load()
	if await(podA1, podA1v6, podA2); r.f.table.Load() != view {
		t.Error("what was known already was written again")
	}
	if n := send(); n != 0 {
		t.Errorf("%d answers in the name of a pod that is awaited", n)
	}
	r.check(map[Reason]uint64{DropPortDown: 3})
	r.peers(feed.Peer{Name: "node-b", Address: nodeB, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.2.0/24")}})
	if n := send(); n != 0 {
		t.Errorf("%d answers after the table was made anew", n)
	}
	r.check(map[Reason]uint64{DropPortDown: 6})

	pod := r.attach(AttachTUN, "a1", podA1)
	await()
	send()
	if len(pod.Sent()) != 3 {
		t.Errorf("the pod that has come back got %d packets, want 3", len(pod.Sent()))
	}
	if err := r.f.Detach("a1", "eth0"); err != nil {
		t.Fatal(err)
	}
	await(podA1)
	await()
	send()
	r.check(map[Reason]uint64{DropPortDown: 6, DropNoPod: 3})
}
