package forwarder

import "github.com/penstock-net/penstock/encap"

// Reason says why a frame was dropped. Every reason has a name, which is the
// label of penstock_dropped_packets_total, what it means and what to do.
type Reason uint8

// By where a packet meets them. What is looked at first there stands in outbound.go and inbound.go.
const (
	dropNone Reason = iota

	// The frame itself.
	DropTruncated
	DropNotIP
	DropShort
	DropBadVersion
	DropBadHeaderLength
	DropBadTotalLength
	DropBadIPChecksum
	DropBadOptions
	DropBadFragment
	DropBadL4
	DropBadVirtio

	// From the wire, outside.
	DropUnknownPeer
	DropWrongEncap
	DropBadGRO
	DropBadOuter
	DropBadVXLAN
	DropWrongVNI
	DropWrongVTEPMAC
	DropECN

	// From the wire, as the native stream.
	DropNativeChecksum
	DropNativeBad
	DropNativeUnknown
	DropNativeDuplicate
	DropNativeLate
	DropNativeStray
	DropNativeFull
	DropNativeLost

	// From the wire, inside.
	DropInnerChecksum
	DropInnerSource
	DropNotLocal

	// From a pod.
	DropAnswered
	DropRouterAdvert
	DropMulticast
	DropMartian
	DropSpoofed

	// On the way.
	DropTunnelLoop
	DropNoRoute
	DropNoPod
	DropTTLExpired
	DropTooBig
	DropFlowsFull

	// On the way out to a peer.
	DropSendFull
	DropSendNoBuffers
	DropSendRefused
	DropUnderlayMTU
	DropUnderlayUnreachable
	DropSendFailed

	// On the way out to a pod or the host.
	DropShaped
	DropPortFull
	DropPortDown
	DropPortFailed

	reasons
)

// progress is how far a packet has come.
type progress uint8

const (
	unknown progress = iota
	sourced          // its source is one that it may have,
	routed           // and it is known where it leads
)

// reasonText is the one place where a reason is described: docs, metrics and
// penstockctl read it.
var reasonText = [reasons]struct {
	name, meaning, remedy string
	rejects               bool     // of a frame from a peer: the rules turn it away, and the peer's account has it; else it befalls what they have accepted
	past                  progress // what is known of a packet that this befalls
}{
	dropNone:            {"none", "not dropped", "", false, routed},
	DropTruncated:       {"truncated", "the port's receive buffer had no room for a superframe, which the kernel then cut", "a few when a pod begins to send much are nothing; else raise limits.podBuffer, or slow the pod down", true, unknown},
	DropNotIP:           {"not_ip", "neither IPv4, IPv6 nor an ARP request for the gateway", "nothing, unless a pod needs another protocol: Penstock carries IP only; a pod that asks by ARP for another gateway than 169.254.1.1 has a wrong route (penstockctl doctor)", true, unknown},
	DropShort:           {"short", "shorter than its headers say", "find the sender: penstockctl ports and peers show who receives malformed packets", true, unknown},
	DropBadVersion:      {"bad_version", "the IP version does not fit the frame's type", "find the sender of malformed packets", true, unknown},
	DropBadHeaderLength: {"bad_header_length", "an IP or TCP header length is impossible", "find the sender of malformed packets", true, unknown},
	DropBadTotalLength:  {"bad_total_length", "the IP total length exceeds the frame", "find the sender of malformed packets, or a link that cuts frames", true, unknown},
	DropBadIPChecksum:   {"bad_ip_checksum", "the IPv4 header checksum is wrong", "look for a broken NIC or memory on the sending node", true, unknown},
	DropBadOptions:      {"bad_options", "malformed IP options or extension headers, or source routing", "find the sender of malformed packets", true, unknown},
	DropBadFragment:     {"bad_fragment", "a fragment whose place or length is impossible, or a first one of extension headers alone", "find the sender of malformed packets", true, unknown},
	DropBadL4:           {"bad_l4", "a TCP, UDP or ICMP header is cut or its length impossible", "find the sender of malformed packets", true, unknown},
	DropBadVirtio:       {"bad_virtio", "offload metadata does not fit the packet", "report it: the kernel or a peer wrote impossible metadata", true, unknown},

	DropUnknownPeer:  {"unknown_peer", "from an underlay address that is no peer", "penstockctl capture --reason unknown_peer shows who sends: add it to peers, or block it at the underlay", true, unknown},
	DropWrongEncap:   {"wrong_encap", "the peer is known, but uses another encapsulation or port", "make encap (type, port) of both nodes agree, or override it for this peer", true, unknown},
	DropBadGRO:       {"bad_gro", "a coalesced buffer is neither a run nor a superframe", "report it with a capture", true, unknown},
	DropBadOuter:     {"bad_outer", "the outer IP header of an ipip packet, or of a piece of the native stream, is impossible", "find what else sends this protocol to this node", true, unknown},
	DropBadVXLAN:     {"bad_vxlan", "VXLAN header without the I flag, or cut", "find what else sends to the tunnel port", true, unknown},
	DropWrongVNI:     {"wrong_vni", "another VNI than the peer's", "make encap.vni of both nodes agree", true, unknown},
	DropWrongVTEPMAC: {"wrong_vtep_mac", "the inner Ethernet frame is addressed to another VTEP", "the peer has an old MAC for this node: compare with vtepMAC of penstockctl status", true, unknown},
	DropECN:          {"ecn", "congestion was marked outside on a packet that cannot carry the mark (RFC 6040)", "nothing; the loss tells the sender", true, routed},

	DropNativeChecksum:  {"native_checksum", "the TCP checksum of a piece of the native stream is wrong", "look for a broken NIC offload on the peer or on the way", true, unknown},
	DropNativeBad:       {"native_bad", "a piece or message of the native stream that no sender of this version writes", "report it with a capture, unless something else sends to native.port", true, unknown},
	DropNativeUnknown:   {"native_unknown", "a piece of a native stream that its peer has not announced", "nothing, for a moment after a restart of either node: the peer finds out and goes by the encapsulation", true, unknown},
	DropNativeDuplicate: {"native_duplicate", "a piece of the native stream that has come before", "the underlay duplicates packets", false, unknown},
	DropNativeLate:      {"native_late", "a piece of the native stream that came after its burst had been handed on", "the underlay reorders packets", false, unknown},
	DropNativeStray:     {"native_stray", "a piece of the native stream far from where the stream is, and none before it that it follows", "nothing, if it is one behind an outage of the underlay; several are forged: look for who sends to native.port on the peer's node, or in its name", false, unknown},
	DropNativeFull:      {"native_full", "too many bursts of the native stream were incomplete at a time", "the underlay loses or reorders much: native.carrier: off may serve better", false, unknown},
	DropNativeLost:      {"native_lost", "a frame of the native stream lost a piece on its way", "the underlay loses packets; TCP superframes are handed on in parts and do not count here", false, unknown},

	DropInnerChecksum: {"inner_checksum", "the TCP or UDP checksum inside the tunnel is wrong", "look for a broken NIC offload on the peer or on the way", true, routed},
	DropInnerSource:   {"inner_source", "the inner source does not lie in that peer's prefixes", "compare the peer's podCIDRs on both nodes; a stranger may be forging", true, unknown},
	DropNotLocal:      {"not_local", "from the wire for an address that is neither a pod of this node nor its own", "the sender's routes are stale, or a pod has just gone", true, routed},

	DropAnswered:     {"answered", "ARP or neighbour discovery between a pod and its gateway: the question was answered, or it was our own", "nothing", true, unknown},
	DropRouterAdvert: {"router_advert", "a pod sent a router advertisement or a redirect", "look at that pod: it tries to be a router", true, unknown},
	DropMulticast:    {"multicast", "multicast or broadcast, which has no members here", "nothing: IPv6 hosts send some by themselves", true, unknown},
	DropMartian:      {"martian", "a pod sent to a loopback address or to none (127.0.0.0/8, 0.0.0.0/8, ::1, ::), which mean the sender itself", "look at that pod: it routes its loopback to eth0, or tries to reach services of the node's own", true, unknown},
	DropSpoofed:      {"spoofed", "a pod sent with a source that is not its address", "look at that pod; nested networks need masquerade inside it", true, unknown},

	DropTunnelLoop: {"tunnel_loop", "a packet addressed to a node's tunnel port or protocol from inside the tunnel", "look at the sender: pods may not speak to tunnel ports", true, sourced},
	DropNoRoute:    {"no_route", "an address of the cluster that no peer has (answered with net unreachable)", "is the peer missing in peers, or its podCIDRs wrong?", true, routed},
	DropNoPod:      {"no_pod", "an address of this node's pod CIDRs that no pod has (answered with host unreachable)", "the pod has gone or is not attached: penstockctl ports", false, routed},
	DropTTLExpired: {"ttl_expired", "TTL or hop limit ran out (answered with time exceeded)", "nothing for traceroute; else look for a routing loop", false, routed},
	DropTooBig:     {"too_big", "larger than the path's MTU and not to be fragmented (answered with the right MTU)", "a burst is normal path MTU discovery; else lower encap.mtu or set clampMSS", false, routed},
	DropFlowsFull:  {"flows_full", "the pod has too many flows that the host translates, or the memory of such flows is full", "look at the pod: one pod may have a quarter of what is free; flows are forgotten when conntrack forgets them", false, routed},

	DropSendFull:            {"send_full", "the tunnel socket's send buffer was full", "the uplink is slower than the pods: raise net.core.wmem_max or shape the pods", false, routed},
	DropSendNoBuffers:       {"send_no_buffers", "the kernel had no buffer for a datagram (ENOBUFS)", "the uplink's queue is full: raise txqueuelen or shape the pods", false, routed},
	DropSendRefused:         {"send_refused", "a firewall on this node refused the datagram (EPERM)", "allow the tunnel port in OUTPUT", false, routed},
	DropUnderlayMTU:         {"underlay_mtu", "the datagram exceeds the MTU of the device by which it leaves", "one now and then is how a smaller MTU is learned and told to pods; if it goes on, lower encap.mtu", false, routed},
	DropUnderlayUnreachable: {"underlay_unreachable", "no route to the peer's underlay address, or its node refuses", "ping the peer's node; penstockctl peers names it", false, routed},
	DropSendFailed:          {"send_failed", "the kernel refused the datagram for another reason", "the log names the error once a minute", false, routed},

	DropShaped:     {"shaped", "more for the pod than its ingress bandwidth lets pass, and 25 ms of it waited already", "nothing: senders slow down by it; else raise the pod's ingress rate", false, routed},
	DropPortFull:   {"port_full", "the pod's or the host's queue was full", "the receiver is too slow: give it CPU, or raise txqueuelen", false, routed},
	DropPortDown:   {"port_down", "the pod's or the host's device is down or gone, or a tun pod waits for its queue", "is the pod going away, or waiting in penstockctl pods? else bring the device up", false, routed},
	DropPortFailed: {"port_failed", "the kernel refused to deliver the frame", "the log names the error once a minute", false, routed},
}

// String is the reason's name as in metrics.
func (r Reason) String() string { return reasonText[r].name }

// Meaning is one clause that says what happened.
func (r Reason) Meaning() string { return reasonText[r].meaning }

// Remedy is one clause that says what to do.
func (r Reason) Remedy() string { return reasonText[r].remedy }

// Reasons lists all reasons by where a packet meets them.
func Reasons() []Reason {
	rs := make([]Reason, 0, reasons-1)
	for r := dropNone + 1; r < reasons; r++ {
		rs = append(rs, r)
	}
	return rs
}

// faultReason is the drop that each fault of encap's is.
var faultReason = [encap.NumFaults]Reason{
	encap.FaultShort:             DropShort,
	encap.FaultBadVersion:        DropBadVersion,
	encap.FaultBadHeaderLength:   DropBadHeaderLength,
	encap.FaultBadTotalLength:    DropBadTotalLength,
	encap.FaultBadHeaderChecksum: DropBadIPChecksum,
	encap.FaultBadOptions:        DropBadOptions,
	encap.FaultSourceRoute:       DropBadOptions,
	encap.FaultBadExtension:      DropBadOptions,
	encap.FaultBadFragment:       DropBadFragment,
	encap.FaultBadL4Length:       DropBadL4,
	encap.FaultBadVirtio:         DropBadVirtio,
	encap.FaultNotIP:             DropNotIP,
	encap.FaultBadVXLAN:          DropBadVXLAN,
	encap.FaultWrongVNI:          DropWrongVNI,
	encap.FaultWrongMAC:          DropWrongVTEPMAC,
	encap.FaultBadOuter:          DropBadOuter,
	encap.FaultBadChecksum:       DropInnerChecksum,
	encap.FaultBadGRO:            DropBadGRO,
	encap.FaultLongHeader:        DropBadOptions,
	encap.FaultDontFragment:      DropTooBig,
	encap.FaultBadMTU:            DropTooBig,
}
