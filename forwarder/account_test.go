package forwarder

import (
	"net/netip"
	"reflect"
	"testing"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/ring"
)

// An account fills a cache line, so that no two workers write to one.
func TestAccountIsACacheLine(t *testing.T) {
	if size := reflect.TypeFor[account]().Size(); size != 64 {
		t.Errorf("an account has %d bytes", size)
	}
}

// TestAccounts: what two workers count for a peer and for pods adds up, drops and all.
func TestAccounts(t *testing.T) {
	s := testSettings(encap.KindVXLAN)
	s.Workers = 2
	r := newRig(t, s)
	one, two := r.veth("a1", podA1), r.veth("a2", podA2)
	if infos := r.f.Ports(); infos[0].Worker == infos[1].Worker {
		t.Fatal("both pods have one worker")
	}
	for _, p := range r.f.Ports() {
		if p.LastSeen != 0 {
			t.Errorf("%s was seen at %d and has sent nothing", p.PortCounters.Container, p.LastSeen)
		}
	}
	out1, out2 := udpPacket(podA1, podB, 1, 2, 100), udpPacket(podA2, podB, 1, 2, 200)
	one.Inject(fromPod(out1), fromPod(out1), fromPod(udpPacket(podA2, podB, 1, 2, 10)))
	two.Inject(fromPod(out2))
	in := udpPacket(podB, podA1, 1, 2, 300)
	listens := 0
	for _, sock := range r.udp {
		if sock.Local().Port() == 0 {
			continue
		}
		listens++
		from := netip.AddrPortFrom(nodeB, 1)
		sock.Inject(ring.FakeDatagram{Data: vxlanFrom(nodeB, in), Addr: from}, ring.FakeDatagram{Data: vxlanFrom(nodeB, udpPacket(podA2, podA1, 1, 2, 7)), Addr: from})
	}
	if listens != 2 {
		t.Fatalf("%d sockets listen", listens)
	}
	r.turn()
	r.check(map[Reason]uint64{DropSpoofed: 1, DropInnerSource: 2})

	c := r.f.Counters()
	peer := c.Peers[0]
	forged := uint64(len(udpPacket(podA2, podA1, 1, 2, 7)))
	if want := (Volume{3, uint64(2*len(out1) + len(out2))}); peer.Sent != want {
		t.Errorf("to the peer %+v, want %+v", peer.Sent, want)
	}
	if want := (Volume{4, 2*uint64(len(in)) + 2*forged}); peer.Got != want || peer.Dropped != 2 || peer.LastSeen == 0 {
		t.Errorf("from the peer %+v, want %+v; dropped %d, seen %d", peer.Got, want, peer.Dropped, peer.LastSeen)
	}
	ports := map[string]PortCounters{}
	for _, p := range c.Ports {
		ports[p.Container] = p
	}
	if p := ports["a1"]; p.Sent.Packets != 3 || p.Got != (Volume{2, 2 * uint64(len(in))}) || p.Dropped != 1 || p.LastSeen == 0 {
		t.Errorf("a1: %+v", p)
	}
	if p := ports["a2"]; p.Sent != (Volume{1, uint64(len(out2))}) || p.Got.Packets != 0 || p.Dropped != 0 || p.LastSeen == 0 {
		t.Errorf("a2: %+v", p)
	}
}
