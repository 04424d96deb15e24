package forwarder

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/ring"
)

// explain tells what the tap and the fake sockets have seen. It decides nothing: what it adds are the names of what was
// looked up, found by the same look-ups in the same table.
func (t *tracer) explain(in *port, from *peer) *Trace {
	r := &Trace{}
	say := func(name, format string, args ...any) {
		r.Steps = append(r.Steps, TraceStep{name, fmt.Sprintf(format, args...)})
	}
	switch {
	case from != nil:
		r.Origin = "peer " + from.spec.Name
		say("from", "peer %s %s sends it as %s", from.spec.Name, from.spec.Address, encapText(from))
	case in != nil:
		r.Origin = "pod " + in.spec.Container + "/" + in.spec.Interface
		say("from", "pod %s/%s sends it, %s %s, which worker %d reads", in.spec.Container, in.spec.Interface, in.spec.Attach, in.spec.Device, in.worker)
	default:
		r.Origin = "host"
		say("from", "the host's stack routes it to %s", t.w.host.spec.Device)
	}

	// The packet's own end is the first that is no beginning; behind a drop come answers, and at a flush the kernel's refusals.
	last := -1
	for i := range t.records {
		switch t.records[i].Stage {
		case FromPod, FromHost, FromPeer:
		default:
			if last < 0 {
				last = i
			}
		}
	}
	if last < 0 { // no record is lost of a single packet
		r.Outcome, r.Reason = Dropped.String(), DropTruncated
		return r
	}
	end := &t.records[last]
	fate := end
	if end.Stage == ToPeer {
		for i := range t.records[last+1:] {
			if o := &t.records[last+1+i]; o.Stage == Dropped {
				fate = o // the kernel did not take it
			}
		}
	}
	r.Outcome, r.Reason = fate.Stage.String(), fate.Reason

	var p encap.Packet
	encap.Parse(t.before, &p)
	if decapsulated := from == nil || t.records[0].Stage == FromPeer; decapsulated {
		if from != nil {
			say("decap", "%s is a known peer, and the encapsulation is what it uses", from.spec.Address)
		}
		t.explainWay(say, in, from, &p, end)
	}
	switch fate.Stage {
	case ToPeer:
		t.explainSend(say, end)
	case ToPod:
		say("deliver", "written to pod %s", end.Pod)
	case ToHost:
		say("deliver", "handed to the host's stack through %s, whose routes decide from here on", t.w.host.spec.Device)
	case Dropped:
		say("drop", "%s: %s", fate.Reason, fate.Reason.Meaning())
		if remedy := fate.Reason.Remedy(); remedy != "" {
			say("remedy", "%s", remedy)
		}
	}
	for _, o := range t.records[last+1:] {
		if text := answerText(o.Data); end.Stage == Dropped && text != "" {
			say("answer", "%s, to %s", text, answered(&o))
		}
	}
	return r
}

// explainWay tells the checks that the packet passed up to its end.
func (t *tracer) explainWay(say func(string, string, ...any), in *port, from *peer, p *encap.Packet, end *TapRecord) {
	past := reasonText[end.Reason].past
	switch {
	case past < sourced:
		return
	case in != nil:
		say("source", "%s is an address of that pod", p.Src)
	case from != nil:
		say("source", "%s lies in the prefixes of %s", p.Src, from.spec.Name)
	}
	if past < routed {
		return
	}
	say("route", "%s", t.routeText(p.Dst))
	if end.Stage == ToHost {
		if h := t.w.network.Route(p.Dst); h != nil && h.kind == hopPort {
			say("flow", "it answers a flow that the host has translated (a Service), so the host must see it")
		}
	}
	out := end.Data
	if end.Stage == Dropped || len(out) < encap.IPv4Len {
		return
	}
	now := out[8]
	if p.Version == 6 {
		now = out[7]
	}
	if now != p.TTL {
		say("ttl", "%d becomes %d", p.TTL, now)
	} else {
		say("ttl", "%d stays", p.TTL)
	}
}

// explainSend tells how the packet leaves for a peer.
func (t *tracer) explainSend(say func(string, string, ...any), end *TapRecord) {
	h := t.w.network.Route(innerDst(end.Data))
	if h == nil || h.kind != hopPeer || len(t.left) == 0 {
		return
	}
	p, f := h.peer, t.w.f
	mtu, why := p.innerMTU(t.w.now), fmt.Sprintf("underlay %d less %d for %s", f.settings.UnderlayMTU, p.kind.Overhead(f.address.Is6()), p.kind)
	switch l := p.state.outerMTU(t.w.now); {
	case l == 0 || l >= f.settings.UnderlayMTU:
	case l == int(p.state.routeMTU.Load()):
		why = fmt.Sprintf("the route to it has an MTU of %d", l)
	default:
		why = fmt.Sprintf("the path's MTU of %d was learned from an error", l)
	}
	datagrams, longest := shapeOf(t.left)
	switch {
	case datagrams > 1:
		say("mtu", "%d bytes exceed %d (%s) and may be cut: %d fragments", end.Length, mtu, why, datagrams)
	case end.Length > mtu:
		say("mtu", "%d bytes exceed %d (%s) and are sent all the same, as IPv6 knows no MTU under %d: the path loses them", end.Length, mtu, why, encap.MinMTU6)
	default:
		say("mtu", "%d bytes fit %d (%s)", end.Length, mtu, why)
	}
	if way := p.state.native.way.Load(); way != nil {
		say("native", "frames to this peer go as the native stream by %s: what follows is how they would go without it", way.carrier)
	}
	d := t.left[0]
	say("encap", "%s, TOS %#02x, at most %d bytes of payload", encapText(p), d.TOS, longest)
	local := t.by.String()
	to := d.Addr.String()
	if p.kind == encap.KindIPIP {
		local, to = f.address.String(), d.Addr.Addr().String()
	}
	say("send", "from %s to %s on peer %s", local, to, p.spec.Name)
	switch {
	case p.kind == encap.KindIPIP:
		say("run", "ipip has no runs: each packet is a send of its own")
	case f.use.udpSegment && !p.state.noSegment.Load():
		say("run", "with others of its size it leaves as one send of up to %d (UDP_SEGMENT)", f.use.maxSegments)
	case f.use.udpSegment:
		say("run", "the route to this peer refuses UDP_SEGMENT: each packet is a send of its own")
	default:
		say("run", "UDP_SEGMENT is not used: each packet is a send of its own")
	}
	switch {
	case p.kind != encap.KindVXLAN || !f.use.tunnelGSO:
		say("whole", "superframes to this peer are cut by the daemon")
	case p.state.path.Load() != nil:
		say("whole", "superframes to this peer leave whole through %s, next hop %s", GSODevice, p.state.path.Load().NextHop)
	default:
		say("whole", "superframes to this peer are cut by the daemon until the way past the host's routing is known")
	}
}

// shapeOf counts the datagrams of sends, and says how long the longest is.
func shapeOf(sends []ring.FakeDatagram) (datagrams, longest int) {
	for _, d := range sends {
		n, size := 1, len(d.Data)
		if d.Segment > 0 {
			n, size = (size+d.Segment-1)/d.Segment, min(size, d.Segment)
		}
		datagrams += n
		longest = max(longest, size)
	}
	return datagrams, longest
}

// routeText names the longest prefix that covers a, and where it leads.
func (t *tracer) routeText(a netip.Addr) string {
	h := t.w.network.Route(a)
	var best netip.Prefix
	for p, o := range t.w.network.Routes() {
		if p.Contains(a) && o == h && (!best.IsValid() || p.Bits() > best.Bits()) {
			best = p
		}
	}
	if h == nil {
		return "nothing covers " + a.String()
	}
	to := ""
	switch h.kind {
	case hopPeer:
		to = fmt.Sprintf("peer %s %s", h.peer.spec.Name, h.peer.spec.Address)
	case hopPort:
		to = fmt.Sprintf("pod %s/%s", h.port.spec.Container, h.port.spec.Interface)
	case hopRouted:
		to = fmt.Sprintf("pod %s/%s, to which the host has a route of its own", h.port.spec.Container, h.port.spec.Interface)
	case hopSelf:
		to = "this host itself"
	case hopHost:
		return fmt.Sprintf("%s is outside of the pods' network: it is the host's to route", a)
	case hopNoPod:
		to = "this node's pods, and none has this address"
	case hopAwaited:
		to = "a pod of this node whose port is not back yet (penstockctl pods)"
	case hopNoRoute:
		to = "the pods' network, and no peer has this part of it"
	}
	return fmt.Sprintf("%s leads to %s", best, to)
}

func encapText(p *peer) string {
	switch p.kind {
	case encap.KindVXLAN:
		return fmt.Sprintf("vxlan, VNI %d, VTEP MACs %s here and %s there", p.vni, p.own, encap.MAC(p.spec.MAC))
	case encap.KindIPIP:
		return "ipip"
	}
	return fmt.Sprintf("%s, port %d", p.kind, p.spec.Port)
}

func innerDst(ip []byte) netip.Addr {
	var p encap.Packet
	encap.Peek(ip, &p)
	return p.Dst
}

func answered(r *TapRecord) string {
	dst := innerDst(r.Data)
	if r.Pod != "" && r.Stage == ToPod {
		return fmt.Sprintf("pod %s (%s)", r.Pod, dst)
	}
	return dst.String()
}

// answerText names an ICMP error; empty if ip is none.
func answerText(ip []byte) string {
	var p encap.Packet
	if encap.Parse(ip, &p) != encap.OK || p.Len < int(p.L4)+8 {
		return ""
	}
	h := ip[p.L4:]
	switch {
	case p.Proto == encap.ProtoICMP && h[0] == 3 && h[1] == 4:
		return fmt.Sprintf("ICMP fragmentation needed, MTU %d", binary.BigEndian.Uint16(h[6:]))
	case p.Proto == encap.ProtoICMP && h[0] == 3:
		return map[byte]string{0: "ICMP net unreachable", 1: "ICMP host unreachable"}[h[1]]
	case p.Proto == encap.ProtoICMP && h[0] == 11, p.Proto == encap.ProtoICMPv6 && h[0] == 3:
		return "ICMP time exceeded"
	case p.Proto == encap.ProtoICMPv6 && h[0] == 2:
		return fmt.Sprintf("ICMPv6 packet too big, MTU %d", binary.BigEndian.Uint32(h[4:]))
	case p.Proto == encap.ProtoICMPv6 && h[0] == 1:
		return map[byte]string{0: "ICMPv6 no route", 3: "ICMPv6 address unreachable"}[h[1]]
	}
	return ""
}
