package forwarder

import (
	"net/netip"
	"testing"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/ring"
)

// TestUnknownMAC: a pod whose MAC nobody has told is asked for it, at attach and
// before the first delivery, and its answer is learned; TCP would not take
// frames to all stations.
func TestUnknownMAC(t *testing.T) {
	for _, c := range []struct {
		name   string
		a      netip.Addr
		kind   uint16
		answer func(q []byte) []byte
	}{
		{"IPv4", podA1, encap.EtherTypeARP, func(q []byte) []byte {
			b := make([]byte, encap.ARPReplyLen)
			return b[:encap.ARPReply(b, q, podA1, macA1)]
		}},
		{"IPv6", podA1v6, encap.EtherTypeIPv6, func(q []byte) []byte {
			b := make([]byte, encap.NeighbourAdvertLen)
			return b[:encap.NeighbourAdvert(b, q, podA1v6, macA1)]
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, testSettings(encap.KindVXLAN))
			if _, err := r.f.Attach(PortSpec{Container: "c", Interface: "eth0", Attach: AttachVeth, Device: "v", Addresses: []netip.Addr{c.a}}); err != nil {
				t.Fatal(err)
			}
			pod := r.pods["v"]
			asked := pod.Sent()
			if len(asked) != 1 || encap.Ethernet(asked[0].Data).EtherType() != c.kind {
				t.Fatalf("asked %d times at attach", len(asked))
			}
			reply := c.answer(asked[0].Data)
			if len(reply) == 0 {
				t.Fatalf("an independent station would not answer % x", asked[0].Data)
			}
			pod.Inject(ring.FakePacket{Data: reply})
			r.turn()
			if got := unpackMAC(r.f.ports[0].mac.Load()); got != macA1 {
				t.Errorf("learned %s", got)
			}
			r.check(map[Reason]uint64{DropAnswered: 1})
		})
	}
}
