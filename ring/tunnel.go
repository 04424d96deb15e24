//go:build linux

package ring

import (
	"encoding/binary"
	"runtime"

	"golang.org/x/sys/unix"
)

// Tunnel is a queue of a TAP that takes whole encapsulated superframes: outer
// Ethernet, IP and UDP, what encapsulates, and an inner TCP or UDP superframe,
// in one write (kernel 6.17, drivers/net/tun.c and include/linux/virtio_net.h,
// virtio_net_hdr_tnl_to_skb). Whoever redirects the TAP's ingress to the uplink
// sees them as one skb, which the NIC or the kernel cuts late, or never.
type Tunnel struct {
	q     *Queue
	uring *Uring // that writes several; nil: one at a time
}

// TunnelHeaderLen is the virtio header in front of a superframe for a Tunnel.
const TunnelHeaderLen = tunnelHeaderLen

// Bits of the tunnel's virtio header beside those of Virtio.
const (
	tunnelCSUM  = 8    // VIRTIO_NET_HDR_F_UDP_TUNNEL_CSUM: the outer checksum is to be made too
	tunnelIPv4  = 0x20 // VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV4
	tunnelIPv6  = 0x40
	tunnelOuter = 20 // offset of outer_th_offset, inner_nh_offset behind it
)

// TunnelVirtio describes a whole encapsulated superframe. Offsets count from
// its outer Ethernet header.
type TunnelVirtio struct {
	Virtio         // of the inner packet: CsumStart is the inner L4 header
	Outer6  bool   // the outer header is IPv6
	OuterL4 uint16 // the outer UDP header
	InnerL3 uint16 // the inner IP header
}

// Put writes the header into b, TunnelHeaderLen bytes long at least.
func (v TunnelVirtio) Put(b []byte) {
	b = b[:TunnelHeaderLen]
	clear(b)
	in := v.Virtio
	in.Flags = NeedsCsum | tunnelCSUM
	in.GSOType |= tunnelIPv4
	if v.Outer6 {
		in.GSOType ^= tunnelIPv4 | tunnelIPv6
	}
	in.Put(b)
	binary.LittleEndian.PutUint16(b[tunnelOuter:], v.OuterL4)
	binary.LittleEndian.PutUint16(b[tunnelOuter+2:], v.InnerL3)
}

// OpenTunnel makes the TAP, or finds it, and attaches queues to it; it is left
// down. The device is persistent.
func OpenTunnel(name string, queues int) ([]*Tunnel, error) {
	qs, err := CreateTUN(TUNConfig{Name: name, TAP: true, Queues: queues, Persistent: true})
	if err != nil {
		return nil, err
	}
	var ts []*Tunnel
	for _, q := range qs {
		ts = append(ts, &Tunnel{q: q})
	}
	for _, t := range ts {
		if err := t.prepare(); err != nil {
			for _, t := range ts {
				_ = t.Close()
			}
			return nil, err
		}
	}
	return ts, nil
}

func (t *Tunnel) prepare() error {
	size := int32(TunnelHeaderLen)
	if errno := sysIoctlPtr(t.q.fd, unix.TUNSETVNETHDRSZ, &size); errno != 0 {
		return setup(errno, "this kernel is older than 6.17; set offload.tunnelGSO to off", "set the virtio header of %s to %d bytes", t.q.name, size)
	}
	const all = OffloadCSUM | OffloadTSO4 | OffloadTSO6 | OffloadTSOECN | OffloadUSO4 | OffloadUSO6
	return t.q.SetOffload(all | offloadTunnelGSO | offloadTunnelGSOCSUM)
}

// Name is the device's name.
func (t *Tunnel) Name() string { return t.q.name }

// FD is the descriptor.
func (t *Tunnel) FD() int { return t.q.fd }

// Attached is false once somebody has deleted the device.
func (t *Tunnel) Attached() bool { return t.q.Attached() }

// BatchWrites lets u write several superframes in one system call; nil: none does.
func (t *Tunnel) BatchWrites(u *Uring) { t.uring = u }

// Write writes superframes, each TunnelHeaderLen bytes of header, then the frame,
// in their order. It has tried n of them, at least one, and errs, which is as
// long as frames, says what became of each of these: 0, it is in the uplink's queue
// behind all that was sent before, or dropped there; EIO, the device is down;
// EINVAL, the metadata does not fit. One that fails does not keep back those behind it.
func (t *Tunnel) Write(frames [][]byte, errs []unix.Errno) (n int) {
	if len(frames) > 1 && t.uring.works() {
		for bytes := 0; n < min(len(frames), UringEntries) && bytes < atOnce; n++ {
			t.uring.add(uringWrite, t.q.fd, addressOf(frames[n]), len(frames[n]))
			bytes += len(frames[n])
		}
		results := t.uring.submit()
		runtime.KeepAlive(frames)
		for i, r := range results {
			errs[i] = unix.Errno(-min(r, 0))
		}
		if len(results) > 0 {
			return len(results)
		}
	}
	_, errs[0] = sysWrite(t.q.fd, frames[0])
	return 1
}

// Close detaches the queue; the device stays.
func (t *Tunnel) Close() error { return t.q.Close() }
