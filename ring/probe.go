//go:build linux

package ring

import (
	"bytes"
	"fmt"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"
)

// Capability is one thing the kernel may be able to do.
type Capability struct {
	Name   string // Cap…
	Needs  string // the first kernel that has it
	Found  bool
	Detail string // what was found, or why not
}

// The names of capabilities.
const (
	CapTUN                  = "tun"
	CapTUNOffload           = "tunOffload"
	CapTUNUSO               = "tunUSO"
	CapTUNBatch             = "tunBatch"
	CapTunnelGSO            = "tunnelGSO"
	CapPacketVnetHdr        = "packetVnetHdr"
	CapPacketV2             = "packetV2"
	CapPacketV3             = "packetV3"
	CapPacketIgnoreOutgoing = "packetIgnoreOutgoing"
	CapPacketQdiscBypass    = "packetQdiscBypass"
	CapUDPSegment           = "udpSegment"
	CapUDPGRO               = "udpGRO"
	CapUDPNoCheck6          = "udpNoCheck6"
	CapRawIPIP              = "rawIPIP"
	CapReusePort            = "reusePort"
	CapPriority             = "priority"
)

// Probe tries every capability on throwaway descriptors in the network
// namespace of the calling thread, which must not be scheduled away: lock it.
// It leaves nothing behind. A TUN and a TAP named pstkprobe%d exist while it runs.
func Probe() []Capability {
	var all []Capability
	for _, p := range probes {
		c := Capability{Name: p.name, Needs: p.needs}
		detail, err := p.try()
		c.Found, c.Detail = err == nil, detail
		if err != nil {
			c.Detail = err.Error()
		}
		all = append(all, c)
	}
	return all
}

var probes = []struct {
	name, needs string
	try         func() (string, error)
}{
	{CapTUN, "2.6.27 (virtio header), 3.8 (multi-queue)", probeTUN},
	{CapTUNOffload, "2.6.27", func() (string, error) {
		return probeOffload(OffloadCSUM | OffloadTSO4 | OffloadTSO6 | OffloadTSOECN)
	}},
	{CapTUNUSO, "6.2", func() (string, error) { return probeOffload(OffloadCSUM | OffloadUSO4 | OffloadUSO6) }},
	{CapTUNBatch, "5.11 (io_uring)", probeUring},
	{CapTunnelGSO, "6.17", probeTunnelGSO},
	{CapPacketVnetHdr, "2.6.34", packetOptions(packetOption{unix.PACKET_VNET_HDR, 1, "PACKET_VNET_HDR"})},
	{CapPacketV2, "4.6 (with virtio headers)", func() (string, error) { return probeRing(RingV2) }},
	{CapPacketV3, "4.6 (with virtio headers)", func() (string, error) { return probeRing(RingV3) }},
	{CapPacketIgnoreOutgoing, "4.20", packetOptions(packetOption{unix.PACKET_IGNORE_OUTGOING, 1, "PACKET_IGNORE_OUTGOING"})},
	{CapPacketQdiscBypass, "3.14", packetOptions(packetOption{unix.PACKET_QDISC_BYPASS, 1, "PACKET_QDISC_BYPASS"})},
	{CapUDPSegment, "4.18", probeSegment},
	{CapUDPGRO, "5.0", probeGRO},
	{CapUDPNoCheck6, "3.16", probeNoCheck6},
	{CapRawIPIP, "any, with CAP_NET_RAW", probeRaw},
	{CapReusePort, "3.9", probeReusePort},
	{CapPriority, "LimitNICE=-19 or CAP_SYS_NICE", probePriority},
}

// probeQueue makes a device that goes with its only descriptor. It cannot be
// CreateTUN's, which makes it persistent for a moment: a kill then would leave it.
func probeQueue(tap, multi bool) (*Queue, error) {
	return attach("pstkprobe%d", tap, multi, tunFlags)
}

func probeTUN() (string, error) {
	q, err := probeQueue(false, true)
	if err != nil {
		return "", err
	}
	defer q.Close()
	second, err := attach(q.name, false, true, tunFlags)
	if err != nil {
		return "", fmt.Errorf("a second queue: %w", err)
	}
	defer second.Close()
	return "virtio header and multi-queue", nil
}

func probeOffload(o Offload) (string, error) {
	q, err := probeQueue(false, false)
	if err != nil {
		return "", err
	}
	defer q.Close()
	return o.String(), q.SetOffload(o)
}

// probeUring asks an empty queue for a packet.
func probeUring() (string, error) {
	q, err := probeQueue(false, false)
	if err != nil {
		return "", err
	}
	defer q.Close()
	u, err := NewUring()
	if err != nil {
		return "", err
	}
	defer u.Close()
	s := NewSlab(FrameRoom)
	s.BatchReads(u)
	if _, _, errno := q.readMany(s, make([]Frame, 1)); errno != 0 {
		return "", fmt.Errorf("read by io_uring: %w", errno)
	}
	return fmt.Sprintf("io_uring, %d packets a system call", UringEntries), u.Err()
}

// Tunnel offloads of linux/if_tun.h, not in x/sys; a TAP with a virtio header of
// 24 bytes takes whole encapsulated superframes with them.
const (
	offloadTunnelGSO     Offload = 0x80  // TUN_F_UDP_TUNNEL_GSO
	offloadTunnelGSOCSUM Offload = 0x100 // TUN_F_UDP_TUNNEL_GSO_CSUM
	tunnelHeaderLen              = 24    // struct virtio_net_hdr_v1_hash_tunnel
)

func probeTunnelGSO() (string, error) {
	q, err := probeQueue(true, false)
	if err != nil {
		return "", err
	}
	defer q.Close()
	size := int32(tunnelHeaderLen)
	if errno := sysIoctlPtr(q.fd, unix.TUNSETVNETHDRSZ, &size); errno != 0 {
		return "", fmt.Errorf("a virtio header of %d bytes: %w", size, errno)
	}
	const all = OffloadCSUM | OffloadTSO4 | OffloadTSO6 | OffloadTSOECN | OffloadUSO4 | OffloadUSO6
	if errno := sysIoctlVal(q.fd, unix.TUNSETOFFLOAD, uintptr(all|offloadTunnelGSO|offloadTunnelGSOCSUM)); errno != 0 {
		return "", fmt.Errorf("TUN_F_UDP_TUNNEL_GSO: %w", errno)
	}
	return "TAP takes encapsulated superframes", nil
}

type packetOption struct {
	name, value int
	what        string
}

// packetOptions probes options of a packet socket that is bound to nothing.
func packetOptions(opts ...packetOption) func() (string, error) {
	return func() (string, error) {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return "", fmt.Errorf("a packet socket: %w", err)
		}
		defer unix.Close(fd)
		for _, o := range opts {
			if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, o.name, o.value); err != nil {
				return "", fmt.Errorf("%s: %w", o.what, err)
			}
		}
		return "set", nil
	}
}

func probeRing(ring PacketRing) (string, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("a packet socket: %w", err)
	}
	// Protocol 0: it hears nothing.
	s := &PacketSocket{fd: fd, ring: ring}
	defer s.Close()
	err = s.setUp(PacketConfig{Ring: ring})
	return fmt.Sprintf("a ring of %d KiB with virtio headers", len(s.mapped)>>10), err
}

// loopbackPair is two UDP sockets of which the first can send to the second.
func loopbackPair(gro bool) (from, to *UDP, err error) {
	for _, a := range []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()} {
		if to, err = OpenUDP(UDPConfig{Local: netip.AddrPortFrom(a, 0), GRO: gro}); err != nil {
			continue
		}
		if from, err = OpenUDP(UDPConfig{Local: netip.AddrPortFrom(a, 0), SendOnly: true}); err == nil {
			return from, to, nil
		}
		_ = to.Close()
	}
	return nil, nil, err
}

// sendSegments sends n segments of 8 bytes over the loopback and returns what
// comes, or an error.
func sendSegments(n int, gro bool) (*Inbox, error) {
	from, to, err := loopbackPair(gro)
	if err != nil {
		return nil, err
	}
	defer from.Close()
	defer to.Close()
	d := NewDatagrams(1, 2)
	sa := NewSockaddr(to.Local())
	d.Begin(&sa, 0, 8)
	d.Append(make([]byte, n*8))
	if _, err := from.Send(d, 0); err != nil {
		return nil, fmt.Errorf("send %d segments over the loopback: %w", n, err)
	}
	in := NewInbox(n, 2048)
	_, err = to.Recv(in)
	return in, err
}

// MaxSegments is how many segments one send may have: UDP_MAX_SEGMENTS is 128
// from kernel 6.9 on (and in later stable releases of older ones), 64 before. It
// is probed once, over the loopback; 64 if that is down.
func MaxSegments() int {
	maxSegments.once.Do(func() {
		maxSegments.n = 64
		if _, err := sendSegments(128, false); err == nil {
			maxSegments.n = 128
		}
	})
	return maxSegments.n
}

var maxSegments struct {
	once sync.Once
	n    int
}

func probeSegment() (string, error) {
	from, to, err := loopbackPair(false)
	if err != nil {
		return "", err
	}
	defer from.Close()
	defer to.Close()
	if err := unix.SetsockoptInt(from.fd, unix.SOL_UDP, unix.UDP_SEGMENT, 8); err != nil {
		return "", fmt.Errorf("UDP_SEGMENT: %w", err)
	}
	return fmt.Sprintf("up to %d segments in one send", MaxSegments()), nil
}

func probeGRO() (string, error) {
	from, to, err := loopbackPair(true)
	if err != nil {
		return "", err
	}
	_ = from.Close()
	_ = to.Close()
	in, err := sendSegments(2, true)
	if err != nil {
		return "accepted; not tried, as the loopback does not work here", nil
	}
	if in.Len() == 1 && in.Datagram(0).Segment == 8 && bytes.Equal(in.Datagram(0).Data, make([]byte, 16)) {
		return "a run arrives as one datagram", nil
	}
	return "accepted; the loopback cuts runs", nil
}

func probeNoCheck6() (string, error) {
	// Set in OpenUDP for every IPv6 socket.
	u, err := OpenUDP(UDPConfig{Local: netip.AddrPortFrom(netip.IPv6Unspecified(), 0), SendOnly: true})
	if err != nil {
		return "", err
	}
	return "zero checksums are heard on IPv6", u.Close()
}

func probeRaw() (string, error) {
	for _, proto := range []int{unix.IPPROTO_IPIP, unix.IPPROTO_IPV6} {
		r, err := OpenIPIP(RawConfig{Local: netip.IPv4Unspecified(), Proto: proto, SendOnly: true})
		if err != nil {
			return "", err
		}
		_ = r.Close()
	}
	return "protocols 4 and 41", nil
}

func probeReusePort() (string, error) {
	cfg := UDPConfig{Local: netip.AddrPortFrom(netip.IPv4Unspecified(), 0), ReusePort: true, SendOnly: true}
	a, err := OpenUDP(cfg)
	if err != nil {
		return "", err
	}
	defer a.Close()
	cfg.Local = a.Local()
	b, err := OpenUDP(cfg)
	if err != nil {
		return "", err
	}
	return "several sockets share a port", b.Close()
}

// BlockTimerIsPrecise reports whether a V3 ring's block is handed over when its timeout of a millisecond ends. Before kernel 6.18
// (net: af_packet: Use hrtimer to do the retire operation) it takes up to 20 ms, by the kernel's HZ.
func BlockTimerIsPrecise() bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	var major, minor int
	n, _ := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor)
	return n == 2 && (major > 6 || major == 6 && minor >= 18)
}
