//go:build linux

package ring

import "encoding/binary"

// Virtio is the metadata that travels in front of a frame: how to cut a
// superframe and which checksum is still to be completed. It is struct
// virtio_net_hdr of linux/virtio_net.h. All fields are in host order; CsumStart
// and HdrLen count from the first byte of the frame, which is the IP header on a
// TUN and the Ethernet header on a TAP and a packet socket.
type Virtio struct {
	Flags, GSOType uint8
	HdrLen         uint16 // all headers up to and with L4; a hint for the kernel's linear area
	GSOSize        uint16 // payload bytes of each segment
	CsumStart      uint16 // where checksumming starts
	CsumOffset     uint16 // where the sum goes, from CsumStart
}

// VirtioLen is the length of the header on a descriptor.
const VirtioLen = 10

// Flags and types of linux/virtio_net.h.
const (
	NeedsCsum uint8 = 1 // the checksum field holds the pseudo-header sum only
	DataValid uint8 = 2 // the kernel has verified the checksum; ignored on writes to a TUN

	GSONone  uint8 = 0
	GSOTCPv4 uint8 = 1
	GSOUDP   uint8 = 3 // UFO: fragments, not segments; kernels from 4.14 no longer make it
	GSOTCPv6 uint8 = 4
	GSOUDPL4 uint8 = 5    // USO: each segment is a datagram of its own
	GSOECN   uint8 = 0x80 // flag beside a TCP type: CWR on the first segment only
)

// The header is read and written in the machine's byte order: that is what the
// kernel uses for "legacy" headers on TUN (unless TUNSETVNETLE/BE says otherwise)
// and for PACKET_VNET_HDR (vio_le in net/packet/af_packet.c). Penstock's
// supported machines are all little endian; this keeps it right on the others.

// ParseVirtio reads the header at the start of b; false if b is too short. It
// judges nothing: whether offsets lie within the frame is for encap to check.
func ParseVirtio(b []byte) (v Virtio, ok bool) {
	if len(b) < VirtioLen {
		return Virtio{}, false
	}
	b = b[:VirtioLen]
	return Virtio{
		Flags:      b[0],
		GSOType:    b[1],
		HdrLen:     binary.NativeEndian.Uint16(b[2:]),
		GSOSize:    binary.NativeEndian.Uint16(b[4:]),
		CsumStart:  binary.NativeEndian.Uint16(b[6:]),
		CsumOffset: binary.NativeEndian.Uint16(b[8:]),
	}, true
}

// Put writes the header into b, which must hold VirtioLen bytes.
func (v Virtio) Put(b []byte) {
	b = b[:VirtioLen]
	b[0], b[1] = v.Flags, v.GSOType
	binary.NativeEndian.PutUint16(b[2:], v.HdrLen)
	binary.NativeEndian.PutUint16(b[4:], v.GSOSize)
	binary.NativeEndian.PutUint16(b[6:], v.CsumStart)
	binary.NativeEndian.PutUint16(b[8:], v.CsumOffset)
}
