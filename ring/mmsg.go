//go:build linux

package ring

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// manyMessages is how many frames one recvmmsg takes. Each needs FrameRoom of
// slab, as its length is not known before; what the last one leaves over is
// given back, but not what lies between the others. Only touched pages count.
const manyMessages = 16

// manyReader holds the messages of a socket that is read without a ring.
type manyReader struct {
	msgs [manyMessages]mmsghdr
	iovs [manyMessages]unix.Iovec
	ctls [manyMessages][auxdataSpace]byte
}

func newManyReader() *manyReader {
	r := new(manyReader)
	for i := range r.msgs {
		h := &r.msgs[i].Hdr
		h.Iov = &r.iovs[i]
		h.SetIovlen(1)
		h.Control = &r.ctls[i][0]
	}
	return r
}

func (s *PacketSocket) readMany(slab *Slab, fs []Frame) (n int, err error) {
	for n < len(fs) {
		want := min(len(fs)-n, manyMessages, slab.Left()/FrameRoom)
		if want == 0 {
			if n == 0 {
				err = ErrNoRoom
			}
			return n, err
		}
		got := s.recvMany(slab, fs[n:n+want])
		n += got
		if got < want {
			break
		}
	}
	return n, nil
}

// recvMany is one recvmmsg for len(fs) frames, for which the slab has room.
func (s *PacketSocket) recvMany(slab *Slab, fs []Frame) int {
	r, want := s.many, len(fs)
	all := slab.Alloc(want * FrameRoom)
	for i := range want {
		buf := all[i*FrameRoom+Headroom-VirtioLen : (i+1)*FrameRoom]
		r.iovs[i].Base = &buf[0]
		r.iovs[i].SetLen(len(buf))
		r.msgs[i].Hdr.SetControllen(auxdataSpace)
		r.msgs[i].Hdr.Flags = 0
	}
	got, errno := sysRecvmmsg(s.fd, r.msgs[:want])
	if errno == unix.ENETDOWN {
		// The socket's pending error, reported once.
		s.pending.Store(uint32(errno))
		got, errno = sysRecvmmsg(s.fd, r.msgs[:want])
	}
	if errno != 0 || got <= 0 {
		slab.Trim(want * FrameRoom)
		return 0
	}
	end := 0
	for i := range got {
		m := &r.msgs[i]
		size := int(m.Len)
		start := i * FrameRoom
		if size < VirtioLen {
			end = start + Headroom
			fs[i] = Frame{Mem: all[start:end:end], Start: Headroom, Truncated: true}
			continue
		}
		end = start + Headroom - VirtioLen + size
		v, _ := ParseVirtio(all[end-size:])
		status := auxStatus(r.ctls[i][:min(int(m.Hdr.Controllen), auxdataSpace)])
		fs[i] = Frame{
			Mem:       all[start:end:end],
			Start:     Headroom,
			Virtio:    v,
			Truncated: m.Hdr.Flags&unix.MSG_TRUNC != 0,
			VLAN:      status&unix.TP_STATUS_VLAN_VALID != 0,
		}
	}
	slab.Trim(len(all) - end)
	return got
}

// auxdataSpace holds one struct tpacket_auxdata (20 bytes).
const auxdataSpace = cmsgHdrLen + 24

// auxStatus is tp_status, the first word of PACKET_AUXDATA; 0 if it is absent.
func auxStatus(control []byte) uint32 {
	for {
		c, rest, ok := nextControl(control)
		if !ok {
			return 0
		}
		if c.level == unix.SOL_PACKET && c.typ == unix.PACKET_AUXDATA && len(c.data) >= 4 {
			return binary.NativeEndian.Uint32(c.data)
		}
		control = rest
	}
}
