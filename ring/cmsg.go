//go:build linux

package ring

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Control messages, as cmsg(3) has them: a header of length, level and type,
// then data, each message padded to the machine's word.
const (
	cmsgHdrLen = unix.SizeofCmsghdr
	cmsgAlign  = unix.SizeofPtr
	cmsgSpace4 = cmsgHdrLen + (4+cmsgAlign-1)&^(cmsgAlign-1) // of one message with up to 4 bytes
)

type control struct {
	level, typ int32
	data       []byte
}

// nextControl takes the first message off b. It is pure and trusts no length;
// false at the end.
func nextControl(b []byte) (c control, rest []byte, ok bool) {
	if len(b) < cmsgHdrLen {
		return control{}, nil, false
	}
	var size uint64
	if cmsgAlign == 8 {
		size = binary.NativeEndian.Uint64(b)
	} else {
		size = uint64(binary.NativeEndian.Uint32(b))
	}
	if size < cmsgHdrLen || size > uint64(len(b)) {
		return control{}, nil, false
	}
	n := int(size)
	c = control{
		level: int32(binary.NativeEndian.Uint32(b[cmsgHdrLen-8:])),
		typ:   int32(binary.NativeEndian.Uint32(b[cmsgHdrLen-4:])),
		data:  b[cmsgHdrLen:n:n],
	}
	padded := min((n+cmsgAlign-1)&^(cmsgAlign-1), len(b))
	return c, b[padded:], true
}

// putControl writes a message header for size bytes of data at the start of b
// and returns where the data goes and where the next message does.
func putControl(b []byte, level, typ int32, size int) (data, rest []byte) {
	n := cmsgHdrLen + size
	if cmsgAlign == 8 {
		binary.NativeEndian.PutUint64(b, uint64(n))
	} else {
		binary.NativeEndian.PutUint32(b, uint32(n))
	}
	binary.NativeEndian.PutUint32(b[cmsgHdrLen-8:], uint32(level))
	binary.NativeEndian.PutUint32(b[cmsgHdrLen-4:], uint32(typ))
	return b[cmsgHdrLen:n], b[(n+cmsgAlign-1)&^(cmsgAlign-1):]
}

// parseInbox reads what comes with a received datagram: its TOS or traffic
// class, and the size of the pieces that UDP_GRO has joined (0: none).
func parseInbox(b []byte) (tos uint8, segment int) {
	for {
		c, rest, ok := nextControl(b)
		if !ok {
			return tos, segment
		}
		b = rest
		switch {
		case c.level == unix.SOL_IP && c.typ == unix.IP_TOS && len(c.data) >= 1:
			tos = c.data[0] // one byte, ip_cmsg_recv_tos
		case c.level == unix.SOL_IPV6 && c.typ == unix.IPV6_TCLASS && len(c.data) >= 4:
			tos = uint8(binary.NativeEndian.Uint32(c.data))
		case c.level == unix.SOL_UDP && c.typ == unix.UDP_GRO && len(c.data) >= 4:
			// int, udp_cmsg_recv; never more than the datagram.
			if v := binary.NativeEndian.Uint32(c.data); v <= 65535 {
				segment = int(v)
			}
		}
	}
}
