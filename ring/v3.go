//go:build linux

package ring

import (
	"encoding/binary"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A TPACKET_V3 ring is an array of blocks. The kernel packs frames into a block
// and hands it over when it is full or its timer fires; superframes fit, as a
// block is larger than they are.
//
//	0              48            first                      next
//	┌──────────────┬─────────────┬─────────────┬──────┬─────┬─────────────┬────
//	│ block header │     …       │ tpacket3_hdr│ room │frame│ tpacket3_hdr│ …
//	└──────────────┴─────────────┴─────────────┴──────┴─────┴─────────────┴────
//
// Each frame has the same layout from its header on as a V2 slot has.

// Offsets in struct tpacket_block_desc and tpacket3_hdr, linux/if_packet.h.
const (
	blockStatus = 8
	blockCount  = 12
	blockFirst  = 16
	blockLen    = 20
	blockHdrEnd = 48

	v3Next    = 0
	v3Snaplen = 12
	v3Len     = 16
	v3Status  = 20
	v3Mac     = 24
	v3HdrEnd  = 68 // tpacket3_hdr and sockaddr_ll: TPACKET3_HDRLEN

	v3MinBlock = 128 << 10 // more than one superframe with its header
)

// blockRing is where we are in a V3 ring.
type blockRing struct {
	blocks, size int
	next         int    // the block being read, or to be read next
	lent         int    // blocks before next that are read to the end and ours until release
	open         bool   // next is ours and not read to the end
	cur          cursor // in next
}

// cursor walks the frames of one block.
type cursor struct {
	off  int // of the next tpacket3_hdr
	left int // frames not walked yet
	end  int // what the block says it holds
}

func (s *PacketSocket) setUpV3(cfg PacketConfig, opt func(name, value int, what string) error) error {
	blocks, size := cfg.Slots, cfg.SlotSize
	if blocks == 0 {
		blocks = 4
	}
	if size == 0 {
		size = 256 << 10
	}
	timeout := (cfg.BlockTimeout + time.Millisecond - 1) / time.Millisecond
	if timeout <= 0 {
		timeout = 1
	}
	if blocks < 1 || size < v3MinBlock || size%os.Getpagesize() != 0 {
		return fmt.Errorf("a V3 ring of %d blocks of %d bytes: %w: blocks must be whole pages and at least %d bytes",
			blocks, size, unix.EINVAL, v3MinBlock)
	}
	if err := opt(unix.PACKET_VERSION, unix.TPACKET_V3, "PACKET_VERSION TPACKET_V3"); err != nil {
		return err
	}
	if err := opt(unix.PACKET_RESERVE, Headroom, "PACKET_RESERVE"); err != nil {
		return err
	}
	const frame = 2048 // V3 only uses it to check the numbers
	var req [28]byte   // struct tpacket_req3
	binary.NativeEndian.PutUint32(req[0:], uint32(size))
	binary.NativeEndian.PutUint32(req[4:], uint32(blocks))
	binary.NativeEndian.PutUint32(req[8:], frame)
	binary.NativeEndian.PutUint32(req[12:], uint32(size/frame*blocks))
	binary.NativeEndian.PutUint32(req[16:], uint32(timeout))
	if err := s.mapRing(req[:], blocks*size); err != nil {
		return err
	}
	s.v3 = blockRing{blocks: blocks, size: size}
	return nil
}

// read lends frames until fs is full or no block is ours.
func (r *blockRing) read(mapped []byte, fs []Frame) (n int) {
	for n < len(fs) && r.lent < r.blocks {
		block := mapped[r.next*r.size : (r.next+1)*r.size : (r.next+1)*r.size]
		if !r.open {
			if loadShared(block[blockStatus:])&unix.TP_STATUS_USER == 0 {
				break
			}
			r.cur = openBlock(block)
			r.open = true
		}
		for n < len(fs) && r.cur.left > 0 {
			var there bool
			if fs[n], there = r.cur.frame(block); there {
				n++
			}
		}
		if r.cur.left == 0 {
			r.open = false
			r.lent++
			if r.next++; r.next == r.blocks {
				r.next = 0
			}
		}
	}
	return n
}

// release returns the blocks that were read to their end, oldest first.
func (r *blockRing) release(mapped []byte) {
	at := r.next - r.lent
	if at < 0 {
		at += r.blocks
	}
	for ; r.lent > 0; r.lent-- {
		block := mapped[at*r.size:]
		storeShared(block[blockCount:], 0) // the kernel does so only when it begins to fill the block: for empty
		storeShared(block[blockStatus:], unix.TP_STATUS_KERNEL)
		if at++; at == r.blocks {
			at = 0
		}
	}
}

// waiting counts frames that are to be read, most at most.
func (r *blockRing) waiting(mapped []byte, most int) (n int) {
	if mapped == nil {
		return 0
	}
	for i, at := r.lent, r.next; i < r.blocks && n < most; i++ {
		block := mapped[at*r.size:]
		switch {
		case i == r.lent && r.open:
			n += r.cur.left
		case loadShared(block[blockStatus:])&unix.TP_STATUS_USER == 0:
			return n
		default:
			n += openBlock(block[:r.size]).left
		}
		if at++; at == r.blocks {
			at = 0
		}
	}
	return min(n, most)
}

// empty tells whether there is no frame but in blocks that are lent. The kernel
// counts a frame in its block before it copies it and long before it hands the
// block over (prb_fill_curr_block, net/packet/af_packet.c); a block that it has
// not begun to fill counts none.
func (r *blockRing) empty(mapped []byte) bool {
	if mapped == nil {
		return true
	}
	if r.open {
		return false
	}
	for i, at := r.lent, r.next; i < r.blocks; i++ {
		block := mapped[at*r.size:]
		if loadShared(block[blockStatus:])&unix.TP_STATUS_USER != 0 || loadShared(block[blockCount:]) != 0 {
			return false
		}
		if at++; at == r.blocks {
			at = 0
		}
	}
	return true
}

// openBlock reads a block's header. It is pure and trusts no length.
func openBlock(block []byte) cursor {
	if len(block) < blockHdrEnd {
		return cursor{}
	}
	c := cursor{
		left: int(binary.NativeEndian.Uint32(block[blockCount:])),
		off:  int(binary.NativeEndian.Uint32(block[blockFirst:])),
		end:  min(int(binary.NativeEndian.Uint32(block[blockLen:])), len(block)),
	}
	// No frame is shorter than its header: a count that cannot be is cut.
	c.left = min(c.left, len(block)/v3HdrEnd)
	return c
}

// frame returns the next frame and moves on. left must be positive. A header
// that leads out of the block ends the walk with an empty, truncated frame.
// there is false for a frame that the kernel has dropped when its header and place
// were made already, as no virtio header can express it (tpacket_rcv's
// drop_n_account; seen on 6.18): what stands there is of the block's last use.
func (c *cursor) frame(block []byte) (f Frame, there bool) {
	c.left--
	if c.off < blockHdrEnd || c.off > c.end-v3HdrEnd {
		c.left = 0
		return Frame{Truncated: true}, true
	}
	h := block[c.off:c.end]
	next := binary.NativeEndian.Uint32(h[v3Next:])
	status := binary.NativeEndian.Uint32(h[v3Status:])
	snap := binary.NativeEndian.Uint32(h[v3Snaplen:])
	size := binary.NativeEndian.Uint32(h[v3Len:])
	mac := int(binary.NativeEndian.Uint16(h[v3Mac:]))
	if next == 0 {
		c.left = 0 // the last of its block
	} else if uint64(next) < v3HdrEnd || uint64(next) > uint64(len(h)) {
		c.left = 0
		next = 0
	} else if c.left > 0 {
		// A frame's own stretch ends where the next one starts.
		h = h[:next:next]
	}
	c.off += int(next)
	return frameAt(h, v3HdrEnd, mac, size, snap, status), status&unix.TP_STATUS_USER != 0
}
