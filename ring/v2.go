//go:build linux

package ring

import (
	"encoding/binary"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// A TPACKET_V2 ring is an array of slots, each owned by the kernel or by us as
// its status word says. What the kernel writes into a slot (tpacket_rcv,
// net/packet/af_packet.c), with PACKET_RESERVE = Headroom:
//
//	0           32            52      mac-138    mac-10    mac               slot size
//	┌───────────┬─────────────┬───────┬──────────┬─────────┬────────────────┬───┐
//	│tpacket2_hd│ sockaddr_ll │ align │ headroom │ virtio  │ Ethernet frame │   │
//	└───────────┴─────────────┴───────┴──────────┴─────────┴────────────────┴───┘
//
// A frame that does not fit is cut to the slot. If the socket's queue has room
// the whole of it is put there too and the slot's status has TP_STATUS_COPY;
// that happens under one lock with taking the slot, so queue and slots are in the
// same order, and the frame is in the queue when the slot is ours.
//
// A superframe that no virtio header can express (SCTP segmentation, UFO) blocks
// the ring for good: tpacket_rcv marks the slot as being written, fails, and
// forgets to take the mark back (seen on 6.18; Unblock repairs it).

// Offsets in struct tpacket2_hdr, linux/if_packet.h.
const (
	v2Status  = 0
	v2Len     = 4
	v2Snaplen = 8
	v2Mac     = 12
	v2HdrEnd  = 52 // tpacket2_hdr and sockaddr_ll: TPACKET2_HDRLEN

	v2MinSlot = 512
)

// slotRing is where we are in a V2 ring.
type slotRing struct {
	slots, size int
	next        int      // the slot to read next
	lent        int      // slots before next that are ours until release
	req         [16]byte // struct tpacket_req, to make the ring again

	crowd   int  // so many waiting frames are a crowd
	crowded bool // for Crowded

	idle bool  // at the last Unblock: the ring was empty,
	was  Stats // and this was counted
}

func (s *PacketSocket) setUpV2(cfg PacketConfig, opt func(name, value int, what string) error) error {
	slots, size := cfg.Slots, cfg.SlotSize
	if slots == 0 {
		slots = 128
	}
	if size == 0 {
		size = 2048
	}
	// A block is what the kernel allocates at once: at least a page, and as
	// many slots as make 32 KiB, so that it rarely has to look for big pieces.
	block := max(size, os.Getpagesize())
	for block < 32<<10 && block*2 <= slots*size {
		block *= 2
	}
	if size < v2MinSlot || size&(size-1) != 0 || slots < 1 || slots*size%block != 0 {
		return fmt.Errorf("a V2 ring of %d slots of %d bytes: %w: slots must be a power of two of at least %d bytes and fill whole pages",
			slots, size, unix.EINVAL, v2MinSlot)
	}
	if err := opt(unix.PACKET_VERSION, unix.TPACKET_V2, "PACKET_VERSION TPACKET_V2"); err != nil {
		return err
	}
	if err := opt(unix.PACKET_RESERVE, Headroom, "PACKET_RESERVE"); err != nil {
		return err
	}
	if err := opt(unix.PACKET_COPY_THRESH, 1, "PACKET_COPY_THRESH"); err != nil {
		return err
	}
	r := slotRing{slots: slots, size: size, crowd: slots * 3 / 4}
	req := r.req[:]
	binary.NativeEndian.PutUint32(req[0:], uint32(block))
	binary.NativeEndian.PutUint32(req[4:], uint32(slots*size/block))
	binary.NativeEndian.PutUint32(req[8:], uint32(size))
	binary.NativeEndian.PutUint32(req[12:], uint32(slots))
	if err := s.mapRing(req, slots*size); err != nil {
		return err
	}
	s.v2 = r
	s.spill.init()
	return nil
}

// readV2 walks the slots that are ours: short frames are lent where they are,
// spilled ones read whole into the slab, so that the order is that of arrival.
func (s *PacketSocket) readV2(slab *Slab, fs []Frame) (n int, err error) {
	r := &s.v2
	if s.mapped == nil { // Unblock has failed
		return 0, unix.EBADFD
	}
	spilled := 0
	for n < len(fs) && r.lent < r.slots {
		slot := s.mapped[r.next*r.size : (r.next+1)*r.size : (r.next+1)*r.size]
		status := loadShared(slot[v2Status:])
		if status&unix.TP_STATUS_USER == 0 {
			break
		}
		if status&unix.TP_STATUS_COPY == 0 {
			fs[n] = parseSlot(slot, status)
		} else {
			if slab.Left() < FrameRoom {
				if n == 0 {
					err = ErrNoRoom
				}
				break
			}
			spilled++
			// The slot holds the beginning of the frame and says whether it
			// had a VLAN tag; without a whole copy that is what there is.
			fs[n] = parseSlot(slot, status)
			s.spill.read(s, slab, &fs[n])
		}
		r.crowded = r.crowded || fs[n].Truncated
		n++
		r.lent++
		if r.next++; r.next == r.slots {
			r.next = 0
		}
	}
	r.notice(s.mapped, n, spilled, n == len(fs))
	return n, err
}

// release returns the lent slots, oldest first.
func (r *slotRing) release(mapped []byte) {
	at := r.next - r.lent
	if at < 0 {
		at += r.slots
	}
	for ; r.lent > 0; r.lent-- {
		storeShared(mapped[at*r.size+v2Status:], unix.TP_STATUS_KERNEL)
		if at++; at == r.slots {
			at = 0
		}
	}
}

// parseSlot finds the frame in a slot whose status word was status. It is pure
// and trusts no length: what does not lie within the slot makes an empty,
// truncated frame.
func parseSlot(slot []byte, status uint32) Frame {
	if len(slot) < v2HdrEnd {
		return Frame{Truncated: true}
	}
	size := binary.NativeEndian.Uint32(slot[v2Len:])
	snap := binary.NativeEndian.Uint32(slot[v2Snaplen:])
	mac := int(binary.NativeEndian.Uint16(slot[v2Mac:]))
	return frameAt(slot, v2HdrEnd, mac, size, snap, status)
}

// frameAt is the frame at mem[mac:mac+snap] with its headroom; nothing before
// floor belongs to it.
func frameAt(mem []byte, floor, mac int, size, snap, status uint32) Frame {
	if mac < floor+Headroom || mac > len(mem) || uint64(snap) > uint64(len(mem)-mac) {
		return Frame{Truncated: true}
	}
	v, _ := ParseVirtio(mem[mac-VirtioLen:])
	end := mac + int(snap)
	return Frame{
		Mem:       mem[mac-Headroom : end : end],
		Start:     Headroom,
		Virtio:    v,
		Truncated: size > snap,
		VLAN:      status&unix.TP_STATUS_VLAN_VALID != 0,
	}
}

// spillReader reads one spilled frame; its message lives here so that nothing
// is allocated.
type spillReader struct {
	hdr unix.Msghdr
	iov unix.Iovec
}

func (r *spillReader) init() {
	r.hdr.Iov = &r.iov
	r.hdr.SetIovlen(1)
}

// read takes the next frame of the socket's queue into the slab, which has
// room, and completes f; if there is none, although a slot says so, f stays as it is.
func (r *spillReader) read(s *PacketSocket, slab *Slab, f *Frame) {
	mem := slab.Alloc(FrameRoom)
	buf := mem[Headroom-VirtioLen:]
	r.iov.Base = &buf[0]
	r.iov.SetLen(len(buf))
	r.hdr.Flags = 0
	got, errno := sysRecvmsg(s.fd, &r.hdr, 0)
	if errno == unix.ENETDOWN {
		// The socket's pending error, reported once, not about this frame.
		s.pending.Store(uint32(errno))
		got, errno = sysRecvmsg(s.fd, &r.hdr, 0)
	}
	if errno != 0 || got < VirtioLen {
		slab.Trim(FrameRoom)
		return
	}
	slab.Trim(len(buf) - got)
	f.Virtio, _ = ParseVirtio(buf)
	end := Headroom - VirtioLen + got
	f.Mem, f.Start = mem[:end:end], Headroom
	f.Truncated = r.hdr.Flags&unix.MSG_TRUNC != 0
}
