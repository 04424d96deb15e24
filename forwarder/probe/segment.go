package probe

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// segmentBy is the control message that has the kernel cut a write into datagrams of size bytes (UDP_SEGMENT, a u16). It is
// laid out as cmsg(3) has it on 64-bit machines: a length of eight bytes, level, type, data.
func segmentBy(size int) []byte {
	b := make([]byte, unix.CmsgSpace(2))
	n := uint64(unix.CmsgLen(2))
	if unix.SizeofCmsghdr == 12 { // 32-bit machines
		binary.NativeEndian.PutUint32(b, uint32(n))
		binary.NativeEndian.PutUint32(b[4:], unix.IPPROTO_UDP)
		binary.NativeEndian.PutUint32(b[8:], unix.UDP_SEGMENT)
		binary.NativeEndian.PutUint16(b[12:], uint16(size))
		return b
	}
	binary.NativeEndian.PutUint64(b, n)
	binary.NativeEndian.PutUint32(b[8:], unix.IPPROTO_UDP)
	binary.NativeEndian.PutUint32(b[12:], unix.UDP_SEGMENT)
	binary.NativeEndian.PutUint16(b[16:], uint16(size))
	return b
}
