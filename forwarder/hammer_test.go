package forwarder

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"syscall"
	"testing"

	"github.com/google/gopacket/layers"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/ring"
)

// hammer throws random frames at a rig from all sides. Its good datagrams carry
// the number that their flow has given them, so that whatever leaves shows
// whether a flow was reordered.
type hammer struct {
	t    testing.TB
	rnd  *rand.Rand
	r    *rig
	kind encap.Kind
	pods []*ring.FakeQueue
	next map[flowKey]uint32
	seen map[string]uint32 // the last number seen of a flow at an exit

	calm   bool // flows whose packets are alike, so that they are merged
	spoilt bool // the packet to be made will be spoilt: it gets no number
	ports  [2]uint16
}

// numberMark stands in front of a number: other bytes are no numbers.
const numberMark = 0xa5

const hammerPods = 4

func hammerPod(i int) (netip.Addr, netip.Addr) {
	return netip.AddrFrom4([4]byte{10, 244, 1, byte(10 + i)}), netip.MustParseAddr(fmt.Sprintf("fd00:10:244:1::%d", 10+i))
}

func newHammer(t testing.TB, seed uint64, s Settings) *hammer {
	h := &hammer{t: t, rnd: rand.New(rand.NewPCG(seed, 1)), kind: s.Encap, next: map[flowKey]uint32{}, seen: map[string]uint32{}}
	h.r = newRig(t, s)
	h.r.f.TrackFlows()
	for i := range hammerPods {
		a4, a6 := hammerPod(i)
		kind := AttachVeth
		if i%2 == 1 {
			kind = AttachTUN
		}
		h.pods = append(h.pods, h.r.attach(kind, fmt.Sprint("pod", i), a4, a6))
	}
	h.r.f.ports[3].uso = h.rnd.IntN(2) == 0
	h.r.f.ports[2].gso = h.rnd.IntN(2) == 0
	return h
}

func (h *hammer) one(of ...int) int { return of[h.rnd.IntN(len(of))] }

// packet is a good datagram, numbered in its flow, or a superframe of such, or
// something else that a stack may send; v is its metadata from the IP header on.
func (h *hammer) packet(src, dst netip.Addr) (ip []byte, v ring.Virtio) {
	sport := h.ports[0] + uint16(h.rnd.IntN(3))
	size := h.one(4, 4, 4, 20, 20, 100, 100, 1000, 1400, h.rnd.IntN(1500))
	size = max(size, 4)
	if h.calm {
		sport, size = h.ports[0], h.one(20, 20, 20, 20, 20, 20, 8, 1500)
	}
	k := flowKey{Src: src, Dst: dst, SrcPort: sport}
	number := func(b []byte) {
		if !h.spoilt {
			h.next[k]++
			binary.BigEndian.PutUint32(b, numberMark<<24|h.next[k])
		}
	}
	payload := make([]byte, size)
	gso := 0
	what := h.rnd.IntN(10)
	if h.calm && what < 2 {
		what = 9
	}
	switch what {
	case 0: // TCP, not numbered
		ip = tcpPacket(src, dst, h.rnd.Uint32(), h.one(0, 10, 1400, 9000, 60000))
		if len(ip) > 1500 || h.rnd.IntN(3) == 0 {
			gso = h.one(8, 536, 1300, 1390, 1420)
			if h.rnd.IntN(3) > 0 {
				gso = 1300
			}
			return ip, partial(ip, gso)
		}
		return ip, v
	case 1, 2: // a superframe of numbered datagrams
		gso = max(4, h.one(4, 100, 1200, 1400, 2000))
		if h.calm {
			gso = 20
		}
		payload = make([]byte, min(60000, gso*(1+h.rnd.IntN(64))))
		for at := 0; at+4 <= len(payload); at += gso {
			number(payload[at:])
		}
	default:
		number(payload)
	}
	u := &layers.UDP{SrcPort: layers.UDPPort(sport), DstPort: layers.UDPPort(h.ports[1])}
	ip = ipPacket(src, dst, layers.IPProtocolUDP, u, payload, func(ip *layers.IPv4) {
		ip.TOS = uint8(h.one(0, 0, 0, 1, 2, 3))
		ip.TTL = uint8(h.one(64, 64, 64, 64, 64, 1, 2))
		ip.Id = uint16(h.rnd.Uint32())
		if h.rnd.IntN(3) == 0 {
			ip.Flags = 0
		}
		if h.calm {
			ip.TOS, ip.TTL, ip.Flags = 2, 64, layers.IPv4DontFragment
			if size == 1500 {
				ip.Flags = 0
			}
		}
	})
	if gso > 0 || h.rnd.IntN(4) == 0 {
		v = partial(ip, gso)
	}
	return ip, v
}

// spoil makes something hostile of a good packet.
func (h *hammer) spoil(ip []byte, v ring.Virtio) ([]byte, ring.Virtio) {
	ip = append([]byte{}, ip...)
	for range 1 + h.rnd.IntN(4) {
		switch h.rnd.IntN(6) {
		case 0:
			if len(ip) > 0 {
				ip[h.rnd.IntN(min(len(ip), 64))] = byte(h.rnd.Uint32())
			}
		case 1:
			ip = ip[:h.rnd.IntN(len(ip)+1)]
		case 2:
			v = ring.Virtio{Flags: uint8(h.one(0, 1, 1, 2, 3, 255)), GSOType: uint8(h.one(0, 1, 3, 4, 5, 0x81, 0x85, 9)),
				HdrLen: uint16(h.rnd.Uint32()), GSOSize: uint16(h.one(0, 1, 8, 1000, 65535)), CsumStart: uint16(h.one(0, 20, 34, 40, 54, 65535)), CsumOffset: uint16(h.one(0, 6, 16, 65535))}
		case 3:
			ip = mangle(ip, func(b []byte) []byte {
				if len(b) > 9 {
					b[h.one(1, 4, 5, 6, 7, 8, 9)] = byte(h.rnd.Uint32())
				}
				return b
			})
		case 4:
			if len(ip) > 40 && ip[0]>>4 == 4 {
				n := (len(ip) - 20) / 2 &^ 7
				ip = fragmentOf(ip, h.one(0, n), n)
			}
		case 5:
			if len(ip) > 6 && ip[0]>>4 == 6 {
				ip[6] = byte(h.one(0, 43, 44, 51, 58, 59, 60, 135))
			}
		}
	}
	return ip, v
}

// round injects a batch from all sides, lets it through, and looks at what came out.
func (h *hammer) round() {
	rnd := h.rnd
	h.calm = rnd.IntN(2) == 0
	for range rnd.IntN(120) {
		i := rnd.IntN(hammerPods)
		v6 := rnd.IntN(4) == 0
		own4, own6 := hammerPod(i)
		src := own4
		if v6 {
			src = own6
		}
		h.spoilt, h.ports = rnd.IntN(8) == 0, [2]uint16{1, 7}
		ip, v := h.packet(src, h.destination(v6))
		if h.spoilt {
			ip, v = h.spoil(ip, v)
		}
		if len(ip) == 0 {
			ip = []byte{0}
		}
		p := ring.FakePacket{Data: ip, Virtio: v}
		if i%2 == 0 {
			if p = fromVeth(ip, v); rnd.IntN(200) == 0 {
				p.Data = p.Data[:rnd.IntN(14)]
			}
		}
		p.Truncated, p.VLAN = rnd.IntN(300) == 0, rnd.IntN(300) == 0
		h.pods[i].Inject(p)
	}
	for range rnd.IntN(20) {
		v6 := rnd.IntN(4) == 0
		src := hostAddr
		if rnd.IntN(2) == 0 {
			src, _ = hammerPod(rnd.IntN(hammerPods)) // translated: the answers are the host's
			v6 = false
		} else if v6 {
			src = netip.MustParseAddr("fd00:10:244:1::")
		}
		h.spoilt, h.ports = rnd.IntN(10) == 0, [2]uint16{100, 7}
		ip, v := h.packet(src, h.destination(v6))
		if h.spoilt {
			ip, v = h.spoil(ip, v)
		}
		// One queue a flow, as the kernel does.
		h.r.hosts[int(src.As16()[15])%len(h.r.hosts)].Inject(ring.FakePacket{Data: ip, Virtio: v})
	}
	for range rnd.IntN(40) {
		h.fromWire()
	}
	h.fail()
	h.r.turn()
	h.look()
	if rnd.IntN(10) == 0 {
		h.r.udp0().InjectError(ring.SocketError{Peer: netip.AddrPortFrom(nodeB, 1), Errno: syscall.EMSGSIZE, MTU: rnd.IntN(1600), Origin: ring.OriginICMP})
		w := h.r.f.workers[0]
		w.begin()
		w.serveLane(w.lanes[0], 0, true, true)
	}
}

func (r *rig) udp0() *ring.FakeSocket {
	return append(append([]*ring.FakeSocket{}, r.udp...), r.raw...)[0]
}

func (h *hammer) destination(v6 bool) netip.Addr {
	a4, a6 := hammerPod(h.rnd.IntN(hammerPods + 1))
	if v6 {
		return []netip.Addr{podBv6, podBv6, podBv6, a6, netip.MustParseAddr("fd00:10:244:9::1"), netip.MustParseAddr("2001:db8::1")}[h.rnd.IntN(6)]
	}
	return []netip.Addr{podB, podB, podB, a4, a4, outsideAddr, netip.MustParseAddr("10.244.9.9"), hostAddr}[h.rnd.IntN(8)]
}

// fromWire injects a datagram, a run or a superframe of a peer.
func (h *hammer) fromWire() {
	rnd := h.rnd
	i := rnd.IntN(hammerPods + 1)
	a4, a6 := hammerPod(i)
	src, dst := podB, a4
	if rnd.IntN(4) == 0 {
		src, dst = podBv6, a6
	}
	d := ring.FakeDatagram{Addr: netip.AddrPortFrom(nodeB, uint16(rnd.IntN(65536))), TOS: uint8(rnd.IntN(4))}
	// Either a flow of the peer's own, or answers to what the host may have sent.
	h.spoilt, h.ports = rnd.IntN(6) == 0, [2]uint16{1, 7}
	if rnd.IntN(3) == 0 {
		h.ports = [2]uint16{7, 100}
	}
	ip, v := h.packet(src, dst)
	gso := int(v.GSOSize)
	switch {
	case !h.spoilt:
	case rnd.IntN(2) == 0:
		ip, _ = h.spoil(ip, v)
	default:
		gso = rnd.IntN(2000)
	}
	if rnd.IntN(12) == 0 {
		d.Addr = netip.AddrPortFrom(stranger, 1)
	}
	if len(ip) == 0 {
		ip = []byte{0}
	}
	var rest []byte // the second fragment
	if len(ip) > 36 && ip[0] == 0x45 && gso == 0 && !h.spoilt && v.Flags == 0 && rnd.IntN(4) == 0 {
		whole := mangle(ip, func(b []byte) []byte { b[6] &^= 0x40; return b })
		ip, rest = fragmentOf(whole, 0, 16), fragmentOf(whole, 16, len(whole)-36)
	}
	d.Data = fromPeer(h.kind, nodeB, ip)
	if h.kind != encap.KindIPIP {
		d.Segment = gso
		if gso == 0 && rest == nil && rnd.IntN(2) == 0 {
			// A run: packets as long as the first, of any flows, the last shorter.
			d.Segment = len(d.Data)
			for range rnd.IntN(40) {
				more, w := h.packet(src, dst)
				if b := fromPeer(h.kind, nodeB, more); w.GSOSize == 0 && len(b) <= d.Segment && len(d.Data)+len(b) < 65000 {
					if d.Data = append(d.Data, b...); len(b) < d.Segment {
						break
					}
				}
			}
		}
		if rnd.IntN(30) == 0 {
			d.Data = d.Data[:rnd.IntN(len(d.Data)+1)]
		}
	}
	d.Truncated = rnd.IntN(300) == 0
	sockets := h.r.raw
	if h.kind != encap.KindIPIP {
		sockets = nil
		for _, s := range h.r.udp {
			if s.Local().Port() != 0 {
				sockets = append(sockets, s)
			}
		}
	}
	// The kernel spreads by addresses: a flow has one socket.
	to := sockets[int(dst.As16()[15])%len(sockets)]
	to.Inject(d)
	if rest != nil {
		to.Inject(ring.FakeDatagram{Data: fromPeer(h.kind, nodeB, rest), Addr: d.Addr})
	}
}

// fail makes some writes and sends fail.
func (h *hammer) fail() {
	errs := []error{syscall.EAGAIN, syscall.ENOBUFS, syscall.EINVAL, syscall.EIO, syscall.EMSGSIZE, syscall.EPERM, syscall.ENETDOWN, syscall.EFAULT}
	for range h.rnd.IntN(4) {
		err, at := errs[h.rnd.IntN(len(errs))], h.rnd.IntN(30)
		switch h.rnd.IntN(3) {
		case 0:
			h.pods[h.rnd.IntN(hammerPods)].Fail(at, err)
		case 1:
			h.r.hosts[h.rnd.IntN(len(h.r.hosts))].Fail(at, err)
		case 2:
			all := append(append([]*ring.FakeSocket{}, h.r.udp...), h.r.raw...)
			all[h.rnd.IntN(len(all))].Fail(at, err)
		}
	}
}

// look takes what has left at every exit and checks the numbers of each flow.
func (h *hammer) look() {
	for i, p := range h.pods {
		for _, w := range p.Sent() {
			link := 14 * (1 - i%2)
			if len(w.Data) < link+20 {
				h.t.Errorf("a write of %d bytes", len(w.Data))
				continue
			}
			if link > 0 && w.Data[12] == 8 && w.Data[13] == 6 {
				continue
			}
			for _, ip := range cutWrite(h.t, w, link) {
				h.numbers(fmt.Sprint("pod", i), ip)
			}
		}
	}
	for _, q := range h.r.hosts {
		for _, w := range q.Sent() {
			for _, ip := range cutWrite(h.t, w, 0) {
				h.numbers("host", ip)
			}
		}
	}
	for _, ip := range inner(h.t, h.kind, datagrams(h.t, h.r.sends())) {
		h.numbers("wire", ip)
	}
}

// numbers holds a packet that left against the last of its flow.
func (h *hammer) numbers(exit string, ip []byte) {
	l4, proto := 20, ip[9]
	if ip[0]>>4 == 6 {
		l4, proto = 40, ip[6]
	} else if ip[0]&15 != 5 || ip[6]&0x1f != 0 || ip[7] != 0 || ip[6]&0x20 != 0 && exit[0] != 'p' {
		return // fragments go by another socket or queue than the rest of their flow
	}
	if proto != encap.ProtoUDP || len(ip) < l4+12 || ip[l4+8] != numberMark {
		return
	}
	src, dst := addresses(ip)
	n := binary.BigEndian.Uint32(ip[l4+8:])
	flow := fmt.Sprint(exit, " ", src, " ", dst, " ", binary.BigEndian.Uint32(ip[l4:]))
	if n <= h.seen[flow] {
		h.t.Errorf("%s: number %d behind %d", flow, n, h.seen[flow])
	}
	h.seen[flow] = n
}

// law checks what came in against what went out.
func (h *hammer) law() {
	c := h.r.f.Counters()
	in, out := balance(c)
	if in != out || in == 0 {
		h.t.Errorf("in %d, out %d: %+v", in, out, c)
	}
}

// TestHammer: whatever comes, it never panics, the law holds exactly, and no
// flow's datagrams are reordered.
func TestHammer(t *testing.T) {
	rounds := 120
	if testing.Short() {
		rounds = 20
	}
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			s := testSettings(kinds[seed%3])
			s.Workers = 1 + int(seed%2)
			s.Offload.UDPSegment, s.Offload.MergeWrites, s.Offload.TUNOffload = seed%4 != 3, seed%5 != 4, seed != 6
			if s.Encap == encap.KindVXLAN && seed > 3 {
				s.SourcePorts = 3
			}
			h := newHammer(t, seed, s)
			for range rounds {
				h.round()
				if h.law(); t.Failed() {
					return
				}
			}
		})
	}
}
